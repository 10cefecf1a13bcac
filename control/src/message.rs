//! How a node is doing: what `uvnd` adds to [`uvn_api::message`].

use crate::feed;
use crate::finding::Finding;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use uvn_dataplane::config::Cidr;

/// What is answered.
pub type Reply = uvn_api::message::Reply<Status>;

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
    pub engine: Option<feed::Status>,
}
