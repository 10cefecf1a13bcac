//! The data plane as a process: how it starts, how it ends, and how it follows its NIC. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/node.rs"]
mod node;

use nix::sys::signal::Signal;
use node::*;
use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;
use uvn_api::dataplane::message::{ENDPOINT_QUEUES, Reply, Request, State, Summary, XdpMode};
use uvn_dataplane::port::tap::Tap;
use uvn_rig::test::NetNs;

#[test]
fn sigterm_leaves_nothing() {
    let mut rig = Rig::new("term");
    let network = rig.network();
    rig.start(&network);
    rig.expect_overlay();
    assert!(rig.has_xdp());
    assert!(rig.user_here.ip("link show u1234").contains("mtu 1450"));
    let status = rig.end(Signal::SIGTERM);
    assert_eq!(status.code(), Some(0), "{}", rig.log());
    assert!(!rig.has_xdp());
    assert!(!rig.socket().exists());
    assert!(!rig.user_here.ip("-br link").contains("u1234"));
    assert!(reaches(&rig.here, &rig.there, PATIENCE), "the host itself");
}

#[test]
fn sigkill_leaves_the_host_alone_and_a_restart_takes_over() {
    let mut rig = Rig::new("kill");
    let network = rig.network();
    rig.start(&network);
    rig.expect_overlay();
    rig.end(Signal::SIGKILL);
    assert!(reaches(&rig.here, &rig.there, PATIENCE), "the host itself");
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)), "cut off");
    // Its first field is the index.
    let device = |rig: &Rig| rig.user_here.ip("-o link show u1234").split(':').next().map(str::to_owned);
    let index = device(&rig);
    assert!(rig.socket().exists());
    rig.start(&network);
    rig.expect_overlay();
    assert_eq!(device(&rig), index, "the same device");
    assert_eq!(rig.end(Signal::SIGINT).code(), Some(0));
    assert!(!rig.user_here.ip("-br link").contains("u1234"));
}

#[test]
fn a_veth_endpoint_works_and_is_made_anew_after_sigkill() {
    let mut rig = Rig::new("veth");
    let network = rig.network().replace("netns =", "kind = \"veth\", netns =");
    rig.start(&network);
    rig.expect_overlay();
    rig.end(Signal::SIGKILL);
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)), "cut off");
    rig.start(&network);
    rig.expect_overlay();
    assert_eq!(rig.end(Signal::SIGTERM).code(), Some(0));
    assert!(!rig.user_here.ip("-br link").contains("u1234"));
    assert_eq!(rig.here.ip("-br link").lines().count(), 2, "lo and em1");
}

#[test]
fn jumbo_frames_are_used_as_far_as_a_umem_frame_reaches() {
    let mut rig = Rig::new("jumbo");
    for node in [&rig.here, &rig.there] {
        node.ip("link set em1 mtu 9000");
    }
    let network = rig.network();
    let client = rig.start(&network);
    let mtu = rig.user_here.ip("-o link show u1234");
    assert!(mtu.contains("mtu 3776"), "{mtu}");
    assert_eq!(show(&client).xdp, Some(XdpMode::Generic), "the veth driver takes no more than 3.5 KB");
    rig.user_there.ip("link set vx1234 mtu 3776");
    rig.expect_overlay();
    // The longest datagram that fits.
    let (far, near) = (
        rig.user_there.run(|| UdpSocket::bind("10.0.0.2:7000").unwrap()),
        rig.user_here.run(|| UdpSocket::bind("10.0.0.1:7000").unwrap()),
    );
    for socket in [&far, &near] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let (sent, mut buffer) = (vec![7; 3776 - 28], vec![0; 9000]);
    near.send_to(&sent, "10.0.0.2:7000").unwrap();
    assert_eq!(far.recv(&mut buffer).unwrap(), sent.len());
    far.send_to(&sent, "10.0.0.1:7000").unwrap();
    assert_eq!(near.recv(&mut buffer).unwrap(), sent.len());
}

#[test]
fn an_endpoint_may_be_deleted_under_us() {
    let mut rig = Rig::new("vanish");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    rig.user_here.ip("link del u1234");
    rig.wait_for("fault", |_| client.networks().unwrap()[0].fault.is_some());
    rig.here.ip("link set em1 mtu 1400");
    rig.wait_for("MTU", |_| show(&client).mtu == 1400);
    client.remove_network(1234).unwrap();
    // Its place can be taken again.
    let tap = user_tap(&rig.user_here, "tap0");
    client.add_network(&uvn(1234), &[tap.as_fd()]).unwrap();
    rig.expect_overlay();
}

