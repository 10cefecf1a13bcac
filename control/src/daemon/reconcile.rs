//! Reconcile: reads the node, and changes what differs from what it must be. Goes on after errors.

use super::networks::{Networks, RESYNC, RETRY, ROUNDS, called_back, devices};
use crate::binding::policy::policy;
use crate::firewall;
use crate::netlink::NetlinkError;
use crate::network::{DataPath, Network, Nic};
use crate::plan::{self, Item, Step};
use crate::sysctl;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;
use uvn_api::uvnd::finding::Id;
use uvn_dataplane::port::link;

/// A step that the kernel refused.
struct Refused {
    step: Step,
    error: NetlinkError,
}

impl Networks {
    /// Brings everything to what it must be, and goes on after errors. Returns the steps taken in the kernel.
    pub(super) fn reconcile(&mut self) -> Vec<Step> {
        self.resync = Instant::now() + RESYNC;
        self.retry = Instant::now() + RETRY;
        self.findings.clear();
        self.faults.clear();
        self.look();
        self.end_feeds();
        self.settle();
        self.keep_policy();
        self.unbind_strangers();
        let steps = self.bring_all();
        // After the devices exist, so that data planes can open them at once.
        self.drive_feeds();
        self.bind_all();
        steps
    }

    /// Reads the node: NICs, addresses, routes.
    pub(super) fn look(&mut self) {
        match self.netlink.node(&self.config) {
            Ok(node) => self.node = node,
            Err(error) => self.warn(Id::Kernel, error),
        }
        let kernels: Vec<Option<String>> = self.node.nics.iter().map(|nic| self.kernels(nic)).collect();
        for (nic, reason) in self.node.nics.iter_mut().zip(kernels) {
            if let Some(reason) = reason {
                (nic.path, nic.reason) = (DataPath::Kernel, reason);
            }
        }
    }

    /// Sets kernel settings and the packet filter, and frees ports that kernel VXLAN needs.
    pub(super) fn settle(&mut self) {
        self.free_ports();
        let record = Path::new(sysctl::RECORD);
        if let Err(error) = sysctl::apply(&self.node, record) {
            self.warn(Id::Setting, error);
        }
        let opened = sysctl::opened(&self.node, record);
        let ruleset =
            firewall::ruleset(&self.config, &self.node, &self.peers, &opened, sysctl::flows_of_one());
        let applied = firewall::is_applied(&ruleset).and_then(|applied| match applied {
            true => Ok(()),
            false => firewall::apply(&ruleset),
        });
        self.firewall_fault = applied.and_then(|()| self.number()).err().map(|error| error.to_string());
        if let Some(fault) = &self.firewall_fault {
            tracing::error!("nobody gets a network until the packet filter is in place: {fault}");
        }
    }

    /// Updates the socket programs' policy if it has changed: an upgrade of Slurm replaces its programs' files, and a
    /// driver gets its number when it is loaded.
    pub(super) fn keep_policy(&mut self) {
        let srun = called_back(&self.config);
        let policy = policy(&self.config, &srun.known, self.slurm_user, self.observes());
        if policy != *self.binding.policy() {
            match self.binding.set_policy(&policy) {
                Ok(()) => tracing::info!("Slurm's programs, or the numbers of RDMA drivers, have changed"),
                Err(error) => return self.warn(Id::Programs, error),
            }
        }
        for problem in &srun.problems {
            self.warn(Id::Srun, problem);
        }
        self.srun = srun;
    }

    /// Deletes what a killed data plane has left on a NIC that kernel VXLAN carries now.
    fn free_ports(&mut self) {
        let kernel = |nic: &Nic| nic.path == DataPath::Kernel;
        if !self.node.nics.iter().any(kernel) {
            return;
        }
        for (index, device) in self.netlink.left_for_gro().unwrap_or_default() {
            let is_in_the_way = self.node.nics.iter().any(|nic| kernel(nic) && nic.index == index);
            if is_in_the_way && let Err(error) = link::delete(&device) {
                self.warn(Id::Kernel, error);
            }
        }
    }

    /// Unbinds users without a lease.
    fn unbind_strangers(&mut self) {
        for uid in self.binding.bound().into_keys() {
            if self.leases.get(uid).is_none_or(|held| held.leaving)
                && let Err(error) = self.binding.unbind(uid)
            {
                self.warn(Id::Programs, error);
            }
        }
    }

    /// Brings the kernel's objects to what they must be: rules, and every network.
    pub(super) fn bring_all(&mut self) -> Vec<Step> {
        match self.netlink.give_way() {
            Ok(moved) => moved.iter().for_each(|rule| {
                tracing::info!(rule, "moved a rule that was added without a preference behind uvn's")
            }),
            Err(error) => self.warn(Id::Kernel, error),
        }
        let mut wanted = plan::node(&self.node);
        let mut networks = Vec::new();
        for network in self.wanted() {
            let items = self.items(&network);
            wanted.extend(items.iter().cloned());
            networks.push((network.uid, items));
        }
        let mut taken = Vec::new();
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let observed = match self.netlink.observe() {
                Ok(observed) => observed,
                Err(error) => {
                    self.warn(Id::Kernel, error);
                    break;
                }
            };
            let steps = plan::diff(&wanted, &observed);
            if steps.is_empty() {
                return taken;
            }
            refused.clear();
            for step in steps {
                if let Err(error) = self.netlink.apply(&step) {
                    refused.push(Refused { step: step.clone(), error });
                }
                taken.push(step);
            }
        }
        self.blame(&wanted, &networks, &refused);
        taken
    }

    /// Records a fault for each network that lacks something, and a finding for what could not be deleted.
    fn blame(&mut self, wanted: &[Item], networks: &[(u32, Vec<Item>)], refused: &[Refused]) {
        let reason = |step: &Step| {
            let refused = refused.iter().find(|refused| refused.step == *step)?;
            Some(refused.error.to_string())
        };
        let observed: HashSet<Item> = self.netlink.observe().unwrap_or_default().into_iter().collect();
        for (uid, items) in networks {
            let Some(missing) = items.iter().find(|item| !observed.contains(item)) else { continue };
            let step = Step::Create(missing.clone());
            let reason = reason(&step);
            self.fault(
                *uid,
                reason.unwrap_or_else(|| format!("{step}: it does not stay; another program changes it")),
            );
        }
        for step in plan::diff(wanted, &observed.into_iter().collect::<Vec<_>>()) {
            if let Step::Delete(_) = step {
                self.warn(Id::Kernel, reason(&step).unwrap_or_else(|| step.to_string()));
            }
        }
    }

    /// Binds the users of complete networks, and unbinds all others.
    pub(super) fn bind_all(&mut self) {
        let bound = self.binding.bound();
        for network in self.wanted() {
            let uid = network.uid;
            let changed = match devices(&self.node, &network) {
                Some(devices) if bound.get(&uid) == Some(&devices) => Ok(()),
                Some(devices) if !self.faults.contains_key(&uid) => self.binding.bind(uid, &devices),
                // The network is not complete: the user's sockets are refused until it is.
                _ => self.binding.unbind(uid),
            };
            if let Err(error) = changed {
                self.fault(uid, error.to_string());
            }
            self.relay_to(&network);
        }
    }

    /// Serves loopback services inside a network, or records why that fails.
    pub(super) fn relay_to(&mut self, network: &Network) {
        if let Some(relay) = &mut self.relay
            && let Err(error) = relay.add(network.uid, &network.vrf())
        {
            self.warn(Id::Relay, error);
        }
    }
}
