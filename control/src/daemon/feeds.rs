//! The data planes: one for each NIC that is not left to kernel VXLAN.

use super::networks::Networks;
use crate::config::PathChoice;
use crate::feed::{Feed, Others};
use crate::network::{DataPath, Network, Nic};
use mio::Token;
use std::collections::BTreeSet;
use uvn_api::uvnd::finding::Id;
use uvn_dataplane::port::xsk::MAX_MTU;

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
    ) -> Result<(), String> {
        let is_at_stake = self.is_auto(&nic) && nic.mtu as usize > MAX_MTU;
        let Some(feed) = self.feeds.get_mut(at) else { return Ok(()) };
        feed.follow(nic, others);
        feed.reconcile(wanted);
        let drawback = if is_at_stake { feed.drawback() } else { None };
        drawback.map_or(Ok(()), |drawback| {
            self.feeds.remove(at).stop();
            Err(drawback)
        })
    }

    /// Starts the data plane of a NIC, or takes over a running one.
    fn begin_feed(&mut self, nic: Nic, others: Others, wanted: Vec<Network>) -> Result<(), String> {
        let auto = self.is_auto(&nic);
        let token = Token(self.first_feed.0 + usize::from(nic.slot));
        let mut feed = Feed::new(nic, others, &self.registry, token).map_err(|error| error.to_string())?;
        feed.reconcile(wanted);
        let drawback = match feed.start() {
            Ok(()) => feed.drawback().filter(|_| auto),
            Err(error) => Some(error.to_string()),
        };
        match drawback {
            Some(drawback) if auto => {
                feed.stop();
                Err(drawback)
            }
            drawback => {
                self.feeds.push(feed);
                drawback.into_iter().for_each(|drawback| self.warn(Id::DataPath, drawback));
                Ok(())
            }
        }
    }

    fn is_auto(&self, nic: &Nic) -> bool {
        let underlay = self.config.underlays.get(usize::from(nic.slot));
        underlay.is_some_and(|underlay| underlay.path == PathChoice::Auto)
    }

    /// Leaves a NIC to kernel VXLAN until uvnd restarts or reloads. False: its `path` is not `auto`, and it stays
    /// without.
    fn demote(&mut self, nic: &Nic, reason: String) -> bool {
        let auto = self.is_auto(nic);
        let what = if auto { "left to kernel VXLAN" } else { "cannot use its data plane" };
        self.warn(Id::DataPath, format!("{}: {what}: {reason}", nic.name));
        if auto {
            self.demoted.insert(nic.name.clone(), reason);
        }
        auto
    }
}
