//! The worker over ports in memory: no root, no device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/frames.rs"]
mod frames;
#[path = "common/tables.rs"]
mod tables;

use crossbeam::channel::{Receiver, unbounded};
use frames::{advertisement, arp_request, ethernet, solicitation, udp, vxlan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::{A, B};
use uvn_api::dataplane::config::{Encapsulation, Peers, Vtep};
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::counters::{Counters, Drop};
use uvn_engine::endpoints::LEARNED_RATE;
use uvn_engine::memory::{self, MemoryNic, User, Wire};
use uvn_engine::outer::Outer;
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::tables::{Hop, Learned, Network, Tables};
use uvn_engine::worker::{Event, Worker};
use uvn_wire::arp::Arp;
use uvn_wire::ethernet::{Mac, ethertype};
use uvn_wire::vxlan::Vni;
use zerocopy::FromBytes;

const VNI: u32 = 1234;
const C: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

fn vni() -> Vni {
    Vni::new(VNI).unwrap()
}

fn network() -> Network {
    Network {
        vni: vni(),
        mac: Mac::of(A),
        addresses: vec!["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        flood: vec![B, C],
        flood_rate: 10,
        learning: false,
        fdb: Default::default(),
        counters: [Counters::default()].into(),
    }
}

/// Node A's tables: B (with an IPv6 address) and C are VTEPs; only B's next hop is known.
fn tables(network: Network) -> Tables {
    let vteps = vec![Vtep { address: B, overlay: vec![B, B6] }, Vtep { address: C, overlay: vec![] }];
    tables::tables(vteps, vec![network])
}

struct Node {
    worker: Worker<MemoryNic>,
    wire: Wire,
    user: User,
    events: Receiver<Event>,
    tables: Arc<Tables>,
    now: Instant,
}

impl Node {
    fn new(tables: Tables) -> Node {
        let (nic, wire) = memory::nic(1024, 64);
        let (endpoint, user) = memory::endpoint(64, Offloads { tcp: true, udp: true });
        let (sender, events) = unbounded();
        let tables = Arc::new(tables);
        let now = Instant::now();
        let mut worker = Worker::new(nic, 0, tables.clone(), sender, now);
        worker.attach(0, Box::new(endpoint));
        Node { worker, wire, user, events, tables, now }
    }

    fn turn(&mut self) {
        self.worker.set_ready(0);
        while self.worker.turn(self.now) {}
        assert_eq!(self.wire.held(), 0, "frames leak");
    }

    /// Lets a frame arrive and returns what reached the user.
    fn receive(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        assert!(self.wire.deliver(frame));
        self.turn();
        self.user.received().map(|(_, frame)| frame)
    }

    /// Sends a frame of the user and returns what left the NIC.
    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.user.send(VnetHeader::default(), frame);
        self.turn();
        std::iter::from_fn(|| self.wire.sent()).collect()
    }

    fn drops(&self, reason: Drop) -> u64 {
        self.worker.status().counters.drops(reason)
    }

    /// Exactly one frame was dropped, for this reason.
    fn assert_dropped(&self, reason: Drop) {
        for other in Drop::ALL {
            let expected = u64::from(other == reason);
            assert_eq!(self.drops(other), expected, "{} when {} was expected", other.name(), reason.name());
        }
    }
}

fn from_b(payload: &[u8]) -> Vec<u8> {
    udp((Mac::of(B), Mac::of(A)), (B, 5000), (A, 6000), 0, payload)
}

fn to_b(payload: &[u8]) -> Vec<u8> {
    udp((Mac::of(A), Mac::of(B)), (A, 6000), (B, 5000), 0, payload)
}

fn wrap(inner: &[u8]) -> Vec<u8> {
    vxlan(&Encapsulation::default(), B, A, VNI, 0, inner)
}

/// The reason for which a frame from B is dropped by a fresh node.
#[track_caller]
fn refused(frame: &[u8], reason: Drop) {
    let mut node = Node::new(tables(network()));
    assert_eq!(node.receive(frame), None);
    node.assert_dropped(reason);
}

#[track_caller]
fn refused_to_send(frame: &[u8], reason: Drop) {
    let mut node = Node::new(tables(network()));
    assert_eq!(node.send(frame), Vec::<Vec<u8>>::new());
    node.assert_dropped(reason);
}

#[test]
fn a_frame_goes_out_and_is_understood_by_the_other_node() {
    let mut node = Node::new(tables(network()));
    let inner = to_b(b"hello");
    let sent = node.send(&inner);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0][..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    assert_eq!(sent[0][50..], inner);

    let mut b = network();
    b.mac = Mac::of(B);
    b.addresses = vec!["10.0.0.2/24".parse().unwrap()];
    let mut b = tables(b);
    b.local = vec![B];
    b.nic = Some(Mac([2, 0, 0, 0, 0, 2]));
    b.vteps =
        Arc::new(Vteps::new(&Peers { vtep: vec![], range: vec!["10.0.0.0/24".parse().unwrap()] }).unwrap());
    let mut b = Node::new(b);
    assert_eq!(b.receive(&sent[0]), Some(inner.clone()));
    let counters = &b.worker.status().counters;
    assert_eq!((counters.rx_frames.get(), counters.rx_bytes.get()), (1, inner.len() as u64));
    let counters = &node.worker.status().counters;
    assert_eq!((counters.tx_frames.get(), counters.tx_bytes.get()), (1, inner.len() as u64));
}

#[test]
fn outer_checks() {
    let good = wrap(&from_b(b"x"));
    assert!(Node::new(tables(network())).receive(&good).is_some());
    let changed = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    refused(&changed(33, 9), Drop::NotOurs); // not our address
    refused(&changed(36, 0), Drop::NotOurs); // not our port
    refused(&changed(23, 6), Drop::NotOurs); // TCP
    refused(&changed(20, 0x20), Drop::NotOurs); // a fragment
    refused(&changed(12, 0x81), Drop::NotOurs); // VLAN
    refused(&changed(14, 0x44), Drop::RxLength); // header too short
    refused(&changed(5, 9), Drop::OtherHost);
    let (mut header, longer) = (good[..34].to_vec(), good[17] + 4);
    (header[14], header[17]) = (0x46, longer);
    refused(&[&header[..], &[1; 4], &good[34..]].concat(), Drop::OuterOptions); // four times no operation
    refused(&changed(38, 0xff), Drop::RxLength); // UDP length
    refused(&changed(41, 1), Drop::OuterChecksum); // a checksum where there was none
    refused(&changed(22, 1), Drop::OuterChecksum); // a TTL that the header's checksum does not know
    refused(&changed(42, 0), Drop::Flags); // no I flag
    refused(&changed(42, 0x88), Drop::Flags); // a reserved flag
    refused(&changed(49, 1), Drop::Flags); // the last reserved byte
    refused(&changed(48, 9), Drop::UnknownVni);
    refused(
        &vxlan(&Encapsulation::default(), "10.0.0.9".parse().unwrap(), A, VNI, 0, &from_b(b"x")),
        Drop::UnknownVtep,
    );
}

#[test]
fn truncated_at_every_byte() {
    let good = wrap(&from_b(b"payload"));
    for length in 0..good.len() {
        let mut node = Node::new(tables(network()));
        assert_eq!(node.receive(&good[..length]), None);
        node.assert_dropped(Drop::RxLength);
    }
}

#[test]
fn reserved_bits_are_ignored_where_the_setting_says_so() {
    let mut lenient = tables(network());
    lenient.encapsulation.strict_flags = false;
    let mut frame = wrap(&from_b(b"x"));
    (frame[42], frame[43], frame[49]) = (0x88, 1, 1);
    assert!(Node::new(lenient).receive(&frame).is_some());
}

#[test]
fn inner_checks() {
    let to_a = |source: Mac, from: IpAddr, to: IpAddr, port: u16| {
        wrap(&udp((source, Mac::of(A)), (from, 5000), (to, port), 0, b"x"))
    };
    refused(&to_a(Mac::of(C), B, A, 1), Drop::RxSourceMac); // another VTEP's MAC
    refused(&to_a(Mac([2, 1, 1, 1, 1, 1]), B, A, 1), Drop::RxSourceMac);
    refused(&to_a(Mac::of(B), C, A, 1), Drop::RxSourceIp); // another VTEP's address
    refused(&to_a(Mac::of(B), A, A, 1), Drop::RxSourceIp); // our own
    refused(&to_a(Mac::of(B), "fd00::3".parse().unwrap(), A6, 1), Drop::RxSourceIp);
    refused(&to_a(Mac::of(B), B, A, 4789), Drop::RxNested);
    refused(&to_a(Mac::of(B), B6, A6, 4789), Drop::RxNested);
    let astray = udp((Mac::of(B), Mac::of(C)), (B, 1), (A, 1), 0, b"x");
    refused(&wrap(&astray), Drop::NotForEndpoint);
    refused(&wrap(&ethernet(Mac::of(B), Mac::of(A), ethertype::VLAN, &[0; 60])), Drop::RxProtocol);
    refused(&wrap(&ethernet(Mac::of(B), Mac::of(A), 0x88cc, &[0; 60])), Drop::RxProtocol);
    refused(
        &wrap(&arp_request(Mac::of(B), Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 1))),
        Drop::RxSourceIp,
    );
    let mut node = Node::new(tables(network()));
    assert!(node.receive(&to_a(Mac::of(B), B6, A6, 1)).is_some());
    assert!(node.receive(&to_a(Mac::of(B), "192.168.7.7".parse().unwrap(), A, 1)).is_some(), "off-subnet");
}

