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
use uvn_api::protocol::{Code, MAX_BYTES, SCHEMA, request_packet};
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

    /// Changes the allowed VTEPs from those that it was told before.
    pub(super) fn allow(&mut self, before: &Peers) {
        let requests = change(before, &self.others.allowed);
        let taken = requests.iter().all(|request| matches!(self.ask(request), Some(Reply::Done { .. })));
        let written = match taken {
            true => self.write_config(),
            false => Err(self.down("it does not take the new list of peers")),
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

/// What makes one list of allowed VTEPs another: one request, or several where that would be too long. Then VTEPs that go or
/// change are taken away first, since an address may be another node's now, and ranges last, since their nodes may be listed now.
fn change(before: &Peers, now: &Peers) -> Vec<Request> {
    /// Addresses and ranges in a request: 48 bytes each at most.
    const MANY: usize = 1_000;

    let had: HashSet<&Vtep> = before.vtep.iter().collect();
    let stays: HashSet<IpAddr> = now.vtep.iter().map(|vtep| vtep.address).collect();
    let less = |list: &[Cidr], other: &[Cidr]| -> Vec<Cidr> {
        let other: HashSet<&Cidr> = other.iter().collect();
        list.iter().filter(|range| !other.contains(range)).copied().collect()
    };
    let request = |add: &[Vtep], remove: &[IpAddr], add_range: &[Cidr], remove_range: &[Cidr]| {
        let (add, remove) = (add.into(), remove.into());
        Request::Vteps { add, remove, add_range: add_range.into(), remove_range: remove_range.into() }
    };
    let add: Vec<Vtep> = now.vtep.iter().filter(|vtep| !had.contains(vtep)).cloned().collect();
    let gone = before.vtep.iter().map(|vtep| vtep.address).filter(|vtep| !stays.contains(vtep));
    let remove: Vec<IpAddr> = gone.collect();
    let (add_range, remove_range) = (less(&now.range, &before.range), less(&before.range, &now.range));
    let whole = request(&add, &remove, &add_range, &remove_range);
    if request_packet(&whole, SCHEMA).is_ok() {
        return vec![whole];
    }
    let bytes = |vtep: &Vtep| serde_json::to_string(vtep).map_or(MAX_BYTES, |text| text.len() + 1);
    let longest = add.iter().map(bytes).max().unwrap_or(1);
    let known: HashSet<IpAddr> = before.vtep.iter().map(|vtep| vtep.address).collect();
    let changed = add.iter().map(|vtep| vtep.address).filter(|vtep| known.contains(vtep));
    let away: Vec<IpAddr> = remove.iter().copied().chain(changed).collect();
    let mut parts: Vec<Request> = away.chunks(MANY).map(|part| request(&[], part, &[], &[])).collect();
    parts.extend(add_range.chunks(MANY).map(|part| request(&[], &[], part, &[])));
    // The half is room for what is around them.
    parts.extend(add.chunks((MAX_BYTES / 2 / longest).max(1)).map(|part| request(part, &[], &[], &[])));
    parts.extend(remove_range.chunks(MANY).map(|part| request(&[], &[], &[], part)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Others;
    use crate::network::{DataPath, Network, Nic, Node};
    use crate::peers::Peers;
    use mio::{Poll, Token};
    use uvn_api::dataplane::vteps::Vteps;

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

    /// As the data plane applies it.
    fn apply(peers: &mut config::Peers, request: &Request) {
        let Request::Vteps { add, remove, add_range, remove_range } = request else { panic!("{request:?}") };
        peers.vtep.retain(|vtep| !remove.contains(&vtep.address));
        peers.vtep.retain(|vtep| add.iter().all(|new| new.address != vtep.address));
        peers.vtep.extend(add.iter().cloned());
        peers.range.retain(|range| !remove_range.contains(range) && !add_range.contains(range));
        peers.range.extend(add_range);
    }

    #[test]
    fn a_list_of_thousands_becomes_another_by_requests_that_fit() {
        let vtep = |number: u16, overlays: u16| {
            let [high, low] = number.to_be_bytes();
            // With one address, neighbours have swapped theirs.
            let own = if overlays == 1 { number ^ 1 } else { number };
            let overlay = (0..overlays).map(|nic| [0xfd00, nic, 0, 0, 0, 0, 0xaaaa, own].into()).collect();
            Vtep { address: [10, 0, high, low].into(), overlay }
        };
        let range = |number: u16| format!("10.{}.{}.0/24", 1 + number / 256, number % 256).parse().unwrap();
        let list = |vteps: std::ops::Range<u16>, overlays, ranges: std::ops::Range<u16>| config::Peers {
            vtep: vteps.map(|number| vtep(number, overlays)).collect(),
            range: ranges.map(range).collect(),
        };
        let few = list(0..3, 2, 0..1);
        for (before, now, requests) in [
            (few.clone(), few.clone(), 1..2),
            (few.clone(), list(2..5, 2, 1..2), 1..2),
            (few.clone(), list(1..10_001, 20, 0..5_000), 100..1_000),
            (list(0..10_000, 20, 0..5_000), few.clone(), 10..20),
            (list(0..10_000, 2, 0..9), list(5_000..15_000, 1, 5..20), 10..100),
        ] {
            let (mut told, parts) = (before.clone(), super::change(&before, &now));
            assert!(requests.contains(&parts.len()), "{}", parts.len());
            for part in &parts {
                assert!(super::request_packet(part, super::SCHEMA).is_ok());
                apply(&mut told, part);
                Vteps::new(&told).unwrap();
            }
            let sorted = |mut peers: config::Peers| {
                peers.vtep.sort_by_key(|vtep| vtep.address);
                peers.range.sort_by_key(|range| range.address);
                peers
            };
            assert_eq!(sorted(told), sorted(now));
        }
    }

    #[test]
    fn broadcast_suits_the_number_of_nodes_or_is_what_the_file_says() {
        assert_eq!([1, 100, 200, 1000].map(|nodes| told(nodes, None, None)), [1000, 1000, 500, 100]);
        assert_eq!(told(1000, None, Some("239.1.1.1")), 1000, "one copy");
        assert_eq!([1, 1000].map(|nodes| told(nodes, Some(20_000), None)), [20_000, 20_000]);
        assert_eq!(told(1, Some(0), None), 0);
    }
}
