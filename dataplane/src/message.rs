//! The control protocol: one JSON object per packet of a Unix SOCK_SEQPACKET socket.
//!
//! `{"version": 1, "request": "ping"}` is answered by `{"version": 1, "reply": "pong"}` or by
//! `{"version": 1, "error": {"code": ..., "message": ...}}`. A connection has one request under way at a time.
//! An endpoint's file descriptors travel beside `add_network` by SCM_RIGHTS.

use crate::config::{Cidr, Network, Vtep};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The one version that this build speaks.
pub const VERSION: u32 = 1;
/// The longest packet, either way.
pub const MAX_BYTES: usize = 64 << 10;
/// The most file descriptors beside one request: one per worker.
pub const MAX_FDS: usize = 64;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Is the control thread alive? [`Reply::Pong`].
    Ping,
    /// Adds a network: with a `device` to make, or with TAP descriptors beside the packet, one or one per worker.
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

/// How the NIC is driven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The underlay NIC.
    pub nic: String,
    /// `running`, or why not: `absent`, `down`, or the error of the last try.
    pub state: String,
    /// Its MTU in bytes.
    pub mtu: usize,
    /// Its MAC.
    pub mac: String,
    /// Our VTEP addresses.
    pub vtep: Vec<IpAddr>,
    /// UDP port.
    pub port: u16,
    /// `driver` or `generic`; None while not running.
    pub xdp: Option<String>,
    /// Whether the sockets are zero-copy; None while not running.
    pub zero_copy: Option<bool>,
    /// One per NIC queue.
    pub workers: Vec<WorkerState>,
    /// Epoch of the newest tables.
    pub epoch: u64,
    /// How many networks there are.
    pub networks: usize,
    /// How many VTEPs have a next hop.
    pub hops: usize,
    /// How many VTEPs have been looked up and have none.
    pub unresolved: usize,
    /// How many VTEPs are allowed by address.
    pub vteps: usize,
    /// The allowed ranges: the first 64.
    pub ranges: Vec<Cidr>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Its NIC queue.
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
    /// Why it has no endpoint now; None: it has one.
    pub fault: Option<String>,
    /// VTEPs, or one group, that it floods to: the first 16.
    pub flood: Vec<IpAddr>,
    /// How many there are.
    pub flood_count: usize,
    /// How many MACs it has learned.
    pub learned: usize,
    /// Its share of the counters, over all workers.
    pub counts: Counts,
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

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people: the thing and the remedy.
    pub message: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Not a request of this protocol.
    Malformed,
    /// Another protocol version.
    Version,
    /// A value is not allowed.
    Invalid,
    /// It is there already.
    Exists,
    /// There is no such thing.
    NotFound,
    /// The kernel refused, or a worker does not answer.
    Failed,
}

impl Failure {
    /// One failure.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    version: u32,
    request: Request,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answered {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<Reply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

impl Request {
    /// Reads one packet. Pure, and for any bytes.
    ///
    /// # Errors
    /// [`Code::Malformed`] or [`Code::Version`].
    pub fn parse(bytes: &[u8]) -> Result<Request, Failure> {
        check_version(bytes)?;
        serde_json::from_slice::<Asked>(bytes).map(|asked| asked.request).map_err(malformed)
    }

    /// The packet.
    ///
    /// # Errors
    /// [`Code::Invalid`] if it is longer than [`MAX_BYTES`].
    pub fn packet(&self) -> Result<Vec<u8>, Failure> {
        bounded(&Asked { version: VERSION, request: self.clone() })
    }
}

/// Reads an answer.
///
/// # Errors
/// The failure that the other side reports, or [`Code::Malformed`] or [`Code::Version`].
pub fn parse_answer(bytes: &[u8]) -> Result<Reply, Failure> {
    check_version(bytes)?;
    match serde_json::from_slice(bytes).map_err(malformed)? {
        Answered { reply: Some(reply), error: None, .. } => Ok(reply),
        Answered { error: Some(error), reply: None, .. } => Err(error),
        _ => Err(Failure::new(Code::Malformed, "an answer holds either `reply` or `error`")),
    }
}

/// The packet that answers a request; a reply that is too long becomes a failure that says so.
#[must_use]
pub fn answer_packet(answer: Result<Reply, Failure>) -> Vec<u8> {
    let answered = |reply, error| bounded(&Answered { version: VERSION, reply, error });
    let packet = match answer {
        Ok(reply) => answered(Some(reply), None),
        Err(failure) => answered(None, Some(failure)),
    };
    packet.or_else(|failure| answered(None, Some(failure))).unwrap_or_default()
}

/// How many of `items` fit one packet beside `reserved` bytes of other content.
pub fn fitting<T: Serialize>(items: impl IntoIterator<Item = T>) -> usize {
    /// For what stands around the items.
    const AROUND: usize = 256;
    let mut room = MAX_BYTES - AROUND;
    let fits = |item: T| {
        let length = serde_json::to_vec(&item).map_or(usize::MAX, |bytes| bytes.len().saturating_add(1));
        room = room.checked_sub(length)?;
        Some(())
    };
    items.into_iter().map_while(fits).count()
}

fn check_version(bytes: &[u8]) -> Result<(), Failure> {
    if bytes.len() > MAX_BYTES {
        return Err(Failure::new(Code::Malformed, format!("more than {MAX_BYTES} bytes")));
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version == VERSION {
        return Ok(());
    }
    let message = format!("protocol version {version} is not supported: this is version {VERSION}");
    Err(Failure::new(Code::Version, message))
}

fn malformed(error: serde_json::Error) -> Failure {
    Failure::new(Code::Malformed, error.to_string())
}

fn bounded<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    let bytes = serde_json::to_vec(value).map_err(malformed)?;
    if bytes.len() <= MAX_BYTES {
        return Ok(bytes);
    }
    Err(Failure::new(Code::Invalid, format!("{} bytes are more than one packet's {MAX_BYTES}", bytes.len())))
}

#[cfg(test)]
mod tests;
