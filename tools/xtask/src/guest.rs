//! `cargo xtask guest -- COMMAND`: runs a command as root on a Debian kernel that has what the host's may lack (VRF).
//!
//! The guest is a qemu machine whose root is the host's root file system, read-only over 9p, below a tmpfs: what the
//! command writes is gone with the guest, whatever it deletes is still there on the host. Two folders are not so:
//! `/guest` is this run's folder on the host (`target/guest/run-PID`), read-write, for what should stay; `/tmp`, `/run`
//! and `/dev` are the guest's own. The command starts in the caller's directory with a small environment (and the
//! caller's `RUST_*` and `UVN_*` variables), its output arrives as it is written, its exit code becomes ours.
//!
//! - Kernels are Debian's, unpacked below `target/guest` ([`kernel`]) and not installed; `modprobe` works.
//! - The vmlinux is booted directly (PVH): a bzImage would decompress itself, which takes 5 s without KVM. A small
//!   initramfs ([`initramfs`]) mounts the root. 5 s to the command in all.
//! - KVM is used where a guest really boots with it ([`accelerator`]), else qemu's own translation (TCG), in which a
//!   process start costs 50 ms: let one program do much.
//! - With `--systemd`, process 1 is systemd with journald, D-Bus and logind, and the command is a service
//!   (`guest.service`); what slows the boot is masked. Otherwise process 1 is a shell that runs the command
//!   (`guest/stage2.sh`).
//! - cgroup v2 is at /sys/fs/cgroup, bpffs at /sys/fs/bpf, debugfs at /sys/kernel/debug; `lo` is up; there is no NIC.
//! - Any number of guests may run side by side.

pub mod accelerator;
pub mod examine;
mod initramfs;
pub mod kernel;
mod share;

use examine::{Evidence, Examiner};
use kernel::Kernel;
use share::Share;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use uvn_bench::shell::ShellError;

/// What a guest has and how long it may take.
#[derive(Debug, Clone, clap::Args)]
pub struct Machine {
    /// Debian's kernel series
    #[arg(long, value_enum, default_value_t = Machine::default().kernel)]
    pub kernel: kernel::Series,
    /// Boot systemd with D-Bus and logind, and run the command as a service
    #[arg(long)]
    pub systemd: bool,
    /// Memory in MiB; the tmpfs for what the guest writes takes from it
    #[arg(long, default_value_t = Machine::default().memory)]
    pub memory: u32,
    /// End the guest after so many minutes
    #[arg(long, default_value_t = Machine::default().timeout)]
    pub timeout: u64,
    /// Cores
    #[arg(long, default_value_t = Machine::default().cores)]
    pub cores: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { kernel: kernel::Series::V6_1, systemd: false, memory: 2048, timeout: 15, cores: 2 }
    }
}

/// A guest could not be run to its command's end.
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
    /// The kernel is not what is expected.
    #[error("{0}")]
    Kernel(String),
    /// Its command has hung, or takes longer than it may.
    #[error("{0}; the guest was examined and ended: {path}", path = .1.path.display())]
    Hung(String, Evidence),
    /// It ended without an exit code: a panic, or a command that powered it off.
    #[error("the guest ended before its command did; the end of its console:\n{0}")]
    Ended(String),
    /// A kernel that qemu translates panicked. Under load that does happen by qemu's doing: it has gone on in the middle of
    /// an instruction that the kernel had just patched (a static key), which a CPU does not.
    #[error("the emulated kernel panicked; the end of its console:\n{0}")]
    Panicked(String),
}

impl GuestError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> GuestError {
        let what = what.into();
        |source| GuestError::Io { what, source }
    }
}

/// The two streams of the guest's command, in pieces as they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Whoever follows a guest's command.
pub trait Watch {
    /// Takes a piece of its output.
    fn take(&mut self, stream: Stream, bytes: &[u8]);

    /// Why the command is taken for hung, if it is. Asked once a second.
    fn overdue(&self) -> Option<String>;
}

/// The terminal, where somebody may wait as long as they like.
struct Terminal;

impl Watch for Terminal {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        // Whoever reads us may have gone; the command goes on all the same.
        let _gone = match stream {
            Stream::Out => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Stream::Err => io::stderr().write_all(bytes),
        };
    }

    fn overdue(&self) -> Option<String> {
        None
    }
}

