//! What is done about the traffic, with the kernel's own threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, unshare};
use nix::unistd::Pid;
use std::fs::{create_dir_all, read_to_string, write};
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::Boosting;
use uvn_dataplane::gear::boost::Booster;
use uvn_dataplane::gear::boost::awake::{Awake, lift_what_is_left};
use uvn_dataplane::gear::boost::napi::{Napi, NapiError, threads};
use uvn_dataplane::gear::boost::trial::Load;
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
        let link = link::get("em1").unwrap();
        assert!(Booster::open(&link, Boosting::None, &[Some(first_core())], true).is_none());
        assert!(
            Booster::open(&link, Boosting::Threads, &[Some(first_core())], false).is_none(),
            "the engine gear"
        );
        let mut traffic = Booster::open(&link, Boosting::Threads, &[Some(first_core())], true).unwrap();
        let (mut now, mut load) = (traffic.due(), Load::default());
        traffic.follow(now, || load);
        let mut pass = |packets: u64| {
            load.rx_packets += packets;
            load.rx_bytes += 100 * packets;
            now = traffic.due();
            traffic.follow(now, || load);
            traffic.boost().is_some()
        };
        assert!((0..50).all(|_| !pass(500)), "too few, in 150 to 650 ms");
        // A second to see it, two until a trial begins at most, and some turns.
        let boosts: Vec<bool> = (0..16).map(|_| pass(200_000)).collect();
        assert!(boosts.contains(&true) && !boosts[0] && !boosts[1], "{boosts:?}");
        assert!(!pass(0));
        assert!(!is_threaded());
    });
}

/// With two cores of its own making: the machine's are left alone.
#[test]
fn only_the_workers_cores_stay_awake_and_not_for_longer() {
    const CORES: &str = "/sys/devices/system/cpu";
    let netns = NetNs::new("awake");
    netns.run(|| {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        for place in [CORES, "/run"] {
            mount(Some("own"), place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
        let file = |core: usize| format!("{CORES}/cpu{core}/power/pm_qos_resume_latency_us");
        let limits = || [0, 1, 2, 3].map(|core| read_to_string(file(core)).unwrap().trim().to_owned());
        for core in 0..4 {
            create_dir_all(format!("{CORES}/cpu{core}/power")).unwrap();
            write(file(core), "0\n").unwrap();
        }
        let mut awake = Awake::of(vec![1, 2]);
        assert!(!awake.is_held());
        awake.hold().unwrap();
        assert!(awake.is_held());
        assert_eq!(limits(), ["0", "10", "10", "0"]);
        awake.lift();
        assert_eq!((awake.is_held(), limits()), (false, ["0"; 4].map(String::from)));
        // Somebody else's limit stays, also if it is the same.
        write(file(1), "10\n").unwrap();
        write(file(2), "3\n").unwrap();
        assert!(awake.hold().is_err());
        lift_what_is_left();
        assert_eq!(limits(), ["0", "10", "3", "0"]);
        write(file(1), "0\n").unwrap();
        // Two NICs with the same core: the last one lifts.
        awake.hold().unwrap();
        let mut other = Awake::of(vec![1, 3]);
        other.hold().unwrap();
        assert_eq!(limits(), ["0", "10", "3", "10"]);
        drop(awake);
        lift_what_is_left();
        assert_eq!(limits(), ["0", "10", "3", "10"]);
        other.lift();
        assert_eq!(limits(), ["0", "0", "3", "0"]);
        // Killed: its locks are gone, its limit is not.
        let lock = "/run/uvn/awake-1";
        write(lock, "10").unwrap();
        write(file(1), "10\n").unwrap();
        lift_what_is_left();
        assert_eq!(limits(), ["0", "0", "3", "0"]);
        // A kernel without these files.
        assert!(Awake::of(vec![7]).hold().is_err());
    });
}
