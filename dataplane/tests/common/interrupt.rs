//! Ctrl-C ends a test program without its destructors: it leaves nothing behind all the same.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// How the names of all that this program makes begin: namespaces, and what is in the temporary directory.
pub fn prefix() -> String {
    format!("uvn-test-{}-", std::process::id())
}

/// To hold while a namespace or a lasting process is made. From the first time on, a signal that ends the program cleans up.
pub fn making() -> MutexGuard<'static, ()> {
    static MAKING: Mutex<()> = Mutex::new(());
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).unwrap();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let _nothing_new = MAKING.lock();
                clean_up();
                std::process::exit(128 + signal);
            }
        });
    });
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills our child processes, then deletes our namespaces and files. Goes on past what fails: there is nobody to tell.
fn clean_up() {
    let entries = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let parent = format!("\nPPid:\t{}\n", std::process::id());
    for pid in entries("/proc").iter().filter_map(|name| name.parse().ok()) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.contains(&parent) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let is_ours = |name: &&String| name.starts_with(&prefix());
    for name in entries("/run/netns").iter().filter(is_ours) {
        let _gone = Command::new("ip").args(["netns", "del", name]).status();
    }
    let temporary = std::env::temp_dir();
    for name in entries(&temporary.to_string_lossy()).iter().filter(is_ours) {
        let path = temporary.join(name);
        let _gone = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
}
