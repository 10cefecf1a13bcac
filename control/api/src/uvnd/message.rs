//! The requests and answers between `uvnd` and `uvn`, PAM and SPANK, as [`crate::protocol`] packs them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// The socket of `uvnd` for all users.
pub const SOCKET: &str = "/run/uvn/uvnd.sock";
/// The socket of `uvnd` for root alone: logins and jobs do not wait for it, whatever users do at the other one.
pub const ROOT_SOCKET: &str = "/run/uvn/uvnd-root.sock";

/// The path of the control socket for this process.
#[must_use]
pub fn socket() -> &'static Path {
    let root = Path::new(ROOT_SOCKET);
    // An older uvnd has only the other one, until it is restarted.
    if crate::seqpacket::is_root() && root.exists() { root } else { Path::new(SOCKET) }
}

/// The requests. Root may send all of them, other users only those that say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Asks whether `uvnd` works. [`Reply::Pong`]. For all users.
    Ping,
    /// Adds a lease, and makes the user's network if the lease is the first. [`Reply::Attached`] once the network
    /// works.
    Attach {
        /// The user.
        uid: u32,
        /// The holder of the lease.
        claim: Claim,
        /// Only list the steps.
        #[serde(default)]
        dry_run: bool,
    },
    /// Ends leases. The network is removed after the linger time. [`Reply::Detached`].
    Detach {
        /// The user.
        uid: u32,
        /// The leases to end.
        what: Release,
        /// Only list the steps.
        #[serde(default)]
        dry_run: bool,
    },
    /// Asks for the networks by UID, from `from` on, as many as one packet holds. [`Reply::Networks`]. Users other than
    /// root see only their own.
    List {
        /// The first UID.
        #[serde(default)]
        from: u32,
    },
    /// Asks for the status of this node: as much as one packet holds. [`Reply::Status`].
    Status,
    /// Asks for more of the status, from that place on. [`Reply::Status`].
    StatusFrom(Place),
    /// Reads the configuration again, and applies it. [`Reply::Steps`].
    Reload {
        /// Only list the steps.
        #[serde(default)]
        dry_run: bool,
        /// Even if that takes endpoints from users who have a network.
        // uvn 0.1.0 refuses the key.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Ends `uvnd`; the networks stay. [`Reply::Done`].
    Stop,
}

/// The beginning of a page of `status`. NICs come first, then findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Place {
    /// With a NIC.
    Nic {
        /// Its place among the `[[underlay]]` tables.
        slot: u8,
    },
    /// With the finding that follows this one in print; the empty text stands before the first.
    Finding {
        /// The finding as it is printed.
        after: String,
    },
}

/// The holders of leases.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Claim {
    /// A login: until this process ends.
    Session {
        /// The process.
        pid: i32,
    },
    /// A job or a step of one: until this process ends.
    Job {
        /// Its name, such as `123.0`.
        job: String,
        /// The process.
        pid: i32,
    },
    /// The administrator, until they detach it.
    Manual,
}

/// The leases to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Release {
    /// The lease of this holder.
    Claim(Claim),
    /// All leases of the user, and the network at once: the user's processes lose it.
    All,
}

/// The answers. `S` is the node's status, a type of `uvnd`'s and of those clients that ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<S> {
    /// To `ping`.
    Pong,
    /// To `attach`.
    Attached {
        /// The result.
        outcome: Outcome,
        /// The changes in the kernel, made or to be made.
        steps: Vec<String>,
    },
    /// To `detach`.
    Detached {
        /// The number of leases that remain.
        leases: usize,
        /// The changes in the kernel, made or to be made.
        steps: Vec<String>,
    },
    /// To `list`.
    Networks {
        /// By UID.
        networks: Vec<NetworkState>,
        /// The start of the next request; None: this is the last page.
        next: Option<u32>,
    },
    /// To `status`.
    Status(Box<S>),
    /// To `reload`: what was changed in the kernel, or would be.
    Steps {
        /// The steps, as many as one packet holds.
        steps: Vec<String>,
        /// The number of all steps.
        count: usize,
    },
    /// To `stop`.
    Done,
}

