//! By RDMA devices, which send past the kernel: to open one is to have succeeded. They are not among [`super::all`]: a node
//! must have such a device.
#![allow(unsafe_code, reason = "a setuid program's credentials")]

use super::Attempt;
use super::process::{as_subuid, become_user};
use super::socket::check;
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// The device of the verbs, a file that everybody may open.
const VERBS: &str = "/dev/infiniband/uverbs0";
/// That of the connection manager.
const MANAGER: &str = "/dev/infiniband/rdma_cm";
/// Another file of the same device, as containers have them; the test makes it.
pub const COPY: &str = "/dev/uverbs-of-a-container";

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let opening =
        |name: &str, path: &'static str| Attempt::new(format!("rdma-{name}"), move |_, _| open(path));
    vec![
        opening("verbs", VERBS),
        opening("manager", MANAGER),
        opening("another-file", COPY),
        Attempt::new("rdma-read-only", |_, _| opened(File::open(VERBS))),
        Attempt::new("rdma-by-path", |_, _| {
            let path = File::options().read(true).custom_flags(libc::O_PATH).open(VERBS)?;
            let again = format!("/proc/self/fd/{}", path.as_raw_fd());
            opened(File::options().read(true).write(true).open(again))
        }),
        Attempt::new("rdma-userns", |_, _| {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
            open(VERBS)
        }),
        Attempt::new("root-rdma-setuid-program", |aim, _| {
            become_user(aim.uid, 0)?;
            open(VERBS)
        }),
        Attempt::new("root-rdma-subuid", |aim, _| {
            become_user(aim.uid, aim.uid)?;
            // SAFETY: numbers only.
            check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
            as_subuid()?;
            open(VERBS)
        }),
    ]
}

fn open(path: &str) -> io::Result<String> {
    opened(File::options().read(true).write(true).open(path))
}

fn opened(file: io::Result<File>) -> io::Result<String> {
    file.map(|_| "open".to_owned())
}
