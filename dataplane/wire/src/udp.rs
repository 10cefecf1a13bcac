//! UDP (RFC 768).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header.
pub const HEADER: usize = 8;
/// The offset of the checksum in the header, bytes.
pub const CHECKSUM: usize = 6;

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Length of header and payload.
    pub length: U16,
    /// Checksum with pseudo-header; zero: there is none.
    pub checksum: U16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let header = Udp::read_from_bytes(&[0x12, 0xb5, 0xc0, 1, 0, 30, 0xab, 0xcd]).unwrap();
        assert_eq!((header.source_port.get(), header.destination_port.get()), (4789, 49153));
        assert_eq!((header.length.get(), header.checksum.get()), (30, 0xabcd));
        assert_eq!(header.as_bytes()[CHECKSUM..], [0xab, 0xcd]);
        assert_eq!(size_of::<Udp>(), HEADER);
    }
}
