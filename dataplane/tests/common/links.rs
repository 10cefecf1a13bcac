//! The links by which a process has attached its programs, and what an administrator can do to them
//! (`bpftool link detach`).
#![allow(unsafe_code, reason = "bpf(2) has no safe interface")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// By number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links(pub BTreeSet<u32>);

impl Links {
    /// Those of a process to the device with this index.
    pub fn of(pid: u32, device: u32) -> Links {
        let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
        let texts = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
        let number = |text: &str, name: &str| -> Option<u32> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        let links = texts.filter_map(|text| {
            let is_there = number(&text, "ifindex:") == Some(device);
            number(&text, "link_id:").filter(|_| is_there)
        });
        Links(links.collect())
    }

    /// Detaches them.
    pub fn detach(&self) {
        /// include/uapi/linux/bpf.h
        const LINK_GET_FD_BY_ID: libc::c_long = 30;
        const LINK_DETACH: libc::c_long = 34;
        for link in &self.0 {
            // SAFETY: either command reads one number; the descriptor is new and nobody else's.
            unsafe {
                let fd = libc::syscall(libc::SYS_bpf, LINK_GET_FD_BY_ID, link, size_of_val(link));
                assert!(fd >= 0, "{}", std::io::Error::last_os_error());
                let fd = OwnedFd::from_raw_fd(fd as i32);
                let number = fd.as_raw_fd();
                let result =
                    libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const number, size_of_val(&number));
                assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            }
        }
    }
}
