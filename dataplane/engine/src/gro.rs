//! GRO: joins the consecutive segments of a flow in one batch of received frames into super-frames, by the rules of
//! Linux's own GRO, so that cutting them again gives the frames that came.
//!
//! Frames are not copied. [`Gro::push`] takes them one by one; [`Gro::flush`] then delivers frames as they are, or a
//! rewritten head and the payloads that follow it, in the order of their first frames. A frame never overtakes another
//! one of its flow, but may overtake frames of other flows.

use crate::port::{Offloads, VnetHeader};
use std::ops::Range;
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::HEADER as NETWORK;
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::packet::{Fragment, Ip, Network, Packet};
use uvn_wire::tcp::{self, Tcp, flag};
use uvn_wire::udp::{self, Udp};
use zerocopy::FromBytes;

/// Flows that can take another segment at one time, at most; further flows are not joined. They are searched one by
/// one.
const OPEN: usize = 32;
/// Segments in one super-frame, at most: Linux's bound for UDP (UDP_GRO_CNT_MAX, net/ipv4/udp_offload.c), which also
/// bounds the parts that an endpoint gets.
const MAX_SEGMENTS: u16 = 64;
/// The longest IP packet, bytes.
const MAX_PACKET: usize = 65_535;
/// The longest head, bytes: Ethernet, IPv6 and TCP with all options.
const MAX_HEAD: usize = NETWORK + ipv6::HEADER + tcp::MAX_HEADER;

/// Joins segments within one batch. Reused from batch to batch, so that it stops allocating.
#[derive(Debug, Default)]
pub struct Gro {
    /// The frames and flows to deliver, in this order.
    entries: Vec<Entry>,
    /// The flows of this batch that began with a frame that others can join.
    flows: Vec<Flow>,
    /// Payloads of all flows; those of one flow are linked.
    parts: Vec<Part>,
    /// The flows that still take segments: the tag of the key, and the index in `flows`.
    open: Vec<(u64, usize)>,
    /// The index in `open` of the last segment's flow: the next segment most often belongs to it too.
    last: usize,
}

/// What to hand over next.
#[derive(Debug)]
pub enum Delivery<'a> {
    /// A frame as it came.
    Single {
        /// The network, as pushed.
        network: u32,
        /// The frame, as pushed.
        index: u32,
    },
    /// Several segments, joined.
    Super(Super<'a>),
}

/// Segments joined: hand over [`Super::head`] and then each of [`Super::parts`], with [`Super::header`].
#[derive(Debug, Clone, Copy)]
pub struct Super<'a> {
    flow: &'a Flow,
    parts: &'a [Part],
}

#[derive(Debug)]
enum Entry {
    Single { network: u32, index: u32 },
    Flow(usize),
}

/// One segment's payload within its frame.
#[derive(Debug)]
struct Part {
    index: u32,
    start: usize,
    end: usize,
    /// The next part of the same flow, in `parts`.
    next: Option<usize>,
}

/// What a flow's frames have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    ports: (u16, u16),
    network: u32,
    protocol: u8,
    v6: bool,
    /// The addresses; an IPv4 address is in the first four bytes. As numbers, since they compare in few instructions.
    source: u128,
    destination: u128,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    /// The first segment's headers; the last flags are added as segments join, the rest is rewritten at the end.
    head: [u8; MAX_HEAD],
    head_length: usize,
    transport: usize,
    /// Payload of each segment but the last.
    size: usize,
    /// Payload of all.
    payload: usize,
    segments: u16,
    /// Whether all packets so far have the same identification, which DF allows (RFC 6864 section 4.1).
    fixed_identification: bool,
    first_part: usize,
    last_part: usize,
}

/// A frame that may join others.
#[derive(Clone, Copy)]
struct Segment<'a> {
    frame: &'a [u8],
    ip: &'a Ip<'a>,
    /// The offset of the payload in the frame.
    payload: usize,
    /// None in UDP.
    tcp: Option<&'a Tcp>,
}

impl Gro {
    /// Takes the next frame of the batch: an inner, verified frame for `network`, and the `packet` that
    /// [`uvn_wire::packet::parse`] made of it. `index` is the caller's number of the frame.
    #[inline]
    pub fn push(&mut self, network: u32, index: u32, frame: &[u8], packet: &Packet<'_>, offloads: Offloads) {
        if let Packet::Ip(ip) = packet {
            if ip.fragment != Fragment::None {
                // It can belong to any flow, so no flow of this network may take further segments.
                self.close_network(network);
            } else if let Some(ports) = ip.ports() {
                return self.push_flow(
                    Key::new(network, ip, ports),
                    index,
                    Segment::new(frame, ip, offloads),
                );
            }
        }
        self.entries.push(Entry::Single { network, index });
    }

