//! What is said between `uvnd` and `uvn`, PAM, SPANK, as [`crate::protocol`] packs it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Where `uvnd` listens for everybody.
pub const SOCKET: &str = "/run/uvn/uvnd.sock";
/// Where it listens for root alone: whatever users do at the other socket, logins and jobs do not wait for it.
pub const ROOT_SOCKET: &str = "/run/uvn/uvnd-root.sock";

/// The control socket for this process.
#[must_use]
pub fn socket() -> &'static Path {
    let root = Path::new(ROOT_SOCKET);
    // An older uvnd, until it is restarted, has only the other one.
    if crate::seqpacket::is_root() && root.exists() { root } else { Path::new(SOCKET) }
}

/// What can be asked. Root may ask everything, others only what says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Does it work? [`Reply::Pong`]. For everybody.
    Ping,
    /// Adds a lease, and makes the user's network if it is the first. [`Reply::Attached`] once it works.
    Attach {
        /// The user.
        uid: u32,
        /// Who needs it.
        claim: Claim,
        /// Only tell the steps.
        #[serde(default)]
        dry_run: bool,
    },
    /// Ends leases. The network goes after the linger time. [`Reply::Detached`].
    Detach {
        /// The user.
        uid: u32,
        /// Which leases.
        what: Release,
        /// Only tell the steps.
        #[serde(default)]
        dry_run: bool,
    },
    /// The networks by UID, from `from` on, as many as one packet holds. [`Reply::Networks`]. Others than root see
    /// their own.
    List {
        /// The first UID.
        #[serde(default)]
        from: u32,
    },
    /// How this node is doing: as much as one packet holds. [`Reply::Status`].
    Status,
    /// More of that, from there on. [`Reply::Status`].
    StatusFrom(Place),
    /// Reads the configuration again, and follows it. [`Reply::Steps`].
    Reload {
        /// Only tell the steps.
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

/// Where a page of `status` begins. NICs come first, then findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Place {
    /// With a NIC.
    Nic {
        /// Its place among the `[[underlay]]` tables.
        slot: u8,
    },
    /// With the finding after this one, as they are printed; the empty one stands before the first.
    Finding {
        /// What is printed.
        after: String,
    },
}

/// Who needs a network.
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
    /// The administrator, until he says otherwise.
    Manual,
}

/// Which leases to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Release {
    /// This one.
    Claim(Claim),
    /// All of the user's, and the network at once: his processes lose their network.
    All,
}

/// What is answered. `S` is how the node is doing: a type of `uvnd`'s and of those that ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<S> {
    /// To `ping`.
    Pong,
    /// To `attach`.
    Attached {
        /// What came of it.
        outcome: Outcome,
        /// What was changed in the kernel, or would be.
        steps: Vec<String>,
    },
    /// To `detach`.
    Detached {
        /// Leases that remain.
        leases: usize,
        /// What was changed in the kernel, or would be.
        steps: Vec<String>,
    },
    /// To `list`.
    Networks {
        /// By UID.
        networks: Vec<NetworkState>,
        /// Where the next request shall begin; None: that was all.
        next: Option<u32>,
    },
    /// To `status`.
    Status(Box<S>),
    /// To `reload`: what was changed in the kernel, or would be.
    Steps {
        /// The steps, as many as one packet holds.
        steps: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// To `stop`.
    Done,
}

/// What came of an `attach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The user is not policed: he needs no network.
    NotPoliced,
    /// He had one already.
    Known,
    /// He has one now.
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
    /// Whether it reaches beyond the underlay's subnets.
    pub off_subnet: bool,
    /// Who holds it.
    pub leases: Vec<Lease>,
    /// Seconds until it goes, if nobody holds it any more.
    pub goes_in: Option<u64>,
    /// Why it does not work; None: it does.
    pub fault: Option<String>,
}

/// Who holds a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Lease {
    /// A lease.
    Held {
        /// What for.
        kind: Kind,
        /// Which one, for people: `sshd`, `77.0`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        name: String,
        /// The process whose end ends it; None: it ends on request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
    /// The same in words, as uvn 0.1.0 has it.
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

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A login.
    Session,
    /// A step of a batch job.
    Job,
    /// The administrator's wish.
    Manual,
    /// A peer sent to the network. It keeps nothing, but the network lingers for as long as more comes.
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

    /// Nobody asks how the node is doing here.
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
