//! The ranges of VTEPs, so that one and ten thousand cost the same to look an address up in.

use crate::dataplane::config::Cidr;
use hashbrown::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// What an IPv6 VTEP's MAC leaves out of its address: a range is within one of them.
type Upper = [u8; 12];

/// Ranges, IPv6 ones /96 or longer.
#[derive(Debug, Default)]
pub struct Ranges {
    v4: Trie<()>,
    v6: HashMap<Upper, Trie<()>>,
    /// By the last four bytes: the first range of the list that holds such an address.
    low: Trie<Upper>,
}

impl Ranges {
    /// Indexes the ranges.
    #[must_use]
    pub fn new(ranges: &[Cidr]) -> Ranges {
        let mut all = Ranges::default();
        for range in ranges {
            let prefix = u32::from(range.prefix);
            match range.subnet().address {
                IpAddr::V4(address) => all.v4.insert(address.to_bits(), prefix, ()),
                IpAddr::V6(address) => {
                    let (upper, low) = split(address);
                    all.v6.entry(upper).or_default().insert(low, prefix.saturating_sub(96), ());
                    all.low.insert(low, prefix.saturating_sub(96), upper);
                }
            }
        }
        all
    }

    /// Whether a range holds the address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.get(address.to_bits()).is_some(),
            IpAddr::V6(address) => {
                let (upper, low) = split(address);
                self.v6.get(&upper).is_some_and(|range| range.get(low).is_some())
            }
        }
    }

    /// The IPv6 address with these last four bytes that the first such range holds.
    #[must_use]
    pub fn of_low(&self, low: [u8; 4]) -> Option<Ipv6Addr> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *self.low.get(u32::from_be_bytes(low))?;
        let [m, n, o, p] = low;
        Some([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p].into())
    }
}

fn split(address: Ipv6Addr) -> (Upper, u32) {
    let [upper @ .., a, b, c, d] = address.octets();
    (upper, u32::from_be_bytes([a, b, c, d]))
}

/// The bits that a step of a look-up takes, and the slots of a node.
const STRIDE: u32 = 4;
const SLOTS: usize = 1 << STRIDE;

/// Values by prefixes of 32 bits. Of prefixes that overlap, the first one has the common part.
#[derive(Debug)]
struct Trie<T> {
    nodes: Vec<[Slot<T>; SLOTS]>,
}

#[derive(Debug, Clone, Copy)]
enum Slot<T> {
    Empty,
    Value(T),
    /// A node, by index.
    Node(usize),
}

impl<T> Default for Trie<T> {
    fn default() -> Trie<T> {
        Trie { nodes: Vec::new() }
    }
}

impl<T: Copy> Trie<T> {
    fn get(&self, mut bits: u32) -> Option<&T> {
        let mut node = self.nodes.first()?;
        loop {
            bits = bits.rotate_left(STRIDE);
            match &node[bits as usize % SLOTS] {
                Slot::Empty => return None,
                Slot::Value(value) => return Some(value),
                Slot::Node(next) => node = self.nodes.get(*next)?,
            }
        }
    }

    /// `bits` beyond the prefix are zero.
    fn insert(&mut self, bits: u32, prefix: u32, value: T) {
        if self.nodes.is_empty() {
            self.nodes.push([Slot::Empty; SLOTS]);
        }
        self.fill(0, bits, prefix, value);
    }

    fn fill(&mut self, node: usize, bits: u32, prefix: u32, value: T) {
        let first = bits.rotate_left(STRIDE) as usize % SLOTS;
        for slot in first..first + (SLOTS >> prefix.min(STRIDE)) {
            let next = match self.nodes[node][slot] {
                Slot::Value(_) => continue,
                Slot::Node(next) => next,
                Slot::Empty if prefix <= STRIDE => {
                    self.nodes[node][slot] = Slot::Value(value);
                    continue;
                }
                Slot::Empty => {
                    self.nodes.push([Slot::Empty; SLOTS]);
                    self.nodes[node][slot] = Slot::Node(self.nodes.len() - 1);
                    self.nodes.len() - 1
                }
            };
            self.fill(next, bits << STRIDE, prefix.saturating_sub(STRIDE), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Addresses at the edges of ranges, and some apart from them.
    fn around(ranges: &[Cidr]) -> impl Iterator<Item = IpAddr> {
        ranges.iter().flat_map(|range| {
            let near = |bits: u128, size: u128| {
                [bits, bits.wrapping_add(size - 1), bits.wrapping_sub(1), bits.wrapping_add(size)]
            };
            match range.subnet().address {
                IpAddr::V4(address) => near(address.to_bits().into(), 1 << (32 - range.prefix))
                    .map(|bits| IpAddr::from((bits as u32).to_be_bytes())),
                IpAddr::V6(address) => near(address.to_bits(), 1 << (128 - range.prefix))
                    .map(|bits| IpAddr::from(bits.to_be_bytes())),
            }
        })
    }

    #[test]
    fn a_range_holds_what_its_prefix_says() {
        let lists: [&[&str]; 6] = [
            &[],
            &["0.0.0.0/0"],
            &["10.0.0.0/8", "10.0.0.0/30", "192.168.4.128/25"],
            &["10.0.0.4/30", "10.0.0.0/29", "10.1.2.3/32", "10.1.2.5/32", "128.0.0.0/1", "10.7.7.9/13"],
            &["fd00::/96", "fd00::1:0:0/97", "fd00:0:0:1::7/128", "10.0.0.0/23"],
            &["fd00:0:0:1::/112", "fd00:0:0:2::/111"],
        ];
        let every: Vec<Cidr> = lists.iter().flat_map(|list| cidrs(list)).collect();
        for list in lists {
            let ranges = cidrs(list);
            let indexed = Ranges::new(&ranges);
            for address in around(&every) {
                let expected = ranges.iter().any(|range| range.contains(address));
                assert_eq!(indexed.contains(address), expected, "{address} in {list:?}");
            }
        }
    }

    #[test]
    fn the_first_range_has_a_mac_that_two_could_have() {
        let ranges = Ranges::new(&cidrs(&["fd00:0:0:1::/112", "fd00:0:0:2::/111", "10.0.0.0/8"]));
        let of = |low: u32| ranges.of_low(low.to_be_bytes());
        assert_eq!(of(0x0000_0007), "fd00:0:0:1::7".parse().ok());
        assert_eq!(of(0x0001_0007), "fd00:0:0:2::1:7".parse().ok());
        assert_eq!(of(0x0a00_0007), None);
    }

    /// Every length, at random.
    #[test]
    fn ten_thousand_ranges_are_those_of_the_list() {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let ranges: Vec<Cidr> = (0..10_000)
            .map(|number| {
                let (bits, prefix) = (next() & 0x0fff_ffff | 0x0a00_0000, 12 + (next() % 21) as u8);
                if number % 2 == 0 {
                    return Cidr { address: bits.to_be_bytes().into(), prefix };
                }
                let upper = 0xfd00_u128 << 112 | u128::from(next() % 4) << 32;
                Cidr { address: (upper | u128::from(bits)).to_be_bytes().into(), prefix: 96 + prefix }
            })
            .collect();
        let indexed = Ranges::new(&ranges);
        let mut found = [0, 0];
        for address in around(&ranges).step_by(13) {
            let expected = ranges.iter().any(|range| range.contains(address));
            assert_eq!(indexed.contains(address), expected, "{address}");
            found[usize::from(expected)] += 1;
        }
        assert!(found.iter().all(|count| *count > 100), "{found:?}");
    }
}
