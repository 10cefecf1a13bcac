//! Finds out whether qemu can use KVM here. That /dev/kvm exists is not enough: in some clouds it works only for their
//! own kernels.

use super::GuestError;
use super::kernel::Kernel;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a kernel may take until it finds no root file system. With KVM it takes a second.
const PATIENCE: Duration = Duration::from_secs(8);

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the CPU.
    Kvm,
    /// Translated by qemu.
    Tcg,
    /// Translated by qemu, with a clock that counts instructions: a nanosecond each, and it stands while nothing runs.
    Icount,
}

impl Accelerator {
    /// qemu's options.
    #[must_use]
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
            Accelerator::Icount => {
                &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max"]
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
            Accelerator::Icount => "icount",
        }
    }
}

/// KVM if a kernel boots with it. It is tried once; the answer is kept in `target`.
///
/// # Errors
/// It cannot be written there.
pub fn choose(kernel: &Kernel, target: &Path) -> Result<Accelerator, GuestError> {
    let answer = target.join("accelerator");
    let known = std::fs::read_to_string(&answer).unwrap_or_default();
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        if known.trim() == accelerator.name() {
            return Ok(accelerator);
        }
    }
    let found =
        if Path::new("/dev/kvm").exists() && boots(kernel) { Accelerator::Kvm } else { Accelerator::Tcg };
    std::fs::write(&answer, found.name()).map_err(GuestError::io(format!("write {}", answer.display())))?;
    Ok(found)
}

/// Boots a kernel without a root file system: it panics, which ends qemu.
fn boots(kernel: &Kernel) -> bool {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-nographic", "-no-reboot", "-machine", "q35", "-m", "512"]);
    qemu.args(Accelerator::Kvm.arguments()).arg("-kernel").arg(&kernel.vmlinux);
    qemu.args(["-append", "quiet panic=-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = qemu.spawn() else { return false };
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(Some(status)) = child.try_wait() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _already_ended = child.kill();
    let _status = child.wait();
    false
}
