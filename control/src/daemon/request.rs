//! Answers requests: root may ask anything, other users may ping and see their own network.

use super::networks::{AttachError, Networks};
use crate::lease::{self, Held, LeaseError};
use crate::plan::Step;
use std::time::Duration;
use uvn_api::protocol::{Code, Failure, fitting};
use uvn_api::server::Peer;
use uvn_api::uvnd::message::{self, NetworkState, Place, Request};
use uvn_api::uvnd::status::Reply;

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Failure {
        let code = match &error {
            AttachError::Lease(LeaseError::NoVni(_)) | AttachError::Holder(_) => Code::Invalid,
            _ => Code::Failed,
        };
        Failure::new(code, error.to_string())
    }
}

impl Networks {
    /// Does what a request asks, if the peer may ask it.
    pub(super) fn answer(&mut self, request: Request, peer: Peer) -> Result<Reply, Failure> {
        let for_everybody = matches!(request, Request::Ping | Request::List { .. });
        if peer.uid != 0 && !for_everybody {
            return Err(Failure::new(Code::Failed, "only root may do that"));
        }
        match request {
            Request::Ping => Ok(Reply::Pong),
            Request::Attach { uid, claim, dry_run } => {
                let (outcome, steps) = self.attach(uid, &claim, dry_run)?;
                Ok(Reply::Attached { outcome, steps: in_words(&steps) })
            }
            Request::Detach { uid, what, dry_run } => {
                let released = self.release(uid, &what, dry_run).ok_or_else(|| {
                    Failure::new(Code::NotFound, format!("user {uid} has no such lease: see `uvn list`"))
                })?;
                match released.errors.first() {
                    None => Ok(Reply::Detached { leases: released.leases, steps: in_words(&released.steps) }),
                    Some(_) => Err(Failure::new(Code::Failed, released.errors.join("; "))),
                }
            }
            Request::List { from } => Ok(self.list(from, peer)),
            Request::Status => Ok(Reply::Status(Box::new(self.status(Place::Nic { slot: 0 })))),
            Request::StatusFrom(place) => Ok(Reply::Status(Box::new(self.status(place)))),
            Request::Reload { dry_run, force } => {
                let steps = self.reload(dry_run, force)?;
                Ok(Reply::Steps { count: steps.len(), steps: in_words(&steps) })
            }
            Request::Stop => Ok(Reply::Done),
        }
    }

    /// A page of networks, from UID `from` on; users other than root see their own.
    fn list(&self, from: u32, peer: Peer) -> Reply {
        let visible = |uid: u32| uid >= from && (peer.uid == 0 || peer.uid == uid);
        let held: Vec<(u32, &Held)> = self.leases.iter().filter(|(uid, _)| visible(*uid)).collect();
        let count = fitting(held.iter().map(|(_, held)| self.state(held))).max(1);
        let next = held.get(count).map(|(uid, _)| *uid);
        Reply::Networks {
            networks: held.iter().take(count).map(|(_, held)| self.state(held)).collect(),
            next,
        }
    }

    fn state(&self, held: &Held) -> NetworkState {
        let network = &held.network;
        let linger = Duration::from_secs(self.config.linger_s.into());
        let end = held.last.saturating_add(linger);
        let leases = held.leases.iter().map(|lease| message::Lease::Held {
            kind: lease.kind.into(),
            name: lease.name.clone(),
            pid: lease.holder.map(|holder| holder.pid),
        });
        NetworkState {
            uid: network.uid,
            vni: network.vni.get(),
            vrf: network.vrf(),
            table: network.table(),
            off_subnet: network.off_subnet,
            leases: leases.collect(),
            goes_in: (!held.is_kept()).then(|| end.saturating_sub(lease::now()).as_secs()),
            fault: self.faults.get(&network.uid).cloned(),
        }
    }
}

/// The steps as texts, as many as one packet holds.
fn in_words(steps: &[Step]) -> Vec<String> {
    let mut words: Vec<String> = steps.iter().map(Step::to_string).collect();
    words.truncate(fitting(&words));
    words
}
