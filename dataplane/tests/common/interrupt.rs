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

/// To hold while a namespace is made. From the first time on, a signal that ends the program cleans up.
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

/// Ends the processes in our namespaces, then deletes those and our files. Goes on past what fails: there is nobody
/// to tell.
fn clean_up() {
    let prefix = prefix();
    let ours = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&prefix)).collect()
    };
    let ip = |arguments: [&str; 3]| Command::new("ip").args(arguments).output();
    let namespaces = ours("/run/netns");
    for name in &namespaces {
        let pids = ip(["netns", "pids", name]).map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).lines().filter_map(|pid| pid.parse().ok()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for name in &namespaces {
        let _gone = ip(["netns", "del", name]);
    }
    let temporary = std::env::temp_dir();
    for name in ours(&temporary.to_string_lossy()) {
        let path = temporary.join(name);
        let _gone = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
}
