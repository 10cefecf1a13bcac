//! Through another device than the own network's.

use super::socket::{self, ask, ask_datagram, inet, set};
use super::{Aim, Attempt};
use socket2::{SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// linux/in.h, linux/in6.h
const IP_UNICAST_IF: i32 = 50;
const IPV6_UNICAST_IF: i32 = 76;

/// A way to somebody else: a device, and a server behind it.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    device: fn(&Aim) -> String,
    to: fn(&Aim) -> IpAddr,
}

/// Into the victim's network, here and on the other node; to a host of the subnet; each by both families.
const WAYS: [Way; 10] = [
    Way { name: "vrf4", device: Aim::vrf, to: |_| Ipv4Addr::LOCALHOST.into_ip() },
    Way { name: "vrf6", device: Aim::vrf, to: |_| Ipv6Addr::LOCALHOST.into_ip() },
    Way { name: "vrf-here4", device: Aim::vrf, to: |aim| aim.here.into() },
    Way { name: "vrf-here6", device: Aim::vrf, to: |aim| aim.here6.into() },
    Way { name: "vrf-there4", device: Aim::vrf, to: |aim| aim.there.into() },
    Way { name: "vrf-there6", device: Aim::vrf, to: |aim| aim.there6.into() },
    Way { name: "endpoint4", device: Aim::endpoint, to: |aim| aim.there.into() },
    Way { name: "endpoint6", device: Aim::endpoint, to: |aim| aim.there6.into() },
    Way { name: "nic4", device: |aim| aim.nic.clone(), to: |aim| aim.host.into() },
    Way { name: "nic6", device: |aim| aim.nic.clone(), to: |aim| aim.host6.into() },
];

trait IntoIp {
    fn into_ip(self) -> IpAddr;
}

