//! Leases on users' networks: what holds each network, and until when.
//!
//! Only [`state`] (the file), [`process`] (holders) and [`now`] do I/O or read a clock. Times count from boot
//! ([`now`]): they stay valid when `uvnd` restarts, and the state is gone when the node restarts.
//!
//! A network lives from its first lease to [`Leases::remove`], which its owner calls when nothing of it is left. Only
//! then its lease number (`slot`) is free for another user's network.

pub mod process;
pub mod state;
#[cfg(test)]
mod tests;

pub use process::Process;

use crate::config::NoVni;
use crate::network::Network;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use thiserror::Error;
use uvn_api::uvnd::message;

/// The kinds of leases, by their holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A login.
    Session,
    /// A step of a batch job.
    Job,
    /// `uvn attach`; it ends with `uvn detach`.
    Manual,
    /// A peer sent to the user's network. The lease does not keep the network, but it lingers while more packets come.
    Peer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Session => "session",
            Kind::Job => "job",
            Kind::Manual => "manual",
            Kind::Peer => "peer",
        })
    }
}

impl From<Kind> for message::Kind {
    fn from(kind: Kind) -> message::Kind {
        match kind {
            Kind::Session => message::Kind::Session,
            Kind::Job => message::Kind::Job,
            Kind::Manual => message::Kind::Manual,
            Kind::Peer => message::Kind::Peer,
        }
    }
}

/// A reason for a network to exist. Equal leases count once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The kind of its holder.
    pub kind: Kind,
    /// A name for people: of a session the program (`sshd`), of a job its step (`77.0`), of a peer its VTEP.
    pub name: String,
    /// The process whose end ends the lease. None: it ends on request.
    pub holder: Option<Process>,
}

/// The network of a new lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    /// It must be made or completed.
    New(Network),
    /// It exists.
    Known(Network),
}

/// Why a lease is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// The user can have no network.
    #[error(transparent)]
    NoVni(#[from] NoVni),
    /// The VNI is in use: the configuration has given it to another user while its former user's network exists.
    #[error(
        "VNI {vni} of UID {uid} is still in use by UID {other}; remove that network first: `uvn detach {other}`"
    )]
    Collision {
        /// The user who has no network.
        uid: u32,
        /// The user whose network has the VNI.
        other: u32,
        /// The VNI.
        vni: u32,
    },
    /// Every lease number is in use.
    #[error("all {0} networks that the NAT pools have addresses for are in use; set larger pools in [nat]")]
    Full(u32),
}

/// How long a network made for a peer lingers at least: a login from another node runs in root's sshd at first.
const PEER_LINGER: Duration = Duration::from_secs(10);

/// A user's network and its leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The network.
    pub network: Network,
    /// Its leases.
    pub leases: BTreeSet<Lease>,
    /// When it was last in use, since boot; the linger time counts from here once no lease keeps it.
    pub last: Duration,
    /// It is being torn down, or a teardown has left something.
    pub leaving: bool,
    /// Packets received, at the last [`Leases::received`].
    received: u64,
}

impl Held {
    /// Whether a lease other than a peer's holds it.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.leases.iter().any(|lease| lease.kind != Kind::Peer)
    }

    fn is_made_by_peers(&self) -> bool {
        self.leases.iter().any(|lease| lease.kind == Kind::Peer)
    }

    /// When it may be removed, unless it is kept.
    fn end(&self, linger: Duration) -> Duration {
        self.last.saturating_add(if self.is_made_by_peers() { linger.max(PEER_LINGER) } else { linger })
    }
}

/// All networks of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// Lease numbers are below this.
    slots: u32,
    held: BTreeMap<u32, Held>,
}

