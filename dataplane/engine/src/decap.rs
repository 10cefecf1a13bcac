//! Verifies received frames: a flat list of checks, each with its own [`Drop`] reason.
//!
//! The XDP program only steers frames; its checks are not trusted here.

use crate::answer;
use crate::counters::Drop;
use crate::tables::{Network, Tables};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use uvn_wire::checksum::{self, Sum};
use uvn_wire::ecn;
use uvn_wire::ethernet::{self, Ethernet, Mac, ethertype};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::packet::{self, Packet};
use uvn_wire::udp::{self, Udp};
use uvn_wire::vxlan::{self, Vxlan};
use zerocopy::FromBytes;

/// A frame that passed all checks.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    /// The network's slot.
    pub slot: u32,
    /// The sending VTEP.
    pub vtep: IpAddr,
    /// The inner frame's place in the frame, Ethernet padding included.
    pub inner: Range<usize>,
    /// The source MAC, if it must be learned: it is new, or was behind another VTEP.
    pub learn: Option<Mac>,
    /// The ECN field that the inner packet must get (RFC 6040 section 4.2); None: it keeps its own.
    pub ecn: Option<u8>,
}

/// A frame that failed a check.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The check that failed.
    pub reason: Drop,
    /// The slot of the network that the drop is counted for; None: not known.
    pub slot: Option<u32>,
}

impl From<Drop> for Rejected {
    fn from(reason: Drop) -> Rejected {
        Rejected { reason, slot: None }
    }
}

/// Verifies a frame from the NIC. `now` is the time for learned MACs, seconds since the workers' start.
///
/// # Errors
/// The first check that failed.
pub fn decap(tables: &Tables, frame: &[u8], now: u32) -> Result<Received, Rejected> {
    let outer = Outer::parse(tables, frame)?;
    let (header, _) = Vxlan::ref_from_prefix(outer.payload).map_err(|_| Drop::RxLength)?;
    if !header.has_vni() || tables.encapsulation.strict_flags && header.has_reserved_bits() {
        return Err(Drop::Flags.into());
    }
    let (slot, network) = tables.network(header.vni()).ok_or(Drop::UnknownVni)?;
    let rejected = |reason| Rejected { reason, slot: Some(slot) };
    if !tables.vteps.allows(outer.source) {
        return Err(rejected(Drop::UnknownVtep));
    }
    let start = outer.offset + vxlan::HEADER;
    let inner = &outer.payload[vxlan::HEADER..];
    let (learn, ecn) = verify(tables, network, &outer, inner, now).map_err(rejected)?;
    Ok(Received { slot, vtep: outer.source, inner: start..start + inner.len(), learn, ecn })
}

/// The outer headers' fields.
struct Outer<'a> {
    source: IpAddr,
    tos: u8,
    /// After the UDP header, without Ethernet padding.
    payload: &'a [u8],
    /// The payload's offset in the frame.
    offset: usize,
}

impl<'a> Outer<'a> {
    fn parse(tables: &Tables, frame: &'a [u8]) -> Result<Outer<'a>, Drop> {
        let (ethernet, rest) = Ethernet::ref_from_prefix(frame).map_err(|_| Drop::RxLength)?;
        let (source, destination, tos, header, length, pseudo) = match ethernet.ethertype.get() {
            ethertype::IPV4 => {
                let (ip, _) = Ipv4::ref_from_prefix(rest).map_err(|_| Drop::RxLength)?;
                if ip.version() != 4 || ip.header_length() < ipv4::HEADER {
                    return Err(Drop::RxLength);
                }
                if ip.protocol != protocol::UDP || ip.is_fragment() {
                    return Err(Drop::NotOurs);
                }
                let pseudo = Sum::pseudo_v4(ip.source, ip.destination, protocol::UDP, 0);
                let source = IpAddr::from(ip.source);
                let length = usize::from(ip.total_length.get());
                (source, IpAddr::from(ip.destination), ip.tos, ip.header_length(), length, pseudo)
            }
            ethertype::IPV6 => {
                let (ip, _) = Ipv6::ref_from_prefix(rest).map_err(|_| Drop::RxLength)?;
                if ip.version() != 6 {
                    return Err(Drop::RxLength);
                }
                if ip.next_header != protocol::UDP {
                    return Err(Drop::NotOurs);
                }
                let pseudo = Sum::pseudo_v6(&ip.source, &ip.destination, protocol::UDP, 0);
                let source = IpAddr::from(ip.source);
                let length = ipv6::HEADER + usize::from(ip.payload_length.get());
                (source, IpAddr::from(ip.destination), ip.traffic_class(), ipv6::HEADER, length, pseudo)
            }
            _ => return Err(Drop::NotOurs),
        };
        if !tables.local.contains(&destination) {
            return Err(Drop::NotOurs);
        }
        let datagram = rest.get(header..length).ok_or(Drop::RxLength)?;
        let payload = Outer::udp(tables, datagram, pseudo, source.is_ipv6())?;
        if !ethernet.destination.is_multicast() && tables.nic.is_some_and(|nic| nic != ethernet.destination) {
            return Err(Drop::OtherHost);
        }
        if source.is_ipv4() && header != ipv4::HEADER {
            return Err(Drop::OuterOptions);
        }
        // IPv6 has no header checksum: the pseudo-header is in the UDP checksum.
        if source.is_ipv4() && !Sum::of(&rest[..header]).is_valid() {
            return Err(Drop::OuterChecksum);
        }
        let offset = ethernet::HEADER + header + udp::HEADER;
        Ok(Outer { source, tos, payload, offset })
    }

    fn udp<'b>(tables: &Tables, datagram: &'b [u8], pseudo: Sum, ipv6: bool) -> Result<&'b [u8], Drop> {
        let (header, _) = Udp::ref_from_prefix(datagram).map_err(|_| Drop::RxLength)?;
        if header.destination_port.get() != tables.encapsulation.port {
            return Err(Drop::NotOurs);
        }
        let length = header.length.get();
        let datagram = datagram.get(..usize::from(length)).ok_or(Drop::RxLength)?;
        let payload = datagram.get(udp::HEADER..).ok_or(Drop::RxLength)?;
        let intact = match header.checksum.get() {
            0 => !ipv6 || !tables.encapsulation.ipv6_checksum,
            _ => (pseudo + Sum::u16(length) + Sum::of(datagram)).is_valid(),
        };
        if intact { Ok(payload) } else { Err(Drop::OuterChecksum) }
    }
}

