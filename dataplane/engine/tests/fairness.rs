//! Users share a worker alike: exact order of service and exact shares, over ports in memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/frames.rs"]
mod frames;
#[path = "common/tables.rs"]
mod tables;

use crossbeam::channel::unbounded;
use frames::{udp, vxlan};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::{A, B};
use uvn_api::dataplane::config::{Encapsulation, Vtep};
use uvn_engine::counters::{Counters, Drop};
use uvn_engine::memory::{self, MemoryNic, User, Wire};
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::tables::{Network, Tables};
use uvn_engine::worker::Worker;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

/// UMEM frames: half of them to send, half to receive.
const FRAMES: u32 = 1024;
/// What one endpoint takes until the user reads.
const CAPACITY: usize = 10_000;
/// Frames of this payload, [`SMALL`], that one quantum lets out, and that one lets in.
const OUT: usize = 8;
const IN: usize = 8;
const SMALL: &[u8] = &[0x55; 64];

/// Node A with users in the slots 0, 1 ..., whose VNIs are 1, 2 ...
struct Node {
    worker: Worker<MemoryNic>,
    wire: Wire,
    users: Vec<User>,
    now: Instant,
}

fn network(slot: u32) -> Network {
    Network {
        vni: vni(slot),
        mac: Mac::of(A),
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
        flood: vec![],
        flood_rate: 0,
        learning: false,
        fdb: Default::default(),
        counters: [Counters::default()].into(),
    }
}

fn tables(users: u32) -> Tables {
    tables::tables(vec![Vtep { address: B, overlay: vec![] }], (0..users).map(network).collect())
}

fn vni(slot: u32) -> Vni {
    Vni::new(slot + 1).unwrap()
}

impl Node {
    fn new(users: u32) -> Node {
        let (nic, wire) = memory::nic(FRAMES, 64);
        let now = Instant::now();
        let mut worker = Worker::new(nic, 0, Arc::new(tables(users)), unbounded().0, now);
        let users = (0..users)
            .map(|slot| {
                let (endpoint, user) = memory::endpoint(CAPACITY, Offloads { tcp: true, udp: true });
                worker.attach(slot, Box::new(endpoint));
                user
            })
            .collect();
        let mut node = Node { worker, wire, users, now };
        // Each is looked at once when it is attached.
        node.turn();
        node
    }

    fn turn(&mut self) -> bool {
        for slot in 0..self.users.len() {
            self.worker.set_ready(slot as u32);
        }
        self.worker.turn(self.now)
    }

    /// The user of a slot has `count` frames to send.
    fn send(&self, slot: usize, count: usize, payload: &[u8]) {
        for _ in 0..count {
            let frame = udp((Mac::of(A), Mac::of(B)), (A, 1), (B, 2), 0, payload);
            self.users[slot].send(VnetHeader::default(), &frame);
        }
    }

    /// The user of a slot has 46 segments of 1400 bytes to send, in one.
    fn send_super_frame(&self, slot: usize) {
        let frame = udp((Mac::of(A), Mac::of(B)), (A, 1), (B, 2), 0, &[0; 46 * 1400]);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type: VnetHeader::GSO_UDP,
            header_length: 42,
            gso_size: 1400,
            checksum_start: 34,
            checksum_offset: 6,
        };
        self.users[slot].send(header, &frame);
    }

    /// `count` frames arrive for the network of a slot. None can join another: they have no UDP checksum.
    ///
    /// How many found a free frame.
    fn arrive(&mut self, slot: u32, count: usize) -> usize {
        let mut inner = udp((Mac::of(B), Mac::of(A)), (B, 1), (A, 2), 0, SMALL);
        inner[40..42].fill(0);
        let frame = vxlan(&Encapsulation::default(), B, A, slot + 1, 0, &inner);
        (0..count).filter(|_| self.wire.deliver(&frame)).count()
    }

    /// The slots whose frames left the NIC, in order; runs of the same as (slot, frames).
    fn sent(&mut self) -> Vec<(u32, usize)> {
        let mut runs: Vec<(u32, usize)> = Vec::new();
        while let Some(frame) = self.wire.sent() {
            let slot = u32::from_be_bytes([0, frame[46], frame[47], frame[48]]) - 1;
            match runs.last_mut() {
                Some((last, count)) if *last == slot => *count += 1,
                _ => runs.push((slot, 1)),
            }
        }
        runs
    }

    /// How many frames reached each user since the last call.
    fn received(&self) -> Vec<usize> {
        self.users.iter().map(|user| std::iter::from_fn(|| user.received()).count()).collect()
    }

    fn drops(&self, reason: Drop) -> u64 {
        self.worker.status().counters.drops(reason)
    }
}

