//! The requests and answers on the data plane's control socket, as [`crate::protocol`] packs them.
//!
//! An endpoint's file descriptors travel beside `add_network` by SCM_RIGHTS.

mod note;
mod state;

pub use note::Note;
pub use state::{Gear, State, XdpMode};
pub(crate) use state::{all_known, known};

use crate::dataplane::config::{Cidr, Network, Vtep};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use uvn_wire::xdp::Traffic;

/// The most file descriptors beside one request.
pub const MAX_FDS: usize = 64;
/// The most TAP queues of an endpoint, whatever the number of workers. A TAP of several queues takes 240 KiB of kernel
/// memory, and 10 KiB more for each queue.
pub const ENDPOINT_QUEUES: usize = 4;

/// The requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Asks whether the control thread is alive. [`Reply::Pong`].
    Ping,
    /// Adds a network: with a `device` to make, or with TAP descriptors beside the packet, one for each of its queues.
    /// [`Reply::Done`] once every worker carries it.
    AddNetwork(Network),
    /// Removes a network. [`Reply::Done`] once no worker carries it and its endpoint is closed.
    RemoveNetwork {
        /// Its VNI.
        vni: u32,
    },
    /// Replaces the VTEPs that a network's broadcast, multicast and unknown frames are replicated to.
    SetPeers {
        /// Its VNI.
        vni: u32,
        /// All of them. If they do not fit one packet, the network needs a multicast group.
        peers: Vec<IpAddr>,
    },
    /// Changes the allowed VTEPs: first `remove`, then `add`. Removing one that is not there is no error.
    Vteps {
        /// New VTEPs, or known ones with new overlay addresses.
        #[serde(default)]
        add: Vec<Vtep>,
        /// Addresses that are no longer allowed.
        #[serde(default)]
        remove: Vec<IpAddr>,
        /// New ranges.
        #[serde(default)]
        add_range: Vec<Cidr>,
        /// Ranges that are no longer allowed.
        #[serde(default)]
        remove_range: Vec<Cidr>,
    },
    /// Asks how the NIC is driven. [`Reply::Show`].
    Show,
    /// Asks for the networks by VNI, from `from` on, as many as one packet holds. [`Reply::Networks`].
    Networks {
        /// The first VNI.
        #[serde(default)]
        from: u32,
    },
    /// Asks for the VTEPs that have been looked up, by address, from `from` on. [`Reply::Hops`].
    Hops {
        /// The first address; None: from the beginning.
        #[serde(default)]
        from: Option<IpAddr>,
    },
    /// Asks for the VNIs that allowed VTEPs sent to though they are not on this NIC, since the last such request.
    /// [`Reply::Unknown`].
    Unknown,
    /// Asks for the counters of the workers and of the XDP program. [`Reply::Counters`].
    Counters,
    /// Asks how long frames stay in the data plane, since its start. [`Reply::Histogram`].
    Histogram,
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `ping`.
    Pong,
    /// To a change: it is in force.
    Done {
        /// Epoch of the tables that hold the change.
        epoch: u64,
    },
    /// To `show`.
    Show(Box<Summary>),
    /// To `networks`.
    Networks {
        /// By VNI.
        networks: Vec<NetworkState>,
        /// The start of the next request; None: this is the last page.
        next: Option<u32>,
    },
    /// To `hops`.
    Hops {
        /// By address.
        hops: Vec<HopState>,
        /// The start of the next request; None: this is the last page.
        next: Option<IpAddr>,
    },
    /// To `unknown`.
    Unknown {
        /// The most recent VNIs.
        seen: Vec<UnknownVni>,
    },
    /// To `counters`.
    Counters {
        /// Sums over all workers.
        total: Counts,
        /// The counters of each worker.
        workers: Vec<Counts>,
        /// The XDP program's verdicts since it was attached, by name.
        xdp: BTreeMap<String, u64>,
        /// Frames that the NIC or kernel lost at the AF_XDP sockets since they were made.
        lost: u64,
    },
    /// To `histogram`.
    Histogram(Residency),
}

impl Reply {
    /// The reply as a peer of that schema reads it: for uvn 0.1.0, the state is the error of the last try.
    #[must_use]
    pub fn in_schema(mut self, schema: u32) -> Reply {
        if let (0, Reply::Show(summary)) = (schema, &mut self)
            && let Some(fault) = summary.fault.take()
        {
            summary.state = State::Other(fault);
        }
        self
    }
}

