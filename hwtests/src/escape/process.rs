//! As another user, in other namespaces, with sockets made by others. Some start as root, to be then what no test can
//! start as: a process with a descriptor from before, or of a program with privileges.
#![allow(unsafe_code, reason = "credentials, capabilities and descriptors are passed on")]

use super::socket::{self, any, ask, check, inet, into_vrf, through_vrf, victim};
use super::{Aim, Attempt, PORT, protocol};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid};
use socket2::{Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

/// linux/capability.h
const CAP_NET_RAW: u32 = 13;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Where the suites let the attacker's subordinate UIDs begin (/etc/subuid).
pub const SUBUID: u32 = 200_000;

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = vec![
        Attempt::new("userns-bindtodevice", |aim, what| {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            through_vrf(aim, &inet(Type::STREAM, victim())?, what)
        }),
        Attempt::new("userns-pktinfo", |aim, what| {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            message_into_vrf(aim, &inet(Type::DGRAM, victim())?, what)
        }),
        Attempt::new("subuid-bindtodevice", |aim, what| {
            as_subuid()?;
            through_vrf(aim, &inet(Type::STREAM, victim())?, what)
        }),
        Attempt::new("subuid-socket", |_, _| {
            as_subuid()?;
            inet(Type::DGRAM, victim()).map(|_| "a socket".to_owned())
        }),
        Attempt::new("tun-queue", |aim, _| tun(&aim.endpoint(), libc::IFF_MULTI_QUEUE)),
        Attempt::new("tun-single-queue", |aim, _| tun(&aim.endpoint(), 0)),
        Attempt::new("device-down", |aim, _| down(&aim.endpoint())),
        Attempt::new("own-device-down", |aim, _| down(&format!("uvn{}", aim.uid))),
        Attempt::new("unpin", |_, _| {
            for folder in std::fs::read_dir("/sys/fs/bpf/uvn")?.flatten() {
                for pin in std::fs::read_dir(folder.path())?.flatten() {
                    std::fs::remove_file(pin.path())?;
                }
            }
            Ok("no pins".to_owned())
        }),
    ];
    all.extend(privileged());
    all
}

