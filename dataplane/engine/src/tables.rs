//! What workers look up. Built by the control thread, swapped whole, never changed in place.
//!
//! Each swap has an epoch; a change is in force once every worker runs with its epoch.
//!
//! In the usual (deterministic) mode nothing is learned: an endpoint's MAC is made from the address of its VTEP
//! ([`Mac::of`]), so that the VTEP behind a MAC is computed, and verified on receipt the same way.

use crate::counters::Counters;
use crate::outer::Outer;
use hashbrown::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;
use uvn_api::dataplane::config::{Cidr, Encapsulation};
use uvn_api::dataplane::vteps::Vteps;
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
