//! What takes a worker several turns, or is answered without the NIC: long super-frames, long lists of peers, the dead.
//! No root, no device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/frames.rs"]
mod frames;
#[path = "common/tables.rs"]
mod tables;

use crossbeam::channel::unbounded;
use frames::{arp_request, solicitation, udp};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::{A, B, network};
use uvn_api::dataplane::config::Vtep;
use uvn_engine::counters::Drop;
use uvn_engine::memory::{self, MemoryNic, User, Wire};
use uvn_engine::outer::Outer;
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::tables::{Hop, Network, Tables};
use uvn_engine::worker::Worker;
use uvn_wire::ethernet::Mac;

const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
/// A VTEP that is there in name only.
const C: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
const C6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3));
/// NIC frames that a worker can send with: half of all.
const FRAMES: usize = 512;
const HEADERS: usize = 50 + 42;

fn node(networks: Vec<Network>) -> Tables {
    let listed = |address, overlay: &[IpAddr]| Vtep { address, overlay: overlay.to_vec() };
    tables::tables(vec![listed(B, &[B]), listed(C, &[C, C6])], networks)
}

struct Node {
    worker: Worker<MemoryNic>,
    wire: Wire,
    users: Vec<User>,
    tables: Tables,
    now: Instant,
}

impl Node {
    fn new(tables: Tables) -> Node {
        let (nic, wire) = memory::nic(2 * FRAMES as u32, 64);
        let now = Instant::now();
        let mut worker = Worker::new(nic, 0, Arc::new(tables.clone()), unbounded().0, now);
        let mut users = Vec::new();
        for slot in 0..tables.networks.len() as u32 {
            let (endpoint, user) = memory::endpoint(64, Offloads { tcp: true, udp: true });
            worker.attach(slot, Box::new(endpoint));
            users.push(user);
        }
        Node { worker, wire, users, tables, now }
    }

    /// What leaves the NIC until nothing more does, without a word from the endpoints.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            while self.worker.turn(self.now) {}
            let before = all.len();
            all.extend(std::iter::from_fn(|| self.wire.sent()));
            // It says itself whether it has to have another turn.
            if all.len() == before && self.worker.due().is_none_or(|due| due > Duration::from_millis(1)) {
                assert_eq!(self.wire.held(), 0, "frames leak");
                return all;
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.users[0].send(VnetHeader::default(), frame);
        self.worker.set_ready(0);
        self.sent()
    }

    /// What the data plane itself has said to the user.
    fn answer(&mut self) -> Option<Vec<u8>> {
        self.users[0].received().map(|(_, frame)| frame)
    }

    fn set_dead(&mut self, dead: &[(IpAddr, Instant)]) {
        self.tables.epoch += 1;
        self.tables.dead = Arc::new(dead.iter().copied().collect());
        self.worker.set_tables(Arc::new(self.tables.clone()));
    }

    #[track_caller]
    fn assert_drops(&self, expected: &[(Drop, u64)]) {
        for reason in Drop::ALL {
            let count = expected.iter().find(|(other, _)| *other == reason).map_or(0, |(_, count)| *count);
            assert_eq!(self.worker.status().counters.drops(reason), count, "{}", reason.name());
        }
    }
}

/// A UDP super-frame of that many segments of 40 bytes.
fn super_frame(to: (Mac, IpAddr), segments: usize) -> (VnetHeader, Vec<u8>) {
    let payload: Vec<u8> = (0..segments * 40).map(|n| (n % 251) as u8).collect();
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        gso_type: VnetHeader::GSO_UDP,
        header_length: 42,
        gso_size: 40,
        checksum_start: 34,
        checksum_offset: 6,
    };
    (header, udp((Mac::of(A), to.0), (A, 1), (to.1, 1), 0, &payload))
}

