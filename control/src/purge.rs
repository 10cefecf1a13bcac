//! Takes all of uvn off a node.

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
use uvn_dataplane::port::link;

/// How long `uvnd` may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// What it and the data planes have written.
const RUN: &str = "/run/uvn";
/// What starts at boot.
const UNITS: [&str; 2] = ["uvnd.service", "uvn-lockdown.service"];
/// Where Slurm's configuration may be.
const SLURM: [&str; 2] = ["/etc/slurm", "/etc/slurm-llnl"];
/// There if systemd runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// What a purge did.
#[derive(Debug, Default)]
pub struct Purged {
    /// What was done, or would be.
    pub steps: Vec<String>,
    /// What could not be done. The rest was.
    pub errors: Vec<String>,
    /// What is left to the administrator.
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

/// Takes everything away, and goes on past errors. Users are refused until their last device is gone; after that, nobody
/// is policed.
#[must_use]
pub fn purge(dry_run: bool) -> Purged {
    let mut purged = Purged::default();
    // The next boot would police again.
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
    // Late: the kernel needs a moment to let go of the other devices of a data plane that had to be killed.
    if let Err(error) = left_over(dry_run, &mut purged) {
        purged.errors.push(error.to_string());
    }
    purged.note(dry_run, format!("remove {RUN}"), || match fs::remove_dir_all(RUN) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {
            Err(error.into())
        }
        _ => Ok(()),
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

/// PAM and Slurm do not forget uvn by themselves, and refuse policed users as long as their configuration is there.
fn left(file: &Path, number: usize, what: &str) -> String {
    format!(
        "{}:{number} still names uvn: {what} until you remove this line, or the file {}",
        file.display(),
        config::FILE
    )
}

/// Lines of Slurm's plugstack.conf, and of what it usually includes, that name the plugin.
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
    // One that was killed has left its socket.
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
    /// What the kernel takes along with something else is seen when it is looked at again.
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

/// What data planes that were killed have left.
fn left_over(dry_run: bool, purged: &mut Purged) -> Result<(), Box<dyn Error>> {
    for (_, device) in Netlink::open()?.left_for_gro()? {
        purged.note(dry_run, format!("delete {device}"), || Ok(link::delete(&device)?));
    }
    Ok(())
}