    /// The number of frames and super-frames that [`Gro::flush`] would deliver now.
    #[must_use]
    pub fn deliveries(&self) -> usize {
        self.entries.len()
    }

    /// Delivers everything in order and begins anew.
    pub fn flush(&mut self, mut deliver: impl FnMut(Delivery<'_>)) {
        for entry in self.entries.drain(..) {
            match entry {
                Entry::Single { network, index } => deliver(Delivery::Single { network, index }),
                Entry::Flow(flow) => {
                    let flow = &mut self.flows[flow];
                    if flow.segments == 1 {
                        let index = self.parts[flow.first_part].index;
                        deliver(Delivery::Single { network: flow.key.network, index });
                    } else {
                        flow.finish();
                        deliver(Delivery::Super(Super { flow, parts: &self.parts }));
                    }
                }
            }
        }
        self.flows.clear();
        self.parts.clear();
        self.open.clear();
    }

    /// Takes a TCP or UDP frame; `segment` is None if it cannot be joined.
    fn push_flow(&mut self, key: Key, index: u32, segment: Option<Segment<'_>>) {
        let position = self.find(&key);
        if let (Some(position), Some(segment)) = (position, segment) {
            let flow = &mut self.flows[self.open[position].1];
            if flow.accepts(&segment) && segment.is_intact() {
                let part = segment.part(index);
                self.parts[flow.last_part].next = Some(self.parts.len());
                flow.join(&segment, self.parts.len());
                self.parts.push(part);
                if flow.is_complete(&segment) {
                    self.open.swap_remove(position);
                }
                return;
            }
        }
        if let Some(position) = position {
            self.open.swap_remove(position);
        }
        match segment {
            Some(segment) if self.open.len() < OPEN && segment.can_begin() && segment.is_intact() => {
                self.begin(key, index, &segment);
            }
            _ => self.entries.push(Entry::Single { network: key.network, index }),
        }
    }

    /// The index of this flow in `open`. The last one is tried first.
    #[inline]
    fn find(&mut self, key: &Key) -> Option<usize> {
        let tag = key.tag();
        let matches = |open: &(u64, usize)| open.0 == tag && self.flows[open.1].key == *key;
        if !self.open.get(self.last).is_some_and(matches) {
            self.last = self.open.iter().position(matches)?;
        }
        Some(self.last)
    }

    fn begin(&mut self, key: Key, index: u32, segment: &Segment<'_>) {
        self.last = self.open.len();
        self.open.push((key.tag(), self.flows.len()));
        self.entries.push(Entry::Flow(self.flows.len()));
        self.flows.push(Flow::new(key, segment, self.parts.len()));
        self.parts.push(segment.part(index));
    }

    #[cold]
    fn close_network(&mut self, network: u32) {
        let flows = &self.flows;
        self.open.retain(|(_, flow)| flows[*flow].key.network != network);
    }
}

impl Key {
    #[inline]
    fn new(network: u32, ip: &Ip<'_>, ports: (u16, u16)) -> Key {
        let (v6, source, destination) = match ip.header {
            Network::V4(header) => {
                let wide = |address| u128::from(u32::from_ne_bytes(address));
                (false, wide(header.source), wide(header.destination))
            }
            Network::V6(header) => {
                (true, u128::from_ne_bytes(header.source), u128::from_ne_bytes(header.destination))
            }
        };
        Key { ports, network, protocol: ip.protocol, v6, source, destination }
    }