#[test]
fn the_service_manager_is_told() {
    let mut rig = Rig::new("notify");
    let path = rig.directory.join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let network = rig.network();
    let mut command = rig.command(&network);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    rig.engine = Some(command.spawn().unwrap());
    let hear = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1\n");
    rig.expect_overlay();
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    rig.signal(Signal::SIGTERM);
    while hear() != "STOPPING=1\n" {}
    rig.end(Signal::SIGTERM);
}

#[test]
fn one_nic_has_one_data_plane() {
    let mut rig = Rig::new("twice");
    let network = rig.network();
    rig.start(&network);
    let second = rig.command(&network).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("answered by another process"), "{said}");
    // Without a control socket to tell, the NIC does.
    let mut third = rig.command(&network);
    let file = rig.directory.join("em1.toml");
    let text = fs::read_to_string(&file).unwrap();
    let silent: Vec<&str> = text.lines().filter(|line| !line.starts_with("socket")).collect();
    fs::write(&file, silent.join("\n")).unwrap();
    let third = third.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(third.status.code(), Some(1));
    let said = String::from_utf8(third.stderr).unwrap();
    assert!(said.contains("another XDP program"), "{said}");
    rig.expect_overlay();
}

#[test]
fn the_nic_goes_down_and_up() {
    let mut rig = Rig::new("down");
    let network = rig.network();
    rig.start(&network);
    rig.expect_overlay();
    rig.here.ip("link set em1 down");
    rig.wait_for("state", |rig| rig.engine_state() == Some(State::Down));
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)));
    rig.here.ip("link set em1 up");
    rig.wait_for("state", |rig| rig.engine_state() == Some(State::Running));
    rig.expect_overlay();
}

#[test]
fn a_nic_that_is_down_at_the_start_is_waited_for() {
    let mut rig = Rig::new("wait");
    rig.here.ip("link set em1 down");
    let network = rig.network();
    rig.engine = Some(rig.command(&network).spawn().unwrap());
    rig.wait_for("state", |rig| rig.engine_state() == Some(State::Down));
    rig.here.ip("link set em1 up");
    rig.expect_overlay();
}

#[test]
fn endpoints_follow_the_mtu() {
    let mut rig = Rig::new("mtu");
    let network = rig.network();
    let client = rig.start(&network);
    for mtu in [1400, 2000] {
        rig.there.ip(&format!("link set em1 mtu {mtu}"));
        rig.here.ip(&format!("link set em1 mtu {mtu}"));
        let endpoint = format!("mtu {} ", mtu - 50);
        rig.wait_for(&endpoint, |rig| rig.user_here.ip("link show u1234").contains(&endpoint));
        assert_eq!(show(&client).mtu, mtu);
        rig.wait_for("hop", |_| client.hops().unwrap()[0].mtu == Some(mtu));
    }
    rig.expect_overlay();
}

#[test]
fn workers_follow_the_number_of_queues() {
    let mut rig = Rig::new("queues");
    rig.here.ip("link del em1");
    rig.wire("numrxqueues 4 numtxqueues 4");
    ethtool(&rig.here, &["-L", "em1", "rx", "1", "tx", "1"]);
    let made = rig.network();
    let client = rig.start(&made);
    rig.expect_overlay();
    assert_eq!(show(&client).workers.len(), 1);
    let before = client.networks().unwrap()[0].counts.rx_frames;
    ethtool(&rig.here, &["-L", "em1", "rx", "2", "tx", "2"]);
    rig.wait_for("second worker", |_| show(&client).workers.len() == 2);
    rig.expect_overlay();
    assert!(client.networks().unwrap()[0].counts.rx_frames > before, "counted on");
    // A handed-over TAP with one queue serves both workers.
    client.remove_network(1234).unwrap();
    let tap = user_tap(&rig.user_here, "tap0");
    client.add_network(&uvn(1234), &[tap.as_fd()]).unwrap();
    rig.expect_overlay();
    client.remove_network(1234).unwrap();
    drop(tap);

    // A TAP made for two workers is taken over by a data plane that has one.
    rig.end(Signal::SIGKILL);
    rig.start(&made);
    rig.expect_overlay();
    rig.end(Signal::SIGKILL);
    // The kernel lets go of a killed process's sockets a little later, and only then of their queues.
    let one_queue =
        |rig: &Rig| rig.here.command("ethtool").args(["-L", "em1", "rx", "1", "tx", "1"]).status();
    rig.wait_for("queue that can be taken away", |rig| one_queue(rig).unwrap().success());
    rig.start(&made);
    rig.expect_overlay();
}

