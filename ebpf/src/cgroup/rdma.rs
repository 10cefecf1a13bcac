//! RDMA devices, by which a process sends without the kernel, and so outside of every network: if the policy denies
//! them, policed users cannot open them.

use crate::process::{current_uid, is_policed};
use crate::verdict::answer;
use aya_ebpf::macros::{cgroup_device, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::DeviceContext;
use uvn_wire::cgroup::{DEVICE_FILE_ENTRIES, DeviceFile, Verdict};

/// The device files that are denied. Belongs to the policy.
#[map]
static DEVICE_FILES: Array<DeviceFile> = Array::with_max_entries(DEVICE_FILE_ENTRIES, 0);

/// A device file is opened, or made.
#[cgroup_device]
pub fn uvn_device(ctx: DeviceContext) -> i32 {
    // SAFETY: the verifier knows the context's fields.
    let (major, minor) = unsafe { ((*ctx.device).major, (*ctx.device).minor) };
    answer(if is_denied(major, minor) && is_policed(current_uid()) { Err(Verdict::Rdma) } else { Ok(()) })
}

#[inline(always)]
fn is_denied(major: u32, minor: u32) -> bool {
    for index in 0..DEVICE_FILE_ENTRIES {
        let Some(file) = DEVICE_FILES.get(index) else { return false };
        if file.major == 0 {
            return false;
        }
        if file.major == major && (file.minor == minor || file.minor == DeviceFile::ANY) {
            return true;
        }
    }
    false
}
