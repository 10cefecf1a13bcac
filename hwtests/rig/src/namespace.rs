//! A host's worth of namespaces: network, mounts and host name, with own `/run/uvn`, `/etc/uvn` and bpffs.
#![allow(unsafe_code, reason = "a child enters the namespaces between fork and exec")]

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Folders that every node has for itself, as tmpfs.
const PRIVATE: [&str; 4] = ["/run/uvn", "/etc/uvn", "/var/lib/uvn", "/run/node"];
/// Files that every node has for itself; they are in /run/node.
const PRIVATE_FILES: [&str; 3] = ["hosts", "resolv.conf", "hostname"];

/// A host. Dropping it kills what runs there and gives the namespaces up.
pub struct Namespace {
    name: String,
    net: File,
    mnt: File,
    uts: File,
    /// The thread that holds the namespaces, by the number that `ip ... netns` and `nsenter -t` take.
    holder: i32,
    _release: mpsc::Sender<()>,
}

impl Namespace {
    /// A new host with this name, `lo` up and no other device.
    #[must_use]
    pub fn new(name: &str) -> Namespace {
        let (release, released) = mpsc::channel::<()>();
        let (ready, holder) = mpsc::channel();
        let owned = name.to_owned();
        thread::spawn(move || {
            isolate(&owned);
            ready.send(gettid().as_raw()).unwrap();
            let _dropped = released.recv();
        });
        let holder = holder.recv().expect("the namespaces can be made (root?)");
        let open = |kind| File::open(format!("/proc/{holder}/ns/{kind}")).unwrap();
        let namespace = Namespace {
            name: name.to_owned(),
            net: open("net"),
            mnt: open("mnt"),
            uts: open("uts"),
            holder,
            _release: release,
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `ip link ... netns` takes for it.
    #[must_use]
    pub fn holder(&self) -> i32 {
        self.holder
    }

    /// A command that will run here as root.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.prepare(program.as_ref(), None)
    }

    /// A command that will run here as a user: real, effective and saved UID and GID, no other group, no capability.
    #[must_use]
    pub fn command_as(&self, uid: u32, program: impl AsRef<Path>) -> Command {
        self.prepare(program.as_ref(), Some(uid))
    }

    fn prepare(&self, program: &Path, uid: Option<u32>) -> Command {
        let mut command = Command::new(program);
        let own = |file: &File| file.try_clone().unwrap();
        let (net, mnt, uts) = (own(&self.net), own(&self.mnt), own(&self.uts));
        let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let enter = move || -> std::io::Result<()> {
            setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            setns(uts.as_fd(), CloneFlags::CLONE_NEWUTS)?;
            setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
            let Some(uid) = uid else {
                // A mount namespace comes with its own root as working directory.
                return std::env::set_current_dir(&directory);
            };
            // By system call: libc's setters also change other threads, which a forked child has none of.
            // SAFETY: integer arguments, and a null pointer for an empty list.
            let failed = unsafe {
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) != 0
                    || libc::syscall(libc::SYS_setresgid, uid, uid, uid) != 0
                    || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0
            };
            if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: system calls on descriptors that the closure owns, and no lock that another thread could hold
        // over the fork: nothing is allocated.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `f` on a thread in these namespaces.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // A thread may enter another mount namespace only if it shares its root and directory with no other.
                unshare(CloneFlags::CLONE_FS).unwrap();
                setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                setns(self.uts.as_fd(), CloneFlags::CLONE_NEWUTS).unwrap();
                setns(self.mnt.as_fd(), CloneFlags::CLONE_NEWNS).unwrap();
                f()
            });
            thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// Runs lines of `ip`, without that word.
    pub fn ip(&self, lines: &str) {
        let mut ip = self.command("ip");
        feed(ip.args(["-batch", "-"]), lines);
    }

    /// Runs a shell script as root and returns its output; panics when it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(
            output.status.success(),
            "{}: `{script}`: {}{}",
            self.name,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs a shell script as root.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).stdin(Stdio::null()).output().unwrap()
    }

    /// Writes a file as this host sees it.
    pub fn write(&self, path: impl AsRef<Path> + Sync, content: &str) {
        self.within(|| std::fs::write(path.as_ref(), content))
            .unwrap_or_else(|error| panic!("{}: {}: {error}", self.name, path.as_ref().display()));
    }

    /// Reads a file as this host sees it; None if it is not there.
    pub fn read(&self, path: impl AsRef<Path> + Sync) -> Option<String> {
        self.within(|| std::fs::read_to_string(path.as_ref())).ok()
    }

    /// Waits until `f` says so, at most `patience`.
    pub fn wait(&self, what: &str, patience: Duration, mut f: impl FnMut() -> bool) {
        let end = Instant::now() + patience;
        while !f() {
            assert!(Instant::now() < end, "{}: no {what} within {patience:?}", self.name);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a path is there.
    pub fn wait_for(&self, path: &str, patience: Duration) {
        self.wait(path, patience, || self.within(|| Path::new(path).exists()));
    }

    /// The processes in its network namespace.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let own = std::fs::read_link(format!("/proc/self/fd/{}", self.net.as_raw_fd())).unwrap_or_default();
        let us = std::process::id().cast_signed();
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| *pid != us)
            .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|netns| netns == own))
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let processes = self.processes();
            if processes.is_empty() || Instant::now() > end {
                break;
            }
            for pid in processes {
                let _already_gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Puts the calling thread into new namespaces.
fn isolate(name: &str) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).unwrap();
    nix::unistd::sethostname(name).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    // A sysfs shows the network namespace that mounted it. What was on the old one goes on the new one.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), Some("mode=700")).unwrap();
    mount(Some("debugfs"), "/sys/kernel/debug", Some("debugfs"), MsFlags::empty(), none).unwrap();
    mount(Some("securityfs"), "/sys/kernel/security", Some("securityfs"), MsFlags::empty(), none).unwrap();
    for folder in PRIVATE {
        std::fs::create_dir_all(folder).unwrap();
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=16m")).unwrap();
    }
    for file in PRIVATE_FILES {
        let (own, common) = (PathBuf::from("/run/node").join(file), PathBuf::from("/etc").join(file));
        let content = if file == "hostname" { format!("{name}\n") } else { String::new() };
        std::fs::write(&own, content).unwrap();
        if !common.exists() {
            File::create(&common).unwrap();
        }
        mount(Some(&own), &common, none, MsFlags::MS_BIND, none).unwrap();
    }
    // Addresses are usable at once.
    for settings in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{settings}/accept_dad"), "0").unwrap();
    }
}

/// Runs a command that reads `input`; panics when it fails.
pub fn feed(command: &mut Command, input: &str) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{command:?} < {input}\n{said}");
}

/// Output as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
