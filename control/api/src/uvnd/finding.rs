//! Findings: what is wrong on a node, each with an id to alert on and a remedy.
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

            /// The id as it is printed.
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
    /// No user is refused anything: `mode` is "observe".
    Observes = "UVN-OBSERVES";
    /// `uvnd` does not answer.
    Uvnd = "UVN-UVND-SILENT";
    /// The kernel gives a port that the configuration reserves for srun to other sockets, too.
    SrunPorts = "UVN-SRUN-PORTS";
    /// A program of `srun` is not trustworthy, or the kernel does not tell programs apart.
    Srun = "UVN-SRUN-PROGRAM";
    /// A group of the configuration does not exist.
    Group = "UVN-GROUP-UNKNOWN";
    /// The user database does not tell users' groups.
    Database = "UVN-USER-DATABASE";
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
    /// The data plane of a NIC carries other networks than it should.
    DataPlaneNetworks = "UVN-DATA-PLANE-NETWORKS";
    /// The data plane of a NIC accepts frames of other nodes than it should.
    DataPlanePeers = "UVN-DATA-PLANE-PEERS";
    /// Kernel VXLAN knows of no other node.
    Alone = "UVN-VXLAN-ALONE";
    /// No device has a VTEP address.
    VtepAbsent = "UVN-VTEP-ABSENT";
    /// XDP in generic mode does not see some frames of peers.
    Unseen = "UVN-XDP-UNSEEN";
    /// The kernel does not join the frames that the shortcut receives.
    NotJoined = "UVN-GRO-OFF";
    /// The MTU of a NIC, or of the way to a node, is too small for IPv6 in networks.
    Mtu = "UVN-MTU-IPV6";
    /// Another device of the node attracts the NIC's frames.
    ArpRival = "UVN-ARP-RIVAL";
    /// The nodes of `[peers]` cannot be listed, or have no address.
    Peers = "UVN-PEERS-UNRESOLVED";
    /// The network of a user is not as it should be.
    Network = "UVN-NETWORK-FAULT";
    /// Devices, addresses, routes or rules are not as they should be.
    Kernel = "UVN-KERNEL-STATE";
    /// A kernel setting is not as it should be.
    Setting = "UVN-KERNEL-SETTING";
    /// The nftables table is not as it should be.
    Firewall = "UVN-FIREWALL";
    /// A NAT pool overlaps what the node uses for something else.
    Pool = "UVN-NAT-POOL";
    /// The connection tracker has little room left.
    Flows = "UVN-CONNTRACK-FULL";
    /// Users other than root may create files on the BPF file system.
    Pins = "UVN-BPFFS-OPEN";
    /// A socket program is not attached.
    Programs = "UVN-PROGRAMS-DETACHED";
    /// The socket programs hold other networks than they should.
    Bound = "UVN-SOCKETS-BINDING";
    /// A user's socket is not in their network, or cannot be made.
    Sockets = "UVN-SOCKETS-TRIAL";
    /// Sockets from before the programs were attached are in no network.
    Earlier = "UVN-SOCKETS-EARLIER";
    /// Sockets of one user do not reach each other.
    Reach = "UVN-REACH";
    /// Users reach each other's abstract Unix sockets.
    Abstract = "UVN-ABSTRACT-SOCKETS";
    /// It is undecided who may use RDMA devices.
    Rdma = "UVN-RDMA-UNDECIDED";
    /// A protocol family that bypasses uvn is loaded.
    Family = "UVN-FAMILY-LOADED";
    /// A service lets users in without uvn's PAM module.
    PamAbsent = "UVN-PAM-ABSENT";
    /// PAM runs `uvn pam`, which refuses everybody but root.
    PamHelper = "UVN-PAM-HELPER";
    /// A loopback service cannot be reached inside networks.
    Relay = "UVN-RELAY";
    /// One of uvn's own files cannot be written.
    File = "UVN-FILE";
}

/// A problem of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind.
    pub id: Id,
    /// The problem, in words.
    pub what: String,
    /// The remedy, in words.
    pub remedy: String,
    /// True: uvn keeps its promises, and something beside it needs attention. False: a promise is broken.
    pub warning: bool,
    /// The NIC, if the finding is about its data plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<String>,
    /// The VNI, if the finding is about one network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The UID, if the finding is about one user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The remedy for everything that `uvnd` repairs itself.
pub const LOG: &str = "uvnd mends it within half a minute; if it stays, its log tells why";

impl Finding {
    /// A finding about a broken promise.
    pub fn fault(id: Id, what: impl fmt::Display, remedy: impl Into<String>) -> Finding {
        let (what, remedy) = (what.to_string(), remedy.into());
        Finding { id, what, remedy, warning: false, nic: None, vni: None, uid: None }
    }

    /// A finding about something beside uvn that needs attention; promises hold.
    pub fn warning(id: Id, what: impl fmt::Display, remedy: impl Into<String>) -> Finding {
        Finding { warning: true, ..Finding::fault(id, what, remedy) }
    }

    /// The data plane of `nic` does not carry a network; `fault` is the reason.
    #[must_use]
    pub fn of_data_plane(nic: &str, vni: u32, fault: &str) -> Finding {
        let what = format!("network {vni} on {nic}: {fault}");
        Finding { nic: Some(nic.into()), vni: Some(vni), ..Finding::fault(Id::Network, what, LOG) }
    }

    /// A user's network is not as it should be; `fault` is the reason.
    #[must_use]
    pub fn of_user(uid: u32, fault: &str) -> Finding {
        let what = format!("network of user {uid}: {fault}");
        Finding { uid: Some(uid), ..Finding::fault(Id::Network, what, LOG) }
    }
}

/// Names on one line: the first few, and the number of the others.
#[must_use]
pub fn few(names: &[String]) -> String {
    /// The most names on a line.
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
