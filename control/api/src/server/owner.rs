//! The user responsible for a process, by the user namespaces that it is in (user_namespaces(7)).

#![allow(unsafe_code, reason = "ioctl_ns(2) has no safe interface")]

use super::Peer;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// NS_GET_PARENT and NS_GET_OWNER_UID (include/uapi/linux/nsfs.h).
const GET_PARENT: libc::Ioctl = nix::request_code_none!(0xb7, 2) as libc::Ioctl;
const GET_OWNER_UID: libc::Ioctl = nix::request_code_none!(0xb7, 4) as libc::Ioctl;

/// UID of the user who is responsible for a process of `uid`. In a user namespace, that is the user who made the
/// outermost one: the subordinate UIDs there are theirs.
///
/// # Errors
/// The process has ended, or is not in a namespace below this one.
pub(super) fn of(Peer { uid, pid }: Peer) -> io::Result<u32> {
    // The process is in another PID namespace; a subordinate UID alone does not lead to one.
    if pid == 0 {
        return Ok(uid);
    }
    let own = identity(&File::open("/proc/self/ns/user")?)?;
    let mut namespace = File::open(format!("/proc/{pid}/ns/user"))?;
    let mut owner = uid;
    while identity(&namespace)? != own {
        owner = owner_of(&namespace)?;
        namespace = parent_of(&namespace)?;
    }
    Ok(owner)
}

fn identity(namespace: &File) -> io::Result<(u64, u64)> {
    let metadata = namespace.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn owner_of(namespace: &File) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes a uid_t where it is told to.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_OWNER_UID, &raw mut uid) };
    if result == 0 { Ok(uid) } else { Err(io::Error::last_os_error()) }
}

fn parent_of(namespace: &File) -> io::Result<File> {
    // SAFETY: it takes no argument, and returns a descriptor or -1.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_PARENT) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}
