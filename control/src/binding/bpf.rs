//! Links and pins of device programs, which aya cannot make.

#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use uvn_dataplane::bpf::{bpf, bpf_fd};

/// include/uapi/linux/bpf.h
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_CGROUP_DEVICE: u32 = 6;

#[repr(C)]
struct Pin {
    path: u64,
    fd: i32,
    flags: u32,
}

#[repr(C)]
struct CreateLink {
    program: i32,
    target: i32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a device program to a cgroup, and returns the link: aya keeps links of this kind to itself.
///
/// # Errors
/// The kernel refuses.
pub fn link_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link = CreateLink {
        program: program.as_raw_fd(),
        target: cgroup.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: CreateLink is the beginning of what the command reads, which returns a new descriptor.
    unsafe { bpf_fd(BPF_LINK_CREATE, &link) }
}

/// Pins an object at `path` on a BPF file system: it lives as long as that name.
///
/// # Errors
/// The kernel refuses.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let pin = Pin { path: path.as_ptr().addr() as u64, fd: object.as_raw_fd(), flags: 0 };
    // SAFETY: Pin is what the command reads; the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &pin) }.map(drop)
}

/// The object pinned at `path`.
///
/// # Errors
/// There is none.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let pin = Pin { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 };
    // SAFETY: Pin is what the command reads, which returns a new descriptor; the path outlives the call.
    unsafe { bpf_fd(BPF_OBJ_GET, &pin) }
}

/// Detaches a link's program now, and not when the last reference to the link is gone.
///
/// # Errors
/// It is no link, or one of a kind that cannot (of BPF LSM).
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the command reads the descriptor alone.
    unsafe { bpf(BPF_LINK_DETACH, &link.as_raw_fd()) }.map(drop)
}
