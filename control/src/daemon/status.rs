//! How this node is doing.

use super::networks::Networks;
use crate::feed;
use crate::message::{NicState, Status};
use crate::network::{DataPath, Nic};
use uvn_wire::cgroup::Verdict;

impl Networks {
    /// For `uvn status`.
    pub(super) fn status(&mut self) -> Status {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.peers_fault.clone());
        warnings.extend(self.peers.complaint());
        let mut nics = Vec::new();
        for nic in self.node.nics.clone() {
            let engine =
                self.feeds.iter_mut().find(|feed| feed.nic().name == nic.name).map(feed::Feed::status);
            if let Some(engine) = &engine {
                for (vni, fault) in &engine.faults {
                    warnings.push(format!("network {vni} on {}: {fault}", nic.name));
                }
            }
            nics.push(state(&nic, engine));
        }
        for underlay in self.config.underlays.iter().enumerate() {
            let (slot, underlay) = underlay;
            if nics.len() < self.config.underlays.len()
                && self.node.nics.iter().all(|nic| usize::from(nic.slot) != slot)
            {
                let subnets: Vec<String> = underlay.subnets.iter().map(ToString::to_string).collect();
                warnings.push(format!("no NIC has an address in {}", subnets.join(", ")));
            }
        }
        for (uid, fault) in &self.faults {
            warnings.push(format!("network of user {uid}: {fault}"));
        }
        if !self.binding.is_attached() {
            warnings.push("the socket programs are not attached: restart uvnd".into());
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            config: self.file.display().to_string(),
            nics,
            networks: self.leases.len(),
            leases: self.leases.iter().map(|(_, held)| held.leases.len()).sum(),
            verdicts: self.verdicts(),
            warnings,
        }
    }

    fn verdicts(&self) -> Vec<(String, u64)> {
        let counters = self.binding.counters().unwrap_or_default();
        Verdict::ALL
            .into_iter()
            .zip(counters)
            .map(|(verdict, count)| (verdict.name().into(), count))
            .collect()
    }
}

fn state(nic: &Nic, engine: Option<feed::Status>) -> NicState {
    NicState {
        name: nic.name.clone(),
        up: nic.up,
        mtu: nic.mtu,
        addresses: nic.addresses.clone(),
        vteps: nic.vteps(),
        port: nic.port,
        path: match nic.path {
            DataPath::Engine => "engine".into(),
            DataPath::Kernel => "kernel".into(),
        },
        reason: nic.reason.clone(),
        engine,
    }
}
