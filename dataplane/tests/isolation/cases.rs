//! The attack list: crafted frames from the underlay, and what must become of each.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use crate::common::cluster::{v4, v6};
use crate::frames::{arp_request, ethernet, ip, udp, vxlan};
use std::net::IpAddr;
use uvn_api::dataplane::config::Encapsulation;
use uvn_wire::ethernet::{Mac, ethertype};
use uvn_wire::ipv4::protocol;
use uvn_wire::vxlan::PORT;

/// The users. Both have the same addresses.
pub const USERS: [u32; 2] = [1234, 9876];
/// This node's overlay addresses; its VTEP addresses too.
pub const A: IpAddr = v4(1);
pub const A6: IpAddr = v6(1);
/// Allowed VTEPs: B also has B6 in the overlay.
pub const B: IpAddr = v4(2);
pub const B6: IpAddr = v6(2);
pub const C: IpAddr = v4(3);
pub const D6: IpAddr = v6(4);

/// What becomes of a crafted frame.
#[derive(Clone, Copy)]
pub enum Fate {
    /// It is not ours: the host has it, and the XDP program counts it so.
    Host(&'static str),
    /// The XDP program drops it, with this verdict.
    Filtered(&'static str),
    /// The worker drops it, for this reason.
    Dropped(&'static str),
    /// This user gets it.
    Delivered(usize),
}

/// An echo reply, which nobody answers and GRO leaves alone.
pub fn reply(macs: (Mac, Mac), from: IpAddr, to: IpAddr, tos: u8) -> Vec<u8> {
    let (kind, protocol) = if from.is_ipv4() { (0, protocol::ICMP) } else { (129, protocol::ICMPV6) };
    let (ethertype, packet) = ip(from, to, protocol, tos, &[&[kind, 0, 0, 0][..], &[7; 40]].concat());
    ethernet(macs.0, macs.1, ethertype, &packet)
}

/// What B would send to the user.
pub fn genuine() -> Vec<u8> {
    reply((Mac::of(B), Mac::of(A)), B, A, 0)
}

/// From one VTEP to us, over IPv4 or IPv6.
pub fn wrapped(from: IpAddr, vni: u32, inner: &[u8]) -> Vec<u8> {
    vxlan(&Encapsulation::default(), from, if from.is_ipv4() { A } else { A6 }, vni, 0, inner)
}

pub fn edited(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    changes.iter().for_each(|(at, byte)| frame[*at] = *byte);
    frame
}

pub type Case = (&'static str, Vec<u8>, Fate);

pub fn outer_cases() -> Vec<Case> {
    use Fate::{Dropped, Filtered, Host};
    let good = wrapped(B, USERS[0], &genuine());
    let good6 = wrapped(D6, USERS[0], &reply((Mac::of(D6), Mac::of(A)), D6, A6, 0));
    let edit = |changes: &[(usize, u8)]| edited(&good, changes);
    let edit6 = |changes: &[(usize, u8)]| edited(&good6, changes);
    let tagged = |tag: [u8; 2], id: u8| [&good[..12], &tag, &[0x60, id], &good[12..]].concat();
    let twice = [&good[..12], &[0x81, 0, 0, 0], &tagged([0x81, 0], 0)[12..]].concat();
    // No operation, four times (RFC 791 section 3.1).
    let with_options = [&edit(&[(14, 0x46), (17, good[17] + 4)])[..34], &[1; 4], &good[34..]].concat();
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
        ("VLAN", tagged([0x81, 0], 7), Host("xdp_pass")),
        ("QinQ", tagged([0x88, 0xa8], 7), Host("xdp_pass")),
        ("priority", tagged([0x81, 0], 0), Fate::Delivered(0)),
        ("service priority", tagged([0x88, 0xa8], 0), Fate::Delivered(0)),
        ("priority over IPv6", [&good6[..12], &[0x81, 0, 0, 0], &good6[12..]].concat(), Fate::Delivered(0)),
        ("priority twice", twice, Filtered("xdp_bad_header")),
        ("another host's MAC", edit(&[(5, 9)]), Filtered("xdp_other_host")),
        ("another host's MAC over IPv6", edit6(&[(5, 9)]), Filtered("xdp_other_host")),
        ("broadcast MAC", [&[0xff; 6], &good[6..]].concat(), Fate::Delivered(0)),
        ("options", with_options, Filtered("xdp_bad_header")),
        ("first fragment", edit(&[(20, 0x20)]), Host("xdp_fragment")),
        ("later fragment", edit(&[(20, 0), (21, 9)]), Host("xdp_pass")),
        // The UDP header becomes a fragment header: the last one of its packet, by the missing bit.
        ("fragment over IPv6", edit6(&[(20, 44), (57, 0xb0)]), Host("xdp_pass")),
        ("header too short", edit(&[(14, 0x44)]), Host("xdp_pass")),
        ("other version", edit(&[(14, 0x65)]), Host("xdp_pass")),
        ("LLDP", edit(&[(12, 0x88), (13, 0xcc)]), Host("xdp_pass")),
    ]
}

pub fn inner_cases() -> Vec<Case> {
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
