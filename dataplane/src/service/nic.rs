//! The NIC's life cycle: put to use, followed through down, up, new MTU, new queues, removal and return.

use super::{Service, ServiceError};
use crate::gear::Queues;
use crate::networks::Networks;
use crate::port::link::{self, Link, LinkError};
use crate::port::xsk::MAX_MTU;
use hashbrown::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvn_engine::outer::endpoint_mtu;
use uvn_engine::tables::Tables;
use uvn_engine::worker::Command;

/// ARPHRD_ETHER (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;

impl Service {
    /// At the start the NIC must be there; it may be down.
    pub(super) fn start_nic(&mut self) -> Result<(), ServiceError> {
        let link = link::get(&self.config.nic)?;
        if link.arphrd != ETHERNET || link.mac.is_none() {
            return Err(ServiceError::NotEthernet(link.name));
        }
        self.set_link(Some(link));
        self.check_port();
        self.addresses_changed = false;
        self.follow_addresses();
        // A data plane that has just been killed may still be about to let go of the NIC.
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            self.open_nic();
            match &self.fault {
                Some(fault) if self.link.as_ref().is_some_and(|link| link.up) => {
                    if Instant::now() > end {
                        let nic = self.config.nic.clone();
                        return Err(ServiceError::Nic { nic, message: fault.clone() });
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                _ => return Ok(()),
            }
        }
    }

    /// Warns of what lets tenants out, though it can still be mended while this runs.
    fn check_port(&self) {
        let port = self.config.encapsulation.port;
        let is_taken = |vtep: &IpAddr| {
            UdpSocket::bind((*vtep, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        };
        if self.config.vtep.iter().any(is_taken) {
            tracing::warn!(
                port,
                "a program or a kernel VXLAN device has the port: it gets what tenants send there from this node"
            );
        }
    }

    /// Looks what the NIC is now, and follows.
    pub(super) fn check_nic(&mut self) {
        let link = match link::get(&self.config.nic) {
            Ok(link) => Some(link),
            Err(LinkError::NotFound(_)) => None,
            Err(error) => {
                tracing::error!(%error, "cannot look at the NIC");
                return;
            }
        };
        let same_device = match (&link, &self.link) {
            (Some(now), Some(before)) => now.index == before.index,
            (None, None) => true,
            _ => false,
        };
        if !same_device && self.queues.is_some() {
            tracing::warn!(nic = self.config.nic, "the NIC was removed");
            self.close_nic();
        }
        self.set_link(link);
        if let Some(shortcut) = self.queues.as_mut().and_then(|queues| queues.shortcut.as_mut()) {
            shortcut.mend();
        }
        if let Some(queues) = &self.queues {
            let count = self.count_queues();
            if let Some(why) = queues.broken() {
                tracing::error!(nic = self.config.nic, why, "another program breaks it; it is made anew");
                self.close_nic();
            } else if queues.workers.iter().any(|worker| worker.handle.has_ended()) {
                tracing::error!(nic = self.config.nic, "a worker has ended; all are started anew");
                self.close_nic();
            } else if count.is_some_and(|count| count as usize != queues.workers.len()) {
                tracing::warn!(
                    nic = self.config.nic,
                    queues = count,
                    "the NIC's number of queues has changed"
                );
                self.close_nic();
            }
        }
        if self.queues.is_none() {
            self.open_nic();
        }
    }

    /// Notes what the NIC is now. What depends on its MAC and MTU follows.
    fn set_link(&mut self, link: Option<Link>) {
        if link == self.link {
            return;
        }
        let before = std::mem::replace(&mut self.link, link);
        let mtu = self.nic_mtu();
        // Nothing can be sent by one that is down: whoever tries shall be told.
        let in_use = self.link.as_ref().filter(|link| link.up);
        self.underlay.set_nic(in_use.map(|link| (link.index, mtu)));
        self.hops_changed = true;
        if let Err(error) = self.filter_mac() {
            tracing::error!(error, "frames to the NIC's new MAC may be taken for another host's");
        }
        let (Some(now), before) = (&self.link, before) else {
            tracing::warn!(nic = self.config.nic, "the NIC is absent");
            return;
        };
        let (nic, up, running, mtu) = (&now.name, now.up, now.running, now.mtu);
        tracing::info!(nic, up, running, mtu, "the NIC's state");
        // Until a gear is chosen, nobody knows.
        if let Some(used) = self.queues.as_ref().map(Queues::max_mtu).filter(|used| mtu as usize > *used) {
            tracing::warn!(nic, mtu, used, "the NIC's MTU is more than can be used");
        }
        if before.is_some_and(|before| before.mtu != now.mtu) {
            self.set_mtus();
        }
    }

    /// Has every endpoint follow the NIC's MTU.
    fn set_mtus(&mut self) {
        let mtu = self.endpoint_mtu();
        for (_, entry) in self.networks.iter_mut() {
            if let Err(error) = entry.source.set_mtu(mtu, &entry.network.addresses) {
                tracing::error!(vni = %entry.network.vni, %error, "the endpoint's MTU does not follow the NIC's");
            }
        }
    }

    /// The longest IP packet on the NIC that the gear in use can carry, bytes.
    fn max_mtu(&self) -> usize {
        self.queues.as_ref().map_or(MAX_MTU, Queues::max_mtu)
    }

    /// The MTU of the underlay as far as it can be used, bytes.
    fn nic_mtu(&self) -> usize {
        self.link.as_ref().map_or(1500, |link| link.mtu as usize).min(self.max_mtu())
    }

    /// The MTU of every endpoint, bytes.
    pub(super) fn endpoint_mtu(&self) -> usize {
        let nic = self.nic_mtu();
        self.config.vtep.iter().map(|vtep| endpoint_mtu(nic, *vtep)).min().unwrap_or(nic)
    }

    pub(super) fn count_queues(&self) -> Option<u32> {
        match link::queues(&self.config.nic) {
            Ok(count) => Some(count),
            Err(error) => {
                tracing::warn!(%error, "cannot count the NIC's queues");
                None
            }
        }
    }

    /// Puts the NIC to use, if it is there and up, with every network. What fails is tried again at the next tick.
    fn open_nic(&mut self) {
        let Some(link) = self.link.clone() else {
            self.fault = Some("absent".into());
            return;
        };
        if !link.up {
            // An AF_XDP socket binds to a NIC that is up only.
            self.fault = Some("down".into());
            return;
        }
        let Some(count) = self.count_queues() else { return };
        // The networks of these tables are those of earlier workers, of another number perhaps.
        let tables =
            Arc::new(Tables { networks: Vec::new(), slots: HashMap::new(), ..(*self.tables).clone() });
        let opened = Queues::open(&self.config, &link, count, &tables, &self.notifier, self.started);
        let result = opened.map_err(|error| error.to_string()).and_then(|queues| {
            self.networks.set_workers(queues.workers.len());
            let before = self.max_mtu();
            let used = queues.max_mtu();
            if link.mtu as usize > used {
                tracing::warn!(
                    nic = link.name,
                    mtu = link.mtu,
                    used,
                    "the NIC's MTU is more than can be used"
                );
            }
            self.queues = Some(queues);
            self.hops_changed = true;
            if self.max_mtu() != before && link.mtu as usize > MAX_MTU {
                self.underlay.set_nic(Some((link.index, self.nic_mtu())));
                self.set_mtus();
            }
            self.tables_changed = true;
            self.publish();
            self.attach_all();
            self.commit().map_err(|stuck| stuck.to_string())?;
            self.fill_maps()
        });
        let fault = result.err();
        if let Some(error) = &fault {
            if self.fault != fault {
                tracing::error!(
                    nic = self.config.nic,
                    error,
                    "the NIC cannot be used; trying again every second"
                );
            }
            self.close_nic();
        }
        self.fault = fault;
    }

    /// Attaches every network's endpoint to the workers.
    fn attach_all(&mut self) {
        let Some(queues) = &self.queues else { return };
        for (slot, entry) in self.networks.iter_mut() {
            if entry.fault.is_some() {
                continue;
            }
            match entry.source.endpoints(queues.workers.len()) {
                Ok(endpoints) => {
                    for (worker, endpoint) in queues.workers.iter().zip(endpoints) {
                        worker.handle.send(Command::Attach { slot, endpoint });
                    }
                }
                Err(error) => {
                    tracing::error!(vni = %entry.network.vni, %error, "the endpoint is lost");
                    entry.fault = Some(error.to_string());
                }
            }
        }
    }

    /// Makes the XDP program let through what the workers are ready for. The last step of putting a NIC to use.
    fn fill_maps(&mut self) -> Result<(), String> {
        self.filter_vteps()?;
        self.filter_mac()?;
        let Some(queues) = &mut self.queues else { return Ok(()) };
        for (_, entry) in Networks::iter(&self.networks) {
            queues.grant(entry.network.vni).map_err(|error| error.to_string())?;
        }
        self.filter_local()
    }

    /// Gives the XDP program the allowed VTEPs.
    pub(super) fn filter_vteps(&mut self) -> Result<(), String> {
        let Some(queues) = &mut self.queues else { return Ok(()) };
        let (vteps, ranges) = self.vteps.listed();
        let vteps: Vec<_> = vteps.collect();
        queues.xdp.set_vteps(&vteps, ranges).map_err(|error| error.to_string())
    }

    /// Gives the XDP program the NIC's MAC.
    fn filter_mac(&mut self) -> Result<(), String> {
        let mac = self.link.as_ref().and_then(|link| link.mac);
        let (Some(queues), Some(mac)) = (&mut self.queues, mac) else { return Ok(()) };
        queues.xdp.set_mac(mac).map_err(|error| error.to_string())
    }

    /// Gives the XDP program the outer destinations that are ours.
    pub(super) fn filter_local(&mut self) -> Result<(), String> {
        let local = self.local();
        let Some(queues) = &mut self.queues else { return Ok(()) };
        queues.xdp.set_local(&local).map_err(|error| error.to_string())
    }

    /// Ends the workers and detaches the XDP program. Networks and their devices stay.
    pub(super) fn close_nic(&mut self) {
        let Some(mut queues) = self.queues.take() else { return };
        // Every tenant at once: to let go of thousands of programs takes the kernel a while.
        if let Err(error) = queues.xdp.clear_networks() {
            tracing::error!(%error, "the XDP program keeps a network until its end");
        }
        for worker in &queues.workers {
            worker.handle.status.counters.add_to(&mut self.past);
        }
        if let Some(shortcut) = &queues.shortcut {
            self.past.add_traffic(&shortcut.total());
            for (_, entry) in self.networks.iter_mut() {
                let traffic = shortcut.traffic(entry.network.vni);
                entry.keep(&traffic);
            }
        }
        queues.stop();
        self.networks.set_workers(0);
    }
}
