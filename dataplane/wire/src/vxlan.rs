//! VXLAN header (RFC 7348 section 5) and the VNI.

use core::fmt;

/// UDP port assigned to VXLAN (RFC 7348 section 5, IANA).
pub const PORT: u16 = 4789;
/// Length of the VXLAN header.
pub const HEADER: usize = 8;
/// The I flag: the VNI is valid. All other flag bits are reserved.
pub const FLAG_VNI: u8 = 0x08;

/// A 24-bit VXLAN network identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The largest VNI, 2^24 - 1.
    pub const MAX: u32 = (1 << 24) - 1;

    /// None if `value` needs more than 24 bits.
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
