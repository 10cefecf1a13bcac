//! Datagrams beyond the MTU between two nodes, with kernel VXLAN beside both gears: they keep their place among smaller ones,
//! and a flood of them leaves other users' and the host's alone. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::cluster::{Cluster, Settings, V4};
use common::engine::Engine;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::SockRef;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use uvn_rig::test::{NetNs, until};
use uvn_wire::ethernet::Mac;

const CARRIERS: [&str; 3] = ["kernel", "engine", "shortcut"];
/// Nothing more comes.
const QUIET: Duration = Duration::from_secs(2);

/// Two nodes with two users on both, `uvn` and `other`, whose endpoints have the same address.
struct Rig {
    // Dropped first: a data plane ends before its namespace.
    engines: Vec<Engine>,
    cluster: Cluster,
}

impl Rig {
    fn new(carrier: &str) -> Rig {
        let cluster = Cluster::wired(&V4[..2], 1).together();
        let mut rig = Rig { engines: Vec::new(), cluster };
        for node in 0..2 {
            let (here, [overlay, _], peer) = (rig.node(node), rig.cluster.user(node).1, V4[1 - node]);
            for settings in ["all", "default"] {
                here.run(|| {
                    std::fs::write(format!("/proc/sys/net/ipv4/conf/{settings}/rp_filter"), "0").unwrap()
                });
            }
            if carrier == "kernel" {
                let ends = format!("local {} remote {peer} dstport 4789 dev em1", V4[node]);
                rig.cluster.kernel(node, &format!("remote {peer} nolearning noudpcsum"), Mac::of(V4[node]));
                here.ip(&format!("link add other type vxlan id 5678 {ends} nolearning noudpcsum"));
                here.ip(&format!("link set other address {} mtu 1450 up", Mac::of(V4[node])));
                here.ip(&format!("addr add {overlay}/24 dev other"));
            } else {
                let other = format!(
                    "path = {carrier:?}\n[[network]]\nvni = 5678\naddresses = [\"{overlay}/24\"]\npeers = [\"{peer}\"]\n\
                     device = {{ name = \"other\" }}\n"
                );
                let settings = Settings { sections: other.leak(), ..Settings::default() };
                let engine = rig.cluster.engine(node, &settings);
                rig.engines.push(engine);
            }
        }
        // Known at once: a kernel keeps few frames for a neighbour that takes its time.
        for node in 0..2 {
            let ([v4, v6], mac) = (rig.cluster.user(1 - node).1, Mac::of(V4[1 - node]));
            for (peer, device) in [(v4, "uvn"), (v6, "uvn"), (v4, "other")] {
                rig.node(node).ip(&format!("neigh replace {peer} lladdr {mac} dev {device} nud permanent"));
            }
        }
        rig
    }

    fn node(&self, node: usize) -> &NetNs {
        &self.cluster.nodes[node]
    }

    /// Sockets at both ends of a device, the first one connected to the second.
    fn sockets(&self, device: &str, [from, to]: [IpAddr; 2]) -> [UdpSocket; 2] {
        let [sender, receiver] = [(from, 0), (to, 1)].map(|(address, node)| {
            let socket = self.node(node).run(|| UdpSocket::bind((address, 0)).unwrap());
            SockRef::from(&socket).bind_device(Some(device.as_bytes())).unwrap();
            socket
        });
        setsockopt(&receiver, RcvBufForce, &(64 << 20)).unwrap();
        receiver.set_read_timeout(Some(QUIET)).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        [sender, receiver]
    }

    fn users(&self, family: usize) -> [IpAddr; 2] {
        [0, 1].map(|node: usize| self.cluster.user(node).1[family])
    }

    /// How many of so many datagrams beyond the MTU arrive.
    fn carried(&self, device: &str, addresses: [IpAddr; 2], count: usize) -> usize {
        let [sender, receiver] = self.sockets(device, addresses);
        for _ in 0..count {
            sender.send(&[7; 3000]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        std::iter::from_fn(|| receiver.recv(&mut [0; 4000]).ok()).take(count).count()
    }

    /// Both the other user's and the host's.
    fn assert_carried(&self, name: &str, count: usize, least: usize) {
        for (device, addresses) in [("other", self.users(0)), ("em1", [V4[0], V4[1]])] {
            let carried = self.carried(device, addresses, count);
            assert!(carried >= least, "{name}, {device}: {carried} of {count}");
        }
    }

    /// Bytes of incomplete datagrams in the kernel of the second node.
    fn incomplete(&self) -> u64 {
        let text = self.node(1).run(|| std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap());
        let line = text.lines().find_map(|line| line.strip_prefix("FRAG: ")).unwrap();
        line.split(' ').next_back().unwrap().parse().unwrap()
    }
}

/// With a margin for a busy machine, whose NICs lose frames, too: none of them arrived, or a few.
#[test]
fn one_users_flood_leaves_others_and_the_hosts_datagrams_alone() {
    for carrier in CARRIERS {
        let rig = Rig::new(carrier);
        let ([sender, _receiver], done, sent) =
            (rig.sockets("uvn", rig.users(0)), AtomicBool::new(false), AtomicU64::new(0));
        rig.assert_carried(carrier, 10, 10);
        std::thread::scope(|scope| {
            struct Done<'a>(&'a AtomicBool);
            impl Drop for Done<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Relaxed);
                }
            }
            let _done = Done(&done);
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    // Refused is carried on with: the path may have no room for it.
                    let _full = sender.send(&[8; 8000]);
                    sent.fetch_add(1, Relaxed);
                }
            });
            until("a flood", || sent.load(Relaxed) > 5000);
            rig.assert_carried(&format!("{carrier}, during the flood"), 60, 30);
        });
        assert!(rig.incomplete() < 1 << 20, "{carrier}: {} bytes of no use", rig.incomplete());
        rig.assert_carried(&format!("{carrier}, after the flood"), 20, 18);
    }
}

#[test]
fn small_and_large_datagrams_of_a_flow_keep_their_order() {
    const COUNT: u32 = 300;
    for carrier in CARRIERS {
        let rig = Rig::new(carrier);
        for family in 0..2 {
            let [sender, receiver] = rig.sockets("uvn", rig.users(family));
            for number in 0..COUNT {
                let mut datagram = vec![0; if number % 2 == 0 { 3000 } else { 10 }];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                sender.send(&datagram).unwrap();
                if number % 16 == 0 {
                    // No more than the endpoint's queue holds.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let mut buffer = [0; 4000];
            let numbers: Vec<u32> = std::iter::from_fn(|| receiver.recv(&mut buffer).ok().map(|_| buffer))
                .take(COUNT as usize)
                .map(|datagram| u32::from_be_bytes(datagram[..4].try_into().unwrap()))
                .collect();
            assert!(numbers.is_sorted(), "{carrier}, family {family}: {numbers:?}");
            assert!(numbers.len() > COUNT as usize / 2, "{carrier}, family {family}: {}", numbers.len());
        }
    }
}
