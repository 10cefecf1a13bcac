//! The map of sockets' owners. aya cannot make it: the kernel needs the BTF types of such a map's keys and values
//! (kernel/bpf/bpf_local_storage.c), and the object has no BTF.

#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]

use super::bpf::pin;
use super::{BindingError, file};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use uvn_dataplane::bpf::bpf_fd;
use uvn_wire::cgroup::Owner;

/// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_TYPE_SK_STORAGE: u32 = 24;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_CLONE: u32 = 1 << 9;

/// The types of keys and values: integers of their lengths.
const KEY: u32 = 1;
const VALUE: u32 = 2;

#[repr(C)]
struct LoadBtf {
    btf: u64,
    log: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

#[repr(C)]
struct CreateMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf: i32,
    key_type: u32,
    value_type: u32,
}

/// Makes the map and pins it at `path`, unless it is pinned already.
///
/// # Errors
/// The kernel refuses.
pub fn make(path: &Path) -> Result<(), BindingError> {
    let make = || -> io::Result<()> {
        if path.exists() {
            return Ok(());
        }
        pin(create()?.as_fd(), path)
    };
    make().map_err(file(path))
}

fn create() -> io::Result<OwnedFd> {
    let types = types();
    let load = LoadBtf {
        btf: types.as_ptr().addr() as u64,
        log: 0,
        btf_size: types.len() as u32,
        log_size: 0,
        log_level: 0,
        padding: 0,
    };
    // SAFETY: LoadBtf is the beginning of what the command reads; the types outlive the call.
    let types = unsafe { bpf_fd(BPF_BTF_LOAD, &load) }?;
    let map = CreateMap {
        map_type: BPF_MAP_TYPE_SK_STORAGE,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<Owner>() as u32,
        max_entries: 0,
        flags: BPF_F_NO_PREALLOC | BPF_F_CLONE,
        inner_map: 0,
        numa_node: 0,
        name: *b"OWNERS\0\0\0\0\0\0\0\0\0\0",
        ifindex: 0,
        btf: types.as_raw_fd(),
        key_type: KEY,
        value_type: VALUE,
    };
    // SAFETY: CreateMap is the beginning of what the command reads.
    unsafe { bpf_fd(BPF_MAP_CREATE, &map) }
}

/// Two integers as BTF (Documentation/bpf/btf.rst).
fn types() -> Vec<u8> {
    const MAGIC: u32 = 0xeb9f;
    const VERSION: u32 = 1;
    const HEADER: u32 = 24;
    const INT: u32 = 1 << 24;
    const NAMES: &[u8] = b"\0key\0value\0";
    let int = |name: u32, size: usize| [name, INT, size as u32, size as u32 * 8];
    let types = [int(1, size_of::<u32>()), int(5, size_of::<Owner>())];
    let length = size_of_val(&types) as u32;
    let header = [MAGIC | VERSION << 16, HEADER, 0, length, length, NAMES.len() as u32];
    let words = header.into_iter().chain(types.into_iter().flatten());
    words.flat_map(u32::to_ne_bytes).chain(NAMES.iter().copied()).collect()
}
