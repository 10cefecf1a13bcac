//! Cluster on an underlay, with the data plane on some and the kernel's VXLAN devices on others.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::engine::Engine;
use super::traffic::{self, Place};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvn_api::dataplane::config::Network;
use uvn_dataplane::port::link;
use uvn_rig::test::NetNs;
use uvn_wire::ethernet::Mac;

/// The user's network.
pub const VNI: u32 = 1234;
/// The nodes' addresses by family: the overlay is the underlay, but for what goes through a router.
pub const V4: [IpAddr; 3] = [v4(1), v4(2), v4(3)];
pub const V6: [IpAddr; 3] = [v6(1), v6(2), v6(3)];

/// A node's IPv4 address.
pub const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

/// A node's IPv6 address.
pub const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, last))
}

/// A user's network with his IPv4 address and his IPv6 address on an endpoint, and one peer.
pub fn network(vni: u32, [v4, v6]: [IpAddr; 2], peer: IpAddr) -> Network {
    let text = format!(r#"{{"vni": {vni}, "addresses": ["{v4}/24", "{v6}/64"], "peers": ["{peer}"]}}"#);
    serde_json::from_str(&text).unwrap()
}

/// Cluster on one underlay, each with the same user in a namespace beside it.
pub struct Cluster {
    /// Each node's own namespace.
    pub nodes: Vec<NetNs>,
    /// The user's on each node.
    pub users: Vec<NetNs>,
    /// Each node's VTEP address.
    pub vteps: Vec<IpAddr>,
    /// Endpoints are in the nodes' own namespaces, where the shortcut serves them.
    together: bool,
    /// What is between them.
    _between: Option<NetNs>,
}

/// The text of a configuration file's parts.
#[derive(Default)]
pub struct Settings {
    /// Whole sections.
    pub sections: &'static str,
    /// Keys of the network, beside vni, addresses and device. None: the other nodes as peers.
    pub network: Option<&'static str>,
    /// The endpoint is a veth.
    pub veth: bool,
    /// The NIC's driver takes no XDP program.
    pub generic: bool,
}

impl Cluster {
    /// `count` nodes that have no wire yet.
    fn apart(vteps: &[IpAddr]) -> Cluster {
        let nodes = vteps.iter().map(|_| NetNs::new("node")).collect();
        let users = vteps.iter().map(|_| NetNs::new("user")).collect();
        Cluster { nodes, users, vteps: vteps.to_vec(), together: false, _between: None }
    }

    /// The endpoints in the nodes' own namespaces, on a subnet of their own.
    pub fn together(mut self) -> Cluster {
        self.together = true;
        self
    }

    /// Where a user is, and his addresses there.
    pub fn user(&self, node: usize) -> (&NetNs, [IpAddr; 2]) {
        if !self.together {
            return (&self.users[node], [V4[node], V6[node]]);
        }
        let last = node as u8 + 1;
        let v6 = Ipv6Addr::new(0xfd00, 0x11, 0, 0, 0, 0, 0, last.into());
        (&self.nodes[node], [Ipv4Addr::new(10, 1, 0, last).into(), v6.into()])
    }

    /// Two nodes with `em1` at both ends of a wire that has `queues` each way.
    pub fn wired(vteps: &[IpAddr], queues: u32) -> Cluster {
        let cluster = Cluster::apart(vteps);
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        let peer = cluster.nodes[1].name();
        cluster.nodes[0].ip(&format!("link add em1 {queues} type veth peer name em1 {queues} netns {peer}"));
        cluster.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        cluster
    }

    /// Two nodes on a wire whose NICs are kernel VXLAN devices that sum up all they carry: the kernel has a sum over
    /// every frame that they receive (CHECKSUM_COMPLETE), as from many a real NIC.
    pub fn summed(vteps: &[IpAddr]) -> Cluster {
        let cluster = Cluster::apart(vteps);
        cluster.nodes[0].veth("wire", &cluster.nodes[1], "wire");
        for (number, node) in cluster.nodes.iter().enumerate() {
            node.run(|| link::disable_tx_offloads("wire")).unwrap();
            node.ip("link set wire mtu 1600");
            let [here, there] = [number + 1, 2 - number].map(|last| format!("192.0.2.{last}"));
            node.ip(&format!("addr add {here}/24 dev wire"));
            let ends = format!("local {here} remote {there} dev wire dstport 8472");
            node.ip(&format!("link add em1 mtu 1500 type vxlan id 7 {ends} udpcsum nolearning"));
        }
        cluster.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        cluster
    }

    /// Two nodes on a wire, whose NICs are bridges with one port.
    pub fn bridged(vteps: &[IpAddr]) -> Cluster {
        let cluster = Cluster::apart(vteps);
        cluster.nodes[0].veth("port", &cluster.nodes[1], "port");
        for node in &cluster.nodes {
            node.run(|| link::disable_tx_offloads("port")).unwrap();
            node.ip("link add em1 type bridge");
            node.ip("link set port master em1");
        }
        cluster.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        cluster
    }

    /// Two nodes with the far ends of their wires, `port0` and `port1`, in one namespace.
    pub fn relayed(vteps: &[IpAddr]) -> (Cluster, NetNs) {
        let (cluster, between) = (Cluster::apart(vteps), NetNs::new("between"));
        between.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        for (number, node) in cluster.nodes.iter().enumerate() {
            let port = format!("port{number}");
            node.veth("em1", &between, &port);
            // The other end joins only what comes cut (veth_skb_is_eligible_for_gro).
            between.run(|| link::disable_tx_offloads(&port)).unwrap();
        }
        cluster.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        (cluster, between)
    }

    /// Two nodes in different subnets.
    pub fn routed(vteps: [IpAddr; 2]) -> Cluster {
        let mut cluster = Cluster::apart(&vteps);
        let router = NetNs::new("router");
        router.run(|| {
            for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").unwrap();
            }
        });
        let (prefix, gateway) = if vteps[0].is_ipv4() { ("24", "10.1.N.254") } else { ("64", "fd00:N::fe") };
        let gateways = ["1", "2"].map(|number| gateway.replace('N', number));
        for (node, gateway) in cluster.nodes.iter().zip(&gateways) {
            let device = format!("to-{}", &gateway[gateway.len() - 5..].replace([':', '.'], "-"));
            node.veth("em1", &router, &device);
            router.ip(&format!("addr add fe80::fe/64 dev {device} nodad"));
            let no_detection = if vteps[0].is_ipv6() { "nodad" } else { "" };
            router.ip(&format!("addr add {gateway}/{prefix} dev {device} {no_detection}"));
        }
        cluster.finish_wires(|node| [format!("{}/{prefix}", vteps[node])]);
        for (node, gateway) in cluster.nodes.iter().zip(&gateways) {
            node.ip(&format!("route add default via {gateway}"));
        }
        cluster._between = Some(router);
        cluster
    }

    /// Cluster on a switch.
    pub fn switched(vteps: &[IpAddr]) -> Cluster {
        let mut cluster = Cluster::apart(vteps);
        let switch = NetNs::new("switch");
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        for (number, node) in cluster.nodes.iter().enumerate() {
            let port = format!("port{number}");
            node.veth("em1", &switch, &port);
            switch.ip(&format!("link set {port} master br0"));
        }
        cluster.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        cluster._between = Some(switch);
        cluster
    }

    /// The wires carry finished frames, as real ones do; the nodes have their addresses. Without a link-local one the
    /// kernel solicits nobody when it is only asked to (ndisc_send_ns).
    fn finish_wires<const N: usize>(&self, addresses: impl Fn(usize) -> [String; N]) {
        for (number, node) in self.nodes.iter().enumerate() {
            node.run(|| link::disable_tx_offloads("em1")).unwrap();
            node.ip(&format!("link set em1 address 02:00:00:00:00:{:02x} up", number + 1));
            node.ip(&format!("addr add fe80::{}/64 dev em1 nodad", number + 1));
            for address in addresses(number) {
                let no_detection = if address.contains(':') { "nodad" } else { "" };
                node.ip(&format!("addr add {address} dev em1 {no_detection}"));
            }
        }
    }

    /// IP MTU between the endpoints.
    pub fn mtu(&self) -> usize {
        if self.vteps[0].is_ipv4() { 1450 } else { 1430 }
    }

    /// Starts the data plane on a node, with one network.
    pub fn engine(&self, node: usize, settings: &Settings) -> Engine {
        let own = self.vteps[node];
        let others = || (0..self.vteps.len()).filter(|other| *other != node);
        let vteps: Vec<String> = others()
            .map(|other| {
                let (address, (_, [v4, v6])) = (self.vteps[other], self.user(other));
                format!(r#"{{ address = "{address}", overlay = ["{v4}", "{v6}"] }}"#)
            })
            .collect();
        let peers: Vec<String> = others().map(|other| format!("\"{}\"", self.vteps[other])).collect();
        let network = settings.network.map_or(format!("peers = [{}]", peers.join(", ")), str::to_owned);
        let kind = if settings.veth { "veth" } else { "tap" };
        let (sections, vteps) = (settings.sections, vteps.join(", "));
        let path = if sections.contains("path = ") { "" } else { "path = \"engine\"" };
        let (_, [v4, v6]) = self.user(node);
        let netns =
            if self.together { String::new() } else { format!("netns = {:?}", self.users[node].path()) };
        let config = format!(
            r#"
            nic = "em1"
            {path}
            vtep = ["{own}"]
            {sections}
            [peers]
            vtep = [{vteps}]
            # Bulk TCP fills what there is; here none of it may be lost.
            [workers]
            frames = 4096
            [[network]]
            vni = {VNI}
            addresses = ["{v4}/24", "{v6}/64"]
            {network}
            [network.device]
            name = "uvn"
            kind = "{kind}"
            {netns}
            "#
        );
        let mut engine = if settings.generic {
            Engine::launch(&self.nodes[node], &config)
        } else {
            Engine::start(&self.nodes[node], &config)
        };
        engine.wait_for_gear();
        // The user's kernel speaks at once (MLD); before there is a next hop that is dropped.
        engine.wait_for_hops();
        engine
    }

    /// Makes a kernel VXLAN device on a node, in the user's namespace.
    pub fn kernel(&self, node: usize, settings: &str, mac: Mac) {
        let (here, (user, [v4, v6]), own) = (&self.nodes[node], self.user(node), self.vteps[node]);
        here.ip(&format!("link add uvn type vxlan id {VNI} dstport 4789 local {own} dev em1 {settings}"));
        if !self.together {
            here.ip(&format!("link set uvn netns {}", user.name()));
        }
        user.ip(&format!("link set uvn address {mac} mtu {}", self.mtu()));
        user.ip("link set uvn up");
        user.ip(&format!("addr add {v4}/24 dev uvn"));
        user.ip(&format!("addr add {v6}/64 dev uvn nodad"));
    }

    /// Runs all kinds of traffic between two users, both ways, IPv4 and IPv6.
    pub fn talk(&self, first: usize, second: usize) {
        let ((here, own), (there, others)) = (self.user(first), self.user(second));
        for (own, other) in own.into_iter().zip(others) {
            traffic::all(Place(here, own), Place(there, other), self.mtu());
        }
    }
}
