//! VXLAN header (RFC 7348 section 5) and the VNI.

use crate::{ethernet, ipv4, ipv6, udp};
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// UDP port assigned to VXLAN (RFC 7348 section 5, IANA).
pub const PORT: u16 = 4789;
/// Length of the VXLAN header.
pub const HEADER: usize = 8;
/// Length of the UDP and VXLAN headers.
pub const UPPER: usize = udp::HEADER + HEADER;
/// Length of all outer headers over IPv4, Ethernet's included, without options.
pub const OVER_IPV4: usize = ethernet::HEADER + ipv4::HEADER + UPPER;
/// Length of all outer headers over IPv6, Ethernet's included.
pub const OVER_IPV6: usize = ethernet::HEADER + ipv6::HEADER + UPPER;
/// The I flag: the VNI is valid. All other flag bits are reserved.
pub const FLAG_VNI: u8 = 0x08;

/// A 24-bit VXLAN network identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The largest VNI, 2^24 - 1.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Makes a VNI; None: `value` needs more than 24 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Vni> {
        if value <= Self::MAX { Some(Vni(value)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl From<[u8; 3]> for Vni {
    fn from([a, b, c]: [u8; 3]) -> Vni {
        Vni(u32::from_be_bytes([0, a, b, c]))
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Vxlan {
    /// [`FLAG_VNI`]; the other bits are reserved.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The VNI, in network byte order.
    pub vni: [u8; 3],
    /// Zero.
    pub reserved_last: u8,
}

impl Vxlan {
    /// The header of a network's frames.
    #[must_use]
    pub const fn new(vni: Vni) -> Vxlan {
        let [_, a, b, c] = vni.get().to_be_bytes();
        Vxlan { flags: FLAG_VNI, reserved: [0; 3], vni: [a, b, c], reserved_last: 0 }
    }

    /// The VNI, which is valid only if [`Vxlan::has_vni`].
    #[must_use]
    pub fn vni(&self) -> Vni {
        self.vni.into()
    }

    /// Whether the I flag is set.
    #[must_use]
    pub const fn has_vni(&self) -> bool {
        self.flags & FLAG_VNI != 0
    }

    /// Whether a reserved bit is set. RFC 7348 ignores such bits, Linux drops the packet (drivers/net/vxlan,
    /// vxlan_rcv).
    #[must_use]
    pub fn has_reserved_bits(&self) -> bool {
        self.flags & !FLAG_VNI != 0 || self.reserved != [0; 3] || self.reserved_last != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let vni = Vni::new(0x12_3456).unwrap();
        let header = Vxlan::new(vni);
        assert_eq!(header.as_bytes(), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(header.vni(), vni);
        assert!(header.has_vni() && !header.has_reserved_bits());
        assert_eq!(size_of::<Vxlan>(), HEADER);
    }

    #[test]
    fn every_bit_but_the_i_flag_and_the_vni_is_reserved() {
        for bit in (0..64).filter(|bit| *bit != 4 && !(32..56).contains(bit)) {
            let mut bytes = [8, 0, 0, 0, 0, 0, 1, 0];
            bytes[bit / 8] |= 0x80 >> (bit % 8);
            assert!(Vxlan::read_from_bytes(&bytes).unwrap().has_reserved_bits(), "bit {bit}");
        }
        assert!(!Vxlan::read_from_bytes(&[0; 8]).unwrap().has_vni());
    }

    #[test]
    fn vni_bounds() {
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Some(0xff_ffff));
        assert_eq!(Vni::new(Vni::MAX + 1), None);
    }
}
