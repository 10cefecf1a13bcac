//! By standing in the victim's way: sockets that keep hers from a port, or from what comes to it. Each attempt starts as root,
//! to have a child that is the victim.
#![allow(unsafe_code, reason = "a child of another user")]

use super::process::become_user;
use super::socket::{self, PATIENCE, inet};
use super::{Aim, Attempt};
use nix::unistd::{ForkResult, fork};
use socket2::{Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    vec![
        // The kernel looks for sockets with an address first.
        Attempt::new("root-obstruct-address", |aim, _| {
            obstructed(aim, |port| forgotten(aim, aim.here.into(), port))
        }),
        Attempt::new("root-obstruct-device", |aim, _| {
            obstructed(aim, |port| {
                let socket = forgotten(aim, ANY, port)?;
                socket.bind_device(Some(aim.vrf().as_bytes()))?;
                Ok(socket)
            })
        }),
        Attempt::new("root-obstruct-port", |aim, _| {
            let port = socket::own_port();
            let (ours, hers) = pair()?;
            // SAFETY: this process has one thread.
            if let ForkResult::Child = unsafe { fork() }? {
                listen(&hers)?;
                become_user(aim.victim, aim.victim)?;
                let _attacker_gone = say(&hers, u16::from(placed(&aim.vrf(), ANY, port).is_err()));
                std::process::exit(0);
            }
            become_user(aim.uid, aim.uid)?;
            let _obstacle = forgotten(aim, ANY, port)?;
            say(&ours, port)?;
            match listen(&ours)? {
                0 => Err(io::Error::other("it is hers")),
                _ => Ok("her port is taken".to_owned()),
            }
        }),
    ]
}

/// Has the victim take a port in her network, the attacker put his obstacle there, and the victim send herself something; and
/// returns whether nothing comes to her.
fn obstructed(aim: &Aim, obstacle: impl FnOnce(u16) -> io::Result<Socket>) -> io::Result<String> {
    let (ours, hers) = pair()?;
    // SAFETY: this process has one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        drop(ours);
        let _attacker_gone = receives(aim, &hers).and_then(|yes| say(&hers, u16::from(!yes)));
        std::process::exit(0);
    }
    drop(hers);
    let port = listen(&ours)?;
    become_user(aim.uid, aim.uid)?;
    let _obstacle = obstacle(port)?;
    say(&ours, port)?;
    match listen(&ours)? {
        0 => Err(io::Error::other("it comes to her")),
        _ => Ok("nothing comes to her".to_owned()),
    }
}

/// Whether a datagram comes to the victim that she sends herself.
fn receives(aim: &Aim, attacker: &UnixDatagram) -> io::Result<bool> {
    become_user(aim.victim, aim.victim)?;
    let server = placed(&aim.vrf(), ANY, 0)?;
    let port = port_of(&server)?;
    say(attacker, port)?;
    listen(attacker)?;
    let client = placed(&aim.vrf(), ANY, 0)?;
    client.send_to(b"x", &SocketAddr::new(aim.here.into(), port).into())?;
    Ok(socket::answer(&mut &server).is_ok())
}

/// The attacker's socket on a port, when its device is forgotten.
fn forgotten(aim: &Aim, address: IpAddr, port: u16) -> io::Result<Socket> {
    let socket = placed(&format!("uvn{}", aim.uid), address, port)?;
    socket::disconnect(&socket)?;
    Ok(socket)
}

fn placed(vrf: &str, address: IpAddr, port: u16) -> io::Result<Socket> {
    let address = SocketAddr::new(address, port);
    let socket = inet(Type::DGRAM, address)?;
    // As it is anyway, where uvn is.
    let _refused = socket.bind_device(Some(vrf.as_bytes()));
    socket.bind(&address.into())?;
    Ok(socket)
}

fn port_of(socket: &Socket) -> io::Result<u16> {
    Ok(socket.local_addr()?.as_socket().map_or(0, |address| address.port()))
}

/// Nobody waits for ever for somebody who has failed.
fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (ours, hers) = UnixDatagram::pair()?;
    for end in [&ours, &hers] {
        end.set_read_timeout(Some(4 * PATIENCE))?;
    }
    Ok((ours, hers))
}

fn say(to: &UnixDatagram, number: u16) -> io::Result<()> {
    to.send(&number.to_ne_bytes()).map(drop)
}

fn listen(from: &UnixDatagram) -> io::Result<u16> {
    let mut number = [0; 2];
    from.recv(&mut number)?;
    Ok(u16::from_ne_bytes(number))
}
