//! The identity of this network namespace.

#![allow(unsafe_code, reason = "SO_NETNS_COOKIE has no safe interface")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// The kernel's number of this network namespace, which it never gives to another (Linux 5.14 and later).
///
/// # Errors
/// The kernel is older.
pub fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind(("::", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0)))?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the option writes as many bytes as `length` says.
    let result = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
