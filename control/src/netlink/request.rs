//! The rtnetlink messages that create and delete items.

use super::index;
use crate::plan::{Item, NAT_TABLE, RuleKind, Way};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVrf, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::IpAddr;
use uvn_api::dataplane::config::Cidr;
use uvn_wire::ethernet::Mac;

/// The protocol of uvn's routes (`proto` of iproute2), by which uvn knows them. Not taken in
/// include/uapi/linux/rtnetlink.h and /etc/iproute2/rt_protos.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(117);
/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u8 = 255;
/// Flags of a request that fails if the object exists.
pub const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// The TOS by which a VXLAN device copies the inner packet's (drivers/net/vxlan/vxlan_core.c).
pub const INHERIT_TOS: u8 = 1;
/// An unlimited lifetime (INFINITY_LIFE_TIME).
const FOREVER: u32 = u32::MAX;

/// The message that creates an item, and its flags; None for a TAP, which rtnetlink cannot make.
pub fn create(item: &Item) -> io::Result<Option<(RouteNetlinkMessage, u16)>> {
    use RouteNetlinkMessage::{NewAddress, NewLink, NewLinkProp, NewNeighbour, NewRoute, NewRule, SetLink};

    Ok(Some(match item {
        Item::Tap { .. } => return Ok(None),
        Item::Vrf { name, table } => {
            (NewLink(made(name, InfoKind::Vrf, InfoData::Vrf(vec![InfoVrf::TableId(*table)]))), NEW)
        }
        Item::Vxlan { name, vni, local, nic, port, group, ttl, dscp, checksum } => {
            let mut data = vxlan(*vni, *local, index(nic)?, *port, *group);
            data.extend([InfoVxlan::Ttl(*ttl), InfoVxlan::Tos(dscp.map_or(INHERIT_TOS, |dscp| dscp << 2))]);
            match local {
                IpAddr::V4(_) => data.push(InfoVxlan::UDPCsum(*checksum)),
                // Who sends none takes none (RFC 6936 section 3).
                IpAddr::V6(_) => {
                    data.extend([InfoVxlan::UDPZeroCsumTX(!checksum), InfoVxlan::UDPZeroCsumRX(!checksum)]);
                }
            }
            (NewLink(made(name, InfoKind::Vxlan, InfoData::Vxlan(data))), NEW)
        }
        Item::Altname { device, name } => {
            let mut message = link(device)?;
            message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(name.clone())]));
            (NewLinkProp(message), NEW | NLM_F_APPEND)
        }
        Item::Mac { device, mac } => (SetLink(with(device, LinkAttribute::Address(mac.0.to_vec()))?), 0),
        Item::Mtu { device, mtu } => (SetLink(with(device, LinkAttribute::Mtu(*mtu))?), 0),
        Item::Master { device, vrf } => {
            let vrf = index(vrf)?;
            (SetLink(with(device, LinkAttribute::Controller(vrf))?), 0)
        }
        Item::Up { device } => {
            let mut message = link(device)?;
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            (SetLink(message), 0)
        }
        Item::Address { device, address, passive, on_link } => {
            (NewAddress(new_address(device, *address, *passive, *on_link)?), NEW)
        }
        Item::Route { table, destination, way, metric } => {
            (NewRoute(route(*table, *destination, way, *metric)?), NEW)
        }
        Item::Rule { ipv4, priority, kind } => {
            let mut message = rule(*ipv4, *priority, *kind);
            // Marked as the kernel's own: systemd-networkd deletes rules that are neither its own nor the kernel's.
            message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
            (NewRule(message), NEW)
        }
        Item::Fdb { device, mac, vtep } => {
            // Several VTEPs may have the zero MAC: bridge(8), `fdb append`.
            let flag = if mac.0 == [0; 6] { NLM_F_APPEND } else { NLM_F_EXCL };
            (NewNeighbour(fdb(device, *mac, *vtep)?), NLM_F_CREATE | flag)
        }
        Item::Neighbour { device, address, mac } => {
            (NewNeighbour(neighbour(device, *address, *mac)?), NLM_F_CREATE | NLM_F_REPLACE)
        }
    }))
}

/// The message that deletes an item; None: it can only be replaced.
pub fn delete(item: &Item) -> io::Result<Option<RouteNetlinkMessage>> {
    use RouteNetlinkMessage::{DelAddress, DelLink, DelLinkProp, DelNeighbour, DelRoute, DelRule};

    Ok(Some(match item {
        Item::Vrf { name, .. } | Item::Tap { name, .. } | Item::Vxlan { name, .. } => DelLink(link(name)?),
        Item::Altname { device, name } => {
            let mut message = link(device)?;
            message.attributes.push(LinkAttribute::PropList(vec![Prop::AltIfName(name.clone())]));
            DelLinkProp(message)
        }
        Item::Mac { .. } | Item::Mtu { .. } | Item::Master { .. } | Item::Up { .. } => return Ok(None),
        Item::Address { device, address, .. } => DelAddress(self::address(device, *address)?),
        Item::Route { table, destination, way, metric } => {
            DelRoute(route(*table, *destination, way, *metric)?)
        }
        Item::Rule { ipv4, priority, kind } => DelRule(rule(*ipv4, *priority, *kind)),
        Item::Fdb { device, mac, vtep } => DelNeighbour(fdb(device, *mac, *vtep)?),
        Item::Neighbour { device, address, mac } => DelNeighbour(neighbour(device, *address, *mac)?),
    }))
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn link(device: &str) -> io::Result<LinkMessage> {
    let mut message = LinkMessage::default();
    message.header.index = index(device)?;
    Ok(message)
}

fn with(device: &str, attribute: LinkAttribute) -> io::Result<LinkMessage> {
    let mut message = link(device)?;
    message.attributes.push(attribute);
    Ok(message)
}

fn made(name: &str, kind: InfoKind, data: InfoData) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    message
}

