//! Whether the NAT pools are free: uvn's rules and packet filter cut off everything else that uses their addresses.

use super::reading::{self, Names};
use super::{Netlink, NetlinkError, named};
use crate::config::Config;
use crate::network::uid_of;
use crate::plan::Way;
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;
use uvn_api::dataplane::config::Cidr;

/// A pool that something else on the node uses, such as Tailscale, which has 100.64.0.0/10.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("nat.{key}: {pool} overlaps {user}, which uvn would cut off; set another pool in [nat]{}", proposal(*free))]
pub struct PoolInUse {
    /// The pool's key in `[nat]`: `ipv4` or `ipv6`.
    pub key: &'static str,
    /// The pool.
    pub pool: Cidr,
    /// What uses it, as a text.
    pub user: String,
    /// A pool of the same family that nothing here uses.
    pub free: Option<Cidr>,
}

fn proposal(free: Option<Cidr>) -> String {
    free.map(|free| format!(": {free} is free here")).unwrap_or_default()
}

impl Netlink {
    /// The first NAT pool of `config` that an address, route or rule of another program overlaps.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn pool_in_use(&self, config: &Config) -> Result<Option<PoolInUse>, NetlinkError> {
        let names: Names = self.socket.links()?.iter().filter_map(named).collect();
        let mut used = Vec::new();
        for message in self.socket.addresses(None)? {
            let Some((index, cidr, _)) = reading::address(&message) else { continue };
            let Some(device) = names.get(&index).filter(|name| uid_of(name).is_none()) else { continue };
            used.push((cidr, format!("the address {cidr} of {device}")));
        }
        let routes = self.socket.routes(RouteProtocol::Unspec, &[])?;
        used.extend(routes.iter().filter_map(|route| routed(route, &names)));
        used.extend(self.socket.rules()?.iter().flat_map(ruled));
        Ok(first_in_use(config, &used))
    }
}

/// The destination of another program's route. None for default routes, and for those that only refuse packets.
fn routed(message: &RouteMessage, names: &Names) -> Option<(Cidr, String)> {
    if message.header.protocol == super::request::PROTOCOL {
        return None;
    }
    let route = reading::route(message, names)?;
    let leads_on = matches!(route.way, Some(Way::Device { .. } | Way::Local { .. }));
    let to = route.destination;
    (leads_on && to.prefix > 0).then(|| (to, format!("the route to {to} of table {}", route.table)))
}

/// The sources and destinations that another program's rule selects.
fn ruled(message: &RuleMessage) -> Vec<(Cidr, String)> {
    if reading::rule(message).is_some() {
        return Vec::new();
    }
    let header = &message.header;
    let cidrs = message.attributes.iter().filter_map(|attribute| match *attribute {
        RuleAttribute::Source(address) => Some(("from", Cidr { address, prefix: header.src_len })),
        RuleAttribute::Destination(address) => Some(("to", Cidr { address, prefix: header.dst_len })),
        _ => None,
    });
    cidrs.map(|(way, cidr)| (cidr, format!("a rule for packets {way} {cidr}"))).collect()
}

fn first_in_use(config: &Config, used: &[(Cidr, String)]) -> Option<PoolInUse> {
    [("ipv4", config.nat.ipv4), ("ipv6", config.nat.ipv6)].into_iter().find_map(|(key, pool)| {
        let (_, user) = used.iter().find(|(cidr, _)| cidr.overlaps(&pool))?;
        let configured = config.underlays.iter().flat_map(|underlay| &underlay.subnets);
        let taken: Vec<&Cidr> =
            configured.chain(&config.peers.range).chain(used.iter().map(|(cidr, _)| cidr)).collect();
        let is_free = |pool: &Cidr| !taken.iter().any(|cidr| cidr.overlaps(pool));
        let free = candidates(pool.address.is_ipv4()).find(is_free);
        Some(PoolInUse { key, pool, user: user.clone(), free })
    })
}

/// Pools to propose: for IPv4 from shared address space (RFC 6598), private use (RFC 1918) and benchmarking (RFC 2544),
/// for IPv6 next to the default one.
fn candidates(ipv4: bool) -> Box<dyn Iterator<Item = Cidr>> {
    let v4 = |a: u8, b: u8| Cidr { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix: 16 };
    if ipv4 {
        let shared = (64..=127).map(move |b| v4(100, b));
        let private = (16..=31).rev().map(move |b| v4(172, b)).chain((0..=255).rev().map(move |b| v4(10, b)));
        return Box::new(shared.chain(private).chain((18..=19).map(move |b| v4(198, b))));
    }
    Box::new((0..=255).map(|subnet| {
        let address = Ipv6Addr::new(0xfd75, 0x766e, 0, subnet, 0, 0, 0, 0);
        Cidr { address: address.into(), prefix: 64 }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_use(nat: &str, used: &[&str]) -> Option<(String, String)> {
        let config: Config = toml::from_str(&format!(
            "[nat]\n{nat}\n[[underlay]]\nsubnets = [\"100.64.0.0/16\"]\n[peers]\nrange = [\"100.65.0.0/16\"]"
        ))
        .unwrap();
        let used: Vec<_> =
            used.iter().map(|text| (text.parse().unwrap(), format!("the address {text}"))).collect();
        let found = first_in_use(&config, &used)?;
        Some((found.to_string(), found.free.unwrap().to_string()))
    }

    #[test]
    fn a_pool_that_something_uses_is_refused_with_a_free_one() {
        let nat = "ipv4 = \"100.96.0.0/11\"";
        let cases: [(&[&str], &str); 3] = [
            (&["100.100.1.1/24"], "100.66.0.0/16"),
            (&["100.0.0.0/8"], "172.31.0.0/16"),
            (&["100.0.0.0/8", "172.16.0.0/12", "10.255.3.4/32"], "10.254.0.0/16"),
        ];
        for (used, free) in cases {
            let (said, proposed) = in_use(nat, used).unwrap();
            assert_eq!(proposed, free);
            let overlaps = format!("nat.ipv4: 100.96.0.0/11 overlaps the address {}, which", used[0]);
            assert!(
                said.starts_with(&overlaps) && said.ends_with(&format!(": {free} is free here")),
                "{said}"
            );
        }
        let (said, free) = in_use(nat, &["fd75:766e::7/128"]).unwrap();
        assert!(said.starts_with("nat.ipv6: fd75:766e::/64 overlaps"), "{said}");
        assert_eq!(free, "fd75:766e:0:1::/64");
    }

    #[test]
    fn a_free_pool_is_taken() {
        assert_eq!(in_use("ipv4 = \"100.96.0.0/11\"", &["10.0.0.1/16", "100.95.0.1/16", "fd76::1/64"]), None);
    }
}
