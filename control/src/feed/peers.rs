//! The other nodes, as a NIC's data path needs them.

use crate::network::{Network, Nic, Node};
use crate::peers::{Peers as Configured, without};
use crate::plan::Item;
use std::collections::HashSet;
use std::net::IpAddr;
use uvn_api::dataplane::config::{Cidr, Peers, Vtep};
use uvn_api::dataplane::ranges::Ranges;
use uvn_wire::ethernet::Mac;

/// The most nodes that a network's broadcast and multicast is replicated to; more need a multicast group.
pub const MAX_BROADCAST: usize = 1024;
/// The most prefixes of more than one address: a few less than the XDP program holds.
pub const MAX_PREFIXES: usize = 900;

/// The other nodes on one NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Allowed VTEPs, as the engine needs them. All are of the family of the NIC's first VTEP.
    pub allowed: Peers,
    /// Every listed node, with all its addresses on this NIC; the VTEP comes first.
    pub nodes: Vec<Vtep>,
}

impl Others {
    /// The configured peers that concern one NIC. No other machine is a peer: one on the NIC's subnets may be
    /// anybody's. In a range, machines that are known to run no uvn are no peers either: the hosts that `node` lists,
    /// and its routers.
    ///
    /// A VTEP is of the family of the NIC's first address, since an endpoint has one MAC, which names its VTEP.
    #[must_use]
    pub fn new(node: &Node, nic: &Nic, configured: &Configured) -> Others {
        let Some(own) = nic.vteps().first().copied() else { return Others::default() };
        let is_vtep = |address: &IpAddr| address.is_ipv4() == own.is_ipv4();
        let on_nic = |address: &IpAddr| nic.subnets.iter().any(|subnet| subnet.contains(*address));
        let is_host = |address: &IpAddr| node.hosts.iter().any(|host| host.contains(*address));
        let mut others = Others::default();
        let ranges = configured.ranges.iter().filter(|range| is_vtep(&range.address));
        let on_subnets =
            ranges.flat_map(|range| nic.subnets.iter().filter_map(|subnet| common(range, subnet)));
        // Wider IPv6 ranges leave a MAC too few bits: nodes in them must be listed.
        let usable = on_subnets.filter(|range| own.is_ipv4() || range.prefix >= 96);
        let routers = node.exits.iter().filter_map(|exit| exit.gateway).map(host);
        let strangers: Vec<Cidr> = node.hosts.iter().copied().chain(routers).collect();
        others.allowed.range = without(usable.collect(), &strangers);
        let has_other_family = nic.addresses.iter().any(|cidr| !is_vtep(&cidr.address));
        let ranges = Ranges::new(&others.allowed.range);
        let mut known = HashSet::new();
        for listed in &configured.nodes {
            let mut overlay: Vec<IpAddr> =
                listed.iter().copied().filter(|address| on_nic(address) && !is_host(address)).collect();
            overlay.sort_by_key(|address| !is_vtep(address));
            overlay.dedup();
            let Some(address) = overlay.first().copied().filter(is_vtep) else { continue };
            let is_own = nic.addresses.iter().any(|own| overlay.contains(&own.address));
            if is_own || !known.insert(address) {
                continue;
            }
            let vtep = Vtep { address, overlay };
            match (vtep.overlay.len() == 1, ranges.contains(address)) {
                // The range says as much.
                (true, true) => {}
                // Its addresses of the other family are not known: a range leaves them open.
                (true, false) if has_other_family => others.allowed.range.push(host(address)),
                _ => others.allowed.vtep.push(vtep.clone()),
            }
            others.nodes.push(vtep);
        }
        others
    }

    /// Whether `vtep` may send to this node.
    #[must_use]
    pub fn allows(&self, vtep: IpAddr) -> bool {
        self.allowed.range.iter().any(|range| range.contains(vtep))
            || self.allowed.vtep.iter().any(|listed| listed.address == vtep)
    }

    /// The VTEPs that broadcast and multicast is sent to: those of all listed nodes; none if they are more than
    /// [`MAX_BROADCAST`].
    #[must_use]
    pub fn broadcast(&self) -> Vec<IpAddr> {
        if self.nodes.len() > MAX_BROADCAST {
            return Vec::new();
        }
        let mut vteps: Vec<IpAddr> = self.nodes.iter().map(|node| node.address).collect();
        vteps.sort_unstable();
        vteps
    }
}

