//! The status of this node.

use super::networks::Networks;
use super::page::{Page, shown};
use super::refused;
use crate::config::Mode;
use crate::feed::Feed;
use crate::netlink;
use crate::network::{DataPath, Nic};
use std::time::Instant;
use uvn_api::uvnd::finding::{Finding, Id};
use uvn_api::uvnd::message::Place;
use uvn_api::uvnd::status::{Carrier, DataPlane, NicState, Status};
use uvn_wire::cgroup::Verdict;
use uvn_wire::vxlan::Vni;

/// The remedy for names without an address.
const NAMES: &str = "give them one in DNS or /etc/hosts; uvnd asks again every 10 s";
/// The remedy if the kernel does not ask programs about Unix sockets.
const MODULES: &str = "boot with the list of /sys/kernel/security/lsm and `bpf`: `lsm=landlock,...,bpf`";
/// The remedy for obstacles to uvnd alone.
const AGAIN: &str = "mend that; uvnd tries again by itself within half a minute";

impl Networks {
    /// Logs users who were refused sockets since the last time.
    pub(super) fn tell_refused(&mut self, now: Instant) {
        if self.refusals.is_due(now) {
            let observes = self.observes();
            self.refusals.tell(&refused::most(&self.binding), observes, now);
        }
    }

    /// A page of `uvn status`: as much as a packet holds.
    pub(super) fn status(&mut self, from: Place) -> Status {
        let head = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            config: self.file.display().to_string(),
            networks: self.leases.len(),
            leases: self.leases.iter().map(|(_, held)| held.leases.len()).sum(),
            verdicts: self.verdicts(),
            observes: self.observes(),
            refused: refused::most(&self.binding),
            ..Status::default()
        };
        let mut page = Page::new(head);
        let after = match from {
            Place::Nic { slot } => {
                for nic in self.node.nics.clone().iter().filter(|nic| nic.slot >= slot) {
                    let feed = self.feeds.iter_mut().find(|feed| feed.nic().name == nic.name);
                    if !page.add_nic(nic.slot, state(nic, feed.map(Feed::status))) {
                        return page.finish();
                    }
                }
                String::new()
            }
            Place::Finding { after } => after,
        };
        page.add_findings(after, self.problems());
        page.finish()
    }

    /// Everything that is wrong, as findings.
    fn problems(&self) -> Vec<Finding> {
        let mut findings = self.findings.clone();
        let unlisted = self.peers_fault.iter().map(|what| Finding::fault(Id::Peers, what, AGAIN));
        let unresolved = self.peers.complaint();
        findings.extend(unlisted.chain(unresolved.map(|what| Finding::fault(Id::Peers, what, NAMES))));
        let silent = self.members.complaint();
        findings.extend(
            silent.map(|what| Finding::fault(Id::Database, what, "mend LDAP, sssd or nsswitch.conf")),
        );
        let firewall = self.firewall_fault.iter();
        findings.extend(firewall.map(|what| Finding::fault(Id::Firewall, what, AGAIN)));
        for feed in &self.feeds {
            let of = |(vni, fault): (Vni, &str)| Finding::of_data_plane(&feed.nic().name, vni.get(), fault);
            findings.extend(feed.faults().map(of));
        }
        findings.extend(self.without_nic());
        findings.extend(self.faults.iter().map(|(uid, fault)| Finding::of_user(*uid, fault)));
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
        findings
    }

    /// A finding for each underlay without a NIC.
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

/// A NIC as `uvn status` shows it.
fn state(nic: &Nic, data_plane: Option<DataPlane>) -> NicState {
    /// The most addresses shown: a list of thousands would leave no room for others.
    const ADDRESSES_SHOWN: usize = 64;
    NicState {
        name: nic.name.clone(),
        up: nic.up,
        mtu: nic.mtu,
        addresses: nic.addresses.iter().copied().take(ADDRESSES_SHOWN).collect(),
        vteps: nic.vteps(),
        port: nic.encapsulation.port,
        carrier: match nic.path {
            DataPath::Engine => Carrier::DataPlane,
            DataPath::Kernel => Carrier::Kernel,
        },
        reason: shown(&nic.reason),
        data_plane: data_plane.map(|data_plane| DataPlane {
            fault: data_plane.fault.as_deref().map(shown),
            gear_reason: data_plane.gear_reason.as_deref().map(shown),
            ..data_plane
        }),
    }
}
