//! The whole data plane as a process: networks come and go, it ends in every way, its NIC changes under it. The other
//! node is a kernel VXLAN device. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uvn_dataplane::client::{Client, ClientError};
use uvn_dataplane::config::Network;
use uvn_dataplane::message::{Code, Failure, Reply, Request, Summary};
use uvn_dataplane::tap::Tap;

const BINARY: &str = env!("CARGO_BIN_EXE_uvn-dataplane");
/// For what takes a tick or a neighbour's answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Two nodes on a wire, with one user on both. `here` is for the data plane, `there` has a kernel VXLAN device.
struct Rig {
    // Dropped first: a data plane ends before its namespace.
    engine: Option<Child>,
    here: NetNs,
    there: NetNs,
    user_here: NetNs,
    user_there: NetNs,
    directory: PathBuf,
}

impl Rig {
    fn new(label: &str) -> Rig {
        let [here, there, user_here, user_there] =
            ["a", "b", "ua", "ub"].map(|node| NetNs::new(&format!("{label}-{node}")));
        let rig = Rig {
            engine: None,
            directory: PathBuf::from(format!("/tmp/{}", here.name())),
            here,
            there,
            user_here,
            user_there,
        };
        fs::create_dir(&rig.directory).unwrap();
        rig.wire("");
        rig
    }

    /// The wire between the nodes, with options for the end here.
    fn wire(&self, options: &str) {
        self.here.ip(&format!("link add em1 {options} type veth peer name em1 netns {}", self.there.name()));
        for (node, address) in [(&self.here, "10.0.0.1/24"), (&self.there, "10.0.0.2/24")] {
            for offload in ["tso", "gso", "tx"] {
                ethtool(node, &["-K", "em1", offload, "off"]);
            }
            node.ip(&format!("addr add {address} dev em1"));
            node.ip("link set em1 up");
        }
        self.kernel_vxlan("10.0.0.2", "10.0.0.1", "02:75:0a:00:00:02");
    }

