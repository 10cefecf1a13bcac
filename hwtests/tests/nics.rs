//! NICs that only a guest's kernel can have: bonds, VLAN devices, NICs in a VRF. The data plane alone, on two nodes, in each
//! gear.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use std::process::Stdio;
use std::time::Duration;
use uvn_api::dataplane::client::Client;
use uvn_api::dataplane::message::{Note, Reply, Request, State, Summary, XdpMode};
use uvn_hwtests::node::program;
use uvn_hwtests::{Namespace, with_paths};

/// A guest is slow.
const PATIENCE: Duration = Duration::from_secs(90);
const SOCKET: &str = "/run/node/dataplane.sock";

/// Two nodes whose NICs are on wires `wire1` and `wire2`.
struct Rig {
    nodes: [Namespace; 2],
    path: &'static str,
}

impl Rig {
    fn new(path: &'static str) -> Rig {
        let nodes = ["a", "b"].map(Namespace::new);
        for wire in ["wire1", "wire2"] {
            let other = nodes[1].holder();
            nodes[0].ip(&format!("link add {wire} type veth peer name {wire} netns {other}"));
            for node in &nodes {
                node.sh(&format!("ethtool -K {wire} tso off tx off gso off && ip link set {wire} up"));
            }
        }
        Rig { nodes, path }
    }

    /// Starts the data planes on this NIC, once it is made, and waits until the users reach each other.
    fn start(&self, nic: &str) {
        for (number, node) in (1..).zip(&self.nodes) {
            node.ip(&format!("link set {nic} up\naddr add 10.0.0.{number}/24 dev {nic}"));
            let (path, other) = (self.path, 3 - number);
            let config = format!(
                r#"
                nic = "{nic}"
                path = "{path}"
                vtep = ["10.0.0.{number}"]
                socket = "{SOCKET}"
                [peers]
                vtep = [{{ address = "10.0.0.{other}", overlay = ["10.1.0.{other}"] }}]
                [[network]]
                vni = 1234
                addresses = ["10.1.0.{number}/24"]
                peers = ["10.0.0.{other}"]
                device = {{ name = "user" }}
                "#
            );
            node.write("/run/node/nic.toml", &config);
            let mut command = node.command(program("uvn-dataplane"));
            command.args(["run", "--config", "/run/node/nic.toml"]).stdin(Stdio::null());
            // It ends with its namespace.
            drop(command.spawn().unwrap());
        }
        for node in &self.nodes {
            node.wait("data plane", PATIENCE, || {
                self.summary(node).is_some_and(|it| it.state == State::Running)
            });
        }
        self.talk();
    }

    fn summary(&self, node: &Namespace) -> Option<Summary> {
        let reply = node.within(|| Client::connect(SOCKET.as_ref())?.ask(&Request::Show, &[])).ok()?;
        let Reply::Show(summary) = reply else { panic!("another reply") };
        Some(*summary)
    }

    /// Both ways, in one packet and in fragments.
    fn talk(&self) {
        for (node, to) in self.nodes.iter().zip([2, 1]) {
            for length in [56, 4000] {
                let ping = format!("ping -c 3 -i 0.2 -W 2 -s {length} 10.1.0.{to}");
                node.wait(&ping, PATIENCE, || node.try_sh(&ping).status.success());
            }
        }
    }

    fn assert_gear(&self) {
        let summary = self.summary(&self.nodes[0]).unwrap();
        assert_eq!(summary.gear.map(|gear| gear.to_string()).as_deref(), Some(self.path));
        assert_eq!(summary.xdp, (self.path == "engine").then_some(XdpMode::Generic), "{summary:?}");
    }
}

/// One of its wires fails while users talk.
fn a_bond_is_a_nic(path: &'static str) {
    let rig = Rig::new(path);
    for node in &rig.nodes {
        node.sh("modprobe bonding; ip link add bond0 type bond mode active-backup miimon 50");
        for wire in ["wire1", "wire2"] {
            node.ip(&format!("link set {wire} down\nlink set {wire} master bond0\nlink set {wire} up"));
        }
    }
    rig.start("bond0");
    rig.assert_gear();
    for wire in ["wire1", "wire2"] {
        rig.nodes[0].ip(&format!("link set {wire} down"));
        rig.talk();
        rig.nodes[0].ip(&format!("link set {wire} up"));
        rig.talk();
    }
}

fn a_vlan_device_is_a_nic(path: &'static str) {
    let rig = Rig::new(path);
    for node in &rig.nodes {
        node.sh("modprobe 8021q; ip link add link wire1 name em1.5 type vlan id 5");
    }
    rig.start("em1.5");
    rig.assert_gear();
}

fn a_nic_may_be_in_a_vrf(path: &'static str) {
    let rig = Rig::new(path);
    for node in &rig.nodes {
        node.ip("link add underlay type vrf table 100\nlink set underlay up\nlink set wire1 master underlay");
    }
    rig.start("wire1");
    for node in &rig.nodes {
        let notes = rig.summary(node).unwrap().notes;
        assert!(!notes.iter().any(|note| matches!(note, Note::VtepAbsent { .. })), "{notes:?}");
    }
    rig.nodes.iter().for_each(|node| node.ip("link set wire1 nomaster"));
    rig.talk();
}

with_paths!([engine, shortcut] { a_bond_is_a_nic, a_vlan_device_is_a_nic, a_nic_may_be_in_a_vrf });
