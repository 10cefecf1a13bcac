//! Which data path a NIC gets, and why.

use crate::network::DataPath;
use uvn_dataplane::xsk::MAX_MTU;

/// ARPHRD_ETHER and ARPHRD_INFINIBAND (include/uapi/linux/if_arp.h).
const ETHERNET: u16 = 1;
const INFINIBAND: u16 = 32;

/// The data path of a NIC, and the reason that `uvn status` shows. `configured` is the `path` of its `[[underlay]]`
/// table, None for `auto`; `arphrd` is the NIC's ARPHRD_* type, `mtu` its MTU in bytes.
///
/// IPoIB is told by its type: a generic XDP program and an AF_XDP socket bind to it without an error, and see no frame
/// of use.
#[must_use]
pub fn choose(configured: Option<DataPath>, arphrd: u16, mtu: u32) -> (DataPath, String) {
    match (configured, arphrd) {
        (Some(DataPath::Engine), _) => (DataPath::Engine, "configured: path = \"engine\"".into()),
        (Some(DataPath::Kernel), _) => (DataPath::Kernel, "configured: path = \"kernel\"".into()),
        (None, INFINIBAND) => (DataPath::Kernel, "InfiniBand: no AF_XDP on IPoIB".into()),
        (None, ETHERNET) if mtu > MAX_MTU as u32 => {
            (DataPath::Kernel, format!("MTU {mtu} is more than the engine takes ({MAX_MTU})"))
        }
        (None, ETHERNET) => (DataPath::Engine, "Ethernet".into()),
        (None, other) => (DataPath::Kernel, format!("not an Ethernet device (link type {other})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn chosen(configured: Option<DataPath>, arphrd: u16, mtu: u32, path: DataPath, reason: &str) {
        let (chosen, why) = choose(configured, arphrd, mtu);
        assert_eq!(chosen, path);
        assert!(why.contains(reason), "{why}");
    }

    #[test]
    fn auto_is_the_engine_where_it_can() {
        chosen(None, 1, 1500, DataPath::Engine, "Ethernet");
        chosen(None, 1, MAX_MTU as u32, DataPath::Engine, "Ethernet");
        chosen(None, 1, 9000, DataPath::Kernel, "MTU 9000");
        chosen(None, 32, 2044, DataPath::Kernel, "IPoIB");
        chosen(None, 772, 65536, DataPath::Kernel, "link type 772");
    }

    #[test]
    fn what_is_configured_holds() {
        chosen(Some(DataPath::Kernel), 1, 1500, DataPath::Kernel, "configured");
        // The engine says itself that it cannot.
        chosen(Some(DataPath::Engine), 32, 2044, DataPath::Engine, "configured");
        chosen(Some(DataPath::Engine), 1, 9000, DataPath::Engine, "configured");
    }
}
