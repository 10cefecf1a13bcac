//! The kernel's notifications about devices, addresses, routes and the nftables table.

use super::NetlinkError;
use super::reading;
use super::request::PROTOCOL;
use super::socket::Socket;
use crate::network::{FIRST_TABLE, uid_of};
use crate::plan::NAT_TABLE;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_sys::SocketAddr;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, recv, setsockopt};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The changes since the last look.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Notifications were lost: anything may have changed.
    pub overflow: bool,
    /// A device that is not uvn's, one of its addresses, or a default route changed: the node must be read again.
    pub node: bool,
    /// UIDs of networks with a changed device or address, perhaps changed by uvnd itself.
    pub uids: BTreeSet<u32>,
    /// Lease numbers of networks with a changed routing table.
    pub slots: BTreeSet<u32>,
    /// A routing rule changed, perhaps by uvnd itself.
    pub rules: bool,
    /// The nftables table `inet uvn` changed, perhaps by uvnd itself.
    pub firewall: bool,
}

impl Changes {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// A subscription; readable when something has changed.
pub struct Monitor {
    socket: netlink_sys::Socket,
    nftables: netlink_sys::Socket,
    buffer: Vec<u8>,
    /// The UIDs of uvn's devices by interface index: a notification about an address has no device name.
    ours: HashMap<u32, u32>,
}

impl Monitor {
    /// Subscribes in the thread's network namespace.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> Result<Monitor, NetlinkError> {
        /// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE
        /// (include/uapi/linux/rtnetlink.h).
        const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
        /// Bytes: about what the kernel sends when a thousand networks are made at once.
        const BUFFER: usize = 8 << 20;

        /// NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h).
        const NFTABLES: [u32; 1] = [7];

        let socket = subscribe(NETLINK_ROUTE, &GROUPS).map_err(NetlinkError::Socket)?;
        // More than net.core.rmem_max allows; without CAP_NET_ADMIN in the first user namespace, as much as it allows.
        setsockopt(&socket, RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, RcvBuf, &BUFFER))
            .map_err(|error| NetlinkError::Socket(error.into()))?;
        let nftables = subscribe(NETLINK_NETFILTER, &NFTABLES).map_err(NetlinkError::Socket)?;
        let mut monitor = Monitor { socket, nftables, buffer: vec![0; 64 << 10], ours: HashMap::new() };
        monitor.resync()?;
        Ok(monitor)
    }

    /// The changes since the last call, without waiting.
    ///
    /// # Errors
    /// The socket fails. Lost notifications are no error, but [`Changes::overflow`].
    pub fn drain(&mut self) -> Result<Changes, NetlinkError> {
        let mut changes = Changes::default();
        while let Some(length) = self.receive(self.socket.as_raw_fd(), &mut changes.overflow)? {
            self.read(length, &mut changes);
        }
        while let Some(length) = self.receive(self.nftables.as_raw_fd(), &mut changes.firewall)? {
            let bytes = self.buffer.get(..length).unwrap_or_default();
            changes.firewall |= messages(bytes).any(is_of_our_table);
        }
        if changes.overflow {
            self.resync()?;
        }
        Ok(changes)
    }

    /// The length of the next packet of notifications, in `buffer`; None: there is none now.
    fn receive(&mut self, socket: RawFd, lost: &mut bool) -> Result<Option<usize>, NetlinkError> {
        loop {
            match recv(socket, &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => *lost = true,
                Err(error) => return Err(NetlinkError::Socket(error.into())),
            }
        }
    }

    /// Lists uvn's devices again.
    fn resync(&mut self) -> Result<(), NetlinkError> {
        let links = Socket::open().map_err(NetlinkError::Socket)?.links()?;
        self.ours = links.iter().filter_map(|link| Some((link.header.index, uid(link)?))).collect();
        Ok(())
    }

    fn read(&mut self, length: usize, changes: &mut Changes) {
        let buffer = std::mem::take(&mut self.buffer);
        for message in messages(buffer.get(..length).unwrap_or_default()) {
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
                Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => {
                    self.note(&message, changes);
                }
                Ok(_) => {}
                // Not understood: reading the node once too often does no harm.
                Err(_) => changes.node = true,
            }
        }
        self.buffer = buffer;
    }

    fn note(&mut self, message: &RouteNetlinkMessage, changes: &mut Changes) {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule,
        };
        match message {
            NewLink(link) => {
                let index = link.header.index;
                let now = uid(link);
                let before = match now {
                    Some(uid) => self.ours.insert(index, uid),
                    None => self.ours.remove(&index),
                };
                changes.uids.extend(before.into_iter().chain(now));
                changes.node |= now.is_none();
            }
            DelLink(link) => {
                self.ours.remove(&link.header.index);
                changes.note_device(uid(link));
            }
            NewAddress(address) | DelAddress(address) => {
                changes.note_device(self.ours.get(&address.header.index).copied());
            }
            NewRoute(route) | DelRoute(route) => self.note_route(route, changes),
            NewRule(_) | DelRule(_) => changes.rules = true,
            _ => {}
        }
    }

    /// Outside of uvn's tables, only default routes of `main` matter.
    fn note_route(&self, route: &RouteMessage, changes: &mut Changes) {
        let is_ours = route.header.protocol == PROTOCOL;
        let mut table = u32::from(route.header.table);
        let mut uid = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Oif(index) => uid = self.ours.get(index),
                _ => {}
            }
        }
        match table.checked_sub(FIRST_TABLE) {
            Some(slot) if is_ours => drop(changes.slots.insert(slot)),
            None if table == NAT_TABLE => changes.uids.extend(uid),
            None if table == u32::from(RouteHeader::RT_TABLE_MAIN) => {
                changes.node |= route.header.destination_prefix_length == 0;
            }
            // The kernel's own routes in a network's table follow from addresses.
            _ => {}
        }
    }
}

impl Changes {
    fn note_device(&mut self, uid: Option<u32>) {
        match uid {
            Some(uid) => drop(self.uids.insert(uid)),
            None => self.node = true,
        }
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// The messages in a packet, each with its header.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = rest.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize)?;
        let message = rest.get(..length).filter(|_| length >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Whether a message of nftables is about uvn's table or something in it: the first attribute names the table, in all
/// messages but those about elements and generations (include/uapi/linux/netfilter/nf_tables.h).
fn is_of_our_table(message: &[u8]) -> bool {
    /// `struct nfgenmsg`, and the attribute that names the table.
    const BODY: usize = HEADER + 4;
    const TABLE: u16 = 1;

    let mut attributes = NlasIterator::new(message.get(BODY..).unwrap_or_default()).flatten();
    attributes.any(|attribute| attribute.kind() == TABLE && attribute.value() == b"uvn\0")
}

fn uid(link: &LinkMessage) -> Option<u32> {
    uid_of(reading::name_of(link)?)
}

impl Source for Monitor {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).register(registry, token, interests)?;
        SourceFd(&self.nftables.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).reregister(registry, token, interests)?;
        SourceFd(&self.nftables.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).deregister(registry)?;
        SourceFd(&self.nftables.as_raw_fd()).deregister(registry)
    }
}
