//! What is said over the data plane's control socket, as [`crate::protocol`] packs it.
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
/// TAP queues of an endpoint at most, however many workers there are. A TAP of several queues costs the kernel 240 KiB, and 10 KiB
/// more for each queue.
pub const ENDPOINT_QUEUES: usize = 4;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Is the control thread alive? [`Reply::Pong`].
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
        /// All of them. More than one packet holds: use a multicast group.
        peers: Vec<IpAddr>,
    },
    /// Changes the allowed VTEPs: first `remove`, then `add`. What is to go and is not there is no error.
    Vteps {
        /// New ones, or ones with new overlay addresses.
        #[serde(default)]
        add: Vec<Vtep>,
        /// Addresses that are allowed no more.
        #[serde(default)]
        remove: Vec<IpAddr>,
        /// New ranges.
        #[serde(default)]
        add_range: Vec<Cidr>,
        /// Ranges that are allowed no more.
        #[serde(default)]
        remove_range: Vec<Cidr>,
    },
    /// How the NIC is driven. [`Reply::Show`].
    Show,
    /// The networks by VNI, from `from` on, as many as one packet holds. [`Reply::Networks`].
    Networks {
        /// The first VNI.
        #[serde(default)]
        from: u32,
    },
    /// The VTEPs that have been looked up, by address, from `from` on. [`Reply::Hops`].
    Hops {
        /// The first address; None: from the beginning.
        #[serde(default)]
        from: Option<IpAddr>,
    },
    /// The VNIs that allowed VTEPs sent to though they are not here, since it was last asked. [`Reply::Unknown`].
    Unknown,
    /// Counters of the workers and of the XDP program. [`Reply::Counters`].
    Counters,
    /// How long frames stay in the data plane, since the start. [`Reply::Histogram`].
    Histogram,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `ping`.
    Pong,
    /// The change is in force.
    Done {
        /// The tables' epoch that holds it.
        epoch: u64,
    },
    /// To `show`.
    Show(Box<Summary>),
    /// To `networks`.
    Networks {
        /// By VNI.
        networks: Vec<NetworkState>,
        /// Where the next request shall begin; None: that was all.
        next: Option<u32>,
    },
    /// To `hops`.
    Hops {
        /// By address.
        hops: Vec<HopState>,
        /// Where the next request shall begin; None: that was all.
        next: Option<IpAddr>,
    },
    /// To `unknown`.
    Unknown {
        /// The most recent ones.
        seen: Vec<UnknownVni>,
    },
    /// To `counters`.
    Counters {
        /// Sums over all workers.
        total: Counts,
        /// Each worker's own.
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
    /// As a peer of that schema reads it: uvn 0.1.0 has the error of the last try as the state.
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
    /// Whether it carries its networks.
    pub state: State,
    /// The error of the last try, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Its MTU in bytes.
    pub mtu: usize,
    /// Its MAC.
    pub mac: String,
    /// Our VTEP addresses.
    pub vtep: Vec<IpAddr>,
    /// UDP port.
    pub port: u16,
    /// Where its XDP program runs; None while not running, or in the shortcut.
    pub xdp: Option<XdpMode>,
    /// Whether the sockets are zero-copy; None while not running, or in the shortcut.
    pub zero_copy: Option<bool>,
    /// How the frames are carried; None while not running.
    #[serde(default)]
    pub gear: Option<Gear>,
    /// Why.
    #[serde(default)]
    pub gear_reason: Option<String>,
    /// What speeds the traffic up now.
    #[serde(default, alias = "measure", deserialize_with = "known")]
    pub boost: Option<Boost>,
    /// One per NIC queue, or up to four beside the shortcut.
    pub workers: Vec<WorkerState>,
    /// Epoch of the newest tables.
    pub epoch: u64,
    /// How many networks there are.
    pub networks: usize,
    /// How many of them the in-kernel gear carries.
    #[serde(default)]
    pub shortcut: usize,
    /// How many the engine carries until the in-kernel gear takes them over. The others are the engine's alone.
    #[serde(default)]
    pub waiting: usize,
    /// How many VTEPs have a next hop.
    pub hops: usize,
    /// How many VTEPs have been looked up and have none.
    pub unresolved: usize,
    /// How many VTEPs are allowed by address.
    pub vteps: usize,
    /// The allowed ranges: the first 64.
    pub ranges: Vec<Cidr>,
    /// What takes something from it, though it works.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "all_known")]
    pub notes: Vec<Note>,
}

/// What the shortcut does about the traffic, while it pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boost {
    /// The NIC receives in threads of the kernel, for many packets; on cores that stay awake, since messages wake one.
    Threads,
    /// Cores stay awake, for few.
    Awake,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Its number; the NIC queue that it has in the engine gear.
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
    /// Where its endpoint's device is now; None: it is lost, or in a namespace without a name here.
    #[serde(default)]
    pub endpoint: Option<Place>,
    /// Why it has no endpoint now; None: it has one.
    pub fault: Option<String>,
    /// What is not as it should be, though it works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// VTEPs, or one group, that it floods to: the first 16.
    pub flood: Vec<IpAddr>,
    /// How many there are.
    pub flood_count: usize,
    /// How many MACs it has learned.
    pub learned: usize,
    /// Whether the in-kernel gear carries it.
    #[serde(default)]
    pub shortcut: bool,
    /// Whether the in-kernel gear is still to take it over.
    #[serde(default)]
    pub waiting: bool,
    /// Its share of the counters, over all workers and the in-kernel gear.
    pub counts: Counts,
}

/// Where a device is.
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
    /// MTU of the way there.
    pub mtu: Option<usize>,
}

/// A VNI that is not on this NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownVni {
    /// The VNI.
    pub vni: u32,
    /// The first VTEP that sent to it.
    pub vtep: IpAddr,
    /// How many frames came.
    pub frames: u64,
}

/// What stands in [`Counts::drops`] beside the reasons of the workers: what the endpoints' devices dropped before a worker
/// could read it.
pub const ENDPOINT_FULL: &str = "tx_endpoint_full";

/// Counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Inner frames handed to endpoints, segments counted one by one.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Inner frames sent, segments counted one by one.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames dropped, by reason; what is zero is left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drops: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds another's.
    pub fn add(&mut self, other: &Counts) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        for (reason, count) in &other.drops {
            *self.drops.entry(reason.clone()).or_default() += count;
        }
    }

    /// Adds what an endpoint's device dropped before a worker could read it.
    pub fn add_dropped(&mut self, dropped: u64) {
        if dropped > 0 {
            *self.drops.entry(ENDPOINT_FULL.into()).or_default() += dropped;
        }
    }

    /// Adds what the shortcut counted.
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
    /// How many batches.
    pub batches: u64,
    /// Median.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

#[cfg(test)]
mod tests;
