//! Follows changes: of the node, of the configuration, of time.

use super::members::Members;
use super::networks::{ASK, Networks, called_back, devices, items};
use crate::binding::policy::{policy, slurm_user};
use crate::config::{Config, OffSubnet};
use crate::lockdown;
use crate::netlink::Changes;
use crate::network::{Network, Nic};
use crate::peers;
use crate::plan::{self, Step};
use crate::rdma;
use std::time::Instant;
use uvn_api::protocol::{Code, Failure};
use uvn_api::toml_file::ConfigError;
use uvn_api::uvnd::finding::{Id, few};

impl Networks {
    /// Follows what has changed in the kernel.
    pub(super) fn follow(&mut self, changes: &Changes) {
        if changes.overflow || changes.rules {
            self.reconcile();
            return;
        }
        if changes.node {
            let before = self.node.clone();
            self.look();
            if self.node != before {
                tracing::info!("the node's NICs, addresses or routes have changed");
                self.reconcile();
                return;
            }
        }
        if changes.firewall {
            self.settle();
        }
        let slot_of = |network: &Network| changes.slots.contains(&network.slot);
        for network in self.wanted() {
            if changes.uids.contains(&network.uid) || slot_of(&network) {
                self.mend(&network);
            }
        }
    }

    /// Restores one network: its objects in the kernel, its data planes, its binding.
    pub(super) fn mend(&mut self, network: &Network) {
        let uid = network.uid;
        match self.bring(network, &self.items(network)) {
            Ok(steps) if steps.is_empty() => return,
            Ok(steps) => {
                let text = "another program changed this user's network; uvnd put it right";
                tracing::warn!(uid, steps = steps.len(), first = %steps[0], "{text}");
            }
            Err(error) => self.fault(uid, error.to_string()),
        }
        for feed in &mut self.feeds {
            if let Err(error) = feed.add(network) {
                tracing::error!(uid, %error, "cannot give the network to its data plane");
            }
        }
        self.bind_all();
    }

    /// Drives the data planes. Makes a network for a peer or a newcomer, unless a request of root waits.
    pub(super) fn turn(&mut self, now: Instant, root_waits: bool) {
        for feed in &mut self.feeds {
            feed.turn(now);
        }
        if now >= self.ask {
            self.ask = now + ASK;
            self.ask_unknown();
        }
        if !root_waits {
            self.make_wanted(now);
            self.receive_newcomer();
        }
    }

