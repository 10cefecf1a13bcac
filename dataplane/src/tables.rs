//! What workers look up. Built by the control thread, swapped whole, never changed in place.
//!
//! Each swap has an epoch; a change is in force once every worker runs with its epoch.
//!
//! In the usual (deterministic) mode nothing is learned: an endpoint's MAC is made from the address of its VTEP
//! ([`Mac::of`]), so that the VTEP behind a MAC is computed, and verified on receipt the same way.

use crate::config::{Cidr, Encapsulation, Peers};
use crate::counters::Counters;
use crate::outer::Outer;
use hashbrown::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;
use uvn_wire::ethernet::{self, Mac};
use uvn_wire::vxlan::Vni;

/// Everything a worker needs to know about the world.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Counts swaps.
    pub epoch: u64,
    /// Outer header settings.
    pub encapsulation: Encapsulation,
    /// The NIC's MAC; None: not known, and frames to any are taken.
    pub nic: Option<Mac>,
    /// Outer destinations that are ours: the VTEP addresses and the multicast groups of the networks.
    pub local: Vec<IpAddr>,
    /// Who may send to us, and which overlay address is whose.
    pub vteps: Arc<Vteps>,
    /// Next hop of each VTEP or group in use.
    pub hops: Arc<HashMap<IpAddr, Hop>>,
    /// VTEPs whose next hop does not answer, and when that was last found.
    pub dead: Arc<HashMap<IpAddr, Instant>>,
    /// By slot. A slot stays with its network as long as the network lives.
    pub networks: Vec<Option<Arc<Network>>>,
    /// Slot of each VNI.
    pub slots: HashMap<Vni, u32>,
}

/// How to reach one VTEP.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The outer headers, ready but for lengths, source port and checksums.
    pub outer: Outer,
    /// IP MTU of the path.
    pub mtu: usize,
}

impl Hop {
    /// The longest inner frame that fits the path: the outer Ethernet header does not count.
    #[must_use]
    pub fn largest_inner(&self) -> usize {
        (self.mtu + ethernet::HEADER).saturating_sub(self.outer.length())
    }
}

/// One VNI on this NIC.
#[derive(Debug)]
pub struct Network {
    /// Its identifier.
    pub vni: Vni,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// The endpoint's overlay addresses.
    pub addresses: Vec<Cidr>,
    /// Where broadcast, multicast and unknown frames go: VTEPs, or one multicast group.
    pub flood: Vec<IpAddr>,
    /// Flooded frames per second, before replication.
    pub flood_rate: u32,
    /// Learn MACs, and flood what is unknown.
    pub learning: bool,
    /// Learned MACs.
    pub fdb: HashMap<Mac, Arc<Learned>>,
    /// One per worker.
    pub counters: Arc<[Counters]>,
}

/// A learned MAC.
#[derive(Debug)]
pub struct Learned {
    /// The VTEP it was seen behind.
    pub vtep: IpAddr,
    /// Seconds since the workers' start when it was last seen.
    pub seen: AtomicU32,
}

impl Learned {
    /// Notes that the MAC was seen at second `now`. Writes only on change, so that workers do not fight for the line.
    pub fn refresh(&self, now: u32) {
        if self.seen.load(Relaxed) != now {
            self.seen.store(now, Relaxed);
        }
    }
}

impl Network {
    /// A worker's counters. Tables of an earlier set of workers may have none for it.
    pub fn counters(&self, worker: usize) -> impl Iterator<Item = &Counters> {
        self.counters.get(worker).into_iter()
    }

    /// Whether `address` is one of the endpoint's own.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address == address)
    }

    /// Whether `address` is in one of the endpoint's subnets.
    #[must_use]
    pub fn on_subnet(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.contains(address))
    }
}

impl Tables {
    /// The network of a VNI and its slot.
    #[must_use]
    pub fn network(&self, vni: Vni) -> Option<(u32, &Network)> {
        let slot = *self.slots.get(&vni)?;
        Some((slot, self.by_slot(slot)?))
    }

    /// The network in a slot.
    #[must_use]
    pub fn by_slot(&self, slot: u32) -> Option<&Network> {
        self.networks.get(slot as usize)?.as_deref()
    }

    /// The VTEP behind a unicast MAC.
    #[must_use]
    pub fn vtep_of(&self, network: &Network, mac: Mac) -> Option<IpAddr> {
        if network.learning
            && let Some(learned) = network.fdb.get(&mac)
        {
            return Some(learned.vtep);
        }
        self.vteps.of_mac(mac)
    }
}

