//! A node's underlay NICs, a user's network, and their names and numbers.

use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvn_api::dataplane::config::{Cidr, Encapsulation, Path as Gear, Workers};
use uvn_wire::cgroup::NETWORK_ENTRIES;
use uvn_wire::vxlan::Vni;

/// Underlay NICs of a node, at most: an endpoint's name ends in one digit for its NIC.
pub const MAX_NICS: usize = 10;
/// The routing table of lease number 0: a number far from those that sites and other software choose.
pub const FIRST_TABLE: u32 = 1_966_080_000;

/// Networks of a node, at most, whatever the NAT pools hold: number 0 is the node's own.
pub const MAX_NETWORKS: u32 = NETWORK_ENTRIES - 1;

/// Pools of NAT addresses: one address per family and network. They do not leave the node: off-subnet traffic leaves it
/// with the NIC's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// IPv4 pool.
    pub ipv4: Cidr,
    /// IPv6 pool.
    pub ipv6: Cidr,
}

impl Default for Nat {
    fn default() -> Self {
        Nat {
            // RFC 6598: shared address space, never routed beyond a site.
            ipv4: Cidr { address: IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), prefix: 10 },
            // RFC 4193 section 3: a local prefix of our own.
            ipv6: Cidr { address: IpAddr::V6(Ipv6Addr::new(0xfd75, 0x766e, 0, 0, 0, 0, 0, 0)), prefix: 64 },
        }
    }
}

impl Nat {
    /// The number of networks that the pools have addresses for, at most [`MAX_NETWORKS`].
    #[must_use]
    pub fn slots(&self) -> u32 {
        // The first and last address of a pool stay unused.
        let hosts = |bits: u8| 1u32.checked_shl(bits.into()).map_or(u32::MAX, |size| size.saturating_sub(2));
        hosts(32_u8.saturating_sub(self.ipv4.prefix))
            .min(hosts(128_u8.saturating_sub(self.ipv6.prefix)))
            .min(MAX_NETWORKS)
    }

    /// The IPv4 and IPv6 address of a lease number below [`Nat::slots`].
    #[must_use]
    pub fn addresses(&self, slot: u32) -> [IpAddr; 2] {
        [self.ipv4.address, self.ipv6.address].map(|base| match base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits().wrapping_add(slot).wrapping_add(1)).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().wrapping_add(u128::from(slot) + 1)).into(),
        })
    }
}

/// What carries the networks of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataPath {
    /// `uvn-dataplane`: AF_XDP, a TAP per user.
    Engine,
    /// A kernel VXLAN device per user.
    Kernel,
}

/// An underlay NIC of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The index of its `[[underlay]]` table in the configuration: 0 to [`MAX_NICS`] - 1.
    pub slot: u8,
    /// Its name, such as `em1`.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// ARPHRD_* type: 1 is Ethernet, 32 InfiniBand.
    pub arphrd: u16,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its receive queues.
    pub queues: u32,
    /// The underlay's subnets: inside a network, all of them are on the link.
    pub subnets: Vec<Cidr>,
    /// Its addresses inside these subnets, IPv4 first; endpoints carry the same. The first is the VTEP.
    pub addresses: Vec<Cidr>,
    /// What carries its networks.
    pub path: DataPath,
    /// Why `path` is what it is: for `uvn status`.
    pub reason: String,
    /// The gear that its data plane is configured for.
    pub gear: Gear,
    /// The outer headers.
    pub encapsulation: Encapsulation,
    /// The worker threads of its data plane.
    pub workers: Workers,
    /// Underlay multicast group for broadcast and unknown frames.
    pub group: Option<IpAddr>,
    /// Broadcast and multicast frames per second of a network; None: a rate that suits the number of nodes.
    pub flood_rate: Option<u32>,
}

impl Nic {
    /// This node's VTEP addresses on it: the first IPv4 and the first IPv6 address.
    #[must_use]
    pub fn vteps(&self) -> Vec<IpAddr> {
        let first = |v4: bool| self.addresses.iter().map(|cidr| cidr.address).find(|a| a.is_ipv4() == v4);
        [first(true), first(false)].into_iter().flatten().collect()
    }
}

