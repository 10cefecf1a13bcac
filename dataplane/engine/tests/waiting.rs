//! Frames to VTEPs whose next hop is not known yet: they wait, and each network waits for itself. No root, no device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/frames.rs"]
mod frames;
#[path = "common/tables.rs"]
mod tables;

use crossbeam::channel::{Receiver, bounded};
use frames::{arp_request, solicitation, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::{A, network};
use uvn_api::dataplane::config::Vtep;
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::counters::Drop;
use uvn_engine::memory::{self, MemoryNic, User, Wire};
use uvn_engine::outer::Outer;
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::tables::{Hop, Tables};
use uvn_engine::worker::{Event, Worker};
use uvn_wire::arp::Arp;
use uvn_wire::ethernet::Mac;
use zerocopy::FromBytes;

const C: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const C6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3));
/// The networks of two users, and the slots of their endpoints.
const ALICE: usize = 0;
const BOB: usize = 1;
/// What waits in the channel to the control thread.
const EVENTS: usize = 64;

struct Node {
    worker: Worker<MemoryNic>,
    wire: Wire,
    users: [User; 2],
    events: Receiver<Event>,
    tables: Tables,
    now: Instant,
}

impl Node {
    /// Every address of 10.0.0.0/8 may be a VTEP; none is known.
    fn new() -> Node {
        let listed = vec![Vtep { address: C, overlay: vec![C, C6] }];
        let mut tables = tables::tables(listed.clone(), vec![network(1234), network(9876)]);
        let peers =
            uvn_api::dataplane::config::Peers { vtep: listed, range: vec!["10.0.0.0/8".parse().unwrap()] };
        tables.vteps = Arc::new(Vteps::new(&peers).unwrap());
        tables.hops = Arc::default();
        let (nic, wire) = memory::nic(1024, 64);
        let (sender, events) = bounded(EVENTS);
        let now = Instant::now();
        let mut worker = Worker::new(nic, 0, Arc::new(tables.clone()), sender, now);
        let users = [0, 1].map(|slot| {
            let (endpoint, user) = memory::endpoint(64, Offloads { tcp: true, udp: true });
            worker.attach(slot, Box::new(endpoint));
            user
        });
        Node { worker, wire, users, events, tables, now }
    }

    fn turn(&mut self) {
        [0, 1].into_iter().for_each(|slot| self.worker.set_ready(slot));
        while self.worker.turn(self.now) {}
    }

    fn send(&mut self, user: usize, frame: &[u8]) -> Vec<Vec<u8>> {
        self.users[user].send(VnetHeader::default(), frame);
        self.turn();
        std::iter::from_fn(|| self.wire.sent()).collect()
    }

    /// The control thread tells which VTEPs it has found.
    fn find(&mut self, vteps: &[IpAddr]) {
        let hop = |vtep: &IpAddr| {
            let outer = Outer::new(&self.tables.encapsulation, Mac([2; 6]), Mac([4; 6]), A, *vtep);
            (*vtep, Hop { outer, mtu: 1500 })
        };
        self.tables.hops = Arc::new(vteps.iter().map(hop).collect());
        self.publish();
    }

    fn publish(&mut self) {
        self.tables.epoch += 1;
        self.worker.set_tables(Arc::new(self.tables.clone()));
        self.turn();
    }

    /// What the control thread is asked, by whom.
    fn asked(&self) -> Vec<(u32, IpAddr)> {
        let question = |event| match event {
            Event::Resolve { vni, vtep } => (vni.get(), vtep),
            _ => panic!("another event"),
        };
        self.events.try_iter().map(question).collect()
    }

    fn answer(&mut self, user: usize) -> Option<Vec<u8>> {
        self.users[user].received().map(|(_, frame)| frame)
    }

    fn dropped(&self) -> u64 {
        self.worker.status().counters.drops(Drop::NoNextHop)
    }
}

fn vtep(number: u32) -> IpAddr {
    IpAddr::V4((0x0a00_0000 + number).into())
}

fn datagram(to: IpAddr) -> Vec<u8> {
    udp((Mac::of(A), Mac::of(to)), (A, 1), (to, 1), 0, b"x")
}

fn question(to: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(a), IpAddr::V4(to)) = (A, to) else { unreachable!() };
    arp_request(Mac::of(A), a, to)
}

#[test]
fn unknown_next_hops_are_asked_for_and_the_frame_waits() {
    let mut node = Node::new();
    for _ in 0..2 {
        assert!(node.send(ALICE, &datagram(C)).is_empty());
    }
    assert_eq!(node.asked(), [(1234, C)], "once a second");
    node.find(&[C]);
    let sent: Vec<_> = std::iter::from_fn(|| node.wire.sent()).collect();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0][50..], datagram(C));
    assert_eq!(node.worker.status().epoch.load(std::sync::atomic::Ordering::Acquire), 2);
}

