//! Endpoints under others' hands: udev, administrators, the NIC's MTU, users who send faster than a worker reads. In both
//! gears. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/links.rs"]
mod links;
#[path = "common/pair.rs"]
mod pair;

use common::cluster::{Cluster, Settings, V4, VNI};
use common::packet::PacketSocket;
use common::traffic::{self, Place, ping};
use links::Links;
use nix::sys::signal::Signal;
use pair::{GEARS, Rig};
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use uvn_rig::test::{NetNs, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the network is in its gear, and nothing is said of it.
fn is_as_before(rig: &Rig, sections: &str) -> bool {
    rig.engines[0].network(VNI).shortcut == (sections == GEARS[1]) && rig.notes().is_empty()
}

#[test]
fn a_mac_that_another_program_changes_is_set_back() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        for times in 1..=2 {
            rig.here().ip("link set uvn address 6e:11:22:33:44:55");
            until("the MAC", || rig.here().ip("link show uvn").contains("02:75:0a:00:00:01"));
            until("a word of it", || rig.notes().contains(&format!("MAC {times} times")));
            rig.ping(0);
        }
    }
}

#[test]
fn the_mac_of_a_veth_endpoint_is_set_back() {
    let cluster = Cluster::wired(&V4[..2], 1);
    let settings = Settings { veth: true, ..Settings::default() };
    let engines = [0, 1].map(|node| cluster.engine(node, &settings));
    cluster.users[0].ip("link set uvn address 6e:11:22:33:44:55");
    until("the MAC", || cluster.users[0].ip("link show uvn").contains("02:75:0a:00:00:01"));
    assert!(!engines[0].network(VNI).notes.is_empty());
    let ((here, own), (_, theirs)) = (cluster.user(0), cluster.user(1));
    ping(Place(here, own[0]), theirs[0], &[8]);
}

#[test]
fn a_renamed_endpoint_follows_the_nic() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        rig.here().ip("link set uvn down");
        rig.here().ip("link set uvn name other0");
        rig.here().ip("link set other0 up");
        Rig::set_mtu(&rig.cluster, 1400);
        until("the MTU", || rig.here().ip("link show other0").contains("mtu 1350 "));
        rig.ping(0);
    }
}

#[test]
fn a_small_mtu_costs_ipv6_only() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1300);
        let has_ipv6 = || rig.here().ip("-6 addr show dev uvn").contains("fd00:11::1/64");
        rig.ping(0);
        assert!(rig.notes().contains("IPv6"), "{}", rig.notes());
        assert!(!has_ipv6());
        Rig::set_mtu(&rig.cluster, 1500);
        until("IPv6", has_ipv6);
        assert_eq!(rig.notes(), "");
        until("IPv6 over there", || {
            rig.cluster.nodes[1].ip("-6 addr show dev uvn").contains("fd00:11::2/64")
        });
        rig.ping(0);
        rig.ping(1);
        Rig::set_mtu(&rig.cluster, 1300);
        until("a word of it", || rig.notes().contains("IPv6"));
        rig.ping(0);
    }
}

#[test]
fn a_moved_endpoint_sends_by_the_nic_alone() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        rig.ping(0);
        let elsewhere = NetNs::new("elsewhere");
        // A device there has the NIC's index.
        let index = rig.here().ip("-o link show em1").split(':').next().unwrap().to_owned();
        elsewhere.ip(&format!("link add wrong index {index} type veth peer name far index 77"));
        elsewhere.ip("link set wrong up");
        elsewhere.ip("link set far up");
        let far = PacketSocket::new(&elsewhere, "far");
        rig.here().ip(&format!("link set uvn netns {}", elsewhere.name()));
        // It has come down with that.
        until("the engine alone", || !rig.engines[0].network(VNI).shortcut);
        elsewhere.ip("link set uvn up");
        elsewhere.ip("addr add 10.1.0.1/24 dev uvn");
        ping(Place(&elsewhere, "10.1.0.1".parse().unwrap()), rig.cluster.user(1).1[0], &[8, 8, 8, 8]);
        let is_vxlan = |frame: &Vec<u8>| frame.get(36..38) == Some(&4789_u16.to_be_bytes());
        let leaked = std::iter::from_fn(|| far.receive(Duration::from_millis(300))).filter(is_vxlan).count();
        assert_eq!(leaked, 0, "by another device");
        let state = rig.engines[0].network(VNI);
        assert!(!state.shortcut && state.fault.is_none(), "{state:?}");
        assert_eq!(sections == GEARS[1], rig.notes().contains("left the NIC's network namespace"));
        elsewhere.ip(&format!("link set uvn netns {}", rig.here().name()));
        rig.here().ip("link set uvn up");
        rig.here().ip("addr add 10.1.0.1/24 dev uvn");
        until("the same as before", || is_as_before(&rig, sections));
        rig.ping(0);
    }
}

#[test]
fn an_endpoint_that_is_set_down_is_told() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        rig.ping(0);
        rig.here().ip("link set uvn down");
        until("a word of it", || rig.notes().contains("its endpoint is down"));
        until("the engine alone", || !rig.engines[0].network(VNI).shortcut);
        let ((_, own), (there, theirs)) = (rig.cluster.user(0), rig.cluster.user(1));
        let far = there.run(|| UdpSocket::bind((theirs[0], 0)).unwrap());
        until("its drops", || {
            let _lost = far.send_to(b"uvn", (own[0], 9));
            rig.engines[0].network(VNI).counts.drops.contains_key("rx_endpoint_full")
        });
        rig.here().ip("link set uvn up");
        until("the same as before", || is_as_before(&rig, sections));
        rig.ping(0);
    }
}

