//! The next hop of each VTEP in use: MAC and MTU, from the kernel's routes and neighbours, kept current.
//!
//! The kernel resolves neighbours and routes as for its own traffic; this only asks it to, and follows what it says.
//! A VTEP without an answer has no hop: workers count its frames and ask again.

pub mod rivals;
pub mod route;

use self::route::{Change, Neighbour, Route};
use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use uvn_wire::ethernet::Mac;

/// How often a neighbour that nobody has checked is checked. The kernel itself would wait for traffic of its own.
const RECHECK: Duration = Duration::from_secs(30);
/// The least time between two tries for one VTEP: what the kernel takes to give up is three such.
const RETRY: Duration = Duration::from_secs(1);
/// After this long without an answer a VTEP that no network lists is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// New VTEPs that are looked up in a second, and VTEPs that are looked after at all. Tenants choose destinations within the allowed ranges: this bounds what that costs.
const NEW_PER_SECOND: u32 = 1024;
const MAX_WANTED: usize = 65_536;

/// The next hop to a VTEP or multicast group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The destination of the outer Ethernet header.
    pub mac: Mac,
    /// IP MTU of the way there.
    pub mtu: usize,
}

/// What is to be done about a VTEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Send there.
    Hop(NextHop),
    /// Send there, and have this neighbour checked.
    Recheck(NextHop, IpAddr),
    /// Have this neighbour asked.
    Ask(IpAddr),
    /// There is no way.
    Unreachable,
}

/// Decides from what the kernel knows. Pure.
fn decide(route: Option<Route>, neighbours: &HashMap<IpAddr, Neighbour>, nic_mtu: usize) -> Decision {
    let Some(Route { via, mtu }) = route else { return Decision::Unreachable };
    let mtu = mtu.unwrap_or(nic_mtu).min(nic_mtu);
    match neighbours.get(&via) {
        Some(&Neighbour::Known { mac, stale: false }) => Decision::Hop(NextHop { mac, mtu }),
        Some(&Neighbour::Known { mac, stale: true }) => Decision::Recheck(NextHop { mac, mtu }, via),
        Some(Neighbour::Unanswered | Neighbour::Failed) | None => Decision::Ask(via),
    }
}

/// The MAC of a multicast group (RFC 1112 section 6.4, RFC 2464 section 7).
fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            Mac([0x33, 0x33, a, b, c, d])
        }
    }
}

/// A VTEP that is looked after.
#[derive(Debug, Default)]
struct Wanted {
    route: Option<Route>,
    hop: Option<NextHop>,
    /// When its neighbour last failed to answer; None: it has answered since, or nobody knows.
    failed: Option<Instant>,
    /// When the kernel was last told to ask for its neighbour.
    probed: Option<Instant>,
    /// When a worker last asked for it.
    asked: Option<Instant>,
}

/// The underlay as seen from one NIC.
#[derive(Debug, Default)]
pub struct Underlay {
    /// None while the NIC is absent.
    nic: Option<Nic>,
    wanted: BTreeMap<IpAddr, Wanted>,
    /// VTEPs that networks list: never forgotten.
    listed: BTreeSet<IpAddr>,
    /// Joined multicast groups; membership lasts as long as the socket.
    groups: BTreeMap<IpAddr, Option<Socket>>,
    neighbours: HashMap<IpAddr, Neighbour>,
    /// A route has changed since the last tick.
    routes_changed: bool,
    /// VTEPs that workers asked for first since the last tick.
    new: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nic {
    index: u32,
    mtu: usize,
}

impl Underlay {
    /// Sets the NIC's index and the MTU that can be used on it; None: it is gone. On a change everything is looked up
    /// anew.
    pub fn set_nic(&mut self, nic: Option<(u32, usize)>) {
        let nic = nic.map(|(index, mtu)| Nic { index, mtu });
        if nic != self.nic {
            self.nic = nic;
            for (group, membership) in &mut self.groups {
                *membership = nic.and_then(|nic| join(*group, nic.index));
            }
            self.resync();
        }
    }