#[test]
fn a_super_frame_of_more_segments_than_the_nic_has_frames_is_sent_whole() {
    // The first time others may send as well; after a while the endpoint is known to be alone.
    let mut node = Node::new(node(vec![network(5)]));
    for _ in 0..2 {
        let (header, frame) = super_frame((Mac::of(B), B), 2 * FRAMES + 300);
        node.users[0].send(header, &frame);
        node.worker.set_ready(0);
        let sent = node.sent();
        assert_eq!(sent.len(), 2 * FRAMES + 300);
        assert_eq!(sent.iter().flat_map(|frame| frame[HEADERS..].to_vec()).collect::<Vec<_>>(), frame[42..]);
        node.now += Duration::from_secs(1);
    }
    node.assert_drops(&[]);
    assert_eq!(node.worker.status().counters.tx_frames.get(), 2 * (2 * FRAMES as u64 + 300));
}

#[test]
fn more_endpoints_than_there_are_buffers_send_long_super_frames() {
    const ENDPOINTS: u32 = 24;
    let mut node = Node::new(node((0..ENDPOINTS).map(network).collect()));
    let (header, frame) = super_frame((Mac::of(B), B), FRAMES + 100);
    for slot in 0..ENDPOINTS {
        for _ in 0..2 {
            node.users[slot as usize].send(header, &frame);
        }
        node.worker.set_ready(slot);
    }
    let mut sent: HashMap<u8, usize> = HashMap::new();
    node.sent().iter().for_each(|frame| *sent.entry(frame[48]).or_default() += 1);
    assert_eq!(sent.len(), ENDPOINTS as usize);
    assert!(sent.values().all(|count| *count == 2 * (FRAMES + 100)), "{sent:?}");
    node.assert_drops(&[]);
}