#[test]
fn an_endpoint_that_loses_offloads_works() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let ((here, own), (there, theirs)) = (rig.cluster.user(0), rig.cluster.user(1));
        for offload in ["tx", "tso", "gso", "sg", "rx", "gro"] {
            let set = here.command("ethtool").args(["-K", "uvn", offload, "off"]).status().unwrap();
            assert!(set.success(), "{offload}");
            for (own, theirs) in own.into_iter().zip(theirs) {
                traffic::udp_segmented(Place(here, own), Place(there, theirs), 40, 1000);
                traffic::tcp(Place(here, own), Place(there, theirs), 1 << 18);
            }
        }
        rig.engines[0].assert_no_drops();
    }
}

#[test]
fn a_program_that_is_detached_from_an_endpoint_is_put_back() {
    let rig = Rig::new(GEARS[1], 1500);
    let engine = &rig.engines[0];
    let device = rig.here().run(|| uvn_dataplane::port::link::get("uvn")).unwrap().index;
    let before = Links::of(engine.pid(), device);
    assert_eq!(before.0.len(), 1);
    before.detach();
    let after = || Links::of(engine.pid(), device);
    until("another", || after() != before && after().0.len() == 1 && engine.network(VNI).shortcut);
    let counted = engine.counted();
    rig.ping(0);
    assert!(engine.counted().since(&counted).verdict("tc_encapsulated") > 0);
}

#[test]
fn what_an_endpoint_drops_is_shown() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let (here, own) = rig.cluster.user(0);
        let socket = here.run(|| UdpSocket::bind((own[0], 0)).unwrap());
        socket.set_broadcast(true).unwrap();
        let shown = || rig.engines[0].network(VNI).counts.drops.get("tx_endpoint_full").copied().unwrap_or(0);
        // Since the data plane is asked after it was made, what the kernel says at once may be dropped, too.
        let dropped = || {
            let shown = here.ip("-j -s link show uvn");
            let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
            links[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
        };
        let before = (dropped(), shown());
        rig.engines[0].signal(Signal::SIGSTOP);
        // Broadcast is the engine's in either gear. It stops when it has time to, and the device has room for 500 or more.
        let start = Instant::now();
        while dropped() - before.0 < 1000 && start.elapsed() < PATIENCE {
            for _ in 0..1000 {
                socket.send_to(&[0; 100], "10.1.0.255:9").unwrap();
            }
        }
        rig.engines[0].signal(Signal::SIGCONT);
        assert!(dropped() - before.0 >= 1000);
        // Until the queue is drained, what the kernel itself says is dropped, too.
        until("all that was dropped", || shown() - before.1 == dropped() - before.0);
        let total = shown();
        until("the same in the sum", || rig.engines[0].counted().drops["tx_endpoint_full"] == total);
        rig.engines[0].client().remove_network(VNI).unwrap();
        assert_eq!(rig.engines[0].counted().drops["tx_endpoint_full"], total, "and it stays there");
    }
}

/// Of 64 flows on node 0, those whose broadcasts reach node 1. Broadcast is the engine's, and each flow has its queue.
fn flows_that_arrive(cluster: &Cluster) -> usize {
    let ((here, own), (there, _)) = (cluster.user(0), cluster.user(1));
    let far = there.run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
    far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let flow = |_| {
        let socket = here.run(|| UdpSocket::bind((own[0], 0)).unwrap());
        socket.set_broadcast(true).unwrap();
        socket
    };
    let flows: Vec<UdpSocket> = (0..64).map(flow).collect();
    let (start, mut seen) = (Instant::now(), std::collections::HashSet::new());
    while seen.len() < flows.len() && start.elapsed() < PATIENCE {
        for flow in &flows {
            flow.send_to(b"uvn", "10.1.0.255:7000").unwrap();
        }
        while let Ok((_, from)) = far.recv_from(&mut [0; 8]) {
            seen.insert(from);
        }
    }
    seen.len()
}

#[test]
fn workers_come_and_go() {
    let cluster = Cluster::wired(&V4[..2], 4).together();
    let settings = Settings { sections: GEARS[1], ..Settings::default() };
    let engines = [0, 1].map(|node| cluster.engine(node, &settings));
    assert_eq!(flows_that_arrive(&cluster), 64);
    for queues in ["1", "4", "1", "4"] {
        // The endpoint has something to send whenever workers start.
        let (here, own) = cluster.user(0);
        let socket = here.run(|| UdpSocket::bind((own[0], 0)).unwrap());
        socket.set_broadcast(true).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = socket.send_to(b"uvn", "10.1.0.255:9");
                }
            });
            let set =
                cluster.nodes[0].command("ethtool").args(["-L", "em1", "rx", queues, "tx", queues]).status();
            let start = Instant::now();
            let follow = || engines[0].summary().workers.len().to_string() == queues;
            while !follow() && start.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(10));
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(set.unwrap().success() && follow());
        });
        assert_eq!(flows_that_arrive(&cluster), 64, "{queues} queues");
    }
}
