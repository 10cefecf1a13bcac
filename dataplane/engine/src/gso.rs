//! GSO: cuts a super-frame of the endpoint into the frames that Linux's own software GSO would send.
//!
//! [`Gso::new`] checks the frame's offload metadata once and sums the headers. [`Gso::write`] then builds any segment
//! in the caller's buffer: it copies the headers, patches the fields that differ, and copies and sums the payload.

use crate::port::VnetHeader;
use std::ops::Range;
use thiserror::Error;
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::HEADER as NETWORK;
use uvn_wire::ipv4::{Ipv4, protocol};
use uvn_wire::ipv6::Ipv6;
use uvn_wire::packet::{Fragment, Ip, Network, Packet};
use uvn_wire::tcp::{self, Tcp, flag};
use uvn_wire::udp::{self, Udp};
use zerocopy::FromBytes;

/// Segments of one frame, at most. 64 KiB at Linux's smallest MSS (net.ipv4.tcp_min_snd_mss, 48 bytes) are 1365
/// segments; without a bound, one read could make 65 thousand frames.
pub const MAX_SEGMENTS: usize = 2048;

/// The offload metadata and the frame contradict each other. The frame must be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadOffload {
    /// A GSO type that is not enabled on the endpoint.
    #[error("unknown GSO type {0:#x}")]
    Type(u8),
    /// The frame is not an unfragmented packet of the protocol that the GSO type names.
    #[error("the frame is no {0} packet that can be segmented")]
    Protocol(&'static str),
    /// The TCP or UDP header is longer than the packet, or shorter than allowed.
    #[error("the transport header exceeds the packet")]
    Header,
    /// No segment size, or one that makes more than [`MAX_SEGMENTS`].
    #[error("{size}-byte segments of {payload} bytes")]
    Size {
        /// The segment size.
        size: u16,
        /// The payload to be cut.
        payload: usize,
    },
    /// The checksum lies outside the transport header and payload, or is not where the protocol has it.
    #[error("checksum from {start} stored at {start}+{offset} in a frame of {length} bytes")]
    Checksum {
        /// The offset at which the sum begins.
        start: u16,
        /// The offset of the checksum field from there.
        offset: u16,
        /// The length of the frame.
        length: usize,
    },
}

/// One frame of an endpoint, and the work before it can be sent.
#[derive(Debug, Clone)]
pub struct Gso<'a> {
    frame: &'a [u8],
    work: Work,
}

#[derive(Debug, Clone)]
enum Work {
    /// It is sent as it is.
    Copy,
    /// The checksum from `start` to the end is stored at `field`.
    Checksum { start: usize, field: usize },
    /// It is cut into segments.
    Segment(Template),
}

/// What all segments have in common.
#[derive(Debug, Clone)]
struct Template {
    /// Length of all headers: the payload's offset in the super-frame.
    headers: usize,
    /// Payload of each segment but the last.
    size: usize,
    segments: usize,
    transport: usize,
    /// The IPv4 header's sum without total length, identification and checksum.
    v4: Option<(Sum, u16)>,
    /// Sum of pseudo-header and transport header without what differs: lengths, checksum, and in TCP also the sequence
    /// number, offset and flags.
    sum: Sum,
    /// TCP: the sequence number, and the bytes with the data offset and the flags.
    tcp: Option<(u32, [u8; 2])>,
}

