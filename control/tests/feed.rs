//! A feed and the real data plane, in a network namespace. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use mio::{Poll, Token};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use uvn_api::dataplane::client::Client;
use uvn_api::dataplane::config;
use uvn_api::dataplane::message::{Gear, State};
use uvn_api::uvnd::status::DataPlane;
use uvn_control::feed::{Feed, FeedError, Others};
use uvn_control::network::{DataPath, Network, Nic, Node};
use uvn_control::peers::Peers;
use uvn_dataplane::port::link;
use uvn_dataplane::port::tap::Tap;
use uvn_wire::vxlan::Vni;

const PATIENCE: Duration = Duration::from_secs(60);

/// The test's thread in namespaces of its own, with `em1` and a /run that nobody else sees.
struct Host {
    poll: Poll,
}

impl Host {
    fn new() -> Host {
        let deps = std::env::current_exe().unwrap();
        let beside = deps.with_file_name("uvn-dataplane");
        if !beside.exists() {
            // It may have been made by another test by now.
            let _ = std::os::unix::fs::symlink("../uvn-dataplane", &beside);
        }
        assert!(beside.exists(), "build it first: cargo build -p uvn-dataplane");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("the tests run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        ip("link add em1 type veth peer name wire");
        ip("link set wire up");
        ip("link set em1 up");
        ip("addr add 10.0.0.1/24 dev em1");
        Host { poll: Poll::new().unwrap() }
    }

    fn feed(&self) -> Feed {
        let nic = nic("10.0.0.1/24");
        let others = others(&nic, &[]);
        Feed::new(nic, others, self.poll.registry(), Token(7)).unwrap()
    }

    fn started(&self) -> Feed {
        let mut feed = self.feed();
        feed.start().unwrap();
        feed
    }
}

impl Drop for Host {
    /// Ends what runs in the namespace.
    fn drop(&mut self) {
        let netns = |process: &Path| fs::metadata(process.join("ns/net")).map(|file| file.ino()).ok();
        let own = netns(Path::new("/proc/thread-self"));
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid
                && own.is_some()
                && netns(&process.path()) == own
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nic(address: &str) -> Nic {
    Nic {
        slot: 0,
        name: "em1".into(),
        index: nix::net::if_::if_nametoindex("em1").unwrap(),
        mtu: 1500,
        arphrd: 1,
        up: true,
        queues: 1,
        subnets: vec!["10.0.0.0/24".parse().unwrap()],
        addresses: vec![address.parse().unwrap()],
        path: DataPath::Engine,
        reason: String::new(),
        gear: Default::default(),
        encapsulation: Default::default(),
        workers: Default::default(),
        group: None,
        flood_rate: None,
    }
}

fn others(nic: &Nic, nodes: &[&str]) -> Others {
    let nodes = nodes.iter().map(|node| vec![node.parse().unwrap()]).collect();
    Others::new(&Node::default(), nic, &Peers { nodes, ..Peers::default() })
}

/// A user's network, with its endpoint.
fn network(uid: u32) -> Network {
    let network = Network { uid, vni: Vni::new(uid).unwrap(), slot: 0, off_subnet: false };
    let name = network.endpoint(&nic("10.0.0.1/24"));
    Tap::open(&name, 1).unwrap()[0].set_persistent(true).unwrap();
    ip(&format!("link set {name} address 02:75:0a:00:00:01 up"));
    network
}

fn vnis(numbers: &[u32]) -> BTreeSet<Vni> {
    numbers.iter().map(|number| Vni::new(*number).unwrap()).collect()
}

fn pid() -> i32 {
    Client::connect(Path::new("/run/uvn/em1.sock")).unwrap().process().unwrap()
}

/// Drives it as uvnd does, until it has told everything; what failed is tried again.
#[track_caller]
fn settle(feed: &mut Feed) {
    let end = Instant::now() + PATIENCE;
    while !feed.is_settled() || feed.faults().next().is_some() {
        assert!(Instant::now() < end, "it does not settle: {:?}", feed.status());
        let wait = feed.due().saturating_duration_since(Instant::now());
        std::thread::sleep(wait.min(Duration::from_millis(20)));
        feed.turn(Instant::now());
    }
}

/// Drives it until it has noticed that the data plane has ended.
#[track_caller]
fn notice(host: &mut Host, feed: &mut Feed) {
    let mut events = mio::Events::with_capacity(8);
    let end = Instant::now() + PATIENCE;
    while feed.is_settled() {
        assert!(Instant::now() < end, "it is not noticed");
        host.poll.poll(&mut events, Some(PATIENCE)).unwrap();
        assert!(events.iter().all(|event| event.token() == Token(7)));
        feed.turn(Instant::now());
    }
}

#[test]
fn what_is_added_is_carried_also_after_a_crash() {
    let mut host = Host::new();
    let mut feed = host.started();
    feed.add(&network(1000)).unwrap();
    feed.add(&network(1001)).unwrap();
    assert_eq!(feed.networks(), vnis(&[1000, 1001]));
    let status = feed.status();
    assert_eq!((status.state, status.networks, status.workers), (State::Running, 2, 1));
    assert_eq!(status.process, Some(pid()));
    feed.remove(Vni::new(1000).unwrap());
    assert_eq!(feed.networks(), vnis(&[1001]));

    let first = pid();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    notice(&mut host, &mut feed);
    settle(&mut feed);
    assert_ne!(pid(), first);
    assert_eq!(feed.networks(), vnis(&[1001]));
    assert_eq!(feed.status().restarts, 1);

    // One that has just died costs a login some time, and no more; but on a busy machine.
    kill(Pid::from_raw(pid()), Signal::SIGKILL).unwrap();
    notice(&mut host, &mut feed);
    let (added, end) = (network(1002), Instant::now() + PATIENCE);
    while let Err(error) = feed.add(&added) {
        assert!(matches!(error, FeedError::Down { .. }) && Instant::now() < end, "{error}");
    }
    settle(&mut feed);
    assert_eq!(feed.networks(), vnis(&[1001, 1002]));
    feed.stop();
    assert!(!Path::new("/run/uvn/em1.sock").exists());
}

#[test]
fn another_uvnd_takes_over() {
    let host = Host::new();
    let mut feed = host.started();
    let (kept, unwanted, missing) = (network(1000), network(1001), network(1002));
    feed.add(&kept).unwrap();
    feed.add(&unwanted).unwrap();
    let process = pid();
    drop(feed);
    let mut feed = host.feed();
    feed.reconcile([kept, missing]);
    feed.start().unwrap();
    settle(&mut feed);
    assert_eq!(feed.networks(), vnis(&[1000, 1002]));
    assert_eq!(pid(), process, "it was disturbed");
    // An endpoint that is there no more, or anew, is noticed.
    ip("link del uvn1000.0");
    let kept = network(1000);
    let end = Instant::now() + PATIENCE;
    while Client::connect(Path::new("/run/uvn/em1.sock")).unwrap().networks().unwrap()[0].fault.is_none() {
        assert!(Instant::now() < end, "the data plane does not notice");
        std::thread::sleep(Duration::from_millis(10));
    }
    feed.reconcile([kept]);
    feed.turn(Instant::now());
    settle(&mut feed);
    let networks = Client::connect(Path::new("/run/uvn/em1.sock")).unwrap().networks().unwrap();
    assert_eq!(networks.len(), 1);
    assert_eq!(networks[0].fault, None);
}

#[test]
fn the_status_names_the_networks_whose_endpoints_drop() {
    let host = Host::new();
    let mut feed = host.started();
    feed.add(&network(1000)).unwrap();
    feed.add(&network(1001)).unwrap();
    ip("addr add 10.9.0.1/24 dev uvn1000.0");
    let socket = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    let process = Pid::from_raw(pid());
    kill(process, Signal::SIGSTOP).unwrap();
    // It stops when it has time to, and the device has room for some.
    let (lost, start) = (|| link::sending("uvn1000.0").unwrap().dropped, Instant::now());
    let before = lost();
    while lost() - before < 1000 && start.elapsed() < PATIENCE {
        for _ in 0..1000 {
            socket.send_to(&[0; 100], "10.9.0.255:9").unwrap();
        }
    }
    kill(process, Signal::SIGCONT).unwrap();
    assert!(lost() - before >= 1000);
    // Until the queue is drained, what the kernel itself says is dropped, too.
    let is_told = |status: &DataPlane, lost| {
        status.endpoint_full.get(&1000) == Some(&lost)
            && status.total.drops.get("tx_endpoint_full") == Some(&lost)
    };
    let start = Instant::now();
    while !is_told(&feed.status(), lost() - before) {
        assert!(start.elapsed() < PATIENCE, "{}: {:?}", lost() - before, feed.status());
    }
}

#[test]
fn one_that_hangs_is_killed() {
    let host = Host::new();
    let mut feed = host.started();
    feed.add(&network(1000)).unwrap();
    let hanging = pid();
    kill(Pid::from_raw(hanging), Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    let added = network(1001);
    assert!(matches!(feed.add(&added), Err(FeedError::Refused { .. } | FeedError::Down { .. })));
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    // It stays wanted: whoever gives up removes it.
    settle(&mut feed);
    assert_ne!(pid(), hanging);
    assert_eq!(feed.networks(), vnis(&[1000, 1001]));
}

#[test]
fn one_that_cannot_start_says_why() {
    let host = Host::new();
    ip("link del em1");
    ip("tuntap add em1 mode tun");
    let mut feed = host.feed();
    let error = feed.start().unwrap_err().to_string();
    assert!(error.contains("em1 is not an Ethernet device"), "{error}");
    let status = feed.status();
    assert_eq!(status.state, State::Failed);
    assert!(status.fault.unwrap().contains("not an Ethernet device"));
}

#[test]
fn a_network_without_an_endpoint_is_refused_and_the_others_are_not() {
    let host = Host::new();
    let mut feed = host.started();
    let lost = network(1000);
    ip("link del uvn1000.0");
    // A plain TAP of that name would come into being by opening it.
    let error = feed.add(&lost).unwrap_err().to_string();
    assert!(error.contains("uvn1000.0"), "{error}");
    assert!(nix::net::if_::if_nametoindex("uvn1000.0").is_err(), "it was made, in the default VRF");
    feed.add(&network(1001)).unwrap();
    assert_eq!(feed.networks(), vnis(&[1001]));
    assert!(feed.faults().any(|(vni, _)| vni.get() == 1000));
}

#[test]
fn peers_change_without_a_restart_and_all_else_with_one() {
    let host = Host::new();
    let mut feed = host.started();
    feed.add(&network(1000)).unwrap();
    let process = pid();
    let flood =
        || Client::connect(Path::new("/run/uvn/em1.sock")).unwrap().networks().unwrap().remove(0).flood;
    assert!(flood().is_empty());
    let nodes = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    feed.follow(nic("10.0.0.1/24"), others(&nic("10.0.0.1/24"), &nodes));
    settle(&mut feed);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(flood(), [address("10.0.0.2"), address("10.0.0.3")]);
    assert_eq!(pid(), process);

    ip("addr add 10.0.0.9/24 dev em1");
    let moved = nic("10.0.0.9/24");
    feed.follow(moved.clone(), others(&moved, &nodes));
    settle(&mut feed);
    assert_ne!(pid(), process);
    let networks = Client::connect(Path::new("/run/uvn/em1.sock")).unwrap().networks().unwrap();
    assert_eq!(networks[0].addresses, moved.addresses);

    let process = pid();
    let engine = Nic { gear: config::Path::Engine, ..moved.clone() };
    feed.follow(engine, others(&moved, &nodes));
    settle(&mut feed);
    assert_ne!(pid(), process);
    let status = feed.status();
    assert_eq!((status.gear, status.gear_reason.as_deref()), (Some(Gear::Engine), Some("configured")));
    assert_eq!((status.networks, status.shortcut), (1, 0));
}
