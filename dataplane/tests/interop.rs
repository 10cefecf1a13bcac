//! The data plane and other VXLAN implementations: the kernel's devices, and itself. Needs root.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

mod common;
#[path = "common/frames.rs"]
mod frames;

use common::NetNs;
use common::engine::Engine;
use common::packet::PacketSocket;
use common::traffic::{self, Place};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};
use uvn_dataplane::link;
use uvn_dataplane::message::{Reply, Request};
use uvn_wire::ethernet::Mac;

const VNI: u32 = 1234;
/// The nodes' addresses by family: the overlay is the underlay, but for what goes through a router.
const V4: [IpAddr; 3] = [v4(1), v4(2), v4(3)];
const V6: [IpAddr; 3] = [v6(1), v6(2), v6(3)];

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, last))
}

/// A MAC that a kernel made up.
const RANDOM: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// Nodes on one underlay, each with the same user in a namespace beside it.
struct Nodes {
    nodes: Vec<NetNs>,
    users: Vec<NetNs>,
    vteps: Vec<IpAddr>,
    /// What is between them.
    _between: Option<NetNs>,
}

/// The text of a configuration file's parts.
#[derive(Default)]
struct Settings {
    /// Whole sections.
    sections: &'static str,
    /// Keys of the network, beside vni, addresses and device. None: the other nodes as peers.
    network: Option<&'static str>,
    /// The endpoint is a veth.
    veth: bool,
}

impl Nodes {
    /// `count` nodes that have no wire yet.
    fn apart(vteps: &[IpAddr]) -> Nodes {
        let nodes = vteps.iter().map(|_| NetNs::new("node")).collect();
        let users = vteps.iter().map(|_| NetNs::new("user")).collect();
        Nodes { nodes, users, vteps: vteps.to_vec(), _between: None }
    }

    /// Two nodes with `em1` at both ends of a wire that has `queues` each way.
    fn wired(vteps: &[IpAddr], queues: u32) -> Nodes {
        let nodes = Nodes::apart(vteps);
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        let peer = nodes.nodes[1].name();
        nodes.nodes[0].ip(&format!("link add em1 {queues} type veth peer name em1 {queues} netns {peer}"));
        nodes.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        nodes
    }

