//! Builds frames for tests: inner ones as a user's kernel would, outer ones as a peer or an attacker would.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use uvn_api::dataplane::config::Encapsulation;
use uvn_engine::outer::{Outer, Patch};
use uvn_wire::arp::{self, Arp};
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::{Ethernet, Mac, ethertype};
use uvn_wire::icmp::{self, LinkLayerOption, Neighbour};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::Ipv6;
use uvn_wire::udp::Udp;
use uvn_wire::vxlan::Vni;
use zerocopy::IntoBytes;

/// The MAC of the NIC to which [`vxlan`] sends.
pub const NIC: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// An Ethernet frame.
pub fn ethernet(source: Mac, destination: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet { destination, source, ethertype: ethertype.into() };
    [header.as_bytes(), payload].concat()
}

/// An IP packet with TOS `tos`; both addresses of one family.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, tos: u8, payload: &[u8]) -> (u16, Vec<u8>) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4 {
                version_ihl: ipv4::VERSION_IHL,
                tos,
                total_length: ((20 + payload.len()) as u16).into(),
                identification: 1.into(),
                fragment: ipv4::DONT_FRAGMENT.into(),
                ttl: 64,
                protocol,
                checksum: 0.into(),
                source: source.octets(),
                destination: destination.octets(),
            };
            header.set_checksum();
            (ethertype::IPV4, [header.as_bytes(), payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = Ipv6 {
                version_class_flow: (6 << 28).into(),
                payload_length: (payload.len() as u16).into(),
                next_header: protocol,
                hop_limit: 255,
                source: source.octets(),
                destination: destination.octets(),
            };
            header.set_traffic_class(tos);
            (ethertype::IPV6, [header.as_bytes(), payload].concat())
        }
        _ => unreachable!("two families"),
    }
}

/// The sum of a pseudo-header.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::pseudo_v4(source.octets(), destination.octets(), protocol, length as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::pseudo_v6(&source.octets(), &destination.octets(), protocol, length as u32)
        }
        _ => unreachable!("two families"),
    }
}

/// A UDP datagram in a frame, checksum right.
pub fn udp(macs: (Mac, Mac), from: (IpAddr, u16), to: (IpAddr, u16), tos: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = Udp {
        source_port: from.1.into(),
        destination_port: to.1.into(),
        length: ((8 + payload.len()) as u16).into(),
        checksum: 0.into(),
    };
    let sum = pseudo(from.0, to.0, protocol::UDP, 8 + payload.len())
        + Sum::of(header.as_bytes())
        + Sum::of(payload);
    header.checksum = sum.udp_checksum().into();
    let (ethertype, packet) = ip(from.0, to.0, protocol::UDP, tos, &[header.as_bytes(), payload].concat());
    ethernet(macs.0, macs.1, ethertype, &packet)
}

/// The part of a frame's IP payload in `range`, padded with zeros, as a fragment; `more` follow. Its identification is the
/// packet's, or in IPv6 the flow label.
pub fn fragment(frame: &[u8], range: Range<usize>, more: bool) -> Vec<u8> {
    let v6 = frame[12] == 0x86;
    let header = if v6 { 54 } else { 34 };
    let mut payload = frame[header..].to_vec();
    payload.resize(payload.len().max(range.end), 0);
    let mut part = frame[..header].to_vec();
    if v6 {
        let offset = (range.start as u16) | u16::from(more);
        let label = [part[15], part[16], part[17]];
        let [high, low] = offset.to_be_bytes();
        part.extend([part[20], 0, high, low, 0, label[0] & 15, label[1], label[2]]);
        part[20] = 44;
        part[18..20].copy_from_slice(&(range.len() as u16 + 8).to_be_bytes());
    } else {
        let offset = (range.start as u16 / 8) | (u16::from(more) << 13);
        part[16..18].copy_from_slice(&(range.len() as u16 + 20).to_be_bytes());
        part[20..22].copy_from_slice(&offset.to_be_bytes());
        part[24..26].fill(0);
        let sum = Sum::of(&part[14..34]).checksum();
        part[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    part.extend(&payload[range]);
    part
}

/// Gives a frame's packet another identification, or in IPv6 another flow label, for [`fragment`].
pub fn identified(frame: &mut [u8], number: u16) {
    let at = if frame[12] == 0x86 { 16 } else { 18 };
    frame[at..at + 2].copy_from_slice(&number.to_be_bytes());
    if at == 18 {
        frame[24..26].fill(0);
        let sum = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// An ARP request.
pub fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let arp = Arp::new(arp::REQUEST, (mac, sender), (Mac([0; 6]), target));
    ethernet(mac, Mac::BROADCAST, ethertype::ARP, arp.as_bytes())
}

/// A neighbour solicitation to the solicited-node group.
pub fn solicitation(mac: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut solicitation = Neighbour {
        kind: icmp::v6::NEIGHBOUR_SOLICITATION,
        code: 0,
        checksum: 0.into(),
        flags: 0.into(),
        target: target.octets(),
    };
    let option = LinkLayerOption { kind: icmp::SOURCE_LINK_LAYER, length: 1, mac };
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let sum = pseudo(sender.into(), group.into(), protocol::ICMPV6, 32)
        + Sum::of(solicitation.as_bytes())
        + Sum::of(option.as_bytes());
    solicitation.checksum = sum.checksum().into();
    let payload = [solicitation.as_bytes(), option.as_bytes()].concat();
    let (ethertype, packet) = ip(sender.into(), group.into(), protocol::ICMPV6, 0, &payload);
    ethernet(mac, Mac([0x33, 0x33, 0xff, a, b, c]), ethertype, &packet)
}

/// A neighbour advertisement that overrides what is cached: `target` is at `mac`.
pub fn advertisement(mac: Mac, sender: Ipv6Addr, target: Ipv6Addr, to: (Mac, Ipv6Addr)) -> Vec<u8> {
    let mut advertisement = Neighbour {
        kind: icmp::v6::NEIGHBOUR_ADVERTISEMENT,
        code: 0,
        checksum: 0.into(),
        flags: icmp::OVERRIDE.into(),
        target: target.octets(),
    };
    let option = LinkLayerOption { kind: icmp::TARGET_LINK_LAYER, length: 1, mac };
    let sum = pseudo(sender.into(), to.1.into(), protocol::ICMPV6, 32)
        + Sum::of(advertisement.as_bytes())
        + Sum::of(option.as_bytes());
    advertisement.checksum = sum.checksum().into();
    let payload = [advertisement.as_bytes(), option.as_bytes()].concat();
    let (ethertype, packet) = ip(sender.into(), to.1.into(), protocol::ICMPV6, 0, &payload);
    ethernet(mac, to.0, ethertype, &packet)
}

/// A VXLAN frame from one VTEP to another, whose MAC is [`NIC`], around an inner frame. `tos` is the outer one.
pub fn vxlan(
    settings: &Encapsulation,
    source: IpAddr,
    destination: IpAddr,
    vni: u32,
    tos: u8,
    inner: &[u8],
) -> Vec<u8> {
    let outer = Outer::new(settings, Mac::of(source), NIC, source, destination);
    let mut frame = vec![0; outer.length() + inner.len()];
    frame[outer.length()..].copy_from_slice(inner);
    let patch = Patch { vni: Vni::new(vni).unwrap(), source_port: 50_000, inner_tos: tos };
    outer.write(&mut frame, patch, inner.len()).unwrap();
    frame
}
