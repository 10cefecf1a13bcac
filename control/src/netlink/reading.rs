//! Translates rtnetlink's messages into items of a plan.

use super::request::{INHERIT_TOS, PROTOCOL};
use crate::network::uid_of;
use crate::plan::{Item, NAT_TABLE, RuleKind, Way};
use netlink_packet_core::Nla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVrf, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvn_api::dataplane::config::{Cidr, Encapsulation};
use uvn_wire::ethernet::Mac;

/// The names of devices by index.
pub type Names = HashMap<u32, String>;

/// A device's name.
pub fn name_of(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// A device's kind and the attributes of that kind.
pub fn kind_of(message: &LinkMessage) -> (Option<&InfoKind>, Option<&InfoData>) {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let infos = infos.into_iter().flatten();
    infos.fold((None, None), |(kind, data), info| match info {
        LinkInfo::Kind(kind) => (Some(kind), data),
        LinkInfo::Data(data) => (kind, Some(data)),
        _ => (kind, data),
    })
}

/// Whether a device is a VXLAN device with a VNI filter, as [`uvn_dataplane::port::link::create_deaf_vxlan`] makes.
pub fn has_vni_filter(message: &LinkMessage) -> bool {
    let (Some(InfoKind::Vxlan), Some(InfoData::Vxlan(data))) = kind_of(message) else { return false };
    data.contains(&InfoVxlan::CollectMetadata(true)) && data.contains(&InfoVxlan::Vnifilter(true))
}

/// The items of a device, without its addresses; none if its name and kind are not uvn's.
pub fn link(message: &LinkMessage, names: &Names) -> Vec<Item> {
    let Some(name) = name_of(message) else { return Vec::new() };
    let Some(uid) = uid_of(name) else { return Vec::new() };
    let is_endpoint = name.contains('.');
    let device = match kind_of(message) {
        (Some(InfoKind::Vrf), data) if !is_endpoint => vrf(name, data),
        (Some(InfoKind::Tun), data) if is_endpoint => tap(name, data),
        (Some(InfoKind::Vxlan), data) if is_endpoint => vxlan(name, data, names),
        _ => None,
    };
    let Some(device) = device else { return Vec::new() };
    let name = || name.to_owned();
    let mut items = vec![device];
    if message.header.flags.contains(LinkFlags::Up) {
        items.push(Item::Up { device: name() });
    }
    if is_endpoint {
        items.extend(message.attributes.iter().flat_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => {
                let mac = bytes.as_slice().try_into().ok().map(Mac);
                mac.map(|mac| Item::Mac { device: name(), mac }).into_iter().collect()
            }
            LinkAttribute::Mtu(mtu) => vec![Item::Mtu { device: name(), mtu: *mtu }],
            LinkAttribute::Controller(vrf) => {
                let vrf = names.get(vrf).cloned().unwrap_or_default();
                vec![Item::Master { device: name(), vrf }]
            }
            LinkAttribute::PropList(list) => altnames(&name(), uid, list),
            _ => Vec::new(),
        }));
    }
    items
}

/// The alternative names that uvn gives; udev may add others.
fn altnames(device: &str, uid: u32, list: &[Prop]) -> Vec<Item> {
    let ours = format!("u{uid}");
    let names = list.iter().filter_map(|property| match property {
        Prop::AltIfName(name) if name.ends_with(&ours) => {
            Some(Item::Altname { device: device.into(), name: name.clone() })
        }
        _ => None,
    });
    names.collect()
}

fn vrf(name: &str, data: Option<&InfoData>) -> Option<Item> {
    let Some(InfoData::Vrf(data)) = data else { return None };
    data.iter().find_map(|attribute| match attribute {
        InfoVrf::TableId(table) => Some(Item::Vrf { name: name.into(), table: *table }),
        _ => None,
    })
}

fn tap(name: &str, data: Option<&InfoData>) -> Option<Item> {
    /// IFLA_TUN_TYPE and its value IFF_TAP, IFLA_TUN_VNET_HDR, IFLA_TUN_MULTI_QUEUE (include/uapi/linux/if_link.h).
    const TYPE: (u16, u8) = (3, 2);
    const VNET_HDR: (u16, u8) = (5, 1);
    const MULTI_QUEUE: (u16, u8) = (7, 1);

    let Some(InfoData::Tun(data)) = data else { return None };
    let has = |(kind, value): (u16, u8)| {
        data.iter().any(|attribute| {
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            attribute.kind() == kind && bytes == [value]
        })
    };
    has(TYPE).then(|| Item::Tap { name: name.into(), multi_queue: has(MULTI_QUEUE) && has(VNET_HDR) })
}

fn vxlan(name: &str, data: Option<&InfoData>, names: &Names) -> Option<Item> {
    let Some(InfoData::Vxlan(data)) = data else { return None };
    let mut local_address = None;
    let (mut id, mut below, mut udp, mut multicast) = (0, String::new(), 0, None);
    // IPv4 and IPv6 have a setting each.
    let mut sums = [true; 2];
    let (mut hops, mut tos) = (0, 0);
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => id = *vni,
            InfoVxlan::Local(address) => local_address = Some((*address).into()),
            InfoVxlan::Local6(address) => local_address = Some((*address).into()),
            InfoVxlan::Link(index) => below = names.get(index).cloned().unwrap_or_default(),
            InfoVxlan::Port(port) => udp = *port,
            InfoVxlan::Group(address) => multicast = Some((*address).into()),
            InfoVxlan::Group6(address) => multicast = Some((*address).into()),
            InfoVxlan::Ttl(ttl) => hops = *ttl,
            InfoVxlan::Tos(value) => tos = *value,
            InfoVxlan::UDPCsum(yes) => sums[0] = *yes,
            InfoVxlan::UDPZeroCsumTX(no) => sums[1] = !no,
            _ => {}
        }
    }
    // uvn makes none without a local address, but the name says that it is uvn's.
    let local = local_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let checksum = sums[usize::from(local.is_ipv6())];
    Some(Item::Vxlan {
        name: name.into(),
        vni: id,
        local,
        nic: below,
        port: udp,
        group: multicast,
        // Devices of 0.1.0 have 0, the system's default (to a group, 1); most systems have ours.
        ttl: if hops == 0 && multicast.is_none() { Encapsulation::default().ttl } else { hops },
        dscp: (tos != INHERIT_TOS).then_some(tos >> 2),
        checksum,
    })
}

