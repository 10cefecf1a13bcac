//! The nftables table: NAT, and rules for packets that socket programs cannot see.
//!
//! One table, `inet uvn`, serves all users: rules tell networks apart by the names of their devices and by the number
//! in the marks of their sockets. It is replaced whole, in one transaction; its maps of numbers only grow.
//!
//! Traffic inside networks is not tracked: users' networks have the same addresses, and the tracker would take one
//! user's flow for another's. A packet that leaves a network has the node's own address, as those of all networks do:
//!
//! ```text
//! out  output        tracked in a zone of the network's own: its number. Of that direction only
//!      translate     to the node's address on that device, and to a free port; the flow gets the mark
//! in   (the tracker) finds the flow, for in that direction all are in one zone, and undoes the translation
//!      steer         to the network's NAT address, by which the node routes it to the VRF
//!      forward       to the address that the program has
//! ```
//! So a NAT address exists only between steer and forward: neither programs nor the wire see it.

use crate::config::{Config, Mode};
use crate::demand::{self, GROUP};
use crate::feed::Others;
use crate::limited;
use crate::network::{DataPath, Nic, Node};
use crate::peers::{Peers, without};
use crate::sysctl::Opened;
use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use thiserror::Error;
use uvn_api::dataplane::config::{Cidr, Encapsulation};
use uvn_wire::cgroup::Mark;
use uvn_wire::ethernet::ethertype;

/// The ruleset applied last, and what `nft` listed then: the kernel words rules differently.
const RECORD: &str = "/run/uvn/nftables";
/// How long nft may take: it waits for other transactions, and starts again if the rules change meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// The VNI as a payload expression: offset and length in bits, from the UDP header on.
const VNI: &str = "@th,96,24";

