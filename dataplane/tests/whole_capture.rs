//! `uvn-dataplane capture` shows what a network sends and what it receives, each frame once, in either gear. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/pair.rs"]
mod pair;

use common::cluster::{Cluster, Settings, V4, V6, VNI};
use common::traffic::{Place, ping};
use pair::{GEARS, Rig};
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use uvn_rig::test::until;
use uvn_wire::ethernet::Mac;

/// A capture of a network that goes on.
struct Capture {
    process: Child,
    file: PathBuf,
}

impl Capture {
    fn start(rig: &Rig, vni: u32) -> Capture {
        let socket = rig.engines[0].socket();
        let file = socket.with_extension("pcap");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_uvn-dataplane"));
        command.arg("capture").arg("--socket").arg(&socket).arg(vni.to_string());
        let process = command.stdin(Stdio::null()).stdout(File::create(&file).unwrap()).spawn().unwrap();
        let capture = Capture { process, file };
        until("the beginning of the file", || capture.bytes().len() >= 24);
        capture
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap()
    }

    /// What is there by now.
    fn frames(&self) -> Vec<Vec<u8>> {
        let bytes = self.bytes();
        let mut rest = &bytes[24..];
        let mut frames = Vec::new();
        while rest.len() >= 16 {
            let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
            let Some(frame) = rest.get(16..16 + length) else { break };
            frames.push(frame.to_vec());
            rest = &rest[16 + length..];
        }
        frames
    }

    /// How many have this MAC as their source, and hold these bytes.
    fn count(&self, source: IpAddr, bytes: &[u8]) -> usize {
        let is_one = |frame: &&Vec<u8>| {
            frame[6..12] == Mac::of(source).0 && frame.windows(bytes.len()).any(|window| window == bytes)
        };
        self.frames().iter().filter(is_one).count()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of each kind, as many as were sent: unicast both ways, broadcast both ways, ARP.
fn shows_all(rig: &Rig, vteps: &[IpAddr]) {
    const TIMES: u16 = 5;
    let ((here, own), (there, theirs)) = (rig.cluster.user(0), rig.cluster.user(1));
    // Both know each other.
    ping(Place(here, own[0]), theirs[0], &[8]);
    ping(Place(here, own[1]), theirs[1], &[8]);
    let capture = Capture::start(rig, VNI);
    let bind = |place: Place<'_>, port| {
        let socket = place.0.run(|| UdpSocket::bind((place.1, port)).unwrap());
        socket.set_broadcast(true).unwrap();
        socket
    };
    for family in [0, 1] {
        let (near, far) = (bind(Place(here, own[family]), 7000), bind(Place(there, theirs[family]), 7000));
        for number in 0..TIMES {
            near.send_to(format!("request {family}.{number}.").as_bytes(), (theirs[family], 7000)).unwrap();
            let mut buffer = [0; 64];
            far.recv(&mut buffer).unwrap();
            far.send_to(format!("reply {family}.{number}.").as_bytes(), (own[family], 7000)).unwrap();
            near.recv(&mut buffer).unwrap();
        }
        if family == 0 {
            near.send_to(b"calls all", "10.1.0.255:9").unwrap();
            far.send_to(b"answers all", "10.1.0.255:9").unwrap();
        }
        // Beyond the MTU: fragments.
        near.send_to(&[b"begins".to_vec(), vec![0; 4000], b"ends".to_vec()].concat(), (theirs[family], 9))
            .unwrap();
    }
    here.ip("neigh flush dev uvn nud all");
    ping(Place(here, own[0]), theirs[0], &[8]);
    let [mine, other] = [vteps[0], vteps[1]];
    until("the last frame", || capture.count(other, b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02") > 0);
    until("all", || capture.count(other, b"answers all") > 0 && capture.count(mine, b"ends") > 1);
    for family in [0, 1] {
        for number in 0..TIMES {
            for (source, word) in [(mine, "request"), (other, "reply")] {
                let text = format!("{word} {family}.{number}.");
                assert_eq!(capture.count(source, text.as_bytes()), 1, "{text}");
            }
        }
    }
    assert_eq!((capture.count(mine, b"calls all"), capture.count(other, b"answers all")), (1, 1));
    assert_eq!((capture.count(mine, b"begins"), capture.count(mine, b"ends")), (2, 2));
    // Its ARP request, and the answer that the engine gives itself.
    assert!(capture.count(mine, b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01") > 0);
}

#[test]
fn over_ipv4() {
    for sections in GEARS {
        shows_all(&Rig::new(sections, 1500), &V4);
    }
}

#[test]
fn over_ipv6() {
    for sections in [
        "path = \"engine\"\n[encapsulation]\nipv6_checksum = false",
        "path = \"shortcut\"\n[encapsulation]\nipv6_checksum = false",
    ] {
        let cluster = Cluster::wired(&V6[..2], 1).together();
        shows_all(&Rig::on(cluster, &Settings { sections, ..Settings::default() }), &V6);
    }
}

#[test]
fn an_endpoint_in_another_namespace() {
    for veth in [false, true] {
        let cluster = Cluster::wired(&V4[..2], 1);
        let rig = Rig::on(cluster, &Settings { veth, ..Settings::default() });
        let capture = Capture::start(&rig, VNI);
        let ((here, own), (_, theirs)) = (rig.cluster.user(0), rig.cluster.user(1));
        ping(Place(here, own[0]), theirs[0], &[800, 800]);
        until("requests and replies", || {
            // ICMP's types.
            let of = |kind: u8, source: IpAddr| {
                let frames = capture.frames();
                let is_one = |frame: &&Vec<u8>| {
                    frame.len() > 800 && frame[34] == kind && frame[6..12] == Mac::of(source).0
                };
                frames.iter().filter(is_one).count()
            };
            of(8, V4[0]) == 2 && of(0, V4[1]) == 2
        });
    }
}

#[test]
fn what_cannot_be_captured_is_told() {
    let rig = Rig::new(GEARS[0], 1500);
    let run = |vni: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_uvn-dataplane"));
        let output =
            command.arg("capture").arg("--socket").arg(rig.engines[0].socket()).arg(vni).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run("77");
    assert_eq!(code, Some(1));
    assert!(said.contains("no network 77"), "{said}");
    rig.here().ip("link del uvn");
    until("the fault", || rig.engines[0].network(VNI).fault.is_some());
    let (code, said) = run("1234");
    assert_eq!(code, Some(1));
    assert!(said.contains("lost"), "{said}");
}
