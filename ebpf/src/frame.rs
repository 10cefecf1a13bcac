//! Access to a frame's bytes, and the inner frames that the shortcut takes.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::XdpContext;
use uvn_wire::ethernet::{self, Ethernet, Tag, ethertype};
use uvn_wire::icmp::v6::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6, extension};
use uvn_wire::packet::Fragment;
use uvn_wire::tcp::Tcp;
use uvn_wire::udp::{self, Udp};
use uvn_wire::xdp::Address;
use zerocopy::{FromBytes, Immutable, Unaligned};

/// The bytes within the program's reach.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame that the driver received.
    #[inline(always)]
    pub fn of_xdp(ctx: &XdpContext) -> Frame {
        Frame { start: ctx.data(), end: ctx.data_end() }
    }

    /// The linear part of an skb.
    #[inline(always)]
    pub fn of_skb(skb: &__sk_buff) -> Frame {
        Frame { start: skb.data as usize, end: skb.data_end as usize }
    }

    /// The frame as if it had no priority tag. Its addresses are not moved, and so not in the right place.
    #[inline(always)]
    pub fn untagged(self) -> Frame {
        match self.header::<Tag>(Tag::OFFSET) {
            Some(tag) if tag.is_priority() => Frame { start: self.start + size_of::<Tag>(), end: self.end },
            _ => self,
        }
    }

    /// The number of bytes within reach.
    #[inline(always)]
    pub fn length(self) -> usize {
        self.end - self.start
    }

    /// The header at `offset`; None if the frame ends before it does.
    #[inline(always)]
    pub fn header<'a, T: FromBytes + Immutable + Unaligned>(self, offset: usize) -> Option<&'a T> {
        let start = self.start + offset;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the frame's bytes from `start` were just found to hold a T, which needs no alignment and takes any
        // bytes; the frame outlives this run of the program, and nothing writes to it while a header is in use.
        Some(unsafe { &*(start as *const T) })
    }
}

/// A plain inner frame, as nearly all are: unicast TCP, UDP or ICMP in an IP packet without options or extension
/// headers, or a fragment of one, not to the VXLAN port, with lengths that fit.
///
/// Other frames are left to the engine, which judges them. All fragments of a datagram are alike in this, so they keep
/// their order, unless the first one is left to the engine and refused: then the others are of no use to anybody.
pub struct Inner<'a> {
    /// Its Ethernet header.
    pub ethernet: &'a Ethernet,
    /// Its IP source.
    pub source: Address,
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes from the Ethernet header up to the transport's payload; in a later fragment, up to its part of the
    /// payload.
    pub headers: usize,
    /// Whether it holds UDP.
    pub is_udp: bool,
    /// Whether it is a fragment: a super-frame must not be one.
    pub is_fragment: bool,
}

impl<'a> Inner<'a> {
    /// The inner frame that begins at `offset` and is `length` bytes long, perhaps beyond the program's reach. None: it
    /// is left to the engine.
    #[inline(always)]
    pub fn of(frame: Frame, offset: usize, length: usize, port: u16) -> Option<Inner<'a>> {
        let ethernet = frame.header::<Ethernet>(offset)?;
        let ip = offset + ethernet::HEADER;
        // The group bit. Multicast is flooded.
        if ethernet.destination.is_multicast() {
            return None;
        }
        let packet = match ethernet.ethertype.get() {
            ethertype::IPV4 => Packet::ipv4(frame, ip)?,
            ethertype::IPV6 => Packet::ipv6(frame, ip)?,
            _ => return None,
        };
        let transport = packet.transport(frame, ip + packet.header, port)?;
        let fits = packet.length >= packet.header + transport && length >= ethernet::HEADER + packet.length;
        fits.then_some(Inner {
            ethernet,
            source: packet.source,
            tos: packet.tos,
            headers: ethernet::HEADER + packet.header + transport,
            is_udp: packet.protocol == protocol::UDP,
            is_fragment: packet.fragment != Fragment::None,
        })
    }
}

/// The fields of an IP header.
struct Packet {
    source: Address,
    tos: u8,
    /// The transport protocol.
    protocol: u8,
    fragment: Fragment,
    /// Length of the header, an IPv6 fragment header's included.
    header: usize,
    /// Length of header and payload.
    length: usize,
}

impl Packet {
    #[inline(always)]
    fn ipv4(frame: Frame, at: usize) -> Option<Packet> {
        let ip: &Ipv4 = frame.header(at)?;
        (ip.version_ihl == ipv4::VERSION_IHL).then(|| Packet {
            source: Address::ipv4(ip.source),
            tos: ip.tos,
            protocol: ip.protocol,
            fragment: Fragment::of_ipv4(ip),
            header: ipv4::HEADER,
            length: usize::from(ip.total_length.get()),
        })
    }

    #[inline(always)]
    fn ipv6(frame: Frame, at: usize) -> Option<Packet> {
        let ip: &Ipv6 = frame.header(at)?;
        let source = Address::ipv6(ip.source);
        // The maps' keys do not tell an IPv4-mapped address from the IPv4 address.
        if ip.version() != 6 || source.is_mapped() {
            return None;
        }
        let mut packet = Packet {
            source,
            tos: ip.traffic_class(),
            protocol: ip.next_header,
            fragment: Fragment::None,
            header: ipv6::HEADER,
            length: ipv6::HEADER + usize::from(ip.payload_length.get()),
        };
        if packet.protocol == extension::FRAGMENT {
            let fragment: &ipv6::Fragment = frame.header(at + ipv6::HEADER)?;
            packet.protocol = fragment.next_header;
            packet.fragment = Fragment::of_ipv6(fragment);
            packet.header += ipv6::Fragment::LENGTH;
        }
        Some(packet)
    }

    /// Length of the transport header at `at`, as far as it is looked at. None: the frame is left to the engine.
    #[inline(always)]
    fn transport(&self, frame: Frame, at: usize, port: u16) -> Option<usize> {
        if !matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6) {
            return None;
        }
        match self.protocol {
            _ if self.fragment == Fragment::Later => Some(0),
            protocol::TCP if self.fragment == Fragment::None => {
                let length = frame.header::<Tcp>(at)?.header_length();
                (length >= udp::HEADER).then_some(length)
            }
            protocol::UDP if frame.header::<Udp>(at)?.destination_port.get() == port => None,
            // The engine answers solicitations itself, and checks the address in advertisements.
            protocol::ICMPV6
                if matches!(*frame.header::<u8>(at)?, NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT) =>
            {
                None
            }
            // As many bytes as the shortest fragment that shows its ports.
            _ => Some(udp::HEADER),
        }
    }
}
