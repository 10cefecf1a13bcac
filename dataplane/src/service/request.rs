//! Changes to networks and VTEPs, from the configuration file and from the control socket.

use super::{Service, ServiceError};
use crate::gear::{Gear, Stuck};
use crate::networks::Entry;
use crate::port::device::{EndpointSource, Plan};
use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use uvn_api::dataplane::config::{Network, Peers, allowed, check_peers};
use uvn_api::dataplane::message::{Reply, Request};
use uvn_api::dataplane::vteps::Vteps;
use uvn_api::protocol::{Code, Failure};
use uvn_api::toml_file::Invalid;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

fn refused(invalid: Invalid) -> Failure {
    Failure::new(Code::Invalid, invalid.explained(allowed).to_string())
}

impl From<Stuck> for Failure {
    fn from(stuck: Stuck) -> Failure {
        Failure::new(Code::Failed, stuck.to_string())
    }
}

pub(super) fn failed(error: impl ToString) -> Failure {
    Failure::new(Code::Failed, error.to_string())
}

impl Service {
    /// Carries out a request.
    pub(super) fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        if !fds.is_empty() && !matches!(request, Request::AddNetwork(_)) {
            return Err(Failure::new(Code::Invalid, "only add_network takes file descriptors"));
        }
        match request {
            Request::Ping => Ok(Reply::Pong),
            Request::AddNetwork(network) => self.add_network(network, fds),
            Request::RemoveNetwork { vni } => self.remove_network(vni),
            Request::SetPeers { vni, peers } => self.set_peers(vni, peers),
            Request::Vteps { add, remove, add_range, remove_range } => {
                let mut peers = self.peers.clone();
                let gone: HashSet<IpAddr> =
                    remove.into_iter().chain(add.iter().map(|vtep| vtep.address)).collect();
                peers.vtep.retain(|vtep| !gone.contains(&vtep.address));
                peers.vtep.extend(add);
                peers.range.retain(|range| !remove_range.contains(range) && !add_range.contains(range));
                peers.range.extend(add_range);
                self.set_vteps(peers)
            }
            Request::Show => Ok(Reply::Show(Box::new(self.summary()))),
            Request::Networks { from } => Ok(self.show_networks(from)),
            Request::Hops { from } => Ok(self.show_hops(from)),
            Request::Unknown => self.take_unknown(),
            Request::Counters => self.show_counters(),
            Request::Histogram => self.show_histogram(),
        }
    }

    /// Adds the networks of the configuration file.
    pub(super) fn start_networks(&mut self) -> Result<(), ServiceError> {
        for network in std::mem::take(&mut self.config.networks) {
            let vni = network.vni.get();
            self.add_network(network, Vec::new())
                .map_err(|failure| ServiceError::Network { vni, message: failure.message })?;
        }
        Ok(())
    }

    fn add_network(&mut self, network: Network, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        let vni = network.vni;
        network.check(&self.config.vtep, &self.vteps).map_err(refused)?;
        if self.networks.get(vni).is_some() {
            return Err(Failure::new(Code::Exists, format!("network {vni} is there already")));
        }
        let workers = match &self.gear {
            Some(gear) => gear.workers(),
            None => self.count_queues().unwrap_or(1) as usize,
        };
        let mac = self.config.vtep.first().map_or(Mac::BROADCAST, |vtep| Mac::of(*vtep));
        let source = match (&network.device, fds.is_empty()) {
            (Some(device), true) => EndpointSource::make(&Plan {
                device,
                vni,
                mac,
                mtu: self.endpoint_mtu(),
                addresses: &network.addresses,
                nic: self.link.as_ref().map_or(0, |link| link.index),
                workers,
            })
            .map_err(failed)?,
            (None, false) => EndpointSource::take(fds).map_err(failed)?,
            (Some(_), false) => {
                return Err(Failure::new(
                    Code::Invalid,
                    "device: given beside file descriptors: one of them",
                ));
            }
            (None, true) => {
                let message = "device: missing; give one, or the file descriptors of a TAP's queues";
                return Err(Failure::new(Code::Invalid, message));
            }
        };
        let workers = self.gear.as_ref().map_or(0, Gear::workers);
        self.networks.insert(Entry::new(network, mac, source, workers));
        match self.grant(vni) {
            Ok(epoch) => {
                tracing::info!(%vni, epoch, "network added");
                Ok(Reply::Done { epoch })
            }
            Err(failure) => {
                if let Err(failure) = self.revoke(vni) {
                    tracing::error!(%vni, %failure, "a network that could not be added is not wholly removed");
                }
                Err(failure)
            }
        }
    }

    /// Puts a network to work in the engine: tables, endpoint, then the XDP map.
    fn grant(&mut self, vni: Vni) -> Result<u64, Failure> {
        // Before the endpoint: a worker reads it at once.
        self.tables_changed = true;
        self.publish();
        if let (Some(gear), Some((slot, entry))) = (&self.gear, self.networks.get(vni)) {
            gear.attach(slot, entry).map_err(failed)?;
        }
        self.follow_listed()?;
        let epoch = self.commit()?;
        if let Some(gear) = &mut self.gear {
            gear.grant(vni).map_err(failed)?;
        }
        Ok(epoch)
    }

    fn remove_network(&mut self, number: u32) -> Result<Reply, Failure> {
        let vni = self.known(number)?;
        let epoch = self.revoke(vni)?;
        tracing::info!(%vni, epoch, "network removed");
        Ok(Reply::Done { epoch })
    }

    /// Ends a network: XDP map, endpoint and tables, then the device, once no worker has it any more.
    fn revoke(&mut self, vni: Vni) -> Result<u64, Failure> {
        let filtered = match &mut self.gear {
            Some(gear) => gear.revoke(vni).map_err(failed),
            None => Ok(()),
        };
        let Some((slot, entry)) = self.networks.remove(vni) else { return Err(missing(vni.get())) };
        if let Some(gear) = &self.gear {
            gear.detach(slot);
        }
        let listed = self.follow_listed();
        let epoch = self.commit();
        // The workers' sides of the endpoint have come back by now: they are closed here.
        self.take_events();
        self.past.add_dropped(entry.source.sending().dropped);
        entry.source.remove();
        // Whatever failed, the other steps were done.
        filtered.and(listed)?;
        Ok(epoch?)
    }

    fn set_peers(&mut self, number: u32, peers: Vec<IpAddr>) -> Result<Reply, Failure> {
        let vni = self.known(number)?;
        check_peers(&peers, &self.config.vtep, &self.vteps).map_err(refused)?;
        let entry = self.networks.get_mut(vni).ok_or_else(|| missing(number))?;
        if entry.network.group.is_some() {
            return Err(refused(Invalid::new("peers", "the network has a group")));
        }
        entry.set_peers(peers);
        self.follow_listed()?;
        Ok(Reply::Done { epoch: self.commit()? })
    }

    fn set_vteps(&mut self, peers: Peers) -> Result<Reply, Failure> {
        peers.check(&self.config.vtep).map_err(refused)?;
        let vteps = Vteps::new(&peers)
            .map_err(|conflict| refused(Invalid::new("peers.vtep", conflict.to_string())))?;
        let before =
            (std::mem::replace(&mut self.vteps, Arc::new(vteps)), std::mem::replace(&mut self.peers, peers));
        if let Err(error) = self.filter_vteps() {
            (self.vteps, self.peers) = before;
            let _ = self.filter_vteps();
            return Err(failed(error));
        }
        self.networks.follow(&self.vteps);
        self.follow_listed()?;
        Ok(Reply::Done { epoch: self.commit()? })
    }

    /// Looks up the VTEPs and joins the groups that networks list; drops the others.
    fn follow_listed(&mut self) -> Result<(), Failure> {
        let listed: HashSet<IpAddr> = self
            .networks
            .iter()
            .flat_map(|(_, entry)| entry.flood())
            .filter(|to| to.is_multicast() || self.vteps.allows(*to))
            .collect();
        self.underlay.set_listed(listed);
        self.hops_changed = true;
        self.filter_local().map_err(failed)
    }

    fn known(&self, number: u32) -> Result<Vni, Failure> {
        Vni::new(number).filter(|vni| self.networks.get(*vni).is_some()).ok_or_else(|| missing(number))
    }
}

fn missing(number: u32) -> Failure {
    Failure::new(Code::NotFound, format!("there is no network {number} on this NIC"))
}
