//! What the kernel shall hold for a network, and the steps from what it holds.
//!
//! ```text
//! rules   0: l3mdev -> the VRF's own table      before `local`, so that an address of the node means the user's
//!         1: local                              endpoint inside his VRF, not the node's own device
//!         2: from this node to a NAT address    unreachable: nobody outside a VRF reaches into it
//!         3: to a NAT address -> NAT_TABLE      replies from off-subnet, addressed back to the VRF
//! table   default unreachable                   or a look-up would go on to `main`, and leave the network
//!         NAT pools unreachable                 other users' addresses
//!         127.0.0.0/8, ::1, NAT address, other addresses of the node: local to the VRF
//!         default via the node's router         off-subnet networks only
//!         subnets dev ENDPOINT
//! ```
//! A network's items are in creation order: its table is complete before its VRF goes up. [`diff`] takes away in
//! another: endpoints before their VRF (a device released from a deleted VRF stays up, in the default VRF), a table's
//! unreachable routes after it.

use crate::network::{DataPath, Exit, FIRST_TABLE, Network, Nic, Node};
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvn_dataplane::config::Cidr;
use uvn_dataplane::outer::endpoint_mtu;
use uvn_dataplane::xsk::MAX_MTU;
use uvn_wire::ethernet::Mac;

/// The table of the routes to networks' NAT addresses.
pub const NAT_TABLE: u32 = FIRST_TABLE - 1;
/// Metric of our routes: what IPv6 uses if none is given (IP6_RT_PRIO_USER).
const METRIC: u32 = 1024;
/// Metric of the last resort (Documentation/networking/vrf.rst).
const LAST_METRIC: u32 = 4_278_198_272;
/// Least MTU of IPv6 (RFC 8200 section 5): with less the kernel has no IPv6 on a device.
const IPV6_MTU: u32 = 1280;

/// A kernel object in its wanted form.
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
        /// Whether it can have several queues.
        multi_queue: bool,
    },
    /// A kernel VXLAN device: an endpoint where the engine cannot go.
    Vxlan {
        /// Its name.
        name: String,
        /// Its VXLAN network identifier.
        vni: u32,
        /// This node's VTEP.
        local: IpAddr,
        /// Name of the NIC below.
        nic: String,
        /// UDP port.
        port: u16,
        /// Multicast group for broadcast and unknown frames. With one, the device learns where MACs are.
        group: Option<IpAddr>,
    },
    /// A device's other name.
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
        /// Never chosen as a source: scope host of IPv4, deprecated of IPv6.
        passive: bool,
        /// Whether its prefix is on the device's link.
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
        /// Where to; no bits beyond the prefix.
        destination: Cidr,
        /// How.
        way: Way,
        /// Its metric.
        metric: u32,
    },
    /// A routing rule.
    Rule {
        /// Of IPv4; else of IPv6.
        ipv4: bool,
        /// Its place.
        priority: u32,
        /// What it does.
        kind: RuleKind,
    },
    /// An entry of a VXLAN device's forwarding database.
    Fdb {
        /// The device.
        device: String,
        /// Frames to this MAC; zero: broadcast, multicast and unknown ones, which may have several VTEPs.
        mac: Mac,
        /// go to this VTEP.
        vtep: IpAddr,
    },
    /// A permanent neighbour.
    Neighbour {
        /// The device.
        device: String,
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
}

/// How a route leads to its destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// By a device.
    Device {
        /// The device.
        device: String,
        /// The router; None: the destination is on the device's link.
        gateway: Option<IpAddr>,
        /// The source that packets get if their socket has none.
        source: Option<IpAddr>,
    },
    /// To this node itself, received on the device.
    Local {
        /// The device.
        device: String,
    },
    /// Not at all: "destination unreachable".
    Unreachable,
}

/// What a routing rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleKind {
    /// Traffic of a VRF: its own table.
    L3mdev,
    /// The table of the node's own addresses.
    Local,
    /// Packets that this node makes outside VRFs, to a NAT pool: unreachable.
    NatUnreachable(Cidr),
    /// Other packets to a NAT pool: [`NAT_TABLE`].
    NatLookup(Cidr),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make it, or set it.
    Create(Item),
    /// Take it away.
    Delete(Item),
}

