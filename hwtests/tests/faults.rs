//! What goes wrong on a node: daemons that are killed, half-built networks, too many at once, no room. Each test ends in a
//! state that `uvn check` approves. NICs that fail or change are in `mixed.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]
#![allow(unsafe_code, reason = "a thread becomes an ordinary user")]

#[path = "faults/closed.rs"]
mod closed;
#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/crowd.rs"]
mod crowd;
#[path = "faults/life.rs"]
mod life;
#[path = "faults/own_hand.rs"]
mod own_hand;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use uvn_hwtests::cluster::OUTSIDE;
use uvn_hwtests::escape::PORT;
use uvn_hwtests::{Cluster, Daemon, Layout, Namespace, Node, Server};
use uvn_rig::namespace::text;

/// Two ordinary users.
const ALICE: u32 = 1234;
const BOB: u32 = 9876;
/// For what uvnd or a data plane does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node with one NIC.
fn alone() -> Cluster {
    Cluster::new(Layout { nodes: 1, ..Layout::default() })
}

/// What `uvn list` says of a user; Null: nothing.
fn network(node: &Node, uid: u32) -> Value {
    let list: Value = serde_json::from_str(&node.uvn(&["list", "--json"])).unwrap();
    let all = list.as_array().unwrap();
    all.iter().find(|network| network["uid"] == uid).cloned().unwrap_or(Value::Null)
}

/// How many networks there are.
fn count(node: &Node) -> usize {
    let list: Value = serde_json::from_str(&node.uvn(&["list", "--json"])).unwrap();
    list.as_array().unwrap().len()
}

/// The devices of networks that the kernel has.
fn devices(node: &Node) -> Vec<String> {
    let listed = node.sh("ls /sys/class/net");
    listed.split_whitespace().filter(|name| name.starts_with("uvn")).map(String::from).collect()
}

fn attach(node: &Node, uid: u32) {
    node.uvn(&["attach", &uid.to_string()]);
}

/// `uvn check` approves, at once or when uvnd has mended what it found.
fn approve(node: &Node) {
    let mut last = String::new();
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let output = node.try_uvn(&["check"]);
        if output.status.success() {
            return;
        }
        last = text(&output.stdout) + &text(&output.stderr);
        println!("not yet: {last}");
        thread::sleep(Duration::from_millis(500));
    }
    panic!("{}: uvn check does not approve:\n{last}", node.name());
}

/// Runs `work` as a user on a node.
fn as_user<T: Send>(host: &Namespace, uid: u32, work: impl FnOnce() -> T + Send) -> T {
    host.within(|| {
        // By system call: libc's own would change every thread.
        // SAFETY: integer arguments; this thread ends with `work`.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(result, 0);
        work()
    })
}

/// A TCP connection of a user, that is never quiet.
struct Flow {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    ends: Vec<JoinHandle<()>>,
}

impl Flow {
    fn start(uid: u32, from: &Node, to: &Node, port: u16) -> Flow {
        Flow::to(uid, from, (to, uid), SocketAddr::new(to.nics()[0].v4.into(), port))
    }

