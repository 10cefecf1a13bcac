//! Congestion marks on tunnelled packets (RFC 3168 section 5, RFC 6040).

/// The ECN field in a TOS or traffic class.
pub const MASK: u8 = 3;
/// Not ECN-capable transport.
const NOT_ECT: u8 = 0;
/// ECN-capable transport, the other codepoint.
const ECT_1: u8 = 1;
/// ECN-capable transport.
const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// What decapsulation does with the inner ECN field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decap {
    /// The field stays as it is.
    Keep,
    /// The field becomes this value.
    Set(u8),
    /// The packet is dropped.
    Drop,
}

/// The rule of RFC 6040 section 4.2, figure 4, for the TOS or traffic class of both headers.
#[must_use]
#[inline(always)]
pub const fn decap(outer: u8, inner: u8) -> Decap {
    match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => Decap::Drop,
        (CE, ECT_0 | ECT_1) => Decap::Set(CE),
        (ECT_1, ECT_0) => Decap::Set(ECT_1),
        _ => Decap::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_as_in_figure_4() {
        use Decap::{Drop, Keep, Set};
        // Rows: the inner field; columns: the outer one. In the order of their values: Not-ECT, ECT(1), ECT(0), CE.
        let expected = [
            [Keep, Keep, Keep, Drop],
            [Keep, Keep, Keep, Set(CE)],
            [Keep, Set(ECT_1), Keep, Set(CE)],
            [Keep, Keep, Keep, Keep],
        ];
        for (inner, row) in (0..).zip(expected) {
            for (outer, decapped) in (0..).zip(row) {
                // Whatever the DSCP.
                assert_eq!(decap(0xb8 | outer, 0x60 | inner), decapped, "inner {inner}, outer {outer}");
            }
        }
    }
}