/// The device's index, the address and its flags; None for IPv6 link-local addresses, which the kernel makes.
pub fn address(message: &AddressMessage) -> Option<(u32, Cidr, AddressFlags)> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address = local.or(other)?;
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let cidr = Cidr { address, prefix: message.header.prefix_len };
    (!is_link_local).then_some((message.header.index, cidr, flags))
}

/// The item of an address on one of uvn's devices.
pub fn address_item(message: &AddressMessage, names: &Names) -> Option<Item> {
    let (index, address, flags) = address(message)?;
    let device = names.get(&index).filter(|name| uid_of(name).is_some())?.clone();
    let passive = match address.address {
        IpAddr::V4(_) => message.header.scope == AddressScope::Host,
        IpAddr::V6(_) => flags.contains(AddressFlags::Deprecated),
    };
    Some(Item::Address { device, address, passive, on_link: !flags.contains(AddressFlags::Noprefixroute) })
}

/// A route of any origin, with its table, destination and metric.
pub struct Route {
    /// Its table.
    pub table: u32,
    /// The destination, perhaps with host bits.
    pub destination: Cidr,
    /// The way, or the first of several; None: one that uvn does not use, such as blackhole.
    pub way: Option<Way>,
    /// Its metric.
    pub metric: u32,
}

/// Reads a route; None for cached ones and other families.
pub fn route(message: &RouteMessage, names: &Names) -> Option<Route> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut destination = Cidr { address: unspecified, prefix: header.destination_prefix_length };
    let (mut table, mut metric) = (u32::from(header.table), 0);
    let (mut device, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(address) => destination.address = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => device = names.get(index).cloned(),
            // The first of several ways is enough: uvn's routes have one.
            RouteAttribute::MultiPath(hops) => {
                let Some(hop) = hops.first() else { continue };
                device = names.get(&hop.interface_index).cloned();
                gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let way = match (header.kind, device) {
        (RouteType::Unreachable, _) => Some(Way::Unreachable),
        (RouteType::Local, Some(device)) => Some(Way::Local { device }),
        (RouteType::Unicast, Some(device)) => Some(Way::Device { device, gateway, source }),
        _ => None,
    };
    Some(Route { table, destination, way, metric })
}

/// The item of a route that uvn has made.
pub fn route_item(message: &RouteMessage, names: &Names) -> Option<Item> {
    if message.header.protocol != PROTOCOL {
        return None;
    }
    let Route { table, destination, way, metric } = route(message, names)?;
    Some(Item::Route { table, destination, way: way?, metric })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The item of a rule for table `local`, or of one of uvn's rules.
pub fn rule(message: &RuleMessage) -> Option<Item> {
    /// RT_TABLE_LOCAL.
    const LOCAL: u32 = 255;
    /// The preference of the kernel's own l3mdev rule (FIB_RULE_PREF_L3MDEV, drivers/net/vrf.c).
    const FIRST_VRF: u32 = 1000;

    let (mut priority, mut table) = (0, u32::from(message.header.table));
    let (mut l3mdev, mut is_plain, mut pool, mut from_self) = (false, true, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::L3MDev(yes) => l3mdev = *yes,
            RuleAttribute::Destination(address) => pool = Some(*address),
            RuleAttribute::Iifname(name) if name == "lo" => from_self = true,
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            // Any other attribute narrows the rule down.
            _ => is_plain = false,
        }
    }
    let pool = pool.map(|address| Cidr { address, prefix: message.header.dst_len });
    let kind = match (message.header.action, pool) {
        _ if !is_plain => return None,
        (RuleAction::ToTable, None) if l3mdev && !from_self && priority != FIRST_VRF => RuleKind::L3mdev,
        (RuleAction::ToTable, None) if table == LOCAL && !l3mdev && !from_self => RuleKind::Local,
        (RuleAction::ToTable, Some(pool)) if table == NAT_TABLE => RuleKind::NatLookup(pool),
        // uvn's preferences come before all that sites use.
        (RuleAction::Unreachable, Some(pool)) if from_self && priority < 4 => RuleKind::NatUnreachable(pool),
        _ => return None,
    };
    let ipv4 = match message.header.family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return None,
    };
    Some(Item::Rule { ipv4, priority, kind })
}

/// The item of a permanent neighbour or forwarding entry on one of uvn's endpoints.
pub fn neighbour(message: &NeighbourMessage, names: &Names) -> Option<Item> {
    // The kernel's own entry for a VXLAN's group has another state.
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let device = names.get(&message.header.ifindex).filter(|name| uid_of(name).is_some())?.clone();
    let (mut mac, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Destination(destination) => address = neighbour_address(destination),
            _ => {}
        }
    }
    let (mac, address) = (mac?, address?);
    Some(match message.header.family {
        AddressFamily::Bridge => Item::Fdb { device, mac, vtep: address },
        _ => Item::Neighbour { device, address, mac },
    })
}

fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        // In the bridge family only the length tells IPv4 from IPv6.
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
            _ => None,
        },
        _ => None,
    }
}