/// Runs `command` in a guest with the terminal's output and returns its exit code.
///
/// # Errors
/// As [`run`].
pub fn show(machine: &Machine, command: &[String]) -> Result<i32, GuestError> {
    run(machine, command, &mut Terminal)
}

/// Runs `command` in a guest, hands its output to `watch` as it arrives, and returns its exit code. A guest that is ended
/// before its command is examined first.
///
/// # Errors
/// No kernel, no qemu, a command that has hung or takes longer than the machine's time limit, or a guest that crashed.
pub fn run(machine: &Machine, command: &[String], watch: &mut impl Watch) -> Result<i32, GuestError> {
    let target = target_directory()?.join("guest");
    let kernel = Kernel::get(machine.kernel, &target)?;
    let share = Share::new(&target, command)?;
    let initramfs = share.path.join("initramfs");
    initramfs::write(&kernel, &initramfs)?;
    let accelerator = accelerator::choose(&kernel, &target)?;
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
    let mut running = Running::start(qemu)?;
    let hung = running.watch(machine.timeout, watch);
    let evidence = hung.map(|why| (why, examiner.examine(running.child.id(), share.evidence(&target))));
    drop(running);
    let code = std::fs::read_to_string(share.path.join("exit")).ok();
    match (code.and_then(|code| code.trim().parse().ok()), evidence) {
        (Some(code), _) => Ok(code),
        (None, Some((why, evidence))) => Err(GuestError::Hung(why, evidence)),
        (None, None) => {
            let console = share.console();
            let panicked = accelerator == accelerator::Accelerator::Tcg && console.contains("Kernel panic");
            Err(if panicked { GuestError::Panicked(console) } else { GuestError::Ended(console) })
        }
    }
}

/// The machine without its file systems and streams.
fn qemu(machine: &Machine, kernel: &Kernel, accelerator: accelerator::Accelerator) -> Command {
    // The guest must not outlive us, however we end (Ctrl-C): setpriv asks the kernel to see to it.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-nographic", "-no-reboot"]);
    qemu.args(["-machine", "q35", "-m", &machine.memory.to_string(), "-smp", &machine.cores.to_string()]);
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

/// The kernel's command line. On a busy machine an emulated timer may be too late for the kernel's test of it, and the
/// kernel would panic ("IO-APIC + timer doesn't work").
fn append(machine: &Machine, kernel: &Kernel) -> String {
    let init = if machine.systemd { "systemd" } else { "shell" };
    format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off no_timer_check rcupdate.rcu_expedited=1 \
         sysrq_always_enabled net.ifnames=0 uvn.init={init} uvn.release={}",
        kernel.release
    )
}

/// Where cargo puts what it builds.
fn target_directory() -> Result<PathBuf, GuestError> {
    crate::cargo::target_directory()
        .map_err(|error| GuestError::Kernel(format!("no target directory: {error}")))
}

/// A running qemu. Dropping it ends it.
struct Running {
    child: Child,
    output: Receiver<(Stream, Vec<u8>)>,
}

impl Running {
    fn start(mut qemu: Command) -> Result<Running, GuestError> {
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(GuestError::io("start qemu"))?;
        let (sender, output) = mpsc::channel();
        let streams: [(Stream, Option<Box<dyn Read + Send>>); 2] = [
            (Stream::Out, child.stdout.take().map(|pipe| Box::new(pipe) as _)),
            (Stream::Err, child.stderr.take().map(|pipe| Box::new(pipe) as _)),
        ];
        for (stream, pipe) in streams {
            let (sender, Some(mut pipe)) = (sender.clone(), pipe) else { continue };
            thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    if sender.send((stream, buffer[..length].to_vec())).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Running { child, output })
    }

    /// Hands on its output until it ends; why it does not, if it has hung or taken longer than `minutes`.
    fn watch(&mut self, minutes: u64, watch: &mut impl Watch) -> Option<String> {
        let end = Instant::now() + Duration::from_secs(minutes * 60);
        loop {
            match self.output.recv_timeout(Duration::from_secs(1)) {
                Ok((stream, bytes)) => watch.take(stream, &bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let _status = self.child.wait();
                    return None;
                }
            }
            let late = || format!("the command did not end within {minutes} minutes (see --timeout)");
            if let Some(why) = watch.overdue().or_else(|| (Instant::now() > end).then(late)) {
                return Some(why);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}
