//! The current process: its user, and the program that it runs.

use crate::maps::{EXECUTABLES, NETNS, OBSERVE, POLICED, WAY};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_netns_cookie};
use aya_ebpf::helpers::{bpf_get_current_uid_gid, bpf_probe_read_kernel};
use uvn_wire::cgroup::{self, Executable, Way};

/// The current process's real UID; None: it is not policed in the socket's network namespace.
#[inline(always)]
pub(crate) fn policed(ctx: &impl EbpfContext) -> Option<u32> {
    if !is_here(ctx) {
        return None;
    }
    let uid = current_uid();
    is_policed(uid).then_some(uid)
}

/// Whether the socket is in the loader's network namespace.
#[inline(always)]
pub(crate) fn is_here(ctx: &impl EbpfContext) -> bool {
    // SAFETY: any program that looks at sockets may ask.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == NETNS.load() }
}

/// The current process's real UID, in the initial user namespace.
#[inline(always)]
pub(crate) fn current_uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}

#[inline(always)]
pub(crate) fn is_policed(uid: u32) -> bool {
    for index in 0..cgroup::RANGE_ENTRIES {
        let Some(range) = POLICED.get(index) else { return false };
        if range.first > range.last {
            return false;
        }
        if (range.first..=range.last).contains(&uid) {
            return true;
        }
    }
    false
}

/// Whether the programs only observe, and leave sockets as they are.
#[inline(always)]
pub(crate) fn observes() -> bool {
    OBSERVE.load() != 0
}

/// Whether the process runs a program that Slurm's daemons call back.
#[inline(always)]
pub(crate) fn is_called_back() -> bool {
    let way = WAY.load();
    // A constant when the program is loaded: without a way, the verifier drops the code that reads the kernel's memory.
    way.mm != 0 && executable(way).is_some_and(|executable| EXECUTABLES.get_ptr(executable).is_some())
}

#[inline(always)]
pub(crate) fn executable(way: Way) -> Option<Executable> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let mm: u64 = read(task, way.mm)?;
    let file: u64 = read(mm, way.exe_file)?;
    let inode: u64 = read(file, way.f_inode)?;
    let file_system: u64 = read(inode, way.i_sb)?;
    Some(Executable { inode: read(inode, way.i_ino)?, device: read(file_system, way.s_dev)?, padding: 0 })
}

/// Reads a value at an offset from a kernel address. None: the address cannot be read, which does not fault.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper takes any address.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}
