//! What nftables logs of VXLAN to networks that are not here. Needs root, for a network namespace.

#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uvn_control::demand::{GROUP, UnknownLog};
use uvn_wire::vxlan::Vni;

fn nft(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

#[test]
fn each_vni_is_logged_once_with_its_vtep() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    nft(&format!(
        "table inet test {{
            set seen {{ typeof @th,96,24; size 65536; flags dynamic,timeout; timeout 60s; }}
            chain input {{
                type filter hook input priority 0
                iifname lo udp dport 4789 @th,96,24 != @seen add @seen {{ @th,96,24 }} log group {GROUP}
            }}
        }}"
    ));
    let mut log = UnknownLog::open().unwrap();
    assert!(UnknownLog::open().is_err(), "the group is taken");
    for (source, to) in [("127.0.0.7:0", "127.0.0.1:4789"), ("[::1]:0", "[::1]:4789")] {
        let socket = UdpSocket::bind(source).unwrap();
        for vni in [1000_u32, 1000, 1001, 0xff_ffff, 1000] {
            let vni = if to.starts_with('[') { vni ^ 1 << 20 } else { vni };
            let frame = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), &[0; 60]].concat();
            // Port unreachable comes back: nobody listens.
            let _ = socket.send_to(&frame, to);
        }
    }
    let (v4, v6) = (IpAddr::from([127, 0, 0, 7]), "::1".parse::<IpAddr>().unwrap());
    let expected = [
        (1000, v4),
        (1001, v4),
        (0xff_ffff, v4),
        (1000 ^ 1 << 20, v6),
        (1001 ^ 1 << 20, v6),
        (0xef_ffff, v6),
    ];
    let mut seen = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while seen.len() < expected.len() && Instant::now() < end {
        seen.extend(log.read().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(seen, expected.map(|(vni, vtep)| (Vni::new(vni).unwrap(), vtep)));
    assert!(log.read().unwrap().is_empty());
}
