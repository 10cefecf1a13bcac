//! The outer headers of one VTEP: a template built once per next hop, patched per frame.
//!
//! ```text
//! Ethernet 14 | IPv4 20 or IPv6 40 | UDP 8 | VXLAN 8 | inner Ethernet frame
//! ```
//! The fields: Ethernet addresses of the NIC and of the next hop; IP addresses of the two VTEPs; TTL and DSCP as
//! configured, ECN of the inner packet (RFC 6040 section 4.1, normal mode); DF and identification 0, which RFC 6864
//! section 4.1 allows only together, since a receiver tells fragments apart by the identification; UDP source port from
//! the inner flow (RFC 7348 section 5); UDP checksum zero or computed (RFC 6936 for zero over IPv6); the VNI.

use std::net::IpAddr;
use uvn_api::dataplane::config::{Dscp, Encapsulation};
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::{self, Mac, ethertype};
use uvn_wire::ipv4;
use uvn_wire::udp;
use uvn_wire::vxlan::{self, OVER_IPV4, OVER_IPV6, UPPER, Vni};
use uvn_wire::xdp;

const IP: usize = ethernet::HEADER;

/// Bytes that encapsulation adds to an inner frame on the wire, outer Ethernet header included: 50 or 70.
#[must_use]
pub const fn overhead(vtep: IpAddr) -> usize {
    if vtep.is_ipv4() { OVER_IPV4 } else { OVER_IPV6 }
}

/// The MTU of an endpoint over an underlay with IP MTU `mtu`, bytes: less the outer headers behind Ethernet, and the
/// inner Ethernet header.
#[must_use]
pub const fn endpoint_mtu(mtu: usize, vtep: IpAddr) -> usize {
    mtu.saturating_sub(overhead(vtep))
}

/// The outer headers for one VTEP, all but what differs from frame to frame.
#[derive(Debug, Clone)]
pub struct Outer {
    bytes: [u8; OVER_IPV6],
    length: usize,
    /// IPv4: the header's sum without total length and TOS. IPv6: unused.
    ip_sum: Sum,
    /// The sum of UDP's pseudo-header without its length; None: the checksum stays zero.
    udp_sum: Option<Sum>,
    dscp: Dscp,
}

/// What differs from frame to frame.
#[derive(Debug, Clone, Copy)]
pub struct Patch {
    /// The network.
    pub vni: Vni,
    /// UDP source port.
    pub source_port: u16,
    /// DSCP and ECN of the inner packet.
    pub inner_tos: u8,
}

impl Outer {
    /// The template for frames from this node's address `source` through the next hop `hop` to the VTEP `destination`.
    /// Both addresses must be of one family; otherwise the source is zero.
    #[must_use]
    pub fn new(settings: &Encapsulation, nic: Mac, hop: Mac, source: IpAddr, destination: IpAddr) -> Outer {
        let mut bytes = [0; OVER_IPV6];
        bytes[..6].copy_from_slice(&hop.0);
        bytes[6..12].copy_from_slice(&nic.0);
        let (length, ethertype, ip_sum, pseudo, checksum) = match destination {
            IpAddr::V4(destination) => {
                let source = if let IpAddr::V4(source) = source { source.octets() } else { [0; 4] };
                let destination = destination.octets();
                bytes[IP] = ipv4::VERSION_IHL;
                bytes[IP + 6..IP + 8].copy_from_slice(&ipv4::DONT_FRAGMENT.to_be_bytes());
                bytes[IP + 8] = settings.ttl;
                bytes[IP + 9] = ipv4::protocol::UDP;
                bytes[IP + 12..IP + 16].copy_from_slice(&source);
                bytes[IP + 16..IP + 20].copy_from_slice(&destination);
                let sum = Sum::of(&bytes[IP..IP + ipv4::HEADER]);
                let pseudo = Sum::pseudo_v4(source, destination, ipv4::protocol::UDP, 0);
                (OVER_IPV4, ethertype::IPV4, sum, pseudo, settings.checksum)
            }
            IpAddr::V6(destination) => {
                let source = if let IpAddr::V6(source) = source { source.octets() } else { [0; 16] };
                let destination = destination.octets();
                bytes[IP] = 0x60;
                bytes[IP + 6] = ipv4::protocol::UDP;
                bytes[IP + 7] = settings.ttl;
                bytes[IP + 8..IP + 24].copy_from_slice(&source);
                bytes[IP + 24..IP + 40].copy_from_slice(&destination);
                let pseudo = Sum::pseudo_v6(&source, &destination, ipv4::protocol::UDP, 0);
                (OVER_IPV6, ethertype::IPV6, Sum::ZERO, pseudo, settings.ipv6_checksum)
            }
        };
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        let upper = length - UPPER;
        bytes[upper + 2..upper + 4].copy_from_slice(&settings.port.to_be_bytes());
        bytes[upper + udp::HEADER] = vxlan::FLAG_VNI;
        let udp_sum = checksum.then_some(pseudo);
        Outer { bytes, length, ip_sum, udp_sum, dscp: settings.dscp }
    }

