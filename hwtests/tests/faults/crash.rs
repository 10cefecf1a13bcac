//! uvnd is killed at every step on the way: of an attach, and of a detach.

use super::*;
use std::collections::BTreeMap;
use std::path::Path;

/// What uvnd does to the kernel, to the data plane and to its file goes through these calls; these words tell what
/// changes something from what only asks.
const STEPS: [(&str, &[&str]); 5] = [
    ("sendto", &["RTM_NEW", "RTM_DEL", "RTM_SET"]),
    ("sendmsg", &["add_network", "remove_network"]),
    ("ioctl", &["TUNSETIFF", "TUNSETPERSIST"]),
    ("bpf", &["BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM"]),
    ("rename", &["state.json"]),
];

/// strace on uvnd, until it is dropped.
struct Trace {
    strace: Child,
}

impl Trace {
    fn start(node: &Node, pid: i32, arguments: &[&str]) -> Trace {
        let mut command = node.command("strace");
        command.args(["-f", "-qq", "-s", "200"]).args(arguments).args(["-p", &pid.to_string()]);
        let mut trace = Trace { strace: command.stdin(Stdio::null()).spawn().unwrap() };
        node.wait("tracer", PATIENCE, || {
            let ended = trace.strace.try_wait().unwrap().is_some();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // With uvnd, if the call to kill it at came at once.
            assert!(!ended || status.contains("State:\tZ"), "strace ended");
            ended || status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        });
        trace
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // SIGTERM: it lets go of uvnd.
        let _already_ended = kill(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while self.strace.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let _already_ended = self.strace.kill();
        let _status = self.strace.wait();
    }
}

/// What strace writes.
const LOG: &str = "/tmp/uvnd.strace";

/// The calls in the log that change something: each with its place among all such calls.
fn steps() -> Vec<(&'static str, usize)> {
    let log = std::fs::read_to_string(Path::new(LOG)).unwrap();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut steps = Vec::new();
    for line in log.lines().filter(|line| !line.contains("resumed>")) {
        let Some((call, words)) = STEPS.iter().find(|(call, _)| line.contains(&format!(" {call}("))) else {
            continue;
        };
        let count = seen.entry(call).or_default();
        *count += 1;
        if words.iter().any(|word| line.contains(word)) {
            steps.push((*call, *count));
        }
    }
    steps
}

/// Kills uvnd at each step of what `act` asks. After each, another one takes over, and `uvn check` approves; `prepare`
/// makes the next try possible.
fn crash_at_every_step(path: &str, only: &[&str], prepare: impl Fn(&Node), act: &[&str]) {
    crash_at_steps(path, only, (0, 1), prepare, act);
}

/// The same at one in so many steps, from this one on: what takes long is several tests.
fn crash_at_steps(
    path: &str,
    only: &[&str],
    (first, every): (usize, usize),
    prepare: impl Fn(&Node),
    act: &[&str],
) {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config(path, ""));
    prepare(node);
    let calls = STEPS.map(|(call, _)| call).join(",");
    let trace = Trace::start(node, daemon.pid(), &["-o", LOG, "-e", &format!("trace={calls}")]);
    node.uvn(act);
    drop(trace);
    let mut steps = self::steps();
    steps.retain(|(call, _)| only.is_empty() || only.contains(call));
    assert!(steps.len() > 2, "{steps:?}");
    println!("{steps:?}");
    for (index, (call, counted)) in steps.iter().enumerate().skip(first).step_by(every) {
        let earlier = steps[..index].iter().filter(|(other, _)| other == call).count();
        let mut place = *counted;
        for attempt in 1.. {
            let started = Instant::now();
            prepare(node);
            let inject = format!("inject={call}:signal=KILL:when={place}");
            let trace =
                Trace::start(node, daemon.pid(), &["-o", LOG, "-e", &format!("trace={call}"), "-e", &inject]);
            let output = node.try_uvn(act);
            drop(trace);
            // Also after an answer: what it asks now and then may have been the call that killed it.
            daemon.crash();
            daemon = node.restart_uvnd();
            approve(node);
            println!("{call} {place}: {:?}", started.elapsed());
            if !output.status.success() {
                break;
            }
            assert!(attempt < 10, "{call} {place} was not met");
            // What uvnd does now and then, and what follows news of the kernel's, came more often when that was counted.
            let met: Vec<_> = self::steps().into_iter().filter(|(other, _)| other == call).collect();
            place = met.get(earlier).map_or(place - 1, |(_, place)| *place);
        }
    }
    prepare(node);
    node.uvn(act);
    approve(node);
    daemon.assert_alive();
}

fn gone(node: &Node) {
    let output = node.try_uvn(&["detach", "--all", &ALICE.to_string()]);
    assert!(devices(node).is_empty(), "{:?}: {output:?}", devices(node));
}

fn there(node: &Node) {
    attach(node, ALICE);
    assert_eq!(devices(node).len(), 2);
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn at_every_even_netlink_step_of_an_attach() {
    crash_at_steps("kernel", &["sendto"], (0, 2), gone, &["attach", &ALICE.to_string()]);
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn at_every_odd_netlink_step_of_an_attach() {
    crash_at_steps("kernel", &["sendto"], (1, 2), gone, &["attach", &ALICE.to_string()]);
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn at_the_other_steps_of_an_attach() {
    crash_at_every_step("kernel", &["bpf", "rename"], gone, &["attach", &ALICE.to_string()]);
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn at_every_step_of_a_detach() {
    crash_at_every_step("kernel", &[], there, &["detach", "--all", &ALICE.to_string()]);
}

/// What is other with the engine than with kernel VXLAN.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn at_the_steps_of_the_engine() {
    let own = ["sendmsg", "ioctl"];
    crash_at_every_step("engine", &own, gone, &["attach", &ALICE.to_string()]);
}