/// The allowed VTEPs.
#[derive(Debug, Default)]
pub struct Vteps {
    exact: HashMap<IpAddr, ()>,
    ranges: Vec<Cidr>,
    /// Overlay address -> VTEP.
    owners: HashMap<IpAddr, IpAddr>,
    /// Last four bytes of the listed IPv6 VTEPs, as their MACs carry them.
    low: HashMap<[u8; 4], Ipv6Addr>,
}

/// Why a list of VTEPs is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two VTEPs claim one overlay address.
    #[error("VTEPs {0} and {1} both claim the overlay address {2}: list it under one of them")]
    Overlay(IpAddr, IpAddr, IpAddr),
    /// Two IPv6 VTEPs would have the same MAC.
    #[error(
        "VTEPs {0} and {1} share their last four bytes, so their endpoints would share a MAC: renumber one"
    )]
    Mac(IpAddr, IpAddr),
    /// An IPv6 range does not leave the MAC enough bits.
    #[error("range {0} is too wide: an IPv6 range must be /96 or longer; list the VTEPs one by one instead")]
    Wide(Cidr),
}

impl Vteps {
    /// Checks the list and indexes it.
    ///
    /// # Errors
    /// A [`Conflict`], which names both sides.
    pub fn new(peers: &Peers) -> Result<Vteps, Conflict> {
        let mut vteps = Vteps::default();
        for range in &peers.range {
            if range.address.is_ipv6() && range.prefix < 96 {
                return Err(Conflict::Wide(*range));
            }
            vteps.ranges.push(*range);
        }
        for vtep in &peers.vtep {
            vteps.exact.insert(vtep.address, ());
            if let IpAddr::V6(address) = vtep.address {
                let [.., a, b, c, d] = address.octets();
                match vteps.low.insert([a, b, c, d], address) {
                    Some(other) if other != address => {
                        return Err(Conflict::Mac(other.into(), vtep.address));
                    }
                    _ => {}
                }
            }
            let own = [vtep.address];
            let overlay = if vtep.overlay.is_empty() { &own[..] } else { &vtep.overlay[..] };
            for &address in overlay {
                match vteps.owners.insert(address, vtep.address) {
                    Some(other) if other != vtep.address => {
                        return Err(Conflict::Overlay(other, vtep.address, address));
                    }
                    _ => {}
                }
            }
        }
        Ok(vteps)
    }

    /// Whether a frame may come from this outer source.
    #[must_use]
    pub fn allows(&self, vtep: IpAddr) -> bool {
        self.exact.contains_key(&vtep) || self.ranges.iter().any(|range| range.contains(vtep))
    }

    /// The allowed VTEP from which a deterministic MAC was made.
    #[must_use]
    pub fn of_mac(&self, mac: Mac) -> Option<IpAddr> {
        if let Some(address) = mac.ipv4() {
            return Some(IpAddr::V4(address)).filter(|vtep| self.allows(*vtep));
        }
        let low = mac.ipv6_low()?;
        if let Some(address) = self.low.get(&low) {
            return Some(IpAddr::V6(*address));
        }
        self.ranges.iter().find_map(|range| {
            let IpAddr::V6(base) = range.address else { return None };
            let mut octets = base.octets();
            octets[12..].copy_from_slice(&low);
            Some(IpAddr::from(octets)).filter(|vtep| range.contains(*vtep))
        })
    }

    /// The VTEP that has an overlay address: as listed, or the address itself where a range allows it.
    #[must_use]
    pub fn of_overlay(&self, address: IpAddr) -> Option<IpAddr> {
        if let Some(vtep) = self.owners.get(&address) {
            return Some(*vtep);
        }
        Some(address).filter(|vtep| self.ranges.iter().any(|range| range.contains(*vtep)))
    }

    /// The listed overlay addresses and their VTEPs.
    pub fn overlay(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        self.owners.iter().map(|(overlay, vtep)| (*overlay, *vtep))
    }

    /// Whether an on-subnet inner source may come from `vtep`. An address with no known owner is bound to its VTEP
    /// by the MAC alone: an IPv4 range says nothing about IPv6 addresses.
    #[must_use]
    pub fn may_send(&self, vtep: IpAddr, source: IpAddr) -> bool {
        match self.of_overlay(source) {
            Some(owner) => owner == vtep,
            None => source.is_ipv4() != vtep.is_ipv4() && !self.exact.contains_key(&vtep),
        }
    }

    /// The listed VTEPs and the ranges, as the XDP program wants them.
    pub fn listed(&self) -> (impl Iterator<Item = IpAddr> + '_, &[Cidr]) {
        (self.exact.keys().copied(), &self.ranges)
    }
}
