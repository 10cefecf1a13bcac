//! The shortcut with other ends: itself, the engine, kernel VXLAN. All kinds of traffic, content compared.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;

use common::cluster::{Cluster, Settings, V4, V6, VNI};
use common::engine::Engine;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use uvn_wire::ethernet::Mac;

const GEAR: Settings =
    Settings { sections: "path = \"shortcut\"", network: None, veth: false, generic: false };
const ENGINE: Settings =
    Settings { sections: "path = \"engine\"", network: None, veth: false, generic: false };
const GEAR_V6: Settings = Settings {
    sections: "path = \"shortcut\"\n[encapsulation]\nipv6_checksum = false",
    network: None,
    veth: false,
    generic: false,
};
const ENGINE_V6: Settings = Settings {
    sections: "path = \"engine\"\n[encapsulation]\nipv6_checksum = false",
    network: None,
    veth: false,
    generic: false,
};

/// Nothing was dropped, and most of it never came to a worker.
fn assert_in_gear(engine: &Engine) {
    engine.assert_no_drops();
    assert!(engine.network(VNI).shortcut);
    let counted = engine.counted();
    // Super-frames count once there; IP fragments and what is to be answered are the engine's.
    let (stripped, redirected) = (counted.verdict("tc_stripped"), counted.verdict("xdp_redirected"));
    assert!(stripped > 2000 && stripped > 10 * redirected, "{counted:?}");
    assert!(counted.verdict("tc_encapsulated") > 500, "{counted:?}");
}

/// Frames that each end has sent and neither the other has received nor the wire has lost, whichever gear had them; once
/// they stand still. A veth drops what its ring has no room for.
fn missing(cluster: &Cluster, engines: &[Engine; 2]) -> [u64; 2] {
    let lost = |node: usize| {
        let shown = cluster.nodes[node].ip("-j -s link show em1");
        let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
        links[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
    };
    let look = || {
        [(0, 1), (1, 0)].map(|(from, to)| {
            let (sent, received) = (engines[from].network(VNI).counts, engines[to].network(VNI).counts);
            sent.tx_frames.wrapping_sub(received.rx_frames).wrapping_sub(lost(from))
        })
    };
    let start = Instant::now();
    let mut before = look();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = look();
        if now == before {
            return now;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "they do not stand still: {now:?}");
        before = now;
    }
}

fn talk(vteps: &[IpAddr], settings: [&Settings; 2]) -> [Engine; 2] {
    let cluster = Cluster::wired(vteps, 1).together();
    let engines = [0, 1].map(|node| cluster.engine(node, settings[node]));
    // The first one's kernel has spoken before there was a second one.
    let before = missing(&cluster, &engines);
    cluster.talk(0, 1);
    assert_eq!(missing(&cluster, &engines), before, "what one has sent the other has received");
    engines
}

#[test]
fn both_ends_in_the_kernel() {
    talk(&V4[..2], [&GEAR; 2]).iter().for_each(assert_in_gear);
}

#[test]
fn both_ends_in_the_kernel_over_ipv6() {
    talk(&V6[..2], [&GEAR_V6; 2]).iter().for_each(assert_in_gear);
}

/// Of the network namespace that this thread is in: a number of `/proc/net/netstat` or `snmp`.
fn counter(file: &str, group: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    both.find(|(other, _)| *other == name).unwrap().1.parse().unwrap()
}

/// The payload stays where it was, out of the frame's head: else each small segment is kept and copied alone.
#[test]
fn small_segments_are_joined_in_the_receivers_queue() {
    // Fewer than a new connection may have on their way (RFC 6928): no two are sent as one.
    const SEGMENTS: usize = 8;
    const LENGTH: usize = 400;
    let cluster = Cluster::wired(&V4[..2], 1).together();
    let engines = [0, 1].map(|node| cluster.engine(node, &GEAR));
    let ((here, _), (there, [address, _])) = (cluster.user(0), cluster.user(1));
    let listener = there.run(|| TcpListener::bind((address, 0)).unwrap());
    let mut sender = here.run(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let (receiver, _) = listener.accept().unwrap();
    sender.set_nodelay(true).unwrap();
    let look =
        || there.run(|| [counter("snmp", "Tcp", "InSegs"), counter("netstat", "TcpExt", "TCPRcvCoalesce")]);
    let before = look();
    for _ in 0..SEGMENTS {
        sender.write_all(&[7; LENGTH]).unwrap();
    }
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while receiver.peek(&mut [0; LENGTH * SEGMENTS]).unwrap() < LENGTH * SEGMENTS {}
    let after = look();
    let [segments, joined] = [0, 1].map(|index| after[index] - before[index]);
    assert!(segments > 4 && 2 * joined > segments, "{joined} of {segments} joined");
    assert!(engines[1].counted().verdict("tc_stripped") >= segments);
}

#[test]
fn the_engine_at_the_other_end() {
    let [gear, engine] = talk(&V4[..2], [&GEAR, &ENGINE]);
    assert_in_gear(&gear);
    engine.assert_no_drops();
    assert!(!engine.network(VNI).shortcut);
    let counted = engine.counted();
    assert_eq!((counted.verdict("tc_stripped"), counted.verdict("tc_encapsulated")), (0, 0));
}

#[test]
fn the_engine_at_the_other_end_over_ipv6() {
    let [gear, engine] = talk(&V6[..2], [&GEAR_V6, &ENGINE_V6]);
    assert_in_gear(&gear);
    engine.assert_no_drops();
}

/// Without the checksum that a kernel computes unless it is told not to: to verify it is the engine's work.
#[test]
fn kernel_vxlan_at_the_other_end() {
    for (vteps, settings, kernel) in [
        (&V4[..2], &GEAR, "remote 10.0.0.1 noudpcsum"),
        (&V6[..2], &GEAR_V6, "remote fd00:10::1 udp6zerocsumtx udp6zerocsumrx"),
    ] {
        let cluster = Cluster::wired(vteps, 1).together();
        let engine = cluster.engine(0, settings);
        cluster.kernel(1, kernel, Mac::of(vteps[1]));
        cluster.talk(0, 1);
        assert_in_gear(&engine);
    }
}
