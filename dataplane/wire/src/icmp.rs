//! ICMP (RFC 792), ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861): the messages that uvn answers or sends.

use crate::ethernet::Mac;
use core::net::Ipv6Addr;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// ICMP types and codes.
pub mod v4 {
    /// Type: destination unreachable.
    pub const DESTINATION_UNREACHABLE: u8 = 3;
    /// Code of it: fragmentation needed and DF set (RFC 1191 section 4).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// ICMPv6 types.
pub mod v6 {
    /// Destination unreachable; error messages are the types below 128.
    pub const DESTINATION_UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// The first type that is not an error message (RFC 4443 section 2.1).
    pub const INFORMATIONAL: u8 = 128;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
}

/// The offset of the checksum in every ICMP and ICMPv6 message, bytes.
pub const CHECKSUM: usize = 2;
/// Neighbour discovery is valid only with this hop limit (RFC 4861 section 7.1).
pub const NEIGHBOUR_HOP_LIMIT: u8 = 255;
/// Flag in [`Neighbour::flags`] of an advertisement: it answers a solicitation.
pub const SOLICITED: u32 = 1 << 30;
/// Flag in [`Neighbour::flags`] of an advertisement: it replaces what is cached.
pub const OVERRIDE: u32 = 1 << 29;
/// Option: the sender's link-layer address, in a solicitation.
pub const SOURCE_LINK_LAYER: u8 = 1;
/// Option: the target's link-layer address, in an advertisement.
pub const TARGET_LINK_LAYER: u8 = 2;

/// "Fragmentation needed" of ICMP (RFC 1191 section 4) and "packet too big" of ICMPv6 (RFC 4443 section 3.2).
///
/// The start of the packet that did not fit follows. In ICMP the upper 16 bits of `mtu` are unused and zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TooBig {
    /// [`v4::DESTINATION_UNREACHABLE`] or [`v6::PACKET_TOO_BIG`].
    pub kind: u8,
    /// [`v4::FRAGMENTATION_NEEDED`] or zero.
    pub code: u8,
    /// Checksum; in ICMPv6 with pseudo-header.
    pub checksum: U16,
    /// The largest IP packet that fits.
    pub mtu: U32,
}

/// Neighbour solicitation and advertisement (RFC 4861 sections 4.3 and 4.4). Options follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Neighbour {
    /// [`v6::NEIGHBOUR_SOLICITATION`] or [`v6::NEIGHBOUR_ADVERTISEMENT`].
    pub kind: u8,
    /// The code: zero.
    pub code: u8,
    /// Checksum with pseudo-header.
    pub checksum: U16,
    /// [`SOLICITED`] and [`OVERRIDE`] in an advertisement, zero in a solicitation.
    pub flags: U32,
    /// The address asked for, or the one that is advertised.
    pub target: [u8; 16],
}

impl Neighbour {
    /// Length of the message without options.
    pub const LENGTH: usize = 24;

    /// The address asked for, or the one that is advertised.
    #[must_use]
    pub fn target(&self) -> Ipv6Addr {
        self.target.into()
    }
}

/// The link-layer address option for Ethernet (RFC 4861 section 4.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LinkLayerOption {
    /// [`SOURCE_LINK_LAYER`] or [`TARGET_LINK_LAYER`].
    pub kind: u8,
    /// Length of the option in units of 8 bytes: 1.
    pub length: u8,
    /// The address.
    pub mac: Mac,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_big_layout() {
        let message = TooBig::read_from_bytes(&[3, 4, 0xab, 0xcd, 0, 0, 5, 0xaa]).unwrap();
        assert_eq!((message.kind, message.code), (v4::DESTINATION_UNREACHABLE, v4::FRAGMENTATION_NEEDED));
        assert_eq!((message.checksum.get(), message.mtu.get()), (0xabcd, 1450));
        assert_eq!(message.as_bytes()[CHECKSUM..4], [0xab, 0xcd]);
    }

    #[test]
    fn neighbour_layout() {
        let target = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let mut bytes = [0; Neighbour::LENGTH];
        bytes[..5].copy_from_slice(&[136, 0, 0xab, 0xcd, 0x60]);
        bytes[8..].copy_from_slice(&target.octets());
        let message = Neighbour::read_from_bytes(&bytes).unwrap();
        assert_eq!(message.kind, v6::NEIGHBOUR_ADVERTISEMENT);
        assert_eq!(message.flags.get(), SOLICITED | OVERRIDE);
        assert_eq!(message.target(), target);
        assert_eq!(message.as_bytes()[CHECKSUM..4], [0xab, 0xcd]);
        let option = LinkLayerOption::read_from_bytes(&[2, 1, 2, 0x75, 10, 0, 0, 1]).unwrap();
        assert_eq!((option.kind, option.length), (TARGET_LINK_LAYER, 1));
        assert_eq!(option.mac, Mac([2, 0x75, 10, 0, 0, 1]));
    }
}
