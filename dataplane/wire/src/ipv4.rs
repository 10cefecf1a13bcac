//! IPv4 (RFC 791).

use crate::checksum::Sum;
use core::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a header without options.
pub const HEADER: usize = 20;
/// Length of the longest header.
pub const MAX_HEADER: usize = 60;
/// Version 4 and a header without options: the first byte of nearly every packet.
pub const VERSION_IHL: u8 = 0x45;
/// Flag in [`Ipv4::fragment`]: do not fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flag in [`Ipv4::fragment`]: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in [`Ipv4::fragment`], in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Protocol numbers, shared with IPv6's next header (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// The header without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    /// Version, and header length in units of 4 bytes.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload.
    pub total_length: U16,
    /// Identifies the fragments of one packet.
    pub identification: U16,
    /// Flags and fragment offset.
    pub fragment: U16,
    /// Hops left.
    pub ttl: u8,
    /// One of [`protocol`].
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// 4, unless the packet is malformed.
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Length of the header with options, in bytes; less than [`HEADER`] if malformed.
    #[must_use]
    pub const fn header_length(&self) -> usize {
        (self.version_ihl & 0x0f) as usize * 4
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> Ipv4Addr {
        self.source.into()
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> Ipv4Addr {
        self.destination.into()
    }

    /// Whether this is a fragment, first or later.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Stores the checksum of a header without options.
    pub fn set_checksum(&mut self) {
        self.checksum = U16::ZERO;
        self.checksum = Sum::of(self.as_bytes()).checksum().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example header of RFC 1071's usual illustration: 192.168.0.1 to 192.168.0.199.
    const BYTES: [u8; HEADER] =
        [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 192, 168, 0, 1, 192, 168, 0, 199];

    #[test]
    fn layout() {
        let header = Ipv4::read_from_bytes(&BYTES).unwrap();
        assert_eq!((header.version(), header.header_length()), (4, HEADER));
        assert_eq!(header.total_length.get(), 0x73);
        assert_eq!(header.protocol, protocol::UDP);
        assert_eq!(header.source(), Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(header.destination(), Ipv4Addr::new(192, 168, 0, 199));
        assert_eq!(header.fragment.get(), DONT_FRAGMENT);
        assert!(!header.is_fragment());
    }

    #[test]
    fn checksum() {
        let mut header = Ipv4::read_from_bytes(&BYTES).unwrap();
        header.checksum = 0xffff.into();
        header.set_checksum();
        assert_eq!(header.as_bytes(), BYTES);
    }

    #[test]
    fn fragments() {
        let mut header = Ipv4::read_from_bytes(&BYTES).unwrap();
        for fragment in [MORE_FRAGMENTS, 1, FRAGMENT_OFFSET] {
            header.fragment = fragment.into();
            assert!(header.is_fragment());
        }
    }
}
