//! `cargo xtask guest -- COMMAND`: runs a command as root on a Debian kernel, which has what the host's may lack (VRF).
//!
//! The guest is a qemu machine whose root is the host's root file system, read-only over 9p, below a tmpfs: what the
//! command writes is gone with the guest, and what it deletes still exists on the host. Exceptions: `/guest` is this
//! run's folder on the host (`target/guest/run-PID`), read-write, for results; `/tmp`, `/run` and `/dev` are the
//! guest's own. The command starts in the caller's directory, with a small environment and the caller's `RUST_*` and
//! `UVN_*` variables. Its output arrives as it is written, and its exit code becomes that of this program.
//!
//! - Kernels are Debian's, unpacked below `target/guest` ([`kernel`]) and not installed; `modprobe` works.
//! - The vmlinux is booted directly (PVH): a bzImage would decompress itself, which takes 5 s without KVM. A small
//!   initramfs ([`initramfs`]) mounts the root. 5 s to the command in all.
//! - KVM is used if a guest boots with it ([`accelerator`]), else qemu's own translation (TCG), in which the start of a
//!   process takes 50 ms: one program should do much.
//! - With `--systemd`, process 1 is systemd with journald, D-Bus and logind, and the command is a service
//!   (`guest.service`); what slows the boot is masked. Otherwise process 1 is a shell that runs the command
//!   (`guest/stage2.sh`).
//! - cgroup v2 is at /sys/fs/cgroup, bpffs at /sys/fs/bpf, debugfs at /sys/kernel/debug; `lo` is up; there is no NIC.
//! - Programs that tests start often are in the guest's memory ([`memory`]), as if the command had written them.
//! - Any number of guests may run side by side.
//! - A guest that hangs is examined before it is ended ([`examine`]); the evidence is kept below `target/guest`.

pub mod accelerator;
pub mod examine;
mod initramfs;
pub mod kernel;
mod memory;
mod share;

use crate::running::{Running, Stream, Watch};
use accelerator::Accelerator;
use examine::{Evidence, Examiner};
use kernel::Kernel;
use share::Share;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use uvn_rig::shell::ShellError;

/// A guest's hardware, and how long it may run.
#[derive(Debug, Clone, clap::Args)]
pub struct Machine {
    /// Series of the Debian kernel
    #[arg(long, value_enum, default_value_t = Machine::default().kernel)]
    pub kernel: kernel::Series,
    /// Boot systemd with D-Bus and logind, and run the command as a service
    #[arg(long)]
    pub systemd: bool,
    /// Memory in MiB, including the tmpfs that takes what the guest writes
    #[arg(long, default_value_t = Machine::default().memory)]
    pub memory: u32,
    /// Minutes after which the guest is ended
    #[arg(long, default_value_t = Machine::default().timeout)]
    pub timeout: u64,
    /// Number of cores
    #[arg(long, default_value_t = Machine::default().cores)]
    pub cores: u32,
    /// One core whose clock counts its instructions, so that a busy machine does not change what is measured
    #[arg(long, conflicts_with_all = ["cores", "systemd"])]
    pub icount: bool,
}

impl Default for Machine {
    fn default() -> Self {
        let (memory, timeout, cores) = (2048, 15, 2);
        Machine { kernel: kernel::Series::V6_1, systemd: false, memory, timeout, cores, icount: false }
    }
}

/// Why a guest's command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A program on the host failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A file could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel cannot be unpacked as expected.
    #[error("{0}")]
    Kernel(String),
    /// The command has hung, or takes too long.
    #[error("{0}; the guest was examined and ended: {path}", path = .1.path.display())]
    Hung(String, Evidence),
    /// The guest ended without an exit code: by a panic, or because the command powered it off.
    #[error("the guest ended before its command did; the end of its console:\n{0}")]
    Ended(String),
    /// The guest ended without an exit code because of an error of qemu.
    #[error("qemu's emulation failed: {0}; the end of the guest's console:\n{1}")]
    Emulation(&'static str, String),
}

impl GuestError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> GuestError {
        let what = what.into();
        |source| GuestError::Io { what, source }
    }
}

