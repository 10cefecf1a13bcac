//! Sockets of any kind, their options, and messages with ancillary data.
#![allow(unsafe_code, reason = "options and families that no library knows")]

use super::Aim;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How long to wait for an answer.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// A socket of any family, type and protocol.
///
/// # Errors
/// The kernel's.
pub fn any(family: i32, kind: i32, protocol: i32) -> io::Result<Socket> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A TCP or UDP socket for talking to `to`.
///
/// # Errors
/// The kernel's.
pub fn inet(kind: Type, to: SocketAddr) -> io::Result<Socket> {
    any(Domain::for_address(to).into(), kind.into(), 0)
}

/// Sets an option to a value of any layout.
///
/// # Errors
/// The kernel's.
pub fn set<T>(socket: &Socket, level: i32, name: i32, value: &T) -> io::Result<()> {
    let (value, length) = (std::ptr::from_ref(value), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `length` bytes of the value.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) })
}

/// An option's value.
///
/// # Errors
/// The kernel's.
pub fn get(socket: &Socket, level: i32, name: i32) -> io::Result<i32> {
    let (mut value, mut length) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes to the value.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    })?;
    Ok(value)
}

/// The result of a system call.
///
/// # Errors
/// Negative: errno.
pub fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A port of this process: from 61000 on the kernel chooses none by itself.
#[must_use]
pub fn own_port() -> u16 {
    61_000 + (std::process::id() % 4096) as u16
}

/// A device's index.
///
/// # Errors
/// There is no such device.
pub fn index(device: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(device)?)
}

/// Says `what` on a connected stream and returns the answer.
///
/// # Errors
/// Nobody answers.
pub fn talk(mut stream: &Socket, what: &str) -> io::Result<String> {
    stream.write_all(what.as_bytes())?;
    answer(&mut stream)
}

/// Connects, says `what` and returns the answer.
///
/// # Errors
/// Nobody answers, or something forbids it.
pub fn ask(stream: &Socket, to: SocketAddr, what: &str) -> io::Result<String> {
    stream.connect_timeout(&SockAddr::from(to), PATIENCE)?;
    talk(stream, what)
}

/// The victim's server on localhost, which is everybody's own.
#[must_use]
pub fn victim() -> SocketAddr {
    Aim::at(Ipv4Addr::LOCALHOST.into())
}

/// Binds a socket to the victim's VRF. Goes on if refused: by then it may not be needed.
pub fn into_vrf(aim: &Aim, socket: &Socket) {
    let _refused = socket.bind_device(Some(aim.vrf().as_bytes()));
}

/// Says `what` to the victim from there, and returns her answer.
///
/// # Errors
/// As of [`ask`].
pub fn through_vrf(aim: &Aim, socket: &Socket, what: &str) -> io::Result<String> {
    into_vrf(aim, socket);
    ask(socket, victim(), what)
}

/// Sends a datagram and returns the answer.
///
/// # Errors
/// Nobody answers, or something forbids it.
pub fn ask_datagram(socket: &Socket, to: SocketAddr, what: &str) -> io::Result<String> {
    socket.send_to(what.as_bytes(), &SockAddr::from(to))?;
    answer(&mut &*socket)
}

/// What comes back.
///
/// # Errors
/// Nothing does in time.
pub fn answer(socket: &mut &Socket) -> io::Result<String> {
    let mut answer = [0; 512];
    match socket.read(&mut answer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
    }
}

/// Calls `send` with a datagram and one piece of ancillary data.
///
/// # Errors
/// As `send`.
pub fn with_message<T>(
    to: SocketAddr,
    data: &[u8],
    level: i32,
    kind: i32,
    value: T,
    send: impl FnOnce(&libc::msghdr) -> io::Result<()>,
) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut control = MaybeUninit::<[u64; 16]>::zeroed();
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all zero is a msghdr; what it points to outlives the call; the control buffer has room for a header and a
    // small value.
    let message = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<T>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        message
    };
    send(&message)
}

/// Sends a datagram that shall leave through a device (IP_PKTINFO, IPV6_PKTINFO).
///
/// # Errors
/// The kernel's.
pub fn send_through(socket: &Socket, device: &str, to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    send_from(socket, index(device)?, any, to, data)
}

/// The same with a source, through the device with this index.
///
/// # Errors
/// The kernel's.
pub fn send_from(socket: &Socket, index: u32, from: IpAddr, to: SocketAddr, data: &[u8]) -> io::Result<()> {
    match from {
        IpAddr::V4(from) => {
            let [none, from] = [0, from.to_bits().to_be()].map(|s_addr| libc::in_addr { s_addr });
            let info =
                libc::in_pktinfo { ipi_ifindex: index.cast_signed(), ipi_spec_dst: from, ipi_addr: none };
            with_message(to, data, libc::IPPROTO_IP, libc::IP_PKTINFO, info, |message| send(socket, message))
        }
        IpAddr::V6(from) => {
            let from = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: from, ipi6_ifindex: index };
            with_message(to, data, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info, |message| {
                send(socket, message)
            })
        }
    }
}

/// Sends a datagram with a mark of its own.
///
/// # Errors
/// The kernel's.
pub fn send_marked(socket: &Socket, mark: u32, to: SocketAddr, data: &[u8]) -> io::Result<()> {
    with_message(to, data, libc::SOL_SOCKET, libc::SO_MARK, mark, |message| send(socket, message))
}

/// sendmsg(2).
///
/// # Errors
/// The kernel's.
pub fn send(socket: &Socket, message: &libc::msghdr) -> io::Result<()> {
    // SAFETY: the message is whole.
    check(unsafe { libc::sendmsg(socket.as_raw_fd(), message, 0) } as i32)
}

/// connect(2) to AF_UNSPEC: as if it were never connected.
///
/// # Errors
/// The kernel's.
pub fn disconnect(socket: &Socket) -> io::Result<()> {
    // SAFETY: all zero is a sockaddr, of family AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the address is as long as said.
    check(unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) })
}

/// Gives this process the name of a Slurm command.
pub fn pose_as_srun() {
    // SAFETY: the name is a string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"srun".as_ptr()) };
}
