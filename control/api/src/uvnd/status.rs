//! How a node is doing.

use crate::dataplane::config::Cidr;
use crate::dataplane::message::{Counts, Note};
use crate::uvnd::finding::Finding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is answered.
pub type Reply = crate::uvnd::message::Reply<Status>;

/// How this node is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of `uvnd`.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its configuration file.
    pub config: String,
    /// The underlay NICs.
    pub nics: Vec<NicState>,
    /// How many networks there are.
    pub networks: usize,
    /// How many leases.
    pub leases: usize,
    /// Sockets and packets by the socket programs' verdict.
    pub verdicts: Vec<(String, u64)>,
    /// Nobody is refused anything.
    pub observes: bool,
    /// Who was refused the most sockets for want of a network since the configuration is in force, or would have been.
    pub refused: Vec<Refused>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

/// A user without a network who asked for sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The user.
    pub uid: u32,
    /// How many.
    pub count: u64,
    /// The last program that asked.
    pub program: String,
}

/// One underlay NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicState {
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Its addresses on the underlay.
    pub addresses: Vec<Cidr>,
    /// Our VTEPs on it.
    pub vteps: Vec<IpAddr>,
    /// UDP port.
    pub port: u16,
    /// `engine` (uvn-dataplane, whatever its gear) or `kernel` (kernel VXLAN).
    pub path: String,
    /// Why that.
    pub reason: String,
    /// Its data plane; None: there is none.
    pub engine: Option<DataPlane>,
}

/// What `uvn status` shows of a data plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlane {
    /// `running`, `down` (the NIC), `absent` (the NIC), `starting`, or why it does not run.
    pub state: String,
    /// `driver` or `generic`; None while it is not running.
    pub xdp: Option<String>,
    /// Whether the NIC and the data plane share the frames; None while it is not running.
    pub zero_copy: Option<bool>,
    /// `shortcut`: its in-kernel gear takes what needs no decision; or `engine`. None while it is not running.
    #[serde(default)]
    pub gear: Option<String>,
    /// Why that gear.
    #[serde(default)]
    pub gear_reason: Option<String>,
    /// Networks that the in-kernel gear carries; the engine carries the others.
    #[serde(default)]
    pub shortcut: usize,
    /// Networks that the engine carries until the in-kernel gear takes them over.
    #[serde(default)]
    pub waiting: usize,
    /// Its worker threads, one per NIC queue.
    pub workers: usize,
    /// Networks that it carries.
    pub networks: usize,
    /// What takes something from it, though it works.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// Networks that it does not carry, and why.
    pub faults: BTreeMap<u32, String>,
    /// Frames that the endpoints' devices have dropped, of the networks with the most.
    #[serde(default)]
    pub endpoint_full: BTreeMap<u32, u64>,
    /// How often it was started again since uvnd runs.
    pub restarts: u32,
    /// Its process.
    pub process: Option<i32>,
    /// Frames and drops, by reason.
    pub total: Counts,
    /// The XDP program's verdicts.
    pub verdicts: BTreeMap<String, u64>,
    /// Frames that the NIC or the kernel lost at the AF_XDP sockets.
    pub lost: u64,
}