    /// When [`Networks::turn`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        if !self.newcomers.is_empty() {
            return Some(Instant::now());
        }
        let wanted = (!self.wanted_by_peers.is_empty()).then(|| self.demand_rest.max(self.ask));
        self.feeds.iter().map(|feed| feed.due().min(self.ask)).chain(wanted).min()
    }

    /// Does what depends on time, once a second.
    pub(super) fn tick(&mut self, now: Instant) {
        self.hold_programs();
        if rdma::denied(&self.config) != self.binding.policy().denied {
            self.keep_policy();
        }
        self.tell_refused(now);
        self.expire();
        self.learn_members(now);
        self.directory.turn(now);
        let other_nodes = self.learn_peers();
        let faulty = !self.faults.is_empty() || self.firewall_fault.is_some();
        if other_nodes || now >= self.resync || (now >= self.retry && faulty) {
            self.reap();
            if self.peers_fault.is_some() {
                // From the same slurm.conf.
                self.slurm_user = slurm_user(&self.config);
                self.list_peers();
            }
            self.reconcile();
        }
    }

    /// Attaches the socket programs again if their pins are gone. Their maps may be gone as well.
    fn hold_programs(&mut self) {
        if self.binding.is_attached() {
            return;
        }
        match self.binding.set_policy(&self.policy()) {
            Ok(()) => {
                tracing::warn!("the socket programs had been detached; uvnd attached them again");
                self.bind_all();
            }
            Err(error) => {
                tracing::error!(%error, "cannot attach the socket programs; users are not isolated")
            }
        }
    }

    /// Asks the user database about all users again. Until it answers, each keeps what the user has if the policy is the
    /// former one, and reaches nothing off-subnet under another one.
    pub(super) fn ask_for_members(&mut self, policy: OffSubnet, is_former: bool) {
        if policy != *self.members.policy() {
            self.members = Members::new(policy);
        }
        let users: Vec<u32> = self.leases.iter().map(|(uid, _)| uid).collect();
        for uid in users {
            let of_all = self.members.ask(uid, !is_former);
            if let Some(allows) = of_all.or((!is_former).then_some(false)) {
                let _reconciled_later = self.leases.set_off_subnet(uid, allows);
            }
        }
    }

    /// Takes over what the user database has said meanwhile. The data planes need not know.
    fn learn_members(&mut self, now: Instant) {
        /// The most networks that are changed one by one: a reconcile of all takes about as long as so many.
        const FEW: usize = 8;

        let answers = self.members.turn(now).into_iter();
        let changed: Vec<Network> =
            answers.filter_map(|(uid, allows)| self.leases.set_off_subnet(uid, allows)).collect();
        if changed.is_empty() {
            return;
        }
        self.save();
        if changed.len() > FEW {
            self.reconcile();
            return;
        }
        for network in changed {
            let brought = self.bring(&network, &self.items(&network)).map_err(|error| error.to_string());
            let bound = brought.and_then(|_| match devices(&self.node, &network) {
                Some(devices) => self.binding.bind(network.uid, &devices).map_err(|error| error.to_string()),
                None => Err("its devices are gone".into()),
            });
            if let Err(error) = bound {
                self.faults.insert(network.uid, error);
            }
        }
    }

    /// Lists the nodes that run uvn, and starts to look up their addresses. If that fails, the former list stays.
    pub(super) fn list_peers(&mut self) {
        let listed = self.directory.follow(&self.config.peers);
        self.peers_fault = listed.err().map(|error| error.to_string());
        self.learn_peers();
    }

    /// Takes over the nodes that the directory knows. True: they have changed.
    pub(super) fn learn_peers(&mut self) -> bool {
        let before = std::mem::replace(&mut self.peers, self.directory.peers());
        let changed = (&before.ranges, &before.nodes) != (&self.peers.ranges, &self.peers.nodes);
        if changed && let Err(error) = self.directory.save() {
            self.warn(Id::File, format!("{}: cannot save the addresses of nodes: {error}", peers::KNOWN));
        }
        changed
    }

    /// Reads the configuration again and puts it in force.
    ///
    /// # Errors
    /// It is wrong, or cannot be put in force; or users would lose an endpoint, and `force` is not set. The old
    /// configuration stays.
    pub(super) fn reload(&mut self, dry_run: bool, force: bool) -> Result<Vec<Step>, Failure> {
        let invalid = |error: ConfigError| Failure::new(Code::Invalid, error.to_string());
        let config = Config::load(&self.file).map_err(invalid)?;
        self.keep_off(&config)?;
        if dry_run {
            return self.compare(&config);
        }
        if !force {
            self.spare(&config)?;
        }
        self.hold_programs();
        let srun = called_back(&config);
        let newcomers = lockdown::newcomers(&config);
        let slurm_user = slurm_user(&config);
        let new = policy(&config, &srun.known, slurm_user, !newcomers.is_empty());
        if new != *self.binding.policy() {
            self.binding.set_policy(&new).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        }
        (self.srun, self.slurm_user, self.newcomers) = (srun, slurm_user, newcomers);
        self.leases.set_slots(config.nat.slots());
        let is_former = config.off_subnet == self.config.off_subnet;
        self.ask_for_members(config.off_subnet.clone(), is_former);
        let relay = config.relay != self.config.relay;
        self.config = config;
        self.demoted.forget(force);
        self.keep_config();
        if relay {
            self.start_relay();
        }
        self.list_peers();
        Ok(self.reconcile())
    }

    /// Refuses a changed NAT pool that something else uses.
    fn keep_off(&self, config: &Config) -> Result<(), Failure> {
        if config.nat == self.config.nat {
            return Ok(());
        }
        match self.netlink.pool_in_use(config) {
            Ok(None) => Ok(()),
            Ok(Some(in_use)) => Err(Failure::new(Code::Invalid, in_use.to_string())),
            Err(error) => Err(Failure::new(Code::Failed, error.to_string())),
        }
    }

    /// Refuses a configuration that lacks a NIC on which users have endpoints: a typo must not cut them off.
    fn spare(&self, config: &Config) -> Result<(), Failure> {
        let users: Vec<String> = self.wanted().iter().map(|network| network.uid.to_string()).collect();
        let node =
            self.netlink.node(config).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        let stays = |nic: &Nic| node.nics.iter().any(|new| new.name == nic.name && !new.vteps().is_empty());
        let goes = self.node.nics.iter().find(|nic| !nic.vteps().is_empty() && !stays(nic));
        let Some(nic) = goes.filter(|_| !users.is_empty()) else { return Ok(()) };
        let refusal = format!(
            "it would take the endpoints on {} from users {}: the old configuration stays in force; correct `subnets` \
             and `nic`, or use --force",
            nic.name,
            few(&users)
        );
        Err(Failure::new(Code::Invalid, refusal))
    }

    /// The steps that a configuration would need.
    fn compare(&self, config: &Config) -> Result<Vec<Step>, Failure> {
        let failed = |error: String| Failure::new(Code::Failed, error);
        let node = self.netlink.node(config).map_err(|error| failed(error.to_string()))?;
        let mut wanted = plan::node(&node);
        for network in self.wanted() {
            wanted.extend(items(&node, &self.peers, &network));
        }
        let observed = self.netlink.observe().map_err(|error| failed(error.to_string()))?;
        Ok(plan::diff(&wanted, &observed))
    }
}