fn vxlan(vni: u32, local: IpAddr, nic: u32, port: u16, group: Option<IpAddr>) -> Vec<InfoVxlan> {
    let mut data = vec![
        InfoVxlan::Id(vni),
        InfoVxlan::Link(nic),
        InfoVxlan::Port(port),
        // MACs are derived from VTEPs and entered; with a group, nodes need not be listed, so MACs must be learned.
        InfoVxlan::Learning(group.is_some()),
    ];
    data.push(match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    });
    data.extend(group.map(|group| match group {
        IpAddr::V4(group) => InfoVxlan::Group(group),
        IpAddr::V6(group) => InfoVxlan::Group6(group),
    }));
    data
}

/// The message that names an address of a device.
fn address(device: &str, address: Cidr) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix;
    message.header.index = index(device)?;
    message.attributes.push(AddressAttribute::Local(address.address));
    message.attributes.push(AddressAttribute::Address(address.address));
    Ok(message)
}

fn new_address(device: &str, cidr: Cidr, passive: bool, on_link: bool) -> io::Result<AddressMessage> {
    let mut message = address(device, cidr)?;
    let mut flags = if on_link { AddressFlags::empty() } else { AddressFlags::Noprefixroute };
    match cidr.address {
        IpAddr::V4(_) if passive => message.header.scope = AddressScope::Host,
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => {
            // No duplicate detection: the node's NIC has the address, and has done it.
            flags |= AddressFlags::Nodad;
            if passive {
                let mut lifetime = CacheInfo::default();
                lifetime.ifa_valid = FOREVER;
                message.attributes.push(AddressAttribute::CacheInfo(lifetime));
            }
        }
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    Ok(message)
}

fn route(table: u32, destination: Cidr, way: &Way, metric: u32) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(destination.address);
    header.destination_prefix_length = destination.prefix;
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    header.protocol = PROTOCOL;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(table));
    attributes.push(RouteAttribute::Priority(metric));
    if destination.prefix > 0 {
        attributes.push(RouteAttribute::Destination(destination.address.into()));
    }
    match way {
        Way::Unreachable => header.kind = RouteType::Unreachable,
        Way::Local { device } => {
            header.kind = RouteType::Local;
            header.scope = RouteScope::Host;
            attributes.push(RouteAttribute::Oif(index(device)?));
        }
        Way::Device { device, gateway, source } => {
            header.kind = RouteType::Unicast;
            attributes.push(RouteAttribute::Oif(index(device)?));
            attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
            match gateway {
                Some(gateway) => attributes.push(RouteAttribute::Gateway((*gateway).into())),
                None if destination.address.is_ipv4() => header.scope = RouteScope::Link,
                None => {}
            }
            // The gateway is on the NIC's link, whatever the VRF's table says. A link-local one always is, and with the
            // flag the kernel would look for it on another device first.
            let is_link_local =
                matches!(gateway, Some(IpAddr::V6(gateway)) if gateway.is_unicast_link_local());
            if gateway.is_some() && !is_link_local {
                header.flags = RouteFlags::Onlink;
            }
        }
    }
    Ok(message)
}

fn rule(ipv4: bool, priority: u32, kind: RuleKind) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(priority));
    match kind {
        RuleKind::L3mdev => message.attributes.push(RuleAttribute::L3MDev(true)),
        RuleKind::Local | RuleKind::LocalFirst => message.header.table = TABLE_LOCAL,
        RuleKind::NatUnreachable(pool) => {
            message.header.action = RuleAction::Unreachable;
            message.header.dst_len = pool.prefix;
            message.attributes.push(RuleAttribute::Destination(pool.address));
            // Packets that the node itself makes come "from lo" (fib_rules).
            message.attributes.push(RuleAttribute::Iifname("lo".into()));
        }
        RuleKind::NatLookup(pool) => {
            message.header.dst_len = pool.prefix;
            message.attributes.push(RuleAttribute::Destination(pool.address));
            message.attributes.push(RuleAttribute::Table(NAT_TABLE));
        }
    }
    message
}

fn fdb(device: &str, mac: Mac, vtep: IpAddr) -> io::Result<NeighbourMessage> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index(device)?;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(vtep.into()));
    Ok(message)
}

fn neighbour(device: &str, address: IpAddr, mac: Mac) -> io::Result<NeighbourMessage> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index(device)?;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that sends no outer checksum over IPv6 must take such packets, too.
    #[test]
    fn over_ipv6_sums_are_off_in_both_directions() {
        for checksum in [false, true] {
            let item = Item::Vxlan {
                name: "uvn7.0".into(),
                vni: 7,
                local: "fd00::1".parse().unwrap(),
                nic: "lo".into(),
                port: 4789,
                group: None,
                ttl: 64,
                dscp: None,
                checksum,
            };
            let Some((RouteNetlinkMessage::NewLink(link), _)) = create(&item).unwrap() else {
                panic!("no device")
            };
            let data = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
                    _ => None,
                }),
                _ => None,
            });
            let data = data.unwrap();
            assert!(data.contains(&InfoVxlan::UDPZeroCsumTX(!checksum)), "{data:?}");
            assert!(data.contains(&InfoVxlan::UDPZeroCsumRX(!checksum)), "{data:?}");
        }
    }
}