    /// The user's device over there: the kernel's VXLAN. It goes with the wire.
    fn kernel_vxlan(&self, local: &str, remote: &str, mac: &str) {
        let ends = format!("local {local} remote {remote} dstport 4789 dev em1");
        self.there.ip(&format!("link add vx1234 type vxlan id 1234 {ends} nolearning"));
        self.there.ip(&format!("link set vx1234 netns {}", self.user_there.name()));
        self.user_there.ip(&format!("link set vx1234 address {mac} mtu 1350 up"));
        self.user_there.ip("addr add 10.0.0.2/24 dev vx1234");
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The network of the user with a TAP made by the data plane, for its configuration file.
    fn network(&self) -> String {
        format!(
            "[[network]]\nvni = 1234\naddresses = [\"10.0.0.1/24\"]\npeers = [\"10.0.0.2\"]\n\
             device = {{ name = \"u1234\", netns = \"/run/netns/{}\" }}\n",
            self.user_here.name()
        )
    }

    fn command(&self, networks: &str) -> Command {
        let file = self.directory.join("em1.toml");
        let text = format!(
            "nic = \"em1\"\nvtep = [\"10.0.0.1\"]\nsocket = \"{}\"\n[peers]\nvtep = [{{ address = \"10.0.0.2\" }}]\n\
             [workers]\nframes = 512\n{networks}",
            self.socket().display()
        );
        fs::write(&file, text).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut command = self.here.command(BINARY);
        command.args(["run", "--config"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Starts the data plane and waits until it answers.
    fn start(&mut self, networks: &str) -> Client {
        self.engine = Some(self.command(networks).spawn().unwrap());
        self.wait_for("an answer", |rig| rig.engine_state().is_some_and(|state| state == "running"));
        self.client()
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    fn engine_state(&self) -> Option<String> {
        let client = Client::connect(&self.socket()).ok()?;
        Some(show(&client).state)
    }

    fn signal(&self, signal: Signal) {
        let engine = self.engine.as_ref().expect("it runs");
        kill(Pid::from_raw(engine.id().try_into().unwrap()), signal).unwrap();
    }

    /// Sends a signal that ends the data plane, and waits for that.
    fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.engine.as_mut().and_then(|engine| engine.try_wait().unwrap()) {
                self.engine = None;
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{signal} does not end it; log:\n{}", self.log());
    }

    #[track_caller]
    fn wait_for(&self, what: &str, condition: impl Fn(&Rig) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < end, "no {what}; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn expect_overlay(&self) {
        assert!(reaches(&self.user_here, &self.user_there, PATIENCE), "no way; log:\n{}", self.log());
    }

    fn has_xdp(&self) -> bool {
        self.here.ip("-d link show em1").contains("xdp")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            let _ = engine.kill();
            let _ = engine.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn ethtool(node: &NetNs, arguments: &[&str]) {
    let output = node.command("ethtool").args(arguments).output().unwrap();
    assert!(output.status.success(), "ethtool {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a datagram from 10.0.0.1 in one namespace is answered by 10.0.0.2 in the other, within a time.
fn reaches(from: &NetNs, to: &NetNs, within: Duration) -> bool {
    let server: SocketAddr = "10.0.0.2:7777".parse().unwrap();
    let done = AtomicBool::new(false);
    let (echo, socket) =
        (to.run(|| UdpSocket::bind(server).unwrap()), from.run(|| UdpSocket::bind("10.0.0.1:0").unwrap()));
    for socket in [&echo, &socket] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !done.load(Relaxed) {
                if let Ok((length, peer)) = echo.recv_from(&mut buffer) {
                    let _ = echo.send_to(&buffer[..length], peer);
                }
            }
        });
        let end = Instant::now() + within;
        let mut answered = false;
        while !answered && Instant::now() < end {
            // The kernel may report that nobody answers ARP.
            let _ = socket.send_to(b"uvn", server);
            answered = socket.recv(&mut [0; 64]).is_ok_and(|length| length == 3);
        }
        done.store(true, Relaxed);
        answered
    })
}

fn show(client: &Client) -> Summary {
    match client.ask(&Request::Show, &[]).unwrap() {
        Reply::Show(summary) => *summary,
        reply => panic!("{reply:?}"),
    }
}

fn failure<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Failure {
    match result {
        Err(ClientError::Refused(failure)) => failure,
        result => panic!("{result:?}"),
    }
}

fn uvn(vni: u32) -> Network {
    let text = format!(r#"{{"vni": {vni}, "addresses": ["10.0.0.1/24"], "peers": ["10.0.0.2"]}}"#);
    serde_json::from_str(&text).unwrap()
}

/// A TAP in the user's namespace, ready but for the data plane.
fn user_tap(user: &NetNs, name: &str) -> Tap {
    let tap = user.run(|| Tap::open(name, 1).unwrap().remove(0));
    user.ip(&format!("link set {name} address 02:75:0a:00:00:01 mtu 1450 up"));
    user.ip(&format!("addr add 10.0.0.1/24 dev {name}"));
    tap
}

#[test]
fn a_network_comes_by_the_socket_and_goes() {
    let mut rig = Rig::new("sock");
    let client = rig.start("");
    assert_eq!(client.ask(&Request::Ping, &[]).unwrap(), Reply::Pong);
    let tap = user_tap(&rig.user_here, "tap0");
    let fds = [tap.as_fd()];
    let epoch = client.add_network(&uvn(1234), &fds).unwrap();
    rig.expect_overlay();
    let summary = show(&client);
    assert_eq!((summary.networks, summary.hops, summary.unresolved), (1, 1, 0));
    assert!(summary.epoch >= epoch && summary.workers[0].epoch >= epoch);
    let networks = client.networks().unwrap();
    assert!(networks[0].counts.rx_frames > 0 && networks[0].counts.tx_frames > 0, "{networks:?}");
    assert_eq!((networks[0].vni, &networks[0].device), (1234, &None));
    let Reply::Histogram(residency) = client.ask(&Request::Histogram, &[]).unwrap() else { panic!() };
    assert!(residency.batches > 0 && residency.p50 <= residency.max, "{residency:?}");

    let again = failure(client.add_network(&uvn(1234), &fds));
    assert_eq!(again.code, Code::Exists);
    assert!(client.remove_network(1234).unwrap() > epoch);
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)));
    assert_eq!(failure(client.remove_network(1234)).code, Code::NotFound);
    assert_eq!(show(&client).networks, 0);
    // Its descriptors are closed: the device lives by the test's own alone.
    drop(tap);
    assert!(!rig.user_here.ip("-br link").contains("tap0"));
}

#[test]
fn requests_that_cannot_be_met_change_nothing() {
    let mut rig = Rig::new("bad");
    let client = rig.start("");
    let tap = user_tap(&rig.user_here, "tap0");
    let (_reader, pipe) = std::io::pipe().unwrap();
    let cases: [(&[BorrowedFd<'_>], &str); 3] = [
        (&[], "device: missing"),
        (&[pipe.as_fd()], "not a TAP"),
        (&[tap.as_fd(), tap.as_fd(), tap.as_fd()], "one per worker (1)"),
    ];
    for (fds, says) in cases {
        let failure = failure(client.add_network(&uvn(1234), fds));
        assert!(failure.message.contains(says), "{failure}");
    }
    let mut stranger = uvn(1234);
    stranger.peers = vec![IpAddr::from([10, 0, 0, 9])];
    let refused = failure(client.add_network(&stranger, &[tap.as_fd()]));
    assert_eq!((refused.code, &refused.message[..9]), (Code::Invalid, "peers[0]:"));
    // Allowed, it may be listed.
    let vteps = r#"{"vteps": {"add": [{"address": "10.0.0.9"}], "add_range": ["10.7.0.0/16"]}}"#;
    client.change(&serde_json::from_str(vteps).unwrap(), &[]).unwrap();
    client.add_network(&stranger, &[tap.as_fd()]).unwrap();
    assert_eq!((show(&client).vteps, show(&client).unresolved), (2, 1));
    client.change(&Request::SetPeers { vni: 1234, peers: vec![IpAddr::from([10, 0, 0, 2])] }, &[]).unwrap();
    assert_eq!(client.networks().unwrap()[0].flood, [IpAddr::from([10, 0, 0, 2])]);
    let clash = r#"{"vteps": {"add": [{"address": "10.0.0.8", "overlay": ["10.0.0.2"]}]}}"#;
    let failure = failure(client.change(&serde_json::from_str(clash).unwrap(), &[]));
    assert!(failure.message.contains("10.0.0.8") && failure.message.contains("10.0.0.2"), "{failure}");
    assert_eq!(show(&client).vteps, 2);
    rig.expect_overlay();
}

#[test]
fn a_vtep_that_is_not_allowed_any_more_is_cut_off() {
    let mut rig = Rig::new("cut");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    let remove = r#"{"vteps": {"remove": ["10.0.0.2"]}}"#;
    client.change(&serde_json::from_str(remove).unwrap(), &[]).unwrap();
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)));
    let add = r#"{"vteps": {"add_range": ["10.0.0.0/24"]}}"#;
    client.change(&serde_json::from_str(add).unwrap(), &[]).unwrap();
    rig.expect_overlay();
}

#[test]
fn sigterm_leaves_nothing() {
    let mut rig = Rig::new("term");
    let network = rig.network();
    rig.start(&network);
    rig.expect_overlay();
    assert!(rig.has_xdp());
    assert!(rig.user_here.ip("link show u1234").contains("mtu 1450"));
    let status = rig.end(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{}", rig.log());
    assert!(!rig.has_xdp());
    assert!(!rig.socket().exists());
    assert!(!rig.user_here.ip("-br link").contains("u1234"));
    assert!(reaches(&rig.here, &rig.there, PATIENCE), "the host itself");
}

#[test]
fn sigkill_leaves_the_host_alone_and_a_restart_takes_over() {
    let mut rig = Rig::new("kill");
    let network = rig.network();
    rig.start(&network);
    rig.expect_overlay();
    rig.end(Signal::SIGKILL);
    assert!(reaches(&rig.here, &rig.there, PATIENCE), "the host itself");
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)), "cut off");
    // Its first field is the index.
    let device = |rig: &Rig| rig.user_here.ip("-o link show u1234").split(':').next().map(str::to_owned);
    let index = device(&rig);
    assert!(rig.socket().exists());
    rig.start(&network);
    rig.expect_overlay();
    assert_eq!(device(&rig), index, "the same device");
    assert_eq!(rig.end(Signal::SIGINT).code(), Some(0));
    assert!(!rig.user_here.ip("-br link").contains("u1234"));
}