    /// To somebody's service on a host.
    fn to(uid: u32, from: &Node, (host, owner): (&Namespace, u32), address: SocketAddr) -> Flow {
        let any = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), address.port());
        let listener = as_user(host, owner, || TcpListener::bind(any).unwrap());
        let mut here = as_user(from, uid, || TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        let (mut there, _) = listener.accept().unwrap();
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&turns));
        here.set_read_timeout(Some(PATIENCE)).unwrap();
        let echo = thread::spawn(move || {
            let mut byte = [0; 64];
            while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
        });
        let ping = thread::spawn(move || {
            let mut byte = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                here.write_all(&byte).expect("the connection lives");
                here.read_exact(&mut byte).expect("the connection lives");
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Flow { stop, turns, ends: vec![ping, echo] }
    }

    /// It goes on.
    fn assert_flowing(&self) {
        let (before, end) = (self.turns.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.turns.load(Ordering::Relaxed) < before + 20 {
            assert!(!self.ends.iter().any(JoinHandle::is_finished), "the connection has ended");
            assert!(Instant::now() < end, "the connection stands still");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn finish(self) {
        self.assert_flowing();
        self.stop.store(true, Ordering::Relaxed);
        self.ends.into_iter().for_each(|end| end.join().unwrap());
    }
}

/// A process that holds a network, or just is there.
struct Sleeper(Child);

impl Sleeper {
    fn start(node: &Node, uid: u32) -> Sleeper {
        let mut command = node.command_as(uid, "/bin/sleep");
        Sleeper(command.arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _already_ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// uvnd is killed under traffic: connections and new ones work on; a new one takes over.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn uvnd_is_killed_under_traffic() {
    for path in ["engine", "kernel"] {
        let cluster = Cluster::two();
        let config = cluster.config(path, "");
        let [here, there] = &cluster.nodes[..] else { panic!("two nodes") };
        let (first, second) = (here.uvnd(&config), there.uvnd(&config));
        [here, there].into_iter().for_each(|node| attach(node, ALICE));
        let flow = Flow::start(ALICE, here, there, 5000);
        let outside = (&cluster.outside, 0);
        let leaves = Flow::to(ALICE, here, outside, SocketAddr::new(OUTSIDE.0.into(), 5000));
        flow.assert_flowing();
        first.crash();
        second.crash();
        flow.assert_flowing();
        leaves.assert_flowing();
        Flow::to(ALICE, here, outside, SocketAddr::new(OUTSIDE.0.into(), 5001)).finish();
        Flow::start(ALICE, there, here, 5001).finish();
        // Whoever has no network gets none by that.
        let refused = as_user(here, BOB, || TcpListener::bind("127.0.0.1:0").unwrap_err());
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let mut daemons = [here, there].map(Node::restart_uvnd);
        flow.assert_flowing();
        [here, there].into_iter().for_each(approve);
        flow.finish();
        leaves.finish();
        daemons.iter_mut().for_each(Daemon::assert_alive);
    }
}

/// The data plane is killed under traffic: its connections wait, and go on with the next one.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn the_data_plane_is_killed_under_traffic() {
    let cluster = Cluster::two();
    let config = cluster.config("engine", "");
    let [here, there] = &cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [here, there].map(|node| node.uvnd(&config));
    [here, there].into_iter().for_each(|node| attach(node, ALICE));
    let flow = Flow::start(ALICE, here, there, 5000);
    let status: Value = serde_json::from_str(&here.uvn(&["status", "--json"])).unwrap();
    let engine = status["nics"][0]["data_plane"]["process"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(engine).unwrap()), Signal::SIGKILL).unwrap();
    flow.finish();
    [here, there].into_iter().for_each(approve);
}

/// A bad configuration is refused, the old one kept; a good one is followed; connections live through both.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn reload_under_traffic() {
    let cluster = Cluster::two();
    let config = cluster.config("kernel", "");
    let [here, there] = &cluster.nodes[..] else { panic!("two nodes") };
    let daemons = [here, there].map(|node| node.uvnd(&config));
    [here, there].into_iter().for_each(|node| attach(node, ALICE));
    let flow = Flow::start(ALICE, here, there, 5000);
    here.write("/etc/uvn/uvn.toml", &format!("lingers = 5\n{config}"));
    let refused = here.try_uvn(&["reload"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(
        said(&refused).contains("/etc/uvn/uvn.toml") && said(&refused).contains("lingers"),
        "{}",
        said(&refused)
    );
    flow.assert_flowing();
    // By signal, too.
    daemons[0].signal(Signal::SIGHUP);
    here.wait("refusal", PATIENCE, || daemons[0].log().contains("the old configuration stays"));
    here.write(
        "/etc/uvn/uvn.toml",
        &cluster.config("kernel", "exempt = [9876]\nlinger_s = 0").replacen("linger_s = 1\n", "", 1),
    );
    here.uvn(&["reload", "--dry-run"]);
    as_user(here, BOB, || TcpListener::bind("127.0.0.1:0").map(drop).unwrap_err());
    here.uvn(&["reload"]);
    as_user(here, BOB, || TcpListener::bind("127.0.0.1:0").map(drop).unwrap());
    flow.finish();
    approve(here);
}
