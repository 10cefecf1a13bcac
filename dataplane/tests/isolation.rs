//! Nobody gets in, and nobody gets out: crafted frames against a real data plane, each counted for the right reason.
//! Here from the underlay; from a tenant in `isolation/tenant.rs`; two users on two nodes in `isolation/users.rs`.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

#[path = "isolation/cases.rs"]
mod cases;
mod common;
#[path = "../engine/tests/common/frames.rs"]
mod frames;
#[path = "isolation/tenant.rs"]
mod tenant;
#[path = "isolation/users.rs"]
mod users;

use cases::{A, A6, B, B6, C, D6, Fate, USERS, edited, genuine, inner_cases, outer_cases, reply, wrapped};
use common::cluster::{network, v4, v6};
use common::engine::{Counted, Engine};
use common::packet::PacketSocket;
use common::traffic::content;
use frames::{arp_request, ethernet, ip, udp};
use std::collections::{BTreeMap, HashSet};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;
use uvn_dataplane::port::tap::Tap;
use uvn_rig::test::NetNs;
use uvn_wire::ethernet::{Mac, ethertype};
use uvn_wire::ipv4::protocol;
use uvn_wire::vxlan::PORT;

/// How often each crafted frame is sent.
const TIMES: u64 = 3;
/// For what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Either must stand all of it.
const GEARS: [&str; 2] = ["engine", "shortcut"];