#[test]
fn a_veth_endpoint_works_and_is_made_anew_after_sigkill() {
    let mut rig = Rig::new("veth");
    let network = rig.network().replace("netns =", "kind = \"veth\", netns =");
    rig.start(&network);
    rig.expect_overlay();
    rig.end(Signal::SIGKILL);
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)), "cut off");
    rig.start(&network);
    rig.expect_overlay();
    assert_eq!(rig.end(Signal::SIGTERM).code(), Some(0));
    assert!(!rig.user_here.ip("-br link").contains("u1234"));
    assert_eq!(rig.here.ip("-br link").lines().count(), 2, "lo and em1");
}

#[test]
fn jumbo_frames_are_used_as_far_as_a_umem_frame_reaches() {
    let mut rig = Rig::new("jumbo");
    for node in [&rig.here, &rig.there] {
        node.ip("link set em1 mtu 9000");
    }
    let network = rig.network();
    let client = rig.start(&network);
    let mtu = rig.user_here.ip("-o link show u1234");
    assert!(mtu.contains("mtu 3776"), "{mtu}");
    assert_eq!(show(&client).xdp.as_deref(), Some("generic"), "the veth driver takes no more than 3.5 KB");
    rig.user_there.ip("link set vx1234 mtu 3776");
    rig.expect_overlay();
    // The longest datagram that fits.
    let (far, near) = (
        rig.user_there.run(|| UdpSocket::bind("10.0.0.2:7000").unwrap()),
        rig.user_here.run(|| UdpSocket::bind("10.0.0.1:7000").unwrap()),
    );
    for socket in [&far, &near] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let (sent, mut buffer) = (vec![7; 3776 - 28], vec![0; 9000]);
    near.send_to(&sent, "10.0.0.2:7000").unwrap();
    assert_eq!(far.recv(&mut buffer).unwrap(), sent.len());
    far.send_to(&sent, "10.0.0.1:7000").unwrap();
    assert_eq!(near.recv(&mut buffer).unwrap(), sent.len());
}

