//! The next hop of each VTEP in use: MAC and MTU, from the kernel's routes and neighbours, kept current.
//!
//! The kernel resolves neighbours and routes as for its own traffic; this module only asks it to, and follows its
//! answers. A VTEP without an answer has no hop: workers count its frames and ask again.
//!
//! Tenants choose destinations, and how many. So a turn of the control thread looks up a bounded number of VTEPs: of
//! those that networks ask for, by turns ([`asks`]), and of the others, those in use first. The rest follows in the
//! next turns.

mod asks;
pub mod kernel;
pub mod rivals;
pub mod route;
mod vteps;

use self::asks::{Asks, Once};
use self::kernel::{Kernel, Netlink};
use self::route::{Change, Neighbour, Route};
use self::vteps::{Vteps, Wanted};
use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

/// How often a neighbour that nobody has checked is checked. The kernel alone would wait for traffic of its own.
const RECHECK: Duration = Duration::from_secs(30);
/// The least time between two tries for one VTEP. The kernel takes three times as long to give up.
const RETRY: Duration = Duration::from_secs(1);
/// After this long without an answer a VTEP that no network lists is forgotten.
const FORGET: Duration = Duration::from_secs(10);
/// The most VTEPs that are looked after.
const MAX_WANTED: usize = 65_536;
/// The most VTEPs looked up in one turn of the control thread, of those that workers ask for, and of the others: ten
/// microseconds each.
const LOOK_UPS: usize = 64;
/// The most neighbours that the kernel is told to ask in a second without a worker's request: it reports each answer,
/// and has room for few that do not answer.
const PROBES: usize = 512;
/// The least time between two reports of dead neighbours to workers: a user who scans a subnet finds many.
const DEATHS: Duration = Duration::from_millis(100);
/// RT_TABLE_DEFAULT, _MAIN and _LOCAL (include/uapi/linux/rtnetlink.h), which the kernel's own rules name.
const USUAL_TABLES: [u32; 3] = [253, 254, 255];

/// The next hop to a VTEP or multicast group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The destination of the outer Ethernet header.
    pub mac: Mac,
    /// IP MTU of the way to it, bytes.
    pub mtu: usize,
}

/// The action for a VTEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Send there.
    Hop(NextHop),
    /// Send there, and have this neighbour checked.
    Recheck(NextHop, IpAddr),
    /// Have this neighbour asked.
    Ask(IpAddr),
    /// No way leads to it.
    Unreachable,
}

/// Decides by the kernel's routes and neighbours. Pure.
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

/// The underlay as seen from one NIC.
#[derive(Debug, Default)]
pub struct Underlay<K = Netlink> {
    kernel: K,
    /// None while the NIC is absent.
    nic: Option<Nic>,
    vteps: Vteps,
    /// VTEPs that networks list: never forgotten.
    listed: BTreeSet<IpAddr>,
    /// Joined multicast groups; membership lasts as long as the socket.
    groups: BTreeMap<IpAddr, Option<Socket>>,
    neighbours: HashMap<IpAddr, Neighbour>,
    /// The look-ups that workers ask for.
    asks: Asks,
    /// VTEPs to be looked up without a worker's request.
    due: VecDeque<IpAddr>,
    /// Neighbours to be asked without a worker's request, and how many more may be in this second.
    unasked: Once,
    probes: usize,
    /// Tables in which a route has changed since the last tick.
    changed_tables: BTreeSet<u32>,
    /// Whether all routes may have changed since then, or anything at all.
    rules_changed: bool,
    lost: bool,
    /// Whether a neighbour has failed to answer; and when that was last told.
    has_died: bool,
    told: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nic {
    index: u32,
    mtu: usize,
}

impl<K: Kernel> Underlay<K> {
    /// Sets the NIC's index and its usable MTU; None: the NIC is gone. After a change, everything is looked up anew.
    pub fn set_nic(&mut self, nic: Option<(u32, usize)>) {
        let nic = nic.map(|(index, mtu)| Nic { index, mtu });
        if nic == self.nic {
            return;
        }
        let is_other = nic.map(|nic| nic.index) != self.nic.map(|nic| nic.index);
        self.nic = nic;
        self.probes = PROBES;
        for (group, membership) in &mut self.groups {
            *membership = nic.and_then(|nic| join(*group, nic.index));
        }
        if is_other {
            self.addresses().into_iter().for_each(|vtep| self.vteps.set_route(vtep, None));
        }
        self.resync();
    }

