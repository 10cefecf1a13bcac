//! The kernel's objects in a plan, the steps between plans, and both as text.

use super::NAT_TABLE;
use std::fmt;
use std::net::IpAddr;
use uvn_api::dataplane::config::Cidr;
use uvn_wire::ethernet::Mac;

/// A kernel object, or one setting of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A VRF device and its table.
    Vrf {
        /// Its name.
        name: String,
        /// Its table.
        table: u32,
    },
    /// A persistent TAP with a virtio-net header: an endpoint over the engine.
    Tap {
        /// Its name.
        name: String,
        /// Whether it can have more than one queue.
        multi_queue: bool,
    },
    /// A kernel VXLAN device: an endpoint on a NIC without a data plane.
    Vxlan {
        /// Its name.
        name: String,
        /// Its VXLAN network identifier.
        vni: u32,
        /// This node's VTEP address.
        local: IpAddr,
        /// Name of the NIC below.
        nic: String,
        /// UDP port.
        port: u16,
        /// Underlay multicast group for broadcast and unknown frames. With a group, the device learns MACs.
        group: Option<IpAddr>,
        /// The outer TTL or hop limit.
        ttl: u8,
        /// The outer DSCP; None: the inner one.
        dscp: Option<u8>,
        /// Whether it computes outer UDP checksums.
        checksum: bool,
    },
    /// A device's alternative name (`ip link property`).
    Altname {
        /// The device.
        device: String,
        /// The name.
        name: String,
    },
    /// A device's MAC.
    Mac {
        /// The device.
        device: String,
        /// Its MAC.
        mac: Mac,
    },
    /// A device's MTU.
    Mtu {
        /// The device.
        device: String,
        /// Bytes without the Ethernet header.
        mtu: u32,
    },
    /// A device's VRF.
    Master {
        /// The device.
        device: String,
        /// Its VRF.
        vrf: String,
    },
    /// An address of a device.
    Address {
        /// The device.
        device: String,
        /// The address and its prefix.
        address: Cidr,
        /// The kernel does not choose it as a source: scope host in IPv4, deprecated in IPv6.
        passive: bool,
        /// Whether the kernel adds a route to its prefix.
        on_link: bool,
    },
    /// A device is up.
    Up {
        /// The device.
        device: String,
    },
    /// A route.
    Route {
        /// Its table.
        table: u32,
        /// The destination, without host bits.
        destination: Cidr,
        /// How packets get there.
        way: Way,
        /// Its metric.
        metric: u32,
    },
    /// A routing rule.
    Rule {
        /// True for IPv4, false for IPv6.
        ipv4: bool,
        /// Its preference: lower ones come first.
        priority: u32,
        /// The packets that it selects, and their table.
        kind: RuleKind,
    },
    /// An entry of a VXLAN device's forwarding database.
    Fdb {
        /// The device.
        device: String,
        /// The destination MAC; all zero: broadcast, multicast and unknown frames, for which there may be several
        /// entries.
        mac: Mac,
        /// The VTEP that the frames go to.
        vtep: IpAddr,
    },
    /// A permanent neighbour entry.
    Neighbour {
        /// The device.
        device: String,
        /// The neighbour's address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
}

/// What a route does with packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// Sends them out of a device.
    Device {
        /// The device.
        device: String,
        /// The router; None: the destination is on the device's link.
        gateway: Option<IpAddr>,
        /// The source address of packets whose socket has none.
        source: Option<IpAddr>,
    },
    /// Delivers them to this node, as if received on the device.
    Local {
        /// The device.
        device: String,
    },
    /// Refuses them: "destination unreachable".
    Unreachable,
}

/// What a routing rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleKind {
    /// Packets of a VRF: look up the VRF's own table.
    L3mdev,
    /// All packets: look up table `local`, of the node's own addresses.
    Local,
    /// [`RuleKind::Local`] before an [`RuleKind::L3mdev`] of the same preference: observed, never wanted.
    LocalFirst,
    /// Packets from this node, outside VRFs, to a NAT pool: unreachable.
    NatUnreachable(Cidr),
    /// Other packets to a NAT pool: look up [`NAT_TABLE`].
    NatLookup(Cidr),
}

/// One change of the kernel's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create the object, or set the value.
    Create(Item),
    /// Delete the object.
    Delete(Item),
}

/// See [`Item::delete_rank`].
pub(super) const AFTER_CREATES: u8 = 3;

