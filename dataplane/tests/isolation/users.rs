//! Two users on two nodes: each reaches himself everywhere, and the other nowhere.

use super::*;
use common::traffic::{self, Place, uninterrupted};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// The nodes' addresses, by family.
const ADDRESSES: [[IpAddr; 2]; 2] = [[A, B], [A6, B6]];

struct TwoUsers {
    engines: Vec<Engine>,
    /// By user, then by node.
    users: [[NetNs; 2]; 2],
    _nodes: [NetNs; 2],
}

impl TwoUsers {
    fn new() -> TwoUsers {
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
                path = "engine"
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
                    device = {{ name = "uvn", netns = {:?} }}
                    "#,
                    user[node].path()
                );
            }
            engines.push(Engine::start(netns, &config));
        }
        engines.iter_mut().for_each(Engine::wait_for_hops);
        TwoUsers { engines, users, _nodes: nodes }
    }
}

/// Every user's servers have ports of their own: whom a port belongs to, its answer says.
fn port(user: usize) -> u16 {
    7000 + user as u16
}

/// Answers every connection with the user's number, as long as the tests run.
fn serve(netns: &NetNs, user: usize) {
    let listener = netns.run(|| TcpListener::bind(("::", port(user))).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(&USERS[user].to_be_bytes()).unwrap();
        }
    });
}

/// Asks whose server answers on a port; None: nobody's.
fn who(from: &NetNs, to: SocketAddr) -> Option<u32> {
    match from.run(|| TcpStream::connect_timeout(&to, PATIENCE)) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
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
    let users = TwoUsers::new();
    let watchers = [0, 1]
        .map(|user: usize| [0, 1].map(|node: usize| PacketSocket::new(&users.users[user][node], "uvn")));
    for (user, nodes) in users.users.iter().enumerate() {
        nodes.iter().for_each(|netns| serve(netns, user));
    }
    for addresses in ADDRESSES {
        for (user, nodes) in users.users.iter().enumerate() {
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
    datagrams(&users);
    pings(&users, &watchers);
    users.engines.iter().for_each(Engine::assert_no_drops);
}

/// UDP: nobody's socket gets what the other user sends to its port.
fn datagrams(users: &TwoUsers) {
    for addresses in ADDRESSES {
        for user in [0, 1] {
            let [here, there] = &users.users[user];
            traffic::udp(Place(here, addresses[0]), Place(there, addresses[1]), &[1, 1000]);
            let others = &users.users[1 - user][1];
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
fn pings(users: &TwoUsers, watchers: &[[PacketSocket; 2]; 2]) {
    watchers.iter().flatten().for_each(|watcher| received(watcher).for_each(drop));
    for addresses in ADDRESSES {
        let [here, there] = &users.users[0];
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
