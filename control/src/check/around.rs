//! What is around uvn on this node and takes something from what it promises.

use super::Finding;
use crate::config::Config;
use std::fs;
use std::ops::RangeInclusive;

/// Families that carry data from one user to another outside of every network, as /proc/net/protocols names them; kept
/// out by tools/modprobe.d/uvn.conf.
const FAMILIES: [&str; 11] =
    ["SMC", "RDS", "TIPC", "PPPOE", "PPTP", "PPPOL2TP", "AF_VSOCK", "DDP", "PHONET", "KCM", "QIPCRTR"];

/// What an administrator should know of.
pub(super) fn warnings(config: &Config) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut warnings = Vec::new();
    for family in loaded(&read("/proc/net/protocols")) {
        warnings.push(Finding {
            what: format!("the kernel has loaded {family}, by which users reach each other past uvn"),
            remedy: "unless something needs it: install modprobe.d/uvn.conf, and unload the module or restart the node"
                .into(),
            warning: true,
        });
    }
    let ports = |name: &str| read(&format!("/proc/sys/net/ipv4/ip_local_{name}"));
    if let Some(port) = given_away(&config.srun_ports, &ports("port_range"), &ports("reserved_ports")) {
        warnings.push(Finding {
            what: format!(
                "port {port} of `srun_ports` is one that the kernel gives to outgoing connections: srun may not get it"
            ),
            remedy: "list them in net.ipv4.ip_local_reserved_ports, or keep them out of net.ipv4.ip_local_port_range"
                .into(),
            warning: true,
        });
    }
    warnings
}

/// Those of [`FAMILIES`] that the kernel has, by its list.
fn loaded(protocols: &str) -> Vec<&'static str> {
    let named = |family: &&str| protocols.lines().any(|line| line.split_whitespace().next() == Some(*family));
    FAMILIES.into_iter().filter(named).collect()
}

/// The first of `ports` that the kernel chooses from for a socket without one (ip-sysctl of the kernel's documentation).
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
