//! Attach and detach: leases, and the networks that are made and removed with them.

use super::networks::{AttachError, Networks, ROUNDS, STATE, devices};
use crate::demand::{Refusal, received};
use crate::feed::Feed;
use crate::lease::{self, Attached, Kind, Lease, Process, process, state};
use crate::netfilter;
use crate::network::Network;
use crate::plan::{self, Item, Step};
use mio::Token;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use uvn_api::uvnd::finding::Id;
use uvn_api::uvnd::message::{Claim, Outcome, Release};
use uvn_wire::vxlan::Vni;

/// How long one turn may remove networks, since logins wait meanwhile.
const TEARDOWN: Duration = Duration::from_millis(200);
/// How long no network is made for a peer after one was, as a multiple of the time it took.
const DEMAND_REST: u32 = 9;
/// Networks that peers want and that wait to be looked at, at most.
const MAX_WANTED: usize = 1024;

/// The result of ending leases.
#[derive(Debug, Default)]
pub struct Released {
    /// The number of leases that remain.
    pub leases: usize,
    /// The steps taken in the kernel.
    pub steps: Vec<Step>,
    /// What could not be removed, as texts.
    pub errors: Vec<String>,
}

impl Networks {
    /// Adds a lease, and makes the network if it does not exist.
    ///
    /// # Errors
    /// The network cannot be made. The lease is not added then, and what was made is removed.
    pub fn attach(
        &mut self,
        uid: u32,
        claim: &Claim,
        dry_run: bool,
    ) -> Result<(Outcome, Vec<Step>), AttachError> {
        if !self.config.is_policed(uid) {
            return Ok((Outcome::NotPoliced, Vec::new()));
        }
        let lease = lease_of(claim)?;
        // Nobody is asked about a user who has a network.
        let is_known = self.leases.get(uid).is_some_and(|held| !held.leaving);
        let off_subnet = !is_known && self.members.allows(uid).unwrap_or(false);
        if dry_run {
            return self.rehearse(uid, lease, off_subnet);
        }
        self.grant(uid, lease, off_subnet)
    }

    /// See [`Networks::attach`].
    fn grant(
        &mut self,
        uid: u32,
        lease: Lease,
        off_subnet: bool,
    ) -> Result<(Outcome, Vec<Step>), AttachError> {
        let config = &self.config;
        let had = self.leases.get(uid).is_some_and(|held| held.leases.contains(&lease));
        let network = |slot| config.network_of(uid, slot, off_subnet);
        let attached = self.leases.attach(uid, lease.clone(), lease::now(), network)?;
        let result = self.hold(&lease, &attached).and_then(|()| match &attached {
            Attached::Known(_) if !self.faults.contains_key(&uid) => Ok((Outcome::Known, Vec::new())),
            Attached::Known(network) | Attached::New(network) => {
                let steps = self.make(network)?;
                self.faults.remove(&uid);
                Ok((Outcome::Made, steps))
            }
        });
        if let Err(error) = &result {
            tracing::error!(uid, %error, "cannot make the user's network");
            if !had {
                self.leases.detach(uid, &lease, lease::now());
            }
            if let Attached::New(_) = attached {
                self.leases.leave(uid);
                for error in self.teardown(uid).errors {
                    tracing::error!(uid, "{error}");
                }
            }
            self.save();
        }
        result
    }

    /// Saves a new lease, and watches its holder. If the file cannot be written, no network is made; existing networks
    /// stay while their users have processes, whatever the file says.
    fn hold(&mut self, lease: &Lease, attached: &Attached) -> Result<(), AttachError> {
        match attached {
            Attached::New(_) => state::save(&self.leases, Path::new(STATE))?,
            Attached::Known(_) => self.save(),
        }
        if let Some(process) = lease.holder {
            self.holders.watch(process).map_err(|_| AttachError::Holder(process.pid))?;
        }
        Ok(())
    }

    /// Makes a network: the kernel's objects, the data planes, and last the binding of sockets.
    fn make(&mut self, network: &Network) -> Result<Vec<Step>, AttachError> {
        if self.node.nics.iter().all(|nic| nic.vteps().is_empty()) {
            return Err(AttachError::NoNic);
        }
        if self.firewall_fault.is_some() {
            self.settle();
        }
        if let Some(fault) = &self.firewall_fault {
            return Err(AttachError::Firewall(fault.clone()));
        }
        if network.number() >= self.numbered {
            self.number().map_err(|error| AttachError::Firewall(error.to_string()))?;
        }
        if !self.binding.is_bound(network.uid) {
            netfilter::forget_flows(network.number()).map_err(AttachError::Flows)?;
        }
        let items = self.items(network);
        let steps = self.bring(network, &items)?;
        for feed in &mut self.feeds {
            feed.add(network)?;
        }
        let devices = devices(&self.node, network).ok_or(AttachError::Gone(network.uid))?;
        self.binding.bind(network.uid, &devices)?;
        if steps.iter().any(|step| matches!(step, Step::Create(Item::Vrf { .. }))) {
            // The VRF is new, and the relay's sockets are bound to the old one.
            self.relay_no_more(network.uid);
        }
        self.relay_to(network);
        tracing::info!(network.uid, vni = %network.vni, steps = steps.len(), "network made");
        Ok(steps)
    }