/// Adds up a network's items.
struct Build<'a> {
    node: &'a Node,
    network: &'a Network,
    vrf: String,
    items: Vec<Item>,
}

/// The items of the node itself: the rules.
#[must_use]
pub fn node(node: &Node) -> Vec<Item> {
    let families: &[bool] = if node.ipv6 { &[true, false] } else { &[true] };
    let mut items = Vec::new();
    for &ipv4 in families {
        let mut kinds = vec![RuleKind::L3mdev, RuleKind::Local];
        let pool = if ipv4 { node.nat.ipv4 } else { node.nat.ipv6 };
        kinds.extend([RuleKind::NatUnreachable(pool), RuleKind::NatLookup(pool)]);
        items.extend((0..).zip(kinds).map(|(priority, kind)| Item::Rule { ipv4, priority, kind }));
    }
    items
}

/// The items of a node without uvn: what `uvn purge` leaves.
#[must_use]
pub fn pristine(ipv6: bool) -> Vec<Item> {
    let families: &[bool] = if ipv6 { &[true, false] } else { &[true] };
    families.iter().map(|&ipv4| Item::Rule { ipv4, priority: 0, kind: RuleKind::Local }).collect()
}

/// The items of a network, in creation order.
#[must_use]
pub fn network(node: &Node, network: &Network) -> Vec<Item> {
    let mut build = Build { node, network, vrf: network.vrf(), items: Vec::new() };
    build.items.push(Item::Vrf { name: build.vrf.clone(), table: network.table() });
    build.unreachable();
    build.own_addresses();
    build.exits();
    build.hosts();
    for nic in &node.nics {
        build.endpoint(nic);
    }
    build.items.push(Item::Up { device: build.vrf.clone() });
    if network.off_subnet || !node.hosts.is_empty() {
        for destination in build.nat() {
            let way = Way::Device { device: build.vrf.clone(), gateway: None, source: None };
            build.items.push(Item::Route { table: NAT_TABLE, destination, way, metric: METRIC });
        }
    }
    build.items
}