#[test]
fn a_broadcast_reaches_more_peers_than_the_nic_has_frames() {
    const PEERS: u16 = 1000;
    let peer = |number: u16| IpAddr::from([10, 9, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
    let mut flooding = network(5);
    flooding.flood = (0..PEERS).map(peer).collect();
    let mut tables = node(vec![flooding]);
    let hop = |to: IpAddr| {
        let outer = Outer::new(&tables.encapsulation, Mac([2; 6]), Mac([4; 6]), A, to);
        (to, Hop { outer, mtu: 1500 })
    };
    tables.hops = Arc::new((0..PEERS).map(peer).map(hop).collect());
    let mut node = Node::new(tables);
    let everybody = (Mac::BROADCAST, IpAddr::from([10, 255, 255, 255]));
    for segments in [1, 3] {
        let (header, frame) = super_frame(everybody, segments);
        node.users[0].send(header, &frame);
        node.worker.set_ready(0);
        let mut copies: HashMap<[u8; 4], Vec<u8>> = HashMap::new();
        for frame in node.sent() {
            copies.entry(frame[30..34].try_into().unwrap()).or_default().extend(&frame[HEADERS..]);
        }
        assert_eq!(copies.len(), usize::from(PEERS));
        assert!(copies.values().all(|copy| *copy == frame[42..]), "{segments} segments each");
    }
    node.assert_drops(&[]);
}

/// Also a broadcast of an endpoint that has been alone for long.
#[test]
fn a_long_broadcast_lets_others_in() {
    const PEERS: u8 = 250;
    let peer = |last: u8| IpAddr::from([10, 9, 0, last]);
    let mut flooding = network(5);
    flooding.flood = (0..PEERS).map(peer).collect();
    let mut tables = node(vec![flooding, network(6)]);
    let hop = |to: IpAddr| {
        let outer = Outer::new(&tables.encapsulation, Mac([2; 6]), Mac([4; 6]), A, to);
        (to, Hop { outer, mtu: 1500 })
    };
    tables.hops = Arc::new((0..PEERS).map(peer).chain([B]).map(hop).collect());
    let mut node = Node::new(tables);
    node.now += Duration::from_millis(20);
    let everybody = (IpAddr::from([10, 255, 255, 255]), 1);
    node.users[0].send(VnetHeader::default(), &udp((Mac::of(A), Mac::BROADCAST), (A, 1), everybody, 0, b"x"));
    node.worker.set_ready(0);
    node.worker.turn(node.now);
    node.users[1].send(VnetHeader::default(), &udp((Mac::of(A), Mac::of(B)), (A, 1), (B, 1), 0, b"y"));
    node.worker.set_ready(1);
    let sent = node.sent();
    assert_eq!(sent.len(), 1 + usize::from(PEERS));
    let others = sent.iter().position(|frame| frame[30..34] == [10, 0, 0, 2]);
    assert!(others.is_some_and(|place| place < 60), "after three turns at most: {others:?}");
    node.assert_drops(&[]);
}

fn to_c(v6: bool) -> Vec<u8> {
    let (from, to) = if v6 { (A6, C6) } else { (A, C) };
    udp((Mac::of(A), Mac::of(C)), (from, 1), (to, 1), 0, b"x")
}

/// That the frame is "no route to host" for the sender, in the name of C.
#[track_caller]
fn assert_unreachable(frame: &[u8], v6: bool) {
    assert_eq!(frame[..12], [Mac::of(A).0, Mac::of(C).0].concat());
    if v6 {
        assert_eq!((frame[20], frame[54], frame[55]), (58, 1, 3), "address unreachable");
        assert_eq!(frame[62..], to_c(true)[14..], "what it is about");
    } else {
        assert_eq!((frame[23], frame[34], frame[35]), (1, 3, 1), "host unreachable");
        assert_eq!(frame[38..42], [0; 4], "unused");
        assert_eq!(frame[42..], to_c(false)[14..], "what it is about");
    }
}

#[test]
fn who_waits_in_vain_is_told() {
    for v6 in [false, true] {
        let mut node = Node::new(node(vec![network(5)]));
        assert!(node.send(&to_c(v6)).is_empty());
        node.now += Duration::from_millis(2900);
        assert!(node.sent().is_empty());
        assert_eq!(node.answer(), None, "it still waits");
        node.now += Duration::from_millis(1200);
        assert!(node.sent().is_empty());
        assert_unreachable(&node.answer().unwrap(), v6);
        assert_eq!(node.answer(), None);
        node.assert_drops(&[(Drop::NoNextHop, 1)]);
    }
}

#[test]
fn who_waits_for_the_dead_is_told_at_once() {
    for v6 in [false, true] {
        let mut node = Node::new(node(vec![network(5)]));
        assert!(node.send(&to_c(v6)).is_empty());
        assert_eq!(node.answer(), None);
        node.set_dead(&[(C, node.now)]);
        assert_unreachable(&node.answer().unwrap(), v6);
        // Also who comes a little later; after that it is asked for anew.
        node.now += Duration::from_secs(1);
        assert!(node.send(&to_c(v6)).is_empty());
        assert_unreachable(&node.answer().unwrap(), v6);
        node.now += Duration::from_secs(3);
        assert!(node.send(&to_c(v6)).is_empty());
        assert_eq!(node.answer(), None);
        node.assert_drops(&[(Drop::NoNextHop, 2)]);
    }
}

#[test]
fn a_flood_to_the_dead_is_not_echoed() {
    let mut node = Node::new(node(vec![network(5)]));
    node.set_dead(&[(C, node.now)]);
    let mut answers = 0;
    for _ in 0..1000 {
        node.send(&to_c(false));
        answers += usize::from(node.answer().is_some());
    }
    assert_eq!(answers, 64, "in a second");
    node.assert_drops(&[(Drop::NoNextHop, 1000)]);
}

#[test]
fn nobody_answers_for_the_dead() {
    let (IpAddr::V6(a6), IpAddr::V6(c6)) = (A6, C6) else { unreachable!() };
    let mut node = Node::new(node(vec![network(5)]));
    let questions = [
        arp_request(Mac::of(A), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)),
        solicitation(Mac::of(A), a6, c6),
    ];
    let outer = Outer::new(&node.tables.encapsulation, Mac([2; 6]), Mac([4; 6]), A, C);
    node.tables.hops = Arc::new([(C, Hop { outer, mtu: 1500 })].into_iter().collect());
    node.set_dead(&[]);
    for question in &questions {
        node.send(question);
        assert!(node.answer().is_some(), "it answers");
    }
    node.tables.hops = Arc::default();
    node.set_dead(&[(C, node.now)]);
    for question in &questions {
        node.send(question);
        assert_eq!(node.answer(), None);
    }
    node.assert_drops(&[(Drop::NoNextHop, 2)]);
}
