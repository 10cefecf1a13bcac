//! How long an attach takes on this kernel, with other users present: `cargo bench -p uvn-benches --bench attach`, and
//! `-- 1 50` for other numbers of them than 1, 10, 100 and 1000.
//!
//! It takes the daemon's steps, in a network namespace of its own: lease and state file, comparison with the kernel, the
//! kernel's objects, the data plane. Needs root, and a release of `uvn-dataplane` in the PATH. Where the
//! kernel has no VRF, a TAP stands for the VRF device, and the table says so. Socket binding and relay are not in it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark stops where it cannot go on"
)]

use mio::{Poll, Token};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use uvn_api::toml_file::parse;
use uvn_control::config::Config;
use uvn_control::feed::{Feed, Others};
use uvn_control::lease::state::save;
use uvn_control::lease::{Attached, Kind, Lease, Leases, Process, now};
use uvn_control::netlink::Netlink;
use uvn_control::network::{DataPath, Exit, Nat, Network, Nic, Node};
use uvn_control::peers::Peers;
use uvn_control::plan::{self, Item, Step};

/// Attaches measured for each number of users present.
const SAMPLES: u32 = 20;
const STATE: &str = "/run/state.json";

/// Time by part, of each attach.
type Parts = BTreeMap<&'static str, Vec<Duration>>;

struct Bench {
    config: Config,
    leases: Leases,
    netlink: Netlink,
    node: Node,
    feed: Option<Feed>,
    vrf: bool,
    parts: Parts,
}

fn main() {
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("attach is not measured: it needs root");
        return;
    }
    let present: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let present = if present.is_empty() { vec![1, 10, 100, 1000] } else { present };
    println!(
        "| path | users present | new: median, ms | most | known: median, ms | all compared, ms | parts of new: medians, ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for path in [DataPath::Engine, DataPath::Kernel] {
        // A thread, because its namespaces end with it.
        let present = present.clone();
        std::thread::spawn(move || run(path, &present)).join().unwrap();
    }
}

fn run(path: DataPath, present: &[usize]) {
    let mut bench = Bench::new(path);
    let mut uid = 100_000;
    for &present in present {
        while bench.leases.len() < present {
            uid += 1;
            bench.attach(uid);
        }
        bench.wait_for_gear();
        bench.parts.clear();
        let new: Vec<Duration> = (1..=SAMPLES)
            .map(|sample| {
                let took = bench.attach(uid + sample);
                bench.wait_for_gear();
                bench.detach(uid + sample);
                took
            })
            .collect();
        let parts = std::mem::take(&mut bench.parts);
        let known: Vec<Duration> = (1..=SAMPLES).map(|_| bench.attach(uid)).collect();
        let all: Vec<Duration> = (0..3).map(|_| bench.compare()).collect();
        let of = if bench.vrf { "" } else { ", a TAP as VRF" };
        let parts: Vec<String> =
            parts.iter().map(|(name, took)| format!("{name} {:.2}", median(took))).collect();
        let most = new.iter().max().unwrap().as_secs_f64() * 1e3;
        println!(
            "| {path:?}{of} | {present} | {:.2} | {most:.2} | {:.3} | {:.1} | {} |",
            median(&new),
            median(&known),
            median(&all),
            parts.join(", ")
        );
    }
}

fn median(took: &[Duration]) -> f64 {
    let mut sorted = took.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2].as_secs_f64() * 1e3
}

