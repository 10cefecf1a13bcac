//! The demo's two nodes: network namespaces joined by a veth wire, each user's endpoint in a namespace of its own, with
//! the same addresses as the node's NIC.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use uvn_rig::cores::Cores;
use uvn_rig::dataplane::Dataplane;
use uvn_rig::error::RigError;
use uvn_rig::netns::{self, Namespaces, ip};
use uvn_rig::place::{Host, Place};
use uvn_rig::rig::{NIC, USERS};
use uvn_rig::wire;

/// Each node's underlay addresses; the users' endpoints carry the same.
pub const ADDRESSES: [(&str, &str); 2] = [("10.0.0.1", "fd00:10::1"), ("10.0.0.2", "fd00:10::2")];

/// What carries the users' packets.
enum Carrier {
    Uvn,
    Kernel,
}

/// Two nodes, ready for traffic. Dropping it removes all of it.
pub struct Rig {
    /// One per node; none if the kernel carries the packets. Before `namespaces`, so that they stop first.
    pub dataplanes: Vec<Dataplane>,
    namespaces: Namespaces,
    carrier: Carrier,
    cores: Vec<Cores>,
}

impl Rig {
    /// Makes both nodes, with a data plane each; `program` is `uvn-dataplane`.
    ///
    /// # Errors
    /// A step failed; what was made is removed.
    pub fn uvn(program: &Path) -> Result<Rig, RigError> {
        let mut rig = Rig::new("uvn", Carrier::Uvn)?;
        rig.dataplanes = (0..2).map(|node| rig.start_dataplane(program, node)).collect::<Result<_, _>>()?;
        rig.dataplanes.iter_mut().try_for_each(Dataplane::wait)?;
        Ok(rig)
    }

    /// Makes both nodes, with kernel VXLAN.
    ///
    /// # Errors
    /// A step failed; what was made is removed.
    pub fn kernel() -> Result<Rig, RigError> {
        let rig = Rig::new("kernel", Carrier::Kernel)?;
        rig.add_kernel_vxlan()?;
        Ok(rig)
    }

    /// Makes both nodes, the wire, and an empty namespace per user and node.
    fn new(tag: &str, carrier: Carrier) -> Result<Rig, RigError> {
        let namespaces = Namespaces::new(tag)?;
        let rig = Rig { dataplanes: Vec::new(), namespaces, carrier, cores: Cores::of_this_machine(2) };
        for node in 0..2 {
            rig.namespaces.add(&node_name(node))?;
            for user in USERS {
                rig.namespaces.add(&user_name(node, user))?;
            }
        }
        let (left, right) = (rig.node(0), rig.node(1));
        ip(&["link", "add", NIC, "netns", &left, "type", "veth", "peer", "name", NIC, "netns", &right])?;
        for (node, (v4, v6)) in ADDRESSES.iter().enumerate() {
            let node = rig.node(node);
            wire::set_offloads(&node, NIC, true)?;
            ip(&["-n", &node, "addr", "add", &format!("{v4}/24"), "dev", NIC])?;
            ip(&["-n", &node, "addr", "add", &format!("{v6}/64"), "dev", NIC, "nodad"])?;
            ip(&["-n", &node, "link", "set", NIC, "up"])?;
        }
        Ok(rig)
    }

    /// The network namespace of a node, 0 or 1.
    #[must_use]
    pub fn node(&self, node: usize) -> String {
        self.namespaces.name(&node_name(node))
    }

    /// The network namespace of a user's endpoint on a node.
    #[must_use]
    pub fn user(&self, node: usize, user: u32) -> String {
        self.namespaces.name(&user_name(node, user))
    }

    /// The name of a user's endpoint device.
    #[must_use]
    pub fn device(&self, user: u32) -> String {
        match self.carrier {
            Carrier::Uvn => format!("u{user}"),
            Carrier::Kernel => format!("vx{user}"),
        }
    }

    /// Where a user's programs run on a node.
    #[must_use]
    pub fn place(&self, node: usize, user: u32) -> Place {
        self.place_in(self.user(node, user), node)
    }

    /// Where programs of the node itself run.
    #[must_use]
    pub fn node_place(&self, node: usize) -> Place {
        self.place_in(self.node(node), node)
    }

    fn place_in(&self, netns: String, node: usize) -> Place {
        Place {
            host: Host::Netns(netns),
            cores: self.cores[node].apps_list(),
            address: address(node),
            round_robin: false,
        }
    }

    fn start_dataplane(&self, program: &Path, node: usize) -> Result<Dataplane, RigError> {
        let core = self.cores[node].net;
        let place = Place {
            host: Host::Netns(self.node(node)),
            cores: core.to_string(),
            address: address(node),
            round_robin: false,
        };
        let files = self.namespaces.directory().join(node_name(node));
        let configuration = self.configuration(node, core);
        Dataplane::start(program, &place, &files, &configuration, USERS.len() as u32)
    }

    /// The data plane's configuration on one node.
    fn configuration(&self, node: usize, core: usize) -> String {
        let ((v4, v6), (peer4, peer6)) = (ADDRESSES[node], ADDRESSES[1 - node]);
        let mut toml = format!(
            "nic = \"{NIC}\"\nvtep = [\"{v4}\"]\n\
             [peers]\nvtep = [{{ address = \"{peer4}\", overlay = [\"{peer4}\", \"{peer6}\"] }}]\n\
             [workers]\ncores = [{core}]\n",
        );
        for user in USERS {
            let (device, netns) = (self.device(user), netns::path(&self.user(node, user)));
            let _infallible = write!(
                toml,
                "[[network]]\nvni = {user}\naddresses = [\"{v4}/24\", \"{v6}/64\"]\npeers = [\"{peer4}\"]\n\
                 device = {{ name = \"{device}\", netns = \"{}\" }}\n",
                netns.display(),
            );
        }
        toml
    }

    /// Makes a VXLAN device per user and node, on the wire, and moves it to the user's namespace.
    fn add_kernel_vxlan(&self) -> Result<(), RigError> {
        for user in USERS {
            let (vni, device) = (user.to_string(), self.device(user));
            for (node, (v4, v6)) in ADDRESSES.iter().enumerate() {
                let (netns, peer) = (self.node(node), ADDRESSES[1 - node].0);
                let endpoint = self.user(node, user);
                let vxlan = ["id", &vni, "dev", NIC, "local", v4, "remote", peer, "dstport", "4789"];
                ip(&[&["-n", &netns, "link", "add", &device, "type", "vxlan"], &vxlan[..]].concat())?;
                ip(&["-n", &netns, "link", "set", &device, "netns", &endpoint])?;
                ip(&["-n", &endpoint, "addr", "add", &format!("{v4}/24"), "dev", &device])?;
                ip(&["-n", &endpoint, "addr", "add", &format!("{v6}/64"), "dev", &device, "nodad"])?;
                ip(&["-n", &endpoint, "link", "set", &device, "up"])?;
            }
        }
        Ok(())
    }
}

fn node_name(node: usize) -> String {
    format!("n{}", node + 1)
}

fn user_name(node: usize, user: u32) -> String {
    format!("n{}-u{user}", node + 1)
}

fn address(node: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, node as u8 + 1])
}