#[test]
fn a_flood_leaves_a_quantum_at_a_time() {
    let mut node = Node::new(3);
    node.send(0, 1000, SMALL);
    node.send(1, 3, SMALL);
    node.send(2, 1, SMALL);
    assert!(node.turn());
    let sent = node.sent();
    // Two more quanta, which also pay for what the ones before had taken too much: then the turn ends, so that the NIC is
    // looked at again.
    assert_eq!(sent, [(0, OUT), (1, 3), (2, 1), (0, OUT - 1 + OUT - 1)]);
    // Who comes while the other floods waits for one quantum.
    node.send(2, 1, SMALL);
    node.turn();
    assert_eq!(node.sent()[..2], [(0, OUT - 1), (2, 1)]);
}

#[test]
fn floods_share_alike_whatever_the_size_of_their_frames() {
    // Super-frames of 46 segments, frames of 1400 bytes, and small ones.
    let mut node = Node::new(3);
    let mut costs = [0; 3];
    for _ in 0..300 {
        for _ in 0..2 {
            node.send_super_frame(0);
        }
        node.send(1, 40, &[0; 1400]);
        node.send(2, 80, SMALL);
        assert!(node.turn());
        while let Some(frame) = node.wire.sent() {
            costs[usize::from(frame[48]) - 1] += 1024 + frame.len() - 50;
        }
        assert_eq!(node.wire.held(), 0, "frames leak");
    }
    let (most, least) = (costs.iter().max().unwrap(), costs.iter().min().unwrap());
    // Two super-frames (the headers of the segments are not in the price of the whole), of 150 or so.
    assert!(most - least < *most / 20, "{costs:?}");
}

#[test]
fn a_super_frame_goes_in_parts_while_others_send() {
    let mut node = Node::new(2);
    node.send_super_frame(0);
    node.turn();
    let [(0, part)] = node.sent()[..] else { panic!("not the super-frame alone") };
    assert!(part < 20, "{part} segments at once");
    node.send(1, 1, SMALL);
    node.turn();
    let sent = node.sent();
    let at = sent.iter().position(|(slot, _)| *slot == 1).unwrap();
    assert!(at <= 1 && (at == 0 || sent[0].1 < 5), "{sent:?}: nobody waits for all of it");
    let mut segments =
        part + sent.iter().filter(|(slot, _)| *slot == 0).map(|(_, count)| count).sum::<usize>();
    while node.turn() {
        segments += node.sent().iter().map(|(_, count)| count).sum::<usize>();
    }
    assert_eq!((segments, node.wire.held()), (46, 0));
    // Nobody else sends any more.
    node.now += Duration::from_millis(11);
    node.send_super_frame(0);
    node.turn();
    assert_eq!(node.sent(), [(0, 46)]);
}

#[test]
fn more_super_frames_at_once_than_can_wait_lose_nothing() {
    let mut node = Node::new(20);
    for slot in 0..20 {
        node.send_super_frame(slot);
    }
    let mut segments = [0; 20];
    for _ in 0..200 {
        node.turn();
        node.sent().iter().for_each(|(slot, count)| segments[*slot as usize] += count);
    }
    assert_eq!((segments, node.wire.held()), ([46; 20], 0));
}

#[test]
fn what_is_left_of_a_super_frame_goes_with_its_endpoint() {
    for detach in [true, false] {
        let mut node = Node::new(2);
        node.send_super_frame(0);
        node.turn();
        assert!(node.sent()[0].1 < 46);
        if detach {
            node.worker.detach(0);
        }
        let (endpoint, _user) = memory::endpoint(CAPACITY, Offloads::default());
        node.worker.attach(0, Box::new(endpoint));
        for _ in 0..20 {
            node.turn();
        }
        assert_eq!(node.sent(), [], "the next user's network got it");
        assert_eq!(node.wire.held(), 0);
    }
}

