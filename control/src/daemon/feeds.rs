//! The data planes: one for each NIC that is not left to kernel VXLAN.

use super::demoted::Reason;
use super::networks::Networks;
use crate::config::PathChoice;
use crate::feed::{Feed, Others, obstacle};
use crate::network::{DataPath, Network, Nic};
use mio::Token;
use std::collections::BTreeSet;
use uvn_api::uvnd::finding::Id;
use uvn_dataplane::port::xsk::MAX_MTU;

/// The most nodes that `auto` leaves to kernel VXLAN, which has entries for each in each network.
const MANY: usize = 256;

impl Networks {
    /// Stops the data planes of NICs that kernel VXLAN carries now, or that are no longer configured: their VXLAN port
    /// must be free before the kernel's devices come up.
    pub(super) fn end_feeds(&mut self) {
        let configured: BTreeSet<&str> = self.node.nics.iter().map(|nic| nic.name.as_str()).collect();
        let (keep, go): (Vec<Feed>, Vec<Feed>) =
            std::mem::take(&mut self.feeds).into_iter().partition(|feed| {
                self.node.nics.iter().all(|nic| nic.name != feed.nic().name || nic.path == DataPath::Engine)
                    && configured.contains(feed.nic().name.as_str())
            });
        self.feeds = keep;
        go.into_iter().for_each(Feed::stop);
    }

    /// Starts or updates the data plane of each NIC, with the networks that it must carry.
    pub(super) fn drive_feeds(&mut self) {
        let engines: Vec<Nic> =
            self.node.nics.iter().filter(|nic| nic.path == DataPath::Engine).cloned().collect();
        let mut demoted = false;
        for nic in engines {
            let others = Others::new(&self.node, &nic, &self.peers);
            let wanted = self.wanted();
            let followed = match self.feeds.iter().position(|feed| feed.nic().name == nic.name) {
                Some(at) => self.follow_feed(at, nic.clone(), others, wanted),
                None => self.begin_feed(nic.clone(), others, wanted),
            };
            if let Err(error) = followed {
                demoted |= self.demote(&nic, error);
            }
        }
        if demoted {
            self.look();
            self.settle();
            self.bring_all();
        }
    }

    /// Updates a running data plane. Under `auto` it is stopped if it has started again without the gear that the NIC's
    /// MTU needs.
    fn follow_feed(
        &mut self,
        at: usize,
        nic: Nic,
        others: Others,
        wanted: Vec<Network>,
    ) -> Result<(), Reason> {
        let is_at_stake = self.is_auto(&nic) && nic.mtu as usize > MAX_MTU;
        let Some(feed) = self.feeds.get_mut(at) else { return Ok(()) };
        feed.follow(nic, others);
        feed.reconcile(wanted);
        let drawback = if is_at_stake { feed.drawback() } else { None };
        drawback.map_or(Ok(()), |drawback| {
            self.feeds.remove(at).stop();
            Err(Reason::passing(drawback))
        })
    }

    /// Starts the data plane of a NIC, or takes over a running one.
    fn begin_feed(&mut self, nic: Nic, others: Others, wanted: Vec<Network>) -> Result<(), Reason> {
        let auto = self.is_auto(&nic);
        let for_kernel =
            self.could_find(&nic) && (nic.group.is_some() || (1..=MANY).contains(&others.nodes.len()));
        let vtep = nic.vteps().first().copied();
        let lasts = obstacle(&nic.name, vtep, &nic.encapsulation).is_some();
        let token = Token(self.first_feed.0 + usize::from(nic.slot));
        let mut feed = Feed::new(nic, others, &self.registry, token).map_err(Reason::passing)?;
        feed.reconcile(wanted);
        let (name, is_long) = (feed.nic().name.clone(), feed.nic().mtu as usize > MAX_MTU);
        match feed.start() {
            Ok(()) => match feed.drawback().filter(|_| auto) {
                Some(drawback) if is_long || for_kernel => {
                    feed.stop();
                    return Err(Reason { text: drawback, lasts: lasts && !is_long });
                }
                Some(drawback) => {
                    tracing::warn!(
                        nic = name,
                        drawback,
                        "the engine stays: kernel VXLAN would not find the nodes"
                    );
                }
                None => {}
            },
            Err(error) if auto => {
                feed.stop();
                return Err(Reason::passing(error));
            }
            Err(error) => self.warn(Id::DataPath, error),
        }
        self.feeds.push(feed);
        Ok(())
    }

    /// Whether kernel VXLAN could carry a NIC, by the configuration: it finds nodes by a group, or those that it is told of,
    /// one by one; and the kernel has one VXLAN socket per port, which another NIC may need.
    fn could_find(&self, nic: &Nic) -> bool {
        let peers = &self.config.peers;
        let is_told = peers.range.is_empty() && peers.lists_nodes();
        let takes =
            |other: &Nic| other.name != nic.name && other.encapsulation.port == nic.encapsulation.port;
        (nic.group.is_some() || is_told) && !self.node.nics.iter().any(takes)
    }

    /// Why a NIC has been left to kernel VXLAN; None: it has not, or that is no longer right.
    pub(super) fn kernels(&self, nic: &Nic) -> Option<String> {
        let underlay = self.config.underlays.get(usize::from(nic.slot))?;
        let (reason, lasts) = self.demoted.reason(&nic.name, underlay)?;
        (self.is_auto(nic) && (!lasts || self.could_find(nic))).then(|| reason.into())
    }

    fn is_auto(&self, nic: &Nic) -> bool {
        let underlay = self.config.underlays.get(usize::from(nic.slot));
        underlay.is_some_and(|underlay| underlay.path == PathChoice::Auto)
    }

    /// Leaves a NIC to kernel VXLAN. False: its `path` is not `auto`, and it stays without.
    fn demote(&mut self, nic: &Nic, reason: Reason) -> bool {
        let auto = self.is_auto(nic);
        let what = if auto { "left to kernel VXLAN" } else { "cannot use its data plane" };
        let text = format!("{}: {what}: {}", nic.name, reason.text);
        if reason.lasts {
            // As it should be: `uvn status` says why.
            tracing::info!("{text}");
        } else {
            self.warn(Id::DataPath, text);
        }
        if auto && let Some(underlay) = self.config.underlays.get(usize::from(nic.slot)) {
            self.demoted.insert(&nic.name, underlay, reason);
        }
        auto
    }
}
