//! Reads packets that nftables logs (include/uapi/linux/netfilter/nfnetlink_log.h), for the VNIs that peers send to
//! over kernel VXLAN.

use crate::netfilter::{self, attribute, bytes, message, messages};
use netlink_sys::Socket;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};
use uvn_wire::vxlan::Vni;

/// The log group of uvn's rules: `log group 30070`.
pub const GROUP: u16 = 30070;

/// NFNL_SUBSYS_ULOG (include/uapi/linux/netfilter/nfnetlink.h), the upper byte of a message's type.
const SUBSYSTEM: u16 = 4;
/// NFULNL_MSG_PACKET.
const PACKET: u16 = SUBSYSTEM << 8;
/// NFULNL_MSG_CONFIG.
const CONFIGURE: u16 = SUBSYSTEM << 8 | 1;
/// NFULA_CFG_CMD with NFULNL_CFG_CMD_BIND.
const BIND: (u16, &[u8]) = (1, &[1]);
/// NFULA_CFG_MODE: NFULNL_COPY_PACKET, 128 bytes of each: an IPv4 header with options, UDP and VXLAN need 76.
const MODE: (u16, &[u8]) = (2, &[0, 0, 0, 128, 2, 0]);
/// NFULA_CFG_QTHRESH: one packet per message, at once. The kernel collects more for up to a second.
const AT_ONCE: (u16, &[u8]) = (5, &[0, 0, 0, 1]);
/// NFULA_PAYLOAD.
const PAYLOAD: u16 = 9;
/// Packets that one call reads.
const BATCH: usize = 256;

/// A socket that listens to [`GROUP`]. mio can poll it.
#[derive(Debug)]
pub struct UnknownLog {
    socket: Socket,
}

impl AsRawFd for UnknownLog {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl UnknownLog {
    /// Listens to [`GROUP`] in this network namespace.
    ///
    /// # Errors
    /// The kernel cannot log to user space, or another program listens to the group.
    pub fn open() -> io::Result<UnknownLog> {
        let socket = netfilter::open(&message(CONFIGURE, GROUP, &[BIND, MODE, AT_ONCE]))?;
        socket.set_non_blocking(true)?;
        Ok(UnknownLog { socket })
    }

    /// The logged packets: each VNI with the VTEP that sent to it. Call it until it returns none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&mut self) -> io::Result<Vec<(Vni, IpAddr)>> {
        let mut seen = Vec::new();
        let mut buffer = vec![0; 4096];
        for _ in 0..BATCH {
            match self.socket.recv(&mut &mut buffer[..], 0) {
                Ok(length) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    let logged = messages(packet).filter(|(kind, _)| *kind == PACKET);
                    seen.extend(logged.filter_map(|(_, body)| vxlan(attribute(body, PAYLOAD)?)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Packets were lost: later ones are logged again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    }
}

/// VNI and outer source of a VXLAN packet. The nftables rule has checked protocol and port.
fn vxlan(packet: &[u8]) -> Option<(Vni, IpAddr)> {
    let first = *packet.first()?;
    let (source, udp): (IpAddr, usize) = match first >> 4 {
        4 => (Ipv4Addr::from(bytes::<4>(packet, 12)?).into(), usize::from(first & 0xf) * 4),
        6 => (Ipv6Addr::from(bytes::<16>(packet, 8)?).into(), 40),
        _ => return None,
    };
    Some((Vni::from(bytes::<3>(packet, udp + 8 + 4)?), source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(header: &[u8]) -> Vec<u8> {
        [header, &[0; 8], &[8, 0, 0, 0, 0, 3, 0xe8, 0], &[0xaa; 60]].concat()
    }

    fn logged(packet: &[u8]) -> Vec<(Vni, IpAddr)> {
        let datagram = message(PACKET, GROUP, &[(1, &[0; 4]), (10, b"prefix\0"), (PAYLOAD, packet)]);
        messages(&datagram).filter_map(|(_, body)| vxlan(attribute(body, PAYLOAD)?)).collect()
    }

    #[test]
    fn vni_and_vtep_of_a_logged_packet() {
        let vni = Vni::new(1000).unwrap();
        let mut ipv4 = vec![0x46; 24];
        ipv4[12..16].copy_from_slice(&[10, 0, 0, 7]);
        assert_eq!(logged(&packet(&ipv4)), [(vni, IpAddr::from([10, 0, 0, 7]))]);
        let mut ipv6 = vec![0x60; 40];
        ipv6[8..24].copy_from_slice(&"fd00::7".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(logged(&packet(&ipv6)), [(vni, "fd00::7".parse().unwrap())]);
        assert!(logged(&packet(&ipv6)[..54]).is_empty() && logged(&[0x20; 60]).is_empty());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_to_its_end(datagram: Vec<u8>, at in 0..64usize, byte: u8) {
            let parse = |datagram: &[u8]| messages(datagram).filter_map(|(_, body)| vxlan(attribute(body, PAYLOAD)?)).count();
            prop_assert!(parse(&datagram) <= datagram.len());
            let mut changed = message(PACKET, GROUP, &[(PAYLOAD, &packet(&[0x45; 20]))]);
            changed[at] = byte;
            prop_assert!(parse(&changed) <= 1);
        }
    }
}