#[test]
fn an_endpoint_may_be_deleted_under_us() {
    let mut rig = Rig::new("vanish");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    rig.user_here.ip("link del u1234");
    rig.wait_for("fault", |_| client.networks().unwrap()[0].fault.is_some());
    rig.here.ip("link set em1 mtu 1400");
    rig.wait_for("MTU", |_| show(&client).mtu == 1400);
    client.remove_network(1234).unwrap();
    // Its place can be taken again.
    let tap = user_tap(&rig.user_here, "tap0");
    client.add_network(&uvn(1234), &[tap.as_fd()]).unwrap();
    rig.expect_overlay();
}

#[test]
fn the_service_manager_is_told() {
    let mut rig = Rig::new("notify");
    let path = rig.directory.join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let network = rig.network();
    let mut command = rig.command(&network);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    rig.engine = Some(command.spawn().unwrap());
    let hear = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1\n");
    rig.expect_overlay();
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    rig.signal(Signal::SIGTERM);
    while hear() != "STOPPING=1\n" {}
    rig.end(Signal::SIGTERM);
}

#[test]
fn frames_for_networks_that_are_not_here_are_told() {
    let mut rig = Rig::new("unknown");
    let client = rig.start("");
    let none = Reply::Unknown { seen: Vec::new() };
    assert_eq!(client.ask(&Request::Unknown, &[]).unwrap(), none);
    let socket = rig.there.run(|| UdpSocket::bind("10.0.0.2:0").unwrap());
    let vxlan = [8, 0, 0, 0, 0, 0, 77, 0].into_iter().chain([0; 60]).collect::<Vec<u8>>();
    rig.wait_for("report", |_| {
        socket.send_to(&vxlan, "10.0.0.1:4789").unwrap();
        let Reply::Unknown { seen } = client.ask(&Request::Unknown, &[]).unwrap() else { panic!() };
        seen.iter().any(|seen| seen.vni == 77 && seen.vtep == IpAddr::from([10, 0, 0, 2]) && seen.frames > 0)
    });
}

