//! The kernel's routes and neighbours, by rtnetlink: look-ups, and the notifications that say when to look again.

use crate::port::link::{netlink_request, split_message};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, recv, setsockopt};
use socket2::{SockFilter, SockRef};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use uvn_wire::ethernet::Mac;

/// A route to an underlay address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The address whose MAC the frames are sent to: the router, or the address itself on the NIC's own subnet.
    pub via: IpAddr,
    /// MTU of the route (RTAX_MTU), if it is configured with one, bytes; an MTU that a packet claims does not count
    /// (RFC 8201 section 6).
    pub mtu: Option<usize>,
}

/// The kernel's state of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// The neighbour has answered.
    Known {
        /// Its MAC.
        mac: Mac,
        /// Whether nobody has checked for a while that it still holds.
        stale: bool,
    },
    /// The neighbour is being asked.
    Unanswered,
    /// The neighbour was asked, and does not answer.
    Failed,
}

/// A change in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A neighbour on a device has changed.
    Neighbour {
        /// The device's index.
        index: u32,
        /// The neighbour.
        address: IpAddr,
        /// Its state now; None: the kernel has forgotten it.
        neighbour: Option<Neighbour>,
    },
    /// A route has changed.
    Route {
        /// The table it is in.
        table: u32,
        /// Index of the device that it leads to; None: several, none, or it is not known.
        device: Option<u32>,
    },
    /// The rules have changed that say which tables are looked at.
    Rules,
    /// The device with this index is new, or has changed.
    Link(u32),
    /// The addresses of a device have changed.
    Addresses,
    /// The device with this index has gone: it was deleted, or moved to another network namespace.
    Gone(u32),
    /// Notifications were lost: everything may have changed.
    Lost,
}

/// The route to `address` by the device `index`, looked up as the kernel's VXLAN does it; None: there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn look_up(address: IpAddr, index: u32) -> io::Result<Option<Route>> {
    let Some(message) = ask(address, index, RouteFlags::empty())? else { return Ok(None) };
    let Some(mut route) = read_route(&message, address, index) else { return Ok(None) };
    if route.mtu.is_some() && expires(&message) {
        // The sender of an ICMP error may have put it there, for all networks. The table's own entry has no such MTU.
        let configured = ask(address, index, RouteFlags::FibMatch)?;
        route.mtu = configured.and_then(|message| read_mtu(&message));
    }
    Ok(Some(route))
}

fn ask(address: IpAddr, index: u32, flags: RouteFlags) -> io::Result<Option<RouteMessage>> {
    let mut message = RouteMessage::default();
    message.header.flags = flags;
    (message.header.address_family, message.header.destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.push(RouteAttribute::Oif(index));
    let answers = match netlink_request(RouteNetlinkMessage::GetRoute(message), 0) {
        Ok(answers) => answers,
        Err(error) if is_unreachable(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    }))
}

/// Whether the route holds only for a time.
fn expires(message: &RouteMessage) -> bool {
    let is_it = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::CacheInfo(info) if info.expires != 0);
    message.attributes.iter().any(is_it)
}

fn read_mtu(message: &RouteMessage) -> Option<usize> {
    let metrics = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => usize::try_from(*mtu).ok(),
        _ => None,
    })
}

/// Whether an error means that there is no route, of whatever kind (blackhole: EINVAL, prohibit: EACCES).
fn is_unreachable(error: &io::Error) -> bool {
    let unreachable =
        [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES, libc::ENODEV, libc::ENETDOWN];
    error.raw_os_error().is_some_and(|errno| unreachable.contains(&errno))
}

fn read_route(message: &RouteMessage, address: IpAddr, index: u32) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route { via: address, mtu: read_mtu(message) };
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => device = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.via = (*gateway).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => route.via = (*gateway).into(),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => route.via = (*gateway).into(),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.via = (*gateway).into(),
            _ => {}
        }
    }
    (device == Some(index)).then_some(route)
}

/// The routing tables in which next hops on the device `index` are looked up: those that rules name, not those of
/// users' VRFs. None: any table, since the device may be in a VRF.
///
/// # Errors
/// The kernel's refusal.
pub fn tables(index: u32) -> io::Result<Option<BTreeSet<u32>>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let has_master = |answer: &RouteNetlinkMessage| match answer {
        RouteNetlinkMessage::NewLink(link) => {
            link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)))
        }
        _ => false,
    };
    if netlink_request(RouteNetlinkMessage::GetLink(message), 0)?.iter().any(has_master) {
        return Ok(None);
    }
    let mut tables = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut dump = RuleMessage::default();
        dump.header.family = family;
        for answer in netlink_request(RouteNetlinkMessage::GetRule(dump), NLM_F_DUMP)? {
            let RouteNetlinkMessage::NewRule(rule) = answer else { continue };
            let wide = rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Table(table) => Some(*table),
                _ => None,
            });
            tables.insert(wide.unwrap_or(rule.header.table.into()));
        }
    }
    Ok(Some(tables))
}

