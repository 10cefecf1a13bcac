//! Two nodes on a wire: one for a data plane as a process, the other with a kernel VXLAN device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use uvn_api::dataplane::client::{Client, ClientError};
use uvn_api::dataplane::config::Network;
use uvn_api::dataplane::message::{Reply, Request, State, Summary};
use uvn_api::protocol::Failure;
use uvn_dataplane::port::tap::Tap;
use uvn_rig::test::{self, NetNs};

pub const BINARY: &str = env!("CARGO_BIN_EXE_uvn-dataplane");
/// For what takes a tick or a neighbour's answer, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Two nodes on a wire, with one user on both. `here` is for the data plane, `there` has a kernel VXLAN device.
pub struct Rig {
    // Dropped first: a data plane ends before its namespace.
    pub engine: Option<Child>,
    pub here: NetNs,
    pub there: NetNs,
    pub user_here: NetNs,
    pub user_there: NetNs,
    pub directory: PathBuf,
    /// The gear that the data plane is told to have.
    pub path: &'static str,
}

impl Rig {
    pub fn new(label: &str) -> Rig {
        let [here, there, user_here, user_there] =
            ["a", "b", "ua", "ub"].map(|node| NetNs::new(&format!("{label}-{node}")));
        let rig = Rig {
            engine: None,
            directory: PathBuf::from(format!("/tmp/{}", here.name())),
            path: "engine",
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
    pub fn wire(&self, options: &str) {
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
    pub fn kernel_vxlan(&self, local: &str, remote: &str, mac: &str) {
        let ends = format!("local {local} remote {remote} dstport 4789 dev em1");
        self.there.ip(&format!("link add vx1234 type vxlan id 1234 {ends} nolearning"));
        self.there.ip(&format!("link set vx1234 netns {}", self.user_there.name()));
        self.user_there.ip(&format!("link set vx1234 address {mac} mtu 1350 up"));
        self.user_there.ip("addr add 10.0.0.2/24 dev vx1234");
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The network of the user with a TAP made by the data plane, for its configuration file.
    pub fn network(&self) -> String {
        format!(
            "[[network]]\nvni = 1234\naddresses = [\"10.0.0.1/24\"]\npeers = [\"10.0.0.2\"]\n\
             device = {{ name = \"u1234\", netns = \"/run/netns/{}\" }}\n",
            self.user_here.name()
        )
    }

    pub fn command(&self, networks: &str) -> Command {
        let file = self.directory.join("em1.toml");
        let text = format!(
            "nic = \"em1\"\npath = \"{}\"\nvtep = [\"10.0.0.1\"]\nsocket = \"{}\"\n[peers]\nvtep = [{{ address = \"10.0.0.2\" }}]\n\
             [workers]\nframes = 512\n{networks}",
            self.path,
            self.socket().display()
        );
        fs::write(&file, text).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut command = self.here.command(BINARY);
        command.args(["run", "--config"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Starts the data plane and waits until it answers.
    pub fn start(&mut self, networks: &str) -> Client {
        let mut command = self.command(networks);
        let making = test::making();
        self.engine = Some(command.spawn().unwrap());
        drop(making);
        self.wait_for("an answer", |rig| rig.engine_state().is_some_and(|state| state == State::Running));
        self.client()
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    pub fn engine_state(&self) -> Option<State> {
        let client = Client::connect(&self.socket()).ok()?;
        Some(show(&client).state)
    }

    pub fn pid(&self) -> u32 {
        self.engine.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Sends a signal that ends the data plane, and waits for that.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
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
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Rig) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < end, "no {what}; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    pub fn expect_overlay(&self) {
        assert!(reaches(&self.user_here, &self.user_there, PATIENCE), "no way; log:\n{}", self.log());
    }

    pub fn has_xdp(&self) -> bool {
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

pub fn ethtool(node: &NetNs, arguments: &[&str]) {
    let output = node.command("ethtool").args(arguments).output().unwrap();
    assert!(output.status.success(), "ethtool {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a datagram from 10.0.0.1 in one namespace is answered by 10.0.0.2 in the other, within a time.
pub fn reaches(from: &NetNs, to: &NetNs, within: Duration) -> bool {
    let bind = |address: &str| UdpSocket::bind((address, 0)).unwrap();
    let (echo, socket) = (to.run(|| bind("10.0.0.2")), from.run(|| bind("10.0.0.1")));
    let server = echo.local_addr().unwrap();
    let done = AtomicBool::new(false);
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

pub fn show(client: &Client) -> Summary {
    match client.ask(&Request::Show, &[]).unwrap() {
        Reply::Show(summary) => *summary,
        reply => panic!("{reply:?}"),
    }
}

pub fn failure<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Failure {
    match result {
        Err(ClientError::Refused(failure)) => failure,
        result => panic!("{result:?}"),
    }
}

pub fn uvn(vni: u32) -> Network {
    let text = format!(r#"{{"vni": {vni}, "addresses": ["10.0.0.1/24"], "peers": ["10.0.0.2"]}}"#);
    serde_json::from_str(&text).unwrap()
}

/// A TAP in the user's namespace, ready but for the data plane.
pub fn user_tap(user: &NetNs, name: &str) -> Tap {
    let tap = user.run(|| Tap::open(name, 1).unwrap().remove(0));
    user.ip(&format!("link set {name} address 02:75:0a:00:00:01 mtu 1450 up"));
    user.ip(&format!("addr add 10.0.0.1/24 dev {name}"));
    tap
}
