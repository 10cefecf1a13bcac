//! TCP (RFC 9293).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a header without options.
pub const HEADER: usize = 20;
/// Length of the longest header.
pub const MAX_HEADER: usize = 60;
/// The offset of the checksum in the header, bytes.
pub const CHECKSUM: usize = 16;

/// Bits of [`Tcp::flags`].
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN echo (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// The header without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Sequence number of the first payload byte.
    pub sequence: U32,
    /// The sequence number expected next.
    pub acknowledgement: U32,
    /// Header length in units of 4 bytes (high nibble); reserved bits.
    pub data_offset: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Receive window.
    pub window: U16,
    /// Checksum with pseudo-header.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

impl Tcp {
    /// Length of the header with options, in bytes; less than [`HEADER`] if malformed.
    #[must_use]
    pub const fn header_length(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let bytes =
            [0, 80, 0xc0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x80, flag::ACK | flag::CWR, 0x10, 0, 0xab, 0xcd, 0, 9];
        let header = Tcp::read_from_bytes(&bytes).unwrap();
        assert_eq!((header.source_port.get(), header.destination_port.get()), (80, 49153));
        assert_eq!((header.sequence.get(), header.acknowledgement.get()), (0x0102_0304, 0x0506_0708));
        assert_eq!((header.header_length(), header.flags), (32, 0x90));
        assert_eq!((header.window.get(), header.checksum.get(), header.urgent.get()), (0x1000, 0xabcd, 9));
        assert_eq!(header.as_bytes()[CHECKSUM..18], [0xab, 0xcd]);
        assert_eq!(size_of::<Tcp>(), HEADER);
    }
}
