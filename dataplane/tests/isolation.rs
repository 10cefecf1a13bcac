//! Nobody gets in, and nobody gets out: crafted frames against a real data plane, each counted for the right reason.
//! Here from the underlay; from a tenant in `isolation/tenant.rs`; two users on two nodes in `isolation/users.rs`.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;
#[path = "common/frames.rs"]
mod frames;
#[path = "isolation/tenant.rs"]
mod tenant;
#[path = "isolation/users.rs"]
mod users;

use common::NetNs;
use common::cluster::{v4, v6};
use common::engine::{Counted, Engine};
use common::packet::PacketSocket;
use common::traffic::content;
use frames::{arp_request, ethernet, ip, udp, vxlan};
use std::collections::{BTreeMap, HashSet};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;
use uvn_dataplane::config::{Cidr, Encapsulation, Network};
use uvn_dataplane::tap::Tap;
use uvn_wire::ethernet::{Mac, ethertype};
use uvn_wire::ipv4::protocol;
use uvn_wire::vxlan::{PORT, Vni};

/// The users. Both have the same addresses.
const USERS: [u32; 2] = [1234, 9876];
/// This node's overlay addresses; its VTEP addresses too.
const A: IpAddr = v4(1);
const A6: IpAddr = v6(1);
/// Allowed VTEPs: B also has B6 in the overlay.
const B: IpAddr = v4(2);
const B6: IpAddr = v6(2);
const C: IpAddr = v4(3);
const D6: IpAddr = v6(4);

/// How often each crafted frame is sent.
const TIMES: u64 = 3;
/// For what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node with two users, whose kernels are silent, and a hostile machine on its wire.
struct Rig {
    engine: Engine,
    /// The attacker's. It sees all that the node sends.
    wire: PacketSocket,
    /// What the XDP program passes to the host.
    host: PacketSocket,
    /// Bound to the VXLAN port on the host.
    port: UdpSocket,
    endpoints: [PacketSocket; 2],
    nic: Mac,
    _netns: Vec<NetNs>,
}

