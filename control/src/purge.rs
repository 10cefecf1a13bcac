//! Removes everything of uvn from a node.

use crate::binding::{self, Binding};
use crate::config;
use crate::feed;
use crate::firewall;
use crate::limited;
use crate::lockdown;
use crate::netlink::Netlink;
use crate::pam;
use crate::plan;
use crate::sysctl;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use uvn_api::uvnd::client::Client;
use uvn_api::uvnd::message::{self, Request};
use uvn_api::uvnd::status::Status;
use uvn_dataplane::gear::boost::awake;
use uvn_dataplane::port::link;

/// How long `uvnd`, or a call of systemctl, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The folder of what `uvnd` and the data planes write.
const RUN: &str = "/run/uvn";
/// Units that start at boot.
const UNITS: [&str; 2] = ["uvnd.service", "uvn-lockdown.service"];
/// Folders where Slurm's configuration may be.
const SLURM: [&str; 2] = ["/etc/slurm", "/etc/slurm-llnl"];
/// Exists if systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// The result of a purge.
#[derive(Debug, Default)]
pub struct Purged {
    /// The steps that were taken, or would be in a dry run.
    pub steps: Vec<String>,
    /// Steps that failed. All others were taken.
    pub errors: Vec<String>,
    /// Texts about what the administrator has to remove.
    pub warnings: Vec<String>,
}

impl Purged {
    fn note(
        &mut self,
        dry_run: bool,
        step: impl Into<String>,
        act: impl FnOnce() -> Result<(), Box<dyn Error>>,
    ) {
        self.steps.push(step.into());
        if !dry_run && let Err(error) = act() {
            self.errors.push(error.to_string());
        }
    }
}

/// Removes everything, and goes on after an error. Users without a network are refused sockets until the socket
/// programs are detached; after that, nobody is policed.
#[must_use]
pub fn purge(dry_run: bool) -> Purged {
    let mut purged = Purged::default();
    // Disabled first: otherwise the next boot would police again.
    for unit in UNITS.iter().filter(|unit| is_enabled(unit)) {
        purged.note(dry_run, format!("disable {unit}"), || disable(unit));
    }
    if message::socket().exists() {
        purged.note(dry_run, "stop uvnd", stop);
    }
    for nic in feed::left() {
        purged.note(dry_run, format!("stop the data plane of {nic}"), || Ok(feed::end(&nic)?));
    }
    if let Err(error) = networks(dry_run, &mut purged) {
        purged.errors.push(error.to_string());
    }
    purged.note(dry_run, "remove the nftables table", || Ok(firewall::remove()?));
    if Path::new(sysctl::RECORD).exists() {
        purged.note(dry_run, "restore kernel settings", || Ok(sysctl::restore(Path::new(sysctl::RECORD))?));
    }
    if Path::new(lockdown::LAST).exists() {
        purged.note(dry_run, format!("remove {}", lockdown::LAST), || Ok(lockdown::forget()?));
    }
    if Path::new(binding::PINS).exists() {
        purged.note(dry_run, "detach the socket programs", || Ok(Binding::remove(Path::new(binding::PINS))?));
    }
    // Late: the kernel takes a moment to delete the other devices of a data plane that was killed.
    if let Err(error) = left_over(dry_run, &mut purged) {
        purged.errors.push(error.to_string());
    }
    purged.note(dry_run, format!("remove {RUN}"), || {
        // It says on which cores.
        awake::lift_what_is_left();
        match fs::remove_dir_all(RUN) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {
                Err(error.into())
            }
            _ => Ok(()),
        }
    });
    let logins = pam::lines().into_iter().map(|line| (line.file, line.number, "users cannot log in"));
    let jobs = plugins().into_iter().map(|(file, number)| (file, number, "users' jobs fail"));
    purged.warnings = logins.chain(jobs).map(|(file, number, what)| left(&file, number, what)).collect();
    purged
}

/// Whether systemd starts a unit at boot.
fn is_enabled(unit: &str) -> bool {
    let asked =
        limited::output(Command::new("systemctl").args(["is-enabled", "--quiet", unit]), &[], PATIENCE);
    Path::new(SYSTEMD).exists() && asked.is_ok_and(|output| output.status.success())
}

fn disable(unit: &str) -> Result<(), Box<dyn Error>> {
    let output =
        limited::output(Command::new("systemctl").args(["disable", "--quiet", unit]), &[], PATIENCE)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("systemctl disable {unit}: {}", String::from_utf8_lossy(&output.stderr).trim())
                .into())
        }
    }
}

/// A warning about a line that still calls uvn. PAM and Slurm refuse policed users while uvn.toml exists.
fn left(file: &Path, number: usize, what: &str) -> String {
    format!(
        "{}:{number} still names uvn: {what} until you remove this line, or the file {}",
        file.display(),
        config::FILE
    )
}

/// Lines of Slurm's plugstack.conf, and of the folder that it usually includes, that name the plugin.
fn plugins() -> Vec<(PathBuf, usize)> {
    let included = SLURM.iter().flat_map(|folder| fs::read_dir(format!("{folder}/plugstack.conf.d")));
    let mut files: Vec<PathBuf> = included.flatten().flatten().map(|entry| entry.path()).collect();
    files.extend(SLURM.iter().map(|folder| Path::new(folder).join("plugstack.conf")));
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let names = |line: &str| line.split('#').next().is_some_and(|line| line.contains("spank_uvn"));
        let numbers = (1..).zip(text.lines()).filter(|(_, line)| names(line)).map(|(number, _)| number);
        lines.extend(numbers.map(|number| (file.clone(), number)));
    }
    lines
}

fn stop() -> Result<(), Box<dyn Error>> {
    // A killed uvnd leaves its socket behind, to which nothing connects.
    let Ok(client) = Client::connect(message::socket()) else { return Ok(()) };
    client.ask::<Status>(&Request::Stop)?;
    let end = Instant::now() + PATIENCE;
    while message::socket().exists() {
        if Instant::now() >= end {
            return Err("uvnd has not ended after 30 s; kill it, and run `uvn purge` again".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn networks(dry_run: bool, purged: &mut Purged) -> Result<(), Box<dyn Error>> {
    /// Each round finds what the kernel has deleted together with something else.
    const ROUNDS: usize = 4;

    let netlink = Netlink::open()?;
    let pristine = plan::pristine(Path::new("/proc/net/if_inet6").exists());
    for _ in 0..ROUNDS {
        let steps = plan::diff(&pristine, &netlink.observe()?);
        if steps.is_empty() {
            return Ok(());
        }
        for step in &steps {
            purged.note(dry_run, step.to_string(), || Ok(netlink.apply(step)?));
        }
        if dry_run {
            return Ok(());
        }
    }
    Ok(())
}

/// Deletes the devices for GRO that killed data planes have left.
fn left_over(dry_run: bool, purged: &mut Purged) -> Result<(), Box<dyn Error>> {
    for (_, device) in Netlink::open()?.left_for_gro()? {
        purged.note(dry_run, format!("delete {device}"), || Ok(link::delete(&device)?));
    }
    Ok(())
}
