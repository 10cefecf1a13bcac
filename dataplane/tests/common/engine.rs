//! The program itself, `uvn-dataplane run`, in a namespace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use uvn_api::dataplane::client::Client;
use uvn_api::dataplane::message::{NetworkState, Reply, Request, State, Summary, XdpMode};
use uvn_rig::test::{self, NetNs};

/// How long it may take to start, or to count what has arrived.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const END: Duration = Duration::from_secs(30);

/// A running data plane. Ends with SIGTERM when it is dropped; if the test failed, its log is printed.
pub struct Engine {
    child: Child,
    client: Option<Client>,
    directory: PathBuf,
    /// What had been counted when all was set up.
    ready: Counted,
}

/// What it has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Inner frames handed to endpoints.
    pub rx_frames: u64,
    /// Inner frames sent.
    pub tx_frames: u64,
    /// Frames that the workers dropped, by reason; none is zero.
    pub drops: BTreeMap<String, u64>,
    /// Frames by the XDP program's verdict; none is zero.
    pub xdp: BTreeMap<String, u64>,
    /// Frames lost at the AF_XDP sockets.
    pub lost: u64,
}

impl Counted {
    /// Frames that the XDP program gave this verdict.
    pub fn verdict(&self, name: &str) -> u64 {
        self.xdp.get(name).copied().unwrap_or(0)
    }

    /// Frames that the XDP program has seen.
    pub fn seen(&self) -> u64 {
        self.xdp
            .iter()
            .filter(|(name, _)| name.starts_with("xdp_") || *name == "tc_stripped")
            .map(|(_, count)| count)
            .sum()
    }

    /// Frames that the XDP program gave to either gear.
    pub fn taken(&self) -> u64 {
        self.verdict("xdp_redirected") + self.verdict("tc_stripped")
    }

    /// Whether every frame that the XDP program gave to a gear has been counted there.
    fn is_settled(&self) -> bool {
        let received: u64 =
            self.drops.iter().filter(|(name, _)| name.starts_with("rx_")).map(|(_, count)| count).sum();
        self.rx_frames + received + self.lost == self.taken()
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Counted) -> Counted {
        let less = |after: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>| {
            let difference = |(name, count): (&String, &u64)| {
                let count = count - before.get(name).copied().unwrap_or(0);
                (count > 0).then(|| (name.clone(), count))
            };
            after.iter().filter_map(difference).collect()
        };
        Counted {
            rx_frames: self.rx_frames - before.rx_frames,
            tx_frames: self.tx_frames - before.tx_frames,
            drops: less(&self.drops, &before.drops),
            xdp: less(&self.xdp, &before.xdp),
            lost: self.lost - before.lost,
        }
    }
}

impl Engine {
    /// Starts it in `netns` and waits until it runs with all its networks, each in the gear in which it stays. `config`
    /// is the text of its file, without the control socket.
    pub fn start(netns: &NetNs, config: &str) -> Engine {
        let engine = Engine::launch(netns, config);
        assert_ne!(engine.summary().xdp, Some(XdpMode::Generic));
        engine.wait_for_gear();
        engine
    }

    /// The same, when it answers: the engine may still carry what the shortcut will.
    pub fn launch(netns: &NetNs, config: &str) -> Engine {
        let directory = std::env::temp_dir().join(test::name("engine"));
        std::fs::create_dir(&directory).unwrap();
        let (file, socket) = (directory.join("config.toml"), directory.join("control"));
        std::fs::write(&file, format!("socket = {socket:?}\n{config}")).unwrap();
        let mut command = netns.command(env!("CARGO_BIN_EXE_uvn-dataplane"));
        command.arg("run").arg("--config").arg(&file).stdin(Stdio::null());
        command.stderr(File::create(directory.join("log")).unwrap());
        let making = test::making();
        let child = command.spawn().unwrap();
        drop(making);
        // From here on its end is taken care of.
        let mut engine = Engine { child, client: None, directory, ready: Counted::default() };
        let start = Instant::now();
        while engine.client.is_none() {
            assert!(engine.child.try_wait().unwrap().is_none(), "the data plane ended");
            assert!(start.elapsed() < PATIENCE, "the data plane does not listen");
            std::thread::sleep(Duration::from_millis(5));
            engine.client = Client::connect(&socket).ok();
        }
        // It answers when all is set up.
        let summary = engine.summary();
        assert_eq!(summary.state, State::Running);
        engine
    }

