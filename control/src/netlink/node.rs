//! Reads what networks on this node are made of: underlay NICs, other addresses, default routes.

use super::reading::{self, Names, Route};
use super::socket::has_ipv6;
use super::{Netlink, NetlinkError, named};
use crate::config::{Config, Underlay};
use crate::feed;
use crate::network::{DataPath, Exit, Nic, Node, uid_of};
use crate::plan::Way;
use netlink_packet_route::address::{AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteProtocol};
use std::net::IpAddr;
use uvn_api::dataplane::config::{Cidr, Encapsulation, Share};
use uvn_dataplane::gear::cores;
use uvn_dataplane::port::link;

/// A device that is not uvn's.
#[derive(Debug, Clone)]
struct Device {
    index: u32,
    name: String,
    mtu: u32,
    arphrd: u16,
    up: bool,
    addresses: Vec<Cidr>,
}

impl Netlink {
    /// What networks on this node are made of now. An `[[underlay]]` without a NIC here is left out.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn node(&self, config: &Config) -> Result<Node, NetlinkError> {
        let links = self.socket.links()?;
        let names: Names = links.iter().filter_map(named).collect();
        let devices = self.devices(&links)?;
        let main = RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into());
        let routes = self.socket.routes(RouteProtocol::Unspec, &[main])?;
        let defaults: Vec<Route> = routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0)
            .filter_map(|route| reading::route(route, &names))
            .collect();
        let mut node = assemble(config, &devices, &defaults, has_ipv6());
        for nic in &mut node.nics {
            // If the NIC has just gone, a notification follows.
            nic.queues = link::queues(&nic.name).unwrap_or(1);
        }
        share(&mut node.nics, cores::numa_node);
        Ok(node)
    }

    /// Other devices that have an address in the subnets of an underlay NIC.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rivals(&self, node: &Node) -> Result<Vec<Rival>, NetlinkError> {
        Ok(rivals(&node.nics, &self.devices(&self.socket.links()?)?))
    }

    /// The devices that are not uvn's, with their usable addresses.
    fn devices(&self, links: &[LinkMessage]) -> Result<Vec<Device>, NetlinkError> {
        let mut devices: Vec<Device> = links.iter().filter_map(Device::read).collect();
        for message in self.socket.addresses(None)? {
            if let Some((index, address)) = usable(&message)
                && let Some(device) = devices.iter_mut().find(|device| device.index == index)
            {
                device.addresses.push(address);
            }
        }
        Ok(devices)
    }
}

/// A device that may answer ARP for an underlay NIC's subnet, and so receive its traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Its name.
    pub device: String,
    /// The NIC.
    pub nic: String,
}

impl Device {
    fn read(message: &LinkMessage) -> Option<Device> {
        let (index, name) = named(message)?;
        let mtu = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        uid_of(&name).is_none().then_some(Device {
            index,
            name,
            mtu: mtu.unwrap_or(0),
            arphrd: message.header.link_layer_type.into(),
            up: message.header.flags.contains(LinkFlags::Up),
            addresses: Vec::new(),
        })
    }
}

/// The device's index and the address, if other hosts can use it: not link-local, not loopback, and of IPv6 neither
/// tentative, deprecated, nor temporary (privacy extensions: IFA_F_TEMPORARY, the bit that is IFA_F_SECONDARY in IPv4).
fn usable(message: &AddressMessage) -> Option<(u32, Cidr)> {
    let (index, cidr, flags) = reading::address(message)?;
    let not_yet = AddressFlags::Tentative | AddressFlags::Dadfailed;
    let is_usable = match cidr.address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => {
            !address.is_loopback()
                && !flags.intersects(not_yet | AddressFlags::Secondary | AddressFlags::Deprecated)
        }
    };
    is_usable.then_some((index, cidr))
}

