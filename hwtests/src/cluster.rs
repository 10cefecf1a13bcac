//! Nodes on a common switch, a router with an off-subnet host behind it, and an on-subnet host without uvn.

use crate::node::{Nic, Node};
use crate::path::wait_for_gear;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use uvn_rig::namespace::Namespace;

/// The off-subnet host's addresses.
pub const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// The host part of the router's addresses, which is the nodes' default gateway.
const ROUTER: u8 = 254;
/// The host part of the on-subnet host without uvn.
const STORAGE: u8 = 200;
/// Bytes of an IP packet on the wire: the users keep 1500.
const MTU: u32 = 1600;
/// For what the kernel does by itself.
const PATIENCE: Duration = Duration::from_secs(90);
/// What veth must not do: unfinished checksums do not survive XDP, and 64 KiB frames cross no real wire.
const OFF: &str = "tso off gso off tx off";

/// What a cluster looks like.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// How many nodes.
    pub nodes: u8,
    /// The names of each node's NICs; each NIC is on a subnet of its own.
    pub nics: &'static [&'static str],
}

impl Default for Layout {
    fn default() -> Self {
        Layout { nodes: 2, nics: &["em1"] }
    }
}

/// A cluster. Dropping it ends all that runs in it.
pub struct Cluster {
    /// The nodes, `n1` and on.
    pub nodes: Vec<Node>,
    /// The router, which is also the off-subnet host ([`OUTSIDE`]).
    pub outside: Namespace,
    /// The on-subnet host without uvn; its address is [`Cluster::storage_address`].
    pub storage: Namespace,
    /// The bridges; each NIC's other end is here, named `NODE.NUMBER`.
    pub switch: Namespace,
    layout: Layout,
}

impl Cluster {
    /// Two nodes with one NIC.
    #[must_use]
    pub fn two() -> Cluster {
        Cluster::new(Layout::default())
    }

    /// Makes it. No uvnd runs yet.
    #[must_use]
    pub fn new(layout: Layout) -> Cluster {
        let switch = Namespace::new("switch");
        let (outside, storage) = (Namespace::new("outside"), Namespace::new("storage"));
        let bridges: String = (0..layout.nics.len())
            .map(|subnet| {
                format!(
                    "link add br{subnet} type bridge forward_delay 0 mcast_snooping 0\nlink set br{subnet} mtu {MTU} up\n"
                )
            })
            .collect();
        switch.ip(&bridges);
        let mut cluster = Cluster { nodes: Vec::new(), outside, storage, switch, layout };
        cluster.connect_hosts();
        for number in 1..=layout.nodes {
            cluster.add_node(number);
        }
        cluster.nodes.iter().for_each(wait_for_links);
        cluster
    }

    /// The nodes of a cluster that has two.
    #[must_use]
    pub fn pair(&self) -> [&Node; 2] {
        let [first, second] = &self.nodes[..] else { panic!("two nodes") };
        [first, second]
    }

    /// Gives these users their networks on every node, each in the gear in which it stays.
    pub fn attach(&self, uids: &[u32]) {
        for node in &self.nodes {
            for uid in uids {
                node.uvn(&["attach", &uid.to_string()]);
            }
            wait_for_gear(node);
        }
    }

    /// The subnets, each as IPv4 and IPv6.
    #[must_use]
    pub fn subnets(&self) -> Vec<String> {
        let nics = 0..self.layout.nics.len();
        nics.flat_map(|subnet| [format!("{}/24", v4(subnet, 0)), format!("{}/64", v6(subnet, 0))]).collect()
    }

    /// The address of the on-subnet host without uvn, on the first subnet.
    #[must_use]
    pub fn storage_address(&self) -> (IpAddr, IpAddr) {
        (v4(0, STORAGE).into(), v6(0, STORAGE).into())
    }

