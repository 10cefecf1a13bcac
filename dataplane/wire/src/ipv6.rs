//! IPv6 (RFC 8200).

use core::net::Ipv6Addr;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header.
pub const HEADER: usize = 40;
/// The packet length that every IPv6 link carries, bytes (RFC 8200 section 5).
pub const MIN_MTU: usize = 1280;

/// Next headers that are extension headers (RFC 8200 section 4). The rest are [`crate::ipv4::protocol`].
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version, traffic class and flow label.
    pub version_class_flow: U32,
    /// Length of everything behind this header, extension headers included.
    pub payload_length: U16,
    /// One of [`crate::ipv4::protocol`] or [`extension`].
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Ipv6 {
    /// 6, unless the packet is malformed.
    #[must_use]
    pub fn version(&self) -> u8 {
        (self.version_class_flow.get() >> 28) as u8
    }

    /// DSCP and ECN, as IPv4's TOS.
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        (self.version_class_flow.get() >> 20) as u8
    }

    /// The flow label, 20 bits.
    #[must_use]
    pub fn flow_label(&self) -> u32 {
        self.version_class_flow.get() & 0xf_ffff
    }

    /// Replaces the traffic class.
    pub fn set_traffic_class(&mut self, class: u8) {
        let rest = self.version_class_flow.get() & !(0xff << 20);
        self.version_class_flow = (rest | u32::from(class) << 20).into();
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        self.source.into()
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv6Addr {
        self.destination.into()
    }
}

/// The fragment extension header (RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Fragment {
    /// The next header of the fragmented packet, one of [`crate::ipv4::protocol`] or [`extension`].
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// The upper 13 bits are the offset in bytes (a multiple of 8); bit 0: more fragments follow.
    pub offset_more: U16,
    /// Identifies the fragments of one packet.
    pub identification: U32,
}

impl Fragment {
    /// Length of the header.
    pub const LENGTH: usize = 8;

    /// The offset of this fragment in the original packet, bytes.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.offset_more.get() & !7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&[0x6a, 0xbc, 0xde, 0xf1, 0x12, 0x34, 6, 64]);
        bytes[8..24].copy_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        bytes[24..].copy_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
        let mut header = Ipv6::read_from_bytes(&bytes).unwrap();
        assert_eq!((header.version(), header.traffic_class(), header.flow_label()), (6, 0xab, 0xcdef1));
        assert_eq!((header.payload_length.get(), header.next_header, header.hop_limit), (0x1234, 6, 64));
        assert_eq!(header.source(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
        assert_eq!(header.destination(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
        header.set_traffic_class(0x03);
        assert_eq!(header.as_bytes()[..4], [0x60, 0x3c, 0xde, 0xf1]);
    }

    #[test]
    fn fragment_layout() {
        let fragment = Fragment::read_from_bytes(&[17, 0, 0x05, 0xa9, 1, 2, 3, 4]).unwrap();
        assert_eq!((fragment.next_header, fragment.offset()), (17, 1448));
        assert_eq!(fragment.identification.get(), 0x0102_0304);
        assert_eq!(size_of::<Fragment>(), Fragment::LENGTH);
    }
}