/// The result of an `attach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The user is not policed, and needs no network.
    NotPoliced,
    /// The user had a network already.
    Known,
    /// The user has a network now.
    Made,
    /// An outcome that this build does not know.
    #[serde(other)]
    Unknown,
}

/// One user's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// The user.
    pub uid: u32,
    /// Its VXLAN network identifier.
    pub vni: u32,
    /// Its VRF.
    pub vrf: String,
    /// Its routing table.
    pub table: u32,
    /// Whether the network reaches beyond the underlay's subnets.
    pub off_subnet: bool,
    /// Its leases.
    pub leases: Vec<Lease>,
    /// Seconds until the network is removed; None: a lease keeps it.
    pub goes_in: Option<u64>,
    /// Why it does not work; None: it works.
    pub fault: Option<String>,
}

/// A lease of a network, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Lease {
    /// A lease in values.
    Held {
        /// The kind of its holder.
        kind: Kind,
        /// Its name, for people: `sshd`, `77.0`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        name: String,
        /// The process whose end ends it; None: it ends on request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
    /// A lease in words, from uvn 0.1.0.
    Words(String),
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lease::Held { kind, name, pid: Some(pid) } => write!(f, "{kind} {name} (process {pid})"),
            Lease::Held { kind, .. } => kind.fmt(f),
            Lease::Words(words) => f.write_str(words),
        }
    }
}

/// The kinds of leases, by their holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A login.
    Session,
    /// A step of a batch job.
    Job,
    /// The administrator.
    Manual,
    /// A peer that sent to the network. It keeps nothing, but the network lingers for as long as more comes.
    Peer,
    /// A kind that this build does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Session => "session",
            Kind::Job => "job",
            Kind::Manual => "manual",
            Kind::Peer => "peer",
            Kind::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Code, SCHEMA, answer_packet, parse_answer, parse_request, request_packet};

    /// These tests do not ask for the status.
    type Reply = super::Reply<()>;

    #[test]
    fn requests_survive_the_trip() {
        let job = Claim::Job { job: "123.0".into(), pid: 77 };
        for request in [
            Request::Ping,
            Request::Attach { uid: 1000, claim: job.clone(), dry_run: true },
            Request::Detach { uid: 4_294_967_294, what: Release::Claim(job), dry_run: false },
            Request::Detach { uid: 1, what: Release::All, dry_run: false },
            Request::List { from: 7 },
            Request::Status,
            Request::StatusFrom(Place::Nic { slot: 3 }),
            Request::StatusFrom(Place::Finding { after: String::new() }),
            Request::Reload { dry_run: true, force: true },
            Request::Stop,
        ] {
            assert_eq!(parse_request(&request_packet(&request, SCHEMA).unwrap()), Ok(request));
        }
    }

    #[test]
    fn the_form_on_the_wire_is_fixed() {
        let attach = br#"{"version":1,"request":{"attach":{"uid":5,"claim":{"session":{"pid":9}}}}}"#;
        let request = Request::Attach { uid: 5, claim: Claim::Session { pid: 9 }, dry_run: false };
        assert_eq!(parse_request(attach), Ok(request));
        let answer = answer_packet(Ok(Reply::Attached { outcome: Outcome::Made, steps: vec![] }), 0);
        assert_eq!(answer, br#"{"version":1,"reply":{"attached":{"outcome":"made","steps":[]}}}"#);
        assert_eq!(parse_answer(&answer), Ok(Reply::Attached { outcome: Outcome::Made, steps: vec![] }));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for wrong in [
            r#"{"version":1,"request":{"attach":{"uid":-1,"claim":"manual"}}}"#,
            r#"{"version":1,"request":{"attach":{"uid":4294967296,"claim":"manual"}}}"#,
            r#"{"version":1,"request":{"attach":{"uid":5}}}"#,
            r#"{"version":1,"request":{"attach":{"uid":5,"claim":"manual","force":true}}}"#,
            r#"{"version":1,"request":"purge"}"#,
        ] {
            let failure = parse_request::<Request>(wrong.as_bytes()).unwrap_err();
            assert_eq!(failure.code, Code::Malformed, "{wrong}");
        }
    }
}
