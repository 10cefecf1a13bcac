//! Endpoints under others' hands: lost, moved, set down, re-addressed.

use super::Service;
use crate::gear::shortcut::{self, Declined};
use crate::underlay::route::Change;
use std::io;
use std::time::Instant;
use uvn_engine::worker::Command;
use uvn_wire::vxlan::Vni;

impl Service {
    /// An endpoint broke at one worker: it is of no use to the others either.
    pub(super) fn lose_endpoint(&mut self, slot: u32, error: &io::Error) {
        let Some(entry) = self.networks.by_slot(slot).filter(|entry| entry.fault.is_none()) else { return };
        let vni = entry.network.vni;
        tracing::error!(%vni, %error, "the endpoint is lost");
        entry.fault = Some(error.to_string());
        let Some(queues) = &mut self.queues else { return };
        // The in-kernel gear names the device by its index, which may be another's one day.
        if let Err(error) = queues.demote(entry) {
            tracing::error!(%vni, %error, "the XDP program does not follow");
        }
        queues.send(|| Command::Detach { slot });
    }

    /// Takes from the in-kernel gear whose endpoint has left this network namespace: it would send by whatever device has the
    /// NIC's index there. Whose endpoint is down, too: what it does not take only the engine counts. The engine reads and
    /// writes the endpoint by its descriptor, wherever it is.
    pub(super) fn check_places(&mut self, changes: &[Change]) {
        let Some(shortcut) = self.queues.as_ref().and_then(|queues| queues.shortcut.as_ref()) else { return };
        let affected: Vec<Vni> = if changes.contains(&Change::Lost) {
            self.networks.iter().map(|(_, entry)| entry.network.vni).collect()
        } else {
            let changed = changes.iter().filter_map(|change| match change {
                Change::Gone(index) | Change::Link(index) => Some(*index),
                _ => None,
            });
            changed.flat_map(|index| shortcut.at(index)).collect()
        };
        for vni in affected {
            let (Some(queues), Some(entry)) = (&mut self.queues, self.networks.get_mut(vni)) else {
                continue;
            };
            let Some(shortcut) = queues.shortcut.as_ref().filter(|shortcut| shortcut.carries(vni)) else {
                continue;
            };
            let Err(why) = shortcut.holds(entry) else { continue };
            tracing::warn!(%vni, %why, "the engine alone carries this network");
            entry.declined = Some(why);
            if let Err(error) = queues.demote(entry) {
                tracing::error!(%vni, %error, "the XDP program does not follow");
            }
        }
    }

    /// Has the in-kernel gear take over again whose endpoint is up or back again, and whose program somebody has detached.
    pub(super) fn restore_places(&mut self) {
        let Some(queues) = &mut self.queues else { return };
        let Some(shortcut) = &queues.shortcut else { return };
        let detached: Vec<Vni> = shortcut.detached().collect();
        for (_, entry) in self.networks.iter_mut().filter(|(_, entry)| entry.fault.is_none()) {
            let vni = entry.network.vni;
            if detached.contains(&vni) {
                tracing::warn!(%vni, "another program has detached the endpoint's tc program; it is put back");
                if let Err(error) = queues.demote(entry) {
                    tracing::error!(%vni, %error, "the XDP program does not follow");
                    continue;
                }
            } else if !entry.declined.as_ref().is_some_and(Declined::may_end)
                || shortcut::place(entry).is_err()
            {
                continue;
            }
            entry.declined = None;
            queues.waiting.add(vni, Instant::now());
        }
    }

    /// Sets MACs of endpoints back that udev or somebody else has changed: with another one nothing is sent or received.
    pub(super) fn mend_endpoints(&mut self) {
        for (_, entry) in self.networks.iter_mut().filter(|(_, entry)| entry.fault.is_none()) {
            let vni = entry.network.vni;
            match entry.source.mend(entry.mac) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    tracing::warn!(%vni, %found, "another program has changed the endpoint's MAC; it is set back");
                }
                Err(error) => tracing::debug!(%vni, %error, "cannot look at the endpoint's MAC"),
            }
        }
    }
}
