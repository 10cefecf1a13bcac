//! The tests' own network namespaces.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uvn_rig::test::NetNs;

#[test]
fn a_namespace_has_its_own_links_and_vanishes() {
    let left = NetNs::new("left");
    let right = NetNs::new("right");
    left.veth("wire0", &right, "wire1");
    assert!(left.ip("-br link").contains("wire0"));
    assert!(right.run(|| nix::net::if_::if_nametoindex("wire1")).is_ok());
    assert!(right.run(|| nix::net::if_::if_nametoindex("wire0")).is_err());
    let path = left.path();
    assert!(std::fs::exists(&path).unwrap());
    drop(left);
    assert!(!std::fs::exists(&path).unwrap());
}

/// The test is both processes: the one that is interrupted runs it with HOLD set.
#[test]
fn an_interrupted_test_leaves_nothing() {
    const HOLD: &str = "UVN_TEST_HOLD_NETNS";
    if std::env::var_os(HOLD).is_some() {
        let netns = NetNs::new("interrupted");
        let mut sleep = netns.command("sleep").arg("60").spawn().unwrap();
        std::fs::create_dir(std::env::temp_dir().join(netns.name())).unwrap();
        println!("\nmade {} {}", netns.name(), sleep.id());
        let _reaped_here_or_by_the_clean_up = sleep.wait();
        loop {
            std::thread::park();
        }
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "an_interrupted_test_leaves_nothing", "--nocapture"]).env(HOLD, "1");
    let mut test = test.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let made = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("made ").map(str::to_owned));
    let made = made.unwrap();
    let (name, sleep) = made.split_once(' ').unwrap();
    let directory = std::env::temp_dir().join(name);
    kill(Pid::from_raw(test.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(test.wait().unwrap().code(), Some(130));
    assert!(!directory.exists());
    assert!(!Path::new("/run/netns").join(name).exists());
    // Killed, it dies in its own time, and is a zombie until its new parent looks after it.
    let status = format!("/proc/{sleep}/status");
    let lives = || std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ"));
    let start = Instant::now();
    while lives() {
        assert!(start.elapsed() < Duration::from_secs(10), "{sleep} lives on");
        std::thread::yield_now();
    }
}
