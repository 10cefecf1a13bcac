//! A node with one peer, in memory, and what is measured on it.
//!
//! - [`work`]: the functions of the hot path, for every instrument in `benches/`

pub mod work;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use uvn_api::dataplane::config::{Cidr, Encapsulation, Peers, Vtep};
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::counters::Counters;
use uvn_engine::outer::{Outer, Patch};
use uvn_engine::tables::{Hop, Network, Tables};
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::{Ethernet, Mac, ethertype};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::Ipv6;
use uvn_wire::tcp::{self, Tcp};
use uvn_wire::udp::Udp;
use uvn_wire::vxlan::Vni;
use zerocopy::IntoBytes;

/// This node's VTEP and overlay address.
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The peer's.
pub const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// Tables with this many networks (VNI 1 and up) and VTEPs beside the peer.
#[must_use]
pub fn tables(networks: u32, vteps: u32) -> Tables {
    let address = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0002 + number));
    let vteps: Vec<IpAddr> = (0..=vteps).map(address).collect();
    let listed = vteps.iter().map(|&address| Vtep { address, overlay: Vec::new() }).collect();
    node(HERE, networks, &Peers { vtep: listed, range: Vec::new() }, &vteps)
}

/// Tables of a node at `here` with this many networks (VNI 1 and up), these allowed VTEPs, and next hops of these.
#[must_use]
pub fn node(here: IpAddr, networks: u32, peers: &Peers, vteps: &[IpAddr]) -> Tables {
    let encapsulation = Encapsulation::default();
    let hop = |vtep: IpAddr| {
        let outer = Outer::new(&encapsulation, Mac::of(here), Mac::of(vtep), here, vtep);
        (vtep, Hop { outer, mtu: 1500 })
    };
    let network = |vni| Network {
        vni,
        mac: Mac::of(here),
        addresses: vec![Cidr { address: here, prefix: if here.is_ipv4() { 8 } else { 64 } }],
        flood: Vec::new(),
        flood_rate: 1000,
        learning: false,
        fdb: Default::default(),
        counters: [Counters::default()].into(),
    };
    let vnis: Vec<Vni> = (1..=networks).filter_map(Vni::new).collect();
    Tables {
        epoch: 1,
        encapsulation,
        nic: None,
        local: vec![here],
        vteps: Arc::new(Vteps::new(peers).unwrap_or_default()),
        hops: Arc::new(vteps.iter().copied().map(hop).collect()),
        dead: Arc::default(),
        slots: vnis.iter().zip(0..).map(|(vni, slot)| (*vni, slot)).collect(),
        networks: vnis.iter().map(|vni| Some(Arc::new(network(*vni)))).collect(),
    }
}

/// An inner frame from one overlay address to another; checksums right.
fn inner(from: IpAddr, to: IpAddr, protocol: u8, transport: &[u8], payload: &[u8]) -> Vec<u8> {
    let ethertype = if from.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
    let ethernet = Ethernet { destination: Mac::of(to), source: Mac::of(from), ethertype: ethertype.into() };
    let length = transport.len() + payload.len();
    let ip = match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut ip = Ipv4 {
                version_ihl: ipv4::VERSION_IHL,
                tos: 0,
                total_length: ((ipv4::HEADER + length) as u16).into(),
                identification: 0.into(),
                fragment: ipv4::DONT_FRAGMENT.into(),
                ttl: 64,
                protocol,
                checksum: 0.into(),
                source: source.octets(),
                destination: destination.octets(),
            };
            ip.set_checksum();
            ip.as_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = Ipv6 {
                version_class_flow: (6 << 28).into(),
                payload_length: (length as u16).into(),
                next_header: protocol,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            ip.as_bytes().to_vec()
        }
        _ => Vec::new(),
    };
    [ethernet.as_bytes(), &ip, transport, payload].concat()
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Sum {
    match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::pseudo_v4(source.octets(), destination.octets(), protocol, length as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::pseudo_v6(&source.octets(), &destination.octets(), protocol, length as u32)
        }
        _ => Sum::ZERO,
    }
}

/// A UDP frame of `length` bytes in all, at least 42; over IPv6 20 more.
#[must_use]
pub fn udp(from: IpAddr, to: IpAddr, length: usize) -> Vec<u8> {
    let payload = vec![0x5a; length.saturating_sub(42)];
    let mut header = Udp {
        source_port: 5000.into(),
        destination_port: 6000.into(),
        length: ((8 + payload.len()) as u16).into(),
        checksum: 0.into(),
    };
    let sum =
        pseudo(from, to, protocol::UDP, 8 + payload.len()) + Sum::of(header.as_bytes()) + Sum::of(&payload);
    header.checksum = sum.udp_checksum().into();
    inner(from, to, protocol::UDP, header.as_bytes(), &payload)
}

/// A TCP frame with an acknowledgement, `sequence` and this payload.
#[must_use]
pub fn tcp(from: IpAddr, to: IpAddr, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = Tcp {
        source_port: 5000.into(),
        destination_port: 6000.into(),
        sequence: sequence.into(),
        acknowledgement: 1.into(),
        data_offset: 0x50,
        flags: tcp::flag::ACK,
        window: 500.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    };
    let sum =
        pseudo(from, to, protocol::TCP, 20 + payload.len()) + Sum::of(header.as_bytes()) + Sum::of(payload);
    header.checksum = sum.checksum().into();
    inner(from, to, protocol::TCP, header.as_bytes(), payload)
}

/// An inner frame as the peer sends it on network `vni`.
#[must_use]
pub fn encapsulated(vni: u32, inner: &[u8]) -> Vec<u8> {
    sent(THERE, HERE, vni, inner)
}

/// An inner frame as one VTEP sends it to another.
#[must_use]
pub fn sent(from: IpAddr, to: IpAddr, vni: u32, inner: &[u8]) -> Vec<u8> {
    let outer = Outer::new(&Encapsulation::default(), Mac::of(from), Mac::of(to), from, to);
    let mut frame = vec![0; outer.length() + inner.len()];
    frame[outer.length()..].copy_from_slice(inner);
    if let Some(vni) = Vni::new(vni) {
        let patch = Patch { vni, source_port: 50_000, inner_tos: 0 };
        let _ = outer.write(&mut frame, patch, inner.len());
    }
    frame
}
