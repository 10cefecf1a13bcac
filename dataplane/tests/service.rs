//! Networks and VTEPs over the control socket of a data plane that runs as a process. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/node.rs"]
mod node;

use nix::sys::signal::Signal;
use node::*;
use std::fs;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::Vtep;
use uvn_api::dataplane::message::{Reply, Request};
use uvn_api::protocol::Code;

#[test]
fn a_network_comes_by_the_socket_and_goes() {
    let mut rig = Rig::new("sock");
    let client = rig.start("");
    assert_eq!(client.ask(&Request::Ping, &[]).unwrap(), Reply::Pong);
    let tap = user_tap(&rig.user_here, "tap0");
    let fds = [tap.as_fd()];
    let epoch = client.add_network(&uvn(1234), &fds).unwrap();
    rig.expect_overlay();
    let summary = show(&client);
    assert_eq!((summary.networks, summary.hops, summary.unresolved), (1, 1, 0));
    assert!(summary.epoch >= epoch && summary.workers[0].epoch >= epoch);
    let networks = client.networks().unwrap();
    assert!(networks[0].counts.rx_frames > 0 && networks[0].counts.tx_frames > 0, "{networks:?}");
    assert_eq!((networks[0].vni, &networks[0].device), (1234, &None));
    let Reply::Histogram(residency) = client.ask(&Request::Histogram, &[]).unwrap() else { panic!() };
    assert!(residency.batches > 0 && residency.p50 <= residency.max, "{residency:?}");

    let again = failure(client.add_network(&uvn(1234), &fds));
    assert_eq!(again.code, Code::Exists);
    assert!(client.remove_network(1234).unwrap() > epoch);
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)));
    assert_eq!(failure(client.remove_network(1234)).code, Code::NotFound);
    assert_eq!(show(&client).networks, 0);
    // Its descriptors are closed: the device lives by the test's own alone.
    drop(tap);
    rig.wait_for("end of the device", |rig| !rig.user_here.ip("-br link").contains("tap0"));
}