impl Item {
    /// The name of the device, if the item is a device.
    #[must_use]
    pub fn made_device(&self) -> Option<&str> {
        match self {
            Item::Vrf { name, .. } | Item::Tap { name, .. } | Item::Vxlan { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The names of the devices that this item needs, its own included.
    pub(super) fn devices(&self) -> impl Iterator<Item = &str> {
        let (first, second) = match self {
            Item::Vrf { name, .. } | Item::Tap { name, .. } => (Some(name), None),
            Item::Vxlan { name, nic, .. } => (Some(name), Some(nic)),
            Item::Altname { device, .. }
            | Item::Mac { device, .. }
            | Item::Mtu { device, .. }
            | Item::Address { device, .. }
            | Item::Up { device }
            | Item::Fdb { device, .. }
            | Item::Neighbour { device, .. } => (Some(device), None),
            Item::Master { device, vrf } => (Some(device), Some(vrf)),
            Item::Route { way: Way::Device { device, .. } | Way::Local { device }, .. } => {
                (Some(device), None)
            }
            Item::Route { way: Way::Unreachable, .. } | Item::Rule { .. } => (None, None),
        };
        first.into_iter().chain(second).map(String::as_str)
    }

    /// Whether it can be deleted; a setting can only be replaced by another value.
    pub(super) fn is_taken_away(&self) -> bool {
        !matches!(self, Item::Mac { .. } | Item::Mtu { .. } | Item::Master { .. } | Item::Up { .. })
    }

    /// The order of deletion, lowest first. Rules and unreachable routes are deleted after everything is created, so
    /// that they hold until then.
    pub(super) fn delete_rank(&self) -> u8 {
        match self {
            Item::Tap { .. } | Item::Vxlan { .. } => 1,
            Item::Vrf { .. } => 2,
            Item::Route { way: Way::Unreachable, .. } => AFTER_CREATES,
            // Deleted first, to be created again behind l3mdev; meanwhile the one with preference 1 holds.
            Item::Rule { kind: RuleKind::LocalFirst, .. } => 0,
            // The `local` rules go before it, so that `local` is always in one of its places.
            Item::Rule { kind: RuleKind::L3mdev, .. } => AFTER_CREATES + 2,
            Item::Rule { .. } => AFTER_CREATES + 1,
            _ => 0,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create(
                item @ (Item::Mac { .. } | Item::Mtu { .. } | Item::Master { .. } | Item::Up { .. }),
            ) => {
                write!(f, "set {item}")
            }
            Step::Create(item) => write!(f, "create {item}"),
            Step::Delete(item) => write!(f, "delete {item}"),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Vrf { name, table } => write!(f, "VRF {name} (table {table})"),
            Item::Tap { name, .. } => write!(f, "TAP {name}"),
            Item::Vxlan { name, vni, nic, port, .. } => {
                write!(f, "VXLAN {name} (VNI {vni}, port {port}, over {nic})")
            }
            Item::Altname { device, name } => write!(f, "altname {name} of {device}"),
            Item::Mac { device, mac } => write!(f, "MAC {mac} of {device}"),
            Item::Mtu { device, mtu } => write!(f, "MTU {mtu} of {device}"),
            Item::Master { device, vrf } => write!(f, "VRF {vrf} of {device}"),
            Item::Address { device, address, .. } => write!(f, "address {address} of {device}"),
            Item::Up { device } => write!(f, "{device} up"),
            Item::Route { table, destination, way, .. } => {
                write!(f, "route to {destination} in table {table}: {way}")
            }
            Item::Rule { ipv4, priority, kind } => {
                let family = if *ipv4 { 4 } else { 6 };
                write!(f, "IPv{family} rule {priority}: {kind}")
            }
            Item::Fdb { device, mac, vtep } => write!(f, "fdb entry of {device}: {mac} at {vtep}"),
            Item::Neighbour { device, address, mac } => {
                write!(f, "neighbour {address} of {device}: {mac}")
            }
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Device { device, gateway, source } => {
                if let Some(gateway) = gateway {
                    write!(f, "via {gateway} ")?;
                }
                write!(f, "dev {device}")?;
                source.map_or(Ok(()), |source| write!(f, " src {source}"))
            }
            Way::Local { device } => write!(f, "local on {device}"),
            Way::Unreachable => f.write_str("unreachable"),
        }
    }
}

impl fmt::Display for RuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleKind::L3mdev => f.write_str("a VRF's own table"),
            RuleKind::Local => f.write_str("table local"),
            RuleKind::LocalFirst => f.write_str("table local, before a VRF's own"),
            RuleKind::NatUnreachable(pool) => write!(f, "from this node to {pool} unreachable"),
            RuleKind::NatLookup(pool) => write!(f, "to {pool} table {NAT_TABLE}"),
        }
    }
}
