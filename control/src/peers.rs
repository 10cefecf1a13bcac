//! The nodes that run uvn: from addresses, names, node lists and slurm.conf.

mod directory;
pub mod hostlist;
mod slurm;

pub use directory::{AGAIN, Directory};
pub use hostlist::HostlistError;
pub use slurm::SlurmError;

use serde::Deserialize;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use thiserror::Error;
use uvn_api::dataplane::config::Cidr;
use uvn_api::uvnd::finding::few;

/// The file that keeps the addresses of nodes' names over a restart.
pub const KNOWN: &str = "/run/uvn/peers.json";

/// `[peers]` of the configuration: at least one of the three is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerList {
    /// Ranges of VTEP addresses.
    pub range: Vec<Cidr>,
    /// Addresses, host names, or many of either: `node[01-16,20]`.
    pub nodes: Vec<String>,
    /// A slurm.conf, for its nodes.
    pub slurm: Option<PathBuf>,
}

impl PeerList {
    /// Whether it lists nodes, one by one: what kernel VXLAN can be told of.
    #[must_use]
    pub fn lists_nodes(&self) -> bool {
        !self.nodes.is_empty() || self.slurm.is_some()
    }
}

/// The nodes that run uvn, by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// Ranges of VTEP addresses.
    pub ranges: Vec<Cidr>,
    /// Single nodes, each with the addresses of its name, ascending; this node may be among them.
    pub nodes: Vec<Vec<IpAddr>>,
    /// Names without an answer at the last look-up. A name keeps the addresses that it had before, if any.
    pub unresolved: Vec<String>,
}

impl Peers {
    /// A text for the administrator about unresolved names; None: every name has an answer.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        (!self.unresolved.is_empty()).then(|| {
            let names = few(&self.unresolved);
            format!(
                "peers: cannot resolve {names}; a name keeps its last address, and without one it is no peer"
            )
        })
    }
}

/// Why the nodes cannot be listed.
#[derive(Debug, Error)]
pub enum PeersError {
    /// A node list cannot be expanded.
    #[error("peers.nodes: {0}")]
    Hostlist(#[from] HostlistError),
    /// slurm.conf cannot be read.
    #[error("peers.slurm: {0}")]
    Slurm(#[from] SlurmError),
}

/// The listed names and addresses, each once, in order.
///
/// # Errors
/// slurm.conf cannot be read, or a node list cannot be expanded.
pub fn names(list: &PeerList) -> Result<Vec<String>, PeersError> {
    let mut names = Vec::new();
    for expression in &list.nodes {
        names.extend(hostlist::expand(expression)?);
    }
    if let Some(file) = &list.slurm {
        names.extend(slurm::nodes(file)?);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// The UID that slurmctld runs as, by this node's own password file: the `SlurmUser` of slurm.conf, else the user
/// slurm. 0: root.
#[must_use]
pub fn slurm_user(list: &PeerList) -> u32 {
    let user = list.slurm.as_deref().and_then(slurm::user).unwrap_or_else(|| "slurm".into());
    // Only the local file: uvnd does not wait for other machines.
    uid_in(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), &user).unwrap_or(0)
}

/// A user's UID, by name or number (passwd(5)).
fn uid_in(passwd: &str, user: &str) -> Option<u32> {
    let uid = |line: &str| line.strip_prefix(user)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok();
    user.parse().ok().or_else(|| passwd.lines().find_map(uid))
}

/// The ranges without the strangers, as prefixes that do not overlap.
#[must_use]
pub fn without(ranges: Vec<Cidr>, strangers: &[Cidr]) -> Vec<Cidr> {
    let mut left: Vec<Cidr> = ranges.into_iter().map(Cidr::subnet).collect();
    // What lies in another one stands behind it.
    left.sort_unstable();
    let mut kept: Vec<Cidr> = Vec::new();
    for range in left {
        if !kept.last().is_some_and(|wider| wider.contains(range.address)) {
            kept.push(range);
        }
    }
    for stranger in strangers {
        kept = kept.into_iter().flat_map(|range| cut(range, *stranger)).collect();
    }
    kept
}

/// A prefix without another one: halves it again and again, and keeps the halves outside of the other one.
fn cut(range: Cidr, stranger: Cidr) -> Vec<Cidr> {
    let mut left = Vec::new();
    let mut rest = range;
    while rest.prefix < stranger.prefix && rest.contains(stranger.address) {
        let halves = halves(rest);
        let holds = usize::from(halves[1].contains(stranger.address));
        left.push(halves[1 - holds]);
        rest = halves[holds];
    }
    if !stranger.contains(rest.address) {
        left.push(rest);
    }
    left
}

fn halves(Cidr { address, prefix }: Cidr) -> [Cidr; 2] {
    let upper = match address {
        IpAddr::V4(lower) => IpAddr::from((lower.to_bits() | 1 << (31 - prefix)).to_be_bytes()),
        IpAddr::V6(lower) => IpAddr::from((lower.to_bits() | 1 << (127 - prefix)).to_be_bytes()),
    };
    [address, upper].map(|address| Cidr { address, prefix: prefix + 1 })
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

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn users_are_found_by_name_or_number() {
        let passwd = "root:x:0:0::/:/bin/sh\nslurmdbd:x:63:63::/:\nslurm:x:64:64::/:/bin/false\n";
        assert_eq!(uid_in(passwd, "slurm"), Some(64));
        assert_eq!(uid_in(passwd, "900"), Some(900));
        assert_eq!((uid_in(passwd, "slur"), uid_in("", "slurm")), (None, None));
    }

    #[test]
    fn ranges_are_cut_around_strangers() {
        let left = |ranges: &[&str], strangers: &[&str]| without(cidrs(ranges), &cidrs(strangers));
        assert_eq!(left(&["10.0.0.0/16", "10.0.4.0/24"], &[]), cidrs(&["10.0.0.0/16"]));
        assert_eq!(left(&["10.0.0.0/30"], &["10.0.0.2/32"]), cidrs(&["10.0.0.0/31", "10.0.0.3/32"]));
        assert_eq!(left(&["10.0.0.0/24"], &["10.0.0.0/16"]), []);
        assert_eq!(left(&["10.0.0.9/32"], &["10.0.0.9/32"]), []);
        assert_eq!(left(&["10.0.0.0/24"], &["10.1.0.0/16", "fd00::1/128"]), cidrs(&["10.0.0.0/24"]));
        assert_eq!(left(&["fd00::/127"], &["fd00::1/128"]), cidrs(&["fd00::/128"]));
        let all = left(&["0.0.0.0/1"], &["127.0.0.1/32"]);
        assert_eq!(all.len(), 31);
    }
}
