//! Not by sending, but by receiving: sockets that shall get what the victim sends in her network. Each attempt starts as root,
//! to have a child that is the victim.
#![allow(unsafe_code, reason = "a child of another user, and options that no library makes")]

use super::process::{become_user, keep_net_raw};
use super::socket::{self, PATIENCE, any, inet, into_vrf, set};
use super::{Aim, Attempt, FREE_PORT};
use nix::unistd::{ForkResult, fork};
use socket2::{SockAddr, Socket, Type};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::{Duration, Instant};

/// Groups that nobody else uses (RFC 2365, RFC 4291 section 2.7).
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 1, 2);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = vec![
        Attempt::new("root-listen-tcp", |aim, what| {
            spied(aim, what, Type::STREAM, NEAR, || {
                let socket = bound(aim, Type::STREAM, ANY)?;
                into_vrf(aim, &socket);
                socket.listen(8)?;
                Ok(socket)
            })
        }),
        Attempt::new("root-listen-udp", |aim, what| spied(aim, what, Type::DGRAM, NEAR, || member(aim, ANY))),
        Attempt::new("root-listen-udp-mapped", |aim, what| {
            spied(aim, what, Type::DGRAM, NEAR, || disconnected(aim, ANY6))
        }),
        Attempt::new("root-listen-udp-disconnected", |aim, what| {
            spied(aim, what, Type::DGRAM, NEAR, || disconnected(aim, ANY))
        }),
        // The kernel looks for sockets with an address first.
        Attempt::new("root-listen-udp-here", |aim, what| {
            spied(aim, what, Type::DGRAM, aim.here.into(), || disconnected(aim, aim.here.into()))
        }),
    ];
    for (name, make) in
        [("", member as fn(&Aim, IpAddr) -> io::Result<Socket>), ("-disconnected", disconnected)]
    {
        all.push(Attempt::new(format!("root-group4{name}"), move |aim, what| {
            spied(aim, what, Type::DGRAM, GROUP.into(), || {
                let socket = make(aim, ANY)?;
                join(&socket, &aim.endpoint())?;
                Ok(socket)
            })
        }));
        all.push(Attempt::new(format!("root-group6{name}"), move |aim, what| {
            spied(aim, what, Type::DGRAM, GROUP6.into(), || {
                let socket = make(aim, ANY6)?;
                socket.join_multicast_v6(&GROUP6, socket::index(&aim.endpoint())?)?;
                Ok(socket)
            })
        }));
        all.push(Attempt::new(format!("root-broadcast{name}"), move |aim, what| {
            spied(aim, what, Type::DGRAM, Ipv4Addr::BROADCAST.into(), || make(aim, ANY))
        }));
    }
    // With the capability that ping and its like may have: a raw socket gets a copy of all packets of its protocol. Nobody
    // listens where the victim sends, which the kernel answers by ICMP, with what was sent.
    for (name, protocol) in [("udp", libc::IPPROTO_UDP), ("icmp", libc::IPPROTO_ICMP)] {
        all.push(Attempt::new(format!("root-raw-listen-{name}"), move |aim, what| {
            spied(aim, what, Type::DGRAM, NEAR, || {
                keep_net_raw(aim.uid)?;
                let socket = any(libc::AF_INET, libc::SOCK_RAW, protocol)?;
                into_vrf(aim, &socket);
                Ok(socket)
            })
        }));
    }
    all
}

/// The attacker's socket, on a port that nobody else is likely to want: one that the kernel chose would be lost with the device.
fn bound(aim: &Aim, kind: Type, address: IpAddr) -> io::Result<Socket> {
    become_user(aim.uid, aim.uid)?;
    let address = SocketAddr::new(address, socket::own_port());
    let socket = inet(kind, address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn member(aim: &Aim, address: IpAddr) -> io::Result<Socket> {
    let socket = bound(aim, Type::DGRAM, address)?;
    into_vrf(aim, &socket);
    Ok(socket)
}

/// The same, whose device the kernel has forgotten, and which anybody may give another therefore.
fn disconnected(aim: &Aim, address: IpAddr) -> io::Result<Socket> {
    let socket = bound(aim, Type::DGRAM, address)?;
    socket::disconnect(&socket)?;
    into_vrf(aim, &socket);
    Ok(socket)
}

fn join(socket: &Socket, device: &str) -> io::Result<()> {
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: GROUP.to_bits().to_be() },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: socket::index(device)?.cast_signed(),
    };
    set(socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &request)
}

/// Has the victim say `what` again and again to this address and the port of `spy`'s socket, and returns what that hears.
fn spied(
    aim: &Aim,
    what: &str,
    kind: Type,
    to: IpAddr,
    spy: impl FnOnce() -> io::Result<Socket>,
) -> io::Result<String> {
    let (ours, hers) = UnixDatagram::pair()?;
    // Not for ever, should there be no socket.
    hers.set_read_timeout(Some(2 * PATIENCE))?;
    // SAFETY: this process has one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        drop(ours);
        let _nobody_listens = speak(aim, what, kind, to, &hers);
        std::process::exit(0);
    }
    let socket = spy()?;
    // A raw socket has none.
    let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
    ours.send(&port.to_ne_bytes())?;
    hear(socket, kind, what)
}

fn speak(aim: &Aim, what: &str, kind: Type, to: IpAddr, port: &UnixDatagram) -> io::Result<()> {
    become_user(aim.victim, aim.victim)?;
    let mut number = [0; 2];
    port.recv(&mut number)?;
    let to = match u16::from_ne_bytes(number) {
        0 => SocketAddr::new(to, FREE_PORT),
        port => SocketAddr::new(to, port),
    };
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let socket = inet(kind, to)?;
        // As it is anyway, where uvn is.
        into_vrf(aim, &socket);
        let _nobody_listens = if kind == Type::STREAM {
            socket.connect_timeout(&to.into(), PATIENCE).and_then(|()| socket.send(what.as_bytes()).map(drop))
        } else if to.ip().is_loopback() || to.ip() == IpAddr::from(aim.here) {
            socket.send_to(what.as_bytes(), &SockAddr::from(to)).map(drop)
        } else {
            socket.set_broadcast(true)?;
            socket::send_through(&socket, &aim.endpoint(), to, what.as_bytes())
        };
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn hear(socket: Socket, kind: Type, what: &str) -> io::Result<String> {
    socket.set_read_timeout(Some(2 * PATIENCE))?;
    let mut socket = if kind == Type::STREAM { socket.accept()?.0 } else { socket };
    let end = Instant::now() + 2 * PATIENCE;
    let mut heard = [0; 2048];
    while Instant::now() < end {
        let length = socket.read(&mut heard)?;
        // Raw sockets hear others' attempts, too, each behind headers.
        if heard[..length].windows(what.len()).any(|part| part == what.as_bytes()) {
            return Ok("what she said".to_owned());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
