//! By other system calls, addresses of another family, and sockets that have been something else before.
#![allow(unsafe_code, reason = "addresses and options that no library makes")]

use super::socket::{self, PATIENCE, any, ask, check, inet, into_vrf, set, through_vrf, victim};
use super::{Aim, Attempt, PORT};
use socket2::{Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

/// linux/in6.h
const IPV6_ADDRFORM: i32 = 1;
const IPV6_2292PKTINFO: i32 = 2;
/// linux/tcp.h
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// Where nobody listens.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = families();
    all.extend(former_lives());
    all.extend(lasting());
    all.push(Attempt::new("sendmmsg-pktinfo", |aim, what| {
        let socket = inet(Type::DGRAM, victim())?;
        send_many(&socket, &aim.vrf(), what.as_bytes())?;
        socket::answer(&mut &socket)
    }));
    all.push(Attempt::new("fastopen-connect", |aim, what| {
        let socket = inet(Type::STREAM, victim())?;
        into_vrf(aim, &socket);
        set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &1_i32)?;
        ask(&socket, victim(), what)
    }));
    all
}

/// The kernel takes some addresses of another family than the socket's.
fn families() -> Vec<Attempt> {
    vec![
        Attempt::new("unspec-sendto", |aim, what| {
            let socket = inet(Type::DGRAM, victim())?;
            into_vrf(aim, &socket);
            send_to_family(&socket, libc::AF_UNSPEC, what.as_bytes())?;
            socket::answer(&mut &socket)
        }),
        Attempt::new("inet-on-inet6-sendto", |aim, what| {
            let socket = any(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
            into_vrf(aim, &socket);
            send_to_family(&socket, libc::AF_INET, what.as_bytes())?;
            socket::answer(&mut &socket)
        }),
        Attempt::new("inet-on-inet6-connect", |aim, what| {
            let socket = any(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("inet-on-inet6-pktinfo", |aim, what| {
            let socket = any(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
            socket::send_through(&socket, &aim.vrf(), victim(), what.as_bytes())?;
            socket::answer(&mut &socket)
        }),
    ]
}

/// Sockets that were connected, listened, or were of IPv6.
fn former_lives() -> Vec<Attempt> {
    vec![
        Attempt::new("addrform-udp", |aim, what| {
            let socket = any(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
            become_ipv4(&socket, NOWHERE)?;
            into_vrf(aim, &socket);
            socket::ask_datagram(&socket, victim(), what)
        }),
        Attempt::new("addrform-tcp", |aim, what| {
            let own = own_listener()?;
            let socket = any(libc::AF_INET6, libc::SOCK_STREAM, 0)?;
            become_ipv4(&socket, own.local_addr()?)?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("disconnected-tcp", |aim, what| {
            let own = own_listener()?;
            let socket = inet(Type::STREAM, victim())?;
            socket.connect(&own.local_addr()?.into())?;
            socket::disconnect(&socket)?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("refused-tcp", |aim, what| {
            let socket = inet(Type::STREAM, victim())?;
            let _refused = socket.connect(&NOWHERE.into());
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("listened-tcp", |aim, what| {
            let socket = inet(Type::STREAM, victim())?;
            socket.listen(1)?;
            socket::disconnect(&socket)?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("accepted-tcp", |aim, what| {
            let own = own_listener()?;
            let peer = inet(Type::STREAM, victim())?;
            peer.connect(&own.local_addr()?.into())?;
            let socket = Socket::from(own.accept()?.0);
            socket.set_read_timeout(Some(PATIENCE))?;
            socket::disconnect(&socket)?;
            through_vrf(aim, &socket, what)
        }),
    ]
}

/// What a socket remembers for all its messages, and the older names of that.
fn lasting() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, device, there) in
        [("vrf", Aim::vrf as fn(&Aim) -> String, false), ("endpoint", Aim::endpoint, true)]
    {
        let to = move |aim: &Aim| Aim::at(if there { aim.there6.into() } else { Ipv6Addr::LOCALHOST.into() });
        let info = move |aim: &Aim| -> io::Result<libc::in6_pktinfo> {
            let any = libc::in6_addr { s6_addr: Ipv6Addr::UNSPECIFIED.octets() };
            Ok(libc::in6_pktinfo { ipi6_addr: any, ipi6_ifindex: socket::index(&device(aim))? })
        };
        all.push(Attempt::new(format!("lasting-pktinfo-{name}"), move |aim, what| {
            let socket = inet(Type::DGRAM, to(aim))?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info(aim)?)?;
            socket::ask_datagram(&socket, to(aim), what)
        }));
        all.push(Attempt::new(format!("lasting-pktinfo-disconnected-{name}"), move |aim, what| {
            let socket = inet(Type::DGRAM, to(aim))?;
            socket::disconnect(&socket)?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info(aim)?)?;
            ask(&socket, to(aim), what)
        }));
        all.push(Attempt::new(format!("rfc2292-pktinfo-{name}"), move |aim, what| {
            let socket = inet(Type::DGRAM, to(aim))?;
            let (data, level) = (what.as_bytes(), libc::IPPROTO_IPV6);
            socket::with_message(to(aim), data, level, IPV6_2292PKTINFO, info(aim)?, |message| {
                socket::send(&socket, message)
            })?;
            socket::answer(&mut &socket)
        }));
    }
    all
}

fn own_listener() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// Connects a socket of IPv6 to an address of IPv4, has it be one of IPv4, and disconnects it.
fn become_ipv4(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), to.port());
    socket.connect(&mapped.into())?;
    set(socket, libc::IPPROTO_IPV6, IPV6_ADDRFORM, &libc::AF_INET)?;
    socket::disconnect(socket)
}

/// Sends to the victim's server of IPv4, by an address that says it is of `family`.
fn send_to_family(socket: &Socket, family: i32, data: &[u8]) -> io::Result<()> {
    let to = libc::sockaddr_in {
        sin_family: family as libc::sa_family_t,
        sin_port: PORT.to_be(),
        sin_addr: libc::in_addr { s_addr: Ipv4Addr::LOCALHOST.to_bits().to_be() },
        sin_zero: [0; 8],
    };
    let (fd, length) = (socket.as_raw_fd(), size_of_val(&to) as libc::socklen_t);
    // SAFETY: the data and the address are as long as said.
    let sent =
        unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), 0, (&raw const to).cast(), length) };
    check(sent as i32)
}

/// Two messages at once: the first is harmless, the second shall leave through a device.
fn send_many(socket: &Socket, device: &str, data: &[u8]) -> io::Result<()> {
    let index = socket::index(device)?.cast_signed();
    let none = libc::in_addr { s_addr: 0 };
    let info = |index| libc::in_pktinfo { ipi_ifindex: index, ipi_spec_dst: none, ipi_addr: none };
    let (level, kind) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
    socket::with_message(NOWHERE, data, level, kind, info(0), |harmless| {
        socket::with_message(victim(), data, level, kind, info(index), |message| {
            let mut both = [harmless, message].map(|header| libc::mmsghdr { msg_hdr: *header, msg_len: 0 });
            // SAFETY: both messages are whole.
            match unsafe { libc::sendmmsg(socket.as_raw_fd(), both.as_mut_ptr(), 2, 0) } {
                2 => Ok(()),
                1 => Err(io::Error::other("one sent")),
                result => check(result),
            }
        })
    })
}