/// A NIC with so many queues carries a network: made by the data plane, and handed over as `uvnd` does.
fn carries_with(rig: &mut Rig, queues: usize) -> Summary {
    rig.here.ip("link del em1");
    rig.wire(&format!("numrxqueues {queues} numtxqueues {queues}"));
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    let qdisc = rig.user_here.command("tc").args(["qdisc", "show", "dev", "u1234"]).output().unwrap();
    assert!(String::from_utf8_lossy(&qdisc.stdout).contains("noqueue"), "{qdisc:?}");
    client.remove_network(1234).unwrap();
    let taps = rig.user_here.run(|| Tap::open("tap0", queues.min(ENDPOINT_QUEUES))).unwrap();
    rig.user_here.ip("link set tap0 address 02:75:0a:00:00:01 mtu 1450 up");
    rig.user_here.ip("addr add 10.0.0.1/24 dev tap0");
    let fds: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    client.add_network(&uvn(1234), &fds).unwrap();
    rig.expect_overlay();
    show(&client)
}

#[test]
fn the_engine_has_a_worker_for_each_of_many_queues() {
    for queues in [4, 64, 100] {
        let mut rig = Rig::new("many");
        assert_eq!(carries_with(&mut rig, queues).workers.len(), queues);
        rig.end(Signal::SIGTERM);
    }
}

/// Four workers read an endpoint; with eight, the next network's are the other four.
#[test]
fn networks_are_read_by_workers_in_turn() {
    let mut rig = Rig::new("turn");
    carries_with(&mut rig, 8);
    let client = rig.client();
    let taps = rig.user_here.run(|| Tap::open("tap1", ENDPOINT_QUEUES)).unwrap();
    rig.user_here.ip("link set tap1 up");
    rig.user_here.ip("addr add 10.9.0.1/24 dev tap1");
    let fds: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    let sent = || {
        let Reply::Counters { workers, .. } = client.ask(&Request::Counters, &[]).unwrap() else { panic!() };
        workers.iter().map(|counts| counts.tx_frames + counts.drops.values().sum::<u64>()).collect::<Vec<_>>()
    };
    let before = sent();
    client.add_network(&uvn(77), &fds).unwrap();
    // Its address is not the endpoint's, so nothing answers.
    let ping = rig.user_here.command("ping").args(["-c", "1", "-W", "1", "10.9.0.2"]).output().unwrap();
    assert!(!ping.status.success());
    let after = sent();
    assert!(after[4..].iter().sum::<u64>() > before[4..].iter().sum(), "{before:?} {after:?}");
}

#[test]
fn the_shortcut_has_few_workers_for_many_queues() {
    for queues in [1, 64, 256] {
        let mut rig = Rig::new("slow");
        rig.path = "shortcut";
        assert_eq!(carries_with(&mut rig, queues).workers.len(), queues.min(4));
        let status = fs::read_to_string(format!("/proc/{}/status", rig.pid())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 64 << 10, "{queues} queues: {kib} KiB");
        rig.end(Signal::SIGTERM);
    }
}