/// Every neighbour on the device `index`.
///
/// # Errors
/// The kernel's refusal.
pub fn neighbours(index: u32) -> io::Result<Vec<(IpAddr, Neighbour)>> {
    let mut dump = NeighbourMessage::default();
    // Neighbours on users' endpoints may be a hundred times as many.
    dump.attributes.push(NeighbourAttribute::IfIndex(index));
    let answers = netlink_request(RouteNetlinkMessage::GetNeighbour(dump), NLM_F_DUMP)?;
    let known = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == index => {
            Some((address_of(message)?, read_neighbour(message)))
        }
        _ => None,
    });
    Ok(known.collect())
}

/// Makes the kernel ask for a neighbour on the device `index`, or check that it is still there (NTF_USE). Its answer
/// comes as a notification.
///
/// # Errors
/// The kernel's refusal.
pub fn probe(address: IpAddr, index: u32) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    netlink_request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE).map(drop)
}

fn address_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn read_neighbour(message: &NeighbourMessage) -> Neighbour {
    use NeighbourState::{Delay, Failed, Noarp, Permanent, Probe, Reachable, Stale};
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    });
    match (message.header.state, mac) {
        (Reachable | Permanent | Noarp | Delay | Probe, Some(mac)) => Neighbour::Known { mac, stale: false },
        (Stale, Some(mac)) => Neighbour::Known { mac, stale: true },
        (Failed, _) => Neighbour::Failed,
        _ => Neighbour::Unanswered,
    }
}

/// The kernel's notifications about devices, addresses, neighbours and routes of this network namespace.
pub struct Notifications {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Notifications {
    /// Subscribes to these notifications.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn subscribe() -> io::Result<Notifications> {
        /// rtnetlink groups (include/uapi/linux/rtnetlink.h): RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE,
        /// _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE.
        const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
        /// The receive buffer, bytes: about what ten thousand neighbours send. If some are lost, all are asked again,
        /// and that is as many.
        const BUFFER: usize = 8 << 20;

        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // Beyond net.core.rmem_max; without CAP_NET_ADMIN in the first user namespace as much as is allowed.
        setsockopt(&socket, RcvBufForce, &BUFFER).or_else(|_| setsockopt(&socket, RcvBuf, &BUFFER))?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Notifications { socket, buffer: vec![0; 64 << 10] })
    }

    /// Limits the notifications about neighbours to those on the device `index`, from now on. Those on users' endpoints
    /// are as many as users make them: the kernel does not even queue them here.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn narrow(&self, index: u32) -> io::Result<()> {
        /// Classic BPF (include/uapi/linux/filter.h): load a half or a whole word, compare, return.
        const HALF: u16 = 0x28;
        const WORD: u16 = 0x20;
        const IS: u16 = 0x15;
        const RETURN: u16 = 0x06;
        /// Offsets of nlmsg_type, and of ndm_ifindex behind the header of 16 bytes.
        const TYPE: u32 = 4;
        const INDEX: u32 = 20;
        /// RTM_NEWNEIGH and RTM_DELNEIGH (include/uapi/linux/rtnetlink.h).
        const NEW: u16 = 28;
        const DEL: u16 = 29;
        // A filter loads what is in network order; netlink is in the host's.
        let filter = [
            SockFilter::new(HALF, 0, 0, TYPE),
            SockFilter::new(IS, 1, 0, NEW.to_be().into()),
            SockFilter::new(IS, 0, 2, DEL.to_be().into()),
            SockFilter::new(WORD, 0, 0, INDEX),
            SockFilter::new(IS, 0, 1, index.to_be()),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
            SockFilter::new(RETURN, 0, 0, 0),
        ];
        SockRef::from(&self.socket).attach_filter(&filter)
    }

    /// All notifications that have come.
    ///
    /// # Errors
    /// A failure of the socket other than lost notifications, which are [`Change::Lost`].
    pub fn read(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(nix::Error::EAGAIN) => return Ok(changes),
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::ENOBUFS) => {
                    changes.push(Change::Lost);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            read_changes(self.buffer.get(..length).unwrap_or_default(), &mut changes);
        }
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn read_changes(mut bytes: &[u8], changes: &mut Vec<Change>) {
    while let Some((length, this)) = split_message(bytes) {
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(this) else { continue };
        let replaces = message.header.flags & NLM_F_REPLACE != 0;
        let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
        let change = match message {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour_change(&message, true),
            RouteNetlinkMessage::DelNeighbour(message) => neighbour_change(&message, false),
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                Some(route_change(&message, replaces))
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Some(Change::Rules),
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                Some(Change::Addresses)
            }
            RouteNetlinkMessage::NewLink(message) => Some(Change::Link(message.header.index)),
            RouteNetlinkMessage::DelLink(message) => Some(Change::Gone(message.header.index)),
            _ => None,
        };
        // A burst of routes or links is one change.
        changes.extend(change.filter(|change| changes.last() != Some(change)));
    }
}

