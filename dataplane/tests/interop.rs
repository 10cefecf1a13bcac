//! The data plane and other VXLAN implementations: the kernel's devices, and itself. Needs root.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

mod common;
#[path = "../engine/tests/common/frames.rs"]
mod frames;

use common::cluster::{Cluster, Settings, V4, V6, VNI};
use common::engine::Engine;
use common::packet::PacketSocket;
use common::traffic::{self, Place};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uvn_api::dataplane::message::{Reply, Request};
use uvn_wire::ethernet::Mac;

/// A MAC that a kernel made up.
const RANDOM: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// A data plane and one kernel device, and all traffic between them. Nothing may be dropped.
fn with_kernel(cluster: &Cluster, settings: &Settings, kernel: &str, mac: Mac) -> Engine {
    let engine = cluster.engine(0, settings);
    cluster.kernel(1, kernel, mac);
    cluster.talk(0, 1);
    engine.assert_no_drops();
    engine
}

#[test]
fn two_data_planes() {
    let cluster = Cluster::wired(&V4[..2], 1);
    let engines = [0, 1].map(|node| cluster.engine(node, &Settings::default()));
    cluster.talk(0, 1);
    engines.iter().for_each(Engine::assert_no_drops);
}

#[test]
fn two_data_planes_with_veth_endpoints_over_ipv6() {
    let cluster = Cluster::wired(&V6[..2], 1);
    let engines = [0, 1].map(|node| cluster.engine(node, &Settings { veth: true, ..Settings::default() }));
    cluster.talk(0, 1);
    engines.iter().for_each(Engine::assert_no_drops);
}

#[test]
fn kernel_with_a_unicast_remote_over_ipv4() {
    with_kernel(&Cluster::wired(&V4[..2], 1), &Settings::default(), "remote 10.0.0.1", Mac::of(V4[1]));
}

#[test]
fn kernel_with_a_unicast_remote_over_ipv6() {
    // Both compute the outer checksum and insist on it.
    with_kernel(&Cluster::wired(&V6[..2], 1), &Settings::default(), "remote fd00:10::1", Mac::of(V6[1]));
}

#[test]
fn kernel_with_zero_checksums_over_ipv6() {
    let settings = Settings { sections: "[encapsulation]\nipv6_checksum = false", ..Settings::default() };
    let kernel = "remote fd00:10::1 udp6zerocsumtx udp6zerocsumrx";
    with_kernel(&Cluster::wired(&V6[..2], 1), &settings, kernel, Mac::of(V6[1]));
}

#[test]
fn kernel_with_zero_checksums_is_refused_where_they_are_not_allowed() {
    let cluster = Cluster::wired(&V6[..2], 1);
    let engine = cluster.engine(0, &Settings::default());
    let before = engine.counted();
    cluster.kernel(1, "remote fd00:10::1 udp6zerocsumtx udp6zerocsumrx", Mac::of(V6[1]));
    let socket = cluster.users[1].run(|| UdpSocket::bind((V4[1], 0)).unwrap());
    // Its ARP requests are dropped too; how many there are is its own business.
    socket.send_to(b"x", (V4[0], 9)).unwrap();
    let counted = engine.counted_when("a dropped frame", |counted| !counted.since(&before).drops.is_empty());
    let counted = counted.since(&before);
    assert_eq!(counted.rx_frames, 0);
    assert_eq!(counted.drops.keys().collect::<Vec<_>>(), ["rx_outer_checksum"]);
}