/// The attempts that start as root.
fn privileged() -> Vec<Attempt> {
    vec![
        Attempt::new("root-inherited-tcp", |aim, what| {
            let socket = inet(Type::STREAM, victim())?;
            become_user(aim.uid, aim.uid)?;
            through_vrf(aim, &socket, what)
        }),
        Attempt::new("root-inherited-udp", |aim, what| {
            let socket = inet(Type::DGRAM, victim())?;
            become_user(aim.uid, aim.uid)?;
            message_into_vrf(aim, &socket, what)
        }),
        Attempt::new("root-setuid-program-tcp", |aim, what| {
            become_user(aim.uid, 0)?;
            through_vrf(aim, &inet(Type::STREAM, victim())?, what)
        }),
        Attempt::new("root-setuid-program-udp", |aim, what| {
            become_user(aim.uid, 0)?;
            message_into_vrf(aim, &inet(Type::DGRAM, victim())?, what)
        }),
        // As ping is where it has this capability.
        Attempt::new("root-raw-ping", |aim, _| {
            keep_net_raw(aim.uid)?;
            let socket = any(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
            protocol::ping(&socket, &aim.endpoint(), aim.there.into())
        }),
        Attempt::new("root-raw-ping-nic", |aim, _| {
            keep_net_raw(aim.uid)?;
            let socket = any(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
            protocol::ping(&socket, &aim.nic, aim.host.into())
        }),
        // As `ping -m` is where it is setuid, and what else has this capability and lets its user choose the mark.
        Attempt::new("root-marked-raw-ping", |aim, _| {
            keep_net_raw(aim.uid)?;
            protocol::ping(&marked(libc::SOCK_RAW, libc::IPPROTO_ICMP)?, &aim.endpoint(), aim.there.into())
        }),
        Attempt::new("root-marked-raw-ping-nic", |aim, _| {
            keep_net_raw(aim.uid)?;
            protocol::ping(&marked(libc::SOCK_RAW, libc::IPPROTO_ICMP)?, &aim.nic, aim.host.into())
        }),
        Attempt::new("root-marked-setuid-ping", |aim, _| {
            become_user(aim.uid, 0)?;
            protocol::ping(&marked(libc::SOCK_RAW, libc::IPPROTO_ICMP)?, &aim.endpoint(), aim.there.into())
        }),
        Attempt::new("root-marked-setuid-ping-vrf", |aim, _| {
            become_user(aim.uid, 0)?;
            let socket = marked(libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
            protocol::ping(&socket, &aim.vrf(), Ipv4Addr::LOCALHOST.into())
        }),
        Attempt::new("root-marked-setuid-udp", |aim, what| {
            become_user(aim.uid, 0)?;
            message_into_vrf(aim, &marked(libc::SOCK_DGRAM, 0)?, what)
        }),
        // As `traceroute --fwmark` is where it is setuid: whom off-subnet hosts answer, goes by the mark.
        Attempt::new("root-forged-mark", |aim, what| {
            forge_marks(aim, |socket, to, mark| {
                socket.set_mark(mark)?;
                socket.send_to(what.as_bytes(), &to.into()).map(drop)
            })
        }),
        Attempt::new("root-forged-mark-message", |aim, what| {
            forge_marks(aim, |socket, to, mark| socket::send_marked(socket, mark, to, what.as_bytes()))
        }),
        Attempt::new("root-passed-tcp", |aim, what| {
            let socket = from_victim(aim, |aim| in_vrf(aim, Type::STREAM))?;
            ask(&socket, victim(), what)
        }),
        Attempt::new("root-passed-udp", |aim, what| {
            let socket = from_victim(aim, |aim| in_vrf(aim, Type::DGRAM))?;
            socket::ask_datagram(&socket, victim(), what)
        }),
    ]
}

/// What must work: a user's own namespaces are his own.
///
/// # Errors
/// Something does not.
pub fn own_namespaces() -> io::Result<()> {
    let uid = nix::unistd::getuid();
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // As root there: a program that is started has privileges only so.
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    check_status("ip", Command::new("ip").args(["link", "set", "lo", "up"]))?;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address)?;
        TcpStream::connect(listener.local_addr()?)?;
        listener.accept()?;
    }
    // Of any protocol.
    any(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    any(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW).map(drop)
}

/// Makes sockets as the user, becomes `heir`, writes `ready`, and once a line of input says that the user's network is
/// gone, tries to send with them. Writes a line about each.
///
/// # Errors
/// The sockets cannot be made.
pub fn hold(aim: &Aim, heir: u32) -> io::Result<()> {
    become_user(aim.uid, 0)?;
    let make = |kind| inet(kind, victim());
    let (plain, connected, stream) = (make(Type::DGRAM)?, make(Type::DGRAM)?, make(Type::STREAM)?);
    connected.connect(&victim().into())?;
    let disconnected = make(Type::DGRAM)?;
    disconnected.connect(&victim().into())?;
    socket::disconnect(&disconnected)?;
    become_user(heir, heir)?;
    println!("ready");
    io::stdin().read_line(&mut String::new())?;
    let host = Aim::at(aim.host.into());
    let what = |name: &str| format!("{}/{name}", aim.who);
    let through = |socket: &Socket, device: &str, to, name: &str| {
        socket::send_through(socket, device, to, what(name).as_bytes())?;
        socket::answer(&mut &*socket)
    };
    for (name, result) in [
        ("plain", socket::ask_datagram(&plain, host, &what("plain"))),
        ("pktinfo-vrf", through(&plain, &aim.vrf(), victim(), "pktinfo-vrf")),
        ("pktinfo-nic", through(&plain, &aim.nic, host, "pktinfo-nic")),
        ("connected", through(&connected, &aim.vrf(), victim(), "connected")),
        ("disconnected", through(&disconnected, &aim.vrf(), victim(), "disconnected")),
        ("disconnected-nic", through(&disconnected, &aim.nic, host, "disconnected-nic")),
        ("stream", ask(&stream, host, &what("stream"))),
    ] {
        match result {
            Ok(answer) => println!("{name} = {answer}"),
            Err(error) => println!("{name} ! {error}"),
        }
    }
    Ok(())
}

fn message_into_vrf(aim: &Aim, socket: &Socket, what: &str) -> io::Result<String> {
    socket::send_through(socket, &aim.vrf(), victim(), what.as_bytes())?;
    socket::answer(&mut &*socket)
}

/// A socket with a mark that means nothing.
fn marked(kind: i32, protocol: i32) -> io::Result<Socket> {
    let socket = any(libc::AF_INET, kind, protocol)?;
    socket.set_mark(1)?;
    Ok(socket)
}

/// Sends off-subnet from the port of the victim's server with the mark of each of the node's first networks but the own.
/// Whether it has succeeded, the victim's server knows.
fn forge_marks(aim: &Aim, send: impl Fn(&Socket, SocketAddr, u32) -> io::Result<()>) -> io::Result<String> {
    become_user(aim.uid, 0)?;
    let to = SocketAddr::new(aim.outside.into(), PORT);
    let socket = inet(Type::DGRAM, to)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT).into())?;
    let own = socket.mark()?;
    for difference in 1..4 {
        // A number that is no network's is refused at once.
        let _refused = send(&socket, to, own ^ difference);
    }
    std::thread::sleep(socket::PATIENCE);
    Err(io::Error::other("sent"))
}

