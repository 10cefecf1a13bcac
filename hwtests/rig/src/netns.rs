//! Network namespaces that are removed at the end in every case.
//!
//! The name of everything that is made here has this process's ID. So it is found and removed when the [`Namespaces`]
//! are dropped, on Ctrl-C, and by the next run after a crash.

use crate::cpu::ProcessTime;
use crate::error::RigError;
use crate::shell;
use crate::wire::NIC;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::RwLock;
use std::thread;
use std::time::{Duration, Instant};

/// The prefix of every name; the process's ID follows.
const PREFIX: &str = "uvn-rig-";
/// The programs that make such names; the name of a test program is longer.
const OWNERS: [&str; 3] = ["xtask", "uvn-bench", "nodes-"];
/// The prefix of names that test programs make ([`mod@crate::test`]).
pub(crate) const TESTS: &str = "uvn-test-";
const NETNS: &str = "/run/netns";
/// The folder in which MPI's ranks share memory, in files with the name of their host, which is a namespace's.
const SHARED_MEMORY: &str = "/dev/shm";

/// Network namespaces and a folder under one name. Dropping it removes them, with the processes and links in them.
pub struct Namespaces {
    name: String,
    directory: PathBuf,
}

impl Namespaces {
    /// Makes the folder. `tag` tells several of one process apart.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(tag: &str) -> Result<Namespaces, RigError> {
        let name = format!("{PREFIX}{}-{tag}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        let _running = running();
        std::fs::create_dir_all(&directory)
            .map_err(RigError::io(format!("create {}", directory.display())))?;
        Ok(Namespaces { name, directory })
    }

    /// The full name of a namespace.
    #[must_use]
    pub fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.name)
    }

    /// Makes a namespace, with its loopback up, and returns its full name.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn add(&self, short: &str) -> Result<String, RigError> {
        let _running = running();
        let name = self.name(short);
        ip(&["netns", "add", &name])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(name)
    }

    /// A folder for sockets and configuration.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _unless_stopping = running();
        remove(&format!("{}-", self.name));
        remove_folders(|name| name == self.name);
    }
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// It failed.
pub fn ip(arguments: &[&str]) -> Result<(), RigError> {
    shell::read(Command::new("ip").args(arguments))?;
    Ok(())
}

/// The path that names a network namespace.
#[must_use]
pub fn path(netns: &str) -> PathBuf {
    Path::new(NETNS).join(netns)
}

/// The inode numbers, as in `/proc/PID/ns/net`, of all namespaces of this process.
#[must_use]
pub fn own_inodes() -> Vec<u64> {
    let beginning = format!("{PREFIX}{}-", std::process::id());
    let names = names_in(Path::new(NETNS)).into_iter().filter(|name| name.starts_with(&beginning));
    names.filter_map(|name| Some(std::fs::metadata(path(&name)).ok()?.ino())).collect()
}

/// Held for reading while something is being made; held for writing from when everything is being removed to the end.
static RUNNING: RwLock<()> = RwLock::new(());

/// Hold the result while making something that must be removed. Blocks for ever if a signal is ending the process, so
/// that nothing is made after the removal.
pub fn running() -> impl Sized {
    RUNNING.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Checks for root, removes what crashed runs have left, and makes Ctrl-C (or SIGTERM, SIGHUP) remove all rigs of this
/// process before it ends.
///
/// # Errors
/// The process is not root, or signals cannot be caught.
pub fn prepare() -> Result<(), RigError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(RigError::NotRoot);
    }
    sweep();
    catch_signals()
}

/// Makes Ctrl-C (or SIGTERM, SIGHUP) remove what this process has made before it ends.
///
/// # Errors
/// Signals cannot be caught.
pub fn catch_signals() -> Result<(), RigError> {
    catch(|| {
        eprintln!("\nstopping: removing namespaces and processes");
        remove_of(PREFIX, std::process::id());
        // Test programs remove what they have made; what one was just making is removed here.
        let end = Instant::now() + Duration::from_secs(10);
        while owners(TESTS).into_iter().any(is_alive) && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
        if nix::unistd::geteuid().is_root() {
            sweep();
        }
        end_children();
    })
}

/// The same for a test program, whose processes have nothing to say any more.
pub(crate) fn catch_signals_of_a_test() -> Result<(), RigError> {
    catch(|| {
        end_children();
        remove_of(TESTS, std::process::id());
    })
}