/// Shows output on the terminal; the command may write nothing for as long as it likes.
struct Terminal {
    minutes: u64,
    end: Instant,
}

impl Watch for Terminal {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        // The reader of this program's output may have gone; the command goes on.
        let _gone = match stream {
            Stream::Out => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Stream::Err => io::stderr().write_all(bytes),
        };
    }

    fn overdue(&self) -> Option<String> {
        let late = || format!("the command did not end within {} minutes (see --timeout)", self.minutes);
        (Instant::now() > self.end).then(late)
    }
}

/// Runs `command` in a guest, with output to the terminal, and returns its exit code.
///
/// # Errors
/// As [`run`].
pub fn show(machine: &Machine, command: &[String]) -> Result<i32, GuestError> {
    let minutes = machine.timeout;
    run(machine, command, &mut Terminal { minutes, end: Instant::now() + Duration::from_secs(minutes * 60) })
}

/// Runs `command` in a guest, hands its output to `watch` as it arrives, and returns its exit code. If the guest must
/// be ended before its command, it is examined first.
///
/// # Errors
/// No kernel, no qemu, a command that `watch` takes for hung, or a guest that crashed.
pub fn run(machine: &Machine, command: &[String], watch: &mut impl Watch) -> Result<i32, GuestError> {
    let target = target_directory()?.join("guest");
    let kernel = Kernel::get(machine.kernel, &target)?;
    let share = Share::new(&target, command)?;
    let initramfs = share.path.join("initramfs");
    initramfs::write(&kernel, &initramfs)?;
    let accelerator = match machine.icount {
        true => Accelerator::Icount,
        false => accelerator::choose(&kernel, &target)?,
    };
    let mut qemu = qemu(machine, &kernel, accelerator);
    qemu.args(["-append", &append(machine, &kernel)]).arg("-initrd").arg(&initramfs);
    qemu.arg("-serial").arg(format!("file:{}", share.path.join("console.log").display()));
    ninep(&mut qemu, "root", Path::new("/"), true);
    ninep(&mut qemu, "modules", &kernel.modules, true);
    ninep(&mut qemu, "share", &share.path, false);
    // A file chardev: a stdio one without a stdin blocks the guest. The pipes are ours to copy: qemu truncates files.
    for (port, name) in [(1, "out"), (2, "err")] {
        qemu.args(["-chardev", &format!("file,id={name},path=/proc/self/fd/{port}")]);
        qemu.args(["-device", &format!("virtserialport,chardev={name},nr={port}")]);
    }
    let examiner = Examiner::new(&share.path).map_err(GuestError::io("make the examiner's sockets"))?;
    examiner.arguments(&mut qemu);
    let mut running = Running::start(qemu).map_err(GuestError::io("start qemu"))?;
    let hung = running.watch(watch).err();
    let evidence = hung.map(|why| (why, examiner.examine(running.id(), share.evidence(&target))));
    drop(running);
    let code = std::fs::read_to_string(share.path.join("exit")).ok();
    match (code.and_then(|code| code.trim().parse().ok()), evidence) {
        (Some(code), _) => Ok(code),
        (None, Some((why, evidence))) => Err(GuestError::Hung(why, evidence)),
        (None, None) => {
            let console = share.console();
            Err(match emulation_failed(&console) {
                Some(how) if accelerator != Accelerator::Kvm => GuestError::Emulation(how, console),
                _ => GuestError::Ended(console),
            })
        }
    }
}

/// The machine without its file systems and streams.
fn qemu(machine: &Machine, kernel: &Kernel, accelerator: Accelerator) -> Command {
    // The guest must not outlive this process, however that ends (Ctrl-C): setpriv makes the kernel end it.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-nographic", "-no-reboot"]);
    let cores = if machine.icount { 1 } else { machine.cores };
    qemu.args(["-machine", "q35", "-m", &machine.memory.to_string(), "-smp", &cores.to_string()]);
    qemu.args(accelerator.arguments()).args(["-device", "virtio-serial-pci"]);
    qemu.arg("-kernel").arg(&kernel.vmlinux);
    qemu
}

