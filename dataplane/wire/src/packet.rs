//! Parses an inner Ethernet frame: the one parser that encap, decap, GSO and GRO share.

use crate::arp::Arp;
use crate::ethernet::{Ethernet, ethertype};
use crate::ipv4::{self, Ipv4, protocol};
use crate::ipv6::{self, Ipv6, extension};
use core::fmt;
use core::net::IpAddr;
use zerocopy::FromBytes;
use zerocopy::byteorder::network_endian::U16;

/// More extension headers than this in one packet are refused, so that parsing has a bounded cost.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// What an untagged Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// An ARP packet; [`Arp::is_ipv4`] is not checked yet.
    Arp(&'a Arp),
    /// An IPv4 or IPv6 packet.
    Ip(Ip<'a>),
    /// Anything else, by its EtherType (or IEEE 802.3 length).
    Other(u16),
}

/// An IP packet whose lengths fit the frame. The frame may be longer: Ethernet pads short ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip<'a> {
    /// The network header.
    pub header: Network<'a>,
    /// The transport protocol, or the first next-header value that is no known extension header.
    /// In a later IPv6 fragment: what the fragment header says, which can be an extension header.
    pub protocol: u8,
    /// Whether the packet is a fragment.
    pub fragment: Fragment,
    /// Where in the frame `transport` begins.
    pub offset: usize,
    /// Transport header and payload, without Ethernet padding; in a later fragment only a part of the payload.
    pub transport: &'a [u8],
}

/// A network header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network<'a> {
    /// IPv4, options not included.
    V4(&'a Ipv4),
    /// IPv6, extension headers not included.
    V6(&'a Ipv6),
}

/// Whether an IP packet is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    None,
    /// It begins with the transport header. An IPv6 atomic fragment (RFC 6946) counts as one.
    First,
    /// It holds no transport header.
    Later,
}

impl Fragment {
    /// As an IPv4 header says.
    #[must_use]
    #[inline(always)]
    pub fn of_ipv4(header: &Ipv4) -> Fragment {
        match header.fragment.get() {
            field if field & ipv4::FRAGMENT_OFFSET != 0 => Fragment::Later,
            field if field & ipv4::MORE_FRAGMENTS != 0 => Fragment::First,
            _ => Fragment::None,
        }
    }

    /// As an IPv6 fragment header says.
    #[must_use]
    #[inline(always)]
    pub fn of_ipv6(header: &ipv6::Fragment) -> Fragment {
        if header.offset() == 0 { Fragment::First } else { Fragment::Later }
    }
}

/// Which part of its datagram a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The same in all fragments of a datagram.
    pub identification: u32,
    /// Where in the datagram it begins.
    pub offset: usize,
    /// How much of it there is.
    pub length: usize,
    /// It is not the last.
    pub more: bool,
}

/// A length field contradicts the bytes there are. The variant says in which header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than an Ethernet header.
    Ethernet,
    /// An ARP packet that is cut short.
    Arp,
    /// Wrong version, or header length or total length that does not fit.
    Ipv4,
    /// Wrong version, or payload length that does not fit.
    Ipv6,
    /// An IPv6 extension header beyond the packet's end, or more than [`MAX_EXTENSION_HEADERS`].
    Extension,
    /// TCP or UDP with less than 8 bytes, which would hide its ports.
    Transport,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Ethernet => "the frame is shorter than an Ethernet header",
            Malformed::Arp => "the ARP packet is cut short",
            Malformed::Ipv4 => "the IPv4 header's version or lengths do not fit the frame",
            Malformed::Ipv6 => "the IPv6 header's version or payload length does not fit the frame",
            Malformed::Extension => "the IPv6 extension headers exceed the packet, or are more than 8",
            Malformed::Transport => "the TCP or UDP header is cut short",
        })
    }
}

impl core::error::Error for Malformed {}

