//! Links, addresses, routes and rules: the only place in this crate that speaks rtnetlink.
//!
//! Calls block, since the daemon is synchronous: rtnetlink runs on a tokio runtime of this thread, inside each call.
//! The network namespace is the thread's, which must not change after [`Netlink::open`].

mod monitor;
mod node;
mod pool;
mod reading;
mod request;
mod rules;
mod socket;

pub use monitor::{Changes, Monitor};
pub use node::Rival;
pub use pool::PoolInUse;
pub use socket::has_ipv6;

use crate::network::{MAX_NICS, Network};
use crate::plan::{Item, NAT_TABLE, Step};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use nix::net::if_::if_indextoname;
use reading::Names;
use socket::{Refusal, Socket};
use std::io;
use thiserror::Error;
use uvn_dataplane::gear::shortcut;
use uvn_dataplane::port::link::{self, LinkError};
use uvn_dataplane::port::slow_path;
use uvn_dataplane::port::tap::{Tap, TapError};

/// Why the kernel's state could not be read or changed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The rtnetlink socket cannot be opened or read.
    #[error("rtnetlink: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused to list something.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was to be listed.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("{step}: {source}{}", advice.as_ref().map(|advice| format!(": {advice}")).unwrap_or_default())]
    Refused {
        /// The step that failed.
        step: Box<Step>,
        /// The kernel's answer.
        source: io::Error,
        /// What the refusal means and what helps, or else the kernel's own words.
        advice: Option<String>,
    },
    /// A TAP could not be made.
    #[error("{step}: {source}")]
    Tap {
        /// The step that failed.
        step: Box<Step>,
        /// Why not.
        source: TapError,
    },
    /// Another program has routes in the network's table.
    #[error(
        "{step}: the table has routes that are not uvn's; remove them, and leave this table number to uvn"
    )]
    TableInUse {
        /// The step that failed.
        step: Box<Step>,
        /// The table.
        table: u32,
    },
    /// Another program's rule cannot be moved behind uvn's.
    #[error("cannot move a routing rule that was added without a preference to preference {rule}: {source}")]
    Rule {
        /// The rule: its new preference, family and table.
        rule: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The kernel's network configuration.
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a socket in the thread's network namespace.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> Result<Netlink, NetlinkError> {
        Ok(Netlink { socket: Socket::open().map_err(NetlinkError::Socket)? })
    }

    /// Everything in the kernel that is uvn's: the rules, and the items of all networks. Compare it with
    /// [`crate::plan::node`] and [`crate::plan::network`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn observe(&self) -> Result<Vec<Item>, NetlinkError> {
        let links = self.socket.links()?;
        let names: Names = links.iter().filter_map(named).collect();
        let mut items = self.observe_rules()?;
        items.extend(links.iter().flat_map(|link| reading::link(link, &names)));
        let addresses = self.socket.addresses(None)?;
        items.extend(addresses.iter().filter_map(|address| reading::address_item(address, &names)));
        let routes = self.socket.routes(request::PROTOCOL, &[])?;
        items.extend(routes.iter().filter_map(|route| reading::route_item(route, &names)));
        let neighbours = self.socket.neighbours(None)?;
        items.extend(neighbours.iter().filter_map(|neighbour| reading::neighbour(neighbour, &names)));
        Ok(items)
    }

    /// uvn's rules, and the kernel's own one that they replace. Compare them with [`crate::plan::node`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn observe_rules(&self) -> Result<Vec<Item>, NetlinkError> {
        Ok(rules::in_order(self.socket.rules()?.iter().filter_map(reading::rule).collect()))
    }

    /// Moves other programs' rules that were added without a preference to where they would be without uvn's rules.
    /// Returns the moved rules, as texts.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn give_way(&self) -> Result<Vec<String>, NetlinkError> {
        let mut moved = Vec::new();
        for (before, after) in rules::out_of_place(&self.socket.rules()?) {
            let words = rules::words(&after);
            let refused =
                |refusal: Refusal| NetlinkError::Rule { rule: words.clone(), source: refusal.source };
            match self.socket.change(RouteNetlinkMessage::NewRule(after), request::NEW) {
                Err(refusal) if refusal.source.raw_os_error() != Some(libc::EEXIST) => {
                    return Err(refused(refusal));
                }
                _ => {}
            }
            match self.socket.change(RouteNetlinkMessage::DelRule(before), 0) {
                Err(refusal) if !is_gone(&refusal.source) => return Err(refused(refusal)),
                _ => moved.push(words),
            }
        }
        Ok(moved)
    }

    /// The items of one network. The cost hardly grows with the number of networks. Compare them with
    /// [`crate::plan::network`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn observe_network(&self, network: &Network) -> Result<Vec<Item>, NetlinkError> {
        let vrf = network.vrf();
        let endpoints = (0..MAX_NICS).map(|slot| format!("{vrf}.{slot}"));
        let mut links = Vec::new();
        for name in std::iter::once(vrf.clone()).chain(endpoints) {
            if let Ok(index) = index(&name) {
                links.extend(self.socket.link(index)?);
            }
        }
        let mut names: Names = links.iter().filter_map(named).collect();
        links.iter().flat_map(related).for_each(|index| learn(&mut names, index));

        let mut items = Vec::new();
        for link in &links {
            items.extend(reading::link(link, &names));
            let index = Some(link.header.index);
            let addresses = self.socket.addresses(index)?;
            items.extend(addresses.iter().filter_map(|address| reading::address_item(address, &names)));
            if reading::kind_of(link).0 == Some(&InfoKind::Vxlan) {
                let neighbours = self.socket.neighbours(index)?;
                items.extend(neighbours.iter().filter_map(|entry| reading::neighbour(entry, &names)));
            }
        }
        let mut routes = self.socket.routes(request::PROTOCOL, &[RouteAttribute::Table(network.table())])?;
        if let Some(vrf) = links.iter().filter_map(named).find(|(_, name)| *name == vrf) {
            let replies = [RouteAttribute::Table(NAT_TABLE), RouteAttribute::Oif(vrf.0)];
            routes.extend(self.socket.routes(request::PROTOCOL, &replies)?);
        }
        routes.iter().flat_map(|route| &route.attributes).for_each(|attribute| {
            if let RouteAttribute::Oif(index) = attribute {
                learn(&mut names, *index);
            }
        });
        items.extend(routes.iter().filter_map(|route| reading::route_item(route, &names)));
        Ok(items)
    }

    /// Devices for GRO that killed data planes have left behind: each NIC's index and the device's name.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn left_for_gro(&self) -> Result<Vec<(u32, String)>, NetlinkError> {
        let links = self.socket.links()?;
        let is_tap = |link: &&LinkMessage| reading::kind_of(link).0 == Some(&InfoKind::Tun);
        let taps: Vec<&str> = links.iter().filter(is_tap).filter_map(reading::name_of).collect();
        let deaf = links.iter().filter(|link| reading::has_vni_filter(link)).filter_map(reading::name_of);
        let ours = deaf.filter_map(|name| Some((shortcut::nic_of_gro(name)?, name.to_owned())));
        Ok(ours.filter(|(nic, _)| !taps.contains(&slow_path::device(*nic).as_str())).collect())
    }

    /// Takes one step.
    ///
    /// Deleting an absent item succeeds: the kernel may have removed it with another one.
    ///
    /// # Errors
    /// The kernel's refusal, which names the object and, where it is known, what helps.
    pub fn apply(&self, step: &Step) -> Result<(), NetlinkError> {
        let boxed = || Box::new(step.clone());
        let result = match step {
            Step::Create(Item::Tap { name, multi_queue }) => {
                return create_tap(name, *multi_queue)
                    .map_err(|source| NetlinkError::Tap { step: boxed(), source });
            }
            Step::Create(item) => {
                if let Item::Vrf { table, .. } = *item
                    && self.is_foreign(table)?
                {
                    return Err(NetlinkError::TableInUse { step: boxed(), table });
                }
                match self.create(item) {
                    // The kernel's default for new devices is IPv6 off.
                    Err(refusal) if refusal.source.raw_os_error() == Some(libc::EACCES) => {
                        enable_ipv6(item).map_err(Refusal::from).and_then(|()| self.create(item))
                    }
                    result => result,
                }
            }
            Step::Delete(item) => match self.delete(item) {
                Err(refusal) if is_gone(&refusal.source) => Ok(()),
                result => result,
            },
        };
        result.map_err(|refusal| {
            let advice = advice(step, &refusal.source).map(String::from).or(refusal.words);
            NetlinkError::Refused { step: boxed(), source: refusal.source, advice }
        })
    }

    fn create(&self, item: &Item) -> Result<(), Refusal> {
        match request::create(item)? {
            Some((message, flags)) => self.socket.change(message, flags),
            None => Ok(()),
        }
    }

    fn delete(&self, item: &Item) -> Result<(), Refusal> {
        match request::delete(item)? {
            Some(message) => self.socket.change(message, 0),
            None => Ok(()),
        }
    }

    /// Whether other programs have routes in a table: users' traffic and theirs would mix.
    fn is_foreign(&self, table: u32) -> Result<bool, NetlinkError> {
        let routes = self.socket.routes(RouteProtocol::Unspec, &[RouteAttribute::Table(table)])?;
        let foreign = |route: &RouteMessage| {
            // The kernel's own routes belong to a device, and devices are compared by name.
            ![request::PROTOCOL, RouteProtocol::Kernel].contains(&route.header.protocol)
        };
        Ok(routes.iter().any(foreign))
    }
}

