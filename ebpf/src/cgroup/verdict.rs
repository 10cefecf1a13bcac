//! The programs' return values, and their counters.

use crate::maps::{COUNTERS, REFUSED};
use crate::process::observes;
use aya_ebpf::helpers::bpf_get_current_comm;
use uvn_wire::cgroup::{Refused, Verdict};

/// Notes that a user was refused a socket, for the log. Updates may be lost.
#[inline(always)]
pub(crate) fn note(uid: u32) {
    let program = bpf_get_current_comm().unwrap_or_default();
    match REFUSED.get_ptr_mut(uid) {
        // SAFETY: some user's element; a count for the wrong user is only a small error in a log.
        Some(refused) => unsafe {
            (*refused).count += 1;
            (*refused).program = program;
        },
        None => drop(REFUSED.insert(uid, Refused { count: 1, program }, 0)),
    }
}

/// The return value, after counting: 1: allowed. 0: EPERM, or the packet is dropped.
#[inline(always)]
pub(crate) fn answer(result: Result<(), Verdict>) -> i32 {
    match result {
        Ok(()) => 1,
        Err(verdict) => {
            count(verdict);
            i32::from(observes())
        }
    }
}

#[inline(always)]
pub(crate) fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: the slot of this CPU; an increment lost to an interrupt is only a small error in a statistic.
        unsafe { *counter += 1 };
    }
}