    /// Two nodes in different subnets.
    fn routed(vteps: [IpAddr; 2]) -> Nodes {
        let mut nodes = Nodes::apart(&vteps);
        let router = NetNs::new("router");
        router.run(|| {
            for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").unwrap();
            }
        });
        let (prefix, gateway) = if vteps[0].is_ipv4() { ("24", "10.1.N.254") } else { ("64", "fd00:N::fe") };
        let gateways = ["1", "2"].map(|number| gateway.replace('N', number));
        for (node, gateway) in nodes.nodes.iter().zip(&gateways) {
            let device = format!("to-{}", &gateway[gateway.len() - 5..].replace([':', '.'], "-"));
            node.veth("em1", &router, &device);
            router.ip(&format!("addr add fe80::fe/64 dev {device} nodad"));
            let no_detection = if vteps[0].is_ipv6() { "nodad" } else { "" };
            router.ip(&format!("addr add {gateway}/{prefix} dev {device} {no_detection}"));
        }
        nodes.finish_wires(|node| [format!("{}/{prefix}", vteps[node])]);
        for (node, gateway) in nodes.nodes.iter().zip(&gateways) {
            node.ip(&format!("route add default via {gateway}"));
        }
        nodes._between = Some(router);
        nodes
    }

    /// Nodes on a switch.
    fn switched(vteps: &[IpAddr]) -> Nodes {
        let mut nodes = Nodes::apart(vteps);
        let switch = NetNs::new("switch");
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        for (number, node) in nodes.nodes.iter().enumerate() {
            let port = format!("port{number}");
            node.veth("em1", &switch, &port);
            switch.ip(&format!("link set {port} master br0"));
        }
        nodes.finish_wires(|node| [format!("{}/24", V4[node]), format!("{}/64", V6[node])]);
        nodes._between = Some(switch);
        nodes
    }

    /// The wires carry finished frames, as real ones do; the nodes have their addresses. Without a link-local one the
    /// kernel solicits nobody when it is only asked to (ndisc_send_ns).
    fn finish_wires<const N: usize>(&self, addresses: impl Fn(usize) -> [String; N]) {
        for (number, node) in self.nodes.iter().enumerate() {
            node.run(|| link::disable_tx_offloads("em1")).unwrap();
            node.ip("link set em1 up");
            node.ip(&format!("addr add fe80::{}/64 dev em1 nodad", number + 1));
            for address in addresses(number) {
                let no_detection = if address.contains(':') { "nodad" } else { "" };
                node.ip(&format!("addr add {address} dev em1 {no_detection}"));
            }
        }
    }

    /// IP MTU between the endpoints.
    fn mtu(&self) -> usize {
        if self.vteps[0].is_ipv4() { 1450 } else { 1430 }
    }

    /// Starts the data plane on a node, with one network.
    fn engine(&self, node: usize, settings: &Settings) -> Engine {
        let own = self.vteps[node];
        let others = || (0..self.vteps.len()).filter(|other| *other != node);
        let vteps: Vec<String> = others()
            .map(|other| {
                let (address, v4, v6) = (self.vteps[other], V4[other], V6[other]);
                format!(r#"{{ address = "{address}", overlay = ["{v4}", "{v6}"] }}"#)
            })
            .collect();
        let peers: Vec<String> = others().map(|other| format!("\"{}\"", self.vteps[other])).collect();
        let network = settings.network.map_or(format!("peers = [{}]", peers.join(", ")), str::to_owned);
        let kind = if settings.veth { "veth" } else { "tap" };
        let (sections, vteps, netns) = (settings.sections, vteps.join(", "), self.users[node].path());
        let config = format!(
            r#"
            nic = "em1"
            vtep = ["{own}"]
            {sections}
            [peers]
            vtep = [{vteps}]
            # Bulk TCP fills what there is; here none of it may be lost.
            [workers]
            frames = 4096
            [[network]]
            vni = {VNI}
            addresses = ["{}/24", "{}/64"]
            {network}
            [network.device]
            name = "uvn"
            kind = "{kind}"
            netns = "{netns}"
            "#,
            V4[node], V6[node]
        );
        let mut engine = Engine::start(&self.nodes[node], &config);
        // The user's kernel speaks at once (MLD); before there is a next hop that is dropped.
        engine.wait_for_hops();
        engine
    }

    /// Makes a kernel VXLAN device on a node, in the user's namespace.
    fn kernel(&self, node: usize, settings: &str, mac: Mac) {
        let (here, user, own) = (&self.nodes[node], &self.users[node], self.vteps[node]);
        here.ip(&format!("link add uvn type vxlan id {VNI} dstport 4789 local {own} dev em1 {settings}"));
        here.ip(&format!("link set uvn netns {}", user.name()));
        user.ip(&format!("link set uvn address {mac} mtu {}", self.mtu()));
        user.ip("link set uvn up");
        user.ip(&format!("addr add {}/24 dev uvn", V4[node]));
        user.ip(&format!("addr add {}/64 dev uvn nodad", V6[node]));
    }

    /// Runs all kinds of traffic between two users, both ways, IPv4 and IPv6.
    fn talk(&self, first: usize, second: usize) {
        for addresses in [V4, V6] {
            let here = Place(&self.users[first], addresses[first]);
            let there = Place(&self.users[second], addresses[second]);
            traffic::all(here, there, self.mtu());
        }
    }
}

/// A data plane and one kernel device, and all traffic between them. Nothing may be dropped.
fn with_kernel(nodes: &Nodes, settings: &Settings, kernel: &str, mac: Mac) -> Engine {
    let engine = nodes.engine(0, settings);
    nodes.kernel(1, kernel, mac);
    nodes.talk(0, 1);
    engine.assert_no_drops();
    engine
}

#[test]
fn two_data_planes() {
    let nodes = Nodes::wired(&V4[..2], 1);
    let engines = [0, 1].map(|node| nodes.engine(node, &Settings::default()));
    nodes.talk(0, 1);
    engines.iter().for_each(Engine::assert_no_drops);
}

#[test]
fn two_data_planes_with_veth_endpoints_over_ipv6() {
    let nodes = Nodes::wired(&V6[..2], 1);
    let engines = [0, 1].map(|node| nodes.engine(node, &Settings { veth: true, ..Settings::default() }));
    nodes.talk(0, 1);
    engines.iter().for_each(Engine::assert_no_drops);
}

#[test]
fn kernel_with_a_unicast_remote_over_ipv4() {
    with_kernel(&Nodes::wired(&V4[..2], 1), &Settings::default(), "remote 10.0.0.1", Mac::of(V4[1]));
}

#[test]
fn kernel_with_a_unicast_remote_over_ipv6() {
    // Both compute the outer checksum and insist on it.
    with_kernel(&Nodes::wired(&V6[..2], 1), &Settings::default(), "remote fd00:10::1", Mac::of(V6[1]));
}

#[test]
fn kernel_with_zero_checksums_over_ipv6() {
    let settings = Settings { sections: "[encapsulation]\nipv6_checksum = false", ..Settings::default() };
    let kernel = "remote fd00:10::1 udp6zerocsumtx udp6zerocsumrx";
    with_kernel(&Nodes::wired(&V6[..2], 1), &settings, kernel, Mac::of(V6[1]));
}