fn assemble(config: &Config, devices: &[Device], defaults: &[Route], ipv6: bool) -> Node {
    let mut nics: Vec<Nic> = Vec::new();
    for (slot, underlay) in (0..).zip(&config.underlays) {
        let taken = |device: &&Device| !nics.iter().any(|nic| nic.index == device.index);
        let device = devices.iter().filter(taken).find(|device| match &underlay.nic {
            Some(name) => device.name == *name,
            None => device.addresses.iter().any(|cidr| inside(underlay, cidr.address)),
        });
        match device {
            Some(device) => nics.push(nic(slot, underlay, device)),
            None => tracing::warn!(
                underlay = slot,
                nic = underlay.nic,
                "this [[underlay]] has no NIC on this node"
            ),
        }
    }
    let others = devices.iter().flat_map(|device| {
        let nic = nics.iter().find(|nic| nic.index == device.index);
        let own = nic.map(|nic| nic.addresses.as_slice()).unwrap_or_default();
        device.addresses.iter().filter(move |cidr| !own.contains(cidr)).map(|cidr| cidr.address)
    });
    let mut others: Vec<IpAddr> = others.collect();
    others.sort();
    others.dedup();
    let exits = [true, false].into_iter().filter_map(|ipv4| exit(devices, defaults, ipv4)).collect();
    Node { others, exits, nics, ipv6, nat: config.nat, hosts: config.hosts.clone() }
}

/// Devices that are up and have an IPv4 address in a NIC's subnet. With IPv6, a device answers for its own addresses
/// only (RFC 4861 section 7.2.3).
fn rivals(nics: &[Nic], devices: &[Device]) -> Vec<Rival> {
    let mut rivals = Vec::new();
    for nic in nics {
        let on_link = |cidr: &Cidr| {
            cidr.address.is_ipv4() && nic.addresses.iter().any(|own| own.contains(cidr.address))
        };
        let is_rival =
            |device: &&Device| device.index != nic.index && device.up && device.addresses.iter().any(on_link);
        let named = |device: &Device| Rival { device: device.name.clone(), nic: nic.name.clone() };
        rivals.extend(devices.iter().filter(is_rival).map(named));
    }
    rivals
}

/// Tells the data planes of NICs that are near the same cores to begin at another core each.
fn share(nics: &mut [Nic], place: impl Fn(&str) -> Option<u32>) {
    let places: Vec<_> =
        nics.iter().map(|nic| (nic.path == DataPath::Engine).then(|| place(&nic.name))).collect();
    for (index, nic) in nics.iter_mut().enumerate() {
        let same =
            |others: &[Option<Option<u32>>]| others.iter().filter(|other| **other == places[index]).count();
        nic.workers.share = Share { index: same(&places[..index]), of: same(&places) };
    }
}

fn inside(underlay: &Underlay, address: IpAddr) -> bool {
    underlay.subnets.iter().any(|subnet| subnet.contains(address))
}

fn nic(slot: u8, underlay: &Underlay, device: &Device) -> Nic {
    let mut addresses: Vec<Cidr> =
        device.addresses.iter().copied().filter(|cidr| inside(underlay, cidr.address)).collect();
    addresses.sort_by_key(|cidr| cidr.address.is_ipv6());
    let encapsulation = Encapsulation { port: underlay.port, ..underlay.encapsulation };
    let obstacle =
        || feed::obstacle(&device.name, addresses.first().map(|cidr| cidr.address), &encapsulation);
    let (path, reason) = feed::choose(underlay.path, device.arphrd, device.mtu, obstacle);
    Nic {
        slot,
        name: device.name.clone(),
        index: device.index,
        mtu: device.mtu,
        arphrd: device.arphrd,
        up: device.up,
        queues: 1,
        subnets: underlay.subnets.clone(),
        addresses,
        path,
        reason,
        gear: underlay.path.gear(),
        encapsulation,
        workers: underlay.workers.clone(),
        group: underlay.group,
        flood_rate: underlay.flood_rate,
    }
}

