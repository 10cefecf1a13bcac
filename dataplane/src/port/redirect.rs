//! A small XDP program for our end of a veth endpoint: it hands every frame to one AF_XDP socket, or drops it.
//!
//! Its five instructions are written out here, since the object of `ebpf/` would bring the NIC's programs and maps.
//!
//! It is attached by netlink, without a link, and stays as long as the device: if this process is killed, the program
//! finds no socket and drops. Without it, the tenant's frames would reach the host's stack.

#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]

use crate::bpf::{bpf, bpf_fd};
use crate::port::link;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// bpf(2) commands and types (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _padding: u32,
    key: *const u32,
    value: *const u32,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: *const Instruction,
    license: *const libc::c_char,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Attaches to a device of this network namespace, in driver mode, until the device is deleted: frames of queue 0 go to
/// `socket`; all others, and all after the socket's end, are dropped.
///
/// # Errors
/// EBUSY: the device has another program. ERANGE: the MTU is too large for the driver. EPERM: CAP_BPF or CAP_NET_ADMIN
/// is missing.
pub fn attach(device: &str, socket: RawFd) -> io::Result<()> {
    let create =
        MapCreate { map_type: MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: 1, flags: 0 };
    // SAFETY: MapCreate is the beginning of what BPF_MAP_CREATE reads.
    let map = unsafe { bpf_fd(MAP_CREATE, &create) }?;
    let (key, value) = (0, socket as u32);
    let update = MapUpdate { map: map.as_raw_fd() as u32, _padding: 0, key: &key, value: &value, flags: 0 };
    // SAFETY: MapUpdate is the beginning of what BPF_MAP_UPDATE_ELEM reads; key and value are of the map's sizes.
    unsafe { bpf(MAP_UPDATE_ELEM, &update) }?;

    let program = program(map.as_raw_fd());
    let load = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr(),
        license: c"MIT".as_ptr(),
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: ProgLoad is the beginning of what BPF_PROG_LOAD reads; its pointers outlive the call.
    let program = unsafe { bpf_fd(PROG_LOAD, &load) }?;
    link::attach_xdp(device, program.as_fd())
}

/// `return bpf_redirect_map(&map, ctx->rx_queue_index, XDP_DROP)`: the flags are the verdict for an empty slot.
fn program(map: RawFd) -> [Instruction; 6] {
    const XDP_DROP: i32 = 1;
    const REDIRECT_MAP: i32 = 51;
    let instruction = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    [
        // r2 = *(u32 *)(r1 + offsetof(struct xdp_md, rx_queue_index))
        instruction(0x61, 0x12, 16, 0),
        // r1 = map, in two slots; source 1 marks the descriptor of a map
        instruction(0x18, 0x11, 0, map),
        instruction(0, 0, 0, 0),
        // r3 = XDP_DROP
        instruction(0xb7, 0x03, 0, XDP_DROP),
        // call; exit
        instruction(0x85, 0, 0, REDIRECT_MAP),
        instruction(0x95, 0, 0, 0),
    ]
}