    /// Brings the kernel's objects of one network to `wanted`.
    pub(super) fn bring(&self, network: &Network, wanted: &[Item]) -> Result<Vec<Step>, AttachError> {
        let mut taken = Vec::new();
        for _ in 0..ROUNDS {
            let steps = plan::diff(wanted, &self.netlink.observe_network(network)?);
            if steps.is_empty() {
                return Ok(taken);
            }
            for step in steps {
                self.netlink.apply(&step)?;
                taken.push(step);
            }
        }
        match plan::diff(wanted, &self.netlink.observe_network(network)?).first() {
            None => Ok(taken),
            Some(step) => Err(AttachError::Unstable { uid: network.uid, step: step.to_string() }),
        }
    }

    /// The outcome and the steps of an attach, without taking them.
    fn rehearse(
        &self,
        uid: u32,
        lease: Lease,
        off_subnet: bool,
    ) -> Result<(Outcome, Vec<Step>), AttachError> {
        let network = |slot| self.config.network_of(uid, slot, off_subnet);
        let attached = self.leases.clone().attach(uid, lease, lease::now(), network)?;
        let (Attached::Known(network) | Attached::New(network)) = &attached;
        let steps = plan::diff(&self.items(network), &self.netlink.observe_network(network)?);
        let outcome = if matches!(attached, Attached::New(_)) { Outcome::Made } else { Outcome::Known };
        Ok((outcome, steps))
    }

    /// Ends leases; None: the user has no such lease. With [`Release::All`] the network is removed at once; otherwise
    /// it lingers.
    pub fn release(&mut self, uid: u32, what: &Release, dry_run: bool) -> Option<Released> {
        let ends = |lease: &Lease| match what {
            Release::All => true,
            Release::Claim(claim) => is_of(lease, claim),
        };
        let held = self.leases.get(uid)?;
        let ending = held.leases.iter().filter(|lease| ends(lease)).count();
        if ending == 0 && *what != Release::All {
            return None;
        }
        let leases = held.leases.len() - ending;
        if dry_run {
            let observed = self.netlink.observe_network(&held.network).unwrap_or_default();
            let steps = if leases == 0 { plan::diff(&[], &observed) } else { Vec::new() };
            return Some(Released { leases, steps, errors: Vec::new() });
        }
        self.leases.end(lease::now(), |of, lease| of == uid && ends(lease));
        self.holders.follow(&self.leases.holders());
        let mut released = Released::default();
        if *what == Release::All {
            self.leases.leave(uid);
            self.save();
            released = self.teardown(uid);
        }
        self.save();
        Some(Released { leases, ..released })
    }

    /// Ends the leases of processes that have ended, as mio has reported by this token.
    pub fn holder_ended(&mut self, token: Token) {
        let ended = self.holders.ended(token);
        self.end_of(&ended);
    }

    /// Ends the leases of processes that are gone, and watches the others.
    pub(super) fn reap(&mut self) {
        let ended = self.holders.follow(&self.leases.holders());
        self.end_of(&ended);
    }

    fn end_of(&mut self, processes: &BTreeSet<Process>) {
        let of_those = |lease: &Lease| lease.holder.is_some_and(|holder| processes.contains(&holder));
        let ended = self.leases.end(lease::now(), |_, lease| of_those(lease));
        for (uid, lease) in &ended {
            tracing::info!(uid, kind = %lease.kind, name = lease.name, "lease ended with its process");
        }
        if !ended.is_empty() {
            self.save();
        }
    }

    /// Removes networks that no lease has kept for the linger time, whose users have no process left here, and to which
    /// the peers that had them made send no more.
    pub(super) fn expire(&mut self) {
        let linger = Duration::from_secs(self.config.linger_s.into());
        for uid in self.leases.due(lease::now(), linger) {
            let vrf = self.leases.get(uid).map(|held| held.network.vrf());
            if let Some(packets) = vrf.and_then(|vrf| received(&vrf)) {
                self.leases.received(uid, packets, lease::now());
            }
        }
        let due = self.leases.due(lease::now(), linger);
        if due.is_empty() {
            return;
        }
        let busy = process::users(|uid| due.contains(&uid));
        if let Err(error) = &busy {
            tracing::warn!(%error, "cannot list processes; networks without a lease stay");
        }
        let is_busy = |uid: &u32| busy.as_ref().map_or(true, |busy| busy.contains_key(uid));
        let end = Instant::now() + TEARDOWN;
        for uid in due {
            let leaving = self.leases.get(uid).is_some_and(|held| held.leaving);
            if is_busy(&uid) && !leaving {
                self.leases.in_use(uid, lease::now());
                continue;
            }
            if Instant::now() >= end {
                break;
            }
            self.leases.leave(uid);
            self.save();
            for error in self.teardown(uid).errors {
                self.fault(uid, error);
            }
            self.save();
        }
    }

