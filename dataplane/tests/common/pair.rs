//! Two nodes with a data plane on each, for tests that lay hands on the first one's devices.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::common::cluster::{Cluster, Settings, V4, VNI};
use crate::common::engine::Engine;
use crate::common::traffic::{Place, ping};
use std::net::UdpSocket;
use std::time::Duration;
use uvn_api::dataplane::message::Note;
use uvn_dataplane::port::link;
use uvn_rig::test::{NetNs, until};

pub const GEARS: [&str; 2] = ["path = \"engine\"", "path = \"shortcut\""];

/// Two nodes with a user on both, whose endpoints are in the nodes' own namespaces.
pub struct Rig {
    // Dropped first: a data plane ends before its namespace.
    pub engines: [Engine; 2],
    pub cluster: Cluster,
}

impl Rig {
    pub fn new(sections: &'static str, mtu: usize) -> Rig {
        let cluster = Cluster::wired(&V4[..2], 1).together();
        Rig::set_mtu(&cluster, mtu);
        Rig::on(cluster, &Settings { sections, ..Settings::default() })
    }

    /// On these nodes.
    pub fn on(cluster: Cluster, settings: &Settings) -> Rig {
        let engines = [0, 1].map(|node| cluster.engine(node, settings));
        Rig { engines, cluster }
    }

    pub fn set_mtu(cluster: &Cluster, mtu: usize) {
        cluster.nodes.iter().for_each(|node| drop(node.ip(&format!("link set em1 mtu {mtu}"))));
    }

    pub fn here(&self) -> &NetNs {
        &self.cluster.nodes[0]
    }

    /// IPv4, or IPv6.
    pub fn ping(&self, family: usize) {
        let ((here, own), (_, theirs)) = (self.cluster.user(0), self.cluster.user(1));
        ping(Place(here, own[family]), theirs[family], &[8]);
    }

    pub fn notes(&self) -> String {
        self.engines[0].network(VNI).notes.join("; ")
    }

    /// What the data plane says of the NIC.
    pub fn nic_notes(&self) -> Vec<Note> {
        self.engines[0].summary().notes
    }

    /// A datagram in fragments both ways, and a broadcast: some of it is the engine's in any gear.
    pub fn speak(&self) {
        let ((here, own), (there, theirs)) = (self.cluster.user(0), self.cluster.user(1));
        ping(Place(here, own[0]), theirs[0], &[8, 4000]);
        let far = there.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        let port = far.local_addr().unwrap().port();
        far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let near = here.run(|| UdpSocket::bind((own[0], 0)).unwrap());
        near.set_broadcast(true).unwrap();
        until("a broadcast", || {
            near.send_to(b"uvn", ("10.1.0.255", port)).unwrap();
            far.recv(&mut [0; 8]).is_ok()
        });
    }

    /// The index of the NIC, which is in names of other devices.
    pub fn nic(&self) -> u32 {
        self.here().run(|| link::get("em1")).unwrap().index
    }
}
