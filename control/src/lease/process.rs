//! Processes that hold leases, and users who have processes.

#![allow(unsafe_code, reason = "pidfd_open has no safe interface")]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A process, told apart from a later one with the same PID by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its PID.
    pub pid: i32,
    /// When it was started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start: u64,
}

impl Process {
    /// The process that has a PID now.
    ///
    /// # Errors
    /// No process has it.
    pub fn of(pid: i32) -> io::Result<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_in(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Process { pid, start })
    }

    /// Whether it lives; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start_in(&stat) == Some(self.start) && !matches!(state_in(&stat), Some("Z" | "X"))
    }

    /// A pidfd: readable when the process has ended.
    ///
    /// # Errors
    /// The process has ended (ESRCH), or no descriptor is free.
    pub fn open(&self) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_open takes two integers, and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just opened it for us, close-on-exec, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Checked last: from the opening on, the descriptor names one process, whatever happens to the PID.
        if self.is_alive() { Ok(fd) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }
}

/// The `wanted` users with a process in this process's network namespace, each with the PID of one of their processes.
///
/// # Errors
/// `/proc` cannot be read.
pub fn users(wanted: impl Fn(u32) -> bool) -> io::Result<BTreeMap<u32, i32>> {
    let mut found = BTreeMap::new();
    let own = fs::read_link("/proc/self/ns/net")?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let Some(pid) = pid else { continue };
        // The process may have ended.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let Some(uid) = uid_in(&status).filter(|uid| wanted(*uid) && !found.contains_key(uid)) else {
            continue;
        };
        if fs::read_link(path.join("ns/net")).is_ok_and(|netns| netns == own) {
            found.insert(uid, pid);
        }
    }
    Ok(found)
}

/// A process of a user's: this one, or another if it has ended since; None: the user has none any more.
#[must_use]
pub fn still_of(uid: u32, pid: i32) -> Option<i32> {
    let is_theirs =
        || uid_in(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()) == Some(uid);
    if Process::of(pid).is_ok_and(|process| process.is_alive()) && is_theirs() {
        return Some(pid);
    }
    users(|other| other == uid).ok()?.get(&uid).copied()
}

/// The real UID in /proc/PID/status: sockets are bound by it.
fn uid_in(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// Fields 3 and on of /proc/PID/stat: those behind the command's name, which may contain anything.
fn fields(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

fn state_in(stat: &str) -> Option<&str> {
    fields(stat)?.next()
}

fn start_in(stat: &str) -> Option<u64> {
    fields(stat)?.nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    /// As somebody who has no other processes here.
    #[test]
    fn another_process_of_a_user_stands_in_for_one_that_has_ended() {
        const UID: u32 = 2_000_000_123;
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("60").uid(UID).spawn().unwrap()
        };
        let pid = |child: &Child| i32::try_from(child.id()).unwrap();
        let (mut first, mut second) = (start(), start());
        assert_eq!(still_of(UID, pid(&first)), Some(pid(&first)));
        first.kill().unwrap();
        // A zombie until somebody takes its status.
        let id = Id::Pid(Pid::from_raw(pid(&first)));
        waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert_eq!(still_of(UID, pid(&first)), Some(pid(&second)));
        first.wait().unwrap();
        assert_eq!(still_of(UID, pid(&first)), Some(pid(&second)));
        second.kill().unwrap();
        second.wait().unwrap();
        assert_eq!(still_of(UID, pid(&first)), None);
    }

    #[test]
    fn a_process_lives_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id().try_into().unwrap()).unwrap();
        let pidfd = process.open().unwrap();
        let ended = |timeout: u16| {
            poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(timeout)).unwrap()
                == 1
        };
        assert!(process.is_alive() && !ended(0));
        child.kill().unwrap();
        assert!(ended(10_000));
        // A zombie until it is waited for.
        assert!(!process.is_alive() && process.open().is_err());
        child.wait().unwrap();
        assert!(!process.is_alive() && process.open().is_err());
    }

    #[test]
    fn another_process_with_the_pid_is_another() {
        let own = Process::of(std::process::id().try_into().unwrap()).unwrap();
        let other = Process { start: own.start + 1, ..own };
        assert!(own.is_alive() && !other.is_alive());
        assert_eq!(other.open().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_command_may_be_called_anything() {
        let stat = "42 (a) S 1 (b) 7) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!((state_in(stat), start_in(stat)), (Some("R"), Some(4711)));
        assert_eq!((state_in(""), start_in("1 (x) R 1")), (None, None));
    }

    #[test]
    fn users_with_processes() {
        let own = nix::unistd::getuid().as_raw();
        let found = users(|uid| [own, 4_000_000_000].contains(&uid)).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&own]);
        assert!(found.values().all(|pid| Process::of(*pid).is_ok()), "{found:?}");
        assert!(users(|_| false).unwrap().is_empty());
    }
}