/// The other nodes, for kernel VXLAN.
impl Others {
    /// The entries about listed nodes in a network's endpoint over kernel VXLAN: the VTEP of each MAC, the MAC of each
    /// address, and the destinations of broadcast. Other nodes are found by the NIC's multicast group.
    #[must_use]
    pub fn entries(&self, nic: &Nic, network: &Network) -> Vec<Item> {
        /// The MAC of the entries for frames that are not unicast, or whose destination is not known.
        const OTHER: Mac = Mac([0; 6]);

        let device = || network.endpoint(nic);
        let has_family =
            |address: &&IpAddr| nic.addresses.iter().any(|own| own.address.is_ipv4() == address.is_ipv4());
        let mut items = Vec::new();
        for node in &self.nodes {
            let mac = Mac::of(node.address);
            items.push(Item::Fdb { device: device(), mac, vtep: node.address });
            for &address in node.overlay.iter().filter(has_family) {
                items.push(Item::Neighbour { device: device(), address, mac });
            }
        }
        if nic.group.is_none() {
            let flood = self.broadcast().into_iter();
            items.extend(flood.map(|vtep| Item::Fdb { device: device(), mac: OTHER, vtep }));
        }
        items
    }
}

fn host(address: IpAddr) -> Cidr {
    Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
}