fn ninep(qemu: &mut Command, tag: &str, path: &Path, read_only: bool) {
    let read_only = if read_only { "on" } else { "off" };
    let path = path.display().to_string().replace(',', ",,");
    qemu.args([
        "-virtfs",
        &format!(
            "local,path={path},mount_tag={tag},security_model=none,readonly={read_only},multidevs=remap"
        ),
    ]);
}

/// The kernel's command line. It skips the kernel's test of the timer: on a busy machine an emulated timer may be late,
/// and the kernel would panic ("IO-APIC + timer doesn't work"). The clock is the TSC, which qemu reads from the host: each
/// look at the HPET, for which the kernel else decides, leaves the translated code. And memory is copied by loops: qemu
/// translates string instructions (`rep movsb`) byte by byte. Both together are a fifth of a suite's CPU time.
fn append(machine: &Machine, kernel: &Kernel) -> String {
    // Debian's security modules, and BPF programs.
    let modules = "lsm=landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor,bpf";
    let init = if machine.systemd { "systemd" } else { "shell" };
    format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off no_timer_check rcupdate.rcu_expedited=1 \
         sysrq_always_enabled tsc=reliable clocksource=tsc clearcpuid=erms,fsrm,rep_good net.ifnames=0 {modules} uvn.init={init} uvn.release={}",
        kernel.release
    )
}

/// Evidence in a kernel's last words of an error of qemu's translation, which no CPU makes. Under load it goes on in
/// the middle of an instruction that the kernel has just patched (a static key), or executes the old instruction.
fn emulation_failed(console: &str) -> Option<&'static str> {
    let (_, oops) = console.split_once("invalid opcode: 0000")?;
    let (_, code) = oops.split_once("Code: ")?;
    let words: Vec<&str> = code.lines().next()?.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with('<'))?;
    let bytes: Option<Vec<u8>> =
        words.iter().map(|word| u8::from_str_radix(word.trim_matches(['<', '>']), 16).ok()).collect();
    let bytes = bytes?;
    // A static key is a jump (e9 and a distance) or a NOP of five bytes (arch/x86/include/asm/nops.h, BYTES_NOP5).
    let covers = |from: usize| match bytes.get(from..from + 5) {
        Some([0x0f, 0x1f, 0x44, 0x00, 0x00]) => true,
        Some([0xe9, ..]) => from == at,
        _ => false,
    };
    (at.saturating_sub(4)..=at)
        .any(covers)
        .then_some("an invalid opcode in a valid instruction that the kernel patches")
}

/// The folder in which cargo puts what it builds.
fn target_directory() -> Result<PathBuf, GuestError> {
    crate::cargo::target_directory()
        .map_err(|error| GuestError::Kernel(format!("no target directory: {error}")))
}

#[cfg(test)]
mod tests {
    use super::emulation_failed;

    fn oops(what: &str, code: &str) -> String {
        format!(
            "[  1.0] {what}: 0000 [#1] PREEMPT SMP NOPTI\n[  1.0] RIP: 0010:nf_hook+0x1b/0x60\n[  1.0] Code: {code}\n"
        )
    }

    #[test]
    fn only_what_no_cpu_does_is_the_emulations_doing() {
        let nop = "48 89 e5 <0f> 1f 44 00 00 5d c3 90 90";
        assert!(emulation_failed(&oops("invalid opcode", nop)).is_some());
        assert!(emulation_failed(&oops("invalid opcode", "48 89 e5 0f 1f <44> 00 00 5d c3")).is_some());
        assert!(emulation_failed(&oops("invalid opcode", "48 89 e5 <e9> 1f 44 00 00 5d c3")).is_some());
        assert!(
            emulation_failed(&oops("invalid opcode", "e9 89 e5 <0f> 0b 44 00 00 5d c3")).is_none(),
            "ud2"
        );
        assert!(emulation_failed(&oops("general protection fault", nop)).is_none());
        assert!(emulation_failed("Kernel panic - not syncing: Attempted to kill init!").is_none());
    }
}