/// Why the table could not be read or changed.
#[derive(Debug, Error)]
pub enum FirewallError {
    /// nft(8) cannot be started, or does not end in time.
    #[error("cannot run nft: {0}{remedy}", remedy = remedy(.0))]
    Run(#[source] io::Error),
    /// nft refused the rules, in its own words.
    #[error("nft: {0}")]
    Refused(String),
    /// The file [`RECORD`] cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound { "; install nftables" } else { "" }
}

/// The table for nft(8), which replaces the one in force. A network may have `limit` flows off-subnet.
#[must_use]
pub fn ruleset(config: &Config, node: &Node, peers: &Peers, opened: &Opened, limit: u32) -> String {
    let kernel: Vec<&Nic> = node.nics.iter().filter(|nic| nic.path == DataPath::Kernel).collect();
    let chains = [
        prerouting(node, &kernel),
        steer(node),
        input(config, node, &kernel, peers),
        output(config, node, &kernel),
        flows(limit),
        forward(node, opened),
        translate(node),
        postrouting(node),
    ];
    // Created first, so that the deletion does not fail.
    let sets = maps(node) + &if kernel.is_empty() { String::new() } else { reported() };
    format!("table inet uvn\ndelete table inet uvn\ntable inet uvn {{\n{sets}{}}}\n", chains.concat())
}

/// The set of flows in the tracker by a network's mark; the maps from a network's number to its zone and its NAT
/// addresses, which [`number`] fills.
fn maps(node: &Node) -> String {
    let mut maps = "\tset flows { typeof meta mark; size 65536; flags dynamic; }\n".to_owned();
    maps += "\tmap zone { typeof meta mark : ct original zone; }\n";
    for (ip, _) in pools(node) {
        let _ = writeln!(maps, "\tmap nat_{ip} {{ typeof ct mark : {ip} daddr; }}");
    }
    maps
}

/// The set of VNIs that were logged within the last [`demand::SILENCE_S`] seconds: 24 bits, 4 bytes into the VXLAN
/// header (RFC 7348 section 5).
fn reported() -> String {
    let silence = demand::SILENCE_S;
    format!("\tset reported {{ typeof {VNI}; size 65536; flags dynamic,timeout; timeout {silence}s; }}\n")
}

/// Matches for inner frames that are meant for this node: unicast, or an ARP request for its address. Other broadcast
/// and multicast goes to every node, and must not make a network on each. Offsets are bits from the UDP header on: the
/// inner destination at 128, the EtherType at 224, an ARP packet's target at 432.
fn meant_for(vtep: IpAddr) -> impl Iterator<Item = String> {
    let unicast = "@th,128,8 & 1 == 0".to_owned();
    let request = match vtep {
        IpAddr::V4(vtep) => {
            Some(format!("@th,224,16 {:#06x} @th,432,32 {:#010x}", ethertype::ARP, vtep.to_bits()))
        }
        IpAddr::V6(_) => None,
    };
    std::iter::once(unicast).chain(request)
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let mut text = format!("\tchain {name} {{\n\t\ttype {hook}; policy accept;\n");
    for rule in rules {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\t\t{rule}");
    }
    text + "\t}\n"
}

/// The kind of the marks of sockets in a network, and of their flows in the tracker.
const USERS: u32 = Mark::bound(0, 0).0;

/// A match: the mark (`of` is `meta` or `ct`) is of a kind.
fn is_kind(of: &str, kind: u32) -> String {
    format!("{of} mark & {:#x} == {kind:#x}", Mark::KIND)
}

/// An anonymous set, `{ a, b }`.
fn set<T: Display>(elements: impl IntoIterator<Item = T>) -> String {
    let elements: Vec<String> = elements.into_iter().map(|element| element.to_string()).collect();
    format!("{{ {} }}", elements.join(", "))
}

/// The NAT pools of the node's families, each with the family's keyword.
fn pools(node: &Node) -> Vec<(&'static str, Cidr)> {
    let mut pools = vec![("ip", node.nat.ipv4)];
    if node.ipv6 {
        pools.push(("ip6", node.nat.ipv6));
    }
    pools
}

/// Drops packets from outside with a NAT address, before replies get theirs: only uvn's own packets have one.
fn prerouting(node: &Node, kernel: &[&Nic]) -> String {
    let mut rules = vec!["iifname \"uvn*\" notrack".to_owned()];
    for (ip, pool) in pools(node) {
        rules.push(format!("iifname != \"uvn*\" {ip} saddr {pool} drop"));
        rules.push(format!("iifname != \"uvn*\" {ip} daddr {pool} drop"));
    }
    rules.extend(
        kernel
            .iter()
            .map(|nic| format!("iifname \"{}\" udp dport {} notrack", nic.name, nic.encapsulation.port)),
    );
    chain("prerouting", "filter hook prerouting priority raw", &rules)
}

/// After the tracker has undone the translation, sends answers to the network that asked: their destination, the node's
/// own address, becomes the network's NAT address until [`forward`].
fn steer(node: &Node) -> String {
    let answers = format!("iifname != \"uvn*\" ct direction reply {}", is_kind("ct", USERS));
    let rules: Vec<String> = pools(node)
        .into_iter()
        .map(|(ip, _)| format!("{answers} {ip} daddr set ct mark & 0xffff map @nat_{ip}"))
        .collect();
    chain("steer", "filter hook prerouting priority dstnat + 50", &rules)
}

fn input(config: &Config, node: &Node, kernel: &[&Nic], peers: &Peers) -> String {
    let mut rules = Vec::new();
    if !config.srun_ports.is_empty() {
        rules.extend(call_back(config, node, peers));
    }
    for nic in kernel {
        // The kernel's VXLAN socket accepts packets from anywhere, also from inside a network.
        let Nic { name, encapsulation: Encapsulation { port, .. }, .. } = nic;
        rules.push(format!("iifname != \"{name}\" udp dport {port} counter drop"));
        let allowed = Others::new(node, nic, peers).allowed;
        let vteps = allowed.vtep.iter().map(|vtep| vtep.address.to_string());
        let vteps: Vec<String> = allowed.range.iter().map(subnet).chain(vteps).collect();
        let Some(vtep) = nic.vteps().first().copied() else { continue };
        let (family, other) = if vtep.is_ipv4() { ("ip", "ipv6") } else { ("ip6", "ipv4") };
        if vteps.is_empty() {
            rules.push(format!("udp dport {port} counter drop"));
        } else {
            rules.push(format!("udp dport {port} meta nfproto {other} counter drop"));
            rules.push(format!("udp dport {port} {family} saddr != {} counter drop", set(vteps)));
            // Packets for a network that is not here are logged, so that uvnd can make it: kernel VXLAN drops them
            // silently.
            rules.extend(meant_for(vtep).map(|meant| {
                format!(
                    "udp dport {port} {meant} {VNI} != @reported limit rate 1000/second burst 1000 packets add @reported \
                     {{ {VNI} }} log group {GROUP}"
                )
            }));
        }
    }
    chain("input", "filter hook input priority filter", &rules)
}

/// Sockets on a `srun` port are in no VRF, and would accept connections from anybody. Slurm's daemons call from this
/// node, the nodes that run uvn, and listed hosts; packets from a router may come from anywhere, so routers are left
/// out.
fn call_back(config: &Config, node: &Node, peers: &Peers) -> Vec<String> {
    let ports = set(config.srun_ports.iter().map(range));
    let begins = format!("tcp dport {ports} tcp flags & (fin | syn | rst | ack) == syn");
    let host = |address: IpAddr| Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } };
    let routers: Vec<Cidr> = node.exits.iter().filter_map(|exit| exit.gateway).map(host).collect();
    let mut known = without(peers.ranges.clone(), &routers);
    known.extend(peers.nodes.iter().flatten().copied().map(host));
    known.extend(&node.hosts);
    let known = without(known, &[]);
    let mut rules = vec![format!("iifname \"uvn*\" {begins} counter drop")];
    for (ip, name, ipv4) in [("ip", "ipv4", true), ("ip6", "ipv6", false)] {
        let known: Vec<String> =
            known.iter().filter(|known| known.address.is_ipv4() == ipv4).map(subnet).collect();
        let stranger = if known.is_empty() {
            format!("meta nfproto {name}")
        } else {
            format!("{ip} saddr != {}", set(known))
        };
        rules.push(format!("iifname != \"lo\" {stranger} {begins} counter drop"));
    }
    rules
}