#[test]
fn workers_that_come_back_find_their_own_counters() {
    let mut rig = Rig::new("requeue");
    rig.here.ip("link del em1");
    rig.wire("numrxqueues 4 numtxqueues 4");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    // Each flow has a queue of the endpoint; frames wait there whenever workers start.
    let flows: Vec<UdpSocket> =
        (0..64).map(|_| rig.user_here.run(|| UdpSocket::bind("10.0.0.1:0").unwrap())).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for flow in &flows {
                    let _ = flow.send_to(b"uvn", "10.0.0.2:9");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for queues in [1, 4, 1, 4] {
                rig.here.ip("link del em1");
                rig.wire(&format!("numrxqueues {queues} numtxqueues {queues}"));
                rig.wait_for("workers", |_| show(&client).workers.len() == queues);
                // Every flow is carried, whatever queue of the endpoint it had.
                for _ in 0..16 {
                    rig.expect_overlay();
                }
            }
        }));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn the_nic_is_removed_and_comes_back() {
    let mut rig = Rig::new("gone");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    rig.here.ip("link del em1");
    rig.wait_for("state", |_| show(&client).state == State::Absent);
    assert_eq!(show(&client).workers.len(), 0);
    assert!(rig.user_here.ip("link show u1234").contains("u1234"), "the endpoint stays");
    rig.wire("");
    rig.wait_for("state", |_| show(&client).state == State::Running);
    rig.expect_overlay();
}

#[test]
fn the_way_leads_through_a_router() {
    let mut rig = Rig::new("router");
    let router = NetNs::new("router-r");
    rig.here.ip("link del em1");
    rig.here.veth("em1", &router, "left");
    router.veth("right", &rig.there, "em1");
    for node in [&rig.here, &rig.there] {
        ethtool(node, &["-K", "em1", "tx", "off"]);
    }
    rig.here.ip("addr add 10.0.1.1/24 dev em1");
    rig.there.ip("addr add 10.0.2.2/24 dev em1");
    router.ip("addr add 10.0.1.254/24 dev left");
    router.ip("addr add 10.0.2.254/24 dev right");
    assert!(router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]).status().unwrap().success());
    rig.there.ip("route add 10.0.1.0/24 via 10.0.2.254");
    rig.kernel_vxlan("10.0.2.2", "10.0.1.1", "02:75:0a:00:02:02");
    let network = rig.network().replace("[\"10.0.0.2\"]", "[\"10.0.2.2\"]");
    let peers = "\n[[peers.vtep]]\naddress = \"10.0.2.2\"\noverlay = [\"10.0.0.2\"]\n";
    let mut command = rig.command(&format!("{network}{peers}"));
    let file = rig.directory.join("em1.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("vtep = [\"10.0.0.1\"]", "vtep = [\"10.0.1.1\"]");
    fs::write(&file, text.replace("vtep = [{ address = \"10.0.0.2\" }]\n", "")).unwrap();
    rig.engine = Some(command.spawn().unwrap());
    rig.wait_for("state", |rig| rig.engine_state() == Some(State::Running));
    let client = rig.client();
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)), "there is no route yet");
    rig.here.ip("route add 10.0.2.0/24 via 10.0.1.254 mtu 1400");
    rig.expect_overlay();
    let hops = client.hops().unwrap();
    let mac = router.ip("link show left");
    assert!(mac.contains(hops[0].mac.as_ref().unwrap()), "{hops:?} {mac}");
    assert_eq!(hops[0].mtu, Some(1400));
    // The router's MAC changes, and is followed.
    router.ip("link set left address 02:00:00:00:00:99");
    rig.here.ip("neigh del 10.0.1.254 dev em1");
    rig.wait_for("new MAC", |_| client.hops().unwrap()[0].mac.as_deref() == Some("02:00:00:00:00:99"));
    rig.expect_overlay();
    // So is the loss of the route.
    rig.here.ip("route del 10.0.2.0/24");
    rig.wait_for("loss", |_| client.hops().unwrap()[0].mac.is_none());
}

#[test]
fn errors_have_their_exit_codes() {
    let rig = Rig::new("exit");
    let run = |from: &str, to: &str| {
        let mut command = rig.command("");
        let file = rig.directory.join("em1.toml");
        let text = fs::read_to_string(&file).unwrap().replace(from, to);
        fs::write(&file, text).unwrap();
        let output = command.stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run("frames = 512", "frames = 500");
    assert_eq!(code, Some(2));
    assert!(said.contains("em1.toml:8: workers.frames: 500; allowed: a power of two"), "{said}");
    let (code, said) = run("nic = \"em1\"", "nic = \"em9\"");
    assert_eq!(code, Some(1));
    assert!(said.contains("`em9`"), "{said}");
    assert!(!rig.socket().exists());
    let usage = Command::new(BINARY).arg("fly").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let show = Command::new(BINARY).args(["show", "--socket", "/nonexistent.sock"]).output().unwrap();
    assert_eq!(show.status.code(), Some(1));
}
