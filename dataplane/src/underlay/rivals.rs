//! Devices beside the NIC that may attract frames meant for it (ARP flux).

use crate::port::link::netlink_request;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;

/// The names of the devices that are up and have an IPv4 address on the link of a VTEP, without the NIC with index
/// `nic`. IPv6 has no such answers (RFC 4861 section 7.2.3), and a device in a VRF does not answer for one outside of
/// it.
///
/// # Errors
/// The kernel's refusal.
pub fn on_link(nic: u32, vteps: &[IpAddr]) -> io::Result<Vec<String>> {
    let addresses = netlink_request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
    let on_link: HashSet<u32> = addresses
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index != nic => {
                is_on_link(message, vteps).then_some(message.header.index)
            }
            _ => None,
        })
        .collect();
    if on_link.is_empty() {
        return Ok(Vec::new());
    }
    let links = netlink_request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
    let rivals = links.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) if on_link.contains(&link.header.index) => name_of_free(link),
        _ => None,
    });
    Ok(rivals.collect())
}

fn is_on_link(message: &AddressMessage, vteps: &[IpAddr]) -> bool {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(u32::from(*address)),
        _ => None,
    });
    let host = u32::MAX.checked_shr(message.header.prefix_len.into()).unwrap_or(0);
    local.is_some_and(|local| {
        vteps.iter().any(|vtep| match vtep {
            IpAddr::V4(vtep) => (u32::from(*vtep) ^ local) & !host == 0,
            IpAddr::V6(_) => false,
        })
    })
}

/// The name of a device that is up, and neither in a VRF nor a port of another device.
fn name_of_free(link: &LinkMessage) -> Option<String> {
    let attributes = &link.attributes;
    let is_bound = attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    let name = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.filter(|_| link.header.flags.contains(LinkFlags::Up) && !is_bound)
}

/// Whether the node answers by a device for the addresses of its other devices (arp_ignore and arp_filter in ip-sysctl
/// of the kernel's documentation). The larger of the device's value and that of `all` holds.
#[must_use]
pub fn answers_for_others(device: &str) -> bool {
    answers(device, |device, name| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/{name}")).unwrap_or_default()
    })
}

fn answers(device: &str, setting: impl Fn(&str, &str) -> String) -> bool {
    let is_set = |name: &str| ["all", device].iter().any(|of| !matches!(setting(of, name).trim(), "" | "0"));
    !is_set("arp_ignore") && !is_set("arp_filter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_device_that_answers_for_others_is_found() {
        let with = |settings: &'static [(&str, &str, &str)]| {
            answers("em2", |device, name| {
                let value = settings.iter().find(|(of, setting, _)| (*of, *setting) == (device, name));
                value.map_or("0\n", |(_, _, value)| value).into()
            })
        };
        assert!(with(&[]));
        assert!(with(&[("em1", "arp_ignore", "1\n")]), "another device's");
        for setting in ["arp_ignore", "arp_filter"] {
            for device in ["all", "em2"] {
                let settings: &'static _ = Box::leak(Box::new([(device, setting, "1\n")]));
                assert!(!with(settings), "{device} {setting}");
            }
        }
    }

    #[test]
    fn an_address_on_the_link_of_a_vtep_is_found() {
        let message = |address: [u8; 4], prefix_len| {
            let mut message = AddressMessage::default();
            message.header.prefix_len = prefix_len;
            message.attributes.push(AddressAttribute::Local(Ipv4Addr::from(address).into()));
            message
        };
        let vteps = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert!(is_on_link(&message([10, 0, 0, 9], 24), &vteps));
        assert!(is_on_link(&message([10, 0, 0, 1], 32), &vteps), "the VTEP itself");
        assert!(is_on_link(&message([192, 168, 0, 1], 0), &vteps));
        assert!(!is_on_link(&message([10, 0, 1, 9], 24), &vteps));
        assert!(!is_on_link(&message([10, 0, 0, 9], 24), &vteps[1..]));
    }
}
