//! How a node is doing.

use crate::dataplane::config::Cidr;
use crate::dataplane::message::{Counts, Gear, Note, State, XdpMode, all_known};
use crate::uvnd::client::{Client, ClientError};
use crate::uvnd::finding::Finding;
use crate::uvnd::message::{Place, Request};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is answered.
pub type Reply = crate::uvnd::message::Reply<Status>;

/// How this node is doing. With [`Status::next`] it is a page: the rest is in the following ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of `uvnd`.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its configuration file.
    pub config: String,
    /// The underlay NICs, in the order of the `[[underlay]]` tables.
    pub nics: Vec<NicState>,
    /// How many networks there are.
    pub networks: usize,
    /// How many leases.
    pub leases: usize,
    /// Sockets and packets by the socket programs' verdict.
    pub verdicts: Vec<(String, u64)>,
    /// Nobody is refused anything.
    #[serde(default)]
    pub observes: bool,
    /// Who was refused the most sockets for want of a network since the configuration is in force, or would have been.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// What is not as it should be, each once, in the order of what is printed.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The same in words, from and for uvn 0.1.0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where the next page begins; None: that was all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Place>,
}

impl Client {
    /// How the node is doing, all pages together.
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
    /// What carries its networks.
    #[serde(alias = "path")]
    pub carrier: Carrier,
    /// Why that.
    pub reason: String,
    /// Its data plane; None: there is none.
    #[serde(alias = "engine")]
    pub data_plane: Option<DataPlane>,
}

/// What carries the networks of a NIC.
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

/// What `uvn status` shows of a data plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataPlane {
    /// Whether it carries its networks.
    pub state: State,
    /// The error, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Where its XDP program runs; None while it is not running, or in the shortcut.
    pub xdp: Option<XdpMode>,
    /// Whether the NIC and the data plane share the frames; None while it is not running.
    pub zero_copy: Option<bool>,
    /// How the frames are carried; None while it is not running.
    pub gear: Option<Gear>,
    /// Why that gear.
    pub gear_reason: Option<String>,
    /// Networks that the shortcut carries; the engine carries the others.
    pub shortcut: usize,
    /// Networks that the engine carries until the shortcut takes them over.
    pub waiting: usize,
    /// Its worker threads, one per NIC queue, or up to four beside the shortcut.
    pub workers: usize,
    /// Networks that it carries.
    pub networks: usize,
    /// What takes something from it, though it works.
    #[serde(deserialize_with = "all_known")]
    pub notes: Vec<Note>,
    /// Frames that the endpoints' devices have dropped, of the networks with the most.
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