#[test]
fn an_advertisement_is_the_targets_own() {
    let (IpAddr::V6(a6), IpAddr::V6(b6)) = (A6, B6) else { unreachable!() };
    let of = |target: &str| wrap(&advertisement(Mac::of(B), b6, target.parse().unwrap(), (Mac::of(A), a6)));
    refused(&of("fd00::3"), Drop::RxSourceIp); // another VTEP's
    refused(&of("fd00::1"), Drop::RxSourceIp); // our own
    let mut node = Node::new(tables(network()));
    for target in [B6.to_string(), "fe80::2".into(), "2001:db8::1".into()] {
        assert!(node.receive(&of(&target)).is_some(), "{target}");
    }
    let send = |target: &str| advertisement(Mac::of(A), a6, target.parse().unwrap(), (Mac::of(B), b6));
    refused_to_send(&send("fd00::3"), Drop::TxSourceIp);
    refused_to_send(&send("2001:db8::1"), Drop::TxSourceIp);
    for target in [A6.to_string(), "fe80::1".into()] {
        assert_eq!(node.send(&send(&target)).len(), 1, "{target}");
    }
}

#[test]
fn checks_on_send() {
    let from_a = |source: Mac, from: IpAddr, to: IpAddr, port: u16| {
        udp((source, Mac::of(B)), (from, 5000), (to, port), 0, b"x")
    };
    refused_to_send(&from_a(Mac::of(C), A, B, 1), Drop::TxSourceMac);
    refused_to_send(&from_a(Mac::of(A), C, B, 1), Drop::TxSourceIp);
    refused_to_send(&from_a(Mac::of(A), B6, B6, 1), Drop::TxSourceIp);
    refused_to_send(&from_a(Mac::of(A), "::".parse().unwrap(), B6, 1), Drop::TxSourceIp);
    refused_to_send(&from_a(Mac::of(A), A, B, 4789), Drop::TxNested);
    refused_to_send(&ethernet(Mac::of(A), Mac::of(B), 0x88cc, &[0; 60]), Drop::TxProtocol);
    refused_to_send(&from_a(Mac::of(A), A, B, 1)[..30], Drop::TxLength);
    refused_to_send(
        &udp((Mac::of(A), Mac([2, 9, 9, 9, 9, 9])), (A, 1), (B, 1), 0, b"x"),
        Drop::NoDestination,
    );
    refused_to_send(&udp((Mac::of(A), Mac::of(A)), (A, 1), (B, 1), 0, b"x"), Drop::NoDestination);
    let spoofed = arp_request(Mac::of(A), Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 2));
    refused_to_send(&spoofed, Drop::TxSourceIp);
    let unknown = arp_request(Mac::of(A), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 77));
    refused_to_send(&unknown, Drop::NoDestination);
}