/// A device's index and name.
fn named(link: &LinkMessage) -> Option<(u32, String)> {
    Some((link.header.index, reading::name_of(link)?.to_owned()))
}

/// The indexes of the devices that a device refers to: its VRF, the NIC below it.
fn related(link: &LinkMessage) -> Vec<u32> {
    use netlink_packet_route::link::{InfoData, InfoVxlan};

    let mut indices: Vec<u32> = Vec::new();
    if let (_, Some(InfoData::Vxlan(data))) = reading::kind_of(link) {
        indices.extend(data.iter().filter_map(|attribute| match attribute {
            InfoVxlan::Link(index) => Some(*index),
            _ => None,
        }));
    }
    indices.extend(link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    }));
    indices
}

fn learn(names: &mut Names, index: u32) {
    if !names.contains_key(&index)
        && let Ok(name) = if_indextoname(index)
    {
        names.insert(index, name.to_string_lossy().into_owned());
    }
}

/// Makes a TAP that outlives its descriptors.
fn create_tap(name: &str, multi_queue: bool) -> Result<(), TapError> {
    // Opening it twice marks it as a TAP of several queues.
    for tap in Tap::open(name, if multi_queue { 2 } else { 1 })? {
        tap.set_persistent(true).map_err(|source| TapError::Setting {
            name: name.into(),
            what: "persistence",
            source,
        })?;
    }
    Ok(())
}

