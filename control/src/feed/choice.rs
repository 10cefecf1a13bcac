//! The choice of a NIC's data path, and its reason.

use crate::config::PathChoice;
use crate::network::DataPath;
use std::net::IpAddr;
use uvn_api::dataplane::config::Encapsulation;
use uvn_dataplane::gear::shortcut;
use uvn_dataplane::port::slow_path;
use uvn_dataplane::port::xsk::MAX_MTU;

/// ARPHRD_ETHER and ARPHRD_INFINIBAND (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;
const INFINIBAND: u16 = 32;

/// The data path of a NIC, and the reason that `uvn status` shows. `configured` is the `path` of its `[[underlay]]`
/// table, `arphrd` is the NIC's ARPHRD_* type, `mtu` its MTU in bytes; `shortcut` tells what keeps the shortcut off it
/// ([`obstacle`]), and is called only if the engine cannot take the MTU.
///
/// IPoIB is recognised by its type: a generic XDP program and an AF_XDP socket bind to it without an error, and see no
/// usable frame.
#[must_use]
pub fn choose(
    configured: PathChoice,
    arphrd: u16,
    mtu: u32,
    shortcut: impl FnOnce() -> Option<&'static str>,
) -> (DataPath, String) {
    /// The largest MTU that the shortcut takes, bytes.
    const LONGEST: u32 = slow_path::MAX_MTU as u32;

    match (configured, arphrd) {
        (PathChoice::Engine, _) => (DataPath::Engine, "configured: path = \"engine\"".into()),
        (PathChoice::Shortcut, _) => (DataPath::Engine, "configured: path = \"shortcut\"".into()),
        (PathChoice::Kernel, _) => (DataPath::Kernel, "configured: path = \"kernel\"".into()),
        (PathChoice::Auto, INFINIBAND) => (DataPath::Kernel, "InfiniBand: no AF_XDP on IPoIB".into()),
        (PathChoice::Auto, ETHERNET) if mtu <= MAX_MTU as u32 => (DataPath::Engine, "Ethernet".into()),
        (PathChoice::Auto, ETHERNET) if mtu > LONGEST => {
            (DataPath::Kernel, format!("MTU {mtu} is more than the data plane takes ({LONGEST})"))
        }
        (PathChoice::Auto, ETHERNET) => match shortcut() {
            None => (DataPath::Engine, format!("Ethernet, with MTU {mtu} for the shortcut")),
            Some(obstacle) => {
                let reason = format!("MTU {mtu} is more than the engine takes ({MAX_MTU}), and {obstacle}");
                (DataPath::Kernel, reason)
            }
        },
        (PathChoice::Auto, other) => {
            (DataPath::Kernel, format!("not an Ethernet device (link type {other})"))
        }
    }
}

/// Why the shortcut cannot be used on a NIC; None: no obstacle is known before it is tried. `vtep` is the data plane's
/// VTEP address.
#[must_use]
pub fn obstacle(nic: &str, vtep: Option<IpAddr>, encapsulation: &Encapsulation) -> Option<&'static str> {
    if vtep.is_some_and(|vtep| encapsulation.sums(vtep)) {
        return Some("the shortcut computes no outer UDP checksums, and they are on (`encapsulation`)");
    }
    (!shortcut::is_possible(nic)).then_some("the shortcut needs Linux 6.6 or later")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn chosen(configured: PathChoice, arphrd: u16, mtu: u32, path: DataPath, reason: &str) {
        let (chosen, why) = choose(configured, arphrd, mtu, || Some("no shortcut"));
        assert_eq!(chosen, path);
        assert!(why.contains(reason), "{why}");
    }

    #[test]
    fn auto_is_the_engine_where_it_can() {
        chosen(PathChoice::Auto, 1, 1500, DataPath::Engine, "Ethernet");
        chosen(PathChoice::Auto, 1, MAX_MTU as u32, DataPath::Engine, "Ethernet");
        chosen(
            PathChoice::Auto,
            1,
            9000,
            DataPath::Kernel,
            "MTU 9000 is more than the engine takes (3826), and no",
        );
        chosen(PathChoice::Auto, 32, 2044, DataPath::Kernel, "IPoIB");
        chosen(PathChoice::Auto, 772, 65536, DataPath::Kernel, "link type 772");
    }

    #[test]
    fn longer_packets_are_for_the_in_kernel_gear() {
        for mtu in [MAX_MTU as u32 + 1, 9000, 9216] {
            let (path, why) = choose(PathChoice::Auto, 1, mtu, || None);
            assert_eq!((path, why.contains("shortcut")), (DataPath::Engine, true), "{why}");
        }
        let (path, why) = choose(PathChoice::Auto, 1, 9217, || None);
        assert_eq!((path, why.contains("9216")), (DataPath::Kernel, true), "{why}");
        let sums = |on| Encapsulation { checksum: on, ipv6_checksum: on, ..Encapsulation::default() };
        for vtep in ["10.0.0.1", "fd00::1"] {
            let obstacle = |on| obstacle("lo", Some(vtep.parse().unwrap()), &sums(on)).unwrap_or_default();
            assert!(obstacle(true).contains("checksums") && !obstacle(false).contains("checksums"));
        }
    }

    #[test]
    fn what_is_configured_holds() {
        chosen(PathChoice::Kernel, 1, 1500, DataPath::Kernel, "configured");
        // The engine itself reports that it cannot.
        chosen(PathChoice::Engine, 32, 2044, DataPath::Engine, "configured");
        chosen(PathChoice::Engine, 1, 9000, DataPath::Engine, "configured");
        chosen(PathChoice::Shortcut, 32, 2044, DataPath::Engine, "configured");
    }
}