/// The time since boot.
#[must_use]
pub fn now() -> Duration {
    // Cannot fail: Linux has this clock since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

impl Leases {
    /// No leases, with room for `slots` networks.
    #[must_use]
    pub fn new(slots: u32) -> Leases {
        Leases { slots, held: BTreeMap::new() }
    }

    /// Changes the number of networks there is room for. Existing ones stay.
    pub fn set_slots(&mut self, slots: u32) {
        self.slots = slots;
    }

    /// A user's network; None: there is none.
    #[must_use]
    pub fn get(&self, uid: u32) -> Option<&Held> {
        self.held.get(&uid)
    }

    /// All networks, by UID.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Held)> {
        self.held.iter().map(|(uid, held)| (*uid, held))
    }

    /// The number of networks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are no networks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Adds a lease. For a user without a network, `network` makes it from the lowest free lease number.
    ///
    /// # Errors
    /// The user can have no network, another user has its VNI, or no lease number is free. Nothing has changed.
    pub fn attach(
        &mut self,
        uid: u32,
        lease: Lease,
        now: Duration,
        network: impl FnOnce(u32) -> Result<Network, NoVni>,
    ) -> Result<Attached, LeaseError> {
        if let Some(held) = self.held.get_mut(&uid) {
            held.leases.insert(lease);
            held.last = now;
            let network = held.network.clone();
            return Ok(if std::mem::take(&mut held.leaving) {
                Attached::New(network)
            } else {
                Attached::Known(network)
            });
        }
        let network = network(self.free().ok_or(LeaseError::Full(self.slots))?)?;
        if let Some(other) = self.held.values().find(|held| held.network.vni == network.vni) {
            let (other, vni) = (other.network.uid, network.vni.get());
            return Err(LeaseError::Collision { uid, other, vni });
        }
        let held = Held {
            network: network.clone(),
            leases: BTreeSet::from([lease]),
            last: now,
            leaving: false,
            received: 0,
        };
        self.held.insert(uid, held);
        Ok(Attached::New(network))
    }

    /// Takes over a network of the kernel, without a lease. False: its user has a network, or its number or VNI is
    /// taken.
    #[must_use]
    pub fn adopt(&mut self, network: Network, now: Duration) -> bool {
        let taken = |held: &Held| held.network.slot == network.slot || held.network.vni == network.vni;
        if self.held.contains_key(&network.uid) || self.held.values().any(taken) {
            return false;
        }
        let uid = network.uid;
        self.held
            .insert(uid, Held { network, leases: BTreeSet::new(), last: now, leaving: false, received: 0 });
        true
    }

    /// Ends a lease. False: there is no such lease.
    pub fn detach(&mut self, uid: u32, lease: &Lease, now: Duration) -> bool {
        let Some(held) = self.held.get_mut(&uid) else { return false };
        let ended = held.leases.remove(lease);
        if ended {
            held.last = now;
        }
        ended
    }

    /// Sets whether a user may reach beyond the underlay's subnets. Returns the network if that has changed it.
    pub fn set_off_subnet(&mut self, uid: u32, allows: bool) -> Option<Network> {
        let held = self.held.get_mut(&uid).filter(|held| held.network.off_subnet != allows)?;
        held.network.off_subnet = allows;
        (!held.leaving).then(|| held.network.clone())
    }

    /// Ends the leases for which `which` is true, and returns them.
    pub fn end(&mut self, now: Duration, mut which: impl FnMut(u32, &Lease) -> bool) -> Vec<(u32, Lease)> {
        let mut ended = Vec::new();
        for (&uid, held) in &mut self.held {
            let before = ended.len();
            held.leases.retain(|lease| {
                let ends = which(uid, lease);
                if ends {
                    ended.push((uid, lease.clone()));
                }
                !ends
            });
            if ended.len() > before {
                held.last = now;
            }
        }
        ended
    }

    /// The processes that hold leases.
    #[must_use]
    pub fn holders(&self) -> BTreeSet<Process> {
        self.held.values().flat_map(|held| &held.leases).filter_map(|lease| lease.holder).collect()
    }

    /// The users whose networks can be removed: no lease has kept them for `linger`, or a teardown has left something.
    #[must_use]
    pub fn due(&self, now: Duration, linger: Duration) -> BTreeSet<u32> {
        let over = |held: &Held| held.leaving || now >= held.end(linger);
        self.iter().filter(|(_, held)| !held.is_kept() && over(held)).map(|(uid, _)| uid).collect()
    }

    /// When [`Leases::due`] returns a user next, if nothing changes; None: never.
    #[must_use]
    pub fn next_due(&self, linger: Duration) -> Option<Duration> {
        self.held.values().filter(|held| !held.is_kept()).map(|held| held.end(linger)).min()
    }

    /// Records how many packets a network has received so far. If peers made it, new ones restart its linger time.
    pub fn received(&mut self, uid: u32, packets: u64, now: Duration) {
        if let Some(held) = self.held.get_mut(&uid)
            && std::mem::replace(&mut held.received, packets) != packets
            && held.is_made_by_peers()
        {
            held.last = now;
        }
    }

    /// Restarts a network's linger time: its user has processes, though no lease.
    pub fn in_use(&mut self, uid: u32, now: Duration) {
        if let Some(held) = self.held.get_mut(&uid) {
            held.last = now;
        }
    }

    /// Marks a network whose teardown begins. It keeps its lease number, and an attach from now on makes it again.
    pub fn leave(&mut self, uid: u32) {
        if let Some(held) = self.held.get_mut(&uid) {
            held.leaving = true;
        }
    }

    /// Drops a network of which nothing is left, with its leases.
    pub fn remove(&mut self, uid: u32) -> Option<Held> {
        self.held.remove(&uid)
    }

    /// The lowest free lease number.
    fn free(&self) -> Option<u32> {
        let used: BTreeSet<u32> = self.held.values().map(|held| held.network.slot).collect();
        let lowest = (0..).zip(&used).find(|(free, used)| free != *used);
        let free = lowest.map_or(u32::try_from(used.len()).ok()?, |(free, _)| free);
        (free < self.slots).then_some(free)
    }
}