impl<'a> Gso<'a> {
    /// Checks a frame of the endpoint; `packet` is what [`uvn_wire::packet::parse`] made of it.
    ///
    /// # Errors
    /// `header` contradicts the frame, or would let the checksum overwrite what was verified.
    #[inline]
    pub fn new(header: &VnetHeader, frame: &'a [u8], packet: &Packet<'a>) -> Result<Gso<'a>, BadOffload> {
        let kind = header.gso_type & !VnetHeader::GSO_ECN;
        if kind != VnetHeader::GSO_NONE {
            let ip = expected(kind, packet)?;
            if let Some(template) = Template::new(header, frame, ip)? {
                return Ok(Gso {
                    frame: frame.get(..ip.end()).unwrap_or(frame),
                    work: Work::Segment(template),
                });
            }
        }
        if header.flags & VnetHeader::NEEDS_CHECKSUM == 0 {
            return Ok(Gso { frame, work: Work::Copy });
        }
        let start = usize::from(header.checksum_start);
        let field = start + usize::from(header.checksum_offset);
        // The field must not lie in addresses or ports, which have been verified.
        let allowed = match packet {
            Packet::Ip(ip) if ip.ports().is_some() => ip.offset + 4..=ip.end().saturating_sub(2),
            Packet::Ip(ip) => ip.offset..=ip.end().saturating_sub(2),
            Packet::Arp(_) | Packet::Other(_) => return Err(bad_checksum(header, frame.len())),
        };
        if !allowed.contains(&field) {
            return Err(bad_checksum(header, frame.len()));
        }
        Ok(Gso { frame, work: Work::Checksum { start, field } })
    }

    /// The number of frames that come out.
    #[must_use]
    pub fn segments(&self) -> usize {
        match &self.work {
            Work::Segment(template) => template.segments,
            Work::Copy | Work::Checksum { .. } => 1,
        }
    }

    /// Length of the longest frame that comes out.
    #[must_use]
    pub fn largest(&self) -> usize {
        match &self.work {
            Work::Segment(template) => template.headers + template.size,
            Work::Copy | Work::Checksum { .. } => self.frame.len(),
        }
    }

    /// Builds segment `index` at the start of `buffer` and returns its length.
    ///
    /// None: there is no such segment, or it does not fit; `buffer` should hold [`Gso::largest`] bytes.
    #[inline]
    pub fn write(&self, index: usize, buffer: &mut [u8]) -> Option<usize> {
        match &self.work {
            Work::Segment(template) => template.write(self.frame, index, buffer),
            _ if index > 0 => None,
            Work::Copy => {
                buffer.get_mut(..self.frame.len())?.copy_from_slice(self.frame);
                Some(self.frame.len())
            }
            Work::Checksum { start, field } => {
                let frame = buffer.get_mut(..self.frame.len())?;
                frame.copy_from_slice(self.frame);
                // The field holds the pseudo-header's sum, so the sum over all is the checksum's complement. Zero
                // becomes 0xffff in every protocol, as in skb_checksum_help (net/core/dev.c).
                let checksum = Sum::of(frame.get(*start..)?).udp_checksum();
                frame.get_mut(*field..*field + 2)?.copy_from_slice(&checksum.to_be_bytes());
                Some(self.frame.len())
            }
        }
    }
}

/// The packet, if it is of the protocol that the GSO type names.
fn expected<'p, 'a>(kind: u8, packet: &'p Packet<'a>) -> Result<&'p Ip<'a>, BadOffload> {
    let name = match kind {
        VnetHeader::GSO_TCPV4 => "TCP over IPv4",
        VnetHeader::GSO_TCPV6 => "TCP over IPv6",
        VnetHeader::GSO_UDP => "UDP",
        _ => return Err(BadOffload::Type(kind)),
    };
    let Packet::Ip(ip) = packet else { return Err(BadOffload::Protocol(name)) };
    let matches = match kind {
        VnetHeader::GSO_TCPV4 => matches!(ip.header, Network::V4(_)) && ip.protocol == protocol::TCP,
        VnetHeader::GSO_TCPV6 => matches!(ip.header, Network::V6(_)) && ip.protocol == protocol::TCP,
        _ => ip.protocol == protocol::UDP,
    };
    if matches && ip.fragment == Fragment::None { Ok(ip) } else { Err(BadOffload::Protocol(name)) }
}

fn bad_checksum(header: &VnetHeader, length: usize) -> BadOffload {
    BadOffload::Checksum { start: header.checksum_start, offset: header.checksum_offset, length }
}

