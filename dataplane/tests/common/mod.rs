//! Network namespaces for tests. They need root; without it they fail.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod capture;
pub mod cluster;
pub mod engine;
pub mod interrupt;
pub mod packet;
pub mod traffic;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uvn_dataplane::port::link::in_netns;

/// Waits until it is so, 30 s at most.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A network namespace, deleted on drop. IPv6 addresses are only those that a test adds.
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// A new namespace with `lo` up. Its name holds `label`, the process and a number, so that it is unique.
    pub fn new(label: &str) -> NetNs {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}{}-{label}", interrupt::prefix(), NEXT.fetch_add(1, Relaxed));
        let making = interrupt::making();
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
    pub fn name(&self) -> &str {
        &self.name
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
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` on a thread of the namespace. Sockets made there stay in the namespace; /sys is the host's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_netns(self.path().as_ref(), work).expect("the tests run as root")
    }

    /// What to open to get at the namespace.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        // Not asserted: a panic here while a failed test unwinds would abort and leave the other namespaces.
        let status = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete network namespace {}", self.name);
        }
    }
}

fn ip(arguments: &[&str]) -> String {
    let output =
        Command::new("ip").args(arguments).output().expect("iproute2 is installed: cargo xtask setup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {stderr}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
