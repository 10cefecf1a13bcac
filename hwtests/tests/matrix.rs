//! Who reaches whom: on localhost and across two nodes, by TCP and UDP, over IPv4 and IPv6; with either gear of the
//! data plane below, and with kernel VXLAN.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uvn_hwtests::cluster::OUTSIDE;
use uvn_hwtests::node::{Server, add_user};
use uvn_hwtests::reach::Answer;
use uvn_hwtests::{Cluster, Daemon, Node, path};

/// Two ordinary users.
const ALICE: u32 = 1234;
const BOB: u32 = 9876;
/// Alice's service that Bob has no own one beside of.
const ALICE_ALONE: u16 = 5003;

/// A cluster whose nodes run uvnd. Daemons first: they end before their nodes.
struct Site {
    daemons: Vec<Daemon>,
    cluster: Cluster,
    path: String,
}

impl Site {
    fn new(path: &str, more: &str) -> Site {
        let cluster = Cluster::two();
        let config = cluster.config(path, more);
        let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
        Site { daemons, cluster, path: path.into() }
    }

    /// uvnd is alive and finds nothing wrong; the data path is the one that was asked for.
    fn conclude(mut self) {
        self.daemons.iter_mut().for_each(Daemon::assert_alive);
        for node in self.cluster.pair() {
            node.uvn(&["check"]);
            path::assert_chosen(node, &self.path);
        }
    }

    /// The same, and the users' frames went between the nodes by it.
    fn conclude_used(self) {
        self.cluster.pair().into_iter().for_each(|node| path::assert_used(node, &self.path));
        self.conclude();
    }
}

/// Both protocols to a port of these addresses.
fn both(addresses: &[IpAddr], port: u16) -> Vec<String> {
    let socket = |address: &IpAddr| SocketAddr::new(*address, port);
    addresses.iter().flat_map(|at| [format!("tcp:{}", socket(at)), format!("udp:{}", socket(at))]).collect()
}

