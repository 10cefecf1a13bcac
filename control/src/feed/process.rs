//! The program `uvn-dataplane`: started by systemd if uvnd is one of its services, else as a process that outlives
//! uvnd.

use super::FeedError;
use crate::limited;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PROGRAM: &str = "uvn-dataplane";
/// A log that is longer, in bytes, is begun anew at the next start.
const LOG_BYTES: u64 = 1 << 20;
/// How long an end may take: systemd kills a data plane that has not ended after 15 s (TimeoutStopSec of its unit).
const STOP: Duration = Duration::from_secs(30);
/// How long systemd may take to answer: it knows the answer at once.
const ASK: Duration = Duration::from_secs(5);

/// A data plane whose start was requested.
#[derive(Debug)]
pub(super) struct Process {
    /// The program itself, or `systemctl`, which ends when the service is up.
    child: Child,
    unit: Option<String>,
    log: PathBuf,
    /// The offset in the log at which it begins, bytes.
    begin: u64,
}

impl Process {
    /// Starts the data plane of `nic` with the configuration `file`. Its output goes to `log`, or to the journal.
    pub(super) fn start(nic: &str, file: &Path, log: &Path) -> Result<Process, FeedError> {
        let failed = |source| FeedError::Launch { nic: nic.into(), source };
        let unit = has_systemd().then(|| unit_of(nic));
        let mut command = match &unit {
            Some(unit) => systemctl("restart", unit),
            None => {
                let mut command = Command::new(program());
                command.arg("run").arg("--config").arg(file);
                command
            }
        };
        let long = fs::metadata(log).is_ok_and(|log| log.len() > LOG_BYTES);
        let output = OpenOptions::new().create(true).append(!long).write(true).truncate(long).open(log);
        let output = output.map_err(failed)?;
        let begin = output.metadata().map_err(failed)?.len();
        // A process group of its own: a signal that ends uvnd from a terminal does not reach it.
        command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone().map_err(failed)?);
        let child = command.stderr(output).spawn().map_err(failed)?;
        Ok(Process { child, unit, log: log.into(), begin })
    }

    /// Why it has ended; None: it has not.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(error.to_string()),
        };
        match &self.unit {
            Some(_) if status.success() => None,
            Some(unit) => Some(format!("systemd cannot start it: see `journalctl -u {unit}`")),
            None => {
                Some(last_line(&self.log, self.begin).unwrap_or_else(|| format!("it ended with {status}")))
            }
        }
    }

    /// Whether it has ended, and is no longer a zombie.
    pub(super) fn is_reaped(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends a data plane that was started and has not answered yet.
    pub(super) fn abandon(mut self, nic: &str) {
        let _already_gone = self.child.kill();
        let _ = self.child.wait();
        if self.unit.is_some() {
            stop_unit(nic);
        }
    }
}

/// Keeps systemd from starting a NIC's data plane again.
pub(super) fn stop_unit(nic: &str) {
    if has_systemd()
        && let Err(error) = limited::output(&mut systemctl("stop", &unit_of(nic)), &[], STOP)
    {
        tracing::warn!(nic, %error, "cannot run systemctl");
    }
}

/// Whether systemd is about to start or stop a NIC's data plane, on anybody's request.
pub(super) fn has_job(nic: &str) -> bool {
    let job = || {
        let mut command = Command::new("systemctl");
        command.args(["show", "--property=Job", "--value", "--", &unit_of(nic)]);
        let output = limited::output(&mut command, &[], ASK).ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    has_systemd() && job().is_some_and(|job: u32| job > 0)
}

/// Signals a data plane while its connection stands, so that the PID is certainly its own.
pub(super) fn signal(process: i32, signal: Signal) {
    // Neither a process group nor all processes.
    if process > 1
        && let Err(error) = kill(Pid::from_raw(process), signal)
    {
        tracing::debug!(process, %error, "cannot signal the data plane");
    }
}

/// Whether a unit would run where this process does: systemd runs, with the same network and files.
fn has_systemd() -> bool {
    let same = |namespace: &str| {
        let inode = |who: &str| fs::metadata(format!("/proc/{who}/ns/{namespace}")).map(|file| file.ino());
        matches!((inode("thread-self"), inode("1")), (Ok(own), Ok(first)) if own == first)
    };
    Path::new("/run/systemd/system").is_dir() && same("net") && same("mnt")
}

fn systemctl(verb: &str, unit: &str) -> Command {
    let mut command = Command::new("systemctl");
    command.args([verb, "--", unit]);
    command
}

/// The unit of a NIC, whose name systemd requires to be escaped (systemd.unit(5), "String escaping").
fn unit_of(nic: &str) -> String {
    let mut instance = String::new();
    for (index, byte) in nic.bytes().enumerate() {
        match byte {
            b'.' if index > 0 => instance.push('.'),
            b':' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => instance.push(char::from(byte)),
            _ => instance.push_str(&format!("\\x{byte:02x}")),
        }
    }
    format!("uvn-dataplane@{instance}.service")
}

/// The path of the program: beside uvnd, as in a build; else found by PATH; else where packages install it.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|uvnd| Some(uvnd.parent()?.join(PROGRAM)));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path =
        std::env::split_paths(&in_path).map(|directory| directory.join(PROGRAM)).collect::<Vec<_>>();
    let candidates = beside.into_iter().chain(in_path);
    candidates.into_iter().find(|path| path.is_file()).unwrap_or_else(|| Path::new("/usr/sbin").join(PROGRAM))
}

/// The last line of the log, from byte `begin` on; None: it has written none.
fn last_line(log: &Path, begin: u64) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    file.seek(SeekFrom::Start(begin)).ok()?;
    let mut said = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut said).ok()?;
    let said = String::from_utf8_lossy(&said);
    said.lines().rev().find_map(|line| line.strip_prefix("uvn-dataplane: ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_are_escaped_as_systemd_does() {
        assert_eq!(unit_of("em1"), "uvn-dataplane@em1.service");
        assert_eq!(unit_of("bond0.12"), "uvn-dataplane@bond0.12.service");
        assert_eq!(unit_of("br-ex"), "uvn-dataplane@br\\x2dex.service");
        assert_eq!(unit_of(".x@"), "uvn-dataplane@\\x2ex\\x40.service");
    }
}
