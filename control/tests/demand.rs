//! What the packet filter says of VXLAN to networks that are not here. Needs root, for a network namespace.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::Encapsulation;
use uvn_api::toml_file::parse;
use uvn_control::config::Config;
use uvn_control::demand::UnknownLog;
use uvn_control::firewall::ruleset;
use uvn_control::network::{DataPath, Nat, Nic, Node};
use uvn_control::peers::Peers;
use uvn_control::sysctl::Opened;
use uvn_wire::vxlan::Vni;

/// A node whose NIC is the loopback device, and whose peers are 127.0.0.0/24.
fn rules() -> String {
    let nic = Nic {
        slot: 0,
        name: "lo".into(),
        index: 1,
        mtu: 65536,
        arphrd: 772,
        up: true,
        queues: 1,
        subnets: vec!["127.0.0.0/8".parse().unwrap()],
        addresses: vec!["127.0.0.1/8".parse().unwrap()],
        path: DataPath::Kernel,
        reason: String::new(),
        gear: Default::default(),
        encapsulation: Encapsulation { port: 4790, ..Default::default() },
        workers: Default::default(),
        group: None,
        flood_rate: None,
    };
    let node = Node {
        nics: vec![nic],
        others: Vec::new(),
        exits: Vec::new(),
        ipv6: true,
        nat: Nat::default(),
        hosts: Vec::new(),
    };
    let config: Config =
        parse("[[underlay]]\nsubnets = [\"10.0.0.0/16\"]\n[peers]\nnodes = [\"n1\"]").unwrap();
    let peers = Peers { ranges: vec!["127.0.0.0/24".parse().unwrap()], ..Peers::default() };
    ruleset(&config, &node, &peers, &Opened { ipv4: Vec::new(), ipv6: false }, 4096)
}

fn load(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

#[test]
fn each_vni_is_told_once_with_an_allowed_vtep() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    load(&rules());
    let mut log = UnknownLog::open().unwrap();
    assert!(UnknownLog::open().is_err(), "another uvnd has the group");
    let send = |from: &str, to: &str, vni: u32| {
        let frame = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), &[0; 60]].concat();
        // Port unreachable may come back: nobody listens.
        let _ = UdpSocket::bind((from, 0)).unwrap().send_to(&frame, to);
    };
    for vni in [1000, 1000, 1001, 0xff_ffff, 1000] {
        send("127.0.0.7", "127.0.0.1:4790", vni);
    }
    // Not from a peer, not to the port, not of the family.
    send("127.0.1.7", "127.0.0.1:4790", 2000);
    send("127.0.0.7", "127.0.0.1:4789", 2001);
    send("::1", "[::1]:4790", 2002);
    send("127.0.0.8", "127.0.0.1:4790", 1002);
    let peer = |last| IpAddr::from([127, 0, 0, last]);
    let expected = [(1000, peer(7)), (1001, peer(7)), (0xff_ffff, peer(7)), (1002, peer(8))];
    let mut seen = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while seen.len() < expected.len() && Instant::now() < end {
        seen.extend(log.read().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(seen, expected.map(|(vni, vtep)| (Vni::new(vni).unwrap(), vtep)));
}