/// What becomes of a crafted frame.
#[derive(Clone, Copy)]
enum Fate {
    /// It is not ours: the host has it.
    Host,
    /// The XDP program drops it, with this verdict.
    Filtered(&'static str),
    /// The worker drops it, for this reason.
    Dropped(&'static str),
    /// This user gets it.
    Delivered(usize),
}

impl Rig {
    fn new() -> Rig {
        let (node, outside) = (NetNs::new("node"), NetNs::new("outside"));
        let users = USERS.map(|_| NetNs::new("user"));
        outside.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        node.veth("em1", &outside, "wire");
        let nic = Mac([2, 0, 0, 0, 0, 1]);
        node.ip(&format!("link set em1 address {nic}"));
        node.ip(&format!("addr add {A}/24 dev em1"));
        node.ip(&format!("addr add {A6}/64 dev em1 nodad"));
        // So the node's kernel asks nobody.
        for vtep in [B, C, D6] {
            node.ip(&format!("neigh add {vtep} lladdr 02:00:00:00:00:02 nud permanent dev em1"));
        }
        let mut engine = Engine::start(
            &node,
            &format!(
                r#"
                nic = "em1"
                vtep = ["{A}", "{A6}"]
                [peers]
                vtep = [
                    {{ address = "{B}", overlay = ["{B}", "{B6}"] }},
                    {{ address = "{C}" }},
                    {{ address = "{D6}" }},
                ]
                "#
            ),
        );
        for (vni, user) in USERS.iter().zip(&users) {
            // A device without an address: its kernel says nothing.
            user.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
            let tap = user.run(|| Tap::open("uvn", 1)).unwrap().remove(0);
            user.ip("link set uvn up");
            let network = Network {
                vni: Vni::new(*vni).unwrap(),
                addresses: vec![Cidr { address: A, prefix: 24 }, Cidr { address: A6, prefix: 64 }],
                device: None,
                peers: vec![B],
                group: None,
                learning: false,
                max_addresses: 16,
                ageing: 300,
                flood_rate: 1000,
            };
            engine.client().add_network(&network, &[tap.as_fd()]).unwrap();
        }
        engine.wait_for_hops();
        let port = node.run(|| UdpSocket::bind(("::", PORT)).unwrap());
        port.set_nonblocking(true).unwrap();
        let endpoints = [0, 1].map(|user: usize| PacketSocket::new(&users[user], "uvn"));
        let (wire, host) = (PacketSocket::new(&outside, "wire"), PacketSocket::new(&node, "em1"));
        let mut netns = vec![node, outside];
        netns.extend(users);
        Rig { engine, wire, host, port, endpoints, nic, _netns: netns }
    }

    /// Sends frames to the node's NIC, and returns what was counted of them.
    fn send<'a>(&self, frames: impl ExactSizeIterator<Item = &'a [u8]>) -> Counted {
        let before = self.engine.counted();
        let count = frames.len() as u64;
        frames.for_each(|frame| self.wire.send(frame));
        let after =
            self.engine.counted_when("the crafted frames", |counted| counted.seen() >= before.seen() + count);
        let counted = after.since(&before);
        assert_eq!(counted.seen(), count, "frames that the test did not send");
        counted
    }

    /// The next frame that the node sends.
    fn answer(&self, timeout: Duration) -> Option<Vec<u8>> {
        // The multicast listener reports of its kernel come when they like.
        let is_report = |frame: &[u8]| frame[..6] == [0x33, 0x33, 0, 0, 0, 0x16];
        iter::from_fn(|| self.wire.receive(timeout)).find(|frame| !is_report(frame))
    }

    /// The next frame that the host gets.
    fn passed(&self, timeout: Duration) -> Option<Vec<u8>> {
        iter::from_fn(|| self.host.receive(timeout)).find(|frame| frame[6..12] != self.nic.0)
    }

    /// Sends a frame a few times, and asserts that all that happens is its fate.
    fn assert_fate(&self, name: &str, frame: &[u8], fate: Fate) {
        let frame = [&self.nic.0, &frame[6..]].concat();
        let counted = self.send(iter::repeat_n(&frame[..], TIMES as usize));
        let count = |name: &str| BTreeMap::from([(name.to_owned(), TIMES)]);
        let expected = match fate {
            Fate::Host => Counted { xdp: count("xdp_pass"), ..Counted::default() },
            Fate::Filtered(verdict) => Counted { xdp: count(verdict), ..Counted::default() },
            Fate::Dropped(reason) => {
                Counted { xdp: count("xdp_redirected"), drops: count(reason), ..Counted::default() }
            }
            Fate::Delivered(_) => {
                Counted { xdp: count("xdp_redirected"), rx_frames: TIMES, ..Counted::default() }
            }
        };
        assert_eq!(counted, expected, "{name}");
        for (user, endpoint) in self.endpoints.iter().enumerate() {
            let got = received(endpoint).collect::<Vec<_>>();
            let is_his = matches!(fate, Fate::Delivered(to) if to == user);
            assert_eq!(got.len() as u64, if is_his { TIMES } else { 0 }, "{name}: at user {user}");
            assert!(got.iter().all(|got| frame.ends_with(got)), "{name}: other content");
        }
        if let Fate::Host = fate {
            for _ in 0..TIMES {
                assert!(self.passed(PATIENCE).is_some(), "{name}");
            }
        }
        assert_eq!(self.passed(Duration::ZERO), None, "{name}: at the host");
        assert_eq!(self.answer(Duration::ZERO), None, "{name}: answered");
        assert!(self.port.recv(&mut [0]).is_err(), "{name}: at the host's port");
    }
}

/// What has arrived by now.
fn received(socket: &PacketSocket) -> impl Iterator<Item = Vec<u8>> {
    iter::from_fn(|| socket.receive(Duration::ZERO))
}

/// An echo reply, which nobody answers and GRO leaves alone.
fn reply(macs: (Mac, Mac), from: IpAddr, to: IpAddr, tos: u8) -> Vec<u8> {
    let (kind, protocol) = if from.is_ipv4() { (0, protocol::ICMP) } else { (129, protocol::ICMPV6) };
    let (ethertype, packet) = ip(from, to, protocol, tos, &[&[kind, 0, 0, 0][..], &[7; 40]].concat());
    ethernet(macs.0, macs.1, ethertype, &packet)
}

/// What B would send to the user.
fn genuine() -> Vec<u8> {
    reply((Mac::of(B), Mac::of(A)), B, A, 0)
}

/// From one VTEP to us, over IPv4 or IPv6.
fn wrapped(from: IpAddr, vni: u32, inner: &[u8]) -> Vec<u8> {
    vxlan(&Encapsulation::default(), from, if from.is_ipv4() { A } else { A6 }, vni, 0, inner)
}

fn edited(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    changes.iter().for_each(|(at, byte)| frame[*at] = *byte);
    frame
}

type Case = (&'static str, Vec<u8>, Fate);

fn outer_cases() -> Vec<Case> {
    use Fate::{Dropped, Filtered, Host};
    let good = wrapped(B, USERS[0], &genuine());
    let good6 = wrapped(D6, USERS[0], &reply((Mac::of(D6), Mac::of(A)), D6, A6, 0));
    let edit = |changes: &[(usize, u8)]| edited(&good, changes);
    let edit6 = |changes: &[(usize, u8)]| edited(&good6, changes);
    let tagged = |tag: [u8; 2]| [&good[..12], &tag, &[0, 7], &good[12..]].concat();
    let mapped: IpAddr = "::ffff:10.0.0.2".parse().unwrap();
    let unknown6: IpAddr = "fd00:10::9".parse().unwrap();
    vec![
        ("genuine", good.clone(), Fate::Delivered(0)),
        ("genuine over IPv6", good6.clone(), Fate::Delivered(0)),
        ("the other user's VNI", wrapped(B, USERS[1], &genuine()), Fate::Delivered(1)),
        ("foreign VNI", wrapped(B, 4242, &genuine()), Filtered("xdp_unknown_vni")),
        ("VNI 0", wrapped(B, 0, &genuine()), Filtered("xdp_unknown_vni")),
        ("VNI with another high byte", edit(&[(46, 1)]), Filtered("xdp_unknown_vni")),
        ("foreign VNI from a stranger", wrapped(v4(9), 4242, &genuine()), Filtered("xdp_unknown_vni")),
        ("stranger", wrapped(v4(9), USERS[0], &genuine()), Filtered("xdp_unknown_vtep")),
        ("stranger over IPv6", wrapped(unknown6, USERS[0], &genuine()), Filtered("xdp_unknown_vtep")),
        ("our own address", wrapped(A, USERS[0], &genuine()), Filtered("xdp_unknown_vtep")),
        // One key in the XDP program's map, and yet not the VTEP.
        ("IPv4-mapped VTEP", wrapped(mapped, USERS[0], &genuine()), Dropped("rx_unknown_vtep")),
        ("no I flag", edit(&[(42, 0)]), Filtered("xdp_bad_flags")),
        ("reserved flag", edit(&[(42, 0x0c)]), Dropped("rx_bad_flags")),
        ("reserved bytes", edit(&[(44, 1)]), Dropped("rx_bad_flags")),
        ("last reserved byte", edit(&[(49, 1)]), Dropped("rx_bad_flags")),
        ("UDP length without VXLAN", edit(&[(38, 0), (39, 15)]), Filtered("xdp_bad_length")),
        ("UDP length of headers alone", edit(&[(38, 0), (39, 16)]), Dropped("rx_bad_length")),
        ("UDP length beyond the packet", edit(&[(38, 1)]), Dropped("rx_bad_length")),
        ("IP length beyond the frame", edit(&[(16, 1)]), Dropped("rx_bad_length")),
        ("wrong checksum", edit(&[(40, 1)]), Dropped("rx_outer_checksum")),
        ("wrong header checksum", edit(&[(22, good[22] ^ 1)]), Dropped("rx_outer_checksum")),
        ("wrong checksum over IPv6", edit6(&[(60, !good6[60])]), Dropped("rx_outer_checksum")),
        ("no checksum over IPv6", edit6(&[(60, 0), (61, 0)]), Dropped("rx_outer_checksum")),
        ("VLAN", tagged([0x81, 0]), Host),
        ("QinQ", tagged([0x88, 0xa8]), Host),
        ("first fragment", edit(&[(20, 0x20)]), Host),
        ("later fragment", edit(&[(20, 0), (21, 9)]), Host),
        // The UDP header becomes a fragment header: the last one of its packet, by the missing bit.
        ("fragment over IPv6", edit6(&[(20, 44), (57, 0xb0)]), Host),
        ("header too short", edit(&[(14, 0x44)]), Host),
        ("other version", edit(&[(14, 0x65)]), Host),
        ("LLDP", edit(&[(12, 0x88), (13, 0xcc)]), Host),
    ]
}

fn inner_cases() -> Vec<Case> {
    use Fate::Dropped;
    let inner = |source: Mac, from: IpAddr, to: IpAddr| {
        wrapped(B, USERS[0], &reply((source, Mac::of(A)), from, to, 0))
    };
    let ours = (Mac::of(B), Mac::of(A));
    let other = |ethertype: u16| wrapped(B, USERS[0], &ethernet(ours.0, ours.1, ethertype, &[0; 60]));
    let nested = wrapped(C, USERS[1], &genuine());
    let to_port = |from: IpAddr, to: IpAddr| udp(ours, (from, 50_000), (to, PORT), 0, &nested[42..]);
    let datagram = to_port(B6, A6)[54..].to_vec();
    // Hop-by-hop options (RFC 8200 section 4.3) in front of UDP: two bytes, padding.
    let hidden = ip(B6, A6, 0, 0, &[&[17, 0, 1, 4, 0, 0, 0, 0], &datagram[..]].concat()).1;
    let first_fragment = edited(&to_port(B, A), &[(20, 0x20)]);
    let (IpAddr::V4(a), IpAddr::V4(c)) = (A, C) else { unreachable!() };
    let claims_c = arp_request(Mac::of(B), c, a);
    let as_c = edited(&claims_c, &[(22 + 5, 3)]);
    vec![
        ("random inner MAC", inner(Mac([0x52, 0x54, 0, 1, 2, 3]), B, A), Dropped("rx_inner_source_mac")),
        ("inner MAC of another VTEP", inner(Mac::of(C), C, A), Dropped("rx_inner_source_mac")),
        ("inner MAC of the endpoint", inner(Mac::of(A), A, A), Dropped("rx_inner_source_mac")),
        ("inner MAC of a group", inner(Mac([3, 0x75, 10, 0, 0, 2]), B, A), Dropped("rx_inner_source_mac")),
        ("inner IP of another VTEP", inner(Mac::of(B), C, A), Dropped("rx_inner_source_ip")),
        ("inner IP of the endpoint", inner(Mac::of(B), A, A), Dropped("rx_inner_source_ip")),
        ("inner IP of nobody", inner(Mac::of(B), v4(77), A), Dropped("rx_inner_source_ip")),
        ("inner IPv6 of another VTEP", inner(Mac::of(B), D6, A6), Dropped("rx_inner_source_ip")),
        ("inner IPv6 of nobody", inner(Mac::of(B), v6(77), A6), Dropped("rx_inner_source_ip")),
        ("ARP for another's address", wrapped(B, USERS[0], &claims_c), Dropped("rx_inner_source_ip")),
        ("ARP with another's MAC", wrapped(B, USERS[0], &as_c), Dropped("rx_inner_source_mac")),
        (
            "for another endpoint",
            wrapped(B, USERS[0], &reply((Mac::of(B), Mac::of(C)), B, A, 0)),
            Dropped("rx_not_for_endpoint"),
        ),
        ("VLAN inside", other(ethertype::VLAN), Dropped("rx_inner_protocol")),
        ("LLDP inside", other(0x88cc), Dropped("rx_inner_protocol")),
        ("802.3 inside", other(60), Dropped("rx_inner_protocol")),
        ("nested VXLAN", wrapped(B, USERS[0], &to_port(B, A)), Dropped("rx_nested_vxlan")),
        ("nested VXLAN over IPv6", wrapped(B, USERS[0], &to_port(B6, A6)), Dropped("rx_nested_vxlan")),
        (
            "nested VXLAN behind options",
            wrapped(B, USERS[0], &ethernet(ours.0, ours.1, ethertype::IPV6, &hidden)),
            Dropped("rx_nested_vxlan"),
        ),
        (
            "nested VXLAN in a first fragment",
            wrapped(B, USERS[0], &first_fragment),
            Dropped("rx_nested_vxlan"),
        ),
        (
            "congestion not understood",
            vxlan(&Encapsulation::default(), B, A, USERS[0], 3, &genuine()),
            Dropped("rx_ecn"),
        ),
        (
            "inner length beyond the frame",
            edited(&wrapped(B, USERS[0], &genuine()), &[(66, 1)]),
            Dropped("rx_bad_length"),
        ),
    ]
}

#[test]
fn every_crafted_frame_meets_its_fate() {
    let rig = Rig::new();
    for (name, frame, fate) in outer_cases().into_iter().chain(inner_cases()) {
        rig.assert_fate(name, &frame, fate);
    }
    // Nothing of it was counted for the other user but the one kind of frame that was his.
    let other = rig.engine.network(USERS[1]).counts;
    assert_eq!((other.rx_frames, other.drops), (TIMES, BTreeMap::new()));
}

#[test]
fn frames_cut_at_every_byte() {
    let rig = Rig::new();
    let frames = [
        (wrapped(B, USERS[0], &genuine()), 34),
        (wrapped(D6, USERS[0], &reply((Mac::of(D6), Mac::of(A)), D6, A6, 0)), 54),
    ];
    for (frame, headers) in frames {
        for length in 14..frame.len() {
            let fate = match length {
                _ if length < headers + 8 => Fate::Host,
                _ if length < headers + 16 => Fate::Filtered("xdp_bad_length"),
                _ => Fate::Dropped("rx_bad_length"),
            };
            rig.assert_fate(&format!("cut to {length} bytes"), &frame[..length], fate);
        }
        rig.assert_fate("whole", &frame, Fate::Delivered(0));
    }
}

/// The host may put fragments together; the data plane never hears of them.
#[test]
fn a_fragmented_frame_reaches_no_user() {
    let rig = Rig::new();
    let frame = wrapped(B, USERS[0], &genuine());
    let (first, rest) = frame[34..].split_at(32);
    let mut fragments = Vec::new();
    for (part, field) in [(first, 0x2000_u16), (rest, 4)] {
        let [high, low] = field.to_be_bytes();
        let (_, mut packet) = ip(B, A, protocol::UDP, 0, part);
        packet = edited(&packet, &[(6, high), (7, low)]);
        packet[10..12].fill(0);
        let checksum = uvn_wire::checksum::Sum::of(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        fragments.push(ethernet(Mac::of(B), rig.nic, ethertype::IPV4, &packet));
    }
    let counted = rig.send(fragments.iter().map(Vec::as_slice));
    assert_eq!(counted, Counted { xdp: BTreeMap::from([("xdp_pass".into(), 2)]), ..Counted::default() });
    rig.port.set_nonblocking(false).unwrap();
    rig.port.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut datagram = [0; 200];
    let length = rig.port.recv(&mut datagram).unwrap();
    assert_eq!(datagram[..length], frame[42..], "it was whole");
    assert!(rig.endpoints.iter().all(|endpoint| endpoint.receive(Duration::ZERO).is_none()));
}

/// What may become of a frame whose byte at `at` was changed.
/// The strictest decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// It must arrive.
    None,
    /// It may arrive.
    Any,
    /// It must not arrive.
    Refused,
}

/// Said anew, not with the data plane's own code: which bytes of an echo reply in VXLAN over IPv4 matter.
fn effect(frame: &[u8], at: usize) -> Effect {
    let byte = frame[at];
    match at {
        // Ethernet addresses are the NIC's to check; the source port is a hash.
        0..=11 | 34 | 35 => Effect::None,
        // Protocol, the IPv4 header (by its checksum), port, lengths, UDP's checksum, the VXLAN header.
        12..=49 => Effect::Refused,
        // Somebody else's, unless it is a group.
        50..=55 if frame[50] & 1 == 0 => Effect::Refused,
        50..=55 => Effect::Any,
        // The source's MAC and the protocol.
        56..=63 => Effect::Refused,
        64 if byte >> 4 != 4 => Effect::Refused,
        // An address of the subnet that is not his; others come from behind him.
        76..=79 if frame[76..79] == [10, 0, 0] => Effect::Refused,
        64..=67 | 70 | 71 | 73 | 76..=79 => Effect::Any,
        _ => Effect::None,
    }
}

/// What must become of a frame that differs from a good one.
fn effects(frame: &[u8], good: &[u8]) -> Effect {
    let changed = (0..good.len() - ID).filter(|at| frame[*at] != good[*at]);
    changed.map(|at| effect(frame, at)).max().unwrap_or(Effect::None)
}

/// The last bytes of a frame: which one it is.
const ID: usize = 4;

#[test]
fn ten_thousand_changed_frames() {
    const FRAMES: u32 = 10_000;
    const BATCH: usize = 100;
    let rig = Rig::new();
    let good = [&rig.nic.0, &wrapped(B, USERS[0], &genuine())[6..]].concat();
    let mut random = content(FRAMES as usize * 9, 0x75_766e).into_iter();
    let mut random = || usize::from(random.next().unwrap());
    let frames: Vec<Vec<u8>> = (0..FRAMES)
        .map(|number| {
            let mut frame = good.clone();
            frame.truncate(good.len() - ID);
            for _ in 0..=random() % 4 {
                let at = random() % frame.len();
                frame[at] = random() as u8;
            }
            [frame, number.to_be_bytes().to_vec()].concat()
        })
        .collect();
    let mut seen_effects = [0; 3];
    for batch in frames.chunks(BATCH) {
        let counted = rig.send(batch.iter().map(Vec::as_slice));
        let drops: u64 = counted.drops.values().sum();
        assert_eq!(counted.verdict("xdp_redirected"), counted.rx_frames + drops, "{counted:?}");
        let arrived: HashSet<Vec<u8>> = received(&rig.endpoints[0]).collect();
        assert_eq!(arrived.len() as u64, counted.rx_frames);
        for frame in batch {
            let effect = effects(frame, &good);
            seen_effects[effect as usize] += 1;
            // What comes out of congestion marks may differ from what went in.
            let is_there = arrived.iter().any(|inner| inner.ends_with(&frame[frame.len() - ID..]));
            match effect {
                Effect::None => assert!(is_there, "{frame:02x?} did not arrive"),
                Effect::Refused => assert!(!is_there, "{frame:02x?} arrived"),
                Effect::Any => {}
            }
        }
        received(&rig.host).for_each(drop);
    }
    // The test means something.
    assert!(seen_effects.iter().all(|count| *count > 500), "{seen_effects:?}");
    assert!(rig.endpoints[1].receive(Duration::ZERO).is_none());
    assert!(rig.port.recv(&mut [0]).is_err());
    // The host says that it does not serve other ports, as it would without us.
    while let Some(answer) = rig.answer(Duration::ZERO) {
        assert_eq!((&answer[12..14], answer[23]), (&[8, 0][..], protocol::ICMP), "{answer:02x?}");
    }
}

#[test]
fn random_bytes_inside() {
    let rig = Rig::new();
    let random = content(256 * 200, 42);
    let frames: Vec<Vec<u8>> = random
        .chunks(200)
        .enumerate()
        .map(|(length, inner)| wrapped(B, USERS[0], &inner[..length % 200]))
        .collect();
    let counted = rig.send(frames.iter().map(Vec::as_slice));
    assert_eq!((counted.rx_frames, counted.lost), (0, 0));
    assert_eq!(counted.drops.values().sum::<u64>(), 256, "{counted:?}");
    assert!(rig.endpoints.iter().all(|endpoint| endpoint.receive(Duration::ZERO).is_none()));
    assert_eq!(rig.passed(Duration::ZERO), None);
}
