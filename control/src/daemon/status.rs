//! How this node is doing.

use super::networks::Networks;
use crate::config::Mode;
use crate::feed;
use crate::netlink;
use crate::network::{DataPath, Nic};
use uvn_api::uvnd::finding::{Finding, Id, LOG};
use uvn_api::uvnd::status::{DataPlane, NicState, Status};
use uvn_wire::cgroup::Verdict;

/// The remedy for names without an address.
const NAMES: &str = "give them one in DNS or /etc/hosts; uvnd asks again every 10 s";
/// The remedy where programs are not asked about Unix sockets.
const MODULES: &str = "boot with the list of /sys/kernel/security/lsm and `bpf`: `lsm=landlock,...,bpf`";
/// The remedy for what stands in the way of uvnd alone.
const AGAIN: &str = "mend that; uvnd tries again by itself within half a minute";

impl Networks {
    /// For `uvn status`.
    pub(super) fn status(&mut self) -> Status {
        let mut findings = self.findings.clone();
        let unlisted = self.peers_fault.iter().map(|what| Finding::fault(Id::Peers, what, AGAIN));
        let unresolved = self.peers.complaint();
        findings.extend(unlisted.chain(unresolved.map(|what| Finding::fault(Id::Peers, what, NAMES))));
        let firewall = self.firewall_fault.iter();
        findings.extend(firewall.map(|what| Finding::fault(Id::Firewall, what, AGAIN)));
        let mut nics = Vec::new();
        for nic in self.node.nics.clone() {
            let engine =
                self.feeds.iter_mut().find(|feed| feed.nic().name == nic.name).map(feed::Feed::status);
            for (vni, fault) in engine.iter().flat_map(|engine| &engine.faults) {
                let what = format!("network {vni} on {}: {fault}", nic.name);
                findings.push(Finding::fault(Id::Network, what, LOG));
            }
            nics.push(state(&nic, engine));
        }
        findings.extend(self.without_nic());
        for (uid, fault) in &self.faults {
            findings.push(Finding::fault(Id::Network, format!("network of user {uid}: {fault}"), LOG));
        }
        if self.config.mode == Mode::Observe {
            let what = "uvn observes: users are in no network of their own, and nobody is refused";
            findings.push(Finding::warning(
                Id::Observes,
                what,
                "`mode = \"enforce\"` when all users get networks",
            ));
        } else if self.observes() {
            let left = self.newcomers.len();
            let what = format!("{left} users who run are to get networks first: nobody is refused yet");
            findings.push(Finding::warning(Id::Observes, what, "wait a moment"));
        }
        if let Some(why) = self.binding.without_unix() {
            let what = format!("users reach each other's abstract Unix sockets: {why}");
            findings.push(Finding::warning(Id::Abstract, what, MODULES));
        }
        if !self.binding.is_attached() {
            findings.push(Finding::fault(
                Id::Programs,
                "the socket programs are not attached",
                "restart uvnd",
            ));
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            config: self.file.display().to_string(),
            nics,
            networks: self.leases.len(),
            leases: self.leases.iter().map(|(_, held)| held.leases.len()).sum(),
            verdicts: self.verdicts(),
            observes: self.observes(),
            refused: self.refused(),
            findings,
        }
    }

    /// The underlays without a NIC.
    fn without_nic(&self) -> impl Iterator<Item = Finding> {
        let has_nic = |slot: usize| self.node.nics.iter().any(|nic| usize::from(nic.slot) == slot);
        let underlays = self.config.underlays.iter().enumerate();
        underlays.filter(move |(slot, _)| !has_nic(*slot)).map(|(_, underlay)| {
            let subnets: Vec<String> = underlay.subnets.iter().map(ToString::to_string).collect();
            let subnets = subnets.join(", ");
            let what = match &underlay.nic {
                Some(nic) if netlink::index(nic).is_err() => format!("there is no NIC {nic}"),
                Some(nic) => format!("{nic} has no address in {subnets}"),
                None => format!("no NIC has an address in {subnets}"),
            };
            Finding::fault(
                Id::NicMissing,
                what,
                "correct `nic` and `subnets` of the [[underlay]], or the NIC",
            )
        })
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

fn state(nic: &Nic, engine: Option<DataPlane>) -> NicState {
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