/// A node with two users, whose kernels are silent, and a hostile machine on its wire.
struct Rig {
    gear: &'static str,
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

impl Rig {
    fn new(gear: &'static str) -> Rig {
        let (node, outside) = (NetNs::new("node"), NetNs::new("outside"));
        let users = USERS.map(|_| NetNs::new("user"));
        outside.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        node.veth("em1", &outside, "wire");
        let nic = frames::NIC;
        node.ip(&format!("link set em1 address {nic}"));
        node.ip(&format!("addr add {A}/24 dev em1"));
        node.ip(&format!("addr add {A6}/64 dev em1 nodad"));
        // So the node's kernel asks nobody.
        for vtep in [B, C, D6] {
            node.ip(&format!("neigh add {vtep} lladdr 02:00:00:00:00:02 nud permanent dev em1"));
        }
        // Before the shortcut takes the port for GRO: it works without.
        let port = node.run(|| UdpSocket::bind(("::", PORT)).unwrap());
        port.set_nonblocking(true).unwrap();
        let mut engine = Engine::start(
            &node,
            &format!(
                r#"
                nic = "em1"
                vtep = ["{A}", "{A6}"]
                path = "{gear}"
                [peers]
                vtep = [
                    {{ address = "{B}", overlay = ["{B}", "{B6}"] }},
                    {{ address = "{C}" }},
                    {{ address = "{D6}" }},
                ]
                "#
            ),
        );
        // The shortcut serves the NIC's own namespace.
        let places = [0, 1].map(|user: usize| match gear {
            "engine" => (&users[user], "uvn".to_owned()),
            _ => (&node, format!("u{}", USERS[user])),
        });
        for (vni, (user, device)) in USERS.iter().zip(&places) {
            // A device without an address: its kernel says nothing.
            user.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
            let tap = user.run(|| Tap::open(device, 1)).unwrap().remove(0);
            user.ip(&format!("link set {device} up"));
            let network = network(*vni, [A, A6], B);
            engine.client().add_network(&network, &[tap.as_fd()]).unwrap();
        }
        engine.wait_for_hops();
        engine.wait_for_gear();
        let carried = USERS.map(|vni| engine.network(vni).shortcut);
        assert_eq!(carried, [gear == "shortcut"; 2], "each has its gear");
        let endpoints = places.map(|(netns, device)| PacketSocket::new(netns, &device));
        let (wire, host) = (PacketSocket::new(&outside, "wire"), PacketSocket::new(&node, "em1"));
        let mut netns = vec![node, outside];
        netns.extend(users);
        Rig { gear, engine, wire, host, port, endpoints, nic, _netns: netns }
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

    /// The next frame that the host gets. A packet socket sees what XDP left over; tc comes after it, so that there the
    /// counters, the host's port and its answers must do.
    fn passed(&self, timeout: Duration) -> Option<Vec<u8>> {
        let passed = iter::from_fn(|| self.host.receive(timeout)).find(|frame| frame[6..12] != self.nic.0);
        passed.filter(|_| self.gear == "engine")
    }

    /// The frames that a user has got, of which so many were counted.
    fn arrived(&self, user: usize, count: u64) -> Vec<Vec<u8>> {
        let endpoint = &self.endpoints[user];
        let mut got: Vec<_> = (0..count).map_while(|_| endpoint.receive(PATIENCE)).collect();
        got.extend(received(endpoint));
        got
    }

    /// Sends a frame a few times, and asserts that all that happens is its fate.
    fn assert_fate(&self, name: &str, frame: &[u8], fate: Fate) {
        let counted = self.send(iter::repeat_n(frame, TIMES as usize));
        let count = |name: &str| BTreeMap::from([(name.to_owned(), TIMES)]);
        let expected = match fate {
            Fate::Host(name) => Counted { xdp: count(name), ..Counted::default() },
            Fate::Filtered(verdict) => Counted { xdp: count(verdict), ..Counted::default() },
            Fate::Dropped(reason) => {
                Counted { xdp: count("xdp_redirected"), drops: count(reason), ..Counted::default() }
            }
            // Over IPv6 with the checksum that is due there, which is the engine's to verify.
            Fate::Delivered(_)
                if self.gear == "engine" || [12, 16].iter().any(|at| frame[*at..at + 2] == [0x86, 0xdd]) =>
            {
                Counted { xdp: count("xdp_redirected"), rx_frames: TIMES, ..Counted::default() }
            }
            Fate::Delivered(_) => {
                Counted { xdp: count("tc_stripped"), rx_frames: TIMES, ..Counted::default() }
            }
        };
        assert_eq!(counted, expected, "{name}");
        for user in 0..self.endpoints.len() {
            let is_his = matches!(fate, Fate::Delivered(to) if to == user);
            let expected = if is_his { TIMES } else { 0 };
            let got = self.arrived(user, expected);
            assert_eq!(got.len() as u64, expected, "{name}: at user {user}");
            assert!(got.iter().all(|got| frame.ends_with(got)), "{name}: other content");
        }
        if let (Fate::Host(_), "engine") = (fate, self.gear) {
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

#[test]
fn every_crafted_frame_meets_its_fate() {
    GEARS.into_iter().for_each(every_crafted_frame);
}

fn every_crafted_frame(gear: &'static str) {
    let rig = Rig::new(gear);
    for (name, frame, fate) in outer_cases().into_iter().chain(inner_cases()) {
        rig.assert_fate(name, &frame, fate);
    }
    // Nothing of it was counted for the other user but the one kind of frame that was his.
    let other = rig.engine.network(USERS[1]).counts;
    assert_eq!((other.rx_frames, other.drops), (TIMES, BTreeMap::new()));
}

#[test]
fn frames_cut_at_every_byte() {
    let rig = Rig::new("engine");
    let frames = [
        (wrapped(B, USERS[0], &genuine()), 34),
        (wrapped(D6, USERS[0], &reply((Mac::of(D6), Mac::of(A)), D6, A6, 0)), 54),
    ];
    for (frame, headers) in frames {
        for length in 14..frame.len() {
            let fate = match length {
                _ if length < headers + 8 => Fate::Host("xdp_pass"),
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
    GEARS.into_iter().for_each(a_fragmented_frame);
}

fn a_fragmented_frame(gear: &'static str) {
    let rig = Rig::new(gear);
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
    // Only the first one shows its port.
    let xdp = BTreeMap::from([("xdp_fragment".into(), 1), ("xdp_pass".into(), 1)]);
    assert_eq!(counted, Counted { xdp, ..Counted::default() });
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
        // To another host, unless it is a group.
        0..=5 if frame[0] & 1 == 0 => Effect::Refused,
        // The source is not checked; the source port is a hash.
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
    GEARS.into_iter().for_each(changed_frames);
}

fn changed_frames(gear: &'static str) {
    const FRAMES: u32 = 10_000;
    const BATCH: usize = 100;
    let rig = Rig::new(gear);
    let good = wrapped(B, USERS[0], &genuine());
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
        assert_eq!(counted.taken(), counted.rx_frames + drops, "{counted:?}");
        assert_eq!(counted.verdict("tc_stripped") > 0, gear == "shortcut", "{counted:?}");
        let arrived: HashSet<Vec<u8>> = rig.arrived(0, counted.rx_frames).into_iter().collect();
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
    let rig = Rig::new("shortcut");
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
