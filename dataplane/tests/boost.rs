//! What is done about the traffic, with the kernel's own threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, unshare};
use nix::unistd::Pid;
use std::fs::{DirEntry, File, read_dir, read_link, read_to_string, write};
use std::io::Read;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};
use uvn_dataplane::gear::boost::Booster;
use uvn_dataplane::gear::boost::awake::{Awake, REQUEST};
use uvn_dataplane::gear::boost::napi::{Napi, NapiError, threads};
use uvn_dataplane::port::link;
use uvn_rig::test::NetNs;

const SWITCH: &str = "/sys/class/net/em1/threaded";

/// Runs on a node whose NIC has NAPI, as a veth has while GRO is on, with its own /sys.
fn on_a_node(label: &str, test: impl FnOnce() + Send) {
    let [here, there] = ["a", "b"].map(|node| NetNs::new(&format!("{label}-{node}")));
    here.veth("em1", &there, "em1");
    here.ip("addr add 10.0.0.1/24 dev em1");
    here.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev em1");
    here.command("ethtool").args(["-K", "em1", "gro", "on"]).status().unwrap();
    here.run(|| {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while !link::get("em1").unwrap().running {
            assert!(Instant::now() < end, "em1 has no carrier");
            std::thread::sleep(Duration::from_millis(1));
        }
        test();
    });
}

fn open() -> Result<Napi, NapiError> {
    Napi::open(&link::get("em1").unwrap(), vec![first_core()])
}

fn cores(pid: i32) -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid)).unwrap();
    (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap()).collect()
}

fn first_core() -> usize {
    cores(0)[0]
}

fn is_threaded() -> bool {
    read_to_string(SWITCH).unwrap().trim() == "1"
}

#[test]
fn threads_run_on_the_networking_cores_and_go_with_the_data_plane() {
    on_a_node("napi", || {
        let mut napi = open().unwrap();
        assert!(!is_threaded());
        napi.set(true).unwrap();
        assert!(is_threaded());
        let threads = threads(link::get("em1").unwrap().index).unwrap();
        assert!(!threads.is_empty());
        for pid in threads {
            assert_eq!(cores(pid), [first_core()]);
        }
        drop(napi);
        assert!(!is_threaded());
    });
}

#[test]
fn what_a_killed_data_plane_left_is_taken_back() {
    on_a_node("napi-left", || {
        let mut napi = open().unwrap();
        napi.set(true).unwrap();
        std::mem::forget(napi);
        assert!(is_threaded());
        open().unwrap();
        assert!(!is_threaded());
    });
}

#[test]
fn what_somebody_else_has_set_stays() {
    on_a_node("napi-other", || {
        write(SWITCH, "1").unwrap();
        // A machine of one core has no other place for them.
        if cores(0).len() > 1 {
            assert!(matches!(open(), Err(NapiError::SetByOthers(_))));
            assert!(is_threaded());
        }
    });
}

#[test]
fn another_namespaces_sys_is_not_believed() {
    let netns = NetNs::new("napi-sys");
    netns.ip("link add wire0 type veth peer name wire1");
    netns.run(|| {
        let result = Napi::open(&link::get("wire0").unwrap(), vec![0]);
        assert!(matches!(result, Err(NapiError::File { .. })), "{result:?}");
    });
}

#[test]
fn packets_begin_a_trial_and_their_end_ends_it() {
    on_a_node("napi-trial", || {
        let socket = UdpSocket::bind("10.0.0.1:9").unwrap();
        let mut traffic = Booster::open(&link::get("em1").unwrap(), Some(vec![first_core()])).unwrap();
        let mut now = traffic.due();
        traffic.follow(now);
        let mut pass = |packets: usize| {
            for _ in 0..packets {
                socket.send_to(b"to", "10.0.0.2:9").unwrap();
            }
            now = traffic.due();
            traffic.follow(now);
            // By the clock that it is given, a trial's first turn begins within 135 ms, the next look is after 150.
            traffic.due() - now < Duration::from_millis(140)
        };
        assert!(!pass(50), "in 150 ms at the least");
        assert!(pass(2_000), "in 650 ms at the most");
        assert!(!pass(0));
        assert!(!is_threaded());
    });
}

/// How long a core may take to wake up, as the kernel has it from all who asked; microseconds.
fn allowed() -> i32 {
    let mut value = [0; 4];
    File::open(REQUEST).unwrap().read_exact(&mut value).unwrap();
    i32::from_ne_bytes(value)
}

/// How many requests this thread holds.
fn requests() -> usize {
    let is_request = |file: &DirEntry| read_link(file.path()).is_ok_and(|path| path == Path::new(REQUEST));
    read_dir("/proc/thread-self/fd").unwrap().flatten().filter(is_request).count()
}

#[test]
fn cores_stay_awake_for_as_long_as_they_are_asked_to() {
    if let Err(error) = File::options().write(true).open(REQUEST) {
        println!("SKIP: {REQUEST}: {error}");
        return;
    }
    // Files of its own, since other tests start programs, and each has this one's request until it executes.
    unshare(CloneFlags::CLONE_FILES).unwrap();
    let others = requests();
    let mut awake = Awake::default();
    assert!(!awake.is_held());
    awake.hold(true);
    assert_eq!((awake.is_held(), requests(), allowed()), (true, others + 1, 0));
    awake.hold(false);
    assert_eq!((awake.is_held(), requests()), (false, others));
    awake.hold(true);
    drop(awake);
    assert_eq!(requests(), others);
}