/// Parses a frame that begins with an untagged Ethernet header.
///
/// # Errors
/// The frame is cut short, or a length in it does not fit.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Packet<'_>, Malformed> {
    let (ethernet, rest) = Ethernet::ref_from_prefix(frame).map_err(|_| Malformed::Ethernet)?;
    match ethernet.ethertype.get() {
        ethertype::IPV4 => ipv4(frame, rest),
        ethertype::IPV6 => ipv6(frame, rest),
        ethertype::ARP => match Arp::ref_from_prefix(rest) {
            Ok((arp, _)) => Ok(Packet::Arp(arp)),
            Err(_) => Err(Malformed::Arp),
        },
        other => Ok(Packet::Other(other)),
    }
}

#[inline]
fn ipv4<'a>(frame: &'a [u8], rest: &'a [u8]) -> Result<Packet<'a>, Malformed> {
    let (header, _) = Ipv4::ref_from_prefix(rest).map_err(|_| Malformed::Ipv4)?;
    let length = header.header_length();
    if header.version() != 4 || length < ipv4::HEADER {
        return Err(Malformed::Ipv4);
    }
    let transport = rest.get(length..usize::from(header.total_length.get())).ok_or(Malformed::Ipv4)?;
    let fragment = Fragment::of_ipv4(header);
    let offset = frame.len() - rest.len() + length;
    let ip = Ip { header: Network::V4(header), protocol: header.protocol, fragment, offset, transport };
    ip.with_ports()
}

#[inline]
fn ipv6<'a>(frame: &'a [u8], rest: &'a [u8]) -> Result<Packet<'a>, Malformed> {
    let (header, rest) = Ipv6::ref_from_prefix(rest).map_err(|_| Malformed::Ipv6)?;
    if header.version() != 6 {
        return Err(Malformed::Ipv6);
    }
    let transport = rest.get(..usize::from(header.payload_length.get())).ok_or(Malformed::Ipv6)?;
    let mut ip = Ip {
        header: Network::V6(header),
        protocol: header.next_header,
        fragment: Fragment::None,
        offset: frame.len() - rest.len(),
        transport,
    };
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if ip.fragment == Fragment::Later || !is_extension(ip.protocol) {
            return ip.with_ports();
        }
        ip.skip_extension()?;
    }
    Err(Malformed::Extension)
}

/// Whether an IPv6 next header is one of [`extension`].
#[must_use]
#[inline]
pub const fn is_extension(next_header: u8) -> bool {
    use extension::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

impl<'a> Ip<'a> {
    /// The source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        match self.header {
            Network::V4(header) => header.source().into(),
            Network::V6(header) => header.source().into(),
        }
    }

    /// The destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        match self.header {
            Network::V4(header) => header.destination().into(),
            Network::V6(header) => header.destination().into(),
        }
    }

    /// DSCP and ECN.
    #[must_use]
    pub fn tos(&self) -> u8 {
        match self.header {
            Network::V4(header) => header.tos,
            Network::V6(header) => header.traffic_class(),
        }
    }

    /// Which part of its datagram it is; None if it is no fragment. `frame` is the one that it was parsed from.
    #[must_use]
    #[cold]
    pub fn piece(&self, frame: &[u8]) -> Option<Piece> {
        match self.header {
            Network::V4(header) => (self.fragment != Fragment::None).then(|| Piece {
                identification: header.identification.get().into(),
                offset: usize::from(header.fragment.get() & ipv4::FRAGMENT_OFFSET) * 8,
                length: self.transport.len(),
                more: header.fragment.get() & ipv4::MORE_FRAGMENTS != 0,
            }),
            Network::V6(header) => {
                let (mut next, mut at) = (header.next_header, crate::ethernet::HEADER + ipv6::HEADER);
                while next != extension::FRAGMENT {
                    if !is_extension(next) || at >= self.offset {
                        return None;
                    }
                    let [following, units, ..] = *frame.get(at..)? else { return None };
                    next = following;
                    at += (usize::from(units) + 1) * 8;
                }
                let (fragment, _) = ipv6::Fragment::ref_from_prefix(frame.get(at..)?).ok()?;
                Some(Piece {
                    identification: fragment.identification.get(),
                    offset: fragment.offset().into(),
                    length: self.end().checked_sub(at + ipv6::Fragment::LENGTH)?,
                    more: fragment.offset_more.get() & 1 != 0,
                })
            }
        }
    }

    /// Where in the frame the packet ends and Ethernet padding may begin.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.offset + self.transport.len()
    }

    /// Source and destination port of TCP and UDP; None in other protocols and in later fragments.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> Option<(u16, u16)> {
        if self.fragment == Fragment::Later || !matches!(self.protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let (ports, _) = <[U16; 2]>::ref_from_prefix(self.transport).ok()?;
        Some((ports[0].get(), ports[1].get()))
    }

    /// The shortest TCP or UDP fragment that says where it goes has 8 bytes, which is also IP's fragment unit.
    fn with_ports(self) -> Result<Packet<'a>, Malformed> {
        let has_ports =
            self.fragment != Fragment::Later && matches!(self.protocol, protocol::TCP | protocol::UDP);
        if has_ports && self.transport.len() < 8 { Err(Malformed::Transport) } else { Ok(Packet::Ip(self)) }
    }

    /// Steps over the extension header that `transport` begins with.
    #[cold]
    fn skip_extension(&mut self) -> Result<(), Malformed> {
        let length = if self.protocol == extension::FRAGMENT {
            let (header, _) =
                ipv6::Fragment::ref_from_prefix(self.transport).map_err(|_| Malformed::Extension)?;
            self.fragment = Fragment::of_ipv6(header);
            self.protocol = header.next_header;
            ipv6::Fragment::LENGTH
        } else {
            let [next_header, units, ..] = *self.transport else { return Err(Malformed::Extension) };
            self.protocol = next_header;
            (usize::from(units) + 1) * 8
        };
        self.transport = self.transport.get(length..).ok_or(Malformed::Extension)?;
        self.offset += length;
        Ok(())
    }
}

