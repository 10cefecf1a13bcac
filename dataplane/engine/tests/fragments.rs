//! Datagrams in fragments pass a worker whole or not at all, in both directions, over ports in memory. No root, no device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/frames.rs"]
mod frames;
#[path = "common/tables.rs"]
mod tables;

use crossbeam::channel::unbounded;
use frames::{fragment, identified, udp, vxlan};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::{A, B};
use uvn_api::dataplane::config::{Encapsulation, Vtep};
use uvn_engine::counters::{Counters, Drop};
use uvn_engine::memory::{self, MemoryNic, User, Wire};
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::tables::Network;
use uvn_engine::worker::Worker;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
const CAPACITY: usize = 10_000;

/// Node A with users in the slots 0, 1 ..., whose VNIs are 1, 2 ...
struct Node {
    worker: Worker<MemoryNic>,
    wire: Wire,
    users: Vec<User>,
    now: Instant,
}

fn network(slot: u32, learning: bool, workers: usize) -> Network {
    Network {
        vni: Vni::new(slot + 1).unwrap(),
        mac: Mac::of(A),
        addresses: vec!["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        flood: vec![B],
        flood_rate: 3,
        learning,
        fdb: Default::default(),
        counters: (0..workers).map(|_| Counters::default()).collect(),
    }
}

impl Node {
    fn new(users: u32) -> Node {
        Node::with((0..users).map(|slot| network(slot, false, 1)).collect())
    }

    fn with(networks: Vec<Network>) -> Node {
        let (nic, wire) = memory::nic(1024, 64);
        let now = Instant::now();
        let users = networks.len() as u32;
        let tables = tables::tables(vec![Vtep { address: B, overlay: vec![B, B6] }], networks);
        let mut worker = Worker::new(nic, 0, Arc::new(tables), unbounded().0, now);
        let users = (0..users)
            .map(|slot| {
                let (endpoint, user) = memory::endpoint(CAPACITY, Offloads { tcp: true, udp: true });
                worker.attach(slot, Box::new(endpoint));
                user
            })
            .collect();
        Node { worker, wire, users, now }
    }

    fn turns(&mut self) {
        (0..self.users.len()).for_each(|slot| self.worker.set_ready(slot as u32));
        while self.worker.turn(self.now) {}
        assert_eq!(self.wire.held(), 0, "frames leak");
    }

    /// Frames arrive for a user: what he gets.
    fn receive(&mut self, slot: u32, frames: &[&[u8]]) -> Vec<Vec<u8>> {
        for inner in frames {
            assert!(self.wire.deliver(&vxlan(&Encapsulation::default(), B, A, slot + 1, 0, inner)));
        }
        self.turns();
        std::iter::from_fn(|| self.users[slot as usize].received()).map(|(_, frame)| frame).collect()
    }

    /// A user sends frames: what leaves the NIC, without outer headers.
    fn send(&mut self, slot: u32, frames: &[&[u8]]) -> Vec<Vec<u8>> {
        frames.iter().for_each(|frame| self.users[slot as usize].send(VnetHeader::default(), frame));
        self.turns();
        std::iter::from_fn(|| self.wire.sent()).map(|frame| frame[50..].to_vec()).collect()
    }

    /// Two ways.
    fn pass(&mut self, incoming: bool, slot: u32, frames: &[&[u8]]) -> Vec<Vec<u8>> {
        if incoming { self.receive(slot, frames) } else { self.send(slot, frames) }
    }

    fn drops(&self, incoming: bool) -> u64 {
        let reason = if incoming { Drop::RxFragment } else { Drop::TxFragment };
        self.worker.status().counters.drops(reason)
    }
}

fn whole(incoming: bool, v6: bool, payload: usize) -> Vec<u8> {
    let ((here, there), macs) = (if v6 { (A6, B6) } else { (A, B) }, (Mac::of(A), Mac::of(B)));
    let content: Vec<u8> = (0..payload).map(|n| (n % 251) as u8).collect();
    if incoming {
        udp((macs.1, macs.0), (there, 5), (here, 6), 0, &content)
    } else {
        udp(macs, (here, 6), (there, 5), 0, &content)
    }
}

/// The fragments of a datagram, with up to `size` bytes each.
fn cut(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let length = frame.len() - if frame[12] == 8 { 34 } else { 54 };
    let starts = (0..length).step_by(size);
    starts.map(|start| fragment(frame, start..length.min(start + size), start + size < length)).collect()
}

fn slices(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    frames.iter().map(Vec::as_slice).collect()
}

/// Both ways, both families.
fn everywhere(test: impl Fn(bool, bool)) {
    for incoming in [false, true] {
        [false, true].into_iter().for_each(|v6| test(incoming, v6));
    }
}

#[test]
fn a_datagram_passes_when_its_last_fragment_is_there() {
    everywhere(|incoming, v6| {
        let mut node = Node::new(1);
        let fragments = cut(&whole(incoming, v6, 4000), 1000);
        for order in [vec![0, 1, 2, 3, 4], vec![4, 3, 2, 1, 0], vec![2, 4, 0, 3, 1]] {
            let order: Vec<&[u8]> = order.into_iter().map(|index: usize| &fragments[index][..]).collect();
            for frame in &order[..4] {
                assert!(node.pass(incoming, 0, &[frame]).is_empty(), "not whole");
            }
            assert_eq!(node.pass(incoming, 0, &order[4..]), order);
            assert_eq!(node.pass(incoming, 0, &order), order, "at once");
        }
        assert_eq!(node.drops(incoming), 0);
    });
}

#[test]
fn small_and_large_datagrams_keep_their_order() {
    everywhere(|incoming, v6| {
        let mut node = Node::new(1);
        let (mut frames, mut large) = (Vec::new(), whole(incoming, v6, 3000));
        for number in 0..20 {
            frames.push(whole(incoming, v6, 10 + number));
            identified(&mut large, number as u16);
            frames.extend(cut(&large, 1000));
        }
        // Joined or not, what comes before stays before.
        assert_eq!(node.pass(incoming, 0, &slices(&frames)), frames);
    });
}

#[test]
fn the_rest_of_a_datagram_that_lost_a_fragment_goes_no_further() {
    everywhere(|incoming, v6| {
        let mut node = Node::new(1);
        let fragments = cut(&whole(incoming, v6, 4000), 1000);
        for lost in 0..fragments.len() {
            let mut left = slices(&fragments);
            left.remove(lost);
            assert!(node.pass(incoming, 0, &left).is_empty());
            // It ends by itself: the worker asks for the turn.
            assert!(node.worker.due().is_some());
            node.now += Duration::from_secs(3);
            node.turns();
            assert_eq!(node.drops(incoming), 4 * (lost as u64 + 1));
        }
        assert_eq!(node.worker.due(), None);
    });
}

/// What one user sends in pieces costs another nothing, and the worker no more than a bounded amount of memory.
#[test]
fn one_users_flood_of_halves_leaves_anothers_datagram_alone() {
    everywhere(|incoming, v6| {
        let mut node = Node::new(2);
        let fragments = cut(&whole(incoming, v6, 1000), 800);
        assert!(node.pass(incoming, 1, &[&fragments[0]]).is_empty());
        let (mut datagram, flood) = (whole(incoming, v6, 2000), 20_000);
        for number in 0..flood {
            identified(&mut datagram, number as u16);
            assert!(node.pass(incoming, 0, &[&cut(&datagram, 1000)[0]]).is_empty());
        }
        assert_eq!(node.pass(incoming, 1, &[&fragments[1]]), fragments);
        assert!(node.drops(incoming) > flood - 64, "{}", node.drops(incoming));
        // Nor does the flood's own next one suffer.
        identified(&mut datagram, 60_000);
        let fragments = cut(&datagram, 1000);
        assert_eq!(node.pass(incoming, 0, &slices(&fragments)), fragments);
    });
}

#[test]
fn what_no_kernel_puts_together_is_dropped() {
    everywhere(|incoming, v6| {
        let frame = whole(incoming, v6, 3000);
        let part = |range, more| fragment(&frame, range, more);
        let first = part(0..1000, true);
        // Each with what is dropped of both, if anything is.
        let cases = [
            ("overlap", part(992..2000, true), 2),
            ("overlap from before", part(8..16, true), 2),
            ("an end before the end", part(8..16, false), 2),
            ("a length that is no multiple of 8", part(1000..1999, true), 2),
            ("nothing", part(1000..1000, true), 2),
            ("the same again", first.clone(), 1),
        ];
        for (name, second, dropped) in cases {
            let mut node = Node::new(1);
            assert!(node.pass(incoming, 0, &[&first, &second]).is_empty(), "{name}");
            assert_eq!(node.drops(incoming), dropped, "{name}");
            let rest = [part(1000..2000, true), part(2000..3008, false)];
            let passed = node.pass(incoming, 0, &slices(&rest));
            assert_eq!(passed.len(), if dropped == 1 { 3 } else { 0 }, "{name}");
        }
        // Beyond 64 KiB, and two ends.
        let mut node = Node::new(1);
        let mut far = first.clone();
        let at = if v6 { 56 } else { 20 };
        far[at..at + 2].copy_from_slice(&if v6 { 0xfff8_u16 } else { 0x1fff }.to_be_bytes());
        assert!(node.pass(incoming, 0, &[&far]).is_empty());
        assert_eq!(node.drops(incoming), 1);
        let ends = [part(2000..3000, false), part(1000..2000, false)];
        assert!(node.pass(incoming, 0, &slices(&ends)).is_empty());
        assert_eq!(node.drops(incoming), 3);
    });
}

/// RFC 6946; and extension headers before and behind the fragment header.
#[test]
fn ipv6_fragments_of_all_shapes() {
    for incoming in [false, true] {
        let mut node = Node::new(1);
        let frame = whole(incoming, true, 3000);
        let atomic = fragment(&frame, 0..3008, false);
        assert_eq!(node.pass(incoming, 0, &[&atomic[..1500]]), Vec::<Vec<u8>>::new(), "cut short");
        let small = whole(incoming, true, 100);
        let atomic = fragment(&small, 0..108, false);
        assert_eq!(node.pass(incoming, 0, &[&atomic]), [atomic]);
        let with_options = |frame: &[u8]| {
            let options = [frame[20], 0, 1, 4, 0, 0, 0, 0];
            let mut all = [&frame[..54], &options, &frame[54..]].concat();
            all[20] = 60;
            let length = u16::from_be_bytes([all[18], all[19]]) + 8;
            all[18..20].copy_from_slice(&length.to_be_bytes());
            all
        };
        for frame in [with_options(&frame), frame] {
            let fragments: Vec<_> = cut(&frame, 1000).iter().map(|frame| with_options(frame)).collect();
            assert_eq!(node.pass(incoming, 0, &slices(&fragments)), fragments);
        }
    }
}

/// Peers of other makes may spread a datagram over the NIC's queues.
#[test]
fn where_fragments_may_come_to_several_workers_none_waits() {
    for (learning, workers, waits) in [(true, 2, false), (true, 1, true), (false, 2, true)] {
        let mut node = Node::with(vec![network(0, learning, workers)]);
        let first = &cut(&whole(true, false, 2000), 1000)[0];
        assert_eq!(node.receive(0, &[first]).is_empty(), waits, "{learning}, {workers}");
    }
}

/// Three frames a second may be flooded.
#[test]
fn a_limit_costs_whole_datagrams() {
    let mut node = Node::new(1);
    let group = |payload: usize| {
        let to = (IpAddr::from([10, 0, 0, 255]), 5);
        udp((Mac::of(A), Mac::BROADCAST), (A, 6), to, 0, &vec![7; payload])
    };
    let (fits, too_much) = (cut(&group(1500), 1000), cut(&group(4500), 1000));
    assert_eq!(node.send(0, &slices(&fits)), fits);
    assert_eq!(node.send(0, &slices(&too_much)).len(), 1, "as long as the limit is not known");
    assert_eq!(node.worker.status().counters.drops(Drop::FloodLimit), 1);
    assert_eq!(node.drops(false), 3);
}

#[test]
fn a_network_that_goes_takes_its_fragments_along() {
    everywhere(|incoming, v6| {
        let mut node = Node::new(1);
        let fragments = cut(&whole(incoming, v6, 2000), 1000);
        assert!(node.pass(incoming, 0, &[&fragments[0]]).is_empty());
        node.worker.detach(0);
        assert_eq!(node.worker.due(), None);
    });
}
