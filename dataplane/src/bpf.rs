//! Calls of bpf(2) that no library offers.

#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_GET_FD_BY_ID: libc::c_long = 30;

/// `struct bpf_link_info` of a link to a device (include/uapi/linux/bpf.h): XDP and tcx have the device's index first.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    device: u32,
    attach_type: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: *mut LinkInfo,
}

/// Whether the link with this ID is still attached: the device exists, and the program was not detached from it
/// (`bpftool link detach`).
///
/// # Errors
/// The link does not exist, or the kernel's refusal.
pub fn is_attached(link: u32) -> io::Result<bool> {
    // SAFETY: the command reads one number.
    let link = unsafe { bpf_fd(LINK_GET_FD_BY_ID, &link) }?;
    let mut info = LinkInfo::default();
    let fd = link.as_raw_fd() as u32;
    let request = GetInfo { fd, length: size_of::<LinkInfo>() as u32, info: &raw mut info };
    // SAFETY: GetInfo is the beginning of what BPF_OBJ_GET_INFO_BY_FD reads; the kernel writes `length` bytes at most.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &request) }?;
    Ok(info.device != 0)
}

/// Calls bpf(2), and returns its result.
///
/// # Errors
/// The kernel's refusal.
///
/// # Safety
/// `T` is the beginning of the attributes that `command` reads.
pub unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the caller vouches for the type; the kernel takes what is not given for zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls bpf(2) with a command that makes something, and returns the new descriptor.
///
/// # Errors
/// The kernel's refusal.
///
/// # Safety
/// As for [`bpf`], and `command` returns a new descriptor.
pub unsafe fn bpf_fd<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller vouches; the descriptor is new and nobody else's.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attributes)? as RawFd)) }
}