    /// Length of the headers, outer Ethernet included.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// The template as the shortcut's map holds it: `mac` is its key, `largest` the longest inner frame that fits the
    /// path. None: the UDP checksum must be computed, which the shortcut cannot do.
    #[must_use]
    pub fn hop(&self, mac: [u32; 2], largest: usize) -> Option<xdp::Hop> {
        if self.udp_sum.is_some() {
            return None;
        }
        Some(xdp::Hop {
            mac,
            headers: self.bytes,
            padding: [0; 2],
            length: self.length as u32,
            largest: u32::try_from(largest).unwrap_or(u32::MAX),
            ip_sum: u32::from(!self.ip_sum.checksum()),
            dscp: match self.dscp {
                Dscp::Fixed(value) => u32::from(value << 2),
                Dscp::Inherit(_) => xdp::Hop::INHERIT,
            },
        })
    }

    /// Writes the headers to the start of `buffer`, which holds `inner` bytes of the inner frame behind
    /// [`Outer::length`]. Returns the length of the whole frame. None: the buffer or an IP length field is too short.
    #[must_use]
    pub fn write(&self, buffer: &mut [u8], patch: Patch, inner: usize) -> Option<usize> {
        let total = self.length.checked_add(inner)?;
        let packet = buffer.get_mut(..total)?;
        let ip_length = u16::try_from(total - IP).ok()?;
        packet[..self.length].copy_from_slice(&self.bytes[..self.length]);
        let dscp = match self.dscp {
            Dscp::Fixed(value) => value << 2,
            Dscp::Inherit(_) => patch.inner_tos & 0xfc,
        };
        let tos = dscp | patch.inner_tos & 0x03;
        let upper = self.length - UPPER;
        let udp_length = (total - upper) as u16;
        if self.length == OVER_IPV4 {
            packet[IP + 1] = tos;
            packet[IP + 2..IP + 4].copy_from_slice(&ip_length.to_be_bytes());
            let sum = self.ip_sum + Sum::u16(u16::from(tos)) + Sum::u16(ip_length);
            packet[IP + 10..IP + 12].copy_from_slice(&sum.checksum().to_be_bytes());
        } else {
            packet[IP] = 0x60 | tos >> 4;
            packet[IP + 1] = tos << 4;
            packet[IP + 4..IP + 6].copy_from_slice(&udp_length.to_be_bytes());
        }
        packet[upper..upper + 2].copy_from_slice(&patch.source_port.to_be_bytes());
        packet[upper + 4..upper + 6].copy_from_slice(&udp_length.to_be_bytes());
        let vni = patch.vni.get().to_be_bytes();
        packet[upper + 12..upper + 15].copy_from_slice(&vni[1..]);
        if let Some(pseudo) = self.udp_sum {
            let sum = pseudo + Sum::u16(udp_length) + Sum::of(&packet[upper..]);
            packet[upper + 6..upper + 8].copy_from_slice(&sum.udp_checksum().to_be_bytes());
        }
        Some(total)
    }
}
