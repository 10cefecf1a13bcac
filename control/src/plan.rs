//! What the kernel must hold for a network, and the steps from what it holds now.
//!
//! ```text
//! rules   0: l3mdev -> the VRF's own table      before `local`, so that inside a VRF an address of the node means
//!         0: local                              the user's endpoint, not the node's own device
//!         1: local                              while the other is put behind l3mdev
//!         2: from this node to a NAT address    unreachable: nothing outside a VRF reaches into it
//!         3: to a NAT address -> NAT_TABLE      replies from off-subnet, addressed back to the VRF
//! table   default unreachable                   or a look-up would go on to `main`, and leave the network
//!         NAT pools unreachable                 they are for the packet filter alone
//!         127.0.0.0/8, ::1, other addresses of the node: local to the VRF
//!         default via the node's router         off-subnet networks only
//!         subnets dev ENDPOINT
//! ```
//! `local` is the second rule and has preference 0, because the kernel puts a rule without a preference before the
//! second rule (fib_default_rule_pref, net/core/fib_rules.c): a site's own rule then comes after `local`, never before
//! it, and
//! [`crate::netlink::Netlink::give_way`] moves it to where it belongs.
//!
//! A network's items are in creation order: its table is complete before its VRF goes up. [`diff`] deletes in another
//! order: endpoints before their VRF (a device released from a deleted VRF stays up, in the default VRF), a table's
//! unreachable routes after the VRF.

mod item;

pub use item::{Item, RuleKind, Step, Way};

use crate::network::{DataPath, Exit, FIRST_TABLE, Network, Nic, Node};
use item::AFTER_CREATES;
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvn_api::dataplane::config::{Cidr, Dscp, Path as Gear};
use uvn_dataplane::port::{slow_path, xsk};
use uvn_engine::outer::endpoint_mtu;
use uvn_wire::ethernet::Mac;

/// The table of the routes to networks' NAT addresses.
pub const NAT_TABLE: u32 = FIRST_TABLE - 1;
/// Metric of uvn's routes: IPv6's default (IP6_RT_PRIO_USER).
const METRIC: u32 = 1024;
/// Metric of the unreachable default routes (Documentation/networking/vrf.rst).
const LAST_METRIC: u32 = 4_278_198_272;
/// The least MTU of IPv6, bytes (RFC 8200 section 5): below it the kernel has no IPv6 on a device.
const IPV6_MTU: u32 = 1280;

/// Collects a network's items.
struct Build<'a> {
    node: &'a Node,
    network: &'a Network,
    vrf: String,
    items: Vec<Item>,
}

/// The items that do not belong to a network: the routing rules.
#[must_use]
pub fn node(node: &Node) -> Vec<Item> {
    let families: &[bool] = if node.ipv6 { &[true, false] } else { &[true] };
    let mut items = Vec::new();
    for &ipv4 in families {
        let pool = if ipv4 { node.nat.ipv4 } else { node.nat.ipv6 };
        let rules = [
            (0, RuleKind::L3mdev),
            (0, RuleKind::Local),
            (1, RuleKind::Local),
            (2, RuleKind::NatUnreachable(pool)),
            (3, RuleKind::NatLookup(pool)),
        ];
        items.extend(rules.map(|(priority, kind)| Item::Rule { ipv4, priority, kind }));
    }
    items
}

/// The items of a node without uvn, as `uvn purge` leaves it.
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
    /// The network's NAT addresses, as host prefixes.
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

    /// The routes that must exist first: with them, no look-up goes on to another table.
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

    /// Loopback, and the node's addresses that are not on an endpoint.
    fn own_addresses(&mut self) {
        let vrf = self.vrf.clone();
        let loopback = Cidr { address: Ipv4Addr::LOCALHOST.into(), prefix: 8 };
        self.address(&vrf, loopback, true, false);
        self.route(loopback.subnet(), Way::Local { device: vrf.clone() }, METRIC);
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

    /// The source address of routes by a device: the device's own, or that of another NIC, by which the user's other
    /// nodes reach this one. Programs use such a route to find their own address. IPv6 gets None: the kernel takes no
    /// source from another VRF than the device's (ip6_route_get_saddr), and by itself chooses an endpoint's address,
    /// since those of the VRF device are deprecated.
    fn source(&self, device: &str, ipv4: bool) -> Option<IpAddr> {
        let nics = || self.node.nics.iter();
        let of = |nic: &Nic| nic.addresses.iter().map(|cidr| cidr.address).find(IpAddr::is_ipv4);
        nics().filter(|nic| nic.name == device).chain(nics()).filter(|_| ipv4).find_map(of)
    }

    fn exits(&mut self) {
        let node = self.node;
        for Exit { device, gateway, address } in &node.exits {
            let ipv4 = address.is_ipv4();
            if self.network.off_subnet && (ipv4 || node.ipv6) {
                let source = self.source(device, ipv4);
                let way = Way::Device { device: device.clone(), gateway: *gateway, source };
                self.route(if ipv4 { ANYWHERE_V4 } else { ANYWHERE_V6 }, way, METRIC);
            }
        }
    }

    /// Routes to the hosts of `hosts`, by the NIC itself.
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
                let source = self.source(&nic.name, ipv4);
                let way = Way::Device { device: nic.name.clone(), gateway, source };
                self.route(listed.subnet(), way, METRIC);
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
                port: nic.encapsulation.port,
                group: nic.group,
                ttl: nic.encapsulation.ttl,
                dscp: match nic.encapsulation.dscp {
                    Dscp::Fixed(dscp) => Some(dscp),
                    Dscp::Inherit(_) => None,
                },
                checksum: nic.encapsulation.sums(vtep),
            },
        });
        let underlay = match nic.path {
            DataPath::Engine => (nic.mtu as usize).min(longest(nic.gear)),
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
        // The underlay's subnets, routed outside, are one link inside the network.
        let mut subnets: BTreeSet<Cidr> = nic.subnets.iter().copied().map(Cidr::subnet).collect();
        for address in &addresses {
            subnets.remove(&address.subnet());
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

/// The steps from `observed` to `wanted`; none if both are the same.
///
/// Both have the same scope: all of the node, or one network. Deleting a device deletes what is on it, for which there
/// is no step. The kernel may delete more than is modelled here (IPv4 secondary addresses): observe and compare again
/// until there are no steps.
#[must_use]
pub fn diff(wanted: &[Item], observed: &[Item]) -> Vec<Step> {
    let keep: HashSet<&Item> = wanted.iter().collect();
    let mut gone: BTreeSet<&str> =
        observed.iter().filter(|item| !keep.contains(item)).filter_map(Item::made_device).collect();
    // An endpoint is deleted with its VRF, by its own step.
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

const ANYWHERE_V4: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };
const ANYWHERE_V6: Cidr = Cidr { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 0 };

fn host(address: IpAddr) -> Cidr {
    Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
}

/// The longest IP packet that a NIC's data plane carries, bytes. Under `auto`, a NIC with longer packets than the
/// engine takes gets the shortcut, or kernel VXLAN ([`crate::feed::choose`]).
fn longest(gear: Gear) -> usize {
    match gear {
        Gear::Engine => xsk::MAX_MTU,
        Gear::Auto | Gear::Shortcut => slow_path::MAX_MTU,
    }
}

#[cfg(test)]
mod tests;