#[test]
fn arp_and_neighbour_discovery_are_answered() {
    let mut node = Node::new(tables(network()));
    let request = arp_request(Mac::of(A), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    assert!(node.send(&request).is_empty());
    let (_, reply) = node.user.received().unwrap();
    let (arp, _) = Arp::ref_from_prefix(&reply[14..]).unwrap();
    assert_eq!(
        (arp.operation.get(), arp.sender_mac, arp.sender()),
        (2, Mac::of(B), Ipv4Addr::new(10, 0, 0, 2))
    );
    assert_eq!((arp.target_mac, arp.target()), (Mac::of(A), Ipv4Addr::new(10, 0, 0, 1)));

    let (IpAddr::V6(a6), IpAddr::V6(b6)) = (A6, B6) else { unreachable!() };
    assert!(node.send(&solicitation(Mac::of(A), a6, b6)).is_empty());
    let (_, advertisement) = node.user.received().unwrap();
    assert_eq!(advertisement[..12], [Mac::of(A).0, Mac::of(B).0].concat());
    assert_eq!(advertisement[54], 136);
    assert_eq!(advertisement[62..78], b6.octets());
    assert_eq!(advertisement[80..86], Mac::of(B).0);
}

#[test]
fn broadcast_is_replicated_and_limited() {
    let mut peers = tables(network());
    let outer = Outer::new(&peers.encapsulation, Mac([2; 6]), Mac([4; 6]), A, C);
    let hop = Hop { outer, mtu: 1500 };
    peers.hops = Arc::new([(B, hop.clone()), (C, hop)].into_iter().collect());
    let mut node = Node::new(peers);
    let frame =
        udp((Mac::of(A), Mac::BROADCAST), (A, 1), (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255)), 1), 0, b"x");
    for _ in 0..10 {
        assert_eq!(node.send(&frame).len(), 2);
    }
    assert!(node.send(&frame).is_empty());
    node.assert_dropped(Drop::FloodLimit);
    node.now += Duration::from_millis(100);
    assert_eq!(node.send(&frame).len(), 2, "one token in a tenth of a second");
}

