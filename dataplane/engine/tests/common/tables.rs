//! Tables of a node for a worker over ports in memory.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use uvn_api::dataplane::config::{Encapsulation, Peers, Vtep};
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::counters::Counters;
use uvn_engine::outer::Outer;
use uvn_engine::tables::{Hop, Network, Tables};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

/// The node.
pub const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// A VTEP whose next hop is known.
pub const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// A user's network on it.
pub fn network(vni: u32) -> Network {
    Network {
        vni: Vni::new(vni).unwrap(),
        mac: Mac::of(A),
        addresses: vec!["10.0.0.1/8".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        flood: vec![],
        flood_rate: 1000,
        learning: false,
        fdb: Default::default(),
        counters: [Counters::default()].into(),
    }
}

/// A's, with these VTEPs and with networks in the slots 0, 1 ...
pub fn tables(vtep: Vec<Vtep>, networks: Vec<Network>) -> Tables {
    let encapsulation = Encapsulation::default();
    let outer = Outer::new(&encapsulation, Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]), A, B);
    Tables {
        epoch: 1,
        encapsulation,
        nic: Some(Mac([2, 0, 0, 0, 0, 1])),
        local: vec![A],
        vteps: Arc::new(Vteps::new(&Peers { vtep, range: vec![] }).unwrap()),
        hops: Arc::new([(B, Hop { outer, mtu: 1500 })].into_iter().collect()),
        dead: Arc::default(),
        slots: networks.iter().zip(0..).map(|(network, slot)| (network.vni, slot)).collect(),
        networks: networks.into_iter().map(|network| Some(Arc::new(network))).collect(),
    }
}
