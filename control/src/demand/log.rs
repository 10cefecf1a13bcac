//! Packets that nftables logs (include/uapi/linux/netfilter/nfnetlink_log.h): the VNIs that kernel VXLAN does not know.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
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
/// NFULA_CFG_QTHRESH: one packet per message. More would come after a second.
const AT_ONCE: (u16, &[u8]) = (5, &[0, 0, 0, 1]);
/// NFULA_PAYLOAD.
const PAYLOAD: u16 = 9;
/// NLMSG_ERROR (include/uapi/linux/netlink.h), also the acknowledgement.
const ERROR: u16 = 2;
/// NLM_F_REQUEST | NLM_F_ACK.
const FLAGS: u16 = 1 | 4;
/// How long the kernel may take to answer.
const PATIENCE: TimeVal = TimeVal::new(10, 0);
/// Packets read at a time; the others wait their turn.
const BATCH: usize = 256;
/// struct nlmsghdr and struct nfgenmsg.
const HEADERS: usize = 16 + 4;

/// The socket. mio can poll it.
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
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.send(&message(CONFIGURE, GROUP, &[BIND, MODE, AT_ONCE]), 0)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
        let mut answer = vec![0; 4096];
        // Packets of the group may come before the answer.
        let code = loop {
            let length = socket.recv(&mut &mut answer[..], 0)?;
            let packet = answer.get(..length).unwrap_or_default();
            if let Some((_, body)) = messages(packet).find(|(kind, _)| *kind == ERROR) {
                break number(body, 0).ok_or(io::ErrorKind::InvalidData)?;
            }
        };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code.cast_signed().saturating_neg()));
        }
        socket.set_non_blocking(true)?;
        Ok(UnknownLog { socket })
    }

    /// What has been logged: each VNI with the VTEP that sent to it. Call it until it says nothing.
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
                    seen.extend(logged.filter_map(|(_, body)| vxlan(payload(body)?)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // More came than fits: they are logged again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    }
}

/// A message of nfnetlink: its headers, then attributes.
fn message(kind: u16, group: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADERS];
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    // Family AF_UNSPEC and version 0 are zero already.
    for (at, bytes) in [
        (0, &length.to_ne_bytes()[..]),
        (4, &kind.to_ne_bytes()[..]),
        (6, &FLAGS.to_ne_bytes()[..]),
        (HEADERS - 2, &group.to_be_bytes()[..]),
    ] {
        if let Some(place) = message.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    message
}

/// Type and body, without struct nlmsghdr, of each message in a datagram.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(rest, 0)?).ok()?;
        let kind = u16::from_ne_bytes(bytes(rest, 4)?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The packet in a logged message's body, from its IP header on.
fn payload(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body.get(HEADERS - 16..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes(rest, 0)?));
        let kind = u16::from_ne_bytes(bytes(rest, 2)?);
        let value = rest.get(4..length)?;
        if kind == PAYLOAD {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// VNI and outer source of a VXLAN packet. The rule that logs it has checked protocol and port.
fn vxlan(packet: &[u8]) -> Option<(Vni, IpAddr)> {
    let first = *packet.first()?;
    let (source, udp): (IpAddr, usize) = match first >> 4 {
        4 => (Ipv4Addr::from(bytes::<4>(packet, 12)?).into(), usize::from(first & 0xf) * 4),
        6 => (Ipv6Addr::from(bytes::<16>(packet, 8)?).into(), 40),
        _ => return None,
    };
    Some((Vni::from(bytes::<3>(packet, udp + 8 + 4)?), source))
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn number(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
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
        messages(&datagram).filter_map(|(_, body)| vxlan(payload(body)?)).collect()
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
            let parse = |datagram: &[u8]| messages(datagram).filter_map(|(_, body)| vxlan(payload(body)?)).count();
            prop_assert!(parse(&datagram) <= datagram.len());
            let mut changed = message(PACKET, GROUP, &[(PAYLOAD, &packet(&[0x45; 20]))]);
            changed[at] = byte;
            prop_assert!(parse(&changed) <= 1);
        }
    }
}
