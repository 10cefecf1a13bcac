//! The shortcut: a tc program on every endpoint encapsulates, and one on the NIC strips outer headers and hands frames
//! to endpoints. They take the frames that the engine provably would accept, by maps that are filled here from the
//! workers' tables; all others go to the engine, by the [`slow_path`].
//!
//! The programs are attached as long as the [`Shortcut`] lives: their links are file descriptors, and nothing is
//! pinned. However the process ends, the endpoints' frames reach nobody. VXLAN to this port then reaches at most the
//! device for GRO, which takes no frame: it exists because the kernel's GRO joins VXLAN frames only if a VXLAN device
//! has the port.

mod joining;

pub use joining::{clear, nic_of_gro};

use crate::gear::programs::{Xdp, XdpError, take, unless_missing};
use crate::gear::tc::{is_detached, link, program};
use crate::networks::Entry;
use crate::port::link::{self, Link};
use crate::port::slow_path::{self, SlowPathError};
use aya::Pod;
use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use joining::Joining;
use std::collections::{HashMap as Known, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use thiserror::Error;
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::tables::Tables;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;
use uvn_wire::xdp::{self, Address, Network, Owner, Traffic, mac_key};

/// Why the engine alone carries a network or a NIC.
#[derive(Debug, Error)]
pub enum Declined {
    /// The network has no endpoint now.
    #[error("its endpoint is lost: {0}")]
    Lost(String),
    /// The network learns MACs: its peers' are not made from their addresses.
    #[error("it has learning = true")]
    Learning,
    /// The endpoint is a veth pair, or in another network namespace than the NIC.
    #[error("its endpoint is not a TAP in the NIC's network namespace")]
    Elsewhere,
    /// The endpoint was moved to another network namespace.
    #[error("its endpoint has left the NIC's network namespace")]
    Moved,
    /// The endpoint is down.
    #[error("its endpoint is down")]
    Down,
    /// All places for counters are taken.
    #[error("the shortcut has {} networks already, its limit", xdp::TRAFFIC_ENTRIES)]
    Full,
    /// A tc program cannot be loaded or attached.
    #[error("the kernel does not attach tc programs as links (Linux 6.6 and later do): {0}")]
    Program(#[from] ProgramError),
    /// The TAP for frames that are left to the engine cannot be made.
    #[error(transparent)]
    SlowPath(#[from] SlowPathError),
    /// A map cannot be filled.
    #[error(transparent)]
    Map(#[from] XdpError),
}

impl Declined {
    /// Whether the reason may end when another program changes the endpoint.
    #[must_use]
    pub fn may_end(&self) -> bool {
        matches!(self, Declined::Elsewhere | Declined::Moved | Declined::Down)
    }
}

/// The programs and their maps.
pub struct Shortcut {
    endpoints: HashMap<MapData, u32, u32>,
    owners: Mirrored<[u32; 4], [u32; 8]>,
    hops: Mirrored<[u32; 2], [u32; 24]>,
    /// The traffic counters, by counter index.
    traffic: PerCpuArray<MapData, [u64; 4]>,
    /// The networks that the shortcut carries.
    granted: Known<Vni, Granted>,
    /// The traffic of networks that it carries no longer.
    past: Traffic,
    joining: Joining,
    /// The NIC's index, and that of the slow path's TAP.
    nic: u32,
    slow_path: u32,
    /// The programs on the NIC and the TAP; closing a link detaches its program.
    links: [FdLink; 2],
}

/// The shortcut's part of one network.
struct Granted {
    endpoint: u32,
    /// Its counter index.
    slot: u32,
    /// The program on the endpoint; closing the link detaches it.
    egress: FdLink,
}

impl Shortcut {
    /// Attaches to the NIC for which `xdp` was loaded, and to the slow path's TAP. Carries nothing until networks are
    /// granted.
    ///
    /// # Errors
    /// The kernel refuses, or is too old.
    pub fn attach(xdp: &mut Xdp, nic: &Link, port: u16) -> Result<Shortcut, Declined> {
        let object = xdp.object();
        for name in ["uvn_egress", "uvn_ingress", "uvn_slow_path"] {
            program(object, name)?.load()?;
        }
        let slow_path = slow_path::device(nic.index);
        let links = [
            link(program(object, "uvn_slow_path")?, &slow_path, TcAttachType::Ingress)?,
            link(program(object, "uvn_ingress")?, &nic.name, TcAttachType::Ingress)?,
        ];
        Ok(Shortcut {
            endpoints: take(object, "ENDPOINTS")?,
            owners: Mirrored::new("OWNERS", take(object, "OWNERS")?),
            hops: Mirrored::new("HOPS", take(object, "HOPS")?),
            traffic: take(object, "TRAFFIC")?,
            granted: Known::new(),
            past: Traffic::default(),
            joining: Joining::open(nic.index, port),
            nic: nic.index,
            slow_path: link::get(&slow_path).map_err(XdpError::from)?.index,
            links,
        })
    }

    /// Attaches to a network's endpoint, and returns the entry for the map of networks, which switches both directions.
    ///
    /// # Errors
    /// See [`Declined`]; nothing has changed.
    pub fn grant(&mut self, xdp: &mut Xdp, entry: &Entry) -> Result<Network, Declined> {
        // Another device may have the lost endpoint's name.
        if let Some(fault) = &entry.fault {
            return Err(Declined::Lost(fault.clone()));
        }
        if entry.network.learning {
            return Err(Declined::Learning);
        }
        let vni = entry.network.vni;
        let Link { index: endpoint, name: device, .. } = place(entry)?;
        let taken: HashSet<u32> = self.granted.values().map(|granted| granted.slot).collect();
        let slot = (0..xdp::TRAFFIC_ENTRIES).find(|slot| !taken.contains(slot)).ok_or(Declined::Full)?;
        let mut addresses = entry.network.addresses.iter().map(|cidr| Address::from(cidr.address));
        let first = addresses.next().ok_or(Declined::Elsewhere)?;
        let addresses = [first; Network::ADDRESSES].map(|first| addresses.next().unwrap_or(first));
        self.fill(vni, endpoint, slot)?;
        match program(xdp.object(), "uvn_egress")
            .and_then(|egress| link(egress, &device, TcAttachType::Egress))
        {
            Ok(egress) => {
                self.granted.insert(vni, Granted { endpoint, slot, egress });
                Ok(Network { vni: vni.get(), endpoint, mac: mac_key(entry.mac), slot, addresses })
            }
            Err(error) => {
                self.clear(vni, endpoint);
                Err(error.into())
            }
        }
    }

    fn fill(&mut self, vni: Vni, endpoint: u32, slot: u32) -> Result<(), XdpError> {
        // One element for each possible CPU.
        let zero = PerCpuValues::try_from(vec![[0; 4]; aya::util::nr_cpus().unwrap_or(1)])
            .map_err(|source| XdpError::Map { map: "TRAFFIC", source: source.into() })?;
        self.traffic.set(slot, zero, 0).map_err(|source| XdpError::Map { map: "TRAFFIC", source })?;
        self.endpoints
            .insert(endpoint, vni.get(), 0)
            .map_err(|source| XdpError::Map { map: "ENDPOINTS", source })
    }

    /// Releases a network that has been removed from [`Xdp::set_network`]'s map.
    pub fn revoke(&mut self, vni: Vni) {
        let traffic = self.traffic(vni);
        let Some(granted) = self.granted.remove(&vni) else { return };
        add(&mut self.past, &traffic);
        self.clear(vni, granted.endpoint);
    }

    fn clear(&mut self, vni: Vni, endpoint: u32) {
        if let Err(error) = unless_missing(self.endpoints.remove(&endpoint)) {
            // The entry has no effect: the programs look the network up next.
            tracing::warn!(%vni, %error, "cannot remove an endpoint from the shortcut's map; the entry has no effect");
        }
    }

    /// Follows the next hops and the VTEPs of new tables.
    ///
    /// # Errors
    /// A map is full, or the kernel refuses. The engine carries what is missing in the map.
    pub fn follow(&mut self, tables: &Tables) -> Result<(), XdpError> {
        let reachable = |vtep: &IpAddr| {
            !vtep.is_multicast()
                && !tables.local.contains(vtep)
                && tables.vteps.of_mac(Mac::of(*vtep)) == Some(*vtep)
        };
        let hops = tables.hops.iter().filter(|(vtep, _)| reachable(vtep)).filter_map(|(vtep, hop)| {
            let key = mac_key(Mac::of(*vtep));
            Some((key, zerocopy::transmute!(hop.outer.hop(key, hop.largest_inner())?)))
        });
        let owners = owners(tables).map(|owner| (owner.overlay.0, zerocopy::transmute!(owner)));
        // Both maps, even if one fails: a VTEP that is gone must be removed from each.
        let (owners, hops) = (owners.collect(), hops.collect());
        let owners = self.owners.set(owners);
        self.hops.set(hops).and(owners)
    }

    /// Whether the shortcut carries a network.
    #[must_use]
    pub fn carries(&self, vni: Vni) -> bool {
        self.granted.contains_key(&vni)
    }

    /// The networks whose endpoint has, or had, this interface index.
    pub fn at(&self, endpoint: u32) -> impl Iterator<Item = Vni> {
        self.granted.iter().filter(move |(_, granted)| granted.endpoint == endpoint).map(|(vni, _)| *vni)
    }

    /// Checks that the endpoint of a carried network is still where it was, and up. The programs know it by its index,
    /// which in another network namespace is another device's.
    ///
    /// # Errors
    /// Why the network can no longer be carried.
    pub fn holds(&self, entry: &Entry) -> Result<(), Declined> {
        let endpoint = self.granted.get(&entry.network.vni).map(|granted| granted.endpoint);
        match place(entry) {
            Ok(link) if Some(link.index) == endpoint => Ok(()),
            Err(Declined::Down) => Err(Declined::Down),
            _ => Err(Declined::Moved),
        }
    }

    /// The networks whose program another program has detached from the endpoint.
    pub fn detached(&self) -> impl Iterator<Item = Vni> {
        self.granted.iter().filter(|(_, granted)| is_detached(&granted.egress)).map(|(vni, _)| *vni)
    }

    /// What another program has removed that the shortcut cannot work without; None: nothing.
    #[must_use]
    pub fn broken(&self) -> Option<&'static str> {
        let slow_path = link::get(&slow_path::device(self.nic));
        if !slow_path.is_ok_and(|link| link.up && link.index == self.slow_path) {
            return Some("slow-N, its way to the engine, was deleted, moved, renamed or set down");
        }
        self.links.iter().any(is_detached).then_some("a tc program was detached")
    }

    /// Restores the device for GRO, if another program has changed it.
    pub fn mend(&mut self) {
        self.joining.mend();
    }

    /// Whether the device for GRO exists.
    #[must_use]
    pub fn joins(&self) -> bool {
        self.joining.is_there()
    }

    /// The number of networks that the shortcut carries.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.granted.len()
    }

    /// A network's traffic since it was granted; zero if the shortcut does not carry it.
    #[must_use]
    pub fn traffic(&self, vni: Vni) -> Traffic {
        let mut sum = Traffic::default();
        let granted = self.granted.get(&vni);
        if let Some(Ok(values)) = granted.map(|granted| self.traffic.get(&granted.slot, 0)) {
            values.iter().for_each(|words| add(&mut sum, &zerocopy::transmute!(*words)));
        }
        sum
    }

    /// The traffic of all networks, of those that are gone as well.
    #[must_use]
    pub fn total(&self) -> Traffic {
        let mut sum = self.past;
        self.granted.keys().for_each(|vni| add(&mut sum, &self.traffic(*vni)));
        sum
    }
}

/// The endpoint's device, if the shortcut can serve it.
///
/// # Errors
/// Why it cannot.
pub fn place(entry: &Entry) -> Result<Link, Declined> {
    let device = entry.source.device_here().ok_or(Declined::Elsewhere)?;
    let link = link::get(&device).map_err(XdpError::from)?;
    if link.up { Ok(link) } else { Err(Declined::Down) }
}

/// Whether the kernel attaches tc programs as links to a NIC, which the shortcut needs. True if the kernel does not
/// tell.
#[must_use]
pub fn is_possible(nic: &str) -> bool {
    match SchedClassifier::query_tcx(nic, TcAttachType::Ingress) {
        Err(ProgramError::SyscallError(SyscallError { call: "bpf_prog_query", io_error })) => {
            io_error.raw_os_error() != Some(libc::EINVAL)
        }
        _ => true,
    }
}

/// The overlay addresses of listed VTEPs; and the addresses of VTEPs in use that only a range allows.
fn owners(tables: &Tables) -> impl Iterator<Item = Owner> + '_ {
    let vteps: &Vteps = &tables.vteps;
    let ranged = tables.hops.keys().filter(move |vtep| vteps.of_overlay(**vtep) == Some(**vtep));
    vteps
        .overlay()
        .chain(ranged.map(|vtep| (*vtep, *vtep)))
        .map(|(overlay, vtep)| Owner { overlay: overlay.into(), vtep: vtep.into() })
}

fn add(sum: &mut Traffic, traffic: &Traffic) {
    sum.rx_frames += traffic.rx_frames;
    sum.rx_bytes += traffic.rx_bytes;
    sum.tx_frames += traffic.tx_frames;
    sum.tx_bytes += traffic.tx_bytes;
}

/// A map and a copy of its content, so that only changes are written.
struct Mirrored<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    holds: Known<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + Eq> Mirrored<K, V> {
    fn new(name: &'static str, map: HashMap<MapData, K, V>) -> Self {
        Mirrored { name, map, holds: Known::new() }
    }

    /// Makes the map hold exactly `wanted`. Removes first, so that a failure leaves nothing that must be gone.
    fn set(&mut self, wanted: Known<K, V>) -> Result<(), XdpError> {
        let failed = |source| XdpError::Map { map: self.name, source };
        let gone: Vec<K> = self.holds.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in gone {
            unless_missing(self.map.remove(&key)).map_err(failed)?;
            self.holds.remove(&key);
        }
        for (key, value) in wanted {
            if self.holds.get(&key) != Some(&value) {
                self.map.insert(key, value, 0).map_err(failed)?;
                self.holds.insert(key, value);
            }
        }
        Ok(())
    }
}
