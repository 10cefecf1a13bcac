//! The VTEPs that are looked after, found by address and by next hop.

use super::NextHop;
use super::route::Route;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;
use uvn_wire::vxlan::Vni;

/// A VTEP that is looked after.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Set only by [`Vteps::set_route`].
    route: Option<Route>,
    pub(super) hop: Option<NextHop>,
    /// When its neighbour last failed to answer; None: it has answered since, or is not known to have failed.
    pub(super) failed: Option<Instant>,
    /// When the kernel was last told to ask for its neighbour.
    pub(super) probed: Option<Instant>,
    /// When a worker last asked for it.
    pub(super) asked: Option<Instant>,
    /// The network that asked first; None: networks list it.
    pub(super) network: Option<Vni>,
}

impl Wanted {
    pub(super) fn route(&self) -> Option<Route> {
        self.route
    }
}

/// All VTEPs that are looked after.
#[derive(Debug, Default)]
pub(super) struct Vteps {
    all: BTreeMap<IpAddr, Wanted>,
    /// The VTEPs behind each next hop.
    behind: HashMap<IpAddr, BTreeSet<IpAddr>>,
}

impl Vteps {
    pub(super) fn get(&self, vtep: &IpAddr) -> Option<&Wanted> {
        self.all.get(vtep)
    }

    pub(super) fn get_mut(&mut self, vtep: &IpAddr) -> Option<&mut Wanted> {
        self.all.get_mut(vtep)
    }

    pub(super) fn add(&mut self, vtep: IpAddr) -> &mut Wanted {
        self.all.entry(vtep).or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpAddr, &Wanted)> {
        self.all.iter()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Wanted> {
        self.all.values_mut()
    }

    /// The VTEPs whose frames this neighbour gets.
    pub(super) fn behind(&self, neighbour: &IpAddr) -> Vec<IpAddr> {
        self.behind.get(neighbour).into_iter().flatten().copied().collect()
    }

    pub(super) fn set_route(&mut self, vtep: IpAddr, route: Option<Route>) {
        let Some(wanted) = self.all.get_mut(&vtep) else { return };
        let before = std::mem::replace(&mut wanted.route, route);
        if before.map(|route| route.via) != route.map(|route| route.via) {
            self.leave(vtep, before);
            if let Some(Route { via, .. }) = route {
                self.behind.entry(via).or_default().insert(vtep);
            }
        }
    }

    /// Removes the older half of the VTEPs that the network with the most has asked for. It asks again for those that
    /// it still sends to.
    pub(super) fn make_room(&mut self, listed: &BTreeSet<IpAddr>) {
        let mut of: HashMap<Vni, Vec<(Option<Instant>, IpAddr)>> = HashMap::new();
        for (vtep, wanted) in self.all.iter().filter(|(vtep, _)| !listed.contains(vtep)) {
            if let Some(network) = wanted.network {
                of.entry(network).or_default().push((wanted.asked, *vtep));
            }
        }
        let Some(mut most) = of.into_values().max_by_key(Vec::len) else { return };
        most.sort_unstable();
        most.truncate(most.len().div_ceil(2));
        most.into_iter().for_each(|(_, vtep)| self.remove(vtep));
    }

    pub(super) fn remove(&mut self, vtep: IpAddr) {
        if let Some(wanted) = self.all.remove(&vtep) {
            self.leave(vtep, wanted.route);
        }
    }

    fn leave(&mut self, vtep: IpAddr, route: Option<Route>) {
        let Some(Route { via, .. }) = route else { return };
        if let Some(vteps) = self.behind.get_mut(&via) {
            vteps.remove(&vtep);
            if vteps.is_empty() {
                self.behind.remove(&via);
            }
        }
    }
}