/// The common part of two prefixes: the longer one, if it lies in the other.
fn common(a: &Cidr, b: &Cidr) -> Option<Cidr> {
    let (wide, narrow) = if a.prefix <= b.prefix { (a, b) } else { (b, a) };
    wide.contains(narrow.address).then_some(*narrow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{DataPath, Exit};
    use uvn_api::dataplane::vteps::Vteps;
    use uvn_wire::vxlan::Vni;

    fn nic(addresses: &[&str], subnets: &[&str]) -> Nic {
        Nic {
            slot: 0,
            name: "em1".into(),
            index: 2,
            mtu: 1500,
            arphrd: 1,
            up: true,
            addresses: cidrs(addresses),
            queues: 1,
            subnets: cidrs(subnets),
            path: DataPath::Engine,
            reason: String::new(),
            gear: Default::default(),
            encapsulation: Default::default(),
            workers: Default::default(),
            group: None,
            flood_rate: None,
        }
    }

    fn others(nic: &Nic, ranges: &[Cidr], nodes: &[Vec<IpAddr>]) -> Others {
        others_on(&Node::default(), nic, ranges, nodes)
    }

    fn others_on(node: &Node, nic: &Nic, ranges: &[Cidr], nodes: &[Vec<IpAddr>]) -> Others {
        let (ranges, nodes) = (ranges.to_vec(), nodes.to_vec());
        Others::new(node, nic, &Configured { ranges, nodes, unresolved: Vec::new() })
    }

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn without_peers_nobody_is_one() {
        let nic = nic(&["10.0.0.1/16", "fd00::1/64"], &["10.0.0.0/16", "fd00::/64"]);
        assert_eq!(others(&nic, &[], &[]), Others::default());
    }

    #[test]
    fn ranges_are_cut_to_the_nic() {
        let ranges = cidrs(&["10.0.0.0/8", "10.0.4.0/24", "10.1.0.0/16", "fd00::/112"]);
        let others = others(&nic(&["10.0.0.1/16"], &["10.0.0.0/16"]), &ranges, &[]);
        assert_eq!(others.allowed.range, cidrs(&["10.0.0.0/16"]));
    }

    #[test]
    fn hosts_and_routers_in_a_range_are_no_peers() {
        let nic = nic(&["10.0.0.1/24"], &["10.0.0.0/24"]);
        let gateway = Some("10.0.0.254".parse().unwrap());
        let exit = Exit { device: "em1".into(), gateway, address: "10.0.0.1".parse().unwrap() };
        let node = Node { hosts: cidrs(&["10.0.0.250/32"]), exits: vec![exit], ..Node::default() };
        let ranges = cidrs(&["10.0.0.0/24"]);
        let others = others_on(&node, &nic, &ranges, &[]);
        let strangers: Vec<u8> = (0..=255).filter(|last| !others.allows([10, 0, 0, *last].into())).collect();
        assert_eq!(strangers, [250, 254]);
        // A router that runs uvn is listed. A machine that is listed as a host does not run it.
        let listed = [ips(&["10.0.0.254"]), ips(&["10.0.0.250"])];
        let others = others_on(&node, &nic, &ranges, &listed);
        assert!(others.allows(listed[0][0]) && !others.allows(listed[1][0]));
        assert_eq!(others.broadcast(), ips(&["10.0.0.254"]));
    }

    #[test]
    fn a_node_is_its_vtep_with_its_addresses_on_the_nic() {
        let nic = nic(&["10.0.0.1/24", "fd00::1/64"], &["10.0.0.0/24", "fd00::/64"]);
        let nodes = [
            ips(&["fd00::1", "10.0.0.1", "10.1.0.1"]),
            ips(&["fd00::2", "10.1.0.2", "10.0.0.2"]),
            ips(&["10.0.0.3"]),
            ips(&["10.1.0.4", "fd00::4"]),
        ];
        let others = others(&nic, &[], &nodes);
        let second = Vtep { address: nodes[1][2], overlay: vec![nodes[1][2], nodes[1][0]] };
        assert_eq!(others.allowed.vtep, [second]);
        // Its IPv6 address is not known, so it is left open.
        assert_eq!(others.allowed.range, cidrs(&["10.0.0.3/32"]));
        assert_eq!(others.broadcast(), ips(&["10.0.0.2", "10.0.0.3"]));
    }

    #[test]
    fn kernel_vxlan_is_told_where_everybody_is() {
        let mut nic = nic(&["10.0.0.1/24", "fd00::1/64"], &["10.0.0.0/24", "fd00::/64"]);
        let others = others(&nic, &[], &[ips(&["10.0.0.1"]), ips(&["10.0.0.2", "fd00::2"])]);
        let network = Network { uid: 7, vni: Vni::new(7).unwrap(), slot: 0, off_subnet: false };
        let (device, mac) = ("uvn7.0".to_owned(), Mac([2, 0x75, 10, 0, 0, 2]));
        let vtep = "10.0.0.2".parse().unwrap();
        let neighbour =
            |text: &str| Item::Neighbour { device: "uvn7.0".to_owned(), address: text.parse().unwrap(), mac };
        let mut expected = vec![
            Item::Fdb { device: device.clone(), mac, vtep },
            neighbour("10.0.0.2"),
            neighbour("fd00::2"),
            Item::Fdb { device, mac: Mac([0; 6]), vtep },
        ];
        assert_eq!(others.entries(&nic, &network), expected);
        nic.group = Some("239.1.1.1".parse().unwrap());
        expected.pop();
        assert_eq!(others.entries(&nic, &network), expected);
    }

    #[test]
    fn without_ipv6_a_node_is_bound_to_its_address() {
        let nodes = [ips(&["10.0.0.2"])];
        let others = others(&nic(&["10.0.0.1/24"], &["10.0.0.0/24"]), &[], &nodes);
        assert_eq!(others.allowed.vtep.len(), 1);
        assert!(others.allows(nodes[0][0]));
    }

    #[test]
    fn ipv6_alone_has_ipv6_vteps() {
        let nodes = [ips(&["10.0.0.2", "fd00::2"])];
        let others = others(&nic(&["fd00::1/64"], &["fd00::/64"]), &[], &nodes);
        assert_eq!(others.broadcast(), ips(&["fd00::2"]));
        assert_eq!(others.allowed.range, [], "a /64 is too wide for a MAC");
    }

    #[test]
    fn the_other_family_of_all_ten_thousand_nodes_is_open() {
        let nodes: Vec<Vec<IpAddr>> =
            (0..10_000_u32).map(|i| vec![IpAddr::from((0x0a00_0100 + i).to_be_bytes())]).collect();
        let nic = nic(&["10.0.0.1/16", "fd00::1/64"], &["10.0.0.0/16", "fd00::/64"]);
        let others = others(&nic, &[], &nodes);
        let vteps = Vteps::new(&others.allowed).unwrap();
        let source = "fd00::77".parse().unwrap();
        assert!(nodes.iter().all(|node| vteps.may_send(node[0], source)));
        assert!(!vteps.may_send("10.0.200.1".parse().unwrap(), nodes[0][0]));
    }

    #[test]
    fn too_many_nodes_are_not_flooded() {
        let nodes: Vec<Vec<IpAddr>> =
            (0..=MAX_BROADCAST as u32).map(|i| vec![IpAddr::from((0x0a00_0100 + i).to_be_bytes())]).collect();
        let others = others(&nic(&["10.0.0.1/16"], &["10.0.0.0/16"]), &[], &nodes);
        assert_eq!(others.nodes.len(), MAX_BROADCAST + 1);
        assert!(others.broadcast().is_empty());
    }
}