#[test]
fn a_flood_leaves_frames_for_others() {
    // Nothing that is sent completes: the NIC is slower than the users.
    let mut node = Node::new(2);
    node.send(0, 1000, SMALL);
    while node.turn() {}
    assert!(!node.turn(), "nothing can be done");
    node.send(1, 5, SMALL);
    assert!(node.turn());
    let half = FRAMES as usize / 2;
    // Its first quantum, when it was no flood yet, is within.
    let sent = node.sent();
    assert_eq!(sent.last(), Some(&(1, 5)));
    let flood: usize = sent.iter().filter(|(slot, _)| *slot == 0).map(|(_, frames)| frames).sum();
    assert_eq!(flood, half - 256 + 1);
    // What has completed lets it go on.
    assert!(node.turn() || node.turn());
}

#[test]
fn a_flood_arrives_a_quantum_at_a_time() {
    let mut node = Node::new(3);
    node.arrive(0, 200);
    node.arrive(1, 3);
    node.arrive(2, 1);
    assert!(node.turn());
    // Then the flood has the rest of the turn, and pays for what it had taken too much.
    assert_eq!(node.received(), [IN + 2 * (IN - 1), 3, 1]);
    node.arrive(2, 1);
    node.turn();
    assert_eq!(node.received(), [3 * (IN - 1), 0, 1]);
    let mut left = 200 - (IN + 5 * (IN - 1));
    while node.turn() {
        left -= node.received()[0];
    }
    assert_eq!((left, node.wire.held()), (0, 0));
    assert_eq!(node.drops(Drop::EndpointFull), 0);
}

#[test]
fn a_burst_is_not_lost() {
    let mut node = Node::new(1);
    let half = FRAMES as usize / 2;
    assert_eq!(node.arrive(0, half), half);
    let mut received = 0;
    while node.turn() {
        received += node.received()[0];
    }
    assert_eq!((received, node.drops(Drop::EndpointFull), node.wire.held()), (half, 0, 0));
}

#[test]
fn what_overflows_is_the_floods() {
    let mut node = Node::new(2);
    let (mut sent, mut received) = ([0; 2], [0; 2]);
    for turn in 0..100 {
        // 21 or so are handed over in a turn.
        let new = [node.arrive(0, 60), node.arrive(1, 1)];
        sent = [sent[0] + new[0], sent[1] + new[1]];
        node.turn();
        let got = node.received();
        received = [received[0] + got[0], received[1] + got[1]];
        if turn > 20 {
            // It is no burst, so the NIC's ring is emptied: there is room for everyone, and nobody waits behind the 60.
            assert_eq!((new, got[1]), ([60, 1], 1));
        }
    }
    while node.turn() {
        let got = node.received();
        received = [received[0] + got[0], received[1] + got[1]];
    }
    assert_eq!(received[1], sent[1]);
    assert_eq!(node.drops(Drop::EndpointFull) as usize, sent[0] - received[0]);
    assert_eq!(node.wire.held(), 0);
}

#[test]
fn new_tables_find_nothing_of_the_old_ones_waiting() {
    let mut node = Node::new(2);
    node.arrive(0, 100);
    node.turn();
    let before = node.received()[0];
    // The first user's network is revoked.
    let mut tables = tables(2);
    tables.epoch = 2;
    tables.networks[0] = None;
    tables.slots.remove(&vni(0));
    node.arrive(0, 10);
    node.worker.set_tables(Arc::new(tables));
    assert_eq!(node.received()[0], 100 - before, "handed over before the swap");
    while node.turn() {}
    assert_eq!(node.received()[0], 0);
    assert_eq!(node.drops(Drop::UnknownVni), 10);
}

#[test]
fn a_detached_endpoint_leaves_no_frames_behind() {
    let mut node = Node::new(2);
    node.arrive(0, 100);
    node.turn();
    node.worker.detach(0);
    assert_eq!(node.wire.held(), 0);
    assert_eq!(node.drops(Drop::EndpointFull) as usize, 100 - node.received()[0]);
    node.arrive(1, 1);
    node.turn();
    assert_eq!(node.received()[1], 1);
}
