//! Ethernet II framing (IEEE 802.3 clause 3).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr};
use core::str::FromStr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an untagged Ethernet header.
pub const HEADER: usize = 14;

/// EtherType values (IEEE 802 numbers, IANA).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IEEE 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1ad service tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// The VLAN ID in a tag control field (IEEE 802.1Q section 9.6).
pub const VLAN_ID: u16 = 0x0fff;

/// A VLAN tag. It stands where an untagged frame has its EtherType.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tag {
    /// [`ethertype::VLAN`] or [`ethertype::SERVICE_VLAN`].
    pub ethertype: U16,
    /// Priority and VLAN ID.
    pub control: U16,
}

impl Tag {
    /// Its offset in a frame, bytes.
    pub const OFFSET: usize = HEADER - 2;

    /// Whether it holds a priority and no VLAN: VLAN ID 0, which counts as untagged (IEEE 802.1Q table 9-2).
    #[must_use]
    #[inline(always)]
    pub const fn is_priority(&self) -> bool {
        matches!(self.ethertype.get(), ethertype::VLAN | ethertype::SERVICE_VLAN)
            && self.control.get() & VLAN_ID == 0
    }
}

/// A 48-bit MAC address.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address, ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The MAC of the endpoint with this address: 02:75 and the four bytes of an IPv4 address, or 02:76 and the last
    /// four bytes of an IPv6 address. Both prefixes are locally administered (IEEE 802c).
    #[must_use]
    pub const fn of(address: IpAddr) -> Mac {
        let (kind, [a, b, c, d]) = match address {
            IpAddr::V4(address) => (0x75, address.octets()),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                (0x76, [a, b, c, d])
            }
        };
        Mac([0x02, kind, a, b, c, d])
    }

    /// The IPv4 address that this MAC was made from; None: it was not made from one.
    #[must_use]
    pub const fn ipv4(&self) -> Option<Ipv4Addr> {
        match self.0 {
            [0x02, 0x75, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
            _ => None,
        }
    }

    /// The last four bytes of the IPv6 address that this MAC was made from; None: it was not made from one.
    #[must_use]
    pub const fn ipv6_low(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0x02, 0x76, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// Whether the group bit is set, as in multicast and broadcast addresses.
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six hexadecimal bytes separated by colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAMac;

impl fmt::Display for NotAMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six hexadecimal bytes, such as 02:75:0a:00:00:01")
    }
}

impl core::error::Error for NotAMac {}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(NotAMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        if parts.next().is_some() { Err(NotAMac) } else { Ok(Mac(bytes)) }
    }
}

/// The Ethernet header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination address.
    pub destination: Mac,
    /// Source address.
    pub source: Mac,
    /// One of [`ethertype`].
    pub ethertype: U16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    #[test]
    fn layout() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd];
        let header = Ethernet::read_from_bytes(&bytes).unwrap();
        assert_eq!(
            (header.destination, header.source),
            (Mac([1, 2, 3, 4, 5, 6]), Mac([7, 8, 9, 10, 11, 12]))
        );
        assert_eq!(header.ethertype.get(), ethertype::IPV6);
        assert_eq!(size_of::<Ethernet>(), HEADER);
    }

    #[test]
    fn text() {
        let mac: Mac = "02:75:0a:00:00:ff".parse().unwrap();
        assert_eq!(mac, Mac([0x02, 0x75, 10, 0, 0, 255]));
        for wrong in ["", "02:75:0a:00:00", "02:75:0a:00:00:ff:00", "2:75:0a:00:00:ff", "02:75:0a:00:00:fg"] {
            assert_eq!(wrong.parse::<Mac>(), Err(NotAMac), "{wrong}");
        }
    }

    #[test]
    fn derived_from_an_address_and_back() {
        let v4 = Ipv4Addr::new(10, 1, 2, 255);
        let mac = Mac::of(v4.into());
        assert_eq!(mac, Mac([0x02, 0x75, 10, 1, 2, 255]));
        assert_eq!((mac.ipv4(), mac.ipv6_low()), (Some(v4), None));
        let mac = Mac::of(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xa00, 0x0102).into());
        assert_eq!(mac, Mac([0x02, 0x76, 10, 0, 1, 2]));
        assert_eq!((mac.ipv4(), mac.ipv6_low()), (None, Some([10, 0, 1, 2])));
        assert!(!mac.is_multicast() && Mac::BROADCAST.is_multicast());
        assert_eq!(Mac([0x52, 0x54, 0, 1, 2, 3]).ipv4(), None);
    }
}