/// TCP only.
fn tcp(addresses: &[IpAddr], port: u16) -> Vec<String> {
    both(addresses, port).into_iter().filter(|target| target.starts_with("tcp")).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn localhost() -> [IpAddr; 2] {
    [ip("127.0.0.1"), ip("::1")]
}

fn any() -> [IpAddr; 2] {
    [ip("0.0.0.0"), ip("::")]
}

/// A server of a user on all addresses: port for IPv4, port + 1000 for IPv6, since one socket can serve both.
fn serve_everywhere(node: &Node, uid: u32, ports: &[u16]) -> Server {
    let sockets: Vec<String> = ports.iter().flat_map(|&port| everywhere(&any(), port)).collect();
    node.serve(uid, &name(uid, node), &sockets)
}

fn everywhere(addresses: &[IpAddr; 2], port: u16) -> Vec<String> {
    [both(&addresses[..1], port), both(&addresses[1..], port + 1000)].concat()
}

fn name(uid: u32, node: &Node) -> String {
    format!("u{uid}@{}", node.name())
}

fn assert_answer(answers: &BTreeMap<String, Answer>, targets: &[String], expected: &str, who: &str) {
    let wrong: Vec<_> = targets
        .iter()
        .filter(|target| answers[*target].as_deref() != Ok(expected))
        .map(|t| (t, &answers[t]))
        .collect();
    assert!(wrong.is_empty(), "{who} should get {expected:?}: {wrong:#?}");
}

fn assert_nobody(answers: &BTreeMap<String, Answer>, targets: &[String], who: &str) {
    let wrong: Vec<_> =
        targets.iter().filter(|target| answers[*target].is_ok()).map(|t| (t, &answers[t])).collect();
    assert!(wrong.is_empty(), "{who} should reach nobody: {wrong:#?}");
}

/// Both users run the same services on both nodes, on the same ports: each gets his own, everywhere.
fn each_user_gets_his_own(path: &str) {
    let site = Site::new(path, "");
    site.cluster.attach(&[ALICE, BOB]);
    let nodes = site.cluster.pair();
    let mut servers = Vec::new();
    for node in nodes {
        servers.push((ALICE, serve_everywhere(node, ALICE, &[5000, ALICE_ALONE])));
        servers.push((BOB, serve_everywhere(node, BOB, &[5000])));
        let (who, local) = (name(ALICE, node), both(&localhost(), 5002));
        servers.push((ALICE, node.serve(ALICE, &who, &local)));
    }
    let [here, there] = nodes.map(Node::addresses);
    for (node, own, other) in [(nodes[0], here, there), (nodes[1], there, here)] {
        let remote = if node.name() == "n1" { nodes[1] } else { nodes[0] };
        for uid in [ALICE, BOB] {
            let who = name(uid, node);
            let [near, far] = [[localhost(), own].concat(), other.to_vec()].map(|addresses| {
                addresses.chunks(2).flat_map(|pair| everywhere(&[pair[0], pair[1]], 5000)).collect()
            });
            // 0.0.0.0 is this host.
            let near: Vec<String> = [near, both(&[ip("0.0.0.0")], 5000)].concat();
            let far: Vec<String> = far;
            let alice: Vec<String> =
                [localhost(), own, other].iter().flat_map(|pair| everywhere(pair, ALICE_ALONE)).collect();
            // The addresses of both users' networks on this node, and her service on localhost.
            let nat: Vec<String> = [["100.64.0.1", "fd75:766e::1"], ["100.64.0.2", "fd75:766e::2"]]
                .iter()
                .flat_map(|pair| everywhere(&[ip(pair[0]), ip(pair[1])], ALICE_ALONE))
                .collect();
            let local = both(&localhost(), 5002);
            let answers = node.reach(uid, &who, &[near.clone(), far.clone()].concat());
            assert_answer(&answers, &near, &who, &who);
            assert_answer(&answers, &far, &name(uid, remote), &who);
            if uid == ALICE {
                assert_answer(&node.reach(uid, &who, &local), &local, &who, &who);
            } else {
                let hers = [alice, nat, local].concat();
                assert_nobody(&node.try_reach(uid, &who, &hers), &hers, &who);
            }
        }
    }
    for (uid, server) in &servers {
        let foreign: Vec<String> =
            server.seen().into_iter().filter(|client| !client.starts_with(&format!("u{uid}@"))).collect();
        assert!(foreign.is_empty(), "{uid}'s server was reached by {foreign:?}");
    }
    drop(servers);
    site.conclude_used();
}

/// With the data plane, nodes need not be listed one by one for IPv4: a range of VTEPs will do.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn nodes_of_a_range() {
    let cluster = Cluster::two();
    let config = cluster.config("auto", "");
    let (rest, _) = config.split_once("[peers]").unwrap();
    let config = format!("{rest}[peers]\nrange = [\"10.0.0.0/24\"]\n");
    let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
    let site = Site { daemons, cluster, path: "auto".into() };
    site.cluster.attach(&[ALICE]);
    let [first, second] = site.cluster.pair();
    let _server = serve_everywhere(second, ALICE, &[5000]);
    let far = both(&second.addresses()[..1], 5000);
    let who = name(ALICE, first);
    assert_answer(&first.reach(ALICE, &who, &far), &far, &name(ALICE, second), &who);
    site.conclude_used();
}

/// A user's services are reached, and reach, under the node's real address.
fn services_have_the_nodes_address(path: &str) {
    let site = Site::new(path, "");
    site.cluster.attach(&[ALICE]);
    let [first, second] = site.cluster.pair();
    for (node, peer) in [(first, second), (second, first)] {
        // Bound to the node's own address, and to no other.
        let own = node.addresses();
        let _server = node.serve(ALICE, &name(ALICE, node), &both(&own, 5000));
        for client in [node, peer] {
            let who = name(ALICE, client);
            assert_answer(
                &client.reach(ALICE, &who, &both(&own, 5000)),
                &both(&own, 5000),
                &name(ALICE, node),
                &who,
            );
        }
    }
    site.conclude_used();
}