impl Build<'_> {
    /// Its NAT addresses.
    fn nat(&self) -> Vec<Cidr> {
        let addresses = self.node.nat.addresses(self.network.slot);
        addresses.into_iter().filter(|address| address.is_ipv4() || self.node.ipv6).map(host).collect()
    }

    fn route(&mut self, destination: Cidr, way: Way, metric: u32) {
        self.items.push(Item::Route { table: self.network.table(), destination, way, metric });
    }

    fn address(&mut self, device: &str, address: Cidr, passive: bool, on_link: bool) {
        self.items.push(Item::Address { device: device.into(), address, passive, on_link });
    }

    /// What must be there before anything else: no look-up goes on to another table.
    fn unreachable(&mut self) {
        self.route(ANYWHERE_V4, Way::Unreachable, LAST_METRIC);
        if self.node.ipv6 {
            self.route(ANYWHERE_V6, Way::Unreachable, LAST_METRIC);
        }
        self.route(self.node.nat.ipv4, Way::Unreachable, METRIC);
        if self.node.ipv6 {
            self.route(self.node.nat.ipv6, Way::Unreachable, METRIC);
        }
    }

    /// Loopback, NAT addresses, and the node's addresses that no endpoint has.
    fn own_addresses(&mut self) {
        let vrf = self.vrf.clone();
        let loopback = Cidr { address: Ipv4Addr::LOCALHOST.into(), prefix: 8 };
        self.address(&vrf, loopback, true, false);
        self.route(subnet(loopback), Way::Local { device: vrf.clone() }, METRIC);
        for address in self.nat() {
            self.address(&vrf, address, false, true);
        }
        if self.node.ipv6 {
            self.address(&vrf, host(Ipv6Addr::LOCALHOST.into()), false, true);
        }
        let on_endpoints: HashSet<IpAddr> =
            self.node.nics.iter().flat_map(|nic| &nic.addresses).map(|cidr| cidr.address).collect();
        for &other in &self.node.others {
            if !on_endpoints.contains(&other) && (other.is_ipv4() || self.node.ipv6) {
                self.address(&vrf, host(other), true, true);
            }
        }
    }

    /// The source that leaked routes get. IPv6 refuses one of another VRF than the route's device (ipv6_chk_addr), and
    /// chooses right without: the VRF device's only address that is not deprecated is its NAT address.
    fn source(&self, ipv4: bool) -> Option<IpAddr> {
        self.node.nat.addresses(self.network.slot).into_iter().find(|address| ipv4 && address.is_ipv4())
    }

    fn exits(&mut self) {
        let node = self.node;
        for Exit { device, gateway, address } in &node.exits {
            let ipv4 = address.is_ipv4();
            if self.network.off_subnet && (ipv4 || node.ipv6) {
                let source = self.source(ipv4);
                let way = Way::Device { device: device.clone(), gateway: *gateway, source };
                self.route(if ipv4 { ANYWHERE_V4 } else { ANYWHERE_V6 }, way, METRIC);
            }
        }
    }

    /// Listed hosts, by the NIC itself.
    fn hosts(&mut self) {
        let node = self.node;
        for &listed in &node.hosts {
            let on_link = |nic: &&Nic| nic.addresses.iter().any(|cidr| cidr.contains(listed.address));
            let behind = |nic: &&Nic| nic.subnets.iter().any(|cidr| cidr.contains(listed.address));
            let ipv4 = listed.address.is_ipv4();
            let up = || node.nics.iter().filter(|nic| nic.up);
            let (nic, gateway) = match (up().find(on_link), up().find(behind)) {
                (Some(nic), _) => (nic, None),
                (None, Some(nic)) => {
                    let exit = |exit: &&Exit| exit.device == nic.name && exit.address.is_ipv4() == ipv4;
                    (nic, node.exits.iter().find(exit).and_then(|exit| exit.gateway))
                }
                (None, None) => continue,
            };
            if ipv4 || node.ipv6 {
                let way = Way::Device { device: nic.name.clone(), gateway, source: self.source(ipv4) };
                self.route(subnet(listed), way, METRIC);
            }
        }
    }

    fn endpoint(&mut self, nic: &Nic) {
        let Some(&vtep) = nic.vteps().first() else { return };
        let name = self.network.endpoint(nic);
        let device = || name.clone();
        self.items.push(match nic.path {
            DataPath::Engine => Item::Tap { name: device(), multi_queue: nic.queues > 1 },
            DataPath::Kernel => Item::Vxlan {
                name: device(),
                vni: self.network.vni.get(),
                local: vtep,
                nic: nic.name.clone(),
                port: nic.port,
                group: nic.group,
            },
        });
        let underlay = match nic.path {
            DataPath::Engine => (nic.mtu as usize).min(MAX_MTU),
            DataPath::Kernel => nic.mtu as usize,
        };
        let mtu = u32::try_from(endpoint_mtu(underlay, vtep)).unwrap_or(u32::MAX);
        self.items.extend([
            Item::Mac { device: device(), mac: Mac::of(vtep) },
            Item::Mtu { device: device(), mtu },
            Item::Master { device: device(), vrf: self.vrf.clone() },
            Item::Altname { device: device(), name: self.network.altname(nic) },
        ]);
        let usable = |address: IpAddr| address.is_ipv4() || self.node.ipv6 && mtu >= IPV6_MTU;
        let addresses: Vec<Cidr> =
            nic.addresses.iter().copied().filter(|cidr| usable(cidr.address)).collect();
        for &address in &addresses {
            self.address(&name, address, false, true);
        }
        self.items.push(Item::Up { device: device() });
        // A routed underlay is one link inside the network.
        let mut subnets: BTreeSet<Cidr> = nic.subnets.iter().copied().map(subnet).collect();
        for address in &addresses {
            subnets.remove(&subnet(*address));
        }
        for destination in subnets {
            let source = addresses.iter().map(|cidr| cidr.address);
            let source = source.clone().find(|a| a.is_ipv4() == destination.address.is_ipv4());
            if source.is_some() {
                let way = Way::Device { device: device(), gateway: None, source };
                self.route(destination, way, METRIC);
            }
        }
    }
}