#[test]
fn requests_that_cannot_be_met_change_nothing() {
    let mut rig = Rig::new("bad");
    let client = rig.start("");
    let tap = user_tap(&rig.user_here, "tap0");
    let (_reader, pipe) = std::io::pipe().unwrap();
    let cases: [(&[BorrowedFd<'_>], &str); 2] = [(&[], "device: missing"), (&[pipe.as_fd()], "not a TAP")];
    for (fds, says) in cases {
        let failure = failure(client.add_network(&uvn(1234), fds));
        assert!(failure.message.contains(says), "{failure}");
    }
    let mut stranger = uvn(1234);
    stranger.peers = vec![IpAddr::from([10, 0, 0, 9])];
    let refused = failure(client.add_network(&stranger, &[tap.as_fd()]));
    assert_eq!((refused.code, &refused.message[..9]), (Code::Invalid, "peers[0]:"));
    // Allowed, it may be listed.
    let vteps = r#"{"vteps": {"add": [{"address": "10.0.0.9"}], "add_range": ["10.7.0.0/16"]}}"#;
    client.change(&serde_json::from_str(vteps).unwrap(), &[]).unwrap();
    client.add_network(&stranger, &[tap.as_fd()]).unwrap();
    assert_eq!((show(&client).vteps, show(&client).unresolved), (2, 1));
    client.change(&Request::SetPeers { vni: 1234, peers: vec![IpAddr::from([10, 0, 0, 2])] }, &[]).unwrap();
    assert_eq!(client.networks().unwrap()[0].flood, [IpAddr::from([10, 0, 0, 2])]);
    let clash = r#"{"vteps": {"add": [{"address": "10.0.0.8", "overlay": ["10.0.0.2"]}]}}"#;
    let failure = failure(client.change(&serde_json::from_str(clash).unwrap(), &[]));
    assert!(failure.message.contains("10.0.0.8") && failure.message.contains("10.0.0.2"), "{failure}");
    assert_eq!(show(&client).vteps, 2);
    rig.expect_overlay();
}

#[test]
fn a_vtep_that_is_not_allowed_any_more_is_cut_off() {
    let mut rig = Rig::new("cut");
    let network = rig.network();
    let client = rig.start(&network);
    rig.expect_overlay();
    let remove = r#"{"vteps": {"remove": ["10.0.0.2"]}}"#;
    client.change(&serde_json::from_str(remove).unwrap(), &[]).unwrap();
    assert!(!reaches(&rig.user_here, &rig.user_there, Duration::from_secs(1)));
    let add = r#"{"vteps": {"add_range": ["10.0.0.0/24"]}}"#;
    client.change(&serde_json::from_str(add).unwrap(), &[]).unwrap();
    rig.expect_overlay();
}

#[test]
fn frames_for_networks_that_are_not_here_are_told() {
    let mut rig = Rig::new("unknown");
    let client = rig.start("");
    let none = Reply::Unknown { seen: Vec::new() };
    assert_eq!(client.ask(&Request::Unknown, &[]).unwrap(), none);
    let socket = rig.there.run(|| UdpSocket::bind("10.0.0.2:0").unwrap());
    let vxlan = [8, 0, 0, 0, 0, 0, 77, 0].into_iter().chain([0; 60]).collect::<Vec<u8>>();
    rig.wait_for("report", |_| {
        socket.send_to(&vxlan, "10.0.0.1:4789").unwrap();
        let Reply::Unknown { seen } = client.ask(&Request::Unknown, &[]).unwrap() else { panic!() };
        seen.iter().any(|seen| seen.vni == 77 && seen.vtep == IpAddr::from([10, 0, 0, 2]) && seen.frames > 0)
    });
}

#[test]
fn only_root_is_served_and_bad_peers_cost_nobody_else() {
    use uvn_api::seqpacket;
    let mut rig = Rig::new("peers");
    let network = rig.network();
    let client = rig.start(&network);
    // The socket's mode already keeps others out; here it does not.
    fs::set_permissions(rig.socket(), Permissions::from_mode(0o666)).unwrap();
    let binary = rig.directory.join("uvn-dataplane");
    // By a program of its own: what others start meanwhile would hold it open for writing ("Text file busy").
    assert!(Command::new("cp").arg(BINARY).arg(&binary).status().unwrap().success());
    let output = Command::new(&binary)
        .args(["show", "--socket"])
        .arg(rig.socket())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    rig.wait_for("refusal", |rig| rig.log().contains("not root"));

    let mut buffer = vec![0; 65536];
    for bytes in [&b"\xff\x00garbage"[..], &[b'x'; 65_537], br#"{"version":7,"request":"ping"}"#] {
        let bad = client_socket(&rig);
        seqpacket::send(bad.as_fd(), bytes, &[], true).unwrap();
        let length = seqpacket::receive(bad.as_fd(), &mut buffer, true).unwrap().length;
        assert!(String::from_utf8_lossy(&buffer[..length]).contains("error"));
        assert_eq!(seqpacket::receive(bad.as_fd(), &mut buffer, true).unwrap().length, 0, "closed");
    }
    // One that asks and never reads.
    let mute = client_socket(&rig);
    let end = Instant::now() + PATIENCE;
    loop {
        let request = br#"{"version":1,"request":"show"}"#;
        match seqpacket::send(mute.as_fd(), request, &[], false) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            _ => assert!(Instant::now() < end, "still connected"),
        }
    }
    assert_eq!(client.ask(&Request::Ping, &[]).unwrap(), Reply::Pong);
    rig.expect_overlay();
}

fn client_socket(rig: &Rig) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let peer = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(peer.as_raw_fd(), &UnixAddr::new(&rig.socket()).unwrap()).unwrap();
    peer
}

#[test]
fn ten_thousand_vteps_come_in_parts() {
    let mut rig = Rig::new("vteps");
    let network = rig.network();
    let client = rig.start(&network);
    let address = |index: u32| IpAddr::from((0x0a10_0000 + index).to_be_bytes());
    let part = |first: u32| {
        let add = (first..first + 1000).map(|index| Vtep { address: address(index), overlay: vec![] });
        let (remove, add_range, remove_range) = (vec![], vec![], vec![]);
        Request::Vteps { add: add.collect(), remove, add_range, remove_range }
    };
    for first in (0..10_000).step_by(1000) {
        client.change(&part(first), &[]).unwrap();
    }
    assert_eq!(show(&client).vteps, 10_001);
    rig.expect_overlay();
    let remove = (0..1500).map(address).collect();
    let vteps = Request::Vteps { add: vec![], remove, add_range: vec![], remove_range: vec![] };
    client.change(&vteps, &[]).unwrap();
    assert_eq!(show(&client).vteps, 8_501);
    rig.expect_overlay();
}

#[test]
fn hundreds_of_networks() {
    const COUNT: u32 = 250;
    let mut rig = Rig::new("many");
    let client = rig.start("");
    let user = rig.user_here.name();
    let start = Instant::now();
    for vni in 2000..2000 + COUNT {
        let text = format!(
            r#"{{"vni": {vni}, "addresses": ["10.0.0.1/24"], "device": {{"name": "u{vni}", "netns": "/run/netns/{user}"}}}}"#
        );
        client.add_network(&serde_json::from_str(&text).unwrap(), &[]).unwrap();
    }
    println!("{COUNT} networks added in {:?}", start.elapsed());
    let networks = client.networks().unwrap();
    assert_eq!(
        networks.iter().map(|network| network.vni).collect::<Vec<_>>(),
        Vec::from_iter(2000..2000 + COUNT)
    );
    assert_eq!(rig.user_here.ip("-br link").matches("u2").count(), COUNT as usize);
    let start = Instant::now();
    client.remove_network(2100).unwrap();
    println!("one removed in {:?}", start.elapsed());
    assert!(!rig.user_here.ip("-br link").contains("u2100"));
    let start = Instant::now();
    assert_eq!(rig.end(Signal::SIGTERM).code(), Some(0));
    println!("stopped in {:?}", start.elapsed());
    assert_eq!(rig.user_here.ip("-br link").matches("u2").count(), 0);
}
