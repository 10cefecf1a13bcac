//! What the socket buffers of VXLAN frames say of their checksums at a device, before any other program there: only a
//! program can ask. Written out, since no library assembles.
#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use uvn_dataplane::port::link;
use uvn_rig::test::NetNs;

/// How many frames had which verdict (`skb->ip_summed`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Nobody has looked (CHECKSUM_NONE).
    pub none: u64,
    /// There is a sum over the whole frame (CHECKSUM_COMPLETE).
    pub complete: u64,
    /// So many sums, from the outside in and one more than the index, are right (CHECKSUM_UNNECESSARY).
    pub unnecessary: [u64; 4],
}

impl Verdicts {
    /// What was counted since.
    pub fn since(&self, before: &Verdicts) -> Verdicts {
        let mut unnecessary = self.unnecessary;
        unnecessary.iter_mut().zip(before.unnecessary).for_each(|(now, before)| *now -= before);
        let (none, complete) = (self.none - before.none, self.complete - before.complete);
        Verdicts { none, complete, unnecessary }
    }
}

/// Counts, until it is dropped.
pub struct Probe {
    map: OwnedFd,
    _link: OwnedFd,
}

/// none, complete, four levels of unnecessary.
const ENTRIES: u32 = 6;

impl Probe {
    /// On frames that `device` receives. It must be made after all others that are to come behind it.
    pub fn new(node: &NetNs, device: &str) -> Probe {
        /// Commands, types and flags (include/uapi/linux/bpf.h).
        const MAP_CREATE: libc::c_long = 0;
        const PROG_LOAD: libc::c_long = 5;
        const LINK_CREATE: libc::c_long = 28;
        const MAP_TYPE_ARRAY: u32 = 2;
        const PROG_TYPE_SCHED_CLS: u64 = 3;
        const TCX_INGRESS: u32 = 46;
        const F_BEFORE: u32 = 1 << 3;

        let map = bpf(MAP_CREATE, &[MAP_TYPE_ARRAY, 4, 8, ENTRIES]);
        let program = instructions(map.as_raw_fd());
        let license = c"GPL";
        // prog_type and insn_cnt, insns, license.
        let load = [
            PROG_TYPE_SCHED_CLS | (program.len() as u64) << 32,
            program.as_ptr() as u64,
            license.as_ptr() as u64,
        ];
        let program = bpf(PROG_LOAD, &load);
        let link = node.run(|| {
            let index = link::get(device).unwrap().index;
            bpf(LINK_CREATE, &[program.as_raw_fd() as u32, index, TCX_INGRESS, F_BEFORE])
        });
        Probe { map, _link: link }
    }

    /// By now.
    pub fn verdicts(&self) -> Verdicts {
        const MAP_LOOKUP_ELEM: libc::c_long = 1;
        let [none, complete, unnecessary @ ..]: [u64; ENTRIES as usize] = std::array::from_fn(|index| {
            let (key, mut value) = (index as u32, 0_u64);
            let request = [self.map.as_raw_fd() as u64, (&raw const key) as u64, (&raw mut value) as u64];
            // SAFETY: key and value are of the map's sizes.
            let result = unsafe {
                libc::syscall(libc::SYS_bpf, MAP_LOOKUP_ELEM, &raw const request, size_of_val(&request))
            };
            assert_eq!(result, 0);
            value
        });
        Verdicts { none, complete, unnecessary }
    }
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> OwnedFd {
    // SAFETY: the callers give the beginning of what the command reads; what it returns is new.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>());
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as RawFd)
    }
}

/// `struct bpf_insn`: opcode, registers (destination in the low half), offset, immediate.
fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, registers, low, high, a, b, c, d])
}

/// Counts a frame whose UDP destination port is VXLAN's, and lets all go on.
fn instructions(map: RawFd) -> Vec<u64> {
    /// Helpers.
    const LOOKUP: i32 = 1;
    const LOAD_BYTES: i32 = 26;
    const CSUM_UPDATE: i32 = 40;
    const CSUM_LEVEL: i32 = 135;
    /// As two bytes are loaded.
    const PORT: i32 = u16::from_le_bytes(4789_u16.to_be_bytes()) as i32;

    let i = instruction;
    let call = |helper| i(0x85, 0, 0, helper);
    // Offset of the port over IPv4, or over IPv6, on the stack.
    let load = |offset| {
        [
            i(0xbf, 0x61, 0, 0),
            i(0xb7, 2, 0, offset),
            i(0xbf, 0xa3, 0, 0),
            i(0x07, 3, 0, -8),
            i(0xb7, 4, 0, 2),
            call(LOAD_BYTES),
        ]
    };
    let mut program = vec![i(0xbf, 0x16, 0, 0)]; // r6 = context
    program.extend(load(36));
    program.extend([
        i(0x55, 0, 32, 0),    // 7: too short: out
        i(0x69, 0xa1, -8, 0), // r1 = the port
        i(0x15, 1, 9, PORT),  // over IPv4
    ]);
    program.extend(load(56));
    program.extend([
        i(0x55, 0, 23, 0), // 16: too short: out
        i(0x69, 0xa1, -8, 0),
        i(0x55, 1, 21, PORT), // other traffic: out
        i(0xbf, 0x61, 0, 0),  // 19: r1 = context
        i(0xb7, 2, 0, 0),     // BPF_CSUM_LEVEL_QUERY
        call(CSUM_LEVEL),     // the level if CHECKSUM_UNNECESSARY, or an error
        i(0xbf, 0x07, 0, 0),  // r7 = it
        i(0x07, 7, 0, 2),     // its place
        i(0x75, 0, 6, 0),     // 24: s>= 0
        i(0xbf, 0x61, 0, 0),
        i(0xb7, 2, 0, 0),
        call(CSUM_UPDATE), // the sum if CHECKSUM_COMPLETE, or an error
        i(0xb7, 7, 0, 1),
        i(0x75, 0, 1, 0),
        i(0xb7, 7, 0, 0),     // 30: neither
        i(0x63, 0x7a, -4, 0), // 31: the key
        i(0x18, 0x11, 0, map),
        i(0, 0, 0, 0),
        i(0xbf, 0xa2, 0, 0),
        i(0x07, 2, 0, -4),
        call(LOOKUP),
        i(0x15, 0, 2, 0),
        i(0xb7, 1, 0, 1),
        i(0xdb, 0x10, 0, 0), // add
        i(0xb7, 0, 0, -1),   // 40: TC_ACT_UNSPEC
        i(0x95, 0, 0, 0),
    ]);
    program
}