    /// A hash of the key, for a fast search.
    fn tag(&self) -> u64 {
        let ports = u64::from(self.ports.0) << 16 | u64::from(self.ports.1);
        ports ^ self.source as u64 ^ u64::from(self.network) << 32
    }
}

impl<'a> Segment<'a> {
    /// None for frames that GRO never joins (inet_gro_receive, tcp_gro_receive, udp_gro_receive_segment): with IP
    /// options or extension headers, TCP without payload or with SYN, RST, URG or CWR, UDP without checksum.
    #[inline]
    fn new(frame: &'a [u8], ip: &'a Ip<'a>, offloads: Offloads) -> Option<Segment<'a>> {
        let (header_length, tcp) = if ip.protocol == protocol::TCP {
            let (tcp, _) = Tcp::ref_from_prefix(ip.transport).ok()?;
            let never = tcp.flags & (flag::SYN | flag::RST | flag::URG | flag::CWR) != 0;
            if never || !offloads.tcp || tcp.header_length() < tcp::HEADER {
                return None;
            }
            (tcp.header_length(), Some(tcp))
        } else {
            let (udp, _) = Udp::ref_from_prefix(ip.transport).ok()?;
            if !offloads.udp || udp.checksum == 0 || usize::from(udp.length.get()) != ip.transport.len() {
                return None;
            }
            (udp::HEADER, None)
        };
        if ip.transport.len() <= header_length {
            return None;
        }
        match ip.header {
            Network::V4(header) => {
                let flags = header.fragment.get() & !ipv4::DONT_FRAGMENT;
                let plain = ip.offset == NETWORK + ipv4::HEADER && flags == 0;
                if !plain || !Sum::of(frame.get(NETWORK..ip.offset)?).is_valid() {
                    return None;
                }
            }
            Network::V6(_) if ip.offset != NETWORK + ipv6::HEADER => return None,
            Network::V6(_) => (),
        }
        Some(Segment { frame, ip, payload: ip.offset + header_length, tcp })
    }

    /// Whether the transport checksum is right.
    #[inline]
    fn is_intact(&self) -> bool {
        (pseudo(self.ip, self.ip.transport.len()) + Sum::of(self.ip.transport)).is_valid()
    }

    /// Whether others may follow it in a super-frame: not after FIN or PSH, which only the last segment carries.
    fn can_begin(&self) -> bool {
        self.tcp.is_none_or(|tcp| tcp.flags & (flag::FIN | flag::PSH) == 0)
    }

    fn length(&self) -> usize {
        self.ip.end() - self.payload
    }

    fn part(&self, index: u32) -> Part {
        Part { index, start: self.payload, end: self.ip.end(), next: None }
    }
}

/// The pseudo-header's sum for a transport header and payload of this length.
fn pseudo(ip: &Ip<'_>, length: usize) -> Sum {
    match ip.header {
        Network::V4(header) => Sum::pseudo_v4(header.source, header.destination, ip.protocol, length as u16),
        Network::V6(header) => {
            Sum::pseudo_v6(&header.source, &header.destination, ip.protocol, length as u32)
        }
    }
}

impl Flow {
    fn new(key: Key, segment: &Segment<'_>, part: usize) -> Flow {
        let mut head = [0; MAX_HEAD];
        if let (Some(to), Some(from)) =
            (head.get_mut(..segment.payload), segment.frame.get(..segment.payload))
        {
            to.copy_from_slice(from);
        }
        Flow {
            key,
            head,
            head_length: segment.payload,
            transport: segment.ip.offset,
            size: segment.length(),
            payload: segment.length(),
            segments: 1,
            fixed_identification: false,
            first_part: part,
            last_part: part,
        }
    }

    /// Whether the segment follows, and differs from the first one only as GSO would make it differ.
    #[inline]
    fn accepts(&self, segment: &Segment<'_>) -> bool {
        let total = self.head_length - NETWORK + self.payload + segment.length();
        segment.payload == self.head_length
            && segment.length() <= self.size
            && total <= MAX_PACKET
            && segment.frame.get(..NETWORK) == Some(&self.head[..NETWORK])
            && self.accepts_network(segment.ip)
            && segment.tcp.is_none_or(|tcp| self.accepts_tcp(tcp, segment.ip))
    }

    /// Whether TOS, TTL and DF, or class, flow label and hop limit are the same, and identifications count up or, with
    /// DF, stay (gro_receive_network_flush, include/net/gro.h).
    #[inline]
    fn accepts_network(&self, ip: &Ip<'_>) -> bool {
        match ip.header {
            Network::V4(header) => {
                let Ok((first, _)) = Ipv4::ref_from_prefix(&self.head[NETWORK..]) else { return false };
                let distance = header.identification.get().wrapping_sub(first.identification.get());
                let fixed = self.fixed_identification || self.segments == 1 && header.fragment != 0;
                (header.tos, header.ttl, header.fragment) == (first.tos, first.ttl, first.fragment)
                    && (distance == self.segments && !self.fixed_identification || distance == 0 && fixed)
            }
            Network::V6(header) => {
                let Ok((first, _)) = Ipv6::ref_from_prefix(&self.head[NETWORK..]) else { return false };
                header.version_class_flow == first.version_class_flow && header.hop_limit == first.hop_limit
            }
        }
    }