/// The default route of a family that the node itself uses: the one with the lowest metric.
fn exit(devices: &[Device], defaults: &[Route], ipv4: bool) -> Option<Exit> {
    let mut routes: Vec<&Route> =
        defaults.iter().filter(|route| route.destination.address.is_ipv4() == ipv4).collect();
    routes.sort_by_key(|route| route.metric);
    routes.into_iter().find_map(|route| {
        let Some(Way::Device { device, gateway, source }) = &route.way else { return None };
        let device = devices.iter().find(|known| known.name == *device)?;
        let mut of_family = device.addresses.iter().filter(|cidr| cidr.address.is_ipv4() == ipv4);
        let near = gateway.and_then(|gateway| of_family.clone().find(|cidr| cidr.contains(gateway)));
        let address = source.or_else(|| near.or_else(|| of_family.next()).map(|cidr| cidr.address))?;
        Some(Exit { device: device.name.clone(), gateway: *gateway, address })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, addresses: &[&str]) -> Device {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Device { index, name: name.into(), mtu: 1500, arphrd: 1, up: true, addresses }
    }

    fn default_route(anywhere: &str, device: &str, gateway: &str, metric: u32) -> Route {
        let gateway = Some(gateway.parse().unwrap());
        let way = Way::Device { device: device.into(), gateway, source: None };
        Route { table: 254, destination: anywhere.parse().unwrap(), way: Some(way), metric }
    }

    fn config(underlays: &str) -> Config {
        toml::from_str(&format!("{underlays}\n[peers]\nrange = [\"10.0.0.0/16\"]")).unwrap()
    }

    #[test]
    fn a_nic_is_found_by_its_address_or_its_name() {
        let devices = [
            device(1, "lo", &[]),
            device(2, "eth0", &["192.168.1.1/24", "fd00:1::1/64"]),
            device(3, "em1", &["fd00::1/64", "10.0.0.1/16", "203.0.113.5/24"]),
            device(4, "ib0", &["10.1.0.1/16"]),
        ];
        let both = "[[underlay]]\nsubnets = [\"10.0.0.0/16\", \"fd00::/64\"]\n[[underlay]]\nnic = \"ib0\"\nsubnets = [\"10.1.0.0/16\"]\nport = 4790";
        let defaults = [
            default_route("0.0.0.0/0", "eth0", "192.168.1.254", 100),
            default_route("0.0.0.0/0", "em1", "10.0.0.254", 50),
            default_route("::/0", "em1", "fe80::1", 1024),
        ];
        let node = assemble(&config(both), &devices, &defaults, true);
        let nics: Vec<_> =
            node.nics.iter().map(|nic| (nic.slot, nic.name.as_str(), nic.encapsulation.port)).collect();
        assert_eq!(nics, [(0, "em1", 4789), (1, "ib0", 4790)]);
        let vteps: Vec<String> = node.nics[0].vteps().iter().map(ToString::to_string).collect();
        assert_eq!(vteps, ["10.0.0.1", "fd00::1"]);
        let others: Vec<String> = node.others.iter().map(ToString::to_string).collect();
        assert_eq!(
            others,
            ["192.168.1.1", "203.0.113.5", "fd00:1::1"],
            "the NIC's own off-subnet address, too"
        );
        let exits: Vec<_> =
            node.exits.iter().map(|exit| (exit.device.as_str(), exit.address.to_string())).collect();
        assert_eq!(exits, [("em1", "10.0.0.1".into()), ("em1", "fd00::1".into())]);
    }

    #[test]
    fn nics_of_one_numa_node_share_its_cores() {
        let devices = [1, 2, 3, 4].map(|i| device(i, &format!("em{i}"), &[&format!("10.{i}.0.1/16")]));
        let underlay = |i: u32| format!("[[underlay]]\nsubnets = [\"10.{i}.0.0/16\"]\n");
        let underlays: String = (1..=4).map(underlay).collect();
        let mut nics = assemble(&config(&underlays), &devices, &[], true).nics;
        nics[3].path = DataPath::Kernel;
        share(&mut nics, |name| Some(u32::from(name == "em2")));
        let shares: Vec<_> =
            nics[..3].iter().map(|nic| (nic.workers.share.index, nic.workers.share.of)).collect();
        assert_eq!(shares, [(0, 2), (0, 1), (1, 2)]);
    }

    #[test]
    fn another_device_on_the_subnet_is_a_rival() {
        let mut devices = [
            device(2, "eth0", &["192.168.1.1/24"]),
            device(3, "em1", &["10.0.0.1/16", "fd00::1/64"]),
            device(4, "em2", &["10.0.0.2/16"]),
            device(5, "em3", &["fd00::2/64"]),
        ];
        let one = config("[[underlay]]\nsubnets = [\"10.0.0.0/16\", \"fd00::/96\"]\nnic = \"em1\"");
        let nics = assemble(&one, &devices, &[], true).nics;
        assert_eq!(rivals(&nics, &devices), [Rival { device: "em2".into(), nic: "em1".into() }]);
        devices[2].up = false;
        assert_eq!(rivals(&nics, &devices), []);
    }

    #[test]
    fn an_absent_nic_leaves_the_others_their_slots() {
        let devices = [device(4, "ib0", &["10.1.0.1/16"])];
        let both = "[[underlay]]\nsubnets = [\"10.0.0.0/16\"]\n[[underlay]]\nsubnets = [\"10.1.0.0/16\"]\nport = 4790";
        let node = assemble(&config(both), &devices, &[], true);
        assert_eq!(node.nics.iter().map(|nic| nic.slot).collect::<Vec<_>>(), [1]);
        assert_eq!(node.exits, []);
    }
}