/// The outer UDP source port, 49152 to 65535 (RFC 7348 section 5): a hash of the inner flow, so that the underlay
/// spreads flows and keeps each in order.
///
/// From addresses, protocol and ports; in fragments from the addresses alone, so that all fragments of a packet go
/// the same way; in ARP and others from the MAC addresses. `frame` is the one that `packet` was parsed from.
#[must_use]
#[inline]
pub fn source_port(packet: &Packet<'_>, frame: &[u8]) -> u16 {
    let hash = match packet {
        Packet::Ip(ip) => {
            let ports = match (ip.fragment, ip.ports()) {
                (Fragment::None, Some((source, destination))) => {
                    u64::from(source) << 16 | u64::from(destination)
                }
                _ => 0,
            };
            let protocol = if ip.fragment == Fragment::None { u64::from(ip.protocol) } else { 0 };
            let (source, destination) = match ip.header {
                Network::V4(header) => (
                    u64::from(u32::from_ne_bytes(header.source)),
                    u64::from(u32::from_ne_bytes(header.destination)),
                ),
                Network::V6(header) => (halves(&header.source), halves(&header.destination)),
            };
            mix(mix(source ^ protocol << 32, ports), destination)
        }
        Packet::Arp(_) | Packet::Other(_) => match frame.first_chunk::<12>() {
            Some([a, b, c, d, e, f, g, h, last @ ..]) => mix(
                u64::from_ne_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                u64::from(u32::from_ne_bytes(*last)),
            ),
            None => 0,
        },
    };
    // The high bits of a product are the well mixed ones.
    0xc000 | (hash >> 50) as u16
}

/// Both halves of an IPv6 address in one word, such that neighbouring addresses stay distinct.
fn halves(address: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *address;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h]).rotate_left(29) ^ u64::from_ne_bytes(rest)
}

/// Adds a word to a hash: xor, then two multiplications with a shift between, so that every input bit reaches the top
/// bits. The multipliers are those of MurmurHash3's 64-bit finaliser.
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 32).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 29
}

#[cfg(test)]
mod tests {
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
        let piece =
            |identification, offset, length, more| Some(Piece { identification, offset, length, more });
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
}