    /// Whether the segment is next in sequence, with the same acknowledgement, window, options, and flags but FIN and
    /// PSH.
    #[inline]
    fn accepts_tcp(&self, tcp: &Tcp, ip: &Ip<'_>) -> bool {
        let Ok((first, _)) = Tcp::ref_from_prefix(&self.head[self.transport..]) else { return false };
        let options = ip.transport.get(tcp::HEADER..self.head_length - self.transport);
        tcp.sequence == first.sequence.get().wrapping_add(self.payload as u32)
            && tcp.acknowledgement == first.acknowledgement
            && tcp.data_offset == first.data_offset
            && (tcp.flags ^ first.flags) & !(flag::FIN | flag::PSH) == 0
            && tcp.window == first.window
            && tcp.urgent == first.urgent
            && options == self.head.get(self.transport + tcp::HEADER..self.head_length)
    }

    fn join(&mut self, segment: &Segment<'_>, part: usize) {
        match segment.ip.header {
            Network::V4(header) if self.segments == 1 => {
                let first = Ipv4::ref_from_prefix(&self.head[NETWORK..]);
                self.fixed_identification =
                    first.is_ok_and(|(first, _)| first.identification == header.identification);
            }
            Network::V4(_) | Network::V6(_) => (),
        }
        if let (Some(tcp), Ok((first, _))) =
            (segment.tcp, Tcp::mut_from_prefix(&mut self.head[self.transport..]))
        {
            first.flags |= tcp.flags;
        }
        self.payload += segment.length();
        self.segments += 1;
        self.last_part = part;
    }

    /// Whether no segment may follow the one that has just joined.
    fn is_complete(&self, segment: &Segment<'_>) -> bool {
        self.segments >= MAX_SEGMENTS || segment.length() < self.size || !segment.can_begin()
    }

    /// Rewrites the head for the whole: lengths, IPv4 checksum, and the pseudo-header's sum in place of the checksum.
    fn finish(&mut self) {
        let length = self.head_length - NETWORK + self.payload;
        let transport_length = self.head_length - self.transport + self.payload;
        let (network, transport) = self.head.split_at_mut(self.transport);
        let network = &mut network[NETWORK..];
        let kind = self.key.protocol;
        let sum = if self.key.v6 {
            let Ok((header, _)) = Ipv6::mut_from_prefix(network) else { return };
            header.payload_length = (transport_length as u16).into();
            Sum::pseudo_v6(&header.source, &header.destination, kind, transport_length as u32)
        } else {
            let Ok((header, _)) = Ipv4::mut_from_prefix(network) else { return };
            header.total_length = (length as u16).into();
            header.set_checksum();
            Sum::pseudo_v4(header.source, header.destination, kind, transport_length as u16)
        };
        if kind == protocol::TCP {
            let Ok((tcp, _)) = Tcp::mut_from_prefix(transport) else { return };
            tcp.checksum = sum.fold().into();
        } else {
            let Ok((udp, _)) = Udp::mut_from_prefix(transport) else { return };
            udp.length = (transport_length as u16).into();
            udp.checksum = sum.fold().into();
        }
    }
}

impl Super<'_> {
    /// The network that the frames were pushed for.
    #[must_use]
    pub fn network(&self) -> u32 {
        self.flow.key.network
    }

    /// The number of joined frames.
    #[must_use]
    pub fn segments(&self) -> usize {
        usize::from(self.flow.segments)
    }

    /// The metadata to hand over with it.
    #[must_use]
    pub fn header(&self) -> VnetHeader {
        let flow = self.flow;
        let (gso_type, checksum) = match (flow.key.protocol, flow.key.v6) {
            (protocol::TCP, false) => (VnetHeader::GSO_TCPV4, tcp::CHECKSUM),
            (protocol::TCP, true) => (VnetHeader::GSO_TCPV6, tcp::CHECKSUM),
            _ => (VnetHeader::GSO_UDP, udp::CHECKSUM),
        };
        VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type,
            header_length: flow.head_length as u16,
            gso_size: flow.size as u16,
            checksum_start: flow.transport as u16,
            checksum_offset: checksum as u16,
        }
    }

    /// The headers of the whole.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        self.flow.head.get(..self.flow.head_length).unwrap_or_default()
    }

    /// The frames' indexes, as pushed, and the range of the payload in each.
    pub fn parts(&self) -> impl Iterator<Item = (u32, Range<usize>)> {
        std::iter::successors(self.parts.get(self.flow.first_part), |part| self.parts.get(part.next?))
            .map(|part| (part.index, part.start..part.end))
    }
}
