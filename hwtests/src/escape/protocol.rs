//! With other protocols and families. Where the attempt is to have such a socket at all, it has succeeded with it.
#![allow(unsafe_code, reason = "families that no library knows")]

use super::socket::{self, any, ask, check, inet, through_vrf};
use super::{Aim, Attempt};
use socket2::{Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use uvn_wire::checksum::Sum;

/// Not in libc: linux/in.h.
const IPPROTO_SMC: i32 = 256;
/// include/linux/socket.h
pub(super) const AF_SMC: i32 = 43;
const AF_RDS: i32 = 21;
const AF_TIPC: i32 = 30;
const AF_RXRPC: i32 = 33;
const AF_KCM: i32 = 41;
const AF_QIPCRTR: i32 = 42;
/// linux/smc.h
const SMCPROTO_SMC: i32 = 0;
const SMCPROTO_SMC6: i32 = 1;
/// linux/rxrpc.h
const SOL_RXRPC: i32 = 272;
const RXRPC_MIN_SECURITY_LEVEL: i32 = 4;

/// Protocols over IP, by type of socket.
const OVER_IP: [(&str, i32, i32); 6] = [
    ("mptcp", libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
    ("smc-inet", libc::SOCK_STREAM, IPPROTO_SMC),
    ("sctp", libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    ("sctp-seqpacket", libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
    ("dccp", libc::SOCK_DCCP, libc::IPPROTO_DCCP),
    ("l2tp-ip", libc::SOCK_DGRAM, 115),
];

/// Families that need no privileges, and carry something from one user to another, on a node or between nodes.
pub const FAMILIES: [(&str, i32, i32, i32); 13] = [
    ("smc", AF_SMC, libc::SOCK_STREAM, SMCPROTO_SMC),
    ("smc6", AF_SMC, libc::SOCK_STREAM, SMCPROTO_SMC6),
    ("rds", AF_RDS, libc::SOCK_SEQPACKET, 0),
    ("tipc", AF_TIPC, libc::SOCK_RDM, 0),
    ("rxrpc", AF_RXRPC, libc::SOCK_DGRAM, libc::PF_INET),
    ("kcm", AF_KCM, libc::SOCK_SEQPACKET, 0),
    ("qipcrtr", AF_QIPCRTR, libc::SOCK_DGRAM, 0),
    ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    ("pppoe", libc::AF_PPPOX, libc::SOCK_STREAM, 0),
    ("pppol2tp", libc::AF_PPPOX, libc::SOCK_STREAM, 1),
    ("pptp", libc::AF_PPPOX, libc::SOCK_STREAM, 2),
    ("appletalk", libc::AF_APPLETALK, libc::SOCK_DGRAM, 0),
    ("phonet", libc::AF_PHONET, libc::SOCK_DGRAM, 0),
];

/// What needs a privilege that no user has: refused by the kernel itself.
const PRIVILEGED: [(&str, i32, i32, i32); 5] = [
    ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
    ("raw4", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
    ("raw6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW),
    ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
    ("llc", libc::AF_LLC, libc::SOCK_DGRAM, 0),
];

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, kind, protocol) in OVER_IP {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let version = if family == libc::AF_INET { 4 } else { 6 };
            all.push(Attempt::new(format!("socket-{name}{version}"), move |_, _| {
                any(family, kind, protocol).map(|_| "a socket".to_owned())
            }));
        }
    }
    all.extend(PRIVILEGED.map(to_have_one));
    all.push(Attempt::new("mptcp-bindtodevice", |aim, what| {
        through_vrf(aim, &any(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?, what)
    }));
    // Without the other end it falls back to TCP, in a socket that the kernel made.
    all.push(Attempt::new("smc-bindtodevice", |aim, what| {
        through_vrf(aim, &any(AF_SMC, libc::SOCK_STREAM, SMCPROTO_SMC)?, what)
    }));
    all.push(Attempt::new("udplite-pktinfo", |aim, what| {
        // Nobody listens with UDP-Lite: sent is enough.
        let socket = any(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?;
        let to = Aim::at(aim.there.into());
        socket::send_through(&socket, &aim.endpoint(), to, what.as_bytes()).map(|()| "sent".to_owned())
    }));
    for (name, device) in
        [("endpoint", Aim::endpoint as fn(&Aim) -> String), ("nic", |aim: &Aim| aim.nic.clone())]
    {
        all.push(Attempt::new(format!("ping-{name}"), move |aim, _| {
            let to = if device(aim) == aim.nic { aim.host } else { aim.there };
            ping(&any(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)?, &device(aim), to.into())
        }));
        all.push(Attempt::new(format!("ping6-{name}"), move |aim, _| {
            let to = if device(aim) == aim.nic { aim.host6 } else { aim.there6 };
            ping(&any(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6)?, &device(aim), to.into())
        }));
    }
    all.push(Attempt::new("ping-disconnected", |aim, _| {
        let socket = any(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)?;
        socket.connect(&std::net::SocketAddr::new(aim.host.into(), 0).into())?;
        socket::disconnect(&socket)?;
        ping(&socket, &aim.nic, aim.host.into())
    }));
    all.push(Attempt::new("rxrpc-bind", |_, _| rxrpc()));
    for (name, address) in
        [("nat-tcp", Ipv4Addr::new(100, 64, 0, 1)), ("nat-tcp-second", Ipv4Addr::new(100, 64, 0, 2))]
    {
        all.push(Attempt::new(name, move |_, what| {
            let to = Aim::at(address.into());
            ask(&inet(Type::STREAM, to)?, to, what)
        }));
    }
    all
}

/// Attempts to have a socket of each of [`FAMILIES`]. Not among [`attempts`]: what keeps users from them is that nothing
/// loads the modules.
#[must_use]
pub fn families() -> Vec<Attempt> {
    FAMILIES.map(to_have_one).into()
}

fn to_have_one((name, family, kind, protocol): (&str, i32, i32, i32)) -> Attempt {
    Attempt::new(format!("socket-{name}"), move |_, _| {
        any(family, kind, protocol).map(|_| "a socket".to_owned())
    })
}

/// An ICMP echo through a device, by option and by message.
///
/// # Errors
/// No reply.
pub fn ping(socket: &Socket, device: &str, to: IpAddr) -> io::Result<String> {
    let _refused = socket.bind_device(Some(device.as_bytes()));
    socket::send_through(socket, device, std::net::SocketAddr::new(to, 0), &echo(to.is_ipv4()))?;
    socket::answer(&mut &*socket).map(|_| "a reply".to_owned())
}

/// A request: type 8 (RFC 792) or 128 (RFC 4443). A ping socket fills in checksum and identifier.
#[must_use]
pub fn echo(ipv4: bool) -> [u8; 12] {
    let mut request = [if ipv4 { 8 } else { 128 }, 0, 0, 0, 0, 0, 0, 1, b'u', b'v', b'n', 0];
    let sum = Sum::of(&request).checksum();
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    request
}

/// Has the kernel open a UDP socket of its own, in the default VRF.
fn rxrpc() -> io::Result<String> {
    /// linux/rxrpc.h, sockaddr_rxrpc with an IPv4 transport.
    #[repr(C)]
    struct Address {
        family: u16,
        service: u16,
        kind: u16,
        length: u16,
        transport: libc::sockaddr_in,
        // As large as with IPv6.
        rest: [u8; 12],
    }
    let socket = any(AF_RXRPC, libc::SOCK_DGRAM, libc::PF_INET)?;
    let _default_will_do = socket::set(&socket, SOL_RXRPC, RXRPC_MIN_SECURITY_LEVEL, &0_u32);
    let address = Address {
        family: AF_RXRPC as u16,
        service: 0,
        kind: libc::SOCK_DGRAM as u16,
        length: size_of::<libc::sockaddr_in>() as u16,
        // SAFETY: all zero is a sockaddr_in.
        transport: libc::sockaddr_in { sin_family: libc::AF_INET as u16, ..unsafe { std::mem::zeroed() } },
        rest: [0; 12],
    };
    let length = size_of::<Address>() as libc::socklen_t;
    // SAFETY: the address is as long as said.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok("bound".to_owned())
}
