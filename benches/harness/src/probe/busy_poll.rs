//! SO_BUSY_POLL: a socket that waits for data asks the NIC's queue itself instead of sleeping (socket(7)).
#![allow(unsafe_code, reason = "setsockopt(2) with SO_BUSY_POLL has no safe interface")]

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// How long it asks before it sleeps, microseconds: the value that kernel documentation suggests.
static MICROSECONDS: libc::c_int = 50;

/// Has reads of this socket poll.
///
/// # Errors
/// The kernel refuses: more than `net.core.busy_read` takes CAP_NET_ADMIN.
pub fn enable(stream: &TcpStream) -> io::Result<()> {
    let size = size_of_val(&MICROSECONDS) as libc::socklen_t;
    // SAFETY: the descriptor is open while `stream` lives; the kernel reads `size` bytes of a c_int.
    let status = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BUSY_POLL,
            (&raw const MICROSECONDS).cast(),
            size,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
