//! The nodes that run uvn: from addresses, names, node lists and slurm.conf.

pub mod hostlist;
mod slurm;

pub use hostlist::HostlistError;
pub use slurm::SlurmError;

use crate::config::PeerList;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, ToSocketAddrs};
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_dataplane::config::Cidr;

/// How long names may take to resolve, all of them together.
const PATIENCE: Duration = Duration::from_secs(10);

/// The nodes that run uvn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// Whole ranges.
    pub ranges: Vec<Cidr>,
    /// Single ones, each with the addresses that its name has, ascending; this node may be among them.
    pub nodes: Vec<Vec<IpAddr>>,
    /// Names that have no address, or none in time.
    pub unresolved: Vec<String>,
}

/// Why the nodes cannot be listed.
#[derive(Debug, Error)]
pub enum PeersError {
    /// A node list.
    #[error("peers.nodes: {0}")]
    Hostlist(#[from] HostlistError),
    /// The file of Slurm.
    #[error("peers.slurm: {0}")]
    Slurm(#[from] SlurmError),
}

/// Lists them. Names are looked up in `/etc/hosts` first, then with the system's resolver.
///
/// # Errors
/// slurm.conf cannot be read, or a node list cannot be expanded.
pub fn resolve(list: &PeerList) -> Result<Peers, PeersError> {
    let mut names = Vec::new();
    for expression in &list.nodes {
        names.extend(hostlist::expand(expression)?);
    }
    if let Some(file) = &list.slurm {
        names.extend(slurm::nodes(file)?);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;
    let resolver = |name: &str| {
        if Instant::now() >= deadline {
            return Vec::new();
        }
        let found = (name, 0).to_socket_addrs();
        found.map_or_else(|_| Vec::new(), |addresses| addresses.map(|address| address.ip()).collect())
    };
    let (nodes, unresolved) = addresses(names, &hosts, resolver);
    Ok(Peers { ranges: list.range.clone(), nodes, unresolved })
}

/// The addresses of names, and the names that have none.
fn addresses(
    names: Vec<String>,
    hosts: &str,
    mut resolver: impl FnMut(&str) -> Vec<IpAddr>,
) -> (Vec<Vec<IpAddr>>, Vec<String>) {
    let known = parse_hosts(hosts);
    let mut found = BTreeSet::new();
    let mut unresolved = Vec::new();
    for name in names {
        let addresses = match (name.parse(), known.get(name.to_ascii_lowercase().as_str())) {
            (Ok(address), _) => vec![address],
            (_, Some(addresses)) => addresses.clone(),
            _ => resolver(&name),
        };
        // A node's own name is often a loopback address to itself.
        let mut usable: Vec<IpAddr> =
            addresses.into_iter().filter(|address| !address.is_loopback()).collect();
        usable.sort_unstable();
        usable.dedup();
        if usable.is_empty() {
            unresolved.push(name);
        } else {
            found.insert(usable);
        }
    }
    (found.into_iter().collect(), unresolved)
}

/// hosts(5): an address and its names per line, `#` begins a comment; names are case-insensitive.
fn parse_hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        for name in words {
            hosts.entry(name.to_ascii_lowercase()).or_default().push(address);
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_hosts_first() {
        let hosts = "127.0.1.1 node4\n10.0.0.1 Node1 node1.site # node9\nfd00::1 node1\nwrong node2\n";
        let names = ["node1", "10.0.0.7", "NODE1.SITE", "node2", "node9", "node4"].map(String::from);
        let mut asked = Vec::new();
        let (found, unresolved) = addresses(names.into(), hosts, |name| {
            asked.push(name.to_owned());
            if name == "node2" { vec!["10.0.0.2".parse().unwrap()] } else { Vec::new() }
        });
        let node = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let expected: [Vec<IpAddr>; 4] =
            [node(&["10.0.0.1"]), node(&["10.0.0.1", "fd00::1"]), node(&["10.0.0.2"]), node(&["10.0.0.7"])];
        assert_eq!(found, expected, "NODE1.SITE has an IPv4 address only");
        assert_eq!(unresolved, ["node9", "node4"]);
        assert_eq!(asked, ["node2", "node9"]);
    }
}