/// Turns IPv6 on for the device of an IPv6 address.
fn enable_ipv6(item: &Item) -> io::Result<()> {
    match item {
        Item::Address { device, address, .. } if address.address.is_ipv6() => {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0")
        }
        _ => Err(io::Error::from_raw_os_error(libc::EACCES)),
    }
}

/// Whether the error means that the item to be deleted does not exist.
fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::ENODEV, libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::ENXIO];
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

/// What a refusal means and what helps, where the kernel's words do not say it.
fn advice(step: &Step, error: &io::Error) -> Option<&'static str> {
    let Step::Create(item) = step else { return None };
    Some(match (error.raw_os_error()?, item) {
        (libc::EPERM, _) => "this needs CAP_NET_ADMIN",
        (libc::EOPNOTSUPP, Item::Vrf { .. }) => "the kernel has no VRF (CONFIG_NET_VRF); try `modprobe vrf`",
        (libc::EOPNOTSUPP, Item::Vxlan { .. }) => {
            "the kernel has no VXLAN (CONFIG_VXLAN); try `modprobe vxlan`"
        }
        (libc::EOPNOTSUPP | libc::EAFNOSUPPORT, Item::Rule { .. }) => {
            "the kernel has no routing rules (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
        }
        (libc::EEXIST, Item::Vrf { name, .. } | Item::Vxlan { name, .. }) if exists(name) => {
            "a device of this name exists and is not uvn's; remove or rename it"
        }
        (libc::EEXIST, Item::Vxlan { .. }) => {
            "another device has this VNI and port; each kernel NIC needs a `port` of its own"
        }
        (libc::EEXIST, Item::Altname { .. }) => "another device has this name",
        (libc::ENETDOWN, _) => "the device is down",
        _ => return None,
    })
}

fn exists(device: &str) -> bool {
    index(device).is_ok()
}

/// A device's index. Not by if_nametoindex(3): for an unknown name, its ioctl runs modprobe.
///
/// # Errors
/// ENODEV, or the kernel's refusal.
pub fn index(device: &str) -> io::Result<u32> {
    link::get(device).map(|link| link.index).map_err(|error| match error {
        LinkError::NotFound(_) => io::Error::from_raw_os_error(libc::ENODEV),
        LinkError::Refused { source, .. } => source,
    })
}
