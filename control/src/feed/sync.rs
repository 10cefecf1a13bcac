//! The networks and peers that a data plane is told.

use super::{AUDIT, FLOOD, Feed, FeedError, RETRY, State, Wanted};
use crate::netlink;
use nix::errno::Errno;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;
use uvn_api::dataplane::client::ClientError;
use uvn_api::dataplane::config::{self, Cidr, Peers, Vtep};
use uvn_api::dataplane::message::{ENDPOINT_QUEUES, MAX_FDS, NetworkState, Reply, Request, Summary};
use uvn_api::protocol::Code;
use uvn_dataplane::port::tap::{Tap, TapError};
use uvn_wire::vxlan::Vni;

impl Feed {
    /// Sends a request; None: the data plane does not run, is lost by now, or refuses.
    pub(super) fn ask(&mut self, request: &Request) -> Option<Reply> {
        let State::Up { client, .. } = &self.state else { return None };
        match client.ask(request, &[]) {
            Ok(reply) => Some(reply),
            Err(ClientError::Refused(failure)) => {
                tracing::warn!(nic = self.nic.name, %failure, "the data plane refuses a request");
                None
            }
            Err(error) => {
                self.lose(&error.to_string());
                None
            }
        }
    }

    pub(super) fn summary(&mut self) -> Option<Summary> {
        match self.ask(&Request::Show) {
            Some(Reply::Show(summary)) => Some(*summary),
            _ => None,
        }
    }

    pub(super) fn states(&mut self) -> Option<Vec<NetworkState>> {
        let State::Up { client, .. } = &self.state else { return None };
        match client.networks() {
            Ok(states) => Some(states),
            Err(error) => {
                self.lose(&error.to_string());
                None
            }
        }
    }

    /// Changes the allowed VTEPs from those that it was told before. A change that does not fit one request takes a
    /// restart.
    pub(super) fn allow(&mut self, before: &Peers) {
        let now = &self.others.allowed;
        let had: HashSet<&Vtep> = before.vtep.iter().collect();
        let stays: HashSet<IpAddr> = now.vtep.iter().map(|vtep| vtep.address).collect();
        let less = |list: &[Cidr], other: &[Cidr]| {
            let other: HashSet<&Cidr> = other.iter().collect();
            list.iter().filter(|range| !other.contains(range)).copied().collect()
        };
        let request = Request::Vteps {
            add: now.vtep.iter().filter(|vtep| !had.contains(vtep)).cloned().collect(),
            remove: before
                .vtep
                .iter()
                .map(|vtep| vtep.address)
                .filter(|vtep| !stays.contains(vtep))
                .collect(),
            add_range: less(&now.range, &before.range),
            remove_range: less(&before.range, &now.range),
        };
        let written = match self.ask(&request) {
            Some(Reply::Done { .. }) => self.write_config(),
            _ => Err(self.down("it does not take the new list of peers")),
        };
        if let Err(error) = written {
            tracing::warn!(nic = self.nic.name, %error, "the data plane is started anew");
            self.halt();
            self.state = State::Down(Instant::now());
        }
    }

    /// Compares the data plane's networks with the wanted ones, in both directions.
    pub(super) fn compare(&mut self, now: Instant) {
        self.audit = now + AUDIT;
        let Some(states) = self.states() else { return };
        let mut missing: BTreeSet<Vni> = self.wanted.keys().copied().collect();
        self.carried = states.iter().filter_map(|state| Vni::new(state.vni)).collect();
        for state in states {
            let Some(vni) = Vni::new(state.vni) else { continue };
            let keeps = self.wanted.contains_key(&vni) && state.fault.is_none();
            if keeps && state.addresses == self.nic.addresses {
                missing.remove(&vni);
            } else {
                tracing::info!(nic = self.nic.name, %vni, fault = state.fault, "removed from the data plane");
                self.forget(vni);
            }
        }
        self.pending.extend(missing);
    }

    /// Tells the data plane pending networks, until `end`.
    pub(super) fn catch_up(&mut self, end: Instant) {
        while Instant::now() < end && matches!(self.state, State::Up { .. }) {
            let Some(vni) = self.pending.pop_first() else { return };
            let before = self.wanted.get(&vni).and_then(|wanted| wanted.fault.clone());
            if let Err(error) = self.feed(vni) {
                self.audit = self.audit.min(Instant::now() + RETRY);
                if before != Some(error.to_string()) {
                    tracing::error!(nic = self.nic.name, %vni, %error, "the data plane does not carry a network");
                }
            }
        }
    }

    /// Makes the data plane carry a network as it is wanted; one that it has gets its peers.
    pub(super) fn feed(&mut self, vni: Vni) -> Result<(), FeedError> {
        let Some(wanted) = self.wanted.get(&vni) else { return Ok(()) };
        let (network, device) = (self.request(wanted), wanted.network.endpoint(&self.nic));
        let mut result = match self.carried.contains(&vni) {
            true => self.update(&network),
            false => self.offer(&network, &device),
        };
        if let Err(FeedError::Refused { source: ClientError::Refused(failure), .. }) = &result
            && matches!(failure.code, Code::Exists | Code::NotFound)
        {
            // It has another network under this number, or none where it had one.
            self.carried.insert(vni);
            self.forget(vni);
            result = self.offer(&network, &device);
        }
        if result.is_ok() {
            self.carried.insert(vni);
        }
        let lost = match &result {
            Err(FeedError::Refused { source, .. }) if !matches!(source, ClientError::Refused(_)) => {
                Some(source.to_string())
            }
            _ => None,
        };
        if let Some(wanted) = self.wanted.get_mut(&vni) {
            wanted.fault = result.as_ref().err().map(ToString::to_string);
        }
        if let Some(reason) = lost {
            self.pending.insert(vni);
            self.lose(&reason);
        }
        result
    }