/// The change that a message about a route reports. A route that replaces another does not say which device that one
/// led to.
fn route_change(message: &RouteMessage, replaces: bool) -> Change {
    let mut table = u32::from(message.header.table);
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(wide) => table = *wide,
            RouteAttribute::Oif(index) if !replaces => device = Some(*index),
            _ => {}
        }
    }
    Change::Route { table, device }
}

fn neighbour_change(message: &NeighbourMessage, present: bool) -> Option<Change> {
    Some(Change::Neighbour {
        index: message.header.ifindex,
        address: address_of(message)?,
        neighbour: present.then(|| read_neighbour(message)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkHeader;

    const NIC: u32 = 3;

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    fn neighbour(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = NIC;
        message.header.state = state;
        message.attributes = vec![NeighbourAttribute::Destination(IpAddr::from([10, 0, 0, 2]).into())];
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    #[test]
    fn routes() {
        let to = IpAddr::from([10, 9, 0, 2]);
        let gateway = IpAddr::from([10, 0, 0, 254]);
        let direct = route(RouteType::Unicast, vec![RouteAttribute::Oif(NIC)]);
        assert_eq!(read_route(&direct, to, NIC), Some(Route { via: to, mtu: None }));
        assert_eq!(read_route(&direct, to, NIC + 1), None, "by another device");
        let far = route(
            RouteType::Unicast,
            vec![
                RouteAttribute::Gateway(gateway.into()),
                RouteAttribute::Oif(NIC),
                RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(1400)]),
            ],
        );
        assert_eq!(read_route(&far, to, NIC), Some(Route { via: gateway, mtu: Some(1400) }));
        let over_ipv6: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        let via = vec![RouteAttribute::Oif(NIC), RouteAttribute::Via(RouteVia::Inet6(over_ipv6))];
        assert_eq!(read_route(&route(RouteType::Unicast, via), to, NIC).unwrap().via, over_ipv6);
        for kind in [RouteType::Local, RouteType::Broadcast, RouteType::Unreachable] {
            assert_eq!(read_route(&route(kind, vec![RouteAttribute::Oif(NIC)]), to, NIC), None);
        }
    }

    #[test]
    fn neighbour_states() {
        use NeighbourState::*;
        let mac = [2, 0, 0, 0, 0, 1];
        for (state, stale) in [(Reachable, false), (Permanent, false), (Probe, false), (Stale, true)] {
            let known = Neighbour::Known { mac: Mac(mac), stale };
            assert_eq!(read_neighbour(&neighbour(state, Some(mac))), known);
        }
        for state in [Incomplete, None] {
            assert_eq!(read_neighbour(&neighbour(state, Some(mac))), Neighbour::Unanswered);
        }
        assert_eq!(read_neighbour(&neighbour(Failed, Option::None)), Neighbour::Failed);
        assert_eq!(read_neighbour(&neighbour(Reachable, Option::None)), Neighbour::Unanswered);
        let mut infiniband = neighbour(Reachable, Option::None);
        infiniband.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![0; 20]));
        assert_eq!(read_neighbour(&infiniband), Neighbour::Unanswered);
    }

    #[test]
    fn notifications() {
        let packet = |message: RouteNetlinkMessage| {
            let mut message =
                NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let wide = vec![RouteAttribute::Table(70_000), RouteAttribute::Oif(NIC)];
        let mut bytes = packet(RouteNetlinkMessage::NewRoute(route(RouteType::Unicast, wide.clone())));
        bytes.extend(packet(RouteNetlinkMessage::DelRoute(route(RouteType::Unicast, wide))));
        bytes.extend(packet(RouteNetlinkMessage::DelRoute(RouteMessage::default())));
        bytes.extend(packet(RouteNetlinkMessage::DelNeighbour(neighbour(NeighbourState::Failed, None))));
        let mut changes = Vec::new();
        read_changes(&bytes, &mut changes);
        let gone = Change::Neighbour { index: NIC, address: [10, 0, 0, 2].into(), neighbour: None };
        let there = Change::Route { table: 70_000, device: Some(NIC) };
        assert_eq!(changes, [there, Change::Route { table: 0, device: None }, gone]);
        for length in 0..bytes.len() {
            read_changes(&bytes[..length], &mut Vec::new());
        }
        changes.clear();
        read_changes(&[0xff; 64], &mut changes);
        assert!(changes.is_empty());
    }
}
