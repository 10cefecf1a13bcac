//! Endpoints that another program has deleted, moved, set down, or detached the tc program of. The shortcut knows a
//! device by its index, which may be another device's then, so the network goes to the engine, which uses the device's
//! descriptor.

use super::Gear;
use crate::gear::shortcut::{self, Declined};
use crate::networks::{Entry, Networks};
use crate::port::device::DeviceError;
use crate::underlay::route::Change;
use std::time::Instant;
use uvn_api::dataplane::message::ENDPOINT_QUEUES;
use uvn_engine::worker::Command;
use uvn_wire::vxlan::Vni;

impl Gear {
    /// Gives the workers a network's endpoint.
    ///
    /// # Errors
    /// No more file descriptors, or the device is gone.
    pub fn attach(&self, slot: u32, entry: &Entry) -> Result<(), DeviceError> {
        let mut endpoints = entry.source.endpoints(self.workers.len())?;
        // Where there are more workers than queues, others read the next network's.
        let first = slot as usize * ENDPOINT_QUEUES % endpoints.len().max(1);
        endpoints.rotate_right(first);
        self.workers.attach(slot, endpoints);
        Ok(())
    }

    /// Takes a network's endpoint from the workers.
    pub fn detach(&self, slot: u32) {
        self.workers.send(|| Command::Detach { slot });
    }

    /// Takes a network's endpoint from all workers and the shortcut, since it broke at one worker.
    pub fn lose(&mut self, slot: u32, entry: &mut Entry) {
        self.demote(entry);
        self.detach(slot);
    }

    /// Hands networks to the engine that the shortcut can no longer carry: those whose endpoint has left this network
    /// namespace, where the NIC's index may be another device's; and those whose endpoint is down, since only the
    /// engine counts the frames that it does not take.
    pub fn check_places(&mut self, changes: &[Change], networks: &mut Networks) {
        let Some(shortcut) = &self.shortcut else { return };
        let affected: Vec<Vni> = if changes.contains(&Change::Lost) {
            networks.iter().map(|(_, entry)| entry.network.vni).collect()
        } else {
            let changed = changes.iter().filter_map(|change| match change {
                Change::Gone(index) | Change::Link(index) => Some(*index),
                _ => None,
            });
            changed.flat_map(|index| shortcut.at(index)).collect()
        };
        for vni in affected {
            let Some(entry) = networks.get_mut(vni) else { continue };
            let held = self.shortcut.as_ref().filter(|shortcut| shortcut.carries(vni));
            let Some(Err(why)) = held.map(|shortcut| shortcut.holds(entry)) else { continue };
            tracing::warn!(%vni, %why, "the engine alone carries this network");
            self.demote(entry);
            self.declined.insert(vni, why);
        }
    }

    /// Queues networks for the shortcut again whose endpoint is up or back again, or whose tc program another program
    /// has detached.
    pub fn restore_places(&mut self, networks: &mut Networks) {
        let Some(detached) = self.shortcut.as_ref().map(|shortcut| shortcut.detached().collect::<Vec<_>>())
        else {
            return;
        };
        for (_, entry) in networks.iter_mut().filter(|(_, entry)| entry.fault.is_none()) {
            let vni = entry.network.vni;
            if detached.contains(&vni) {
                tracing::warn!(%vni, "another program has detached the endpoint's tc program; it is put back");
                if !self.demote(entry) {
                    continue;
                }
            } else if !self.declined.get(&vni).is_some_and(Declined::may_end)
                || shortcut::place(entry).is_err()
            {
                continue;
            }
            self.declined.remove(&vni);
            self.takeover.add(vni, Instant::now());
        }
    }

    /// Hands a network to the engine. False: the map cannot be changed, so the network stays as it was, or its frames
    /// are dropped.
    fn demote(&mut self, entry: &mut Entry) -> bool {
        let vni = entry.network.vni;
        if let Some(traffic) = self.shortcut.as_ref().map(|shortcut| shortcut.traffic(vni)) {
            entry.keep(&traffic);
        }
        let told = self.revoke(vni).and_then(|()| self.admit(vni));
        if let Err(error) = &told {
            tracing::error!(%vni, %error, "cannot hand the network to the engine; its frames may be dropped");
        }
        told.is_ok()
    }
}