#[test]
fn a_copy_that_cannot_be_sent_is_counted() {
    for flood in [vec![B, C], vec![C, B]] {
        // C's next hop is not known.
        let mut node = Node::new(tables(Network { flood, ..network() }));
        let to = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255)), 1);
        assert_eq!(node.send(&udp((Mac::of(A), Mac::BROADCAST), (A, 1), to, 0, b"x")).len(), 1);
        node.assert_dropped(Drop::NoNextHop);
    }
}

#[test]
fn too_big_is_answered() {
    let mut node = Node::new(tables(network()));
    let fits = to_b(&vec![0; 1450 - 28]);
    assert_eq!(node.send(&fits)[0].len(), 1514);
    assert!(node.send(&to_b(&vec![0; 1451 - 28])).is_empty());
    node.assert_dropped(Drop::TooBig);
    let (_, answer) = node.user.received().unwrap();
    assert_eq!(answer.len(), 14 + 576);
    assert_eq!((answer[34], answer[35]), (3, 4), "fragmentation needed");
    assert_eq!(u16::from_be_bytes([answer[40], answer[41]]), 1450);
    assert_eq!(answer[26..34], [10, 0, 0, 2, 10, 0, 0, 1], "in the destination's name");

    let large = udp((Mac::of(A), Mac::of(B)), (A6, 1), (B6, 1), 0, &[0; 1451 - 48]);
    assert!(node.send(&large).is_empty());
    let (_, answer) = node.user.received().unwrap();
    assert_eq!(answer.len(), 14 + 1280);
    assert_eq!(answer[54], 2, "packet too big");
    assert_eq!(u32::from_be_bytes([answer[58], answer[59], answer[60], answer[61]]), 1450);
    assert_eq!(node.drops(Drop::TooBig), 2);
}

