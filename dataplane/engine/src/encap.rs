//! Checks the frames that an endpoint sends, and finds their destination.

use crate::answer;
use crate::counters::Drop;
use crate::tables::{Network, Tables};
use std::net::IpAddr;
use uvn_wire::arp;
use uvn_wire::ethernet::{Ethernet, Mac};
use uvn_wire::icmp::v6::NEIGHBOUR_SOLICITATION;
use uvn_wire::ipv4::protocol;
use uvn_wire::packet::{self, Ip, Packet};
use zerocopy::FromBytes;

/// The destination of a frame.
#[derive(Debug)]
pub enum Route {
    /// To one VTEP.
    Vtep(IpAddr),
    /// To the network's peers, or its group.
    Flood,
    /// Back to the sender: this frame answers its ARP request or neighbour solicitation. The VTEP is the one that it
    /// asks for, and will send to next.
    Answer(answer::Frame, IpAddr),
    /// Nowhere: the endpoint announces its own address, which needs no answer.
    Absorb,
}

/// A frame that passed all checks.
#[derive(Debug)]
pub struct Outgoing {
    /// Its destination.
    pub route: Route,
    /// Outer UDP source port.
    pub source_port: u16,
    /// DSCP and ECN of an IP packet; 0 for ARP.
    pub tos: u8,
}

/// Checks a frame from the endpoint of `network`, and finds its destination. `packet` is the parsed `frame`.
///
/// # Errors
/// The first check that failed.
pub fn encap(
    tables: &Tables,
    network: &Network,
    frame: &[u8],
    packet: &Packet<'_>,
) -> Result<Outgoing, Drop> {
    let (ethernet, _) = Ethernet::ref_from_prefix(frame).map_err(|_| Drop::TxLength)?;
    if ethernet.source != network.mac {
        return Err(Drop::TxSourceMac);
    }
    let (answer, tos) = match packet {
        Packet::Ip(ip) => {
            source_ip(network, ip)?;
            if ip.protocol == protocol::UDP
                && ip.ports().is_some_and(|(_, port)| port == tables.encapsulation.port)
            {
                return Err(Drop::TxNested);
            }
            (neighbour(tables, network, ip), ip.tos())
        }
        Packet::Arp(arp) => (resolve(tables, network, arp)?, 0),
        Packet::Other(_) => return Err(Drop::TxProtocol),
    };
    let route = match answer {
        Some(route) => route,
        None => destination(tables, network, ethernet.destination)?,
    };
    Ok(Outgoing { route, source_port: packet::source_port(packet, frame), tos })
}

/// Checks that the source is the endpoint's own, link-local, or the unspecified address that duplicate address
/// detection and multicast listener reports come from (RFC 4862 section 5.4.2, RFC 3590); and that an advertised
/// address is its own.
fn source_ip(network: &Network, ip: &Ip<'_>) -> Result<(), Drop> {
    let source = ip.source();
    let own = network.owns(source)
        || matches!(source, IpAddr::V6(address) if address.is_unicast_link_local()
            || address.is_unspecified() && ip.protocol == protocol::ICMPV6);
    let advertised = answer::advertised(ip)
        .is_none_or(|target| target.is_unicast_link_local() || network.owns(target.into()));
    if own && advertised { Ok(()) } else { Err(Drop::TxSourceIp) }
}

fn destination(tables: &Tables, network: &Network, mac: Mac) -> Result<Route, Drop> {
    if mac.is_multicast() {
        return Ok(Route::Flood);
    }
    match tables.vtep_of(network, mac) {
        Some(vtep) if !tables.local.contains(&vtep) => Ok(Route::Vtep(vtep)),
        None if network.learning => Ok(Route::Flood),
        _ => Err(Drop::NoDestination),
    }
}

/// Checks an ARP packet. None: it is sent on.
fn resolve(tables: &Tables, network: &Network, arp: &arp::Arp) -> Result<Option<Route>, Drop> {
    if !arp.is_ipv4() || arp.sender_mac != network.mac {
        return Err(Drop::TxSourceMac);
    }
    if !arp.sender().is_unspecified() && !network.owns(arp.sender().into()) {
        return Err(Drop::TxSourceIp);
    }
    if network.learning || arp.operation.get() != arp::REQUEST {
        return Ok(None);
    }
    let target = IpAddr::V4(arp.target());
    if network.owns(target) {
        return Ok(Some(Route::Absorb));
    }
    let vtep = tables.vteps.of_overlay(target).ok_or(Drop::NoDestination)?;
    Ok(Some(Route::Answer(answer::arp(arp, Mac::of(vtep)), vtep)))
}

/// Answers a neighbour solicitation if the answer is known. None: it is flooded, since link-local addresses are in no
/// list.
fn neighbour(tables: &Tables, network: &Network, ip: &Ip<'_>) -> Option<Route> {
    if network.learning
        || ip.protocol != protocol::ICMPV6
        || ip.transport.first() != Some(&NEIGHBOUR_SOLICITATION)
    {
        return None;
    }
    let target = answer::solicited(ip)?;
    if network.owns(target.into()) {
        return Some(Route::Absorb);
    }
    let vtep = tables.vteps.of_overlay(target.into())?;
    Some(Route::Answer(answer::neighbour(ip, target, network.mac, Mac::of(vtep))?, vtep))
}
