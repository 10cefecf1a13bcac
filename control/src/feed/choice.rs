//! Which data path a NIC gets, and why.

use crate::config::PathChoice;
use crate::network::DataPath;
use uvn_dataplane::xsk::MAX_MTU;

/// ARPHRD_ETHER and ARPHRD_INFINIBAND (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;
const INFINIBAND: u16 = 32;

/// The data path of a NIC, and the reason that `uvn status` shows. `configured` is the `path` of its `[[underlay]]`
/// table, `arphrd` is the NIC's ARPHRD_* type, `mtu` its MTU in bytes.
///
/// IPoIB is told by its type: a generic XDP program and an AF_XDP socket bind to it without an error, and see no frame
/// of use.
#[must_use]
pub fn choose(configured: PathChoice, arphrd: u16, mtu: u32) -> (DataPath, String) {
    match (configured, arphrd) {
        (PathChoice::Engine, _) => (DataPath::Engine, "configured: path = \"engine\"".into()),
        (PathChoice::Shortcut, _) => (DataPath::Engine, "configured: path = \"shortcut\"".into()),
        (PathChoice::Kernel, _) => (DataPath::Kernel, "configured: path = \"kernel\"".into()),
        (PathChoice::Auto, INFINIBAND) => (DataPath::Kernel, "InfiniBand: no AF_XDP on IPoIB".into()),
        (PathChoice::Auto, ETHERNET) if mtu > MAX_MTU as u32 => {
            (DataPath::Kernel, format!("MTU {mtu} is more than the engine takes ({MAX_MTU})"))
        }
        (PathChoice::Auto, ETHERNET) => (DataPath::Engine, "Ethernet".into()),
        (PathChoice::Auto, other) => {
            (DataPath::Kernel, format!("not an Ethernet device (link type {other})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn chosen(configured: PathChoice, arphrd: u16, mtu: u32, path: DataPath, reason: &str) {
        let (chosen, why) = choose(configured, arphrd, mtu);
        assert_eq!(chosen, path);
        assert!(why.contains(reason), "{why}");
    }

    #[test]
    fn auto_is_the_engine_where_it_can() {
        chosen(PathChoice::Auto, 1, 1500, DataPath::Engine, "Ethernet");
        chosen(PathChoice::Auto, 1, MAX_MTU as u32, DataPath::Engine, "Ethernet");
        chosen(PathChoice::Auto, 1, 9000, DataPath::Kernel, "MTU 9000");
        chosen(PathChoice::Auto, 32, 2044, DataPath::Kernel, "IPoIB");
        chosen(PathChoice::Auto, 772, 65536, DataPath::Kernel, "link type 772");
    }

    #[test]
    fn what_is_configured_holds() {
        chosen(PathChoice::Kernel, 1, 1500, DataPath::Kernel, "configured");
        // The engine says itself that it cannot.
        chosen(PathChoice::Engine, 32, 2044, DataPath::Engine, "configured");
        chosen(PathChoice::Engine, 1, 9000, DataPath::Engine, "configured");
        chosen(PathChoice::Shortcut, 32, 2044, DataPath::Engine, "configured");
    }
}
