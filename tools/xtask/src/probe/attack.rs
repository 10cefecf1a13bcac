//! Forged VXLAN packets, as a hostile machine on the underlay would send them, built byte by byte apart from the
//! engine's own code.

use clap::ValueEnum;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use uvn_bench::probe::ready;
use uvn_rig::rig::NIC;

/// IANA's VXLAN port (RFC 7348 section 5).
const VXLAN_PORT: u16 = 4789;
/// The network under attack.
const VNI: u32 = 1234;
/// A VNI that no node hosts.
const FOREIGN_VNI: u32 = 4242;
/// The destination port of the forged inner datagram.
const INNER_PORT: u16 = 7777;
/// The attacked node and the attacker's own address.
const VICTIM: [u8; 4] = [10, 0, 0, 1];
const OWN: [u8; 4] = [10, 0, 0, 2];
/// An address that is no node's.
const STRANGER: [u8; 4] = [10, 0, 0, 66];

/// The packet type of outgoing packets (include/uapi/linux/if_packet.h).
const PACKET_OUTGOING: u8 = 4;

/// What is wrong with a forged packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Forgery {
    /// Nothing: the control. It must arrive, or the attack proves nothing.
    Genuine,
    /// A VNI that is not on this NIC.
    ForeignVni,
    /// An outer source that is not an allowed VTEP.
    UnknownVtep,
    /// An inner source MAC that is not the sending VTEP's.
    SpoofedMac,
    /// An inner source IP that is not the sending VTEP's.
    SpoofedIp,
    /// VXLAN in VXLAN.
    Nested,
    /// The flag that says the VNI is valid is missing.
    BadFlags,
}

impl Forgery {
    /// The kinds that must be dropped.
    pub const FORGED: [Forgery; 6] = [
        Forgery::ForeignVni,
        Forgery::UnknownVtep,
        Forgery::SpoofedMac,
        Forgery::SpoofedIp,
        Forgery::Nested,
        Forgery::BadFlags,
    ];