/// No default destination and no learning at the kernel's end: what it knows was told by an administrator.
#[test]
fn kernel_with_a_static_fdb_and_checksums_over_ipv4() {
    let cluster = Cluster::wired(&V4[..2], 1);
    let settings = Settings { sections: "[encapsulation]\nchecksum = true", ..Settings::default() };
    let engine = cluster.engine(0, &settings);
    cluster.kernel(1, "nolearning udpcsum", Mac::of(V4[1]));
    for mac in [Mac::of(V4[0]), Mac([0; 6])] {
        let user = cluster.users[1].name();
        let output = std::process::Command::new("bridge")
            .args([
                "-n",
                user,
                "fdb",
                "append",
                &mac.to_string(),
                "dev",
                "uvn",
                "dst",
                "10.0.0.1",
                "permanent",
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    cluster.talk(0, 1);
    engine.assert_no_drops();
}

#[test]
fn kernel_that_is_learned_and_learns() {
    let settings =
        Settings { network: Some("learning = true\npeers = [\"10.0.0.2\"]"), ..Settings::default() };
    let cluster = Cluster::wired(&V4[..2], 1);
    let engine = with_kernel(&cluster, &settings, "remote 10.0.0.1 learning", RANDOM);
    assert_eq!(engine.network(VNI).learned, 1);
}

#[test]
fn kernels_in_an_ipv4_group() {
    let cluster = Cluster::switched(&V4);
    let settings = Settings { network: Some("group = \"239.1.2.3\""), ..Settings::default() };
    let engine = cluster.engine(0, &settings);
    for node in [1, 2] {
        cluster.kernel(node, "group 239.1.2.3", Mac::of(V4[node]));
    }
    cluster.talk(0, 1);
    cluster.talk(0, 2);
    // They ask for each other by the group, too: the data plane gets these requests, and its user ignores them.
    cluster.talk(1, 2);
    engine.assert_no_drops();
}

#[test]
fn kernels_in_an_ipv6_group_that_are_learned() {
    let cluster = Cluster::switched(&V6);
    let settings =
        Settings { network: Some("group = \"ff05::4242\"\nlearning = true"), ..Settings::default() };
    let engine = cluster.engine(0, &settings);
    for node in [1, 2] {
        let mac = Mac([0x52, 0x54, 0, 0, 0, node as u8]);
        cluster.kernel(node, "group ff05::4242", mac);
    }
    cluster.talk(0, 1);
    cluster.talk(0, 2);
    engine.assert_no_drops();
    assert_eq!(engine.network(VNI).learned, 2);
}

#[test]
fn kernel_and_a_veth_endpoint() {
    let settings = Settings { veth: true, ..Settings::default() };
    with_kernel(&Cluster::wired(&V4[..2], 1), &settings, "remote 10.0.0.1", Mac::of(V4[1]));
}

#[test]
fn kernel_behind_an_ipv4_router() {
    let vteps = [IpAddr::from([10, 1, 1, 1]), IpAddr::from([10, 1, 2, 1])];
    with_kernel(&Cluster::routed(vteps), &Settings::default(), "remote 10.1.1.1", Mac::of(vteps[1]));
}

#[test]
fn kernel_behind_an_ipv6_router() {
    let vteps: [IpAddr; 2] = ["fd00:1::1", "fd00:2::2"].map(|address| address.parse().unwrap());
    with_kernel(&Cluster::routed(vteps), &Settings::default(), "remote fd00:1::1", Mac::of(vteps[1]));
}

/// The way to the peer takes less than the NIC: the user's kernel is told so and adapts.
#[test]
fn a_route_with_a_smaller_mtu() {
    let vteps = [IpAddr::from([10, 1, 1, 1]), IpAddr::from([10, 1, 2, 1])];
    let cluster = Cluster::routed(vteps);
    cluster.nodes[0].ip("route add 10.1.2.0/24 via 10.1.1.254 mtu 1400");
    let engine = cluster.engine(0, &Settings::default());
    cluster.kernel(1, "remote 10.1.1.1", Mac::of(vteps[1]));
    for addresses in [V4, V6] {
        let (here, there) = (Place(&cluster.users[0], addresses[0]), Place(&cluster.users[1], addresses[1]));
        traffic::tcp(here, there, traffic::BULK);
    }
    let counted = engine.counted_since_ready();
    assert_eq!(counted.drops.keys().collect::<Vec<_>>(), ["tx_too_big"], "{counted:?}");
    let route = cluster.users[0].ip("route get 10.0.0.2");
    assert!(route.contains("mtu 1350"), "{route}");
}

/// Frames from many MACs behind one VTEP, as a bridge at the other end makes them.
#[test]
fn learning_is_bounded_and_ages() {
    let cluster = Cluster::wired(&V4[..2], 1);
    let network = "learning = true\npeers = [\"10.0.0.2\"]\nmax_addresses = 3\nageing = 5";
    let engine = cluster.engine(0, &Settings { network: Some(network), ..Settings::default() });
    let wire = PacketSocket::new(&cluster.nodes[1], "em1");
    let mac = |number: u8| Mac([0x52, 0x54, 0, 0, 0, number]);
    let frame = |number: u8| {
        let source = IpAddr::from([10, 0, 0, 100 + number]);
        let inner = frames::udp((mac(number), Mac::of(V4[0])), (source, 9), (V4[0], 9), 0, b"x");
        frames::vxlan(&Default::default(), V4[1], V4[0], VNI, 0, &inner)
    };
    let before = engine.counted();
    let first = Instant::now();
    for number in 0..8 {
        wire.send(&frame(number));
        engine.counted_when("the frame", |counted| counted.since(&before).rx_frames > u64::from(number));
    }
    assert_eq!(engine.network(VNI).learned, 3);
    // One stays in use: the others are forgotten, and there is room again.
    let start = Instant::now();
    while engine.network(VNI).learned > 1 {
        assert!(start.elapsed() < Duration::from_secs(30), "they do not age");
        wire.send(&frame(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(first.elapsed() > Duration::from_secs(1), "they aged too early");
    let start = Instant::now();
    while engine.network(VNI).learned != 2 {
        assert!(start.elapsed() < Duration::from_secs(30), "there is no room again");
        // The one in use, too: on a busy machine it may have aged meanwhile.
        [0, 7].iter().for_each(|number| wire.send(&frame(*number)));
        std::thread::sleep(Duration::from_millis(5));
    }
    engine.assert_no_drops();
}

/// Several workers: no flow is reordered. Returns what each worker of each node received and sent.
fn flows_stay_in_order(settings: &Settings) -> Vec<[u64; 2]> {
    const FLOWS: u16 = 16;
    const EACH: u32 = 1600;
    let cluster = Cluster::wired(&V4[..2], 2);
    let engines = [0, 1].map(|node| cluster.engine(node, settings));
    cluster.talk(0, 1);
    for (from, to) in [(0, 1), (1, 0)] {
        let receiver = cluster.users[to].run(|| UdpSocket::bind((V4[to], 7777)).unwrap());
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        setsockopt(&receiver, RcvBufForce, &(64 << 20)).unwrap();
        let mut next: HashMap<u16, u32> = HashMap::new();
        let mut received = 0;
        let sending = AtomicU16::new(FLOWS);
        std::thread::scope(|scope| {
            for flow in 0..FLOWS {
                let sender = cluster.users[from].run(|| UdpSocket::bind((V4[from], 20_000 + flow)).unwrap());
                let sending = &sending;
                scope.spawn(move || {
                    for number in 0..EACH {
                        sender.send_to(&number.to_be_bytes(), (V4[to], 7777)).unwrap();
                        if number % 16 == 0 {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                    sending.fetch_sub(1, Relaxed);
                });
            }
            let mut buffer = [0; 4];
            loop {
                // On a busy machine nothing may come for a while, though it will.
                let at_end = sending.load(Relaxed) == 0;
                let source = match traffic::uninterrupted(|| receiver.recv_from(&mut buffer)) {
                    Ok((_, source)) => source,
                    Err(_) if at_end => break,
                    Err(_) => continue,
                };
                let number = u32::from_be_bytes(buffer);
                let next = next.entry(source.port()).or_default();
                assert!(number >= *next, "{number} of flow {} came after {next}", source.port());
                *next = number + 1;
                received += 1;
            }
        });
        // Bursts are to stress it: some may be lost.
        assert!(received > u32::from(FLOWS) * EACH / 8, "{received} datagrams arrived");
        assert_eq!(next.len(), usize::from(FLOWS));
    }
    let shares = engines.iter().map(|engine| {
        let Ok(Reply::Counters { workers, .. }) = engine.client().ask(&Request::Counters, &[]) else {
            unreachable!("another reply")
        };
        workers.into_iter().map(|worker| [worker.rx_frames, worker.tx_frames]).collect::<Vec<_>>()
    });
    shares.flatten().collect()
}

#[test]
fn flows_stay_in_order_over_several_queues() {
    let shares = flows_stay_in_order(&Settings::default());
    assert_eq!(shares.len(), 4);
    assert!(shares.iter().flatten().all(|share| *share > 500), "{shares:?}");
}

/// A veth endpoint has one queue, which one worker reads and both write to.
#[test]
fn flows_stay_in_order_over_several_queues_to_a_veth_endpoint() {
    let shares = flows_stay_in_order(&Settings { veth: true, ..Settings::default() });
    let have_sent: Vec<bool> = shares.iter().map(|[_, sent]| *sent > 0).collect();
    assert_eq!(have_sent, [true, false, true, false]);
}
