//! Parses inner Ethernet frames: the parser that encap, decap, GSO and GRO share.

use crate::arp::Arp;
use crate::ethernet::{Ethernet, ethertype};
use crate::ipv4::{self, Ipv4, protocol};
use crate::ipv6::{self, Ipv6, extension};
use core::fmt;
use core::net::IpAddr;
use zerocopy::FromBytes;
use zerocopy::byteorder::network_endian::U16;

/// Extension headers of one packet, at most: more are refused, so that the cost of parsing is bounded.
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
    /// The transport protocol, or the first next-header value that is not a known extension header.
    /// In a later IPv6 fragment: the fragment header's next header, which can be an extension header.
    pub protocol: u8,
    /// Whether the packet is a fragment.
    pub fragment: Fragment,
    /// The offset of `transport` in the frame, bytes.
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
    /// It is not a fragment.
    None,
    /// It holds the transport header. An IPv6 atomic fragment (RFC 6946) counts as this.
    First,
    /// It holds no transport header.
    Later,
}

impl Fragment {
    /// Of an IPv4 header.
    #[must_use]
    #[inline(always)]
    pub fn of_ipv4(header: &Ipv4) -> Fragment {
        match header.fragment.get() {
            field if field & ipv4::FRAGMENT_OFFSET != 0 => Fragment::Later,
            field if field & ipv4::MORE_FRAGMENTS != 0 => Fragment::First,
            _ => Fragment::None,
        }
    }

    /// Of an IPv6 fragment header.
    #[must_use]
    #[inline(always)]
    pub fn of_ipv6(header: &ipv6::Fragment) -> Fragment {
        if header.offset() == 0 { Fragment::First } else { Fragment::Later }
    }
}

/// Which part of its datagram a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The identification, the same in all fragments of a datagram.
    pub identification: u32,
    /// The offset in the datagram, bytes.
    pub offset: usize,
    /// The length, bytes.
    pub length: usize,
    /// Whether more fragments follow.
    pub more: bool,
}

/// A length field contradicts the frame's length. The variant names the header.
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
    /// TCP or UDP with less than 8 bytes, too short for a check of its ports.
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

    /// Which part of its datagram it is; None: it is not a fragment. `frame` is the frame that it was parsed from.
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

    /// The offset in the frame at which the packet ends and Ethernet padding may begin, bytes.
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

    /// Refuses TCP and UDP with less than 8 bytes, the unit of IP fragments: a first fragment of 8 bytes holds the
    /// ports.
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
/// The hash is of addresses, protocol and ports; for fragments of the addresses alone, so that all fragments of a
/// packet take the same way; for ARP and others of the MAC addresses. `frame` is the frame that `packet` was parsed
/// from.
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
    // The high bits of a product are the best mixed ones.
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
mod tests;