#[test]
fn kernel_with_zero_checksums_is_refused_where_they_are_not_allowed() {
    let nodes = Nodes::wired(&V6[..2], 1);
    let engine = nodes.engine(0, &Settings::default());
    nodes.kernel(1, "remote fd00:10::1 udp6zerocsumtx udp6zerocsumrx", Mac::of(V6[1]));
    let socket = nodes.users[1].run(|| UdpSocket::bind((V4[1], 0)).unwrap());
    // Its ARP requests are dropped too; how many there are is its own business.
    socket.send_to(b"x", (V4[0], 9)).unwrap();
    let counted = engine.counted_when("a dropped frame", |counted| !counted.drops.is_empty());
    assert_eq!(counted.rx_frames, 0);
    assert_eq!(counted.drops.keys().collect::<Vec<_>>(), ["rx_outer_checksum"]);
}

/// No default destination and no learning at the kernel's end: what it knows was told by an administrator.
#[test]
fn kernel_with_a_static_fdb_and_checksums_over_ipv4() {
    let nodes = Nodes::wired(&V4[..2], 1);
    let settings = Settings { sections: "[encapsulation]\nchecksum = true", ..Settings::default() };
    let engine = nodes.engine(0, &settings);
    nodes.kernel(1, "nolearning udpcsum", Mac::of(V4[1]));
    for mac in [Mac::of(V4[0]), Mac([0; 6])] {
        let user = nodes.users[1].name();
        let output = std::process::Command::new("bridge")
            .args([
                "-n",
                user,
                "fdb",
                "append",
                &mac.to_string(),
                "dev",
                "uvn",
                "dst",
                "10.0.0.1",
                "permanent",
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    nodes.talk(0, 1);
    engine.assert_no_drops();
}

#[test]
fn kernel_that_is_learned_and_learns() {
    let settings =
        Settings { network: Some("learning = true\npeers = [\"10.0.0.2\"]"), ..Settings::default() };
    let nodes = Nodes::wired(&V4[..2], 1);
    let engine = with_kernel(&nodes, &settings, "remote 10.0.0.1 learning", RANDOM);
    assert_eq!(engine.network(VNI).learned, 1);
}

#[test]
fn kernels_in_an_ipv4_group() {
    let nodes = Nodes::switched(&V4);
    let settings = Settings { network: Some("group = \"239.1.2.3\""), ..Settings::default() };
    let engine = nodes.engine(0, &settings);
    for node in [1, 2] {
        nodes.kernel(node, "group 239.1.2.3", Mac::of(V4[node]));
    }
    nodes.talk(0, 1);
    nodes.talk(0, 2);
    // They ask for each other by the group, too: the data plane gets these requests, and its user ignores them.
    nodes.talk(1, 2);
    engine.assert_no_drops();
}

#[test]
fn kernels_in_an_ipv6_group_that_are_learned() {
    let nodes = Nodes::switched(&V6);
    let settings =
        Settings { network: Some("group = \"ff05::4242\"\nlearning = true"), ..Settings::default() };
    let engine = nodes.engine(0, &settings);
    for node in [1, 2] {
        let mac = Mac([0x52, 0x54, 0, 0, 0, node as u8]);
        nodes.kernel(node, "group ff05::4242", mac);
    }
    nodes.talk(0, 1);
    nodes.talk(0, 2);
    engine.assert_no_drops();
    assert_eq!(engine.network(VNI).learned, 2);
}

#[test]
fn kernel_and_a_veth_endpoint() {
    let settings = Settings { veth: true, ..Settings::default() };
    with_kernel(&Nodes::wired(&V4[..2], 1), &settings, "remote 10.0.0.1", Mac::of(V4[1]));
}

#[test]
fn kernel_behind_an_ipv4_router() {
    let vteps = [IpAddr::from([10, 1, 1, 1]), IpAddr::from([10, 1, 2, 1])];
    with_kernel(&Nodes::routed(vteps), &Settings::default(), "remote 10.1.1.1", Mac::of(vteps[1]));
}

#[test]
fn kernel_behind_an_ipv6_router() {
    let vteps: [IpAddr; 2] = ["fd00:1::1", "fd00:2::2"].map(|address| address.parse().unwrap());
    with_kernel(&Nodes::routed(vteps), &Settings::default(), "remote fd00:1::1", Mac::of(vteps[1]));
}

/// The way to the peer takes less than the NIC: the user's kernel is told so and adapts.
#[test]
fn a_route_with_a_smaller_mtu() {
    let vteps = [IpAddr::from([10, 1, 1, 1]), IpAddr::from([10, 1, 2, 1])];
    let nodes = Nodes::routed(vteps);
    nodes.nodes[0].ip("route add 10.1.2.0/24 via 10.1.1.254 mtu 1400");
    let engine = nodes.engine(0, &Settings::default());
    nodes.kernel(1, "remote 10.1.1.1", Mac::of(vteps[1]));
    for addresses in [V4, V6] {
        let (here, there) = (Place(&nodes.users[0], addresses[0]), Place(&nodes.users[1], addresses[1]));
        traffic::tcp(here, there, traffic::BULK);
    }
    let counted = engine.counted_since_ready();
    assert_eq!(counted.drops.keys().collect::<Vec<_>>(), ["tx_too_big"], "{counted:?}");
    let route = nodes.users[0].ip("route get 10.0.0.2");
    assert!(route.contains("mtu 1350"), "{route}");
}

/// Frames from many MACs behind one VTEP, as a bridge at the other end makes them.
#[test]
fn learning_is_bounded_and_ages() {
    let nodes = Nodes::wired(&V4[..2], 1);
    let network = "learning = true\npeers = [\"10.0.0.2\"]\nmax_addresses = 3\nageing = 2";
    let engine = nodes.engine(0, &Settings { network: Some(network), ..Settings::default() });
    let wire = PacketSocket::new(&nodes.nodes[1], "em1");
    let mac = |number: u8| Mac([0x52, 0x54, 0, 0, 0, number]);
    let frame = |number: u8| {
        let source = IpAddr::from([10, 0, 0, 100 + number]);
        let inner = frames::udp((mac(number), Mac::of(V4[0])), (source, 9), (V4[0], 9), 0, b"x");
        frames::vxlan(&Default::default(), V4[1], V4[0], VNI, 0, &inner)
    };
    let before = engine.counted();
    for number in 0..8 {
        wire.send(&frame(number));
        engine.counted_when("the frame", |counted| counted.since(&before).rx_frames > u64::from(number));
    }
    assert_eq!(engine.network(VNI).learned, 3);
    // One stays in use: the others are forgotten, and there is room again.
    let start = Instant::now();
    while engine.network(VNI).learned > 1 {
        assert!(start.elapsed() < Duration::from_secs(10), "they do not age");
        wire.send(&frame(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(1), "they aged too early");
    wire.send(&frame(7));
    let start = Instant::now();
    while engine.network(VNI).learned != 2 {
        assert!(start.elapsed() < Duration::from_secs(10), "there is no room again");
        std::thread::sleep(Duration::from_millis(5));
    }
    engine.assert_no_drops();
}

/// Several workers: no flow is reordered, and each has its share.
#[test]
fn flows_stay_in_order_over_several_queues() {
    const FLOWS: u16 = 16;
    const EACH: u32 = 1600;
    let nodes = Nodes::wired(&V4[..2], 2);
    let engines = [0, 1].map(|node| nodes.engine(node, &Settings::default()));
    nodes.talk(0, 1);
    for (from, to) in [(0, 1), (1, 0)] {
        let receiver = nodes.users[to].run(|| UdpSocket::bind((V4[to], 7777)).unwrap());
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        setsockopt(&receiver, RcvBufForce, &(64 << 20)).unwrap();
        let mut next: HashMap<u16, u32> = HashMap::new();
        let mut received = 0;
        std::thread::scope(|scope| {
            for flow in 0..FLOWS {
                let sender = nodes.users[from].run(|| UdpSocket::bind((V4[from], 20_000 + flow)).unwrap());
                scope.spawn(move || {
                    for number in 0..EACH {
                        sender.send_to(&number.to_be_bytes(), (V4[to], 7777)).unwrap();
                        if number % 16 == 0 {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                });
            }
            let mut buffer = [0; 4];
            while let Ok((_, source)) = traffic::uninterrupted(|| receiver.recv_from(&mut buffer)) {
                let number = u32::from_be_bytes(buffer);
                let next = next.entry(source.port()).or_default();
                assert!(number >= *next, "{number} of flow {} came after {next}", source.port());
                *next = number + 1;
                received += 1;
            }
        });
        // Bursts are to stress it: some may be lost.
        assert!(received > u32::from(FLOWS) * EACH / 8, "{received} datagrams arrived");
        assert_eq!(next.len(), usize::from(FLOWS));
    }
    for engine in engines {
        let Ok(Reply::Counters { workers, .. }) = engine.client().ask(&Request::Counters, &[]) else {
            unreachable!("another reply")
        };
        assert_eq!(workers.len(), 2);
        for worker in workers {
            assert!(worker.rx_frames > 500 && worker.tx_frames > 500, "{worker:?}");
        }
    }
}
