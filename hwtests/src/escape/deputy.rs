//! By somebody or something else: programs with privileges, other UIDs of one's own, descriptors of other processes, and
//! sockets from outside in a network namespace of one's own.
#![allow(unsafe_code, reason = "credentials and descriptors are passed on")]

use super::process::{SUBUID, become_user, map_uids};
use super::socket::{self, PATIENCE, any, check, inet, through_vrf, victim};
use super::{Aim, Attempt, protocol};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, fork};
use socket2::{Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = pings();
    all.extend(namespaces());
    all.extend(uids());
    all.push(Attempt::new("root-setuid-program-of-victim", |aim, what| {
        become_user(aim.uid, aim.victim)?;
        through_vrf(aim, &inet(Type::STREAM, victim())?, what)
    }));
    for (name, kind) in [("tcp", Type::STREAM), ("udp", Type::DGRAM)] {
        all.push(Attempt::new(format!("root-pidfd-getfd-{name}"), move |aim, what| {
            through_vrf(aim, &of_another_process(aim, kind)?, what)
        }));
    }
    all
}

/// The program, which may have a capability, or be setuid.
fn pings() -> Vec<Attempt> {
    let run = |arguments: &[&str], to: IpAddr| {
        let mut command = Command::new("ping");
        command.args(["-n", "-c", "1", "-W", "1"]).args(arguments).arg(to.to_string());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        if status.success() { Ok("a reply".to_owned()) } else { Err(io::Error::other(status.to_string())) }
    };
    vec![
        Attempt::new("program-ping-nic4", move |aim, _| run(&["-I", &aim.nic], aim.host.into())),
        Attempt::new("program-ping-nic6", move |aim, _| run(&["-I", &aim.nic], aim.host6.into())),
        Attempt::new("program-ping-endpoint4", move |aim, _| run(&["-I", &aim.endpoint()], aim.there.into())),
        Attempt::new("program-ping-endpoint6", move |aim, _| {
            run(&["-I", &aim.endpoint()], aim.there6.into())
        }),
        Attempt::new("program-ping-vrf", move |aim, _| run(&["-I", &aim.vrf()], Ipv4Addr::LOCALHOST.into())),
    ]
}

/// There the attacker has all capabilities; the socket is from where he has none.
fn namespaces() -> Vec<Attempt> {
    let own = || unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    vec![
        Attempt::new("own-network-kept-tcp", move |aim, what| {
            let socket = inet(Type::STREAM, victim())?;
            own()?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("own-network-kept-udp", move |aim, what| {
            let (socket, index) = (inet(Type::DGRAM, victim())?, socket::index(&aim.vrf())?);
            own()?;
            socket::send_from(&socket, index, Ipv4Addr::UNSPECIFIED.into(), victim(), what.as_bytes())?;
            socket::answer(&mut &socket)
        }),
        Attempt::new("own-network-kept-ping", move |aim, _| {
            let socket = any(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)?;
            let index = socket::index(&aim.nic)?;
            own()?;
            let to = SocketAddr::new(aim.host.into(), 0);
            socket::send_from(&socket, index, Ipv4Addr::UNSPECIFIED.into(), to, &protocol::echo(true))?;
            socket::answer(&mut &socket).map(|_| "a reply".to_owned())
        }),
    ]
}

/// Subordinate UIDs, real or effective; and sockets from before.
fn uids() -> Vec<Attempt> {
    let maps = |aim: &Aim| map_uids(&[(0, SUBUID), (1, aim.uid)]);
    vec![
        Attempt::new("subuid-real", move |aim, what| {
            maps(aim)?;
            become_user_only(0, 1)?;
            through_vrf(aim, &inet(Type::STREAM, victim())?, what)
        }),
        Attempt::new("subuid-effective", move |aim, what| {
            maps(aim)?;
            become_user_only(1, 0)?;
            through_vrf(aim, &inet(Type::STREAM, victim())?, what)
        }),
        Attempt::new("subuid-kept-tcp", move |aim, what| {
            let socket = inet(Type::STREAM, victim())?;
            maps(aim)?;
            become_user_only(0, 0)?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("subuid-kept-udp", move |aim, what| {
            let socket = inet(Type::DGRAM, victim())?;
            maps(aim)?;
            become_user_only(0, 0)?;
            socket::send_through(&socket, &aim.vrf(), victim(), what.as_bytes())?;
            socket::answer(&mut &socket)
        }),
    ]
}

/// In a namespace where GIDs are not mapped.
fn become_user_only(real: u32, effective: u32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::setresuid(real, effective, effective) })
}

/// Becomes the user, and takes a socket that root has made from a process of his (pidfd_getfd(2)).
fn of_another_process(aim: &Aim, kind: Type) -> io::Result<Socket> {
    let (ours, its) = UnixDatagram::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    // SAFETY: this process has one thread.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            let hold = || -> io::Result<()> {
                let socket = inet(kind, victim())?;
                become_user(aim.uid, aim.uid)?;
                // As one is who has executed a program since.
                // SAFETY: numbers only.
                check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
                its.send(&socket.as_raw_fd().to_ne_bytes())?;
                thread::sleep(2 * PATIENCE);
                Ok(())
            };
            std::process::exit(i32::from(hold().is_err()));
        }
        ForkResult::Parent { child } => child,
    };
    drop(its);
    become_user(aim.uid, aim.uid)?;
    let mut number = [0; 4];
    ours.recv(&mut number)?;
    // SAFETY: numbers only.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) } as i32;
    check(process)?;
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, i32::from_ne_bytes(number), 0) } as i32;
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}
