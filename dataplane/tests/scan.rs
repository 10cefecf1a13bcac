//! One user scans the subnet at full speed; others on the node notice little. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "../engine/tests/common/frames.rs"]
mod frames;

use common::cluster::{Cluster, Settings, V4};
use common::packet::PacketSocket;
use frames::arp_request;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use uvn_api::dataplane::message::Request;
use uvn_dataplane::underlay::route::{Change, Notifications};
use uvn_rig::test::{NetNs, until};
use uvn_wire::ethernet::Mac;

/// A known node takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where nobody is.
const SCANNED: u32 = 0x0a00_8000;
const BOB: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);

fn is_arp_reply(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6] && frame[21] == 2
}

/// What a user hears who connects to a node, on a port where nobody listens.
fn connect(user: &NetNs, to: IpAddr) -> Option<i32> {
    user.run(|| TcpStream::connect_timeout(&SocketAddr::new(to, 9), PATIENCE)).unwrap_err().raw_os_error()
}

/// Bob asks for the MACs of 32,768 addresses, again and again. He does so by hand, since the kernel's own table of
/// neighbours, which is the whole machine's, would be full.
fn scan(sections: &'static str) {
    let cluster = Cluster::switched(&V4).together();
    // Alice's network lists one node; the other is found when she first sends there.
    let network = Some("peers = [\"10.0.0.2\"]");
    let engine = cluster.engine(0, &Settings { sections, network, ..Settings::default() });
    let _others = [1, 2].map(|node| cluster.engine(node, &Settings { sections, ..Settings::default() }));
    let node = &cluster.nodes[0];
    node.ip("route add 10.0.128.0/17 dev em1");
    let text = format!(r#"{{"vni": 9876, "addresses": ["{BOB}/24"], "device": {{"name": "bob"}}}}"#);
    engine.client().add_network(&serde_json::from_str(&text).unwrap(), &[]).unwrap();
    let range = vec!["10.0.128.0/17".parse().unwrap()];
    let request =
        Request::Vteps { add: Vec::new(), remove: Vec::new(), add_range: range, remove_range: Vec::new() };
    engine.client().change(&request, &[]).unwrap();
    let (user, _) = cluster.user(0);
    let (_, known) = cluster.user(1);
    let (_, new) = cluster.user(2);
    assert_eq!(connect(user, known[0]), Some(libc::ECONNREFUSED), "before");
    let is_found = || {
        let hops = engine.client().hops().unwrap();
        hops.iter().any(|hop| hop.address == V4[2] && hop.mac.is_some())
    };
    assert!(!is_found());

    let (sent, bob) = (AtomicU64::new(0), PacketSocket::new(node, "bob"));
    bob.set_buffer(64 << 20);
    thread::scope(|scope| {
        let scanner = scope.spawn(|| {
            let socket = PacketSocket::new(node, "bob");
            for number in (0..0x8000).cycle() {
                socket.try_send(&arp_request(Mac::of(V4[0]), BOB, (SCANNED + number).into()));
                if sent.fetch_add(1, Relaxed) >= u64::MAX / 2 {
                    return;
                }
            }
        });
        let _stop = Stop(&sent);
        until("a scan", || sent.load(Relaxed) > 0x1_0000);
        assert_eq!(connect(user, new[0]), Some(libc::ECONNREFUSED), "first contact");
        assert_eq!(connect(user, known[0]), Some(libc::ECONNREFUSED), "a known node");
        assert!(is_found());
        assert!(!scanner.is_finished());
    });
    let asked = node.ip("neigh show dev em1").lines().count();
    assert!(asked < 900, "{asked} neighbours of the host's");
    while let Some(frame) = bob.receive(Duration::ZERO) {
        assert!(!is_arp_reply(&frame), "an answer for nobody makes an entry for half a minute");
    }
}

/// Ends the scan, also when a test fails.
struct Stop<'a>(&'a AtomicU64);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(u64::MAX / 2, Relaxed);
    }
}

#[test]
fn engine() {
    scan("path = \"engine\"");
}

#[test]
fn shortcut() {
    scan("path = \"shortcut\"");
}

/// The data plane hears of the NIC's neighbours; of those on users' devices the kernel does not even tell it.
#[test]
fn only_the_nics_neighbours_are_told_of() {
    let node = NetNs::new("node");
    for device in ["em1", "tenant"] {
        node.veth(device, &node, &format!("{device}-far"));
        node.ip(&format!("link set {device} up"));
    }
    let mut notifications = node.run(Notifications::subscribe).unwrap();
    let index = node.run(|| nix::net::if_::if_nametoindex("em1")).unwrap();
    notifications.narrow(index).unwrap();
    for device in ["tenant", "em1"] {
        node.ip(&format!("neigh add 10.9.0.1 lladdr 02:00:00:00:00:09 dev {device} nud permanent"));
        node.ip(&format!("neigh del 10.9.0.1 dev {device}"));
    }
    node.ip("link set tenant mtu 1400");
    let changes = notifications.read().unwrap();
    let told: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Neighbour { index, neighbour, .. } => Some((*index, neighbour.is_some())),
            _ => None,
        })
        .collect();
    assert!(told.iter().all(|(of, _)| *of == index), "{told:?}");
    assert_eq!((told.first(), told.last()), (Some(&(index, true)), Some(&(index, false))));
    assert!(changes.iter().any(|change| matches!(change, Change::Link(_))), "all else is");
}