pub(super) fn become_user(real: u32, effective: u32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::setresgid(real, real, real) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::setresuid(real, effective, effective) })
}

/// Becomes the user with one capability, as a program file can have it.
pub(super) fn keep_net_raw(uid: u32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) })?;
    become_user(uid, uid)?;
    let header = [CAPABILITY_VERSION_3, 0];
    let wanted = 1_u32 << CAP_NET_RAW;
    // Effective, permitted, inheritable; twice, for the upper half.
    let sets = [wanted, wanted, 0, 0, 0, 0];
    // SAFETY: both have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } as i32)
}

/// Becomes a subordinate UID in a user namespace, in the same network namespace.
pub(super) fn as_subuid() -> io::Result<()> {
    map_uids(&[(0, SUBUID)])?;
    // SAFETY: numbers only.
    check(unsafe { libc::setresuid(0, 0, 0) })
}

/// Goes into a user namespace where the former of each pair stands for the latter.
pub(super) fn map_uids(map: &[(u32, u32)]) -> io::Result<()> {
    let (ready, wait) = UnixDatagram::pair()?;
    let (mapped, done) = UnixDatagram::pair()?;
    let us = getpid();
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let result = wait.recv(&mut [0]).and_then(|_| newuidmap(us, map));
            let _parent_gone = mapped.send(&[u8::from(result.is_ok())]);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            ready.send(&[1])?;
            let mut success = [0];
            done.recv(&mut success)?;
            waitpid(child, None)?;
            if success == [0] { Err(io::Error::other("newuidmap refused")) } else { Ok(()) }
        }
    }
}

fn newuidmap(of: Pid, map: &[(u32, u32)]) -> io::Result<()> {
    let triples = map.iter().flat_map(|(inside, outside)| [*inside, *outside, 1]);
    let arguments = triples.map(|number| number.to_string());
    check_status("newuidmap", Command::new("newuidmap").arg(of.to_string()).args(arguments))
}

fn check_status(name: &str, command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{name}: {status}"))) }
}

/// Becomes the user, with a socket that the victim made and passed on.
pub(super) fn from_victim(aim: &Aim, make: impl FnOnce(&Aim) -> io::Result<Socket>) -> io::Result<Socket> {
    let (ours, theirs) = UnixDatagram::pair()?;
    // SAFETY: this process has one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        let pass = || -> io::Result<()> {
            become_user(aim.victim, aim.victim)?;
            let socket = make(aim)?;
            let descriptors = [socket.as_raw_fd()];
            let passed = [ControlMessage::ScmRights(&descriptors)];
            sendmsg::<UnixAddr>(theirs.as_raw_fd(), &[IoSlice::new(b"x")], &passed, MsgFlags::empty(), None)?;
            Ok(())
        };
        std::process::exit(i32::from(pass().is_err()));
    }
    drop(theirs);
    become_user(aim.uid, aim.uid)?;
    ours.set_read_timeout(Some(socket::PATIENCE))?;
    let mut space = nix::cmsg_space!(i32);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<UnixAddr>(ours.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    for passed in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = passed {
            // SAFETY: the descriptor has just been received and is nobody else's.
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptors[0]) });
            socket.set_read_timeout(Some(socket::PATIENCE))?;
            return Ok(socket);
        }
    }
    Err(io::Error::other("no descriptor"))
}

/// A socket of the victim's, as it is anyway where uvn is.
fn in_vrf(aim: &Aim, kind: Type) -> io::Result<Socket> {
    let socket = inet(kind, victim())?;
    into_vrf(aim, &socket);
    Ok(socket)
}

fn request(device: &str) -> libc::ifreq {
    // SAFETY: all zero is an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Attaches a queue of our own to somebody's TAP.
fn tun(device: &str, more: i32) -> io::Result<String> {
    let fd = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(device);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok("a queue".to_owned())
}

/// Sets a device down.
fn down(device: &str) -> io::Result<String> {
    let socket = any(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
    let mut request = request(device);
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok("down".to_owned())
}