    /// Waits until the shortcut has taken over every network that it can have.
    pub fn wait_for_gear(&self) {
        /// The kernel's grace period, on a busy machine, and the pause.
        const EACH: Duration = Duration::from_millis(200);

        let (start, mut summary) = (Instant::now(), self.summary());
        let patience = PATIENCE + EACH * summary.waiting as u32;
        while summary.waiting > 0 {
            if start.elapsed() > patience {
                let networks = self.client().networks().unwrap();
                let waiting: Vec<u32> =
                    networks.iter().filter(|network| network.waiting).map(|network| network.vni).collect();
                panic!("after {patience:?} the shortcut has not taken over {waiting:?}: {summary:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
            summary = self.summary();
        }
    }

    /// Waits until it knows the next hop of every VTEP and group that its networks list. What it dropped until then
    /// does not count for [`Engine::assert_no_drops`].
    pub fn wait_for_hops(&mut self) {
        let start = Instant::now();
        let is_known = |engine: &Engine| {
            let known = engine.client().hops().unwrap().iter().all(|hop| hop.mac.is_some());
            let summary = engine.summary();
            known && summary.workers.iter().all(|worker| worker.epoch == summary.epoch)
        };
        while !is_known(self) {
            assert!(start.elapsed() < PATIENCE, "next hops are not found");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ready = self.counted_when("all frames", |_| true);
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its control socket.
    pub fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    fn ask(&self, request: &Request) -> Reply {
        self.client().ask(request, &[]).unwrap()
    }

    /// What it says of itself.
    pub fn summary(&self) -> Summary {
        let Reply::Show(summary) = self.ask(&Request::Show) else { panic!("another reply") };
        *summary
    }

    /// What it has counted by now.
    pub fn counted(&self) -> Counted {
        let Reply::Counters { total, xdp, lost, .. } = self.ask(&Request::Counters) else {
            panic!("another reply")
        };
        let seen = |(name, count): (String, u64)| (count > 0).then_some((name, count));
        Counted {
            rx_frames: total.rx_frames,
            tx_frames: total.tx_frames,
            drops: total.drops.into_iter().filter_map(seen).collect(),
            xdp: xdp.into_iter().filter_map(seen).collect(),
            lost,
        }
    }

    /// What it has counted, once `enough` and once its workers have seen every frame that was redirected to them.
    pub fn counted_when(&self, what: &str, enough: impl Fn(&Counted) -> bool) -> Counted {
        let start = Instant::now();
        loop {
            let counted = self.counted();
            if counted.is_settled() && enough(&counted) {
                return counted;
            }
            assert!(start.elapsed() < PATIENCE, "waited for: {what}; {counted:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it has counted since all was set up, once its workers have seen every frame that was redirected to them.
    pub fn counted_since_ready(&self) -> Counted {
        self.counted_when("all frames", |_| true).since(&self.ready)
    }

    /// Nothing was dropped or lost, and everything redirected was delivered.
    pub fn assert_no_drops(&self) {
        let counted = self.counted_since_ready();
        let allowed =
            |name: &str| matches!(name, "xdp_pass" | "xdp_redirected" | "tc_stripped" | "tc_encapsulated");
        assert!(
            counted.drops.is_empty() && counted.lost == 0 && counted.xdp.keys().all(|name| allowed(name)),
            "{counted:?}"
        );
        assert_eq!(counted.rx_frames, counted.taken());
    }

    /// The state of a network.
    pub fn network(&self, vni: u32) -> NetworkState {
        self.client().networks().unwrap().into_iter().find(|network| network.vni == vni).unwrap()
    }
}

impl Engine {
    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Ends it as the kernel would, out of memory.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // `ip netns exec` became the program, so this is its pid; it is ours until it is waited for.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let client = self.client.take().filter(|_| std::thread::panicking());
        let last = client.and_then(|client| client.ask(&Request::Counters, &[]).ok());
        let _already_gone = kill(pid, Signal::SIGTERM);
        let start = Instant::now();
        let mut ended = false;
        while !ended && start.elapsed() < END {
            std::thread::sleep(Duration::from_millis(2));
            ended = self.child.try_wait().is_ok_and(|status| status.is_some());
        }
        if !ended {
            eprintln!("the data plane ignores SIGTERM: killed");
            let _already_gone = self.child.kill();
            let _ = self.child.wait();
        }
        if !ended || std::thread::panicking() {
            eprintln!("{last:?}");
            eprintln!("{}", std::fs::read_to_string(self.directory.join("log")).unwrap_or_default());
        }
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}
