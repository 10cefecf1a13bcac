//! A path MTU that a packet claims. The kernel believes it, whoever sends it; the data plane, whose frames it would cut for all
//! networks, does not. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use uvn_dataplane::port::link;
use uvn_dataplane::underlay::route::look_up;
use uvn_rig::test::{NetNs, until};

const NODE: [&str; 2] = ["10.0.0.1", "fd00::1"];
const PEER: [&str; 2] = ["10.0.0.2", "fd00::2"];

/// Sums up 16-bit words (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!(folded as u16)).to_be_bytes()
}

/// Sends `node` "fragmentation needed" or "packet too big" (RFC 792, RFC 4443) for its echo reply to `peer`, of which nobody
/// keeps a record.
fn claim(node: IpAddr, peer: IpAddr, mtu: u32) {
    let (domain, protocol, error) = match (node, peer) {
        (IpAddr::V4(node), IpAddr::V4(peer)) => {
            let mut error = vec![3, 4, 0, 0];
            error.extend(mtu.to_be_bytes());
            error.extend([0x45, 0, 5, 120, 0, 1, 0x40, 0, 64, 1, 0, 0]);
            error.extend([node.octets(), peer.octets()].concat());
            error.extend([0, 0, 0, 0, 0, 1, 0, 1]);
            let sum = checksum(&error);
            error[2..4].copy_from_slice(&sum);
            (Domain::IPV4, Protocol::ICMPV4, error)
        }
        (IpAddr::V6(node), IpAddr::V6(peer)) => {
            let mut error = vec![2, 0, 0, 0];
            error.extend(mtu.to_be_bytes());
            error.extend([0x60, 0, 0, 0, 5, 120, 58, 64]);
            error.extend([node.octets(), peer.octets()].concat());
            error.extend([129, 0, 0, 0, 0, 1, 0, 1]);
            (Domain::IPV6, Protocol::ICMPV6, error)
        }
        _ => panic!("one family"),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.send_to(&error, &SocketAddr::new(node, 0).into()).unwrap();
}

#[test]
fn who_claims_a_small_path_mtu_is_not_believed() {
    let (node, peer) = (NetNs::new("node"), NetNs::new("peer"));
    node.veth("em1", &peer, "em1");
    for (netns, [v4, v6]) in [(&node, NODE), (&peer, PEER)] {
        netns.ip(&format!("addr add {v4}/24 dev em1"));
        netns.ip(&format!("addr add {v6}/64 dev em1 nodad"));
        netns.ip("link set em1 up");
    }
    for (own, to) in NODE.into_iter().zip(PEER) {
        let (from, address): (IpAddr, IpAddr) = (own.parse().unwrap(), to.parse().unwrap());
        let found = || {
            node.run(|| look_up(address, link::get("em1").unwrap().index))
                .unwrap()
                .and_then(|route| route.mtu)
        };
        for configured in [None, Some(1400)] {
            if let Some(mtu) = configured {
                node.ip(&format!("route add {to} dev em1 mtu {mtu}"));
            }
            until("a way", || found() == configured);
            // The kernel believes it. On IPv6 it takes no less than 1,280.
            until("belief", || {
                peer.run(|| claim(from, address, 1290));
                node.ip(&format!("route get {to} oif em1")).contains("mtu 1290")
            });
            assert_eq!(found(), configured, "{to}");
        }
    }
}
