//! What is not as it should be on a node: an id to alert on, what it is, and what helps.
//!
//! `control/FINDINGS.md` lists the ids; a test holds the two together. An id never changes its meaning.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])+ $id:ident = $name:literal;)+) => {
        /// The kind of a [`Finding`]: stable, for alerts.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Id {
            $($(#[$doc])+ #[serde(rename = $name)] $id,)+
            /// A kind that this build does not know.
            #[serde(rename = "UVN-UNKNOWN", other)]
            Unknown,
        }

        impl Id {
            /// Every id that this build knows.
            pub const ALL: &[Id] = &[$(Id::$id),+];

            /// As it is printed.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Id::$id => $name,)+
                    Id::Unknown => "UVN-UNKNOWN",
                }
            }
        }
    };
}

ids! {
    /// Nobody is refused anything: `mode` is "observe".
    Observes = "UVN-OBSERVES";
    /// `uvnd` does not answer.
    Uvnd = "UVN-UVND-SILENT";
    /// A port that the configuration gives srun is the kernel's to give away.
    SrunPorts = "UVN-SRUN-PORTS";
    /// A program of `srun` is not to be trusted, or the kernel does not tell programs.
    Srun = "UVN-SRUN-PROGRAM";
    /// A group of the configuration does not exist.
    Group = "UVN-GROUP-UNKNOWN";
    /// An account that can log in is not policed.
    Unpoliced = "UVN-ACCOUNT-UNPOLICED";
    /// No NIC has an address in the subnets of an underlay.
    NicMissing = "UVN-NIC-MISSING";
    /// A NIC is down.
    NicDown = "UVN-NIC-DOWN";
    /// A NIC was left to kernel VXLAN, or its data plane lacks something.
    DataPath = "UVN-DATA-PATH";
    /// The data plane of a NIC does not run.
    DataPlane = "UVN-DATA-PLANE-DOWN";
    /// The data plane of a NIC carries other networks than it shall.
    DataPlaneNetworks = "UVN-DATA-PLANE-NETWORKS";
    /// The data plane of a NIC takes other nodes' frames than it shall.
    DataPlanePeers = "UVN-DATA-PLANE-PEERS";
    /// Kernel VXLAN knows of no other node.
    Alone = "UVN-VXLAN-ALONE";
    /// No device has a VTEP address.
    VtepAbsent = "UVN-VTEP-ABSENT";
    /// XDP in generic mode does not see some frames of peers.
    Unseen = "UVN-XDP-UNSEEN";
    /// The kernel does not join the frames that the in-kernel gear receives.
    NotJoined = "UVN-GRO-OFF";
    /// The MTU of a NIC, or of the way to a node, is too small for IPv6 inside.
    Mtu = "UVN-MTU-IPV6";
    /// Another device of the node draws the NIC's frames.
    ArpRival = "UVN-ARP-RIVAL";
    /// The nodes of `[peers]` cannot be listed, or have no address.
    Peers = "UVN-PEERS-UNRESOLVED";
    /// The network of a user is not as it shall be.
    Network = "UVN-NETWORK-FAULT";
    /// Devices, addresses, routes or rules are not as they shall be.
    Kernel = "UVN-KERNEL-STATE";
    /// A kernel setting is not as it shall be.
    Setting = "UVN-KERNEL-SETTING";
    /// The nftables table is not as it shall be.
    Firewall = "UVN-FIREWALL";
    /// A NAT pool meets what the node uses for something else.
    Pool = "UVN-NAT-POOL";
    /// The connection tracker has little room.
    Flows = "UVN-CONNTRACK-FULL";
    /// Others than root may make files on the BPF file system.
    Pins = "UVN-BPFFS-OPEN";
    /// A socket program is not attached.
    Programs = "UVN-PROGRAMS-DETACHED";
    /// The socket programs know other networks than they shall.
    Bound = "UVN-SOCKETS-BINDING";
    /// A socket of a user is not in his network, or cannot be made.
    Sockets = "UVN-SOCKETS-TRIAL";
    /// Sockets of a user do not reach each other.
    Reach = "UVN-REACH";
    /// Users reach each other's abstract Unix sockets.
    Abstract = "UVN-ABSTRACT-SOCKETS";
    /// Nobody has decided who may use RDMA devices.
    Rdma = "UVN-RDMA-UNDECIDED";
    /// A protocol family that goes past uvn is loaded.
    Family = "UVN-FAMILY-LOADED";
    /// A service lets users in without PAM's module.
    PamAbsent = "UVN-PAM-ABSENT";
    /// PAM runs a program that is no more.
    PamHelper = "UVN-PAM-HELPER";
    /// A loopback service is not reached inside networks.
    Relay = "UVN-RELAY";
    /// A file of uvn's own cannot be written.
    File = "UVN-FILE";
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind.
    pub id: Id,
    /// What.
    pub what: String,
    /// What helps.
    pub remedy: String,
    /// uvn does what it promises, and something beside it calls for attention.
    pub warning: bool,
    /// The NIC whose data plane it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<String>,
    /// The network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The remedy for what `uvnd` looks after.
pub const LOG: &str = "uvnd mends it within half a minute; if it stays, its log tells why";

impl Finding {
    /// A promise is broken.
    pub fn fault(id: Id, what: impl fmt::Display, remedy: impl Into<String>) -> Finding {
        let (what, remedy) = (what.to_string(), remedy.into());
        Finding { id, what, remedy, warning: false, nic: None, vni: None, uid: None }
    }

    /// Promises hold, and something beside uvn calls for attention.
    pub fn warning(id: Id, what: impl fmt::Display, remedy: impl Into<String>) -> Finding {
        Finding { warning: true, ..Finding::fault(id, what, remedy) }
    }

    /// What the data plane of `nic` does not carry a network for.
    #[must_use]
    pub fn of_data_plane(nic: &str, vni: u32, fault: &str) -> Finding {
        let what = format!("network {vni} on {nic}: {fault}");
        Finding { nic: Some(nic.into()), vni: Some(vni), ..Finding::fault(Id::Network, what, LOG) }
    }

    /// Why a user's network is not as it shall be.
    #[must_use]
    pub fn of_user(uid: u32, fault: &str) -> Finding {
        let what = format!("network of user {uid}: {fault}");
        Finding { uid: Some(uid), ..Finding::fault(Id::Network, what, LOG) }
    }
}

/// Names in a line: the first few, and how many more there are.
#[must_use]
pub fn few(names: &[String]) -> String {
    /// As many as a line has room for.
    const NAMED: usize = 5;

    let (first, more) = names.split_at_checked(NAMED).unwrap_or((names, &[]));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    first.join(", ") + &more
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { id, what, remedy, warning, .. } = self;
        write!(f, "{}{}: {what}; {remedy}", if *warning { "warning: " } else { "" }, id.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_id_is_there_once_and_in_the_list_for_admins() {
        let names: BTreeSet<&str> = Id::ALL.iter().map(|id| id.name()).collect();
        assert_eq!(names.len(), Id::ALL.len());
        let listed: BTreeSet<&str> = include_str!("../../../FINDINGS.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(id, _)| id))
            .collect();
        assert_eq!(listed, names);
    }

    #[test]
    fn the_first_names_stand_for_many() {
        let names: Vec<String> = (1..=7).map(|number| format!("n{number}")).collect();
        assert_eq!(few(&names), "n1, n2, n3, n4, n5 and 2 more");
        assert_eq!(few(&names[..5]), "n1, n2, n3, n4, n5");
    }

    #[test]
    fn a_finding_names_its_id_in_text_and_json() {
        let down = Finding::warning(Id::NicDown, "em1 is down", "`ip link set up` it");
        assert_eq!(down.to_string(), "warning: UVN-NIC-DOWN: em1 is down; `ip link set up` it");
        let json = serde_json::to_value(&down).unwrap_or_default();
        assert_eq!(json["id"], "UVN-NIC-DOWN");
        assert_eq!(serde_json::from_value::<Finding>(json).ok(), Some(down));
    }
}
