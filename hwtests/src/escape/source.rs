//! From the victim's NAT address: whoever answers from off-subnet answers the victim.

use super::socket::{self, inet, set};
use super::{Aim, Attempt, PORT, PORT6};
use socket2::{SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The attempts. Each has a host off-subnet send a datagram back to where it seems to come from.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, ipv4) in [("source-freebind4", true), ("source-freebind6", false)] {
        all.push(Attempt::new(name, move |aim, what| {
            let (from, to) = way(aim, ipv4);
            let socket = reusable(aim, from)?;
            free(&socket, from)?;
            socket.bind(&SockAddr::from(from))?;
            sent(socket.send_to(what.as_bytes(), &SockAddr::from(to)).map(drop))
        }));
        all.push(Attempt::new(format!("{name}-connected"), move |aim, what| {
            let (from, to) = way(aim, ipv4);
            let socket = reusable(aim, from)?;
            free(&socket, from)?;
            socket.bind(&SockAddr::from(from))?;
            socket.connect(&SockAddr::from(to))?;
            sent(socket.send(what.as_bytes()).map(drop))
        }));
    }
    let devices = [
        ("none", None),
        ("nic", Some((|aim| aim.nic.clone()) as fn(&Aim) -> String)),
        ("vrf", Some((|aim| format!("uvn{}", aim.uid)) as fn(&Aim) -> String)),
    ];
    for (name, device) in devices {
        all.push(Attempt::new(format!("source-message4-{name}"), move |aim, what| {
            let (from, to) = way(aim, true);
            let socket = reusable(aim, from)?;
            socket.bind(&SockAddr::from(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), from.port())))?;
            let index = device.map_or(Ok(0), |device| socket::index(&device(aim)))?;
            sent(socket::send_from(&socket, index, from.ip(), to, what.as_bytes()))
        }));
        all.push(Attempt::new(format!("source-message6-{name}"), move |aim, what| {
            let (from, to) = way(aim, false);
            let socket = reusable(aim, from)?;
            free(&socket, from)?;
            socket.bind(&SockAddr::from(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), from.port())))?;
            let index = device.map_or(Ok(0), |device| socket::index(&device(aim)))?;
            sent(socket::send_from(&socket, index, from.ip(), to, what.as_bytes()))
        }));
    }
    all
}

/// From the victim's server to the host that sends everything back.
fn way(aim: &Aim, ipv4: bool) -> (SocketAddr, SocketAddr) {
    let (from, to): (IpAddr, IpAddr) =
        if ipv4 { (aim.nat.into(), aim.outside.into()) } else { (aim.nat6.into(), aim.outside6.into()) };
    (SocketAddr::new(from, if ipv4 { PORT } else { PORT6 }), SocketAddr::new(to, PORT))
}

/// Several attempts use the same port at once, and the victim's server does in another network.
fn reusable(aim: &Aim, from: SocketAddr) -> io::Result<Socket> {
    let socket = inet(Type::DGRAM, from)?;
    socket.set_reuse_address(true)?;
    // As it is anyway, where uvn is.
    let _refused = socket.bind_device(Some(format!("uvn{}", aim.uid).as_bytes()));
    Ok(socket)
}

fn free(socket: &Socket, from: SocketAddr) -> io::Result<()> {
    match from {
        SocketAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_FREEBIND, &1_i32),
        SocketAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, &1_i32),
    }
}

/// Whether it has succeeded, the victim's server knows.
fn sent(sent: io::Result<()>) -> io::Result<String> {
    sent?;
    std::thread::sleep(socket::PATIENCE);
    Err(io::Error::other("sent"))
}