fn range(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

/// A prefix without host bits, which nft refuses.
fn subnet(cidr: &Cidr) -> String {
    cidr.subnet().to_string()
}

/// Before outgoing packets are tracked. A packet that leaves a network must have an address of the node, whatever its
/// socket asks for, since an answer to another address could leave the node again; and it is never tracked as the
/// node's own.
///
/// A program that can send to a VXLAN port can send into every network, so only root's sockets may. A packet of kernel
/// VXLAN has the UID and the mark of the socket whose packet it carries: a user's own mark, or the mark that packets of
/// the system's services get inside a network. Only a privileged program can set either.
fn output(config: &Config, node: &Node, kernel: &[&Nic]) -> String {
    /// The mark of packets inside a network that are not from a user's socket.
    const SERVICE: u32 = 0x5000_0000;

    let (kind, users) = (Mark::KIND, USERS);
    let mut rules = Vec::new();
    for nic in kernel {
        // VXLAN inside VXLAN.
        rules.push(format!("oifname \"uvn*\" udp dport {} counter drop", nic.encapsulation.port));
        let carried = format!("meta mark & {kind:#x} != {{ {SERVICE:#x}, {users:#x} }}");
        let outer = format!("oifname \"{}\" udp dport {}", nic.name, nic.encapsulation.port);
        rules.push(format!("{outer} meta skuid != 0 {carried} counter drop"));
        rules.push(format!("{outer} notrack accept"));
    }
    let ports: BTreeSet<u16> = node.nics.iter().map(|nic| nic.encapsulation.port).collect();
    if !ports.is_empty() {
        let verdict = if config.mode == Mode::Enforce { "drop" } else { "" };
        rules.push(format!("udp dport {} meta skuid != 0 counter {verdict}", set(ports)));
    }
    if !kernel.is_empty() {
        rules.push(format!(
            "oifname \"uvn*\" meta mark & {kind:#x} != {users:#x} meta mark set meta mark & {:#x} | {SERVICE:#x}",
            !kind
        ));
    }
    // An answer for an address that its network does not have would leave the node again: dropped.
    rules.push(format!("ct direction reply {} counter drop", is_kind("meta", Mark::ANSWER)));
    rules.push("oifname \"uvn*\" notrack accept".into());
    rules.extend(pools(node).into_iter().map(|(ip, pool)| format!("{ip} daddr {pool} drop")));
    let leaves = is_kind("meta", users);
    rules.push(format!("{leaves} fib saddr type != local counter drop"));
    rules.push(format!("{leaves} ct original zone set meta mark & 0xffff map @zone accept"));
    rules.push(format!("{leaves} counter drop"));
    chain("output", "filter hook output priority raw", &rules)
}

/// After outgoing packets are tracked: limits each network's flows, since the tracker's table is the whole node's.
fn flows(limit: u32) -> String {
    let begins = format!("oifname != \"uvn*\" {} ct state new", is_kind("meta", USERS));
    let rule = format!("{begins} add @flows {{ meta mark ct count over {limit} }} counter drop");
    chain("flows", "filter hook output priority filter", &[rule])
}

/// Only answers to a network's own packets are forwarded into it, to the address that those were sent from. They get a
/// mark of the network: the socket programs drop them in any other network, as when the NAT address belongs to another
/// network by then.
fn forward(node: &Node, opened: &Opened) -> String {
    let mut rules = vec!["iifname \"uvn*\" drop".to_owned()];
    let mark = format!("meta mark set ct mark & {:#x} | {:#x}", !Mark::KIND, Mark::ANSWER);
    rules.extend(pools(node).into_iter().map(|(ip, pool)| {
        format!(
            "oifname \"uvn*\" {ip} daddr {pool} ct state established,related {mark} \
             {ip} daddr set ct original {ip} saddr accept"
        )
    }));
    rules.push("oifname \"uvn*\" drop".into());
    // Answers to a network that is gone.
    rules.extend(pools(node).into_iter().map(|(ip, pool)| format!("{ip} daddr {pool} drop")));
    if !opened.ipv4.is_empty() {
        let devices = set(opened.ipv4.iter().map(|device| format!("\"{device}\"")));
        rules.push(format!("iifname {devices} meta nfproto ipv4 drop"));
    }
    if opened.ipv6 {
        rules.push("meta nfproto ipv6 drop".into());
    }
    chain("forward", "filter hook forward priority filter", &rules)
}

fn translate(node: &Node) -> String {
    let mut rules = Vec::new();
    let leaves = is_kind("meta", USERS);
    for (ip, pool) in pools(node) {
        let ipv4 = pool.address.is_ipv4();
        let of_family = |address: &IpAddr| address.is_ipv4() == ipv4;
        for nic in &node.nics {
            // Listed hosts see the node's address in their subnet.
            let subnets: Vec<String> =
                nic.subnets.iter().filter(|subnet| of_family(&subnet.address)).map(subnet).collect();
            let address = nic.addresses.iter().map(|cidr| cidr.address).find(of_family);
            if let (Some(address), false) = (address, subnets.is_empty()) {
                rules.push(format!(
                    "oifname \"{}\" {leaves} {ip} daddr {} ct mark set meta mark snat {ip} to {address}",
                    nic.name,
                    set(subnets)
                ));
            }
        }
        for exit in node.exits.iter().filter(|exit| of_family(&exit.address)) {
            rules.push(format!(
                "oifname \"{}\" {leaves} meta nfproto {} ct mark set meta mark snat {ip} to {}",
                exit.device,
                if ipv4 { "ipv4" } else { "ipv6" },
                exit.address
            ));
        }
    }
    chain("translate", "nat hook postrouting priority srcnat", &rules)
}

/// After translation: drops packets that still have a NAT address.
fn postrouting(node: &Node) -> String {
    let rules: Vec<String> = pools(node)
        .into_iter()
        .map(|(ip, pool)| format!("oifname != \"uvn*\" {ip} saddr {pool} drop"))
        .collect();
    chain("postrouting", "filter hook postrouting priority srcnat + 50", &rules)
}

/// Replaces the table.
///
/// # Errors
/// nft cannot run, or refuses; the table then is as it was before.
pub fn apply(ruleset: &str) -> Result<(), FirewallError> {
    nft(&["-f", "-"], ruleset)?;
    let record = format!("{ruleset}{}", list()?);
    let path = Path::new(RECORD);
    let save = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, record)
    };
    save().map_err(|source| FirewallError::Record { path: path.into(), source })
}