#[test]
fn one_nic_has_one_data_plane() {
    let mut rig = Rig::new("twice");
    let network = rig.network();
    rig.start(&network);
    let second = rig.command(&network).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("answered by another data plane"), "{said}");
    // Without a control socket to tell, the NIC does.
    let mut third = rig.command(&network);
    let file = rig.directory.join("em1.toml");
    let text = fs::read_to_string(&file).unwrap();
    let silent: Vec<&str> = text.lines().filter(|line| !line.starts_with("socket")).collect();
    fs::write(&file, silent.join("\n")).unwrap();
    let third = third.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(third.status.code(), Some(1));
    let said = String::from_utf8(third.stderr).unwrap();
    assert!(said.contains("another XDP program"), "{said}");
    rig.expect_overlay();
}

#[test]
fn the_nic_goes_down_and_up() {
    let mut rig = Rig::new("down");
    let network = rig.network();
    rig.start(&network);
    rig.expect_overlay();
    rig.here.ip("link set em1 down");
    rig.wait_for("state", |rig| rig.engine_state().as_deref() == Some("down"));
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)));
    rig.here.ip("link set em1 up");
    rig.wait_for("state", |rig| rig.engine_state().as_deref() == Some("running"));
    rig.expect_overlay();
}

#[test]
fn a_nic_that_is_down_at_the_start_is_waited_for() {
    let mut rig = Rig::new("wait");
    rig.here.ip("link set em1 down");
    let network = rig.network();
    rig.engine = Some(rig.command(&network).spawn().unwrap());
    rig.wait_for("state", |rig| rig.engine_state().as_deref() == Some("down"));
    rig.here.ip("link set em1 up");
    rig.expect_overlay();
}

#[test]
fn endpoints_follow_the_mtu() {
    let mut rig = Rig::new("mtu");
    let network = rig.network();
    let client = rig.start(&network);
    for mtu in [1400, 2000] {
        rig.there.ip(&format!("link set em1 mtu {mtu}"));
        rig.here.ip(&format!("link set em1 mtu {mtu}"));
        let endpoint = format!("mtu {} ", mtu - 50);
        rig.wait_for(&endpoint, |rig| rig.user_here.ip("link show u1234").contains(&endpoint));
        assert_eq!(show(&client).mtu, mtu);
        rig.wait_for("hop", |_| client.hops().unwrap()[0].mtu == Some(mtu));
    }
    rig.expect_overlay();
}

#[test]
fn workers_follow_the_number_of_queues() {
    let mut rig = Rig::new("queues");
    rig.here.ip("link del em1");
    rig.wire("numrxqueues 4 numtxqueues 4");
    ethtool(&rig.here, &["-L", "em1", "rx", "1", "tx", "1"]);
    let made = rig.network();
    let client = rig.start(&made);
    rig.expect_overlay();
    assert_eq!(show(&client).workers.len(), 1);
    let before = client.networks().unwrap()[0].counts.rx_frames;
    ethtool(&rig.here, &["-L", "em1", "rx", "2", "tx", "2"]);
    rig.wait_for("second worker", |_| show(&client).workers.len() == 2);
    rig.expect_overlay();
    assert!(client.networks().unwrap()[0].counts.rx_frames > before, "counted on");
    // A handed-over TAP with one queue serves both workers.
    client.remove_network(1234).unwrap();
    let tap = user_tap(&rig.user_here, "tap0");
    client.add_network(&uvn(1234), &[tap.as_fd()]).unwrap();
    rig.expect_overlay();
    client.remove_network(1234).unwrap();
    drop(tap);

    // A TAP made for two workers is taken over by a data plane that has one.
    rig.end(Signal::SIGKILL);
    rig.start(&made);
    rig.expect_overlay();
    rig.end(Signal::SIGKILL);
    ethtool(&rig.here, &["-L", "em1", "rx", "1", "tx", "1"]);
    rig.start(&made);
    rig.expect_overlay();
}

