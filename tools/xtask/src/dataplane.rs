//! Builds `uvn-dataplane` and runs it on a rig's nodes.

use crate::cores::Cores;
use crate::process::{Place, Process};
use crate::rig::{ADDRESSES, NIC, Rig, RigError, USERS, netns_path};
use crate::shell::{self, ShellError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long a data plane may take to attach and to make its devices.
const START: Duration = Duration::from_secs(20);
/// How long it may take to drain and detach.
const STOP: Duration = Duration::from_secs(3);
/// The XDP program's verdicts that are not drops.
const NO_DROPS: [&str; 2] = ["xdp_pass", "xdp_redirected"];
/// The VNI of the first further network.
const FURTHER_VNI: u32 = 100_000;

/// Builds the release and returns the program.
///
/// # Errors
/// cargo failed.
pub fn build() -> Result<PathBuf, RigError> {
    shell::run(cargo().args(["build", "--release", "--quiet", "--package", "uvn-dataplane"]))?;
    Ok(target_directory()?.join("release/uvn-dataplane"))
}

/// Where cargo puts what it builds.
///
/// # Errors
/// cargo failed.
pub fn target_directory() -> Result<PathBuf, RigError> {
    let metadata = shell::read(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)
        .map_err(|error| RigError::Program { what: "cargo metadata".into(), why: error.to_string() })?;
    Ok(metadata["target_directory"].as_str().unwrap_or("target").into())
}

/// The cargo that runs us, in the workspace.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// One node's running data plane. Dropping it stops it as a service manager would.
pub struct Dataplane {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    networks: u32,
}

impl Dataplane {
    /// Starts it on a node with the users' networks and `further` others, whose endpoints share one namespace.
    /// [`Dataplane::wait`] for it before use.
    ///
    /// # Errors
    /// A file cannot be written or the program not started.
    pub fn start(
        program: &Path,
        rig: &Rig,
        node: usize,
        cores: &Cores,
        further: u32,
    ) -> Result<Self, RigError> {
        let file = |name: &str| rig.directory().join(format!("node{}.{name}", node + 1));
        let (socket, log, config) = (file("sock"), file("log"), file("toml"));
        let written =
            |source| RigError::Io { what: format!("write in {}", rig.directory().display()), source };
        std::fs::write(&config, configuration(rig, node, cores, further, &socket)?).map_err(written)?;
        // Its workers pin themselves; this puts its other thread out of the applications' way.
        let place = Place { netns: rig.node(node), cores: cores.net[node].to_string() };
        let mut run = place.command(&program.to_string_lossy());
        run.arg("run").arg("--config").arg(&config).stderr(File::create(&log).map_err(written)?);
        let process = Process::start("uvn-dataplane", run)?;
        Ok(Dataplane {
            process,
            program: program.into(),
            socket,
            log,
            networks: further + USERS.len() as u32,
        })
    }

    /// Waits until it is running with all its networks.
    ///
    /// # Errors
    /// It ended, or took too long; the end of its log is in the error.
    pub fn wait(&mut self) -> Result<(), RigError> {
        let end = Instant::now() + START;
        loop {
            let why = match self.show() {
                Ok(show) if is_running(&show, self.networks) => return Ok(()),
                Ok(show) => format!("not ready after {START:?}: {}", show["show"]),
                Err(error) => format!("does not answer: {error}"),
            };
            let why = match self.process.ended() {
                Some(status) => format!("ended: {status}"),
                None if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
                None => why,
            };
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            return Err(RigError::Program { what: "uvn-dataplane".into(), why: format!("{why}\n{tail}") });
        }
    }

    /// What `uvn-dataplane show --json` says.
    ///
    /// # Errors
    /// It does not answer.
    pub fn show(&self) -> Result<Value, ShellError> {
        let mut show = Command::new(&self.program);
        let text = shell::read(show.arg("show").arg("--json").arg("--socket").arg(&self.socket))?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// How it drives the NIC, in one line.
    ///
    /// # Errors
    /// It does not answer.
    pub fn summary(&self) -> Result<String, RigError> {
        let show = &self.show()?["show"];
        let text = |name: &str| show[name].as_str().unwrap_or("?").to_owned();
        let copy = if show["zero_copy"] == true { "zero-copy" } else { "copy" };
        Ok(format!(
            "{}: XDP in {} mode, AF_XDP in {copy} mode, {} networks, tables of epoch {}",
            text("state"),
            text("xdp"),
            show["networks"],
            show["epoch"],
        ))
    }

    /// Every drop counter by name, the workers' and the XDP program's; what is zero may be missing.
    ///
    /// # Errors
    /// It does not answer.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>, RigError> {
        let counters = &self.show()?["counters"];
        let groups = [&counters["total"]["drops"], &counters["xdp"]];
        let entries = groups.into_iter().filter_map(Value::as_object).flatten();
        let drops = entries.filter(|(name, _)| !NO_DROPS.contains(&name.as_str()));
        Ok(drops.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect())
    }

    /// Per cent of one core that it used over `time`.
    #[must_use]
    pub fn cpu_percent(&self, time: Duration) -> f64 {
        let before = self.cpu_ticks();
        thread::sleep(time);
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
        100.0 * (self.cpu_ticks() - before) / ticks_per_second / time.as_secs_f64()
    }

    /// utime + stime of proc_pid_stat(5): the 12th and 13th field after the name in parentheses.
    fn cpu_ticks(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.pid()) {
            let _already_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + STOP;
        while self.process.ended().is_none() {
            if Instant::now() > end {
                eprintln!("uvn-dataplane did not stop within {STOP:?} of SIGTERM: killing it");
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_running(show: &Value, networks: u32) -> bool {
    show["show"]["state"] == "running" && show["show"]["networks"] == networks
}

/// The namespace of further networks' endpoints: they carry no traffic, so they need not be apart.
fn others(rig: &Rig, node: usize) -> String {
    format!("{}-others", rig.node(node))
}

/// The TOML file of one node.
fn configuration(
    rig: &Rig,
    node: usize,
    cores: &Cores,
    further: u32,
    socket: &Path,
) -> Result<String, RigError> {
    let ((v4, v6), (peer4, peer6)) = (ADDRESSES[node], ADDRESSES[1 - node]);
    let mut toml = format!(
        "nic = \"{NIC}\"\nvtep = [\"{v4}\"]\nsocket = \"{}\"\n\
         [peers]\nvtep = [{{ address = \"{peer4}\", overlay = [\"{peer4}\", \"{peer6}\"] }}]\n\
         [workers]\ncores = [{}]\n",
        socket.display(),
        cores.net[node],
    );
    let mut network = |vni: u32, device: &str, netns: &str| {
        let netns = netns_path(netns);
        let _infallible = write!(
            toml,
            "[[network]]\nvni = {vni}\naddresses = [\"{v4}/24\", \"{v6}/64\"]\npeers = [\"{peer4}\"]\n\
             device = {{ name = \"{device}\", netns = \"{}\" }}\n",
            netns.display(),
        );
    };
    for user in USERS {
        network(user, &format!("u{user}"), &rig.user(node, user));
    }
    if further > 0 {
        let others = others(rig, node);
        rig.add_namespace(&others)?;
        (0..further).for_each(|index| network(FURTHER_VNI + index, &format!("x{index}"), &others));
    }
    Ok(toml)
}