    /// Its description, for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Forgery::Genuine => "genuine packet (control)",
            Forgery::ForeignVni => "VNI without a network here",
            Forgery::UnknownVtep => "sender is not a known node",
            Forgery::SpoofedMac => "spoofed inner source MAC",
            Forgery::SpoofedIp => "spoofed inner source IP",
            Forgery::Nested => "VXLAN inside VXLAN",
            Forgery::BadFlags => "VXLAN header without VNI flag",
        }
    }

    /// The data plane's counters, one of which must have counted it: the XDP program's or the worker's.
    #[must_use]
    pub const fn counters(self) -> &'static [&'static str] {
        match self {
            Forgery::Genuine => &[],
            Forgery::ForeignVni => &["xdp_unknown_vni", "rx_unknown_vni"],
            Forgery::UnknownVtep => &["xdp_unknown_vtep", "rx_unknown_vtep"],
            Forgery::SpoofedMac => &["rx_inner_source_mac"],
            Forgery::SpoofedIp => &["rx_inner_source_ip"],
            Forgery::Nested => &["rx_nested_vxlan"],
            Forgery::BadFlags => &["xdp_bad_flags", "rx_bad_flags"],
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn argument(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The MAC addresses that a packet needs, written `OUTER,INNER,SOURCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Macs {
    /// The attacked node's NIC.
    pub outer_destination: [u8; 6],
    /// The attacked endpoint.
    pub inner_destination: [u8; 6],
    /// The endpoint on the sending node.
    pub inner_source: [u8; 6],
}

impl FromStr for Macs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let macs: Option<Vec<[u8; 6]>> = text.split(',').map(mac).collect();
        match macs.as_deref() {
            Some(&[outer_destination, inner_destination, inner_source]) => {
                Ok(Macs { outer_destination, inner_destination, inner_source })
            }
            _ => Err(format!("{text:?} is not three MAC addresses, separated by commas")),
        }
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok()?.try_into().ok()
}

/// Sends `count` forged packets out of this namespace's NIC.
///
/// # Errors
/// There is no such NIC, or packet sockets are not allowed.
pub fn attack(kind: Forgery, count: usize, word: &str, macs: &Macs) -> io::Result<()> {
    let nic = nic()?;
    let own = nic.addr().unwrap_or_default();
    let socket = packet_socket()?;
    for index in 0..count {
        // Another source port each, as entropy of other flows: a short count must not depend on one queue.
        let port = 49_152 + (index % 1000) as u16;
        sendto(socket.as_raw_fd(), &forge(kind, word, macs, own, port), &nic, MsgFlags::empty())?;
    }
    Ok(())
}

/// Writes `ready`, then `arrived WORD` each time that the word comes into this namespace: a frame may hold several
/// datagrams, joined by GRO. Outgoing packets do not count: the kernel quotes a datagram that it refuses in its ICMP
/// error. Runs for ever.
///
/// # Errors
/// Packet sockets are not allowed.
pub fn watch(word: &str) -> io::Result<()> {
    let socket = packet_socket()?;
    ready();
    let mut frame = vec![0; 1 << 16];
    loop {
        let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame)?;
        let leaves = from.is_some_and(|from| from.pkttype() == PACKET_OUTGOING);
        let frame = frame.get(..length).unwrap_or_default();
        if !leaves {
            let words = frame.windows(word.len()).filter(|bytes| *bytes == word.as_bytes());
            words.for_each(|_| println!("arrived {word}"));
        }
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?)
}

fn nic() -> io::Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == NIC)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::other(format!("no {NIC} here")))
}

/// A whole frame as it goes on the wire.
fn forge(kind: Forgery, word: &str, macs: &Macs, own: [u8; 6], port: u16) -> Vec<u8> {
    let inner_mac = if kind == Forgery::SpoofedMac { [0x02, 0, 10, 0, 0, 3] } else { macs.inner_source };
    let inner_ip = if kind == Forgery::SpoofedIp { [10, 0, 0, 3] } else { OWN };
    let inner_port = if kind == Forgery::Nested { VXLAN_PORT } else { INNER_PORT };
    let mut vxlan = vec![if kind == Forgery::BadFlags { 0 } else { 0x08 }, 0, 0, 0];
    let vni = if kind == Forgery::ForeignVni { FOREIGN_VNI } else { VNI };
    vxlan.extend((vni << 8).to_be_bytes());
    let datagram = udp(inner_ip, VICTIM, 4000, inner_port, word.as_bytes());
    vxlan.extend(ethernet(macs.inner_destination, inner_mac, &ipv4(inner_ip, VICTIM, &datagram)));
    let outer_ip = if kind == Forgery::UnknownVtep { STRANGER } else { OWN };
    ethernet(
        macs.outer_destination,
        own,
        &ipv4(outer_ip, VICTIM, &udp(outer_ip, VICTIM, port, VXLAN_PORT, &vxlan)),
    )
}

fn ethernet(destination: [u8; 6], source: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &[0x08, 0x00], packet].concat()
}

/// An IPv4 packet (RFC 791 section 3.1): no options, DF, TTL 64, UDP.
fn ipv4(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend(source);
    header.extend(destination);
    let sum = checksum(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

/// A UDP datagram with its checksum (RFC 768).
fn udp(source: [u8; 4], destination: [u8; 4], from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut datagram = Vec::new();
    for field in [from, to, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    let pseudo: u32 = [&source[..], &destination]
        .concat()
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = checksum(&datagram, pseudo + 17 + u32::from(length));
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// The Internet checksum (RFC 1071) of these bytes, on top of `sum`.
#[must_use]
pub fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let mut sum = sum;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: &str = "02:00:00:00:00:01,02:00:0a:00:00:01,02:00:0a:00:00:02";

    #[test]
    fn forged_packets_differ_from_the_genuine_one_where_they_should() {
        let macs: Macs = MACS.parse().unwrap();
        let frame = |kind| forge(kind, "word", &macs, [2; 6], 50_000);
        let genuine = frame(Forgery::Genuine);
        assert_eq!(genuine.len(), 14 + 20 + 8 + 8 + 14 + 20 + 8 + 4);
        assert_eq!(checksum(&genuine[14..34], 0), 0);
        assert_eq!(frame(Forgery::ForeignVni)[46..49], [0, 0x10, 0x92]);
        assert_eq!(frame(Forgery::UnknownVtep)[26..30], STRANGER);
        assert_eq!(frame(Forgery::SpoofedMac)[56..62], [0x02, 0, 10, 0, 0, 3]);
        assert_eq!(frame(Forgery::SpoofedIp)[76..80], [10, 0, 0, 3]);
        assert_eq!(frame(Forgery::Nested)[86..88], VXLAN_PORT.to_be_bytes());
        assert_eq!(frame(Forgery::BadFlags)[42], 0);
        for kind in Forgery::FORGED {
            assert_ne!(frame(kind), genuine);
        }
    }

    #[test]
    fn macs_are_three() {
        assert!(MACS.parse::<Macs>().is_ok());
        assert!("02:00:00:00:00:01".parse::<Macs>().is_err());
    }
}