    /// Sets which VTEPs and multicast groups the networks list. New ones are looked up at once.
    pub fn set_listed(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let (groups, vteps): (BTreeSet<_>, BTreeSet<_>) =
            addresses.into_iter().partition(|address| address.is_multicast());
        self.groups.retain(|group, _| groups.contains(group));
        for group in groups {
            let nic = self.nic;
            self.groups.entry(group).or_insert_with(|| nic.and_then(|nic| join(group, nic.index)));
        }
        let gone: Vec<IpAddr> = self.listed.difference(&vteps).copied().collect();
        for address in gone {
            // If workers still send there they will ask.
            self.wanted.remove(&address);
        }
        let new: Vec<IpAddr> = vteps.difference(&self.listed).copied().collect();
        self.listed = vteps;
        for address in new {
            self.wanted.entry(address).or_default();
            self.look_up(address);
        }
    }

    /// A worker has frames for this VTEP and knows no next hop. True if the hops changed.
    pub fn resolve(&mut self, address: IpAddr, now: Instant) -> bool {
        if address.is_multicast() {
            return false;
        }
        if !self.wanted.contains_key(&address) {
            if self.new >= NEW_PER_SECOND || self.wanted.len() >= MAX_WANTED {
                return false;
            }
            self.new += 1;
        }
        let wanted = self.wanted.entry(address).or_default();
        let before = wanted.hop;
        if wanted.asked.is_some_and(|asked| now.saturating_duration_since(asked) < RETRY) {
            return false;
        }
        wanted.asked = Some(now);
        self.look_up(address);
        self.wanted.get(&address).is_some_and(|wanted| wanted.hop != before)
    }

    /// Follows the kernel's notifications. True if the hops may have changed.
    pub fn follow(&mut self, changes: &[Change]) -> bool {
        let mut changed = false;
        for change in changes {
            match *change {
                Change::Neighbour { index, address, neighbour }
                    if self.nic.is_some_and(|nic| nic.index == index) =>
                {
                    changed |= self.learn(address, neighbour);
                }
                Change::Routes => self.routes_changed = true,
                Change::Lost => {
                    tracing::warn!("rtnetlink notifications were lost; looking everything up again");
                    self.resync();
                    changed = true;
                }
                Change::Neighbour { .. } | Change::Link(_) | Change::Gone(_) | Change::Addresses => {}
            }
        }
        changed
    }