impl<T: Into<IpAddr>> IntoIp for T {
    fn into_ip(self) -> IpAddr {
        self.into()
    }
}

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for way in WAYS {
        let name = way.name;
        let at = move |aim: &Aim| (Aim::at((way.to)(aim)), (way.device)(aim));
        all.push(Attempt::new(format!("bindtodevice-tcp-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::STREAM, to)?;
            by_name(&socket, &device);
            ask(&socket, to, what)
        }));
        all.push(Attempt::new(format!("bindtoifindex-tcp-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::STREAM, to)?;
            by_index(&socket, &device)?;
            ask(&socket, to, what)
        }));
        all.push(Attempt::new(format!("srun-bindtodevice-tcp-{name}"), move |aim, what| {
            socket::pose_as_srun();
            let (to, device) = at(aim);
            let socket = inet(Type::STREAM, to)?;
            by_name(&socket, &device);
            ask(&socket, to, what)
        }));
        all.push(Attempt::new(format!("fastopen-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::STREAM, to)?;
            by_name(&socket, &device);
            socket.send_to_with_flags(what.as_bytes(), &SockAddr::from(to), libc::MSG_FASTOPEN)?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("bindtodevice-udp-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::DGRAM, to)?;
            by_name(&socket, &device);
            ask_datagram(&socket, to, what)
        }));
        all.push(Attempt::new(format!("pktinfo-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::DGRAM, to)?;
            socket::send_through(&socket, &device, to, what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("pktinfo-connected-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::DGRAM, to)?;
            socket.connect(&SockAddr::from(to))?;
            socket::send_through(&socket, &device, to, what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("disconnected-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::DGRAM, to)?;
            socket.connect(&SockAddr::from(to))?;
            socket::disconnect(&socket)?;
            // Nothing is bound any more: once by the message, once by the socket.
            let _refused = socket::send_through(&socket, &device, to, what.as_bytes());
            socket::disconnect(&socket)?;
            by_name(&socket, &device);
            ask_datagram(&socket, to, what)
        }));
        all.push(Attempt::new(format!("unicast-if-{name}"), move |aim, what| {
            let (to, device) = at(aim);
            let socket = inet(Type::DGRAM, to)?;
            unicast_if(&socket, &device, to)?;
            ask_datagram(&socket, to, what)
        }));
    }
    all.extend(others());
    all
}

/// Goes on if refused: by then it may not be needed.
fn by_name(socket: &Socket, device: &str) {
    let _refused = socket.bind_device(Some(device.as_bytes()));
}

fn by_index(socket: &Socket, device: &str) -> io::Result<()> {
    let _refused = set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &socket::index(device)?);
    Ok(())
}

fn unicast_if(socket: &Socket, device: &str, to: SocketAddr) -> io::Result<()> {
    let index = socket::index(device)?.to_be();
    if to.is_ipv4() {
        set(socket, libc::IPPROTO_IP, IP_UNICAST_IF, &index)
    } else {
        set(socket, libc::IPPROTO_IPV6, IPV6_UNICAST_IF, &index)
    }
}

fn others() -> Vec<Attempt> {
    let mut all = Vec::new();
    // A mapped address takes the way of IPv4 with a socket of IPv6.
    all.push(Attempt::new("mapped-pktinfo", |aim, what| {
        let to = SocketAddr::new(aim.there.to_ipv6_mapped().into(), super::PORT);
        let socket = inet(Type::DGRAM, to)?;
        let any = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        socket::send_from(&socket, socket::index(&aim.endpoint())?, any.into(), to, what.as_bytes())?;
        socket::answer(&mut &socket)
    }));
    all.push(Attempt::new("mapped-bindtodevice", |aim, what| {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), super::PORT);
        let socket = inet(Type::STREAM, to)?;
        by_name(&socket, &aim.vrf());
        ask(&socket, to, what)
    }));
    // Link-local addresses name their device themselves.
    for (name, device) in
        [("endpoint", Aim::endpoint as fn(&Aim) -> String), ("nic", |aim: &Aim| aim.nic.clone())]
    {
        all.push(Attempt::new(format!("scope-tcp-{name}"), move |aim, what| {
            let to = link_local(&device(aim))?;
            ask(&inet(Type::STREAM, to)?, to, what)
        }));
        all.push(Attempt::new(format!("scope-udp-{name}"), move |aim, what| {
            let to = link_local(&device(aim))?;
            ask_datagram(&inet(Type::DGRAM, to)?, to, what)
        }));
    }
    // Everybody on the victim's link, and on the NIC's.
    for (name, device, port) in [
        ("endpoint", Aim::endpoint as fn(&Aim) -> String, super::PORT),
        ("nic", |aim: &Aim| aim.nic.clone(), super::PORT),
    ] {
        all.push(Attempt::new(format!("broadcast-{name}"), move |aim, what| {
            let to = SocketAddr::new(Ipv4Addr::BROADCAST.into(), port);
            let socket = inet(Type::DGRAM, to)?;
            socket.set_broadcast(true)?;
            socket::send_through(&socket, &device(aim), to, what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("subnet-broadcast-{name}"), move |aim, what| {
            let [a, b, c, _] = aim.here.octets();
            let to = SocketAddr::new(Ipv4Addr::new(a, b, c, 255).into(), port);
            let socket = inet(Type::DGRAM, to)?;
            socket.set_broadcast(true)?;
            socket::send_through(&socket, &device(aim), to, what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("multicast-{name}"), move |aim, what| {
            let to = SocketAddr::new(Ipv4Addr::new(224, 0, 0, 1).into(), port);
            let socket = inet(Type::DGRAM, to)?;
            let request = libc::ip_mreqn {
                imr_multiaddr: libc::in_addr { s_addr: 0 },
                imr_address: libc::in_addr { s_addr: 0 },
                imr_ifindex: socket::index(&device(aim))?.cast_signed(),
            };
            set(&socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)?;
            ask_datagram(&socket, to, what)
        }));
        all.push(Attempt::new(format!("multicast-message-{name}"), move |aim, what| {
            let to = SocketAddr::new(Ipv4Addr::new(224, 0, 0, 1).into(), port);
            let socket = inet(Type::DGRAM, to)?;
            socket::send_through(&socket, &device(aim), to, what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("multicast6-message-{name}"), move |aim, what| {
            let to = SocketAddr::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(), super::PORT6);
            let socket = inet(Type::DGRAM, to)?;
            socket::send_through(&socket, &device(aim), to, what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
        all.push(Attempt::new(format!("multicast6-{name}"), move |aim, what| {
            let to = SocketAddr::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(), super::PORT6);
            let socket = inet(Type::DGRAM, to)?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, &socket::index(&device(aim))?)?;
            ask_datagram(&socket, to, what)
        }));
    }
    all
}

/// A device's own link-local address, where the victim's server listens.
fn link_local(device: &str) -> io::Result<SocketAddr> {
    let wanted = format!("{:02x}", socket::index(device)?);
    let all = std::fs::read_to_string("/proc/net/if_inet6")?;
    let own = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own =
        own.filter(|words| words.get(1) == Some(&wanted.as_str())).find(|words| words[0].starts_with("fe80"));
    let bits = own.and_then(|words| u128::from_str_radix(words[0], 16).ok());
    let address = bits.map_or(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::from_bits);
    Ok(std::net::SocketAddrV6::new(address, super::PORT6, 0, socket::index(device)?).into())
}
