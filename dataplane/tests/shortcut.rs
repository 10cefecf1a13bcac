//! The shortcut's program on the NIC against the engine's judge, frame by frame (BPF_PROG_TEST_RUN): what it strips and
//! passes on is what [`decap`] accepts, to the same network and with the same bytes. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

#[path = "isolation/cases.rs"]
mod cases;
mod common;
#[path = "../engine/tests/common/frames.rs"]
mod frames;
#[path = "common/judge.rs"]
mod judge;

use cases::{A, A6, B, B6, D6, Fate, USERS, edited, genuine, inner_cases, outer_cases};
use common::cluster::v4;
use common::traffic::content;
use frames::{ethernet, fragment, ip, udp, vxlan};
use judge::{Judges, Settings, Taken, encapsulation};
use std::net::IpAddr;
use uvn_api::dataplane::config::Encapsulation;
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::Mac;
use uvn_wire::ipv4::protocol;
use uvn_wire::vxlan::PORT;
use uvn_wire::xdp::{Address, Network, Owner};

/// Inner frames from one VTEP's endpoint to ours: TCP, UDP and ICMP of one family.
fn plain(vtep: IpAddr, from: IpAddr, to: IpAddr, tos: u8) -> [(&'static str, Vec<u8>); 3] {
    let macs = (Mac::of(vtep), Mac::of(A));
    let carry = |protocol: u8, segment: &[u8]| {
        let (ethertype, packet) = ip(from, to, protocol, tos, segment);
        ethernet(macs.0, macs.1, ethertype, &packet)
    };
    let mut tcp = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0].to_vec();
    // A time stamp (RFC 7323), and a payload.
    tcp.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    tcp.extend([7; 40]);
    let (kind, icmp) = if from.is_ipv4() { (0, protocol::ICMP) } else { (129, protocol::ICMPV6) };
    [
        ("TCP", carry(protocol::TCP, &tcp)),
        ("UDP", udp(macs, (from, 5000), (to, 9), tos, &[7; 40])),
        ("ICMP", carry(icmp, &[&[kind, 0, 0, 0][..], &[7; 40]].concat())),
    ]
}

/// Fragments of a plain frame: the first, one in the middle, the last, and of IPv6 the only one (RFC 6946).
fn fragments(inner: &[u8]) -> Vec<Vec<u8>> {
    let mut fragments =
        vec![fragment(inner, 0..16, true), fragment(inner, 16..24, true), fragment(inner, 24..48, false)];
    if inner[12] == 0x86 {
        fragments.push(fragment(inner, 0..48, false));
    }
    fragments
}

/// Every kind of frame that the shortcut is for.
fn good(tos: u8, outer_tos: u8) -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    for (vtep, local, from) in [(B, A, [B, B6]), (D6, A6, [v4(4), D6])] {
        for (from, to) in from.into_iter().zip([A, A6]) {
            for (name, inner) in plain(vtep, from, to, tos) {
                let wrapped = |inner: &[u8]| vxlan(&encapsulation(), vtep, local, USERS[0], outer_tos, inner);
                let name = format!("{name} from {from} over {vtep}");
                frames.extend(
                    fragments(&inner).iter().map(|inner| (format!("fragment of {name}"), wrapped(inner))),
                );
                frames.push((name, wrapped(&inner)));
            }
        }
    }
    frames
}

#[test]
fn plain_frames_are_taken() {
    let judges = Judges::new(&Settings::default());
    for (name, frame) in good(0, 0) {
        assert_eq!(judges.judge(&frame), Taken::Gear, "{name}");
    }
    // To the other user, too, and only for what is his.
    let inner = genuine();
    assert_eq!(judges.judge(&vxlan(&encapsulation(), B, A, USERS[1], 0, &inner)), Taken::Gear);
    let traffic = judges.traffic();
    assert_eq!(
        traffic,
        [
            (good(0, 0).len() as u64, good(0, 0).iter().map(|(_, frame)| inner_length(frame)).sum()),
            (1, inner.len() as u64)
        ]
    );
}

fn inner_length(frame: &[u8]) -> u64 {
    frame.len() as u64 - if frame[12] == 8 { 50 } else { 70 }
}

