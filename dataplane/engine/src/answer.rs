//! Frames that the data plane itself sends to an endpoint: ARP replies, neighbour advertisements, ICMP errors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvn_wire::arp::{self, Arp};
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::{self, Ethernet, Mac, ethertype};
use uvn_wire::icmp::{self, LinkLayerOption, Neighbour, TooBig};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::packet::{Fragment, Ip, Network, Packet};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The longest answer: ICMPv6 "too big" fills the minimum MTU (RFC 4443 section 3.2).
const LONGEST: usize = ethernet::HEADER + ipv6::MIN_MTU;
/// ICMP quotes as much as fits in 576 bytes (RFC 1812 section 4.3.2.3).
const ICMP_LENGTH: usize = 576;

/// An Ethernet frame for an endpoint.
#[derive(Debug, Clone)]
pub struct Frame {
    bytes: Box<[u8; LONGEST]>,
    length: usize,
}

impl Frame {
    /// Builds a frame: the Ethernet header, then `parts`.
    fn new(destination: Mac, source: Mac, ethertype: u16, parts: &[&[u8]]) -> Frame {
        let mut frame = Frame { bytes: Box::new([0; LONGEST]), length: 0 };
        frame.push(&Ethernet { destination, source, ethertype: ethertype.into() });
        for part in parts {
            frame.push(*part);
        }
        frame
    }

    fn push<T: IntoBytes + Immutable + ?Sized>(&mut self, part: &T) {
        let part = part.as_bytes();
        let part = &part[..part.len().min(LONGEST - self.length)];
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    /// The frame's bytes, from the Ethernet header on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The reply to an ARP request, which says that the target is at `mac`.
#[must_use]
pub fn arp(request: &Arp, mac: Mac) -> Frame {
    let reply = Arp::new(arp::REPLY, (mac, request.target()), (request.sender_mac, request.sender()));
    Frame::new(request.sender_mac, mac, ethertype::ARP, &[reply.as_bytes()])
}

/// The target of a valid neighbour solicitation (RFC 4861 section 7.1.1). None for duplicate address detection, which
/// only the address's owner may answer.
#[must_use]
pub fn solicited(ip: &Ip<'_>) -> Option<Ipv6Addr> {
    let Network::V6(header) = ip.header else { return None };
    let (solicitation, _) = Neighbour::ref_from_prefix(ip.transport).ok()?;
    let valid = header.hop_limit == icmp::NEIGHBOUR_HOP_LIMIT
        && solicitation.code == 0
        && ip.fragment == Fragment::None
        && !header.source().is_unspecified();
    valid.then(|| solicitation.target())
}

/// The target of a neighbour advertisement: the address that it claims, as an ARP packet claims its sender's. None for
/// fragments, which the kernel does not accept (RFC 6980).
#[must_use]
pub fn advertised(ip: &Ip<'_>) -> Option<Ipv6Addr> {
    let (message, _) = Neighbour::ref_from_prefix(ip.transport).ok()?;
    let is_one = ip.protocol == protocol::ICMPV6 && message.kind == icmp::v6::NEIGHBOUR_ADVERTISEMENT;
    (is_one && ip.fragment == Fragment::None).then(|| message.target())
}

/// The advertisement that answers a solicitation from the endpoint with MAC `to`, and says that `target` is at `mac`.
#[must_use]
pub fn neighbour(solicitation: &Ip<'_>, target: Ipv6Addr, to: Mac, mac: Mac) -> Option<Frame> {
    let IpAddr::V6(asker) = solicitation.source() else { return None };
    let mut advertisement = Neighbour {
        kind: icmp::v6::NEIGHBOUR_ADVERTISEMENT,
        code: 0,
        checksum: 0.into(),
        flags: (icmp::SOLICITED | icmp::OVERRIDE).into(),
        target: target.octets(),
    };
    let option = LinkLayerOption { kind: icmp::TARGET_LINK_LAYER, length: 1, mac };
    let length = size_of_val(&advertisement) + size_of_val(&option);
    let ip = ipv6_header(target, asker, length);
    let sum = Sum::pseudo_v6(&ip.source, &ip.destination, protocol::ICMPV6, length as u32)
        + Sum::of(advertisement.as_bytes())
        + Sum::of(option.as_bytes());
    advertisement.checksum = sum.checksum().into();
    let parts = [ip.as_bytes(), advertisement.as_bytes(), option.as_bytes()];
    Some(Frame::new(to, mac, ethertype::IPV6, &parts))
}

/// The ICMP errors that answer a frame which is not sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// "Fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443 section 3.2), with the MTU, bytes.
    TooBig(usize),
    /// "Host unreachable" (RFC 792) or "address unreachable" (RFC 4443 section 3.1).
    Unreachable,
}

impl Error {
    /// Type, code and the word behind the checksum, in ICMP.
    fn v4(self) -> Option<(u8, u8, u32)> {
        /// ICMP_HOST_UNREACH (include/uapi/linux/icmp.h).
        const HOST: u8 = 1;
        let code = match self {
            Error::TooBig(mtu) => (icmp::v4::FRAGMENTATION_NEEDED, u32::try_from(mtu).ok()? & 0xffff),
            Error::Unreachable => (HOST, 0),
        };
        Some((icmp::v4::DESTINATION_UNREACHABLE, code.0, code.1))
    }

