//! Endpoints under others' hands: lost, moved, re-addressed.

use super::Service;
use crate::route::Change;
use crate::worker::Command;
use std::io;
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
    /// NIC's index there. The engine reads the endpoint by its descriptor, wherever it is.
    pub(super) fn check_places(&mut self, changes: &[Change]) {
        let Some(shortcut) = self.queues.as_ref().and_then(|queues| queues.shortcut.as_ref()) else { return };
        let affected: Vec<Vni> = if changes.contains(&Change::Lost) {
            self.networks.iter().map(|(_, entry)| entry.network.vni).collect()
        } else {
            let gone = changes.iter().filter_map(|change| match change {
                Change::Gone(index) => Some(*index),
                _ => None,
            });
            gone.flat_map(|index| shortcut.at(index)).collect()
        };
        for vni in affected {
            let (Some(queues), Some(entry)) = (&mut self.queues, self.networks.get_mut(vni)) else {
                continue;
            };
            let Some(shortcut) = &queues.shortcut else { continue };
            if !shortcut.carries(vni) || shortcut.holds(entry) {
                continue;
            }
            let why = "its endpoint has left the NIC's network namespace";
            tracing::warn!(%vni, why, "the engine alone carries this network");
            entry.declined = Some(why.into());
            if let Err(error) = queues.demote(entry) {
                tracing::error!(%vni, %error, "the XDP program does not follow");
            }
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