/// The steps from what is there to what shall be; none if both are the same.
///
/// Both are of the same extent: all of the node, or one network. Taking a device away takes along what is on it, and
/// for that there is no step. The kernel may take along more than is modelled here (IPv4 secondary addresses): observe
/// and compare again until there are no steps.
#[must_use]
pub fn diff(wanted: &[Item], observed: &[Item]) -> Vec<Step> {
    let keep: HashSet<&Item> = wanted.iter().collect();
    let mut gone: BTreeSet<&str> =
        observed.iter().filter(|item| !keep.contains(item)).filter_map(Item::made_device).collect();
    // An endpoint goes with its VRF, by a step of its own.
    let released: Vec<&str> = observed
        .iter()
        .filter_map(Item::made_device)
        .filter(|device| device.split_once('.').is_some_and(|(vrf, _)| gone.contains(vrf)))
        .collect();
    gone.extend(released);

    let stays = |item: &&Item| !item.devices().any(|device| gone.contains(device));
    let there: HashSet<&Item> = observed.iter().filter(stays).collect();
    let mut deletes: Vec<&Item> = observed
        .iter()
        .filter(|item| match item.made_device() {
            Some(device) => gone.contains(device),
            None => item.is_taken_away() && stays(item) && !keep.contains(item),
        })
        .collect();
    deletes.sort_by_key(|item| item.delete_rank());
    let (first, last): (Vec<&Item>, Vec<&Item>) =
        deletes.into_iter().partition(|item| item.delete_rank() < AFTER_CREATES);

    let creates = wanted.iter().filter(|item| !there.contains(item));
    first
        .into_iter()
        .cloned()
        .map(Step::Delete)
        .chain(creates.cloned().map(Step::Create))
        .chain(last.into_iter().cloned().map(Step::Delete))
        .collect()
}

/// See [`Item::delete_rank`].
const AFTER_CREATES: u8 = 3;

impl Item {
    /// The device that this item is.
    #[must_use]
    pub fn made_device(&self) -> Option<&str> {
        match self {
            Item::Vrf { name, .. } | Item::Tap { name, .. } | Item::Vxlan { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The devices without which this item is not there, itself included.
    fn devices(&self) -> impl Iterator<Item = &str> {
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

    /// Whether it can be taken away; else only another value can take its place.
    fn is_taken_away(&self) -> bool {
        !matches!(self, Item::Mac { .. } | Item::Mtu { .. } | Item::Master { .. } | Item::Up { .. })
    }

    /// What goes first. Rules and unreachable routes go when all else is in place: until then they hold.
    fn delete_rank(&self) -> u8 {
        match self {
            Item::Tap { .. } | Item::Vxlan { .. } => 1,
            Item::Vrf { .. } => 2,
            Item::Route { way: Way::Unreachable, .. } => AFTER_CREATES,
            // `local` first, so that it is in neither place only if it is in the other.
            Item::Rule { kind: RuleKind::L3mdev, .. } => AFTER_CREATES + 2,
            Item::Rule { .. } => AFTER_CREATES + 1,
            _ => 0,
        }
    }
}

const ANYWHERE_V4: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };
const ANYWHERE_V6: Cidr = Cidr { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 };

fn host(address: IpAddr) -> Cidr {
    Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
}

/// Without the bits beyond the prefix.
pub(crate) fn subnet(cidr: Cidr) -> Cidr {
    let prefix = u32::from(cidr.prefix);
    let address = match cidr.address {
        IpAddr::V4(a) => {
            Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0)).into()
        }
        IpAddr::V6(a) => {
            Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0))
                .into()
        }
    };
    Cidr { address, prefix: cidr.prefix }
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
            RuleKind::NatUnreachable(pool) => write!(f, "from this node to {pool} unreachable"),
            RuleKind::NatLookup(pool) => write!(f, "to {pool} table {NAT_TABLE}"),
        }
    }
}

#[cfg(test)]
mod tests;