    /// An uvn.toml for its nodes: every NIC on this data path, short linger, and what `more` has for the top of it.
    #[must_use]
    pub fn config(&self, path: &str, more: &str) -> String {
        let mut config = format!("linger_s = 1\n{more}\n");
        for (subnet, nic) in self.layout.nics.iter().enumerate() {
            let (v4, v6) = (v4(subnet, 0), v6(subnet, 0));
            // On kernel VXLAN each NIC needs a port of its own.
            let port = 4789 + subnet;
            let _infallible = write!(
                config,
                "[[underlay]]\nnic = \"{nic}\"\nsubnets = [\"{v4}/24\", \"{v6}/64\"]\npath = \"{path}\"\nport = {port}\n"
            );
        }
        // By name: the addresses of a name belong to one endpoint.
        let names = (0..self.layout.nics.len()).map(|subnet| match subnet {
            0 => format!("\"n[1-{}]\"", self.layout.nodes),
            _ => format!("\"n[1-{}]-{subnet}\"", self.layout.nodes),
        });
        let names: Vec<String> = names.collect();
        let _infallible = writeln!(config, "[peers]\nnodes = [{}]", names.join(", "));
        config
    }

    fn connect_hosts(&self) {
        let mut outside = format!("addr add {}/32 dev lo\naddr add {}/128 dev lo\n", OUTSIDE.0, OUTSIDE.1);
        for subnet in 0..self.layout.nics.len() {
            self.plug(&self.outside, &format!("lan{subnet}"), subnet);
            outside += &addresses(&format!("lan{subnet}"), subnet, ROUTER);
        }
        self.outside.ip(&outside);
        self.outside.write("/proc/sys/net/ipv4/ip_forward", "1");
        self.outside.write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
        self.plug(&self.storage, "lan0", 0);
        self.storage.ip(&addresses("lan0", 0, STORAGE));
    }

    fn add_node(&mut self, number: u8) {
        let host = Namespace::new(&format!("n{number}"));
        let (mut lines, mut nics) = (String::new(), Vec::new());
        for (subnet, name) in self.layout.nics.iter().enumerate() {
            self.plug(&host, name, subnet);
            lines += &addresses(name, subnet, number);
            nics.push(Nic { name: (*name).to_owned(), v4: v4(subnet, number), v6: v6(subnet, number) });
        }
        let _infallible = write!(
            lines,
            "route add default via {}\nroute add default via {}\n",
            v4(0, ROUTER),
            v6(0, ROUTER)
        );
        host.ip(&lines);
        host.write("/etc/hosts", &self.hosts());
        self.nodes.push(Node::new(host, nics));
    }

    /// /etc/hosts: `n1` is the node's first NIC, `n1-1` the second.
    fn hosts(&self) -> String {
        let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for node in 1..=self.layout.nodes {
            for subnet in 0..self.layout.nics.len() {
                let suffix = if subnet == 0 { String::new() } else { format!("-{subnet}") };
                for address in [IpAddr::V4(v4(subnet, node)), v6(subnet, node).into()] {
                    let _infallible = writeln!(hosts, "{address} n{node}{suffix}");
                }
            }
        }
        hosts
    }

    /// Gives `host` a NIC on the bridge of a subnet.
    fn plug(&self, host: &Namespace, nic: &str, subnet: usize) {
        let port = format!("{}.{subnet}", host.name());
        self.switch.ip(&format!(
            "link add {nic} mtu {MTU} netns {} type veth peer name {port} mtu {MTU}\n\
             link set {port} master br{subnet} up\n",
            host.holder(),
        ));
        host.sh(&format!("ethtool -K {nic} {OFF}"));
    }
}

/// Waits until the kernel takes a node's NICs for up: it does so up to seconds later, and only then gives them their
/// link-local addresses and the IPv6 routes to their own.
fn wait_for_links(node: &Node) {
    for nic in node.nics() {
        node.wait("carrier", PATIENCE, || {
            let routes = node.sh(&format!("ip -6 route show table local dev {}", nic.name));
            routes.contains(&format!("local {} ", nic.v6)) && routes.contains("local fe80:")
        });
    }
}

/// The lines that give a NIC its addresses.
fn addresses(nic: &str, subnet: usize, host: u8) -> String {
    format!(
        "addr add {}/24 dev {nic}\naddr add {}/64 dev {nic} nodad\nlink set {nic} up\n",
        v4(subnet, host),
        v6(subnet, host)
    )
}

/// A host's IPv4 address on a subnet.
fn v4(subnet: usize, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, u8::try_from(subnet).unwrap(), host)
}

/// A host's IPv6 address on a subnet.
fn v6(subnet: usize, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0, u16::try_from(subnet).unwrap(), 0, 0, 0, host.into())
}