    /// Once a second: follows route changes, has stale neighbours checked, forgets. True if the hops may have changed.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.new = 0;
        let changed = self.routes_changed;
        if self.routes_changed {
            self.routes_changed = false;
            self.look_up_all();
        }
        let Some(nic) = self.nic else { return changed };
        let mut stale = BTreeSet::new();
        for wanted in self.wanted.values_mut() {
            let due = wanted.probed.is_none_or(|probed| now.saturating_duration_since(probed) >= RECHECK);
            if let Decision::Recheck(_, via) = decide(wanted.route, &self.neighbours, nic.mtu)
                && due
            {
                wanted.probed = Some(now);
                stale.insert(via);
            }
        }
        for via in stale {
            probe(via, nic.index);
        }
        let listed = &self.listed;
        self.wanted.retain(|address, wanted| {
            let idle = wanted.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= FORGET);
            wanted.hop.is_some() || listed.contains(address) || !idle
        });
        changed
    }

    /// Every VTEP and group that can be sent to.
    pub fn hops(&self) -> impl Iterator<Item = (IpAddr, NextHop)> {
        let vteps = self.wanted.iter().filter_map(|(address, wanted)| Some((*address, wanted.hop?)));
        let mtu = self.nic.map(|nic| nic.mtu);
        let groups = self
            .groups
            .keys()
            .filter_map(move |group| Some((*group, NextHop { mac: group_mac(*group), mtu: mtu? })));
        vteps.chain(groups)
    }

    /// Every VTEP whose next hop does not answer, and when that was last found.
    pub fn dead(&self) -> impl Iterator<Item = (IpAddr, Instant)> {
        self.wanted.iter().filter_map(|(address, wanted)| Some((*address, wanted.failed?)))
    }

    /// Every VTEP looked after, with its hop if there is one.
    pub fn wanted(&self) -> impl Iterator<Item = (IpAddr, Option<NextHop>)> {
        self.wanted.iter().map(|(address, wanted)| (*address, wanted.hop))
    }

    /// The joined multicast groups.
    pub fn groups(&self) -> impl Iterator<Item = IpAddr> {
        self.groups.keys().copied()
    }

    /// Reads the kernel's tables afresh.
    fn resync(&mut self) {
        self.neighbours.clear();
        if let Some(nic) = self.nic {
            match route::neighbours(nic.index) {
                Ok(known) => self.neighbours.extend(known),
                Err(error) => tracing::error!(%error, "cannot read the neighbours"),
            }
        }
        self.look_up_all();
    }

    fn look_up_all(&mut self) {
        let all: Vec<IpAddr> = self.wanted.keys().copied().collect();
        for address in all {
            self.look_up(address);
        }
    }

    /// Looks up one VTEP's route, and has its neighbour asked if need be.
    fn look_up(&mut self, address: IpAddr) {
        let route = self.nic.and_then(|nic| {
            route::look_up(address, nic.index).unwrap_or_else(|error| {
                tracing::error!(vtep = %address, %error, "cannot look up the route");
                None
            })
        });
        if let Some(wanted) = self.wanted.get_mut(&address) {
            wanted.route = route;
        }
        self.settle(address);
    }

    /// Takes over a neighbour's state. True if a hop changed, or failed to answer once more.
    fn learn(&mut self, address: IpAddr, neighbour: Option<Neighbour>) -> bool {
        let affected: Vec<IpAddr> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| wanted.route.is_some_and(|route| route.via == address))
            .map(|(vtep, _)| *vtep)
            .collect();
        match (neighbour, self.neighbours.get_mut(&address)) {
            // The kernel clears away what its own traffic does not use. It may still be there: ask.
            (None, Some(Neighbour::Known { stale, .. })) if !affected.is_empty() => *stale = true,
            (None, _) => drop(self.neighbours.remove(&address)),
            (Some(neighbour), _) => drop(self.neighbours.insert(address, neighbour)),
        }
        let forgotten = neighbour.is_none();
        let mut changed = false;
        for (count, vtep) in affected.into_iter().enumerate() {
            let before = self.wanted.get(&vtep).and_then(|wanted| wanted.hop);
            if forgotten
                && count == 0
                && let Some(nic) = self.nic
            {
                probe(address, nic.index);
            }
            // An unanswered neighbour is not asked again at once: the kernel has just given up.
            self.update(vtep);
            let Some(wanted) = self.wanted.get_mut(&vtep) else { continue };
            let failed = neighbour == Some(Neighbour::Failed);
            if failed {
                wanted.failed = Some(Instant::now());
            }
            changed |= failed || wanted.hop != before;
        }
        changed
    }

    /// Sets the hop from what is known; returns what is to be done.
    fn update(&mut self, address: IpAddr) -> Decision {
        let Some(nic) = self.nic else {
            if let Some(wanted) = self.wanted.get_mut(&address) {
                wanted.hop = None;
            }
            return Decision::Unreachable;
        };
        let Some(wanted) = self.wanted.get_mut(&address) else { return Decision::Unreachable };
        let decision = decide(wanted.route, &self.neighbours, nic.mtu);
        let hop = match decision {
            Decision::Hop(hop) | Decision::Recheck(hop, _) => Some(hop),
            Decision::Ask(_) | Decision::Unreachable => None,
        };
        if hop != wanted.hop {
            tracing::debug!(vtep = %address, ?hop, "next hop");
        }
        wanted.hop = hop;
        if hop.is_some() {
            wanted.failed = None;
        }
        decision
    }

    /// Sets the hop from what is known, and has the neighbour asked if need be.
    fn settle(&mut self, address: IpAddr) {
        let decision = self.update(address);
        if let (Decision::Recheck(_, via) | Decision::Ask(via), Some(nic)) = (decision, self.nic) {
            probe(via, nic.index);
            if let Some(wanted) = self.wanted.get_mut(&address) {
                wanted.probed = Some(Instant::now());
            }
        }
    }
}

fn probe(address: IpAddr, index: u32) {
    if let Err(error) = route::probe(address, index) {
        tracing::debug!(neighbour = %address, %error, "the kernel will not ask for it");
    }
}

/// Joins a multicast group on a device, so that the NIC lets its frames in and switches send them.
fn join(group: IpAddr, index: u32) -> Option<Socket> {
    let attempt = || -> io::Result<Socket> {
        match group {
            IpAddr::V4(group) => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?;
                Ok(socket)
            }
            IpAddr::V6(group) => {
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
                socket.join_multicast_v6(&group, index)?;
                Ok(socket)
            }
        }
    };
    attempt().map_err(|error| tracing::error!(%group, %error, "cannot join the multicast group")).ok()
}

#[cfg(test)]
mod tests;