    /// Removes a network, and goes on after an error. After an error, it keeps its lease number and is tried again.
    fn teardown(&mut self, uid: u32) -> Released {
        let mut released = Released::default();
        let Some(network) = self.leases.get(uid).map(|held| held.network.clone()) else { return released };
        // From here on the user's sockets are refused.
        let unbound = self.binding.unbind(uid);
        self.relay_no_more(uid);
        for feed in &mut self.feeds {
            feed.remove(network.vni);
        }
        for _ in 0..ROUNDS {
            released.errors.clear();
            let steps = match self.netlink.observe_network(&network) {
                Ok(observed) => plan::diff(&[], &observed),
                Err(error) => {
                    released.errors.push(error.to_string());
                    break;
                }
            };
            if steps.is_empty() {
                break;
            }
            for step in steps {
                if let Err(error) = self.netlink.apply(&step) {
                    released.errors.push(error.to_string());
                }
                released.steps.push(step);
            }
        }
        released.errors.extend(unbound.err().map(|error| error.to_string()));
        if released.errors.is_empty() {
            self.leases.remove(uid);
            self.faults.remove(&uid);
            tracing::info!(uid, vni = %network.vni, steps = released.steps.len(), "network removed");
        }
        released
    }

    fn relay_no_more(&mut self, uid: u32) {
        if let Some(relay) = &mut self.relay
            && let Err(error) = relay.remove(uid)
        {
            self.warn(Id::Relay, error);
        }
    }

    /// Asks the data planes for the networks that peers sent to.
    pub(super) fn ask_unknown(&mut self) {
        let seen = self.feeds.iter_mut().flat_map(Feed::unknown);
        let seen: Vec<_> = seen.filter_map(|seen| Some((Vni::new(seen.vni)?, seen.vtep))).collect();
        self.want(seen);
    }

    /// Reads which VNIs peers sent to over kernel VXLAN, from nftables' log.
    pub fn read_unknown(&mut self) {
        while let Some(log) = &mut self.unknown {
            match log.read() {
                Ok(seen) if seen.is_empty() => break,
                Ok(seen) => self.want(seen),
                Err(error) => {
                    tracing::warn!(%error, "cannot read which networks peers send to");
                    break;
                }
            }
        }
    }

    /// Makes one of the networks that peers want. That takes a tenth of uvnd's time at most.
    pub(super) fn make_wanted(&mut self, now: Instant) {
        if now < self.demand_rest {
            return;
        }
        let mut again = BTreeSet::new();
        while let Some((vni, vtep)) = self.wanted_by_peers.pop_first() {
            let at = lease::now();
            match self.demand.admit(&self.config, &self.leases, vni, vtep, at) {
                Ok(None) => {}
                Err(Refusal::Asked(_)) => drop(again.insert((vni, vtep))),
                Err(refusal) => tracing::debug!(%refusal, "no network is made on demand"),
                Ok(Some(uid)) => {
                    let lease = Lease { kind: Kind::Peer, name: vtep.to_string(), holder: None };
                    // Not waited for: what it will say is followed.
                    let off_subnet = self.members.ask(uid, true).unwrap_or(false);
                    if self.grant(uid, lease, off_subnet).is_err() {
                        self.demand.failed(uid, at);
                    }
                    self.demand_rest = Instant::now() + now.elapsed() * DEMAND_REST;
                    break;
                }
            }
        }
        self.wanted_by_peers.append(&mut again);
    }

    /// Remembers networks that peers want, up to [`MAX_WANTED`].
    fn want(&mut self, seen: impl IntoIterator<Item = (Vni, IpAddr)>) {
        let room = MAX_WANTED.saturating_sub(self.wanted_by_peers.len());
        self.wanted_by_peers.extend(seen.into_iter().take(room));
    }

    /// Saves the leases. After a failure uvnd goes on: an older file differs only by holders that have ended.
    pub(super) fn save(&mut self) {
        if let Err(error) = state::save(&self.leases, Path::new(STATE)) {
            self.warn(Id::File, error);
        }
    }
}

/// The lease that a claim asks for.
fn lease_of(claim: &Claim) -> Result<Lease, AttachError> {
    let holder = |pid: i32| Process::of(pid).map_err(|_| AttachError::Holder(pid));
    Ok(match claim {
        Claim::Session { pid } => {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Lease { kind: Kind::Session, name: name.trim_end().into(), holder: Some(holder(*pid)?) }
        }
        Claim::Job { job, pid } => Lease { kind: Kind::Job, name: job.clone(), holder: Some(holder(*pid)?) },
        Claim::Manual => Lease { kind: Kind::Manual, name: String::new(), holder: None },
    })
}

/// Whether a claim means a lease. A session is compared by its process: the process may have another name by now.
fn is_of(lease: &Lease, claim: &Claim) -> bool {
    let held_by = |pid: i32| lease.holder.is_some_and(|holder| holder.pid == pid);
    match claim {
        Claim::Session { pid } => lease.kind == Kind::Session && held_by(*pid),
        Claim::Job { job, pid } => lease.kind == Kind::Job && lease.name == *job && held_by(*pid),
        Claim::Manual => lease.kind == Kind::Manual,
    }
}