/// Adds the networks' numbers below `end` to the table's maps; existing entries stay as they are.
///
/// # Errors
/// nft cannot run or refuses, or the table does not exist.
pub fn number(node: &Node, end: u32) -> Result<(), FirewallError> {
    let add = |map: &str, value: &dyn Fn(u32) -> String| {
        let elements = set((1..end).map(|number| format!("{number} : {}", value(number))));
        format!("add element inet uvn {map} {elements}\n")
    };
    let mut text = add("zone", &|number| number.to_string());
    for (family, (ip, _)) in pools(node).into_iter().enumerate() {
        let address = |number: u32| node.nat.addresses(number.saturating_sub(1))[family].to_string();
        text += &add(&format!("nat_{ip}"), &address);
    }
    nft(&["-f", "-"], &text).map(drop)
}

/// Whether this ruleset was applied last, and the table is unchanged since.
///
/// # Errors
/// nft cannot run, or [`RECORD`] cannot be read.
pub fn is_applied(ruleset: &str) -> Result<bool, FirewallError> {
    let record = match fs::read_to_string(RECORD) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(FirewallError::Record { path: RECORD.into(), source }),
    };
    let Some(listed) = record.strip_prefix(ruleset) else { return Ok(false) };
    match list() {
        Ok(now) => Ok(now == listed),
        // The table does not exist.
        Err(FirewallError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the table, if it exists.
///
/// # Errors
/// nft cannot run, or refuses.
pub fn remove() -> Result<(), FirewallError> {
    nft(&["-f", "-"], "table inet uvn\ndelete table inet uvn\n")?;
    match fs::remove_file(RECORD) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FirewallError::Record { path: RECORD.into(), source })
        }
        _ => Ok(()),
    }
}

/// The table without counters, and without the elements of sets that packets fill.
fn list() -> Result<String, FirewallError> {
    nft(&["-s", "-t", "list", "table", "inet", "uvn"], "")
}

fn nft(arguments: &[&str], input: &str) -> Result<String, FirewallError> {
    let output = limited::output(Command::new("nft").args(arguments), input.as_bytes(), PATIENCE)
        .map_err(FirewallError::Run)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(FirewallError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests;