    /// Type, code and the word behind the checksum, in ICMPv6.
    fn v6(self) -> Option<(u8, u8, u32)> {
        /// ICMPV6_DEST_UNREACH and ICMPV6_ADDR_UNREACH (include/uapi/linux/icmpv6.h).
        const ADDRESS: (u8, u8) = (1, 3);
        match self {
            Error::TooBig(mtu) => Some((icmp::v6::PACKET_TOO_BIG, 0, u32::try_from(mtu).ok()?)),
            Error::Unreachable => Some((ADDRESS.0, ADDRESS.1, 0)),
        }
    }
}

/// The ICMP error, sent in the name of the destination, as the kernel's tunnels do (`iptunnel_pmtud_build_icmp`). None
/// where an answer is forbidden: to ICMP errors, to multicast and to later fragments.
#[must_use]
pub fn error(frame: &[u8], packet: &Packet<'_>, error: Error) -> Option<Frame> {
    let Packet::Ip(ip) = packet else { return None };
    let (ethernet, quoted) = Ethernet::ref_from_prefix(frame).ok()?;
    if ethernet.destination.is_multicast() || ip.fragment == Fragment::Later {
        return None;
    }
    let (to, from) = (ethernet.source, ethernet.destination);
    match ip.header {
        Network::V4(header) => {
            if ip.protocol == protocol::ICMP && !is_query(ip.transport.first()) {
                return None;
            }
            let quoted = &quoted[..quoted.len().min(ICMP_LENGTH - ipv4::HEADER - size_of::<TooBig>())];
            let (kind, code, mtu) = error.v4()?;
            let error = TooBig { kind, code, checksum: 0.into(), mtu: mtu.into() };
            let error = with_checksum(error, Sum::ZERO, quoted);
            let length = ipv4::HEADER + size_of::<TooBig>() + quoted.len();
            let answer = ipv4_header(header.destination(), header.source(), length);
            let parts = [answer.as_bytes(), error.as_bytes(), quoted];
            Some(Frame::new(to, from, ethertype::IPV4, &parts))
        }
        Network::V6(header) => {
            let kind = ip.transport.first();
            if ip.protocol == protocol::ICMPV6 && kind.is_none_or(|kind| *kind < icmp::v6::INFORMATIONAL) {
                return None;
            }
            let room = ipv6::MIN_MTU - ipv6::HEADER - size_of::<TooBig>();
            let quoted = &quoted[..quoted.len().min(room)];
            let length = size_of::<TooBig>() + quoted.len();
            let (kind, code, mtu) = error.v6()?;
            let error = TooBig { kind, code, checksum: 0.into(), mtu: mtu.into() };
            let answer = ipv6_header(header.destination(), header.source(), length);
            let pseudo = Sum::pseudo_v6(&answer.source, &answer.destination, protocol::ICMPV6, length as u32);
            let error = with_checksum(error, pseudo, quoted);
            let parts = [answer.as_bytes(), error.as_bytes(), quoted];
            Some(Frame::new(to, from, ethertype::IPV6, &parts))
        }
    }
}

/// ICMP types that are not errors: echo and timestamp (RFC 1122 section 3.2.2).
fn is_query(kind: Option<&u8>) -> bool {
    matches!(kind, Some(0 | 8 | 13 | 14))
}

fn with_checksum(mut error: TooBig, pseudo: Sum, quoted: &[u8]) -> TooBig {
    error.checksum = (pseudo + Sum::of(error.as_bytes()) + Sum::of(quoted)).checksum().into();
    error
}

fn ipv4_header(source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> Ipv4 {
    let mut header = Ipv4 {
        version_ihl: ipv4::VERSION_IHL,
        tos: 0,
        total_length: (length as u16).into(),
        identification: 0.into(),
        fragment: ipv4::DONT_FRAGMENT.into(),
        ttl: 64,
        protocol: protocol::ICMP,
        checksum: 0.into(),
        source: source.octets(),
        destination: destination.octets(),
    };
    header.set_checksum();
    header
}

fn ipv6_header(source: Ipv6Addr, destination: Ipv6Addr, length: usize) -> Ipv6 {
    Ipv6 {
        version_class_flow: (6 << 28).into(),
        payload_length: (length as u16).into(),
        next_header: protocol::ICMPV6,
        hop_limit: icmp::NEIGHBOUR_HOP_LIMIT,
        source: source.octets(),
        destination: destination.octets(),
    }
}
