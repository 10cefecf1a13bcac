//! What is fuzzed: one function per target, called by libFuzzer and, over the corpora, by `tests/corpus.rs`.
//!
//! A target fails by panicking: an index out of bounds, an overflow, or a broken promise that it asserts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};
use uvn_api::dataplane::config::{Encapsulation, Peers, Vtep};
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::answer;
use uvn_engine::counters::Counters;
use uvn_engine::decap::{self, decap as decapsulate};
use uvn_engine::encap::encap as encapsulate;
use uvn_engine::gro::{Delivery, Gro};
use uvn_engine::gso::Gso;
use uvn_engine::outer::{Outer, Patch};
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::tables::{Hop, Network, Tables};
use uvn_wire::ethernet::Mac;
use uvn_wire::packet::{self, Packet};
use uvn_wire::vxlan::Vni;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

/// Node 10.0.0.1 (fd00::1) with VNI 1234 and a peer 10.0.0.2 (fd00::2); VNI 1235 is the same with learning.
static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let encapsulation = Encapsulation { ipv6_checksum: false, ..Encapsulation::default() };
    let vtep = vec![
        Vtep { address: B, overlay: vec![B, B6] },
        Vtep { address: B6, overlay: vec!["fd00::3".parse().unwrap()] },
    ];
    let network = |number, learning| {
        Some(Arc::new(Network {
            vni: Vni::new(number).unwrap(),
            mac: Mac::of(A),
            addresses: vec!["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
            flood: vec![B],
            flood_rate: 1000,
            learning,
            fdb: Default::default(),
            counters: [Counters::default()].into(),
        }))
    };
    let hop = Hop { outer: Outer::new(&encapsulation, Mac::of(A), Mac::of(B), A, B), mtu: 1500 };
    Tables {
        epoch: 1,
        encapsulation,
        nic: None,
        local: vec![A, "fd00::1".parse().unwrap()],
        vteps: Arc::new(Vteps::new(&Peers { vtep, range: Vec::new() }).unwrap()),
        hops: Arc::new([(B, hop)].into_iter().collect()),
        dead: Arc::default(),
        slots: [(Vni::new(1234).unwrap(), 0), (Vni::new(1235).unwrap(), 1)].into_iter().collect(),
        networks: vec![network(1234, false), network(1235, true)],
    }
});

/// An inner frame: what is parsed lies within it.
pub fn parse(data: &[u8]) {
    let Ok(parsed) = packet::parse(data) else { return };
    assert!(packet::source_port(&parsed, data) >= 49152);
    if let Packet::Ip(ip) = &parsed {
        assert_eq!(ip.transport, &data[ip.offset..ip.end()]);
        let _ = (ip.ports(), ip.source(), ip.destination(), ip.tos(), answer::solicited(ip));
    }
    if let Some(answer) = answer::error(data, &parsed, answer::Error::TooBig(1450)) {
        assert!(matches!(packet::parse(answer.bytes()), Ok(Packet::Ip(_))), "a malformed answer");
    }
}

/// A frame from the NIC: what passes is a whole frame for the network's endpoint, and setting ECN keeps it so.
pub fn decap(data: &[u8]) {
    let Ok(received) = decapsulate(&TABLES, data, 0) else { return };
    let mut inner = data[received.inner].to_vec();
    assert!(inner[..6] == Mac::of(A).0 || inner[0] & 1 == 1, "not for the endpoint");
    assert!(inner[6..12] != Mac::of(A).0, "from ourselves");
    if let Some(ecn) = received.ecn {
        decap::set_ecn(&mut inner, ecn);
        let Ok(Packet::Ip(ip)) = packet::parse(&inner) else { panic!("set_ecn broke the packet") };
        assert_eq!(ip.tos() & 3, ecn);
    }
}

/// A frame from an endpoint, with the metadata of an ordinary one: what leaves can be received.
pub fn encap(data: &[u8]) {
    let Some(network) = TABLES.by_slot(0) else { return };
    let Ok(parsed) = packet::parse(data) else { return };
    let Ok(outgoing) = encapsulate(&TABLES, network, data, &parsed) else { return };
    assert_eq!(data[6..12], Mac::of(A).0);
    let hop = &TABLES.hops[&B];
    let mut buffer = vec![0; hop.outer.length() + data.len()];
    buffer[hop.outer.length()..].copy_from_slice(data);
    let patch = Patch { vni: network.vni, source_port: outgoing.source_port, inner_tos: outgoing.tos };
    if let Some(length) = hop.outer.write(&mut buffer, patch, data.len()) {
        assert_eq!(length, buffer.len());
    }
}

