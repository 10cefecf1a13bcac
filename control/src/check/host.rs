//! Surroundings of uvn on this node that impair what it promises.

use crate::config::Config;
use crate::netlink::Rival;
use crate::network::{Nic, Node};
use crate::rdma;
use crate::sysctl;
use std::fs;
use std::ops::RangeInclusive;
use uvn_api::dataplane::message::Note;
use uvn_api::uvnd::finding::{Finding, Id};
use uvn_dataplane::underlay::rivals::answers_for_others;
use uvn_engine::outer::{endpoint_mtu, overhead};
use uvn_wire::ipv6::MIN_MTU;

/// Protocol families that carry data from one user to another outside of every network, as /proc/net/protocols names
/// them; tools/modprobe.d/uvn.conf keeps them out.
const FAMILIES: [&str; 11] =
    ["SMC", "RDS", "TIPC", "PPPOE", "PPTP", "PPPOL2TP", "AF_VSOCK", "DDP", "PHONET", "KCM", "QIPCRTR"];

/// Warnings that an administrator should know of.
pub(super) fn warnings(config: &Config, node: &Node, rivals: &[Rival]) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut warnings: Vec<Finding> = node.nics.iter().filter_map(without_ipv6).collect();
    warnings.extend(rivals.iter().filter(|rival| answers_for_others(&rival.device)).map(attracts));
    warnings.extend(sysctl::flows().and_then(|(count, limit)| crowded(count, limit)));
    for family in loaded(&read("/proc/net/protocols")) {
        warnings.push(Finding::warning(
            Id::Family,
            format!("the kernel has loaded {family}, by which users reach each other past uvn"),
            "unless something needs it: install modprobe.d/uvn.conf, and unload the module or restart the node",
        ));
    }
    warnings.extend(rdma::undecided(config));
    let ports = |name: &str| read(&format!("/proc/sys/net/ipv4/ip_local_{name}"));
    if let Some(port) = given_away(&config.srun_ports, &ports("port_range"), &ports("reserved_ports")) {
        warnings.push(Finding::warning(
            Id::SrunPorts,
            format!(
                "port {port} of `srun_ports` is one that the kernel gives to outgoing connections: srun may not get it"
            ),
            "list them in net.ipv4.ip_local_reserved_ports, or keep them out of net.ipv4.ip_local_port_range",
        ));
    }
    warnings
}

/// Warns of an underlay whose MTU is too small for IPv6 in the networks.
fn without_ipv6(nic: &Nic) -> Option<Finding> {
    let vtep = *nic.vteps().first()?;
    let (mtu, has_ipv6) = (nic.mtu as usize, nic.addresses.iter().any(|cidr| cidr.address.is_ipv6()));
    (has_ipv6 && endpoint_mtu(mtu, vtep) < MIN_MTU).then(|| {
        Finding::warning(
            Id::Mtu,
            format!(
                "the MTU of {}, {mtu}, is too small for IPv6 in users' networks: they have none there",
                nic.name
            ),
            format!("raise it to {} or more", MIN_MTU + overhead(vtep)),
        )
    })
}

fn attracts(Rival { device, nic }: &Rival) -> Finding {
    noted(nic, &Note::Rival { device: device.clone() })
}

/// A data plane's note, as a finding.
pub(super) fn noted(nic: &str, note: &Note) -> Finding {
    let id = match note {
        Note::VtepAbsent { .. } => Id::VtepAbsent,
        Note::Rival { .. } => Id::ArpRival,
        Note::Unseen { .. } => Id::Unseen,
        Note::GroOff | Note::NotJoined => Id::NotJoined,
        Note::NarrowWay { .. } => Id::Mtu,
    };
    Finding::warning(id, note.what(nic), note.remedy(nic))
}

/// Warns that the connection tracker's table has little room left, for all networks and the node itself: a flow that
/// finds none is dropped.
fn crowded(count: u32, limit: u32) -> Option<Finding> {
    let what = if u64::from(count) * 5 > u64::from(limit) * 4 {
        format!(
            "{count} of {limit} flows are in the connection tracker: once it is full, nothing new reaches the node"
        )
    } else if limit / 16 < sysctl::FLOWS {
        format!("net.netfilter.nf_conntrack_max is {limit}: few users' flows fill the connection tracker")
    } else {
        return None;
    };
    let remedy =
        format!("raise net.netfilter.nf_conntrack_max, to {} or more", limit.max(sysctl::FLOWS * 8) * 2);
    Some(Finding::warning(Id::Flows, what, remedy))
}

/// The families of [`FAMILIES`] that the kernel has, by its list.
fn loaded(protocols: &str) -> Vec<&'static str> {
    let named = |family: &&str| protocols.lines().any(|line| line.split_whitespace().next() == Some(*family));
    FAMILIES.into_iter().filter(named).collect()
}

/// The first of `ports` that the kernel may choose for a socket without one (ip-sysctl of the kernel's documentation).
fn given_away(ports: &[RangeInclusive<u16>], range: &str, reserved: &str) -> Option<u16> {
    let mut bounds = range.split_whitespace().map_while(|bound| bound.parse::<u16>().ok());
    let range = bounds.next()?..=bounds.next()?;
    let reserved: Vec<RangeInclusive<u16>> = reserved
        .trim()
        .split(',')
        .filter_map(|ports| {
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect();
    let free = |port: &u16| range.contains(port) && !reserved.iter().any(|ports| ports.contains(port));
    ports.iter().cloned().flatten().find(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_families_are_named() {
        let protocols =
            "protocol  size sockets\nAF_VSOCK  1184     0\nTIPC       900     1\nTCPv6     2368     4\n";
        assert_eq!(loaded(protocols), ["TIPC", "AF_VSOCK"]);
        assert_eq!(loaded("TCP 2208 1\n"), [""; 0]);
    }

    #[test]
    fn a_tracker_without_room_is_found() {
        assert_eq!(crowded(50_000, 65_536), None);
        let found = crowded(53_000, 65_536).unwrap();
        assert!(found.what.starts_with("53000 of 65536 flows") && found.remedy.contains("131072"), "{found}");
        let found = crowded(0, 10_000).unwrap();
        assert!(found.what.contains("is 10000") && found.remedy.contains("20000"), "{found}");
    }

    #[test]
    fn a_device_that_answers_for_the_nic_is_named() {
        let said = attracts(&Rival { device: "em2".into(), nic: "em1".into() }).to_string();
        assert!(
            said.starts_with("warning: UVN-ARP-RIVAL: em2 has an address in the subnet of em1"),
            "{said}"
        );
        assert!(said.contains("net.ipv4.conf.em2.arp_ignore"), "{said}");
    }

    #[test]
    fn ports_that_the_kernel_chooses_from_are_found() {
        let linux = "32768\t60999\n";
        assert_eq!(given_away(&[60_000..=61_000], linux, "\n"), Some(60_000));
        assert_eq!(given_away(&[61_000..=62_000, 30_000..=32_768], linux, "\n"), Some(32_768));
        assert_eq!(given_away(&[61_000..=62_000], linux, "\n"), None);
        assert_eq!(given_away(&[60_000..=61_000], linux, "8080,60000-60500\n"), Some(60_501));
        assert_eq!(given_away(&[60_000..=61_000], linux, "60000-61000\n"), None);
        assert_eq!(given_away(&[], linux, "\n"), None);
    }
}