/// RFC 6040 section 4.1 (encapsulation copies) and 4.2 (figure 4).
#[test]
fn ecn() {
    for tos in 0..4 {
        let mut node = Node::new(tables(network()));
        let inner = udp((Mac::of(A), Mac::of(B)), (A, 1), (B, 1), 0xb8 | tos, b"x");
        assert_eq!(node.send(&inner)[0][15], tos, "DSCP 0 by default");
    }
    let figure4 = [
        (0, [Some(0), Some(0), Some(0), None]),
        (2, [Some(2), Some(1), Some(2), Some(3)]),
        (1, [Some(1), Some(1), Some(1), Some(3)]),
        (3, [Some(3), Some(3), Some(3), Some(3)]),
    ];
    for (from, to) in [(B, A), (B6, A6)] {
        for (inner_ecn, row) in figure4 {
            for (outer_ecn, expected) in row.into_iter().enumerate() {
                let mut node = Node::new(tables(network()));
                let inner = |ecn: u8| udp((Mac::of(B), Mac::of(A)), (from, 1), (to, 1), 0xb8 | ecn, b"x");
                let frame = vxlan(&Encapsulation::default(), B, A, VNI, outer_ecn as u8, &inner(inner_ecn));
                assert_eq!(node.receive(&frame), expected.map(inner), "inner {inner_ecn}, outer {outer_ecn}");
                if expected.is_none() {
                    node.assert_dropped(Drop::Ecn);
                }
            }
        }
    }
}

#[test]
fn learning() {
    let foreign = Mac([0x0e, 1, 2, 3, 4, 5]);
    let mut network = network();
    network.learning = true;
    let mut node = Node::new(tables(network));
    let inner = udp((foreign, Mac::of(A)), (B, 1), (A, 1), 0, b"x");
    assert!(node.receive(&wrap(&inner)).is_some());
    match node.events.try_recv() {
        Ok(Event::Learned { slot: 0, mac, vtep: B, .. }) => assert_eq!(mac, foreign),
        _ => panic!("not told"),
    }
    // Unknown: flooded, to B and (next hop unknown) C.
    let outer = udp((Mac::of(A), foreign), (A, 1), (B, 1), 0, b"x");
    assert_eq!(node.send(&outer).len(), 1);

    let learned = Arc::new(Learned { vtep: B, seen: 0.into() });
    let mut tables = (*node.tables).clone();
    let mut network = self::network();
    network.learning = true;
    network.fdb.insert(foreign, learned.clone());
    tables.networks = vec![Some(Arc::new(network))];
    node.worker.set_tables(Arc::new(tables));
    while node.events.try_recv().is_ok() {}
    node.now += Duration::from_secs(7);
    assert!(node.receive(&wrap(&inner)).is_some());
    assert!(node.events.try_recv().is_err(), "known");
    assert_eq!(learned.seen.load(std::sync::atomic::Ordering::Relaxed), 7);
    assert_eq!(node.send(&outer).len(), 1);

    // A MAC made from C's address is C's, whoever learns; nor may anybody be us.
    let as_c = udp((Mac::of(C), Mac::of(A)), (B, 1), (A, 1), 0, b"x");
    assert!(node.receive(&wrap(&as_c)).is_none());
    let as_a = udp((Mac::of(A), Mac::of(A)), (B, 1), (A, 1), 0, b"x");
    assert!(node.receive(&wrap(&as_a)).is_none());
    assert_eq!(node.drops(Drop::RxSourceMac), 2);
}