    /// Sets the VTEPs and multicast groups that the networks list. New ones are looked up in the next turns.
    pub fn set_listed(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let (groups, vteps): (BTreeSet<_>, BTreeSet<_>) =
            addresses.into_iter().partition(|address| address.is_multicast());
        self.groups.retain(|group, _| groups.contains(group));
        for group in groups {
            let nic = self.nic;
            self.groups.entry(group).or_insert_with(|| nic.and_then(|nic| join(group, nic.index)));
        }
        for gone in self.listed.difference(&vteps) {
            // Workers that still send there ask again.
            self.vteps.remove(*gone);
        }
        for new in vteps.difference(&self.listed) {
            self.vteps.add(*new);
            self.due.push_back(*new);
        }
        self.listed = vteps;
    }

    /// Notes that a worker has frames of a network for this VTEP, and knows no next hop. The VTEP is looked up when it
    /// is the network's turn: see [`Underlay::serve`].
    pub fn ask(&mut self, network: Vni, address: IpAddr, now: Instant) {
        if !address.is_multicast() {
            self.asks.add(network, address, now);
        }
    }

    /// Follows the kernel's notifications. True if the hops may have changed.
    pub fn follow(&mut self, changes: &[Change]) -> bool {
        let mut changed = false;
        let here = self.nic.map(|nic| nic.index);
        for change in changes {
            match *change {
                Change::Neighbour { index, address, neighbour } if here == Some(index) => {
                    changed |= self.learn(address, neighbour);
                }
                // A way by another device is none of this NIC's.
                Change::Route { table, device } if device.is_none() || device == here => {
                    self.changed_tables.insert(table);
                }
                Change::Rules => self.rules_changed = true,
                Change::Lost => self.lost = true,
                Change::Neighbour { .. }
                | Change::Route { .. }
                | Change::Link(_)
                | Change::Gone(_)
                | Change::Addresses => {}
            }
        }
        changed
    }

    /// Does a turn's share of look-ups and requests to the kernel. True if the hops changed, or more VTEPs are dead.
    pub fn serve(&mut self, now: Instant) -> bool {
        let mut changed = false;
        for _ in 0..LOOK_UPS {
            let Some((network, vtep)) = self.asks.next(now) else { break };
            changed |= self.answer(network, vtep, now);
        }
        for _ in 0..LOOK_UPS {
            let Some(vtep) = self.due.pop_front() else { break };
            let before = self.hop(vtep);
            if let Decision::Ask(via) = self.look_up(vtep) {
                self.unasked.push(via);
            }
            changed |= self.hop(vtep) != before;
        }
        while self.probes > 0
            && let Some(via) = self.unasked.pop()
        {
            self.probes -= 1;
            self.probe(via, now);
        }
        let may_tell = self.told.is_none_or(|told| now.saturating_duration_since(told) >= DEATHS);
        if self.has_died && may_tell {
            self.has_died = false;
            self.told = Some(now);
            changed = true;
        }
        changed
    }

    /// When [`Underlay::serve`] is due; None: not until something happens.
    pub fn due(&self) -> Option<Instant> {
        let has_probes = self.probes > 0 && !self.unasked.is_empty();
        if self.asks.has_work() || !self.due.is_empty() || has_probes {
            return Some(Instant::now());
        }
        let deaths = self.told.filter(|_| self.has_died).map(|told| told + DEATHS);
        [self.asks.due(), deaths].into_iter().flatten().min()
    }