/// How the NIC is driven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The underlay NIC.
    pub nic: String,
    /// Whether the data plane carries its networks.
    pub state: State,
    /// The error of the last try, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Its MTU in bytes.
    pub mtu: usize,
    /// Its MAC.
    pub mac: String,
    /// This node's VTEP addresses on it.
    pub vtep: Vec<IpAddr>,
    /// The UDP port of VXLAN.
    pub port: u16,
    /// Where the XDP program runs; None while not running, or in the shortcut gear.
    pub xdp: Option<XdpMode>,
    /// Whether all AF_XDP sockets are zero-copy; None while not running, or in the shortcut gear.
    pub zero_copy: Option<bool>,
    /// The gear; None while not running.
    #[serde(default)]
    pub gear: Option<Gear>,
    /// Why it is in this gear.
    #[serde(default)]
    pub gear_reason: Option<String>,
    /// The boost in force; None: no boost.
    #[serde(default, alias = "measure", deserialize_with = "known")]
    pub boost: Option<Boost>,
    /// The workers: one per NIC queue, or up to four beside the shortcut.
    pub workers: Vec<WorkerState>,
    /// Epoch of the newest tables.
    pub epoch: u64,
    /// The number of networks.
    pub networks: usize,
    /// The number of networks that the shortcut carries.
    #[serde(default)]
    pub shortcut: usize,
    /// The number of networks that the engine carries until the shortcut takes them over. The engine keeps the others.
    #[serde(default)]
    pub waiting: usize,
    /// The number of VTEPs that have a next hop.
    pub hops: usize,
    /// The number of VTEPs that have been looked up and have no next hop.
    pub unresolved: usize,
    /// The number of VTEPs that are allowed by address.
    pub vteps: usize,
    /// The allowed ranges: the first 64.
    pub ranges: Vec<Cidr>,
    /// Impairments of the data plane, which works all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "all_known")]
    pub notes: Vec<Note>,
}

/// The boosts, each while it pays and `workers.boost` allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boost {
    /// For many packets in the shortcut gear: the NIC receives in threads of the kernel. If `workers.boost` allows it,
    /// the workers' cores stay awake as well, since messages wake a thread.
    Threads,
    /// For few packets: the workers' cores stay awake.
    Awake,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Its number; in the engine gear, also that of its NIC queue.
    pub queue: usize,
    /// Its core; None: not pinned.
    pub core: Option<usize>,
    /// Epoch of the tables it runs with.
    pub epoch: u64,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Its VNI.
    pub vni: u32,
    /// The endpoint's overlay addresses.
    pub addresses: Vec<Cidr>,
    /// The endpoint's MAC.
    pub mac: String,
    /// The device that was made for it; None: its descriptors were passed in.
    pub device: Option<String>,
    /// Where its endpoint's device is now; None: the device is lost, or in a namespace without a name here.
    #[serde(default)]
    pub endpoint: Option<Place>,
    /// Why it has no endpoint now; None: it has one.
    pub fault: Option<String>,
    /// Impairments of the network, which works all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The VTEPs, or the one group, that it floods to: the first 16.
    pub flood: Vec<IpAddr>,
    /// The number of all that it floods to.
    pub flood_count: usize,
    /// The number of MACs that it has learned.
    pub learned: usize,
    /// Whether the shortcut carries it.
    #[serde(default)]
    pub shortcut: bool,
    /// Whether the shortcut is still to take it over.
    #[serde(default)]
    pub waiting: bool,
    /// Its share of the counters, over all workers and the shortcut.
    pub counts: Counts,
}

/// The place of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub device: String,
    /// Its network namespace's file; None: the data plane's own namespace.
    pub netns: Option<PathBuf>,
}

/// One VTEP or multicast group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopState {
    /// Its address.
    pub address: IpAddr,
    /// The next hop's MAC; None: not resolved.
    pub mac: Option<String>,
    /// MTU of the way to it, bytes; None: not resolved.
    pub mtu: Option<usize>,
}

/// A VNI that is not on this NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownVni {
    /// The VNI.
    pub vni: u32,
    /// The first VTEP that sent to it.
    pub vtep: IpAddr,
    /// The number of frames that were sent to it.
    pub frames: u64,
}

/// The key in [`Counts::drops`] for frames that the endpoints' devices dropped before a worker could read them. The
/// other keys are the workers' reasons.
pub const ENDPOINT_FULL: &str = "tx_endpoint_full";

/// Counters of a network, of a worker or of all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Inner frames handed to endpoints, segments counted one by one.
    pub rx_frames: u64,
    /// The bytes of these frames.
    pub rx_bytes: u64,
    /// Inner frames sent, segments counted one by one.
    pub tx_frames: u64,
    /// The bytes of these frames.
    pub tx_bytes: u64,
    /// Dropped frames, by reason; reasons without any are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drops: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds other counters to these.
    pub fn add(&mut self, other: &Counts) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        for (reason, count) in &other.drops {
            *self.drops.entry(reason.clone()).or_default() += count;
        }
    }

    /// Adds frames that an endpoint's device dropped before a worker could read them.
    pub fn add_dropped(&mut self, dropped: u64) {
        if dropped > 0 {
            *self.drops.entry(ENDPOINT_FULL.into()).or_default() += dropped;
        }
    }

    /// Adds the counters of the shortcut.
    pub fn add_traffic(&mut self, traffic: &Traffic) {
        self.rx_frames += traffic.rx_frames;
        self.rx_bytes += traffic.rx_bytes;
        self.tx_frames += traffic.tx_frames;
        self.tx_bytes += traffic.tx_bytes;
    }
}

/// Time from a batch's arrival until it was handed on, nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residency {
    /// The number of batches.
    pub batches: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The 99.9th percentile.
    pub p999: u64,
    /// The longest time.
    pub max: u64,
}

#[cfg(test)]
mod tests;
