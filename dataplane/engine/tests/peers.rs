//! Ten thousand peers, listed in every way. No root, no device.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/frames.rs"]
mod frames;
#[path = "common/tables.rs"]
mod tables;

use frames::{NIC, udp, vxlan};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use tables::{A, network};
use uvn_api::dataplane::config::{Cidr, Peers, Vtep};
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::counters::Drop;
use uvn_engine::decap::decap;
use uvn_engine::encap::{Route, encap};
use uvn_engine::tables::Tables;
use uvn_wire::ethernet::Mac;
use uvn_wire::packet;

const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const PEERS: u32 = 10_000;

/// Of every four addresses, the second is a peer's.
fn peer(v6: bool, number: u32) -> IpAddr {
    let low = 0x0a01_0001 + 4 * number;
    if v6 { (0xfd00 << 112 | u128::from(low)).to_be_bytes().into() } else { low.to_be_bytes().into() }
}

/// The address behind a peer's.
fn between(v6: bool) -> IpAddr {
    if v6 { "fd00::a01:2".parse().unwrap() } else { [10, 1, 0, 2].into() }
}

/// Up to 65 peers, the first and the last among them.
fn some() -> impl Iterator<Item = u32> {
    (0..PEERS).step_by(157).chain([PEERS - 1])
}

fn here(v6: bool) -> IpAddr {
    if v6 { A6 } else { A }
}

fn node(v6: bool, peers: &Peers) -> Tables {
    let mut user = network(5);
    user.mac = Mac::of(here(v6));
    let mut tables = tables::tables(vec![], vec![user]);
    tables.nic = Some(NIC);
    tables.local = vec![here(v6)];
    tables.vteps = Arc::new(Vteps::new(peers).unwrap());
    tables
}

/// The verdict on a datagram of `vtep` whose inner source is `source`.
fn verdict(tables: &Tables, vtep: IpAddr, source: IpAddr) -> Result<(), Drop> {
    let to = if source.is_ipv4() { A } else { A6 };
    let inner = udp((Mac::of(vtep), tables.networks[0].as_ref().unwrap().mac), (source, 1), (to, 1), 0, b"x");
    let frame = vxlan(&tables.encapsulation, vtep, tables.local[0], 5, 0, &inner);
    decap(tables, &frame, 0).map(drop).map_err(|rejected| rejected.reason)
}

fn assert_told_apart(tables: &Tables, v6: bool, is_open: bool) {
    for number in some() {
        let (vtep, next) = (peer(v6, number), peer(v6, (number + 1) % PEERS));
        assert_eq!(verdict(tables, vtep, vtep), Ok(()), "{vtep}");
        assert_eq!(verdict(tables, vtep, next), Err(Drop::RxSourceIp), "{vtep}");
        // Nobody's address, of the other family.
        let other: IpAddr = if v6 { [10, 77, 0, 9].into() } else { "fd00::77:9".parse().unwrap() };
        let expected = if is_open { Ok(()) } else { Err(Drop::RxSourceIp) };
        assert_eq!(verdict(tables, vtep, other), expected, "{vtep}");

        let frame = udp((Mac::of(here(v6)), Mac::of(vtep)), (here(v6), 1), (vtep, 1), 0, b"x");
        let packet = packet::parse(&frame).unwrap();
        let network = tables.networks[0].as_ref().unwrap();
        let route = encap(tables, network, &frame, &packet).unwrap().route;
        assert!(matches!(route, Route::Vtep(to) if to == vtep), "{vtep}: {route:?}");
    }
    let outside = peer(v6, PEERS + 1);
    assert_eq!(verdict(tables, outside, outside), Err(Drop::UnknownVtep));
}

#[test]
fn ten_thousand_listed_one_by_one() {
    for v6 in [false, true] {
        let listed = |number| Vtep { address: peer(v6, number), overlay: vec![] };
        let peers = Peers { vtep: (0..PEERS).map(listed).collect(), range: vec![] };
        let tables = node(v6, &peers);
        assert_told_apart(&tables, v6, false);
        assert_eq!(verdict(&tables, between(v6), between(v6)), Err(Drop::UnknownVtep));
    }
}

#[test]
fn ten_thousand_ranges_of_one_and_of_four() {
    for v6 in [false, true] {
        let bits = if v6 { 128 } else { 32 };
        for prefix in [bits, bits - 2] {
            let range = |number| Cidr { address: peer(v6, number), prefix }.subnet();
            let peers = Peers { vtep: vec![], range: (0..PEERS).map(range).collect() };
            let tables = node(v6, &peers);
            assert_told_apart(&tables, v6, true);
            let expected = if prefix == bits { Err(Drop::UnknownVtep) } else { Ok(()) };
            assert_eq!(verdict(&tables, between(v6), between(v6)), expected, "/{prefix}");
            // What programs look up by prefix length is only what needs it.
            let (single, ranges) = tables.vteps.listed();
            let counts = (single.count(), ranges.len());
            assert_eq!(counts, if prefix == bits { (PEERS as usize, 0) } else { (0, PEERS as usize) });
        }
    }
}

/// What is left of a range when others are cut out of it may be one address, whose MAC a listed node has, too.
#[test]
fn a_range_of_one_leaves_its_mac_to_whoever_is_listed() {
    let [listed, cut]: [IpAddr; 2] = ["fd00:0:0:2::2", "fd00:0:0:1::2"].map(|text| text.parse().unwrap());
    let peers = Peers {
        vtep: vec![Vtep { address: listed, overlay: vec![] }],
        range: vec![Cidr { address: cut, prefix: 128 }],
    };
    let vteps = Vteps::new(&peers).unwrap();
    assert!(vteps.allows(listed) && vteps.allows(cut));
    assert_eq!(vteps.of_mac(Mac::of(cut)), Some(listed));
}
