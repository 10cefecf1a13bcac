//! By a way that the packet itself names: to a host of the subnet by way of off-subnet, where a router takes source routes.

use super::socket::{self, ask, inet, set};
use super::{Aim, Attempt};
use socket2::Type;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// linux/ip.h: IPOPT_LSRR. RFC 791 section 3.1: kind, length, where the route begins; padded to a word.
const LOOSE: [u8; 3] = [131, 7, 4];
const NO_OPERATION: u8 = 1;
/// linux/in6.h
const IPV6_RTHDR: i32 = 57;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    vec![
        Attempt::new("route-tcp4", |aim, what| {
            let socket = inet(Type::STREAM, host(aim))?;
            set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &by_way_of(aim.outside))?;
            ask(&socket, host(aim), what)
        }),
        Attempt::new("route-udp4", |aim, what| {
            let socket = inet(Type::DGRAM, host(aim))?;
            set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &by_way_of(aim.outside))?;
            socket::ask_datagram(&socket, host(aim), what)
        }),
        Attempt::new("route-tcp6", |aim, what| {
            let socket = inet(Type::STREAM, host6(aim))?;
            set(&socket, libc::IPPROTO_IPV6, IPV6_RTHDR, &by_way_of6(aim.outside6))?;
            ask(&socket, host6(aim), what)
        }),
        Attempt::new("route-udp6", |aim, what| {
            let socket = inet(Type::DGRAM, host6(aim))?;
            set(&socket, libc::IPPROTO_IPV6, IPV6_RTHDR, &by_way_of6(aim.outside6))?;
            socket::ask_datagram(&socket, host6(aim), what)
        }),
    ]
}

fn host(aim: &Aim) -> SocketAddr {
    Aim::at(aim.host.into())
}

fn host6(aim: &Aim) -> SocketAddr {
    Aim::at(aim.host6.into())
}

/// An IPv4 option. The kernel sends to `router`, which sends to the destination.
fn by_way_of(router: Ipv4Addr) -> [u8; 8] {
    let ([kind, length, first], [a, b, c, d]) = (LOOSE, router.octets());
    [kind, length, first, a, b, c, d, NO_OPERATION]
}

/// A segment routing header (RFC 8754 section 2): two segments, of which the kernel fills in the last, and comes to it second.
fn by_way_of6(router: Ipv6Addr) -> [u8; 40] {
    let mut header = [0; 40];
    // Its length in eights of bytes beyond the first eight, type 4, one segment left, index of the last in the list.
    header[1..5].copy_from_slice(&[4, 4, 1, 1]);
    header[24..].copy_from_slice(&router.octets());
    header
}
