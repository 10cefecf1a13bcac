//! The NIC's life cycle: put to use, followed through down, up, new MTU, new queues, removal and return.

use super::{Service, ServiceError};
use crate::gear::Gear;
use crate::port::link::{self, Link, LinkError};
use crate::port::xsk::MAX_MTU;
use hashbrown::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvn_engine::outer::endpoint_mtu;
use uvn_engine::tables::Tables;

/// ARPHRD_ETHER (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;

impl Service {
    /// Puts the NIC to use at the start. It must exist; it may be down.
    pub(super) fn start_nic(&mut self) -> Result<(), ServiceError> {
        let link = link::get(&self.config.nic)?;
        if link.arphrd != ETHERNET || link.mac.is_none() {
            return Err(ServiceError::NotEthernet(link.name));
        }
        self.set_link(Some(link));
        self.check_port();
        self.addresses_changed = false;
        self.follow_addresses();
        // A data plane that has just been killed may not have released the NIC yet.
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

    /// Warns if another program or device has the VXLAN port: it gets what tenants send there. That can still be
    /// corrected while the data plane runs.
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

    /// Examines the NIC, and follows its changes.
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
        if !same_device && self.gear.is_some() {
            tracing::warn!(nic = self.config.nic, "the NIC was removed");
            self.close_nic();
        }
        self.set_link(link);
        let count = self.gear.as_ref().and_then(|_| self.count_queues());
        if let Some(gear) = &mut self.gear {
            gear.mend();
            let nic = self.config.nic.as_str();
            if let Some(why) = gear.broken() {
                tracing::error!(nic, why, "the gear is broken; it is made anew");
                self.close_nic();
            } else if count.is_some_and(|count| count != gear.queues()) {
                tracing::warn!(nic, queues = count, "the NIC's number of queues has changed");
                self.close_nic();
            }
        }
        if self.gear.is_none() {
            self.open_nic();
        }
    }

    /// Notes the NIC's present state. What depends on its MAC and MTU follows.
    fn set_link(&mut self, link: Option<Link>) {
        if link == self.link {
            return;
        }
        let before = std::mem::replace(&mut self.link, link);
        let mtu = self.nic_mtu();
        if let Some(index) = self.link.as_ref().map(|link| link.index)
            && let Err(error) = self.notifications.narrow(index)
        {
            tracing::warn!(%error, "the kernel tells of users' neighbours, too");
        }
        // A NIC that is down can send nothing: senders must be told.
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
        // Until a gear is chosen, the limit is not known.
        if let Some(used) = self.gear.as_ref().map(Gear::max_mtu).filter(|used| mtu as usize > *used) {
            tracing::warn!(nic, mtu, used, "the NIC's MTU is more than can be used");
        }
        if before.is_some_and(|before| before.mtu != now.mtu) {
            self.set_mtus();
        }
    }

    /// Sets the MTU of every endpoint by the NIC's.
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
        self.gear.as_ref().map_or(MAX_MTU, Gear::max_mtu)
    }

    /// The usable MTU of the underlay, bytes.
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

    /// Puts the NIC to use, if it exists and is up, with every network. A failed try is repeated at the next tick.
    fn open_nic(&mut self) {
        let Some(link) = self.link.clone() else {
            self.fault = None;
            return;
        };
        if !link.up {
            // An AF_XDP socket binds only to a NIC that is up.
            self.fault = None;
            return;
        }
        let Some(count) = self.count_queues() else {
            self.fault = Some("its queues cannot be counted".into());
            return;
        };
        // The networks of these tables belong to earlier workers, perhaps of another number.
        let tables =
            Arc::new(Tables { networks: Vec::new(), slots: HashMap::new(), ..(*self.tables).clone() });
        let opened = Gear::open(&self.config, &link, count, &tables, &self.notifier, self.started);
        let result = opened.map_err(|error| error.to_string()).and_then(|gear| {
            self.networks.set_workers(gear.workers());
            let before = self.max_mtu();
            let used = gear.max_mtu();
            if link.mtu as usize > used {
                tracing::warn!(
                    nic = link.name,
                    mtu = link.mtu,
                    used,
                    "the NIC's MTU is more than can be used"
                );
            }
            self.gear = Some(gear);
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
        let Some(gear) = &self.gear else { return };
        for (slot, entry) in self.networks.iter_mut().filter(|(_, entry)| entry.fault.is_none()) {
            if let Err(error) = gear.attach(slot, entry) {
                tracing::error!(vni = %entry.network.vni, %error, "the endpoint is lost");
                entry.fault = Some(error.to_string());
            }
        }
    }

    /// Lets the gear take the frames that the workers are ready for: the last step of putting a NIC to use.
    fn fill_maps(&mut self) -> Result<(), String> {
        self.filter_vteps()?;
        self.filter_mac()?;
        let Some(gear) = &mut self.gear else { return Ok(()) };
        for (_, entry) in self.networks.iter() {
            gear.grant(entry.network.vni).map_err(|error| error.to_string())?;
        }
        self.filter_local()
    }

    /// Gives the gear the allowed VTEPs.
    pub(super) fn filter_vteps(&mut self) -> Result<(), String> {
        let Some(gear) = &mut self.gear else { return Ok(()) };
        gear.set_vteps(&self.vteps).map_err(|error| error.to_string())
    }

    /// Gives the gear the NIC's MAC.
    fn filter_mac(&mut self) -> Result<(), String> {
        let mac = self.link.as_ref().and_then(|link| link.mac);
        let (Some(gear), Some(mac)) = (&mut self.gear, mac) else { return Ok(()) };
        gear.set_mac(mac).map_err(|error| error.to_string())
    }

    /// Gives the gear the outer destinations that belong to this node.
    pub(super) fn filter_local(&mut self) -> Result<(), String> {
        let local = self.local();
        let Some(gear) = &mut self.gear else { return Ok(()) };
        gear.set_local(&local).map_err(|error| error.to_string())
    }

    /// Ends the gear. Networks and their devices stay.
    pub(super) fn close_nic(&mut self) {
        let Some(gear) = self.gear.take() else { return };
        gear.close(&mut self.networks, &mut self.past);
        self.networks.set_workers(0);
    }
}