/// With a checksum that covers the payload, outer or over IPv6, a frame is the engine's.
#[test]
fn settings_that_need_the_engine() {
    let judges = Judges::new(&Settings { ipv6_checksum: true, ..Settings::default() });
    let default = Encapsulation::default();
    for (vtep, local, from) in [(B, A, B), (D6, A6, D6)] {
        let [(_, inner), ..] = plain(vtep, from, if from.is_ipv4() { A } else { A6 }, 0);
        let checksum = Encapsulation { checksum: true, ..default };
        assert_eq!(judges.judge(&vxlan(&checksum, vtep, local, USERS[0], 0, &inner)), Taken::Engine);
        let zero = vxlan(&encapsulation(), vtep, local, USERS[0], 0, &inner);
        assert_eq!(judges.judge(&zero), if vtep.is_ipv4() { Taken::Gear } else { Taken::Nobody });
    }
}

/// RFC 6040 section 4.2 from end to end, with a DSCP inside that must stay.
#[test]
fn all_congestion_marks() {
    let judges = Judges::new(&Settings::default());
    for inner in 0..4 {
        for outer in 0..4 {
            for (name, frame) in good(0xb8 | inner, outer) {
                let expected = match (inner, outer) {
                    (0, 3) => Taken::Nobody,
                    // To be changed into ECT(1).
                    (2, 1) => Taken::Engine,
                    _ => Taken::Gear,
                };
                assert_eq!(judges.judge(&frame), expected, "{name}: inner {inner}, outer {outer}");
            }
        }
    }
}

/// A frame, and with its outer checksum of IPv4's header put right, and with none of UDP.
fn variants(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut variants = vec![frame.to_vec()];
    let at = if frame.len() > 60 && frame[12..14] == [8, 0] { 40 } else { 60 };
    if frame.len() > 70 {
        variants.push(edited(frame, &[(at, 0), (at + 1, 0)]));
    }
    variants
        .iter()
        .map(|frame| mended(frame))
        .collect::<Vec<_>>()
        .into_iter()
        .chain(variants.clone())
        .collect()
}