/// A default route of this node: the way out of the underlay's subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The device it leaves by, an underlay NIC or another.
    pub device: String,
    /// The router; None on a point-to-point device.
    pub gateway: Option<IpAddr>,
    /// This node's address there, of the route's family: the source of packets of networks that leave by it.
    pub address: IpAddr,
}

/// What the networks on this node are made of: its NICs and routes now, and its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The underlay NICs.
    pub nics: Vec<Nic>,
    /// Addresses of its other devices: inside a network they are local, too.
    pub others: Vec<IpAddr>,
    /// Its default routes: one per family at most.
    pub exits: Vec<Exit>,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
    /// The pools of NAT addresses: each network has one address of each.
    pub nat: Nat,
    /// Hosts on the underlay's subnets that do not run uvn.
    pub hosts: Vec<Cidr>,
}

/// A user's network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The user's UID.
    pub uid: u32,
    /// Its VXLAN network identifier.
    pub vni: Vni,
    /// Its lease number on this node, from 0: routing table, number and NAT addresses follow from it.
    pub slot: u32,
    /// Whether it may reach beyond the underlay's subnets.
    pub off_subnet: bool,
}

impl Network {
    /// Name of its VRF device: `uvn1234`.
    #[must_use]
    pub fn vrf(&self) -> String {
        format!("uvn{}", self.uid)
    }

    /// Name of its endpoint on a NIC: `uvn1234.0`. 15 bytes at most, which is what the kernel allows.
    #[must_use]
    pub fn endpoint(&self, nic: &Nic) -> String {
        format!("uvn{}.{}", self.uid, nic.slot)
    }

    /// The alternative name of its endpoint on a NIC, which tells people the NIC: `em1u1234`.
    #[must_use]
    pub fn altname(&self, nic: &Nic) -> String {
        format!("{}u{}", nic.name, self.uid)
    }

    /// Its number in marks and in the connection tracker, from 1; 0 is the node itself.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.slot.saturating_add(1)
    }

    /// The number of its routing table, from [`FIRST_TABLE`] on.
    #[must_use]
    pub fn table(&self) -> u32 {
        FIRST_TABLE.saturating_add(self.slot)
    }
}

/// The UID in the name of one of uvn's VRFs or endpoints; None: the device is not uvn's.
#[must_use]
pub fn uid_of(device: &str) -> Option<u32> {
    let rest = device.strip_prefix("uvn")?;
    let digits = rest.split_once('.').map_or(rest, |(uid, _)| uid);
    let uid: u32 = digits.parse().ok()?;
    // No sign and no leading zeros: exactly the names made above.
    (uid.to_string() == digits).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(slot: u8) -> Nic {
        Nic {
            slot,
            name: "enp129s0f0np0v1".into(),
            index: 7,
            mtu: 1500,
            arphrd: 1,
            up: true,
            queues: 1,
            subnets: Vec::new(),
            addresses: vec!["fd00::1/64".parse().unwrap(), "10.0.0.1/16".parse().unwrap()],
            path: DataPath::Engine,
            reason: String::new(),
            gear: Gear::Auto,
            encapsulation: Encapsulation::default(),
            workers: Workers::default(),
            group: None,
            flood_rate: None,
        }
    }

    #[test]
    fn names_of_the_largest_uid_fit_the_kernel() {
        let network = Network { uid: 4_294_967_294, vni: Vni::new(5).unwrap(), slot: 3, off_subnet: true };
        assert!(network.vrf().len() <= 15);
        assert_eq!(network.endpoint(&nic(9)), "uvn4294967294.9");
        assert_eq!(network.endpoint(&nic(9)).len(), 15);
        assert_eq!(network.altname(&nic(0)), "enp129s0f0np0v1u4294967294");
        assert_eq!(network.table(), FIRST_TABLE + 3);
    }

    #[test]
    fn only_our_own_names_are_ours() {
        assert_eq!(uid_of("uvn1234"), Some(1234));
        assert_eq!(uid_of("uvn1234.0"), Some(1234));
        for other in ["uvn", "uvn+5", "uvn007", "uvnrig-1", "em1", "uvn4294967296"] {
            assert_eq!(uid_of(other), None, "{other}");
        }
    }

    #[test]
    fn vteps_are_one_of_each_family_ipv4_first() {
        let vteps: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(nic(0).vteps(), vteps);
    }
}