#[test]
fn the_nic_is_removed_and_comes_back() {
    let mut rig = Rig::new("gone");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    rig.here.ip("link del em1");
    rig.wait_for("state", |_| show(&client).state == "absent");
    assert_eq!(show(&client).workers.len(), 0);
    assert!(rig.user_here.ip("link show u1234").contains("u1234"), "the endpoint stays");
    rig.wire("");
    rig.wait_for("state", |_| show(&client).state == "running");
    rig.expect_overlay();
}

#[test]
fn the_way_leads_through_a_router() {
    let mut rig = Rig::new("router");
    let router = NetNs::new("router-r");
    rig.here.ip("link del em1");
    rig.here.veth("em1", &router, "left");
    router.veth("right", &rig.there, "em1");
    for node in [&rig.here, &rig.there] {
        ethtool(node, &["-K", "em1", "tx", "off"]);
    }
    rig.here.ip("addr add 10.0.1.1/24 dev em1");
    rig.there.ip("addr add 10.0.2.2/24 dev em1");
    router.ip("addr add 10.0.1.254/24 dev left");
    router.ip("addr add 10.0.2.254/24 dev right");
    assert!(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]).status().unwrap().success());
    rig.there.ip("route add 10.0.1.0/24 via 10.0.2.254");
    rig.kernel_vxlan("10.0.2.2", "10.0.1.1", "02:75:0a:00:02:02");
    let network = rig.network().replace("[\"10.0.0.2\"]", "[\"10.0.2.2\"]");
    let peers = "\n[[peers.vtep]]\naddress = \"10.0.2.2\"\noverlay = [\"10.0.0.2\"]\n";
    let mut command = rig.command(&format!("{network}{peers}"));
    let file = rig.directory.join("em1.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("vtep = [\"10.0.0.1\"]", "vtep = [\"10.0.1.1\"]");
    fs::write(&file, text.replace("vtep = [{ address = \"10.0.0.2\" }]\n", "")).unwrap();
    rig.engine = Some(command.spawn().unwrap());
    rig.wait_for("state", |rig| rig.engine_state().as_deref() == Some("running"));
    let client = rig.client();
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)), "there is no route yet");
    rig.here.ip("route add 10.0.2.0/24 via 10.0.1.254 mtu 1400");
    rig.expect_overlay();
    let hops = client.hops().unwrap();
    let mac = router.ip("link show left");
    assert!(mac.contains(hops[0].mac.as_ref().unwrap()), "{hops:?} {mac}");
    assert_eq!(hops[0].mtu, Some(1400));
    // The router's MAC changes, and is followed.
    router.ip("link set left address 02:00:00:00:00:99");
    rig.here.ip("neigh del 10.0.1.254 dev em1");
    rig.wait_for("new MAC", |_| client.hops().unwrap()[0].mac.as_deref() == Some("02:00:00:00:00:99"));
    rig.expect_overlay();
    // So is the loss of the route.
    rig.here.ip("route del 10.0.2.0/24");
    rig.wait_for("loss", |_| client.hops().unwrap()[0].mac.is_none());
}

