//! What workers look up. The control thread builds the tables and replaces them as a whole; they are never changed in
//! place.
//!
//! Each replacement has an epoch; a change is in force once every worker runs with its epoch.
//!
//! Usually nothing is learned: an endpoint's MAC is made from the address of its VTEP ([`Mac::of`]), so the VTEP behind
//! a MAC is computed, and verified on receipt in the same way.

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

/// Everything that a worker looks up.
#[derive(Debug, Clone)]
pub struct Tables {
    /// The number of this version of the tables.
    pub epoch: u64,
    /// Settings of the outer headers.
    pub encapsulation: Encapsulation,
    /// The NIC's MAC; None: it is not known, and frames to any MAC are taken.
    pub nic: Option<Mac>,
    /// The outer destinations to take: this node's VTEP addresses, and the networks' multicast groups.
    pub local: Vec<IpAddr>,
    /// The VTEPs that may send to this node, and the VTEP of each overlay address.
    pub vteps: Arc<Vteps>,
    /// Next hop of each VTEP or group in use.
    pub hops: Arc<HashMap<IpAddr, Hop>>,
    /// VTEPs whose next hop does not answer, and when that was last seen.
    pub dead: Arc<HashMap<IpAddr, Instant>>,
    /// The networks, by slot. A network keeps its slot as long as it exists.
    pub networks: Vec<Option<Arc<Network>>>,
    /// The slot of each VNI.
    pub slots: HashMap<Vni, u32>,
}

/// How to reach one VTEP.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The outer headers, complete but for lengths, source port and checksums.
    pub outer: Outer,
    /// IP MTU of the path, bytes.
    pub mtu: usize,
}

impl Hop {
    /// The longest inner frame that fits the path, bytes. The path's MTU does not count the outer Ethernet header.
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
    /// Where broadcast, multicast and unknown frames go: the VTEPs of its peers, or one multicast group.
    pub flood: Vec<IpAddr>,
    /// Flooded frames per second of each worker that reads the endpoint, before replication.
    pub flood_rate: u32,
    /// Whether MACs are learned, and frames to unknown ones are flooded.
    pub learning: bool,
    /// Learned MACs.
    pub fdb: HashMap<Mac, Arc<Learned>>,
    /// The counters of each worker.
    pub counters: Arc<[Counters]>,
}

/// A learned MAC.
#[derive(Debug)]
pub struct Learned {
    /// The VTEP behind which it was seen.
    pub vtep: IpAddr,
    /// When it was last seen, in seconds since the workers' start.
    pub seen: AtomicU32,
}

impl Learned {
    /// Notes that the MAC was seen at second `now`. Writes only a change, so that workers do not contend for the cache
    /// line.
    pub fn refresh(&self, now: u32) {
        if self.seen.load(Relaxed) != now {
            self.seen.store(now, Relaxed);
        }
    }
}

impl Network {
    /// A worker's counters; none if the tables were made for fewer workers.
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

    /// The VTEP behind a unicast MAC; None: not known.
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