    /// Once a second: follows route changes, has stale neighbours checked, forgets idle VTEPs. True if the hops may
    /// have changed.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.probes = PROBES;
        let lost = self.lost;
        if self.lost {
            tracing::warn!("rtnetlink notifications were lost; looking everything up again");
            self.resync();
        } else if self.routes_changed() {
            self.due = self.in_use_first();
        }
        let Some(nic) = self.nic else { return lost };
        let mut stale = BTreeSet::new();
        for wanted in self.vteps.values_mut() {
            let due = wanted.probed.is_none_or(|probed| now.saturating_duration_since(probed) >= RECHECK);
            if due
                && stale.len() < self.probes
                && let Decision::Recheck(_, via) = decide(wanted.route(), &self.neighbours, nic.mtu)
            {
                wanted.probed = Some(now);
                stale.insert(via);
            }
        }
        self.probes -= stale.len();
        stale.into_iter().for_each(|via| self.probe(via, now));
        let is_over = |(vtep, wanted): &(&IpAddr, &Wanted)| {
            let idle = wanted.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= FORGET);
            wanted.hop.is_none() && idle && !self.listed.contains(vtep)
        };
        let over: Vec<IpAddr> = self.vteps.iter().filter(is_over).map(|(vtep, _)| *vtep).collect();
        over.into_iter().for_each(|vtep| self.vteps.remove(vtep));
        lost
    }

    /// Every VTEP and group that can be sent to.
    pub fn hops(&self) -> impl Iterator<Item = (IpAddr, NextHop)> {
        let vteps = self.vteps.iter().filter_map(|(address, wanted)| Some((*address, wanted.hop?)));
        let mtu = self.nic.map(|nic| nic.mtu);
        let groups = self
            .groups
            .keys()
            .filter_map(move |group| Some((*group, NextHop { mac: group_mac(*group), mtu: mtu? })));
        vteps.chain(groups)
    }

    /// Every VTEP whose next hop does not answer, and when that was last found.
    pub fn dead(&self) -> impl Iterator<Item = (IpAddr, Instant)> {
        self.vteps.iter().filter_map(|(address, wanted)| Some((*address, wanted.failed?)))
    }

    /// Every VTEP looked after, with its hop if there is one.
    pub fn wanted(&self) -> impl Iterator<Item = (IpAddr, Option<NextHop>)> {
        self.vteps.iter().map(|(address, wanted)| (*address, wanted.hop))
    }

    /// The joined multicast groups.
    pub fn groups(&self) -> impl Iterator<Item = IpAddr> {
        self.groups.keys().copied()
    }

    /// Reads the neighbours afresh. The known routes are used until it is their turn.
    fn resync(&mut self) {
        (self.lost, self.rules_changed) = (false, false);
        self.changed_tables.clear();
        self.neighbours.clear();
        if let Some(nic) = self.nic {
            match self.kernel.neighbours(nic.index) {
                Ok(known) => self.neighbours.extend(known),
                Err(error) => tracing::error!(%error, "cannot read the neighbours"),
            }
        }
        for vtep in self.addresses() {
            self.update(vtep);
        }
        self.due = self.in_use_first();
    }

    /// Whether a route that matters may have changed since the last call.
    fn routes_changed(&mut self) -> bool {
        let tables = std::mem::take(&mut self.changed_tables);
        if std::mem::take(&mut self.rules_changed) || USUAL_TABLES.iter().any(|usual| tables.contains(usual))
        {
            return true;
        }
        // A VRF's table changes with each network, and concerns nobody else.
        let (Some(nic), false) = (self.nic, tables.is_empty()) else { return false };
        self.kernel.tables(nic.index).map_or_else(
            |error| {
                tracing::error!(%error, "cannot read the routing rules");
                true
            },
            |used| used.is_none_or(|used| !used.is_disjoint(&tables)),
        )
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.vteps.iter().map(|(vtep, _)| *vtep).collect()
    }

    /// All VTEPs: first those that workers have asked for, the last first; then those that are only listed.
    fn in_use_first(&self) -> VecDeque<IpAddr> {
        let mut all = self.addresses();
        all.sort_by_key(|vtep| Reverse(self.vteps.get(vtep).and_then(|wanted| wanted.asked)));
        all.into()
    }

    fn hop(&self, vtep: IpAddr) -> Option<NextHop> {
        self.vteps.get(&vtep)?.hop
    }

    /// Looks up a VTEP that a network asks for. True if the hop changed.
    fn answer(&mut self, network: Vni, vtep: IpAddr, now: Instant) -> bool {
        if self.vteps.get(&vtep).is_none() {
            if self.vteps.len() >= MAX_WANTED {
                self.vteps.make_room(&self.listed);
            }
            self.vteps.add(vtep).network = Some(network);
        }
        let wanted = self.vteps.add(vtep);
        if wanted.asked.is_some_and(|asked| now.saturating_duration_since(asked) < RETRY) {
            return false;
        }
        wanted.asked = Some(now);
        if wanted.hop.is_some() {
            return false;
        }
        match self.look_up(vtep) {
            Decision::Ask(via) => {
                if self.asks.hold(network, via, now) {
                    self.probe(via, now);
                }
            }
            Decision::Unreachable => drop(self.asks.hold(network, vtep, now)),
            Decision::Hop(_) | Decision::Recheck(..) => {}
        }
        self.hop(vtep).is_some()
    }

    /// Looks up one VTEP's route, and sets its hop.
    fn look_up(&mut self, address: IpAddr) -> Decision {
        let (nic, kernel) = (self.nic, &mut self.kernel);
        let route = nic.and_then(|nic| {
            kernel.look_up(address, nic.index).unwrap_or_else(|error| {
                tracing::error!(vtep = %address, %error, "cannot look up the route");
                None
            })
        });
        self.vteps.set_route(address, route);
        self.update(address)
    }

    /// Takes over a neighbour's state. True if a hop changed.
    fn learn(&mut self, address: IpAddr, neighbour: Option<Neighbour>) -> bool {
        let affected = self.vteps.behind(&address);
        // The kernel clears away neighbours that its own traffic does not use. This one may still exist: it is asked,
        // unless only workers have asked for it, and in vain: they will ask again.
        let is_wanted = |vtep: &IpAddr| self.listed.contains(vtep) || self.hop(*vtep).is_some();
        if neighbour.is_none() && affected.iter().any(is_wanted) {
            self.unasked.push(address);
        }
        match (neighbour, self.neighbours.get_mut(&address)) {
            (None, Some(Neighbour::Known { stale, .. })) if !affected.is_empty() => *stale = true,
            (None, _) => drop(self.neighbours.remove(&address)),
            (Some(neighbour), _) => drop(self.neighbours.insert(address, neighbour)),
        }
        let failed = neighbour == Some(Neighbour::Failed);
        if failed || matches!(neighbour, Some(Neighbour::Known { .. })) {
            self.asks.release(address);
        }
        let mut changed = false;
        for vtep in affected {
            let before = self.hop(vtep);
            // An unanswered neighbour is not asked again at once: the kernel has just given up.
            self.update(vtep);
            changed |= self.hop(vtep) != before;
            if let Some(wanted) = self.vteps.get_mut(&vtep).filter(|_| failed) {
                wanted.failed = Some(Instant::now());
                self.has_died = true;
            }
        }
        changed
    }

    /// Sets the hop by what is known. Returns the action for the VTEP.
    fn update(&mut self, address: IpAddr) -> Decision {
        let Some(wanted) = self.vteps.get_mut(&address) else { return Decision::Unreachable };
        let decision = match self.nic {
            Some(nic) => decide(wanted.route(), &self.neighbours, nic.mtu),
            None => Decision::Unreachable,
        };
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

    /// Makes the kernel ask for a neighbour.
    fn probe(&mut self, neighbour: IpAddr, now: Instant) {
        let Some(nic) = self.nic else { return };
        if let Err(error) = self.kernel.probe(neighbour, nic.index) {
            tracing::debug!(%neighbour, %error, "the kernel will not ask for it");
        }
        for vtep in self.vteps.behind(&neighbour) {
            if let Some(wanted) = self.vteps.get_mut(&vtep) {
                wanted.probed = Some(now);
            }
        }
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