/// Ten bytes of metadata, then a frame: segments fit what is announced.
pub fn gso(data: &[u8]) {
    let Some((metadata, frame)) = data.split_at_checked(VnetHeader::LENGTH) else { return };
    let word = |at: usize| u16::from_ne_bytes([metadata[at], metadata[at + 1]]);
    let header = VnetHeader {
        flags: metadata[0],
        gso_type: metadata[1],
        header_length: word(2),
        gso_size: word(4),
        checksum_start: word(6),
        checksum_offset: word(8),
    };
    let Ok(parsed) = packet::parse(frame) else { return };
    let Ok(gso) = Gso::new(&header, frame, &parsed) else { return };
    assert!(gso.segments() >= 1 && gso.largest() <= frame.len());
    let mut buffer = vec![0; gso.largest()];
    for index in 0..gso.segments() {
        let length = gso.write(index, &mut buffer).expect("a segment does not fit");
        assert!(packet::parse(&buffer[..length]).is_ok(), "a malformed segment");
        assert_eq!(gso.write(index, &mut [0; 13]), None);
    }
}

/// Frames, each after two bytes of length: none is lost, and segmenting a super-frame gives back its frames.
pub fn gro(data: &[u8]) {
    let mut frames = Vec::new();
    let mut rest = data;
    while let [a, b, tail @ ..] = rest
        && frames.len() < 64
    {
        let (frame, tail) = tail.split_at(usize::from(u16::from_be_bytes([*a, *b])).min(tail.len()));
        frames.push(frame);
        rest = tail;
    }
    let mut gro = Gro::default();
    let mut pushed = 0;
    for (index, frame) in (0..).zip(&frames) {
        if let Ok(parsed) = packet::parse(frame) {
            gro.push(0, index, frame, &parsed, Offloads { tcp: true, udp: true });
            pushed += 1;
        }
    }
    let mut delivered = 0;
    gro.flush(|delivery| match delivery {
        Delivery::Single { .. } => delivered += 1,
        Delivery::Super(coalesced) => {
            let mut whole = coalesced.head().to_vec();
            let parts: Vec<_> = coalesced.parts().collect();
            for (index, range) in &parts {
                whole.extend(&frames[*index as usize][range.clone()]);
            }
            let parsed = packet::parse(&whole).expect("a malformed super-frame");
            let gso = Gso::new(&coalesced.header(), &whole, &parsed).expect("no super-frame");
            assert_eq!(gso.segments(), parts.len());
            for (segment, (index, _)) in parts.iter().enumerate() {
                let mut buffer = vec![0; gso.largest()];
                let length = gso.write(segment, &mut buffer).expect("a segment does not fit");
                // The frame that came may have had Ethernet padding.
                let mut came = frames[*index as usize][..length].to_vec();
                if came[12..14] == [8, 0] && came[20] & 0x40 != 0 {
                    // With DF identifications mean nothing and may all be the same (RFC 6864 section 4.1); GSO counts.
                    for range in [18..20, 24..26] {
                        came[range.clone()].copy_from_slice(&buffer[range]);
                    }
                }
                assert_eq!(buffer[..length], came, "segment {segment}");
            }
            delivered += parts.len();
        }
    });
    assert_eq!(delivered, pushed, "lost or made up");
}

/// A message on the control socket.
pub fn message(data: &[u8]) {
    use uvn_api::dataplane::message::{Reply, Request};
    use uvn_api::protocol::{SCHEMA, parse_answer, parse_request, request_packet};
    if let Ok(request) = parse_request::<Request>(data) {
        let packet = request_packet(&request, SCHEMA).expect("too long once written again");
        assert_eq!(parse_request::<Request>(&packet).expect("refused once written again"), request);
    }
    let _ = parse_answer::<Reply>(data);
}