/// Root's services are there on 127.0.0.1, on the own and on other nodes, whether or not the user has a session there.
fn root_services_are_reached(path: &str) {
    let site = Site::new(path, "");
    let [first, second] = site.cluster.pair();
    let _servers: Vec<Server> =
        [first, second].iter().map(|node| serve_everywhere(node, 0, &[6000])).collect();
    // A session on the first node only: the second node makes her network when she comes, since the machine knows her.
    add_user(ALICE);
    first.uvn(&["attach", &ALICE.to_string()]);
    let everywhere_tcp =
        |addresses: [IpAddr; 2]| [tcp(&addresses[..1], 6000), tcp(&addresses[1..], 7000)].concat();
    let (near, far) = (
        [everywhere_tcp(localhost()), everywhere_tcp(first.addresses())].concat(),
        everywhere_tcp(second.addresses()),
    );
    let who = name(ALICE, first);
    // Its uvnd may still be starting.
    second.wait("her network", Duration::from_secs(60), || {
        first.try_reach(ALICE, &who, &far).values().all(Result::is_ok)
    });
    [first, second].into_iter().for_each(path::wait_for_gear);
    let answers = first.reach(ALICE, &who, &[near.clone(), far.clone()].concat());
    assert_answer(&answers, &near, &name(0, first), &who);
    assert_answer(&answers, &far, &name(0, second), &who);
    site.conclude_used();
}

/// Beyond the subnets with the node's address, if allowed; on the subnets, hosts without uvn only if listed.
fn off_subnet_and_listed_hosts(path: &str) {
    let hosts = "hosts = [\"10.0.0.200\", \"fd00:10::c8\"]";
    let site = Site::new(path, hosts);
    site.cluster.attach(&[ALICE]);
    let outside = both(&[OUTSIDE.0.into(), OUTSIDE.1.into()], 5000);
    let _outside = Server::start(&site.cluster.outside, 0, "outside", &outside);
    let (storage4, storage6) = site.cluster.storage_address();
    let listed = both(&[storage4, storage6], 5000);
    let _storage = Server::start(&site.cluster.storage, 0, "storage", &listed);
    // The router is on the subnet, too, and not listed.
    let router = both(&[ip("10.0.0.254"), ip("fd00:10::fe")], 5001);
    let seen_by_router = Server::start(&site.cluster.outside, 0, "router", &router);
    for node in site.cluster.pair() {
        let who = name(ALICE, node);
        let answers = node.reach(ALICE, &who, &[outside.clone(), listed.clone()].concat());
        assert_answer(&answers, &outside, "outside", &who);
        assert_answer(&answers, &listed, "storage", &who);
        assert_nobody(&node.try_reach(ALICE, &who, &router), &router, &who);
    }
    assert!(seen_by_router.seen().is_empty(), "{:?}", seen_by_router.seen());
    site.conclude();
}

/// The address that a program finds for itself is the node's, where the user's other nodes reach him; bound to it he
/// leaves, and so do others from the same port to the same host at the same time.
fn programs_have_the_nodes_address(path: &str) {
    let site = Site::new(path, "hosts = [\"10.0.0.200\", \"fd00:10::c8\"]");
    site.cluster.attach(&[ALICE, BOB]);
    let (storage4, storage6) = site.cluster.storage_address();
    let [node, other] = site.cluster.pair();
    let _servers = [
        Server::start(&site.cluster.outside, 0, "host", &both(&[OUTSIDE.0.into(), OUTSIDE.1.into()], 5000)),
        Server::start(&site.cluster.storage, 0, "host", &both(&[storage4, storage6], 5000)),
        serve_everywhere(node, ALICE, &[5000]),
    ];
    let ways = [(IpAddr::from(OUTSIDE.0), storage4, 5000), (OUTSIDE.1.into(), storage6, 6000)];
    for (own, (outside, storage, port)) in node.addresses().into_iter().zip(ways) {
        for host in [outside, storage] {
            let found = node.probe(ALICE, &["own-address", &SocketAddr::new(host, 9).to_string()]);
            assert_eq!(found, own.to_string(), "on the way to {host}");
        }
        let served = both(&[own], port);
        let who = name(ALICE, other);
        assert_answer(&other.reach(ALICE, &who, &served), &served, &name(ALICE, node), &who);
        let hosts = both(&[outside, storage], 5000);
        for uid in [ALICE, BOB, 0] {
            let who = name(uid, node);
            let from = SocketAddr::new(own, 4000);
            for host in hosts.chunks(1) {
                assert_answer(&node.reach_from(uid, &who, from, host), host, "host", &who);
            }
        }
    }
    site.conclude();
}