impl Template {
    /// None: the frame fits in one segment, and is not cut (virtio_net_hdr_to_skb, include/linux/virtio_net.h).
    fn new(header: &VnetHeader, frame: &[u8], ip: &Ip<'_>) -> Result<Option<Template>, BadOffload> {
        let transport = ip.transport;
        let (length, field, tcp) = if ip.protocol == protocol::TCP {
            let (tcp, _) = Tcp::ref_from_prefix(transport).map_err(|_| BadOffload::Header)?;
            let length = tcp.header_length();
            if length < tcp::HEADER {
                return Err(BadOffload::Header);
            }
            (length, tcp::CHECKSUM, Some((tcp.sequence.get(), [tcp.data_offset, tcp.flags])))
        } else {
            (udp::HEADER, udp::CHECKSUM, None)
        };
        let payload = transport.len().checked_sub(length).ok_or(BadOffload::Header)?;
        let checksum = (usize::from(header.checksum_start), usize::from(header.checksum_offset));
        if header.flags & VnetHeader::NEEDS_CHECKSUM == 0 || checksum != (ip.offset, field) {
            return Err(bad_checksum(header, frame.len()));
        }
        let size = usize::from(header.gso_size);
        let segments = if size == 0 { usize::MAX } else { payload.div_ceil(size) };
        if segments > MAX_SEGMENTS {
            return Err(BadOffload::Size { size: header.gso_size, payload });
        }
        if segments < 2 {
            return Ok(None);
        }
        // The checksum field holds the pseudo-header's sum: take out the length.
        let pseudo = part(transport, field..field + 2) + Sum::u16(!(transport.len() as u16));
        let sum = match tcp {
            Some(_) => {
                part(transport, 0..4)
                    + part(transport, 8..12)
                    + part(transport, 14..16)
                    + part(transport, 18..length)
            }
            None => part(transport, 0..4),
        };
        let v4 = match ip.header {
            Network::V4(header) => {
                let sum = part(frame, NETWORK..NETWORK + 2)
                    + part(frame, NETWORK + 6..NETWORK + 10)
                    + part(frame, NETWORK + 12..ip.offset);
                Some((sum, header.identification.get()))
            }
            Network::V6(_) => None,
        };
        let headers = ip.offset + length;
        Ok(Some(Template { headers, size, segments, transport: ip.offset, v4, sum: pseudo + sum, tcp }))
    }

    #[inline]
    fn write(&self, frame: &[u8], index: usize, buffer: &mut [u8]) -> Option<usize> {
        if index >= self.segments {
            return None;
        }
        let start = self.headers + index * self.size;
        let payload = frame.get(start..frame.len().min(start + self.size))?;
        let length = self.headers + payload.len();
        let (headers, body) = buffer.get_mut(..length)?.split_at_mut_checked(self.headers)?;
        headers.copy_from_slice(frame.get(..self.headers)?);
        body.copy_from_slice(payload);
        self.patch_network(headers, index, length)?;
        let transport_length = (length - self.transport) as u16;
        let sum = self.sum + Sum::u16(transport_length) + Sum::of(payload);
        let transport = headers.get_mut(self.transport..)?;
        match self.tcp {
            Some((sequence, offset_flags)) => {
                let (tcp, _) = Tcp::mut_from_prefix(transport).ok()?;
                let sequence = sequence.wrapping_add((index * self.size) as u32);
                let flags = self.flags(index, offset_flags[1]);
                tcp.sequence = sequence.into();
                tcp.flags = flags;
                let patched = Sum::u32(sequence) + Sum::u16(u16::from_be_bytes([offset_flags[0], flags]));
                tcp.checksum = (sum + patched).checksum().into();
            }
            None => {
                let (udp, _) = Udp::mut_from_prefix(transport).ok()?;
                udp.length = transport_length.into();
                udp.checksum = (sum + Sum::u16(transport_length)).udp_checksum().into();
            }
        }
        Some(length)
    }

    /// Sets the lengths, and in IPv4 identification and header checksum (inet_gso_segment, net/ipv4/af_inet.c).
    #[inline]
    fn patch_network(&self, headers: &mut [u8], index: usize, length: usize) -> Option<()> {
        let network = headers.get_mut(NETWORK..)?;
        let length = length - NETWORK;
        match self.v4 {
            Some((sum, identification)) => {
                let (header, _) = Ipv4::mut_from_prefix(network).ok()?;
                let identification = identification.wrapping_add(index as u16);
                header.total_length = (length as u16).into();
                header.identification = identification.into();
                header.checksum =
                    (sum + Sum::u16(length as u16) + Sum::u16(identification)).checksum().into();
            }
            None => {
                let (header, _) = Ipv6::mut_from_prefix(network).ok()?;
                header.payload_length = ((length - uvn_wire::ipv6::HEADER) as u16).into();
            }
        }
        Some(())
    }

    /// The flags of a segment: CWR only on the first, FIN and PSH only on the last (tcp_gso_segment,
    /// net/ipv4/tcp_offload.c).
    fn flags(&self, index: usize, flags: u8) -> u8 {
        let flags = if index > 0 { flags & !flag::CWR } else { flags };
        if index + 1 < self.segments { flags & !(flag::FIN | flag::PSH) } else { flags }
    }
}

/// The sum over a part of a header, from an even offset.
fn part(header: &[u8], range: Range<usize>) -> Sum {
    Sum::of(header.get(range).unwrap_or_default())
}
