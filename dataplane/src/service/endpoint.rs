//! Endpoints that others have changed: lost ones, and those with another MAC. The gear handles moved ones and such.

use super::Service;
use std::io;

impl Service {
    /// Gives up an endpoint that broke at one worker: it is of no use to the others either.
    pub(super) fn lose_endpoint(&mut self, slot: u32, error: &io::Error) {
        let Some(entry) = self.networks.by_slot(slot).filter(|entry| entry.fault.is_none()) else { return };
        let vni = entry.network.vni;
        tracing::error!(%vni, %error, "the endpoint is lost");
        entry.fault = Some(error.to_string());
        if let Some(gear) = &mut self.gear {
            gear.lose(slot, entry);
        }
    }

    /// Restores the MACs of endpoints that udev or another program has changed: with another MAC nothing is sent or
    /// received.
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
