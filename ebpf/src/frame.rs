//! A frame's bytes, and the inner frames that the in-kernel gear takes.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::XdpContext;
use uvn_wire::ethernet::{self, Ethernet, Tag, ethertype};
use uvn_wire::icmp::v6::NEIGHBOUR_SOLICITATION;
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
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
    /// What the driver received.
    #[inline(always)]
    pub fn of_xdp(ctx: &XdpContext) -> Frame {
        Frame { start: ctx.data(), end: ctx.data_end() }
    }

    /// The linear part of an skb.
    #[inline(always)]
    pub fn of_skb(skb: &__sk_buff) -> Frame {
        Frame { start: skb.data as usize, end: skb.data_end as usize }
    }

    /// The frame as if it had no priority tag, all but its addresses: those stay in front.
    #[inline(always)]
    pub fn untagged(self) -> Frame {
        match self.header::<Tag>(Tag::OFFSET) {
            Some(tag) if tag.is_priority() => Frame { start: self.start + size_of::<Tag>(), end: self.end },
            _ => self,
        }
    }

    /// How many bytes there are.
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

/// An inner frame of the plainest kind, which is nearly every one: unicast TCP, UDP or ICMP in an IP packet without
/// options, extension headers or fragments, not to the VXLAN port, with lengths that fit.
///
/// What is not so is not judged here: the engine does that.
pub struct Inner<'a> {
    /// Its Ethernet header.
    pub ethernet: &'a Ethernet,
    /// Its IP source.
    pub source: Address,
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes from the Ethernet header up to the transport's payload.
    pub headers: usize,
    /// It holds UDP.
    pub is_udp: bool,
}

impl<'a> Inner<'a> {
    /// The inner frame that begins at `offset` and is `length` bytes long, perhaps beyond the program's reach. None if
    /// it is the engine's.
    #[inline(always)]
    pub fn of(frame: Frame, offset: usize, length: usize, port: u16) -> Option<Inner<'a>> {
        let ethernet = frame.header::<Ethernet>(offset)?;
        let ip = offset + ethernet::HEADER;
        // The group bit. Multicast is flooded.
        if ethernet.destination.is_multicast() {
            return None;
        }
        let (source, tos, protocol, header, packet) = match ethernet.ethertype.get() {
            ethertype::IPV4 => {
                let ip: &Ipv4 = frame.header(ip)?;
                if ip.version_ihl != ipv4::VERSION_IHL || ip.is_fragment() {
                    return None;
                }
                let length = usize::from(ip.total_length.get());
                (Address::ipv4(ip.source), ip.tos, ip.protocol, ipv4::HEADER, length)
            }
            ethertype::IPV6 => {
                let ip: &Ipv6 = frame.header(ip)?;
                if ip.version() != 6 {
                    return None;
                }
                let source = Address::ipv6(ip.source);
                // The maps take it for the IPv4 address.
                if source.is_mapped() {
                    return None;
                }
                let length = ipv6::HEADER + usize::from(ip.payload_length.get());
                (source, ip.traffic_class(), ip.next_header, ipv6::HEADER, length)
            }
            _ => return None,
        };
        let transport = match protocol {
            protocol::TCP => frame.header::<Tcp>(ip + header)?.header_length(),
            protocol::UDP => {
                if frame.header::<Udp>(ip + header)?.destination_port.get() == port {
                    return None;
                }
                udp::HEADER
            }
            // The engine answers these itself.
            protocol::ICMPV6 if *frame.header::<u8>(ip + header)? == NEIGHBOUR_SOLICITATION => return None,
            protocol::ICMP | protocol::ICMPV6 => udp::HEADER,
            _ => return None,
        };
        let fits =
            transport >= udp::HEADER && packet >= header + transport && length >= ethernet::HEADER + packet;
        let headers = ethernet::HEADER + header + transport;
        fits.then_some(Inner { ethernet, source, tos, headers, is_udp: protocol == protocol::UDP })
    }
}
