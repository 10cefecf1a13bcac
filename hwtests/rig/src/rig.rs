//! Nodes as network namespaces, joined by a veth wire (two) or by a switch (more).
//!
//! A user's endpoint is in its node's own namespace, as in production, where a VRF keeps it apart. Without a VRF its
//! addresses must not clash with the node's, so it has overlay addresses of another subnet.

use crate::error::{RigError, written};
use crate::netns::{Namespaces, ip};
use crate::shell;
use crate::wire;
pub use crate::wire::NIC;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

/// The UIDs, and VNIs, of the measured user and of the user who disturbs them.
pub const USERS: [u32; 2] = [1234, 9876];
/// The namespace that holds the bridge of more than two nodes.
const SWITCH: &str = "switch";

/// Nodes and what joins them. Dropping it removes all of it.
pub struct Rig {
    namespaces: Namespaces,
    nodes: usize,
    mtu: u32,
}

impl Rig {
    /// Makes `nodes` nodes (two or more) on a wire that carries IP packets of `mtu` bytes. `tag`, without a dash, tells
    /// this process's rigs apart.
    ///
    /// # Errors
    /// A step failed, or the wire's offloads are not what they should be. What was made is removed again.
    pub fn new(tag: &str, nodes: usize, mtu: u32) -> Result<Rig, RigError> {
        let rig = Rig { namespaces: Namespaces::new(tag)?, nodes, mtu };
        for node in 0..nodes {
            rig.namespaces.add(&short(node))?;
        }
        if nodes == 2 {
            let (left, right) = (rig.node(0), rig.node(1));
            ip(&["link", "add", NIC, "netns", &left, "type", "veth", "peer", "name", NIC, "netns", &right])?;
        } else {
            rig.connect_by_switch()?;
        }
        for node in 0..nodes {
            wire::set_offloads(&rig.node(node), NIC, true)?;
            rig.batch(node, "ip", &rig.wiring(node))?;
        }
        Ok(rig)
    }

    /// Lines for `ip` that set up a node's NIC. Neighbours are permanent: others count towards a limit of 1,024 for all
    /// namespaces together (net.ipv4.neigh.default.gc_thresh3), above which connections fail.
    fn wiring(&self, node: usize) -> String {
        let ((v4, v6), mac, mtu) = (underlay(node), mac(node), self.mtu);
        let mut wiring = format!(
            "link set {NIC} address {mac} mtu {mtu}\naddr add {v4}/24 dev {NIC}\n\
             addr add {v6}/64 dev {NIC} nodad\nlink set {NIC} up\n"
        );
        for peer in (0..self.nodes).filter(|peer| *peer != node) {
            wiring += &permanent_neighbours(underlay(peer), peer, NIC);
        }
        wiring
    }

    /// Makes `ip` or `bridge` execute these lines in a node's namespace.
    ///
    /// # Errors
    /// The program failed; its message has the line.
    pub fn batch(&self, node: usize, program: &str, lines: &str) -> Result<(), RigError> {
        let file = self.directory().join(format!("{}.{program}", short(node)));
        std::fs::write(&file, lines).map_err(written(&file))?;
        let mut command = Command::new(program);
        shell::read(command.args(["-n", &self.node(node), "-batch"]).arg(file))?;
        Ok(())
    }

    fn connect_by_switch(&self) -> Result<(), RigError> {
        let switch = self.namespaces.add(SWITCH)?;
        ip(&[
            "-n",
            &switch,
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        let mtu = self.mtu.to_string();
        for node in 0..self.nodes {
            let (port, netns) = (format!("port{}", node + 1), self.node(node));
            ip(&[
                "link", "add", NIC, "netns", &netns, "type", "veth", "peer", "name", &port, "netns", &switch,
            ])?;
            wire::set_offloads(&switch, &port, false)?;
            ip(&["-n", &switch, "link", "set", &port, "mtu", &mtu, "master", "br0", "up"])?;
        }
        ip(&["-n", &switch, "link", "set", "br0", "up"])
    }

    /// The number of nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// The MTU of the wire, bytes of an IP packet.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The network namespace of a node, counted from 0.
    #[must_use]
    pub fn node(&self, node: usize) -> String {
        self.namespaces.name(&short(node))
    }

    /// A folder for sockets and configuration, removed with the rig.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.namespaces.directory()
    }
}

fn short(node: usize) -> String {
    format!("n{}", node + 1)
}

/// The MAC address of a node's NIC, and of kernel VXLAN devices on it.
#[must_use]
pub fn mac(node: usize) -> String {
    format!("02:00:00:00:00:{:02x}", node as u8 + 1)
}

/// Lines for `ip` that name a peer as the neighbour with these addresses.
#[must_use]
pub fn permanent_neighbours((v4, v6): (Ipv4Addr, Ipv6Addr), peer: usize, device: &str) -> String {
    let line =
        |address: IpAddr| format!("neigh add {address} lladdr {} dev {device} nud permanent\n", mac(peer));
    line(v4.into()) + &line(v6.into())
}

/// The addresses of a node's NIC.
#[must_use]
pub fn underlay(node: usize) -> (Ipv4Addr, Ipv6Addr) {
    addresses(0, node)
}

/// The addresses of an endpoint on a node; `user` is an index of [`USERS`], or beyond it for further networks.
#[must_use]
pub fn overlay(node: usize, user: usize) -> (Ipv4Addr, Ipv6Addr) {
    addresses(user + 1, node)
}

/// Subnet 0 is 10.0.0.0/24 and fd00:10::/64, subnet 1 is 10.1.0.0/24 and fd00:11::/64, and so on; 65,536 of them.
fn addresses(subnet: usize, node: usize) -> (Ipv4Addr, Ipv6Addr) {
    let host = node as u8 + 1;
    let [high, low] = (subnet as u16).to_be_bytes();
    let v4 = Ipv4Addr::new(10, low, high, host);
    (v4, Ipv6Addr::new(0xfd00, 0x10 + low as u16, high as u16, 0, 0, 0, 0, u16::from(host)))
}

/// Every overlay address of a node.
#[must_use]
pub fn overlays(node: usize, networks: usize) -> Vec<IpAddr> {
    let both = |(v4, v6): (Ipv4Addr, Ipv6Addr)| [IpAddr::V4(v4), IpAddr::V6(v6)];
    (0..networks).flat_map(|user| both(overlay(node, user))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_subnets_or_nodes_share_an_address() {
        assert_eq!(underlay(1), (Ipv4Addr::new(10, 0, 0, 2), "fd00:10::2".parse().unwrap()));
        assert_eq!(overlay(1, 0), (Ipv4Addr::new(10, 1, 0, 2), "fd00:11::2".parse().unwrap()));
        let mut all: Vec<_> =
            (0..1000).flat_map(|user| (0..2).map(move |node| overlay(node, user))).collect();
        all.extend((0..2).map(underlay));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