impl Bench {
    fn new(path: DataPath) -> Bench {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("it needs root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        for line in [
            "link set lo up",
            "link add em1 type veth peer name wire",
            "link set wire up",
            "link set em1 up",
            "addr add 10.0.0.1/16 dev em1",
            "addr add fd00::1/64 dev em1 nodad",
            "route add default via 10.0.0.254",
        ] {
            let output = Command::new("ip").args(line.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {line}: {output:?}");
        }
        let nic = nic(path);
        let feed = (path == DataPath::Engine).then(|| {
            let poll = Poll::new().unwrap();
            let others = Others::new(&Node::default(), &nic, &Peers::default());
            let mut feed = Feed::new(nic.clone(), others, poll.registry(), Token(0)).unwrap();
            feed.start().expect("cargo build --release -p uvn-dataplane");
            feed
        });
        let exit = Exit {
            device: "em1".into(),
            gateway: Some([10, 0, 0, 254].into()),
            address: [10, 0, 0, 1].into(),
        };
        let node = Node {
            nics: vec![nic],
            others: Vec::new(),
            exits: vec![exit],
            ipv6: true,
            nat: Nat::default(),
            hosts: Vec::new(),
        };
        let config: Config = parse(
            "[[underlay]]\nsubnets = [\"10.0.0.0/16\", \"fd00::/64\"]\n[peers]\nnodes = [\"10.0.0.2\"]",
        )
        .unwrap();
        let netlink = Netlink::open().unwrap();
        let trial = Step::Create(Item::Vrf { name: "trial".into(), table: 4711 });
        let vrf = netlink.apply(&trial).is_ok();
        let leases = Leases::new(config.nat.slots());
        Bench { config, leases, netlink, node, feed, vrf, parts: Parts::new() }
    }

    /// As uvnd does it.
    fn attach(&mut self, uid: u32) -> Duration {
        let holder = Process { pid: uid.cast_signed(), start: 1 };
        let lease = Lease { kind: Kind::Session, name: "sshd".into(), holder: Some(holder) };
        let start = Instant::now();
        let config = &self.config;
        let attached =
            self.leases.attach(uid, lease, now(), |slot| config.network_of(uid, slot, true)).unwrap();
        save(&self.leases, Path::new(STATE)).unwrap();
        self.note("lease", start);
        let Attached::New(network) = attached else { return start.elapsed() };
        self.bring(&self.items(&network), &network);
        let feeding = Instant::now();
        if let Some(feed) = &mut self.feed {
            feed.add(&network).unwrap();
        }
        self.note("data plane", feeding);
        start.elapsed()
    }

    /// Until the shortcut has taken over every network. The user does not wait for it: it is in no attach.
    fn wait_for_gear(&mut self) {
        /// For each network: the kernel's grace period on a busy machine, and the pause.
        const EACH: Duration = Duration::from_millis(200);

        let Some(feed) = &mut self.feed else { return };
        let start = Instant::now();
        let mut waiting = feed.status().waiting;
        let patience = EACH * (waiting as u32 + 10);
        while waiting > 0 {
            assert!(start.elapsed() < patience, "{waiting} networks still wait for the shortcut");
            std::thread::sleep(Duration::from_millis(1));
            waiting = feed.status().waiting;
        }
        self.note("shortcut, afterwards", start);
    }

    fn detach(&mut self, uid: u32) {
        let network = self.leases.get(uid).unwrap().network.clone();
        let start = Instant::now();
        if let Some(feed) = &mut self.feed {
            feed.remove(network.vni);
            self.note("data plane's teardown", start);
        }
        self.bring(&[], &network);
        self.leases.remove(uid);
    }

    /// What uvnd does when it starts, and now and then.
    fn compare(&self) -> Duration {
        let start = Instant::now();
        let networks = self.leases.iter().flat_map(|(_, held)| self.items(&held.network));
        let wanted: Vec<Item> = plan::node(&self.node).into_iter().chain(networks).collect();
        let steps = plan::diff(&wanted, &self.netlink.observe().unwrap());
        assert!(!steps.is_empty(), "there are no rules here");
        start.elapsed()
    }

    fn items(&self, network: &Network) -> Vec<Item> {
        let items = plan::network(&self.node, network);
        if self.vrf {
            return items;
        }
        let stand_in = |item| match item {
            Item::Vrf { name, .. } => Some(Item::Tap { name, multi_queue: false }),
            Item::Master { .. } => None,
            // Only a VRF device may have it.
            Item::Address { address, .. } if address.address.is_loopback() && address.address.is_ipv6() => {
                None
            }
            other => Some(other),
        };
        items.into_iter().filter_map(stand_in).collect()
    }

    /// Until nothing is left to do.
    fn bring(&mut self, wanted: &[Item], network: &Network) {
        let stand_in =
            |item: &Item| !self.vrf && item == &Item::Tap { name: network.vrf(), multi_queue: false };
        let stand_in_up = |item: &Item| !self.vrf && item == &Item::Up { device: network.vrf() };
        let mut parts = Vec::new();
        for round in 0..4 {
            let start = Instant::now();
            let observed = self.netlink.observe_network(network).unwrap();
            let mut steps = plan::diff(wanted, &observed);
            if round > 0 {
                // The stand-in is not known for one of ours.
                steps.retain(
                    |step| !matches!(step, Step::Create(item) if stand_in(item) || stand_in_up(item)),
                );
            } else if !self.vrf && wanted.is_empty() {
                steps.push(Step::Delete(Item::Tap { name: network.vrf(), multi_queue: false }));
            }
            parts.push(("comparing", start.elapsed()));
            if steps.is_empty() {
                parts.into_iter().for_each(|(name, took)| self.parts.entry(name).or_default().push(took));
                return;
            }
            let start = Instant::now();
            steps.iter().for_each(|step| self.netlink.apply(step).unwrap());
            parts.push((if wanted.is_empty() { "teardown" } else { "kernel objects" }, start.elapsed()));
        }
        let left = plan::diff(wanted, &self.netlink.observe_network(network).unwrap());
        panic!("the kernel does not keep what it is given: {left:?}");
    }

    fn note(&mut self, part: &'static str, since: Instant) {
        self.parts.entry(part).or_default().push(since.elapsed());
    }
}

impl Drop for Bench {
    /// A data plane outlives who started it.
    fn drop(&mut self) {
        if let Some(feed) = self.feed.take() {
            feed.stop();
        }
    }
}

fn nic(path: DataPath) -> Nic {
    Nic {
        slot: 0,
        name: "em1".into(),
        index: nix::net::if_::if_nametoindex("em1").unwrap(),
        mtu: 1500,
        arphrd: 1,
        up: true,
        queues: 1,
        subnets: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()],
        addresses: vec!["10.0.0.1/16".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        path,
        reason: String::new(),
        gear: Default::default(),
        encapsulation: Default::default(),
        workers: Default::default(),
        group: None,
        flood_rate: None,
    }
}
