//! The status of a node.

use crate::dataplane::config::Cidr;
use crate::dataplane::message::{Counts, Gear, Note, State, XdpMode, all_known};
use crate::uvnd::client::{Client, ClientError};
use crate::uvnd::finding::Finding;
use crate::uvnd::message::{Place, Request};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// An answer with the status.
pub type Reply = crate::uvnd::message::Reply<Status>;

/// The status of this node. With [`Status::next`] it is a page: the rest follows on the next ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of `uvnd`.
    pub version: String,
    /// Its PID.
    pub pid: u32,
    /// Its configuration file.
    pub config: String,
    /// The underlay NICs, in the order of the `[[underlay]]` tables.
    pub nics: Vec<NicState>,
    /// The number of networks.
    pub networks: usize,
    /// The number of leases.
    pub leases: usize,
    /// Sockets and packets by the socket programs' verdict.
    pub verdicts: Vec<(String, u64)>,
    /// Whether nobody is refused anything: `mode` is "observe".
    #[serde(default)]
    pub observes: bool,
    /// The users who were refused the most sockets, or would have been, for lack of a network, since the configuration
    /// came into force.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// The findings, each once, in the order in which they are printed.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The findings in words, from and for uvn 0.1.0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The start of the next page; None: this is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Place>,
}

impl Client {
    /// The status of the node, all pages together.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn status(&self) -> Result<Status, ClientError> {
        let page = |request: &Request| match self.ask(request)? {
            Reply::Status(page) => Ok(*page),
            _ => Err(ClientError::Mismatch),
        };
        let mut status = page(&Request::Status)?;
        while let Some(place) = status.next.take() {
            let more = page(&Request::StatusFrom(place.clone()))?;
            status.nics.extend(more.nics);
            status.findings.extend(more.findings);
            status.next = more.next.filter(|next| *next != place);
        }
        Ok(status)
    }
}

/// A user without a network who asked for sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The user.
    pub uid: u32,
    /// The number of sockets that were refused, or would have been.
    pub count: u64,
    /// The last program that asked.
    pub program: String,
}

/// One underlay NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicState {
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Its addresses on the underlay.
    pub addresses: Vec<Cidr>,
    /// This node's VTEP addresses on it.
    pub vteps: Vec<IpAddr>,
    /// The UDP port of VXLAN.
    pub port: u16,
    /// The carrier of its networks.
    #[serde(alias = "path")]
    pub carrier: Carrier,
    /// Why this carrier.
    pub reason: String,
    /// Its data plane; None: there is none.
    #[serde(alias = "engine")]
    pub data_plane: Option<DataPlane>,
}

/// The carrier of a NIC's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// `uvn-dataplane`, in whatever gear.
    #[serde(alias = "engine")]
    DataPlane,
    /// A kernel VXLAN device per network.
    Kernel,
    /// A carrier that this build does not know.
    #[serde(other)]
    Unknown,
}

/// The state of a data plane, as `uvn status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataPlane {
    /// Whether it carries its networks.
    pub state: State,
    /// The error of the last try, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Where the XDP program runs; None while not running, or in the shortcut gear.
    pub xdp: Option<XdpMode>,
    /// Whether all AF_XDP sockets are zero-copy; None while not running, or in the shortcut gear.
    pub zero_copy: Option<bool>,
    /// The gear; None while not running.
    pub gear: Option<Gear>,
    /// Why it is in this gear.
    pub gear_reason: Option<String>,
    /// Networks that the shortcut carries; the engine carries the others.
    pub shortcut: usize,
    /// Networks that the engine carries until the shortcut takes them over.
    pub waiting: usize,
    /// Its worker threads, one per NIC queue, or up to four beside the shortcut.
    pub workers: usize,
    /// Networks that it carries.
    pub networks: usize,
    /// Impairments of the data plane, which works all the same.
    #[serde(deserialize_with = "all_known")]
    pub notes: Vec<Note>,
    /// Frames that the endpoints' devices have dropped, by VNI, of the networks with the most.
    pub endpoint_full: BTreeMap<u32, u64>,
    /// The number of its restarts since `uvnd` runs.
    pub restarts: u32,
    /// Its PID.
    pub process: Option<i32>,
    /// Frames, and drops by reason.
    pub total: Counts,
    /// The XDP program's verdicts, by name.
    pub verdicts: BTreeMap<String, u64>,
    /// Frames that the NIC or the kernel lost at the AF_XDP sockets.
    pub lost: u64,
}
