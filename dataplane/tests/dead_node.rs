//! A node that is down: its peers' programs hear of it as from any kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::cluster::{Cluster, Settings, V4};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use uvn_dataplane::underlay::route::{Change, Notifications};
use uvn_rig::test::NetNs;

const NEIGHBOURS: u16 = 3000;
/// TCP itself gives up after more than two minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program hears that connects to a port where nobody listens.
fn connect(user: &NetNs, to: IpAddr) -> Option<i32> {
    let connect = || TcpStream::connect_timeout(&SocketAddr::new(to, 9), PATIENCE);
    user.run(connect).unwrap_err().raw_os_error()
}

fn dies_and_returns(sections: &'static str) {
    let cluster = Cluster::switched(&V4[..2]).together();
    let engines = [0, 1].map(|node| cluster.engine(node, &Settings { sections, ..Settings::default() }));
    let ((user, _), (_, theirs)) = (cluster.user(0), cluster.user(1));
    for to in theirs {
        assert_eq!(connect(user, to), Some(libc::ECONNREFUSED), "{to} lives");
    }
    let down =
        |down: bool| cluster.nodes[1].ip(&format!("link set em1 {}", if down { "down" } else { "up" }));
    down(true);
    // What the kernel knows of it holds for half a minute, with any network. Then the user's kernel still knows its MAC, or
    // asks for it; and at last the VTEP is known to be dead.
    cluster.nodes[0].ip("neigh del 10.0.0.2 dev em1");
    for forget in [false, true, true] {
        if forget {
            user.ip("neigh flush dev uvn nud all");
        }
        for to in theirs {
            assert_eq!(
                connect(user, to),
                Some(libc::EHOSTUNREACH),
                "{to} is dead; {:?}",
                engines[0].counted()
            );
        }
    }
    down(false);
    let start = Instant::now();
    for to in theirs {
        while connect(user, to) != Some(libc::ECONNREFUSED) {
            assert!(start.elapsed() < PATIENCE, "{to} is back");
        }
    }
}

#[test]
fn engine() {
    dies_and_returns("path = \"engine\"");
}

#[test]
fn shortcut() {
    dies_and_returns("path = \"shortcut\"");
}

/// As many as a cluster that is switched off has.
#[test]
fn thousands_of_neighbours_change_at_once() {
    let node = NetNs::new("node");
    node.veth("em1", &node, "wire");
    let mut notifications = node.run(Notifications::subscribe).unwrap();
    let neighbour = |number: u16| {
        let [a, b] = number.to_be_bytes();
        format!("neigh add 10.9.{a}.{b} lladdr 02:75:0a:09:{a:02x}:{b:02x} dev em1 nud permanent\n")
    };
    let file = std::env::temp_dir().join(node.name());
    std::fs::write(&file, (0..NEIGHBOURS).map(neighbour).collect::<String>()).unwrap();
    node.ip(&format!("-batch {}", file.display()));
    std::fs::remove_file(file).unwrap();
    let changes = notifications.read().unwrap();
    assert!(!changes.contains(&Change::Lost));
    let told = changes.iter().filter(|change| matches!(change, Change::Neighbour { neighbour: Some(_), .. }));
    assert!(told.count() >= NEIGHBOURS.into());
}
