//! Two users on two nodes: each reaches himself everywhere, and the other nowhere.

use super::*;
use common::traffic::{self, Place, uninterrupted};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// The nodes' addresses, by family.
const ADDRESSES: [[IpAddr; 2]; 2] = [[A, B], [A6, B6]];

struct Cluster {
    engines: Vec<Engine>,
    /// By user, then by node.
    users: [[NetNs; 2]; 2],
    _nodes: [NetNs; 2],
}

impl Cluster {
    fn new() -> Cluster {
        let nodes = [NetNs::new("node"), NetNs::new("node")];
        let users = USERS.map(|_| [NetNs::new("user"), NetNs::new("user")]);
        nodes[0].veth("em1", &nodes[1], "em1");
        for (node, address) in nodes.iter().zip([A, B]) {
            node.ip(&format!("addr add {address}/24 dev em1"));
        }
        let mut engines: Vec<Engine> = Vec::new();
        for (node, netns) in nodes.iter().enumerate() {
            let ([own, peer], [own6, peer6]) = match node {
                0 => ([A, B], [A6, B6]),
                _ => ([B, A], [B6, A6]),
            };
            let mut config = format!(
                r#"
                nic = "em1"
                vtep = ["{own}"]
                peers.vtep = [{{ address = "{peer}", overlay = ["{peer}", "{peer6}"] }}]
                "#
            );
            for (vni, user) in USERS.iter().zip(&users) {
                config += &format!(
                    r#"
                    [[network]]
                    vni = {vni}
                    addresses = ["{own}/24", "{own6}/64"]
                    peers = ["{peer}"]
                    device = {{ name = "uvn", netns = "{}" }}
                    "#,
                    user[node].path()
                );
            }
            engines.push(Engine::start(netns, &config));
        }
        engines.iter_mut().for_each(Engine::wait_for_hops);
        Cluster { engines, users, _nodes: nodes }
    }
}

/// Every user's servers have ports of their own: whom a port belongs to, its answer says.
fn port(user: usize) -> u16 {
    7000 + user as u16
}

/// Answers every connection with the user's number, until it is asked to end.
fn serve(listener: &TcpListener, user: usize) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        if &word == b"end." {
            return;
        }
        stream.write_all(&USERS[user].to_be_bytes()).unwrap();
    }
}

/// Asks whose server answers on a port; None: nobody's.
fn who(from: &NetNs, to: SocketAddr) -> Option<u32> {
    match from.run(|| TcpStream::connect_timeout(&to, PATIENCE)) {
        Ok(mut stream) => {
            stream.write_all(b"who?").unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            Some(u32::from_be_bytes(answer))
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            None
        }
    }
}

#[test]
fn users_reach_themselves_alone() {
    let cluster = Cluster::new();
    let watchers = [0, 1]
        .map(|user: usize| [0, 1].map(|node: usize| PacketSocket::new(&cluster.users[user][node], "uvn")));
    let mut listeners = Vec::new();
    for user in [0, 1] {
        for node in [0, 1] {
            let listener = cluster.users[user][node].run(|| TcpListener::bind(("::", port(user))).unwrap());
            listeners.push((listener, user, node));
        }
    }
    std::thread::scope(|scope| {
        for (listener, user, _) in &listeners {
            scope.spawn(|| serve(listener, *user));
        }
        for addresses in ADDRESSES {
            for (user, nodes) in cluster.users.iter().enumerate() {
                for (node, from) in nodes.iter().enumerate() {
                    for to in addresses {
                        let own = who(from, (to, port(user)).into());
                        assert_eq!(own, Some(USERS[user]), "{} at node {node}: own", USERS[user]);
                        let other = who(from, (to, port(1 - user)).into());
                        assert_eq!(other, None, "{} at node {node}: other's", USERS[user]);
                    }
                }
            }
        }
        for (listener, user, node) in &listeners {
            let own = SocketAddr::new(A6, listener.local_addr().unwrap().port());
            let own = if *node == 0 { own } else { SocketAddr::new(B6, own.port()) };
            let stream = cluster.users[*user][*node].run(|| TcpStream::connect(own));
            stream.unwrap().write_all(b"end.").unwrap();
        }
    });
    datagrams(&cluster);
    pings(&cluster, &watchers);
    cluster.engines.iter().for_each(Engine::assert_no_drops);
}

/// UDP: nobody's socket gets what the other user sends to its port.
fn datagrams(cluster: &Cluster) {
    for addresses in ADDRESSES {
        for user in [0, 1] {
            let [here, there] = &cluster.users[user];
            traffic::udp(Place(here, addresses[0]), Place(there, addresses[1]), &[1, 1000]);
            let others = &cluster.users[1 - user][1];
            let socket = others.run(|| UdpSocket::bind((addresses[1], 9)).unwrap());
            socket.set_nonblocking(true).unwrap();
            let sender = here.run(|| UdpSocket::bind((addresses[0], 0)).unwrap());
            sender.connect((addresses[1], 9)).unwrap();
            sender.set_read_timeout(Some(PATIENCE)).unwrap();
            sender.send(b"x").unwrap();
            // His own kernel over there says that nobody is listening.
            let error = uninterrupted(|| sender.recv(&mut [0])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    }
}

/// Echo requests of one user are seen by the other nowhere.
fn pings(cluster: &Cluster, watchers: &[[PacketSocket; 2]; 2]) {
    watchers.iter().flatten().for_each(|watcher| received(watcher).for_each(drop));
    for addresses in ADDRESSES {
        let [here, there] = &cluster.users[0];
        traffic::ping(Place(here, addresses[0]), addresses[1], &[56; 5]);
        traffic::ping(Place(there, addresses[1]), addresses[0], &[56; 5]);
    }
    let is_echo = |frame: &Vec<u8>| match frame[12..14] {
        [0x08, 0x00] => frame[23] == protocol::ICMP,
        _ => frame[20] == protocol::ICMPV6 && matches!(frame[54], 128 | 129),
    };
    let echoes = watchers
        .each_ref()
        .map(|user| user.each_ref().map(|watcher| received(watcher).filter(is_echo).count()));
    assert_eq!(echoes, [[40, 40], [0, 0]]);
}