#[test]
fn only_root_is_served_and_bad_peers_cost_nobody_else() {
    use uvn_dataplane::seqpacket;
    let mut rig = Rig::new("peers");
    let network = rig.network();
    let client = rig.start(&network);
    // The socket's mode already keeps others out; here it does not.
    fs::set_permissions(rig.socket(), Permissions::from_mode(0o666)).unwrap();
    let binary = rig.directory.join("uvn-dataplane");
    fs::copy(BINARY, &binary).unwrap();
    let output = Command::new(&binary)
        .args(["show", "--socket"])
        .arg(rig.socket())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    rig.wait_for("refusal", |rig| rig.log().contains("not root"));

    let mut buffer = vec![0; 65536];
    for bytes in [&b"\xff\x00garbage"[..], &[b'x'; 65_537], br#"{"version":7,"request":"ping"}"#] {
        let bad = client_socket(&rig);
        seqpacket::send(bad.as_fd(), bytes, &[], true).unwrap();
        let length = seqpacket::receive(bad.as_fd(), &mut buffer, true).unwrap().length;
        assert!(String::from_utf8_lossy(&buffer[..length]).contains("error"));
        assert_eq!(seqpacket::receive(bad.as_fd(), &mut buffer, true).unwrap().length, 0, "closed");
    }
    // One that asks and never reads.
    let mute = client_socket(&rig);
    let end = Instant::now() + PATIENCE;
    loop {
        let request = br#"{"version":1,"request":"show"}"#;
        match seqpacket::send(mute.as_fd(), request, &[], false) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            _ => assert!(Instant::now() < end, "still connected"),
        }
    }
    assert_eq!(client.ask(&Request::Ping, &[]).unwrap(), Reply::Pong);
    rig.expect_overlay();
}

fn client_socket(rig: &Rig) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let peer = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(peer.as_raw_fd(), &UnixAddr::new(&rig.socket()).unwrap()).unwrap();
    peer
}

#[test]
fn errors_have_their_exit_codes() {
    let rig = Rig::new("exit");
    let run = |from: &str, to: &str| {
        let mut command = rig.command("");
        let file = rig.directory.join("em1.toml");
        let text = fs::read_to_string(&file).unwrap().replace(from, to);
        fs::write(&file, text).unwrap();
        let output = command.stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run("frames = 512", "frames = 500");
    assert_eq!(code, Some(2));
    assert!(said.contains("em1.toml:7: workers.frames: 500; allowed: a power of two"), "{said}");
    let (code, said) = run("nic = \"em1\"", "nic = \"em9\"");
    assert_eq!(code, Some(1));
    assert!(said.contains("`em9`"), "{said}");
    assert!(!rig.socket().exists());
    let usage = Command::new(BINARY).arg("fly").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let show = Command::new(BINARY).args(["show", "--socket", "/nonexistent.sock"]).output().unwrap();
    assert_eq!(show.status.code(), Some(1));
}

#[test]
fn hundreds_of_networks() {
    const COUNT: u32 = 250;
    let mut rig = Rig::new("many");
    let client = rig.start("");
    let user = rig.user_here.name();
    let start = Instant::now();
    for vni in 2000..2000 + COUNT {
        let text = format!(
            r#"{{"vni": {vni}, "addresses": ["10.0.0.1/24"], "device": {{"name": "u{vni}", "netns": "/run/netns/{user}"}}}}"#
        );
        client.add_network(&serde_json::from_str(&text).unwrap(), &[]).unwrap();
    }
    println!("{COUNT} networks added in {:?}", start.elapsed());
    let networks = client.networks().unwrap();
    assert_eq!(
        networks.iter().map(|network| network.vni).collect::<Vec<_>>(),
        Vec::from_iter(2000..2000 + COUNT)
    );
    assert_eq!(rig.user_here.ip("-br link").matches("u2").count(), COUNT as usize);
    let start = Instant::now();
    client.remove_network(2100).unwrap();
    println!("one removed in {:?}", start.elapsed());
    assert!(!rig.user_here.ip("-br link").contains("u2100"));
    let start = Instant::now();
    assert_eq!(rig.end(Signal::SIGTERM).code(), Some(0));
    println!("stopped in {:?}", start.elapsed());
    assert_eq!(rig.user_here.ip("-br link").matches("u2").count(), 0);
}