#[test]
fn frames_do_not_wait_for_ever() {
    let mut node = Node::new();
    assert!(node.send(ALICE, &datagram(C)).is_empty());
    assert_eq!(node.worker.due(), Some(Duration::from_secs(1)));
    node.now += Duration::from_secs(4);
    node.turn();
    assert_eq!(node.worker.due(), None);
    assert_eq!(node.dropped(), 1);
}

/// The endpoint's kernel learns a node's MAC when the node answers, and not before: who scans a subnet has no entry for each
/// address that nobody has, and hears in time that nobody has it.
#[test]
fn who_asks_for_a_mac_waits_until_the_node_is_found() {
    let (IpAddr::V6(a6), IpAddr::V6(c6)) = (A6, C6) else { unreachable!() };
    for question in [question(C), solicitation(Mac::of(A), a6, c6)] {
        let mut node = Node::new();
        assert!(node.send(ALICE, &question).is_empty());
        assert_eq!(node.answer(ALICE), None, "nobody knows yet");
        assert_eq!(node.asked(), [(1234, C)]);
        node.find(&[C]);
        let answer = node.answer(ALICE).unwrap();
        assert_eq!(answer[6..12], Mac::of(C).0);
        if let Ok((arp, _)) = Arp::ref_from_prefix(&answer[14..])
            && arp.is_ipv4()
        {
            assert_eq!((arp.operation.get(), arp.sender_mac), (2, Mac::of(C)));
        }
        // He does not answer, or there is no word of him.
        for is_dead in [true, false] {
            let mut node = Node::new();
            assert!(node.send(ALICE, &question).is_empty());
            if is_dead {
                node.tables.dead = Arc::new([(C, node.now)].into_iter().collect());
            } else {
                node.now += Duration::from_secs(4);
            }
            node.publish();
            assert_eq!(node.answer(ALICE), None);
            assert_eq!((node.dropped(), node.worker.due()), (1, None));
        }
    }
}

/// Bob fills what room he has, by questions and by datagrams; alice's first frame waits and is asked for nevertheless.
#[test]
fn a_scan_of_a_subnet_leaves_room_for_others() {
    let mut node = Node::new();
    let mut asked = Vec::new();
    for number in 0x1000..0x3000 {
        node.send(BOB, &question(vtep(number)));
        node.send(BOB, &datagram(vtep(number)));
        asked.extend(node.asked());
    }
    assert_eq!(asked.len(), 1024, "in a second");
    assert!(node.dropped() > 0, "his own");
    let before = node.dropped();
    for frame in [question(C), datagram(C)] {
        assert!(node.send(ALICE, &frame).is_empty());
    }
    assert_eq!(node.asked(), [(1234, C)]);
    assert_eq!(node.dropped(), before);
    node.find(&[C]);
    assert!(node.answer(ALICE).is_some());
    assert_eq!(std::iter::from_fn(|| node.wire.sent()).count(), 1);
    // Nothing is kept for long, nor let go of in one turn.
    node.now += Duration::from_secs(4);
    let turns = (0..100).take_while(|_| {
        node.turn();
        node.worker.due().is_some()
    });
    assert!((1..50).contains(&turns.count()));
    assert_eq!(node.worker.due(), None);
}

#[test]
fn what_waits_is_asked_for_again() {
    let mut node = Node::new();
    node.send(ALICE, &datagram(C));
    assert_eq!(node.asked(), [(1234, C)]);
    node.turn();
    assert!(node.asked().is_empty());
    node.now += Duration::from_secs(1);
    node.turn();
    assert_eq!(node.asked(), [(1234, C)]);
}

/// The control thread is busy, and bob has more questions than the channel has room.
#[test]
fn no_question_is_lost_in_a_full_channel() {
    let mut node = Node::new();
    for number in 0x1000..0x1100 {
        node.send(BOB, &question(vtep(number)));
    }
    node.send(ALICE, &question(C));
    let mut asked = Vec::new();
    while let Some(due) = node.worker.due()
        && due < Duration::from_secs(1)
    {
        assert!(node.events.len() <= EVENTS / 2, "what is said but once has room");
        asked.extend(node.asked());
        node.turn();
    }
    assert_eq!(asked.len(), 256);
    asked.extend(node.asked());
    assert_eq!(asked.len(), 257);
    assert!(asked.contains(&(1234, C)));
}

/// A job that starts on thousands of nodes at once.
#[test]
fn those_found_make_room_for_the_next() {
    let mut node = Node::new();
    let mut found = Vec::new();
    for first in (0x1000..0x2000).step_by(32) {
        for number in first..first + 32 {
            node.send(ALICE, &question(vtep(number)));
        }
        found.extend(node.asked().into_iter().map(|(_, vtep)| vtep));
        node.find(&found);
        assert_eq!(std::iter::from_fn(|| node.answer(ALICE)).count(), 32);
    }
    assert_eq!(node.dropped(), 0);
}
