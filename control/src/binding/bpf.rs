//! bpf(2), as far as aya does not have it.

#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// include/uapi/linux/bpf.h
const BPF_OBJ_PIN: i64 = 6;
const BPF_LINK_CREATE: i64 = 28;
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

/// Attaches a program on devices to a cgroup, and returns the link: aya does not let go of one of this kind.
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
    make_object(BPF_LINK_CREATE, &link)
}

/// Gives an object a name on a BPF file system, by which it stays.
///
/// # Errors
/// The kernel refuses.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let pin = Pin { path: path.as_ptr().addr() as u64, fd: object.as_raw_fd(), flags: 0 };
    bpf(BPF_OBJ_PIN, &pin).map(drop)
}

/// A command that makes an object, and its attributes.
///
/// # Errors
/// The kernel refuses.
pub fn make_object<T>(command: i64, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: it is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: i64, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads the attributes as long as they are; what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
