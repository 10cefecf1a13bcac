//! A running `uvn-dataplane`.

use crate::error::{RigError, written};
use crate::netns;
use crate::place::Place;
use crate::process::Process;
use crate::shell::{self, ShellError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long a data plane may take to attach.
const START: Duration = Duration::from_secs(20);
/// How long each of its networks may take in addition, on busy cores: the kernel's grace period when the shortcut takes
/// it over, and the pause before that.
const NETWORK_START: Duration = Duration::from_millis(100);
/// How long it may take to drain and detach.
const STOP: Duration = Duration::from_secs(3);
/// How long the kernel may take to remove one of its devices.
const REMOVE: Duration = Duration::from_millis(50);
/// The XDP program's verdicts that are not drops.
const NO_DROPS: [&str; 4] = ["xdp_pass", "xdp_redirected", "tc_stripped", "tc_encapsulated"];

/// One node's running data plane. Dropping it stops it as a service manager would.
pub struct Dataplane {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    networks: u32,
}

impl Dataplane {
    /// Starts it at `place` with this configuration, which has `networks` networks. Its socket, log and configuration
    /// are `files` with different endings; the `socket` key is added here. Call [`Dataplane::wait`] before use.
    ///
    /// # Errors
    /// A file cannot be written or the program not started.
    pub fn start(
        program: &Path,
        place: &Place,
        files: &Path,
        configuration: &str,
        networks: u32,
    ) -> Result<Self, RigError> {
        let [socket, log, config] = ["sock", "log", "toml"].map(|ending| files.with_extension(ending));
        let socket_line = format!("socket = \"{}\"\n", socket.display());
        std::fs::write(&config, socket_line + configuration).map_err(written(&config))?;
        let mut run = place.command(&program.to_string_lossy());
        run.arg("run").arg("--config").arg(&config).stderr(File::create(&log).map_err(written(&log))?);
        let process = Process::start("uvn-dataplane", run)?;
        Ok(Dataplane { process, program: program.into(), socket, log, networks })
    }

    /// Waits until it runs with all its networks, each in its final gear.
    ///
    /// # Errors
    /// It has ended, or takes too long. The error has the end of its log.
    pub fn wait(&mut self) -> Result<(), RigError> {
        let patience = START + self.networks * NETWORK_START;
        let end = Instant::now() + patience;
        loop {
            let why = match self.show() {
                Ok(show) if is_running(&show, self.networks) => return Ok(()),
                Ok(show) => format!("not ready after {patience:?}: {}", show["show"]),
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
            return Err(RigError::program("uvn-dataplane", format!("{why}\n{tail}")));
        }
    }

    /// The output of `uvn-dataplane show --json`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn show(&self) -> Result<Value, ShellError> {
        // Callers that wait ask again and again; they stop once everything is being removed.
        drop(netns::running());
        let mut show = Command::new(&self.program);
        let text = shell::read(show.arg("show").arg("--json").arg("--socket").arg(&self.socket))?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// Gear, state and modes of the NIC, in one line.
    ///
    /// # Errors
    /// It does not answer.
    pub fn summary(&self) -> Result<String, RigError> {
        let show = &self.show()?["show"];
        let text = |name: &str| show[name].as_str().unwrap_or("?").to_owned();
        // The shortcut gear has neither.
        let driver = show["xdp"].as_str().map(|mode| {
            let copy = if show["zero_copy"] == true { "zero-copy" } else { "copy" };
            format!(": XDP in {mode} mode, AF_XDP in {copy} mode")
        });
        Ok(format!(
            "{} ({}); {}{}, {} networks, {} of them in the shortcut",
            text("gear"),
            text("gear_reason"),
            text("state"),
            driver.unwrap_or_default(),
            show["networks"],
            show["shortcut"],
        ))
    }

    /// What it does about the traffic now, in its own word.
    #[must_use]
    pub fn measure(&self) -> Option<String> {
        self.show().ok()?["show"]["boost"].as_str().map(str::to_owned)
    }

    /// Every drop counter of the workers and the XDP program, by name; counters at zero may be missing.
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

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid() as i32
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.pid()) {
            let _already_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let patience = STOP + REMOVE * self.networks;
        let end = Instant::now() + patience;
        while self.process.ended().is_none() {
            if Instant::now() > end {
                eprintln!("uvn-dataplane did not stop within {patience:?} of SIGTERM: killing it");
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_running(show: &Value, networks: u32) -> bool {
    let show = &show["show"];
    show["state"] == "running" && show["networks"] == networks && show["waiting"] == 0
}