fn mended(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let header = 4 * usize::from(frame[14] & 15);
    if frame[12..14] == [8, 0] && header >= 20 && frame.len() >= 14 + header {
        frame[24..26].fill(0);
        let checksum = Sum::of(&frame[14..14 + header]).checksum();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

#[test]
fn the_attack_list() {
    for settings in
        [Settings::default(), Settings { ipv6_checksum: true, ..Settings::default() }, Settings::ranges()]
    {
        let judges = Judges::new(&settings);
        let mut seen = [0; 3];
        // The kernel takes tags out of frames, but not in BPF_PROG_TEST_RUN.
        let outer = outer_cases().into_iter().filter(|(name, ..)| !name.contains("priority"));
        for (name, frame, fate) in outer.chain(inner_cases()) {
            let taken = judges.judge(&frame);
            seen[taken as usize] += 1;
            // Where all is as in the list.
            if settings == (Settings { ipv6_checksum: true, ..Settings::default() }) {
                let delivered = matches!(fate, Fate::Delivered(_));
                assert_eq!(taken != Taken::Nobody, delivered, "{name}: {taken:?}");
            }
            for frame in variants(&frame) {
                judges.judge(&frame);
            }
        }
        assert!(seen[Taken::Gear as usize] > 0 && seen[Taken::Nobody as usize] > 30, "{seen:?}");
    }
}

/// All fragments of a datagram go one way, unless the first one is refused: without it the others are of no use.
#[test]
fn fragments_of_all_kinds() {
    let judges = Judges::new(&Settings::default());
    let macs = (Mac::of(B), Mac::of(A));
    let frame = |inner: &[u8]| vxlan(&encapsulation(), B, A, USERS[0], 0, inner);
    let mut cases = Vec::new();
    for (name, from, to) in [("IPv4", B, A), ("IPv6", B6, A6)] {
        let header = if from.is_ipv4() { 0 } else { 8 };
        let to_port = udp(macs, (from, 50_000), (to, PORT), 0, &[7; 40]);
        let other = |protocol: u8| {
            let (ethertype, packet) =
                ip(from, to, protocol, 0, &[[protocol, 0, 1, 4, 0, 0, 0, 0]; 6].concat());
            ethernet(macs.0, macs.1, ethertype, &packet)
        };
        let mut case =
            |what: &str, inner: Vec<u8>, taken| cases.push((format!("{name}: {what}"), inner, taken));
        case("to the VXLAN port", fragment(&to_port, 0..16, true), Taken::Nobody);
        case("the rest of it", fragment(&to_port, 16..48, false), Taken::Gear);
        for (protocol, inner) in plain(B, from, to, 0) {
            for shown in 0..=8 {
                let inner = fragment(&inner, 0..shown, true);
                // Shorter ones hide the ports, of which ICMP has none.
                let taken = match shown {
                    8 => Taken::Gear,
                    _ if protocol == "ICMP" => Taken::Engine,
                    _ => Taken::Nobody,
                };
                case(&format!("{protocol}, {shown} bytes"), inner, taken);
            }
            let first = fragment(&inner, 0..16, true);
            for cut in 1..16 {
                case("cut short", first[..first.len() - cut].to_vec(), Taken::Nobody);
            }
            case("padded", [&first[..], &[0; 20]].concat(), Taken::Gear);
            let stranger = edited(&first, &[(if header > 0 { 37 } else { 29 }, 77)]);
            case("of another's address", stranger, Taken::Nobody);
        }
        // What is the engine's whole is so in pieces.
        for protocol in [47, 136] {
            case("another protocol", fragment(&other(protocol), 0..16, true), Taken::Engine);
            case("more of it", fragment(&other(protocol), 16..24, true), Taken::Engine);
        }
        if header > 0 {
            case("the only one, to the VXLAN port", fragment(&to_port, 0..48, false), Taken::Nobody);
            for extension in [0, 43, 60] {
                case("later extension header", fragment(&other(extension), 16..24, true), Taken::Engine);
            }
            case("fragments of fragments", fragment(&other(44), 8..24, true), Taken::Engine);
            let behind_options =
                [&to_port[..20], &[60], &to_port[21..54], &[44, 0, 1, 4, 0, 0, 0, 0]].concat();
            let behind_options = [&behind_options[..], &fragment(&to_port, 8..40, true)[54..]].concat();
            case("behind options", edited(&behind_options, &[(19, 48)]), Taken::Engine);
        }
    }
    for (name, inner, taken) in cases {
        assert_eq!(judges.judge(&frame(&inner)), taken, "{name}: {inner:02x?}");
    }
}

/// The kernel uses the element of a key that is gone for another one at once, while programs still look at it.
#[test]
fn an_element_with_anothers_key_is_nobodys() {
    let judges = Judges::new(&Settings::default());
    let frame = |inner: &[u8]| vxlan(&encapsulation(), B, A, USERS[0], 0, inner);
    let [(_, inner), ..] = plain(B, B, A, 0);
    let (mut networks, mut owners) = (
        judges.map::<u32, [u8; size_of::<Network>()]>("NETWORKS"),
        judges.map::<[u8; size_of::<Address>()], [u8; size_of::<Owner>()]>("OWNERS"),
    );
    let owner = zerocopy::transmute!(Address::from(B));
    let values = (networks.get(&USERS[0], 0).unwrap(), owners.get(&owner, 0).unwrap());
    assert_eq!(judges.judge(&frame(&inner)), Taken::Gear);
    // The key is in front.
    let mut changed = values;
    (changed.0[0], changed.1[12]) = (!changed.0[0], !changed.1[12]);
    networks.insert(USERS[0], changed.0, 0).unwrap();
    assert_eq!(judges.judge(&frame(&inner)), Taken::Engine);
    networks.insert(USERS[0], values.0, 0).unwrap();
    assert_eq!(judges.judge(&frame(&inner)), Taken::Gear);
    owners.insert(owner, changed.1, 0).unwrap();
    assert_eq!(judges.judge(&frame(&inner)), Taken::Engine);
}

/// What the maps' keys, the engine's types or the offsets could confuse.
#[test]
fn look_alikes() {
    let judges = Judges::new(&Settings::default());
    let mapped = |address: IpAddr| match address {
        IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
        address => address,
    };
    let frame = |source: IpAddr, local: IpAddr, inner: &[u8]| {
        vxlan(&encapsulation(), source, local, USERS[0], 0, inner)
    };
    let [(_, from_b), ..] = plain(B, B, A, 0);
    let [(_, from_d), ..] = plain(D6, D6, A6, 0);
    // The MAC of an IPv6 VTEP with B's address as its last four bytes.
    let like_b = edited(&from_b, &[(7, 0x76)]);
    let options = |inner: &[u8]| {
        let outer = frame(B, A, inner);
        let total = (outer.len() - 14 + 20) as u16;
        let mut all = [&outer[..34], &[1; 20], &outer[34..]].concat();
        all[14] = 0x4a;
        all[16..18].copy_from_slice(&total.to_be_bytes());
        // Where IPv6 has its payload's length.
        all[18..20].copy_from_slice(&(total - 40).to_be_bytes());
        mended(&all)
    };
    let cases = [
        ("outer source that looks like IPv4", frame(mapped(B), A6, &like_b), Taken::Nobody),
        ("the same with B's MAC", frame(mapped(B), A6, &from_b), Taken::Nobody),
        ("outer destination that looks like IPv4", frame(D6, mapped(A), &from_d), Taken::Nobody),
        ("options as long as IPv6 is longer", options(&from_b), Taken::Nobody),
        ("the same with an IPv6 VTEP's MAC", options(&like_b), Taken::Nobody),
        ("inner source that looks like IPv4", frame(B, A, &plain(B, mapped(B), A6, 0)[1].1), Taken::Engine),
        ("from beyond the subnet", frame(B, A, &plain(B, [192, 168, 1, 1].into(), A, 0)[1].1), Taken::Engine),
        ("padded", [frame(B, A, &from_b), vec![0; 4]].concat(), Taken::Engine),
    ];
    for (name, frame, taken) in cases {
        assert_eq!(judges.judge(&frame), taken, "{name}");
    }
    let own = Judges::new(&Settings::ranges());
    for (vtep, from) in [(A, A), (A6, A6)] {
        let inner = plain(vtep, from, if from.is_ipv4() { A } else { A6 }, 0);
        own.judge(&frame(vtep, if from.is_ipv4() { A } else { A6 }, &inner[0].1));
    }
}

#[test]
fn frames_cut_at_every_byte() {
    let judges = Judges::new(&Settings::default());
    for (name, frame) in good(0, 0) {
        // BPF_PROG_TEST_RUN takes no frame without a whole IP header.
        for length in 54..frame.len() {
            assert_eq!(judges.judge(&frame[..length]), Taken::Nobody, "{name} cut to {length} bytes");
            // And with lengths that say so.
            let mut frame = frame[..length].to_vec();
            let ipv4 = frame[12] == 8;
            if length >= if ipv4 { 42 } else { 62 } {
                let (field, ip, udp) = if ipv4 { (16, length - 14, 38) } else { (18, length - 54, 58) };
                frame[field..field + 2].copy_from_slice(&(ip as u16).to_be_bytes());
                let rest = length - udp + 4;
                frame[udp..udp + 2].copy_from_slice(&(rest as u16).to_be_bytes());
                assert_eq!(judges.judge(&mended(&frame)), Taken::Nobody, "{name} of {length} bytes");
            }
        }
    }
}

#[test]
fn forty_thousand_changed_frames() {
    const EACH: usize = 40_000;
    let (good, judges) =
        (good(0, 0), [Settings::default(), Settings::ranges()].map(|settings| Judges::new(&settings)));
    let mut random = content(EACH * 16, 0x67_6561).into_iter();
    let mut random = || usize::from(random.next().unwrap());
    let mut seen = [0; 3];
    for number in 0..EACH {
        let mut frame = good[number % good.len()].1.clone();
        for _ in 0..=random() % 4 {
            // Headers are all within reach of a byte.
            let at = random() % frame.len().min(150);
            frame[at] = match random() % 4 {
                0 => frame[at] ^ 1 << (random() % 8),
                1 => frame[(at + 2) % frame.len()],
                _ => random() as u8,
            };
        }
        if random() % 2 == 0 {
            frame = mended(&frame);
        }
        seen[judges[number % judges.len()].judge(&frame) as usize] += 1;
    }
    // The test means something.
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}