/// Checks the inner frame. Returns the MAC to learn, and the ECN field to set.
fn verify(
    tables: &Tables,
    network: &Network,
    outer: &Outer<'_>,
    inner: &[u8],
    now: u32,
) -> Result<(Option<Mac>, Option<u8>), Drop> {
    let packet = packet::parse(inner).map_err(|_| Drop::RxLength)?;
    let (ethernet, _) = Ethernet::ref_from_prefix(inner).map_err(|_| Drop::RxLength)?;
    let learn = source_mac(network, outer.source, ethernet.source, now)?;
    if ethernet.destination != network.mac && !ethernet.destination.is_multicast() {
        return Err(Drop::NotForEndpoint);
    }
    let vouched = |source: IpAddr| {
        network.learning || !network.on_subnet(source) || tables.vteps.may_send(outer.source, source)
    };
    let ecn = match packet {
        Packet::Ip(ip) => {
            let ours = network.learning && network.owns(ip.source());
            let advertised = answer::advertised(&ip).is_none_or(|target| vouched(target.into()));
            if ours || !vouched(ip.source()) || !advertised {
                return Err(Drop::RxSourceIp);
            }
            if ip.protocol == protocol::UDP
                && ip.ports().is_some_and(|(_, port)| port == tables.encapsulation.port)
            {
                return Err(Drop::RxNested);
            }
            match ecn::decap(outer.tos, ip.tos()) {
                ecn::Decap::Keep => None,
                ecn::Decap::Set(field) => Some(field),
                ecn::Decap::Drop => return Err(Drop::Ecn),
            }
        }
        Packet::Arp(arp) => {
            let sender = arp.sender();
            if !arp.is_ipv4() || arp.sender_mac != ethernet.source {
                return Err(Drop::RxSourceMac);
            }
            if sender != Ipv4Addr::UNSPECIFIED && !vouched(sender.into()) {
                return Err(Drop::RxSourceIp);
            }
            None
        }
        Packet::Other(_) => return Err(Drop::RxProtocol),
    };
    Ok((learn, ecn))
}

/// Checks that the MAC may be behind the VTEP. Returns it if it must be learned.
///
/// A MAC that is made from an address belongs to that VTEP, in learning networks too.
fn source_mac(network: &Network, vtep: IpAddr, source: Mac, now: u32) -> Result<Option<Mac>, Drop> {
    if source == Mac::of(vtep) && source != network.mac {
        return Ok(None);
    }
    let derived = source.ipv4().is_some() || source.ipv6_low().is_some();
    if !network.learning || derived || source.is_multicast() || source == network.mac {
        return Err(Drop::RxSourceMac);
    }
    Ok(match network.fdb.get(&source) {
        Some(learned) if learned.vtep == vtep => {
            learned.refresh(now);
            None
        }
        _ => Some(source),
    })
}

/// Sets the ECN field of an inner frame that passed [`decap`].
pub fn set_ecn(inner: &mut [u8], ecn: u8) {
    let Ok((ethernet, packet)) = Ethernet::mut_from_prefix(inner) else { return };
    if ethernet.ethertype.get() == ethertype::IPV4 {
        if let Ok((ip, _)) = Ipv4::mut_from_prefix(packet) {
            let old = u16::from_be_bytes([ip.version_ihl, ip.tos]);
            ip.tos = ip.tos & !ecn::MASK | ecn;
            let new = u16::from_be_bytes([ip.version_ihl, ip.tos]);
            ip.checksum = checksum::update_u16(ip.checksum.get(), old, new).into();
        }
    } else if let Ok((ip, _)) = Ipv6::mut_from_prefix(packet) {
        ip.set_traffic_class(ip.traffic_class() & !ecn::MASK | ecn);
    }
}