    /// A network in the words of the data plane.
    fn request(&self, wanted: &Wanted) -> config::Network {
        let group = self.nic.group;
        let peers = match group {
            Some(_) => Vec::new(),
            None => self.others.broadcast(),
        };
        let suitable = (FLOOD / peers.len().max(1)).clamp(50, 1000);
        let flood_rate = self.nic.flood_rate.or(suitable.try_into().ok()).unwrap_or(50);
        config::Network {
            vni: wanted.network.vni,
            addresses: self.nic.addresses.clone(),
            device: None,
            peers,
            group,
            learning: false,
            max_addresses: 1024,
            ageing: 300,
            flood_rate,
        }
    }

    /// Adds a network with its endpoint's queues: one for each queue of the NIC, up to [`ENDPOINT_QUEUES`].
    fn offer(&self, network: &config::Network, device: &str) -> Result<(), FeedError> {
        let State::Up { client, .. } = &self.state else { return Err(self.down("it is starting")) };
        // Opening a missing device makes one: in the default VRF, where it must not be.
        let index =
            || netlink::index(device).map_err(|source| TapError::Create { name: device.into(), source });
        let before = index()?;
        // uvn 0.1.0 needs one for each queue of the NIC: it has as many workers.
        let most = if client.is_older() { MAX_FDS } else { ENDPOINT_QUEUES };
        let queues = (self.nic.queues as usize).clamp(1, most);
        let taps = Tap::open(device, queues)?;
        if index()? != before {
            return Err(TapError::Create { name: device.into(), source: Errno::ENODEV.into() }.into());
        }
        let fds: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
        let refused = |source| FeedError::Refused { nic: self.nic.name.clone(), vni: network.vni, source };
        client.add_network(network, &fds).map(drop).map_err(refused)
    }

    /// Tells the data plane the peers of a network that it has.
    fn update(&self, network: &config::Network) -> Result<(), FeedError> {
        let State::Up { client, .. } = &self.state else { return Err(self.down("it is starting")) };
        if network.group.is_some() {
            return Ok(());
        }
        let refused = |source| FeedError::Refused { nic: self.nic.name.clone(), vni: network.vni, source };
        let request = Request::SetPeers { vni: network.vni.get(), peers: network.peers.clone() };
        client.change(&request, &[]).map(drop).map_err(refused)
    }

    /// Makes the data plane carry a network no longer.
    pub(super) fn forget(&mut self, vni: Vni) {
        if !self.carried.remove(&vni) {
            return;
        }
        let State::Up { client, .. } = &self.state else { return };
        match client.remove_network(vni.get()) {
            Ok(_) => {}
            Err(ClientError::Refused(failure)) if failure.code == Code::NotFound => {}
            // The network may be half removed: killing the data plane is safe.
            Err(error) => self.lose(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Others;
    use crate::network::{DataPath, Network, Nic, Node};
    use crate::peers::Peers;
    use mio::{Poll, Token};

    fn nic() -> Nic {
        Nic {
            slot: 0,
            name: "em1".into(),
            index: 7,
            mtu: 1500,
            arphrd: 1,
            up: true,
            queues: 1,
            subnets: vec!["10.0.0.0/16".parse().unwrap()],
            addresses: vec!["10.0.255.1/16".parse().unwrap()],
            path: DataPath::Engine,
            reason: String::new(),
            gear: config::Path::Auto,
            encapsulation: Default::default(),
            workers: Default::default(),
            group: None,
            flood_rate: None,
        }
    }

    fn feed(nic: Nic, others: Others) -> Feed {
        let poll = Poll::new().unwrap();
        Feed::new(nic, others, poll.registry(), Token(1)).unwrap()
    }

    /// The broadcast frames per second that a data plane is told with so many other nodes.
    fn told(nodes: u16, flood_rate: Option<u32>, group: Option<&str>) -> u32 {
        let group = group.map(|group| group.parse().unwrap());
        let nic = Nic { group, flood_rate, ..nic() };
        let node = |number: u16| vec![[10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]].into()];
        let peers = Peers { nodes: (1..=nodes).map(node).collect(), ..Peers::default() };
        let others = Others::new(&Node::default(), &nic, &peers);
        let network = Network { uid: 1234, vni: Vni::new(1234).unwrap(), slot: 0, off_subnet: false };
        feed(nic, others).request(&Wanted { network, fault: None }).flood_rate
    }

    #[test]
    fn the_data_plane_is_told_of_its_workers_and_outer_headers() {
        let mut nic = nic();
        nic.encapsulation = toml::from_str("dscp = \"inherit\"\nttl = 7").unwrap();
        nic.workers = toml::from_str("cores = [3, 2]\nframes = 4096\nshare = { index = 1, of = 2 }").unwrap();
        let config = feed(nic.clone(), Others::default()).config().unwrap();
        assert_eq!((config.encapsulation, config.workers), (nic.encapsulation, nic.workers));
    }

    #[test]
    fn broadcast_suits_the_number_of_nodes_or_is_what_the_file_says() {
        assert_eq!([1, 100, 200, 1000].map(|nodes| told(nodes, None, None)), [1000, 1000, 500, 100]);
        assert_eq!(told(1000, None, Some("239.1.1.1")), 1000, "one copy");
        assert_eq!([1, 1000].map(|nodes| told(nodes, Some(20_000), None)), [20_000, 20_000]);
        assert_eq!(told(1, Some(0), None), 0);
    }
}
