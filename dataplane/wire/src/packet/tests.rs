use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::IntoBytes;

extern crate std;
use std::vec::Vec;

const ETHERNET: usize = crate::ethernet::HEADER;

fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [[2; 6], [4; 6]].concat();
    frame.extend([8, 0]);
    let header = Ipv4 {
        version_ihl: ipv4::VERSION_IHL,
        tos: 0,
        total_length: ((ipv4::HEADER + payload.len()) as u16).into(),
        identification: 7.into(),
        fragment: fragment.into(),
        ttl: 64,
        protocol,
        checksum: 0.into(),
        source: [10, 0, 0, 1],
        destination: [10, 0, 0, 2],
    };
    frame.extend(header.as_bytes());
    frame.extend(payload);
    frame
}

fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [[2; 6], [4; 6]].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next_header, 64]);
    frame.extend([[0xfd; 16], [0xfe; 16]].concat());
    frame.extend(payload);
    frame
}

fn ip(frame: &[u8]) -> Ip<'_> {
    match parse(frame) {
        Ok(Packet::Ip(ip)) => ip,
        other => unreachable!("{other:?}"),
    }
}

const PORTS: [u8; 8] = [0x12, 0xb5, 0, 80, 0, 8, 0, 0];

#[test]
fn ipv4_with_padding() {
    let mut frame = v4(protocol::UDP, 0, &PORTS);
    frame.resize(60, 0xaa);
    let ip = ip(&frame);
    assert_eq!((ip.protocol, ip.fragment, ip.offset, ip.end()), (protocol::UDP, Fragment::None, 34, 42));
    assert_eq!((ip.transport, ip.ports()), (&PORTS[..], Some((4789, 80))));
    assert_eq!((ip.source(), ip.destination()), ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
}

#[test]
fn ipv4_fragments() {
    let more = v4(protocol::UDP, ipv4::MORE_FRAGMENTS, &PORTS);
    assert_eq!((ip(&more).fragment, ip(&more).ports()), (Fragment::First, Some((4789, 80))));
    let last = v4(protocol::UDP, 185, &PORTS[..3]);
    assert_eq!((ip(&last).fragment, ip(&last).ports()), (Fragment::Later, None));
    let port = |frame: &[u8]| source_port(&parse(frame).unwrap(), frame);
    assert_eq!(port(&more), port(&last));
    assert_ne!(port(&more), port(&v4(protocol::UDP, 0, &PORTS)));
}

#[test]
fn pieces() {
    let piece = |identification, offset, length, more| Some(Piece { identification, offset, length, more });
    let of = |frame: &[u8]| ip(frame).piece(frame);
    assert_eq!(of(&v4(protocol::UDP, ipv4::DONT_FRAGMENT, &PORTS)), None);
    assert_eq!(of(&v4(protocol::UDP, ipv4::MORE_FRAGMENTS, &PORTS)), piece(7, 0, 8, true));
    let mut padded = v4(protocol::UDP, ipv4::MORE_FRAGMENTS | 3, &PORTS);
    padded.resize(60, 0);
    assert_eq!(of(&padded), piece(7, 24, 8, true));
    assert_eq!(of(&v4(protocol::UDP, 185, &PORTS[..3])), piece(7, 1480, 3, false));

    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let header = |next: u8, offset: u8| [next, 0, 0, offset, 0, 0, 0, 9];
    assert_eq!(of(&v6(60, &[options(protocol::UDP), PORTS].concat())), None);
    assert_eq!(of(&v6(extension::FRAGMENT, &[header(17, 0), PORTS].concat())), piece(9, 0, 8, false));
    // Options before the fragment header are no part of what is cut, those behind it are.
    let chain = [options(extension::FRAGMENT), header(60, 1), options(17), PORTS].concat();
    assert_eq!(of(&v6(extension::HOP_BY_HOP, &chain)), piece(9, 0, 16, true));
    let chain = [options(extension::FRAGMENT), header(60, 16), options(17)].concat();
    assert_eq!(of(&v6(extension::HOP_BY_HOP, &chain)), piece(9, 16, 8, false));
}

#[test]
fn ipv4_lengths() {
    let frame = v4(protocol::UDP, 0, &PORTS);
    for length in 0..frame.len() {
        let malformed = parse(&frame[..length]).unwrap_err();
        assert_eq!(malformed, if length < ETHERNET { Malformed::Ethernet } else { Malformed::Ipv4 });
    }
    for (byte, value) in [(14, 0x55), (14, 0x44), (14, 0x48), (16, 0xff), (17, 19)] {
        let mut frame = frame.clone();
        frame[byte] = value;
        assert_eq!(parse(&frame), Err(Malformed::Ipv4), "byte {byte} = {value:#x}");
    }
    assert_eq!(parse(&v4(protocol::TCP, 0, &PORTS[..7])), Err(Malformed::Transport));
    assert!(parse(&v4(protocol::ICMP, 0, &[])).is_ok());
}

#[test]
fn ipv6_plain() {
    let mut frame = v6(protocol::TCP, &[PORTS, PORTS].concat());
    frame.push(0);
    let ip = ip(&frame);
    assert_eq!((ip.protocol, ip.fragment, ip.offset, ip.end()), (protocol::TCP, Fragment::None, 54, 70));
    assert_eq!(ip.ports(), Some((4789, 80)));
    assert_eq!((ip.source(), ip.destination()), ([0xfd; 16].into(), [0xfe; 16].into()));
    for length in 0..70 {
        assert!(parse(&frame[..length]).is_err());
    }
}

#[test]
fn ipv6_extension_headers() {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |next: u8, offset: u8| [next, 0, 0, offset, 0, 0, 0, 9];
    let chain = [options(43), options(60), options(17), PORTS].concat();
    let frame = v6(extension::HOP_BY_HOP, &chain);
    assert_eq!((ip(&frame).offset, ip(&frame).ports()), (78, Some((4789, 80))));

    let first = v6(extension::FRAGMENT, &[fragment(60, 1), options(17), PORTS].concat());
    assert_eq!((ip(&first).fragment, ip(&first).ports()), (Fragment::First, Some((4789, 80))));
    let later = v6(extension::FRAGMENT, &[fragment(60, 8), options(17)].concat());
    assert_eq!((ip(&later).fragment, ip(&later).protocol, ip(&later).offset), (Fragment::Later, 60, 62));
    let port = |frame: &[u8]| source_port(&parse(frame).unwrap(), frame);
    assert_eq!(port(&first), port(&later));

    for extensions in [8, 9] {
        let mut chain: Vec<u8> = (1..extensions).flat_map(|_| options(60)).collect();
        chain.extend(options(58));
        assert_eq!(parse(&v6(60, &chain)).is_ok(), extensions == 8);
    }
    for cut in 1..chain.len() {
        assert!(parse(&v6(extension::HOP_BY_HOP, &chain[..cut])).is_err(), "cut at {cut}");
    }
}

#[test]
fn arp_and_others() {
    let mut frame = [[0xff; 6], [4; 6]].concat();
    frame.extend([8, 6]);
    frame.resize(ETHERNET + 28, 0);
    assert!(matches!(parse(&frame), Ok(Packet::Arp(arp)) if !arp.is_ipv4()));
    assert_eq!(parse(&frame[..41]), Err(Malformed::Arp));
    frame[12..14].copy_from_slice(&[0x81, 0]);
    assert_eq!(parse(&frame), Ok(Packet::Other(ethertype::VLAN)));
}

/// The ports of 64 flows that differ in one field spread well: by the birthday bound 64 balls in 64 bins fill 40.
#[test]
fn source_ports_spread() {
    type Vary = fn(&mut [u8], u8);
    let fields: [Vary; 4] = [
        |frame, n| frame[29] = n,
        |frame, n| frame[33] = n,
        |frame, n| frame[35] = n,
        |frame, n| frame[36] = n,
    ];
    for (field, vary) in fields.iter().enumerate() {
        let mut bins = [false; 64];
        for n in 0..64 {
            let mut frame = v4(protocol::TCP, 0, &PORTS);
            vary(&mut frame, n);
            let port = source_port(&parse(&frame).unwrap(), &frame);
            assert!(port >= 49152);
            bins[usize::from(port >> 8) & 63] = true;
        }
        let used = bins.iter().filter(|used| **used).count();
        assert!(used >= 32, "field {field}: {used} of 64 bins");
    }
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(mut frame in vec(any::<u8>(), 0..200), kind in 0usize..4) {
        if let Some(ethertype) = frame.get_mut(12..15) {
            ethertype.copy_from_slice(&[[8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 6, 0], [8, 0, 0x4f]][kind]);
        }
        if let Ok(packet) = parse(&frame) {
            prop_assert!(source_port(&packet, &frame) >= 49152);
            if let Packet::Ip(ip) = packet {
                prop_assert!(ip.end() <= frame.len());
                prop_assert_eq!(ip.transport, &frame[ip.offset..ip.end()]);
                let piece = ip.piece(&frame);
                prop_assert_eq!(piece.is_some(), ip.fragment != Fragment::None);
                prop_assert!(piece.is_none_or(|piece| piece.length <= frame.len()));
            }
        }
    }
}
