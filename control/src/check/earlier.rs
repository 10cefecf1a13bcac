//! Servers that policed users have from a time when nobody was policed, such as before `uvnd` was first started: they are
//! in no network, and whoever reaches the node reaches them. Connections of that time are with who was there then.

use crate::config::Config;
use crate::netlink::has_ipv6;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagMessage, TCP_LISTEN};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use uvn_api::uvnd::finding::{Finding, Id, few};
use uvn_dataplane::port::link;
use uvn_wire::cgroup::{self, Mark};

/// Finds servers of policed users without the programs' mark, which no user can change.
pub(super) fn findings(config: &Config) -> Option<Finding> {
    let users = match unmarked(|uid| config.is_policed(uid)) {
        Ok(users) => users,
        Err(error) => {
            let what = format!("servers from before uvn cannot be looked for: {error}");
            return Some(Finding::warning(Id::Earlier, what, "a kernel with tcp_diag and udp_diag tells"));
        }
    };
    let users: Vec<String> = users.iter().map(|(uid, sockets)| format!("{uid} ({})", few(sockets))).collect();
    (!users.is_empty()).then(|| {
        let what =
            format!("servers from before uvn, in no network and reached by everybody: {}", few(&users));
        Finding::fault(Id::Earlier, what, "`ss -tunape` names the programs that hold them: end these")
    })
}

/// The servers of such users that the programs have not marked, by UID.
fn unmarked(is_policed: impl Fn(u32) -> bool) -> io::Result<BTreeMap<u32, Vec<String>>> {
    let tag = cgroup::tag(link::netns_cookie()?);
    let mut users: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (protocol, name) in [(IPPROTO_TCP, "tcp"), (IPPROTO_UDP, "udp")] {
        for family in [AF_INET, AF_INET6].into_iter().filter(|family| *family == AF_INET || has_ipv6()) {
            for InetResponse { header, nlas } in dump(family, protocol)? {
                // The kernel tells root every socket's mark, 0 as well (net/ipv4/inet_diag.c).
                let mark =
                    nlas.iter().find_map(|nla| if let Nla::Mark(mark) = nla { Some(*mark) } else { None });
                if !is_policed(header.uid) || Mark(mark.unwrap_or(0)).is_ours(tag) {
                    continue;
                }
                let SocketId { source_address, source_port, destination_port, .. } = header.socket_id;
                // TCP sockets that listen, and UDP sockets that take from everybody.
                let is_server = match protocol {
                    IPPROTO_TCP => header.state == TCP_LISTEN,
                    _ => destination_port == 0,
                };
                if is_server {
                    let here = SocketAddr::new(source_address, source_port);
                    users.entry(header.uid).or_default().push(format!("{name} {here}"));
                }
            }
        }
    }
    users.values_mut().for_each(|servers| servers.sort());
    Ok(users)
}

/// All sockets of a kind in the thread's network namespace (sock_diag(7)).
fn dump(family: u8, protocol: u8) -> io::Result<impl Iterator<Item = InetResponse>> {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let (extensions, states) = (ExtensionFlags::empty(), StateFlags::all());
    let request = InetRequest { family, protocol, extensions, states, socket_id };
    let answers =
        link::netlink_exchange(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request), NLM_F_DUMP)?;
    Ok(answers.into_iter().filter_map(|answer| match answer {
        SockDiagMessage::InetResponse(socket) => Some(*socket),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::unmarked;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// The kernel as oracle: sockets of this test itself.
    #[test]
    fn sockets_are_found_by_their_owner() {
        let mine = nix::unistd::geteuid().as_raw();
        let server = TcpListener::bind("[::1]:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let users = unmarked(|uid| uid == mine).unwrap();
        let sockets = &users[&mine];
        for text in [
            format!("tcp {}", server.local_addr().unwrap()),
            format!("udp {}", datagrams.local_addr().unwrap()),
        ] {
            assert!(sockets.contains(&text), "{text}: {sockets:?}");
        }
        assert!(!sockets.contains(&format!("tcp {}", client.local_addr().unwrap())), "{sockets:?}");
        assert!(unmarked(|_| false).unwrap().is_empty());
        // What the kernel cannot list is an error, not an empty list: nothing has this protocol.
        assert!(super::dump(super::AF_INET, 254).is_err());
    }
}
