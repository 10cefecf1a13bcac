//! ARP for IPv4 over Ethernet (RFC 826).

use crate::ethernet::{Mac, ethertype};
use core::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the packet.
pub const HEADER: usize = 28;
/// Hardware type Ethernet (IANA ARP parameters).
pub const ETHERNET: u16 = 1;
/// Operation: a request for the target's MAC.
pub const REQUEST: u16 = 1;
/// Operation: the answer.
pub const REPLY: u16 = 2;

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Arp {
    /// [`ETHERNET`].
    pub hardware_type: U16,
    /// [`ethertype::IPV4`].
    pub protocol_type: U16,
    /// Bytes of a MAC: 6.
    pub hardware_length: u8,
    /// Bytes of an IPv4 address: 4.
    pub protocol_length: u8,
    /// [`REQUEST`] or [`REPLY`].
    pub operation: U16,
    /// The sender's MAC address.
    pub sender_mac: Mac,
    /// The sender's IPv4 address.
    pub sender_ip: [u8; 4],
    /// The target's MAC address; undefined in a request.
    pub target_mac: Mac,
    /// The target's IPv4 address.
    pub target_ip: [u8; 4],
}

impl Arp {
    /// A packet for IPv4 over Ethernet.
    #[must_use]
    pub fn new(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Arp {
        Arp {
            hardware_type: ETHERNET.into(),
            protocol_type: ethertype::IPV4.into(),
            hardware_length: 6,
            protocol_length: 4,
            operation: operation.into(),
            sender_mac: sender.0,
            sender_ip: sender.1.octets(),
            target_mac: target.0,
            target_ip: target.1.octets(),
        }
    }

    /// Whether the types and lengths are those of IPv4 over Ethernet; the other fields mean nothing otherwise.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.hardware_type == ETHERNET
            && self.protocol_type == ethertype::IPV4
            && self.hardware_length == 6
            && self.protocol_length == 4
    }

    /// The sender's IPv4 address.
    #[must_use]
    pub fn sender(&self) -> Ipv4Addr {
        self.sender_ip.into()
    }

    /// The target's IPv4 address: in a request the one asked for, in a reply the asker's.
    #[must_use]
    pub fn target(&self) -> Ipv4Addr {
        self.target_ip.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let sender = (Mac([2, 0x75, 10, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
        let target = (Mac([0; 6]), Ipv4Addr::new(10, 0, 0, 2));
        let arp = Arp::new(REQUEST, sender, target);
        let bytes =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0x75, 10, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2];
        assert_eq!(arp.as_bytes(), bytes);
        assert_eq!(bytes.len(), HEADER);
        assert!(arp.is_ipv4());
        assert_eq!((arp.sender(), arp.target()), (sender.1, target.1));
        for wrong in [1, 3, 4, 5] {
            let mut bytes = bytes;
            bytes[wrong] = 99;
            assert!(!Arp::read_from_bytes(&bytes).unwrap().is_ipv4(), "byte {wrong}");
        }
    }
}
