//! What the programs of `ebpf/uvn-ebpf.o` and their loader share: verdicts, and the keys, values and sizes of the maps.

use crate::ethernet::Mac;
use crate::verdicts;
use crate::vxlan::{self, Vni};
use core::net::{IpAddr, Ipv6Addr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VTEP addresses of this node and joined multicast groups, at most.
pub const LOCAL_ENTRIES: u32 = 64;
/// Single allowed outer sources, at most.
pub const VTEP_ENTRIES: u32 = 16_384;
/// Prefixes of allowed outer sources, at most.
pub const PREFIX_ENTRIES: u32 = 1024;
/// VNIs on this NIC, at most.
pub const VNI_ENTRIES: u32 = 16_384;
/// Networks that the shortcut carries, at most: the counters of each take 32 bytes per CPU.
pub const TRAFFIC_ENTRIES: u32 = 2048;
/// Overlay addresses of VTEPs, at most.
pub const OVERLAY_ENTRIES: u32 = 4 * VTEP_ENTRIES;
/// NIC queues, at most.
pub const QUEUE_ENTRIES: u32 = 256;
/// VNIs that are not on this NIC and are remembered, the most recent ones.
pub const UNKNOWN_ENTRIES: u32 = 1024;

verdicts! {
    /// What a program did with a frame. The value is its counter's index.
    pub enum Verdict {
        /// Not uvn's: passed to the kernel.
        Pass = "xdp_pass" passes,
        /// Handed to the engine: to the queue's AF_XDP socket, or in the shortcut to its TAP.
        Redirected = "xdp_redirected" passes,
        /// Dropped: no whole UDP payload with a VXLAN header.
        BadLength = "xdp_bad_length" drops,
        /// Dropped: the I flag is missing.
        BadFlags = "xdp_bad_flags" drops,
        /// Dropped: no network with this VNI on this NIC.
        UnknownVni = "xdp_unknown_vni" drops,
        /// Dropped: the outer source is not an allowed VTEP.
        UnknownVtep = "xdp_unknown_vtep" drops,
        /// Dropped: the queue has no AF_XDP socket.
        NoSocket = "xdp_no_socket" drops,
        /// Shortcut gear, received: verified, stripped of its outer headers and handed to its endpoint, perhaps as a
        /// super-frame.
        Stripped = "tc_stripped" passes,
        /// Shortcut gear, sent: encapsulated and handed to the NIC, perhaps as a super-frame.
        Encapsulated = "tc_encapsulated" passes,
        /// Shortcut gear, dropped: the kernel had no memory to change its headers.
        NoMemory = "tc_no_memory" drops,
        /// Dropped: to a VTEP address of this node, but to the MAC of another host.
        OtherHost = "xdp_other_host" drops,
        /// Dropped: outer headers that no VXLAN sender writes: IPv4 options, or a priority tag (VLAN ID 0) behind
        /// another.
        BadHeader = "xdp_bad_header" drops,
        /// Engine gear, dropped: XDP in generic mode has not seen it.
        Unseen = "tc_unseen" drops,
        /// Passed: the first fragment of a packet to our address and port. The kernel puts it together, and nobody
        /// takes it. Later fragments show no port: they count as [`Verdict::Pass`].
        Fragment = "xdp_fragment" passes,
    }
}

/// An underlay address as a map key: IPv6, or IPv4-mapped (RFC 4291 section 2.5.5.2), in network byte order.
/// Words instead of bytes, so that the BPF code copies it in four pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// Bits before the IPv4 address in a mapped address: an IPv4 prefix is this much longer as a key.
    pub const IPV4_BITS: u32 = 96;

    /// The key of an IPv4 address.
    #[must_use]
    #[inline]
    pub const fn ipv4(octets: [u8; 4]) -> Address {
        Address::mapped(u32::from_ne_bytes(octets))
    }

    /// The key of an IPv4 address that is a word in network byte order.
    #[must_use]
    #[inline]
    pub const fn mapped(word: u32) -> Address {
        Address([0, 0, 0xffff_u32.to_be(), word])
    }

    /// Whether it is the key of an IPv4 address, or of an IPv6 address that looks like one.
    #[must_use]
    #[inline(always)]
    pub const fn is_mapped(self) -> bool {
        let Address([a, b, c, _]) = self;
        a | b == 0 && c == 0xffff_u32.to_be()
    }

    /// The key of an IPv6 address.
    #[must_use]
    #[inline]
    pub const fn ipv6(octets: [u8; 16]) -> Address {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Address([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Address {
        match address {
            IpAddr::V4(address) => Address::ipv4(address.octets()),
            IpAddr::V6(address) => Address::ipv6(address.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(Address(words): Address) -> IpAddr {
        let bits = words.into_iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(word)));
        IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical()
    }
}

/// One VNI on this NIC.
///
/// The kernel reuses an element that is removed from a hash map for another key at once, while programs still read it.
/// So values begin with their keys, which are written first; the programs read the keys last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Network {
    /// The key.
    pub vni: u32,
    /// Interface index of the endpoint's device. 0: the engine alone carries this network.
    pub endpoint: u32,
    /// The endpoint's MAC, as [`mac_key`].
    pub mac: [u32; 2],
    /// Its index among the [`Traffic`] counters.
    pub slot: u32,
    /// The endpoint's overlay addresses; one is repeated if there are fewer. Frames with another source go to the
    /// engine.
    pub addresses: [Address; Network::ADDRESSES],
}

impl Network {
    /// The entry of a network that the engine alone carries.
    #[must_use]
    pub const fn engine(vni: Vni) -> Network {
        let addresses = [Address([0; 4]); Network::ADDRESSES];
        Network { vni: vni.get(), endpoint: 0, mac: [0; 2], slot: 0, addresses }
    }

    /// Overlay addresses of an endpoint that the shortcut knows, at most.
    pub const ADDRESSES: usize = 4;
}

/// The allowed VTEP of an overlay address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Owner {
    /// The key, as in [`Network`].
    pub overlay: Address,
    /// The VTEP.
    pub vtep: Address,
}

/// How to send to one VTEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Hop {
    /// The key, as in [`Network`]: the MAC of its endpoints, as [`mac_key`].
    pub mac: [u32; 2],
    /// The outer headers, all but what differs from frame to frame; IPv4's do not use the end.
    pub headers: [u8; vxlan::OVER_IPV6],
    /// Fills up to the next word.
    pub padding: [u8; 2],
    /// Length of the headers: [`vxlan::OVER_IPV4`] or [`vxlan::OVER_IPV6`].
    pub length: u32,
    /// The longest inner frame that fits the path, bytes.
    pub largest: u32,
    /// IPv4: the header's sum (RFC 1071) without total length and TOS, folded.
    pub ip_sum: u32,
    /// The outer DSCP in the upper six bits of the TOS, or [`Hop::INHERIT`].
    pub dscp: u32,
}

impl Hop {
    /// The inner DSCP is copied.
    pub const INHERIT: u32 = u32::MAX;
}

/// What one CPU has counted for a network in the shortcut, as `Counters` of the engine's workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Traffic {
    /// Inner frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Inner frames sent (each segment counts).
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

/// A MAC as a map key: its bytes, then two zero bytes.
#[must_use]
#[inline(always)]
pub const fn mac_key(Mac([a, b, c, d, e, f]): Mac) -> [u32; 2] {
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, 0, 0])]
}

/// What one CPU has seen of a VNI that is not on this NIC. The key is the VNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Unknown {
    /// The outer source of the first such frame, an allowed VTEP. Zero: another CPU saw that frame.
    pub source: Address,
    /// The number of frames that this CPU saw, from any allowed VTEP.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_being_keys() {
        for text in ["10.1.2.3", "fd00::1", "::1", "255.255.255.255", "ff02::1:2"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn nothing_has_hidden_padding() {
        assert_eq!(size_of::<Unknown>(), 24);
        assert_eq!(size_of::<Network>(), 84);
        assert_eq!(size_of::<Owner>(), 32);
        assert_eq!(size_of::<Hop>(), 96);
        assert_eq!(size_of::<Traffic>(), 32);
    }
}
