//! One packet of a Unix SOCK_SEQPACKET socket with the file descriptors beside it (unix(7), SCM_RIGHTS).

#![allow(
    unsafe_code,
    reason = "recvmsg(2) and sendmsg(2): the safe wrappers lose track of descriptors when control data is cut"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

/// SCM_MAX_FD (include/net/scm.h): the kernel passes no more in one packet.
const SCM_MAX_FD: usize = 253;
/// Room for a header and that many descriptors, bytes.
const CONTROL: usize = 16 + SCM_MAX_FD * size_of::<RawFd>() + 8;

/// Control data, aligned as `struct cmsghdr` needs it.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// The number of bytes in the buffer; 0 also when the other side has closed the connection.
    pub length: usize,
    /// The descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The packet was longer than the buffer, or not all of its descriptors could be received.
    pub cut: bool,
}

/// Connects to the listener at `path`. That, and each later send or receive, takes no longer than `patience`.
///
/// # Errors
/// WouldBlock once that has passed; otherwise the kernel's refusal.
pub fn connect(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let start = Instant::now();
    let address = address(path)?;
    // SAFETY: socket(2) takes three integers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for this process, and nobody else knows of it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    bound(socket.as_fd(), libc::SO_SNDTIMEO, patience)?;
    retry(|| {
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is a whole sockaddr_un, and outlives the call.
        unsafe { libc::connect(fd, ptr::from_ref(&address).cast(), length) as isize }
    })?;
    bound(socket.as_fd(), libc::SO_RCVTIMEO, patience.saturating_sub(start.elapsed()))?;
    Ok(socket)
}

/// The address of a socket in the file system (unix(7)).
fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: a sockaddr_un of zeros is valid.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays zero. An empty name, or one that begins with zero, names no file.
    if bytes.len() >= address.sun_path.len() || bytes.first().is_none_or(|byte| *byte == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(address)
}

/// Bounds each wait on a socket (socket(7)), at least to 1 ms: zero would mean for ever.
fn bound(socket: BorrowedFd<'_>, option: libc::c_int, time: Duration) -> io::Result<()> {
    let time = time.max(Duration::from_millis(1));
    let time = libc::timeval {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: time.subsec_micros().into(),
    };
    let length = size_of_val(&time) as libc::socklen_t;
    // SAFETY: both options take a timeval, which outlives the call.
    let status = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, ptr::from_ref(&time).cast(), length)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The PID of the other end; on a client's socket, of the process that called listen(2).
///
/// # Errors
/// The kernel's refusal.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: SO_PEERCRED writes a ucred, for which there is room, and both outlive the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut peer).cast(),
            &mut length,
        )
    };
    if status == 0 { Ok(peer.pid) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process has root's effective UID.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Receives one packet; does not wait if `wait` is false.
///
/// # Errors
/// WouldBlock without a packet; otherwise the kernel's refusal.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> io::Result<Packet> {
    let mut control = Control([0; CONTROL]);
    let mut parts = [IoSliceMut::new(buffer)];
    // SAFETY: a msghdr of zeros is valid: no address, no parts, no control data.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = parts.as_mut_ptr().cast();
    header.msg_iovlen = parts.len();
    header.msg_control = ptr::from_mut(&mut control).cast();
    header.msg_controllen = CONTROL;
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    let length = retry(|| {
        // SAFETY: `header` points at one part (IoSliceMut is ABI-compatible with iovec) and at control data, with their
        // lengths, and all of them outlive the call.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) }
    })?;
    let fds = take_fds(&header);
    let cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Packet { length, fds, cut })
}

/// Takes over the descriptors in the control data of a received message.
fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg filled in `header`; its control data is alive and `msg_controllen` bytes long.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole cmsghdr inside the control data.
    while let Some(message) = unsafe { next.as_ref() } {
        if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `next` is a cmsghdr of the control data.
            let data = unsafe { libc::CMSG_DATA(next) };
            // SAFETY: no pointer is followed; CMSG_LEN only adds.
            let bytes = message.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote that many descriptors behind the header; alignment is not assumed.
                let fd = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has just opened it for this process, and nobody else knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `next` is the message before.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    fds
}

/// Sends one packet with descriptors; does not wait if `wait` is false.
///
/// # Errors
/// WouldBlock if the other side does not read; InvalidInput for more than 253 descriptors; otherwise the kernel's
/// refusal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
    if fds.len() > SCM_MAX_FD {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut control = Control([0; CONTROL]);
    let mut parts = [IoSlice::new(bytes)];
    // SAFETY: a msghdr of zeros is valid: no address, no parts, no control data.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = parts.as_mut_ptr().cast();
    header.msg_iovlen = parts.len();
    if !fds.is_empty() {
        let bytes = size_of_val(fds) as libc::c_uint;
        header.msg_control = ptr::from_mut(&mut control).cast();
        // SAFETY: no pointer is followed; CMSG_SPACE only adds. The result is at most `CONTROL`.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as usize;
        // SAFETY: the control data has room for a header, so this is not null and aligned.
        let message = unsafe { &mut *libc::CMSG_FIRSTHDR(&header) };
        message.cmsg_level = libc::SOL_SOCKET;
        message.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: no pointer is followed; CMSG_LEN only adds.
        message.cmsg_len = unsafe { libc::CMSG_LEN(bytes) } as usize;
        // SAFETY: behind the header there is room for all of `fds`, as checked above. BorrowedFd is a RawFd in memory.
        unsafe {
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(message), bytes as usize);
        }
    }
    let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    retry(|| {
        // SAFETY: `header` points at one part and, if any, at control data, with their lengths; all outlive the call.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) }
    })
    .map(drop)
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(length) = usize::try_from(call()) {
            return Ok(length);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::Read;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn descriptors_arrive_and_work() {
        let (here, there) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        send(here.as_fd(), b"two", &[writer.as_fd(), writer.as_fd()], false).unwrap();
        drop(writer);
        let mut buffer = [0; 8];
        let packet = receive(there.as_fd(), &mut buffer, false).unwrap();
        assert_eq!((packet.length, packet.fds.len(), packet.cut), (3, 2, false));
        nix::unistd::write(&packet.fds[1], b"x").unwrap();
        drop(packet);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "and the pipe ends: every copy of the writer is closed");
    }

    #[test]
    fn a_packet_that_does_not_fit_is_cut() {
        let (here, there) = pair();
        send(here.as_fd(), &[7; 100], &[], false).unwrap();
        let packet = receive(there.as_fd(), &mut [0; 10], false).unwrap();
        assert!(packet.cut && packet.fds.is_empty());
        let error = receive(there.as_fd(), &mut [0; 10], false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_passes() {
        let (here, there) = pair();
        let (_reader, writer) = io::pipe().unwrap();
        let all = vec![writer.as_fd(); SCM_MAX_FD];
        send(here.as_fd(), b"x", &all, false).unwrap();
        assert_eq!(receive(there.as_fd(), &mut [0; 10], true).unwrap().fds.len(), SCM_MAX_FD);
        let too_many = vec![writer.as_fd(); SCM_MAX_FD + 1];
        assert!(send(here.as_fd(), b"x", &too_many, false).is_err());
    }

    #[test]
    fn a_peer_that_does_not_read_does_not_stall_us() {
        let (here, _there) = pair();
        let error = loop {
            if let Err(error) = send(here.as_fd(), &[0; 60_000], &[], false) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
