//! Network namespaces of a test program, which fails by panicking. They need root.

use crate::netns::{self, TESTS};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// The name of something that this program makes, a namespace or what is in the temporary directory: with its process
/// ID in it, by which it is found and removed when a signal ends the program.
#[must_use]
pub fn name(label: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{TESTS}{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

/// To hold while a namespace or a lasting process is made. From the first time on, a signal that ends the program
/// removes what the program has made.
pub fn making() -> impl Sized {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| netns::catch_signals_of_a_test().expect("signals can be caught"));
    netns::running()
}

/// Waits until it is so, 30 s at most.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited for: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A network namespace, deleted on drop. IPv6 addresses are only those that a test adds.
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// A new namespace with `lo` up. Its name holds `label`.
    #[must_use]
    pub fn new(label: &str) -> NetNs {
        let name = name(label);
        let making = making();
        ip(&["netns", "add", &name]);
        drop(making);
        let netns = NetNs { name };
        netns.ip("link set lo up");
        // Nobody sends what the test did not: no link-local addresses, no router solicitations, no MLD.
        netns.run(|| {
            for settings in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{settings}");
                std::fs::write(format!("{path}/addr_gen_mode"), "1").expect("IPv6 is there");
                std::fs::write(format!("{path}/router_solicitations"), "0").expect("IPv6 is there");
            }
        });
        netns
    }

    /// The name that `ip netns` knows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to open to get at the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        netns::path(&self.name)
    }

    /// `ip -n NAME` with these arguments, separated by blanks. Panics with ip's message if it fails.
    pub fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        ip(&all)
    }

    /// A veth pair: `device` here, `peer_device` in `peer`, both up.
    pub fn veth(&self, device: &str, peer: &NetNs, peer_device: &str) {
        self.ip(&format!("link add {device} type veth peer name {peer_device} netns {}", peer.name));
        self.ip(&format!("link set {device} up"));
        peer.ip(&format!("link set {peer_device} up"));
    }

    /// A program to be run in the namespace, by `ip netns exec`.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` on a thread of the namespace. Sockets made there stay in the namespace; /sys is the host's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(self.path()).expect("the namespace is there");
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET).expect("the tests run as root");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _unless_stopping = netns::running();
        // Not asserted: a panic here while a failed test unwinds would abort and leave the other namespaces.
        if let Err(error) = netns::ip(&["netns", "del", &self.name]) {
            eprintln!("left behind: {error}");
        }
    }
}

fn ip(arguments: &[&str]) -> String {
    crate::shell::read(Command::new("ip").args(arguments)).unwrap_or_else(|error| panic!("{error}"))
}