#[test]
fn a_mac_that_moves_is_told_of_at_once() {
    let mut network = network();
    network.learning = true;
    let mut node = Node::new(tables(network));
    let foreign = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 77));
    let inner = udp((Mac([0x0e, 1, 2, 3, 4, 5]), Mac::of(A)), (foreign, 1), (A, 1), 0, b"x");
    for sender in [B, B, C, C, B] {
        assert!(node.receive(&vxlan(&Encapsulation::default(), sender, A, VNI, 0, &inner)).is_some());
    }
    let told = |event| match event {
        Event::Learned { vtep, .. } => Some(vtep),
        _ => None,
    };
    assert_eq!(node.events.try_iter().filter_map(told).collect::<Vec<_>>(), [B, C, B]);
    // Whatever others invent.
    for number in 0..1000_u16 {
        let [high, low] = number.to_be_bytes();
        let invented = udp((Mac([0x0e, 9, 0, 0, high, low]), Mac::of(A)), (foreign, 1), (A, 1), 0, b"x");
        assert!(node.receive(&wrap(&invented)).is_some());
    }
    node.events.try_iter().for_each(drop);
    assert!(node.receive(&vxlan(&Encapsulation::default(), C, A, VNI, 0, &inner)).is_some());
    assert_eq!(node.events.try_iter().filter_map(told).collect::<Vec<_>>(), [C]);
}

#[test]
fn invented_macs_are_told_of_only_so_often() {
    let mut network = network();
    network.learning = true;
    let mut node = Node::new(tables(network));
    let told = |node: &mut Node, macs: std::ops::Range<u16>| {
        for mac in macs.map(u16::to_be_bytes) {
            let source = Mac([0x0e, 0, 0, 0, mac[0], mac[1]]);
            let inner = udp((source, Mac::of(A)), (B, 1), (A, 1), 0, b"x");
            for _ in 0..2 {
                assert!(node.receive(&wrap(&inner)).is_some());
            }
        }
        node.events.try_iter().count()
    };
    assert_eq!(told(&mut node, 0..10), 10, "each once");
    assert_eq!(told(&mut node, 0..1000), LEARNED_RATE as usize - 10);
    node.now += Duration::from_secs(1);
    assert_eq!(told(&mut node, 0..10), 10, "again, for who is still unknown");
}

#[test]
fn a_full_endpoint_and_a_broken_one() {
    let mut node = Node::new(tables(network()));
    for _ in 0..70 {
        assert!(node.wire.deliver(&wrap(&ethernet_arp())));
    }
    node.turn();
    assert_eq!(node.drops(Drop::EndpointFull), 6);
    while node.user.received().is_some() {}
    node.user.remove();
    assert!(node.receive(&wrap(&from_b(b"x"))).is_none());
    assert!(matches!(node.events.try_recv(), Ok(Event::EndpointLost { slot: 0, .. })));
    assert!(node.receive(&wrap(&from_b(b"x"))).is_none());
    assert!(node.events.try_recv().is_err(), "told once");
    assert_eq!(node.drops(Drop::EndpointFull), 8);
}

/// An ARP request from B: GRO leaves it alone.
fn ethernet_arp() -> Vec<u8> {
    arp_request(Mac::of(B), Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1))
}

#[test]
fn a_detached_network_gets_nothing() {
    let mut node = Node::new(tables(network()));
    node.worker.detach(0);
    assert!(node.receive(&wrap(&from_b(b"x"))).is_none());
    node.assert_dropped(Drop::EndpointFull);
}

#[test]
fn super_frames_out_and_in() {
    let mut node = Node::new(tables(network()));
    let payload: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
    let frame = to_b(&payload);
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        gso_type: VnetHeader::GSO_UDP,
        header_length: 42,
        gso_size: 600,
        checksum_start: 34,
        checksum_offset: 6,
    };
    node.user.send(header, &frame);
    node.turn();
    let sent: Vec<_> = std::iter::from_fn(|| node.wire.sent()).collect();
    assert_eq!(sent.iter().map(|frame| frame.len() - 50 - 42).collect::<Vec<_>>(), [600, 600, 600, 200]);
    assert_eq!(node.worker.status().counters.tx_frames.get(), 4);

    for payload in payload.chunks(600) {
        assert!(node.wire.deliver(&wrap(&from_b(payload))));
    }
    node.turn();
    let (header, arrived) = node.user.received().unwrap();
    assert_eq!((header.gso_type, header.gso_size), (VnetHeader::GSO_UDP, 600));
    assert_eq!(arrived[42..], payload);
    assert!(node.user.received().is_none());
    assert_eq!(node.worker.status().counters.rx_frames.get(), 4);
}