/// A closed port and a smaller MTU beyond the subnets are told to whom they concern.
fn errors_from_off_subnet_come_back(path: &str) {
    let site = Site::new(path, "");
    site.cluster.attach(&[BOB, ALICE]);
    let beyond = ["198.51.100.1", "2001:db8:1::1"];
    let routes = beyond.map(|to| format!("route add {to} dev small\n")).concat();
    site.cluster.outside.ip(&format!("link add small mtu 1300 type dummy\nlink set small up\n{routes}"));
    for node in site.cluster.pair() {
        for (closed, beyond) in [IpAddr::from(OUTSIDE.0), OUTSIDE.1.into()].into_iter().zip(beyond) {
            let closed = format!("udp:{}", SocketAddr::new(closed, 5009));
            let answers = node.try_reach(ALICE, &name(ALICE, node), std::slice::from_ref(&closed));
            let refused = answers[&closed].as_ref().is_err_and(|error| error.contains("Connection refused"));
            assert!(refused, "{answers:?}");
            let to = SocketAddr::new(ip(beyond), 9).to_string();
            assert_eq!(node.probe(ALICE, &["path-mtu", &to, "1400"]), "1300", "{to}");
        }
    }
    site.conclude();
}

/// Whoever may not leave the subnets, does not.
fn off_subnet_denied(path: &str) {
    let site = Site::new(path, "off_subnet = { default = \"deny\", allow_groups = [9876] }");
    site.cluster.attach(&[ALICE, BOB]);
    let outside = both(&[OUTSIDE.0.into(), OUTSIDE.1.into()], 5000);
    let server = Server::start(&site.cluster.outside, 0, "outside", &outside);
    let [node, _] = site.cluster.pair();
    let who = name(ALICE, node);
    assert_nobody(&node.try_reach(ALICE, &who, &outside), &outside, &who);
    assert!(server.seen().is_empty(), "{:?}", server.seen());
    site.conclude();
}

/// The resolver on 127.0.0.53 answers inside the networks.
fn the_resolver_answers(path: &str) {
    let site = Site::new(path, "");
    let resolver = both(&[ip("127.0.0.53")], 53);
    let [node, other] = site.cluster.pair();
    // As systemd-resolved does.
    let bound: Vec<String> = resolver.iter().map(|socket| format!("{socket}@lo")).collect();
    let _servers = [node, other].map(|node| node.serve(0, &format!("dns@{}", node.name()), &bound));
    site.cluster.attach(&[ALICE, BOB]);
    for uid in [ALICE, BOB] {
        let who = name(uid, node);
        assert_answer(&node.reach(uid, &who, &resolver), &resolver, "dns@n1", &who);
    }
    site.conclude();
}

/// Who has no network gets no socket.
fn without_a_network_no_socket(path: &str) {
    let site = Site::new(path, "");
    site.cluster.attach(&[ALICE]);
    let [node, other] = site.cluster.pair();
    let _servers = [serve_everywhere(node, 0, &[6000]), serve_everywhere(other, ALICE, &[5000])];
    let targets = [
        both(&[ip("127.0.0.1"), node.addresses()[0]], 6000),
        both(&[other.addresses()[0], other.addresses()[1]], 5000),
    ]
    .concat();
    let refused = |answers: BTreeMap<String, Answer>| {
        for (target, answer) in answers {
            let error = answer.expect_err(&target);
            assert!(error.contains("Operation not permitted"), "{target}: {error}");
        }
    };
    refused(node.try_reach(BOB, &name(BOB, node), &targets));
    // Nor does who had one.
    node.uvn(&["detach", &ALICE.to_string()]);
    node.wait("end of the network", std::time::Duration::from_secs(60), || {
        !node.try_sh(&format!("ip link show uvn{ALICE}")).status.success()
    });
    refused(node.try_reach(ALICE, &name(ALICE, node), &targets));
    site.conclude();
}

uvn_hwtests::with_paths!([engine, shortcut, kernel] {
    each_user_gets_his_own, services_have_the_nodes_address, root_services_are_reached, off_subnet_and_listed_hosts,
    programs_have_the_nodes_address, errors_from_off_subnet_come_back, off_subnet_denied, the_resolver_answers,
    without_a_network_no_socket,
});
