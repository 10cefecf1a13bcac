//! Two nodes on this machine: network namespaces joined by a veth wire, each user's endpoint in a namespace of its own.
//!
//! Everything a rig makes carries its name, which holds this process's id. So it is found and removed when the
//! [`Rig`] is dropped, on Ctrl-C, and by the next run after a crash.

use crate::shell::{self, ShellError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::RwLock;
use std::thread;
use std::time::{Duration, Instant};

/// The users that both nodes host. Their VNI is their UID.
pub const USERS: [u32; 2] = [1234, 9876];
/// The underlay NIC's name on both nodes.
pub const NIC: &str = "em1";
/// Each node's underlay addresses; the users' endpoints carry the same.
pub const ADDRESSES: [(&str, &str); 2] = [("10.0.0.1", "fd00:10::1"), ("10.0.0.2", "fd00:10::2")];
/// Bytes of an IP packet on the wire.
pub const MTU: u32 = 1500;

/// How every name of a rig begins; the process's id follows.
const PREFIX: &str = "uvnrig-";
/// The same of what test programs make (`dataplane/tests/common/interrupt.rs`).
const TESTS: &str = "uvn-test-";
const NETNS: &str = "/run/netns";

/// What the wire must not do, by ethtool's names: otherwise 64 KiB frames or unfinished checksums cross it, which no
/// NIC would send. `tx` is the group of all transmit checksums.
const OFF: &[&str] =
    &["tso", "gso", "tx", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation"];
/// The same, as `ethtool -k` reports them.
const REPORTED_OFF: &[&str] = &[
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "tx-checksumming",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
];
/// What a real NIC's driver does on receive.
const REPORTED_ON: &[&str] = &["generic-receive-offload"];

/// A rig could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// A command failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A file or process could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An offload is not as it must be.
    #[error("{NIC}: {feature} cannot be switched {wanted}; figures from such a wire mean nothing")]
    Offload {
        /// ethtool's name of it.
        feature: &'static str,
        /// `on` or `off`.
        wanted: &'static str,
    },
    /// A program on the rig did not do what it should.
    #[error("{what}: {why}")]
    Program {
        /// Which one.
        what: String,
        /// What it did instead.
        why: String,
    },
    /// Only root may make network namespaces.
    #[error("this makes network namespaces: run it as root")]
    NotRoot,
}

/// Two nodes and their users. Dropping it removes all of it.
pub struct Rig {
    name: String,
    directory: PathBuf,
}

impl Rig {
    /// Makes both nodes, the wire and an empty namespace per user and node. `tag` tells this process's rigs apart.
    ///
    /// # Errors
    /// A step failed, or the wire's offloads are not what they should be. What was made is removed again.
    pub fn new(tag: &str) -> Result<Rig, RigError> {
        let name = format!("{PREFIX}{}-{tag}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        let rig = Rig { name, directory };
        let made = |source| RigError::Io { what: format!("create {}", rig.directory.display()), source };
        {
            let _running = running();
            std::fs::create_dir_all(&rig.directory).map_err(made)?;
        }
        for node in 0..2 {
            rig.add_namespace(&rig.node(node))?;
            for user in USERS {
                rig.add_namespace(&rig.user(node, user))?;
            }
        }
        let (left, right) = (rig.node(0), rig.node(1));
        ip(&["link", "add", NIC, "netns", &left, "type", "veth", "peer", "name", NIC, "netns", &right])?;
        for (node, (v4, v6)) in ADDRESSES.iter().enumerate() {
            let node = rig.node(node);
            set_offloads(&node)?;
            ip(&["-n", &node, "addr", "add", &format!("{v4}/24"), "dev", NIC])?;
            ip(&["-n", &node, "addr", "add", &format!("{v6}/64"), "dev", NIC, "nodad"])?;
            ip(&["-n", &node, "link", "set", NIC, "mtu", &MTU.to_string(), "up"])?;
        }
        Ok(rig)
    }

    /// The network namespace of a node, 0 or 1.
    #[must_use]
    pub fn node(&self, node: usize) -> String {
        format!("{}-n{}", self.name, node + 1)
    }

    /// The network namespace of a user's endpoint on a node.
    #[must_use]
    pub fn user(&self, node: usize, user: u32) -> String {
        format!("{}-n{}-u{user}", self.name, node + 1)
    }

    /// A folder for sockets and configuration, removed with the rig.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Adds another namespace of this rig, with its loopback up.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn add_namespace(&self, netns: &str) -> Result<(), RigError> {
        let _running = running();
        ip(&["netns", "add", netns])?;
        ip(&["-n", netns, "link", "set", "lo", "up"])
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _unless_stopping = running();
        remove(&self.name);
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
pub fn netns_path(netns: &str) -> PathBuf {
    Path::new(NETNS).join(netns)
}

/// Switches the wire's offloads and checks that they are so: a driver may refuse silently.
fn set_offloads(node: &str) -> Result<(), RigError> {
    let mut set = Command::new("ip");
    set.args(["netns", "exec", node, "ethtool", "-K", NIC]);
    for feature in OFF {
        set.args([feature, "off"]);
    }
    shell::read(set.args(["gro", "on"]))?;
    let features = offloads(node)?;
    let check = |names: &[&'static str], active: bool| {
        let wrong = names.iter().find(|name| features[**name]["active"] != serde_json::Value::Bool(active));
        let wanted = if active { "on" } else { "off" };
        wrong.map_or(Ok(()), |feature| Err(RigError::Offload { feature, wanted }))
    };
    check(REPORTED_OFF, false)?;
    check(REPORTED_ON, true)
}

/// What `ethtool -k` says about a node's end of the wire.
///
/// # Errors
/// ethtool failed or wrote something else than JSON.
pub fn offloads(node: &str) -> Result<serde_json::Value, RigError> {
    let text = shell::read(Command::new("ip").args(["netns", "exec", node, "ethtool", "--json", "-k", NIC]))?;
    let mut all: Vec<serde_json::Value> = serde_json::from_str(&text)
        .map_err(|error| RigError::Program { what: "ethtool --json -k".into(), why: error.to_string() })?;
    Ok(all.pop().unwrap_or_default())
}

/// Held while something is being made; taken for good, for writing, when everything is being removed.
static RUNNING: RwLock<()> = RwLock::new(());

/// Waits for ever if the process is being ended by a signal, so that nothing is made behind the back of the removal.
/// Hold the result while making something that [`remove_all`] has to find.
pub fn running() -> impl Sized {
    RUNNING.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Checks for root, removes what crashed runs left, and has Ctrl-C (or SIGTERM, SIGHUP) remove all rigs of this process
/// before it ends.
///
/// # Errors
/// Not root, or signals cannot be caught.
pub fn prepare() -> Result<(), RigError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(RigError::NotRoot);
    }
    sweep();
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|source| RigError::Io { what: "catch signals".into(), source })?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        let _for_good = RUNNING.write();
        eprintln!("\nstopping: removing namespaces and processes");
        remove(&format!("{PREFIX}{}-", std::process::id()));
        // Test programs remove what they made; what one was making just then is left to us.
        let end = Instant::now() + Duration::from_secs(5);
        while owners(TESTS).into_iter().any(is_alive) && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
        sweep();
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// Removes what processes left that are no more.
fn sweep() {
    // Ids are used again: a rig's owner is an xtask.
    let is_xtask = |pid| program(pid).is_some_and(|name| name == "xtask");
    for owner in owners(PREFIX).into_iter().filter(|owner| !is_xtask(*owner)) {
        remove(&format!("{PREFIX}{owner}-"));
    }
    for owner in owners(TESTS).into_iter().filter(|owner| !is_alive(*owner)) {
        remove(&format!("{TESTS}{owner}-"));
    }
}

/// Process ids in the names of namespaces and folders that begin so.
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

/// The name of a process's program; None if there is no such process.
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

/// Removes every namespace, with its processes and links, and every folder whose name begins so. Goes on past errors:
/// what cannot be removed is named.
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
    let temporary = std::env::temp_dir();
    for name in names_in(&temporary).into_iter().filter(|name| name.starts_with(beginning)) {
        if let Err(error) = std::fs::remove_dir_all(temporary.join(&name)) {
            eprintln!("left behind: {}: {error}", temporary.join(&name).display());
        }
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
        }
        while !left.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
            // A child of ours that has ended is a zombie, in no namespace, until its owner waits for it.
            left = processes();
        }
    }
}