fn catch(clean_up: impl FnOnce() + Send + 'static) -> Result<(), RigError> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(RigError::io("catch signals"))?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        let _for_good = RUNNING.write();
        clean_up();
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// Removes what processes have left that no longer exist.
fn sweep() {
    // IDs are used again, so a process is an owner only if it is one of these programs.
    let is_owner = |pid| program(pid).is_some_and(|name| OWNERS.iter().any(|owner| name.starts_with(owner)));
    for owner in owners(PREFIX).into_iter().filter(|owner| !is_owner(*owner)) {
        remove_of(PREFIX, owner);
    }
    for owner in owners(TESTS).into_iter().filter(|owner| !is_alive(*owner)) {
        remove_of(TESTS, owner);
    }
}

/// The process IDs in the names of namespaces and folders with this prefix.
fn owners(prefix: &str) -> Vec<i32> {
    let mut owners: Vec<i32> = [Path::new(NETNS), &std::env::temp_dir()]
        .into_iter()
        .flat_map(names_in)
        .filter_map(|name| name.strip_prefix(prefix)?.split('-').next()?.parse().ok())
        .collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

/// The name of a process's program; None: the process does not exist.
fn program(pid: i32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().into())
}

fn is_alive(pid: i32) -> bool {
    program(pid).is_some()
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes all that a process has made.
fn remove_of(prefix: &str, owner: impl std::fmt::Display) {
    let beginning = format!("{prefix}{owner}-");
    remove(&beginning);
    remove_folders(|name| name.starts_with(&beginning));
}

/// The exit code for a result. Writes the error, unless a signal is ending the process.
pub fn exit_code(result: Result<(), impl Display>) -> ExitCode {
    let _unless_stopping = running();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Removes every namespace whose name begins so, with its processes, links and shared memory. Goes on after an error,
/// and names what is left behind.
fn remove(beginning: &str) {
    let namespaces: Vec<String> =
        names_in(Path::new(NETNS)).into_iter().filter(|name| name.starts_with(beginning)).collect();
    stop_processes(&namespaces);
    for netns in &namespaces {
        // The kernel empties a deleted namespace later, in its own time; the wire goes now.
        let _not_every_one_has_it = shell::read(Command::new("ip").args(["-n", netns, "link", "del", NIC]));
        if let Err(error) = ip(&["netns", "del", netns]) {
            eprintln!("left behind: {error}");
        }
    }
    remove_entries(Path::new(SHARED_MEMORY), |name| name.contains(beginning));
}

/// Removes the temporary folders whose name is `ours`.
fn remove_folders(ours: impl Fn(&str) -> bool) {
    remove_entries(&std::env::temp_dir(), ours);
}

/// Removes the files and folders whose name is `ours`. Goes on after an error, and names what is left behind.
fn remove_entries(directory: &Path, ours: impl Fn(&str) -> bool) {
    for path in names_in(directory).into_iter().filter(|name| ours(name)).map(|name| directory.join(name)) {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            eprintln!("left behind: {}: {error}", path.display());
        }
    }
}

/// Ends the children of this process, and waits for their end: for a data plane with a thousand networks, the kernel
/// takes seconds.
fn end_children() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let own = std::process::id() as i32;
    let pids = names_in(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    for pid in pids.filter(|&pid| ProcessTime::of(pid).is_some_and(|process| process.parent == own)) {
        let _already_gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let end = Instant::now() + PATIENCE;
    // An error means that no child is left.
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ends the processes in these namespaces: SIGTERM, so that an engine detaches its XDP program, then SIGKILL.
fn stop_processes(namespaces: &[String]) {
    let processes = || -> Vec<i32> {
        let pids = |netns| shell::read(Command::new("ip").args(["netns", "pids", netns])).unwrap_or_default();
        let text: String = namespaces.iter().map(|netns| pids(netns.as_str())).collect();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let end = Instant::now() + Duration::from_secs(3);
        let mut left = processes();
        for &pid in &left {
            let _already_gone = kill(Pid::from_raw(pid), signal);
            // A stopped process must be continued to end.
            let _already_gone = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        while !left.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
            // An ended child of this process is a zombie, in no namespace, until its owner waits for it.
            left = processes();
        }
    }
}
