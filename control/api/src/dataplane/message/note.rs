//! Notes: what impairs a data plane that works.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// No device of the node has a VTEP address.
    VtepAbsent {
        /// The address.
        vtep: IpAddr,
    },
    /// Another device answers ARP requests for the NIC (ARP flux).
    Rival {
        /// Its name.
        device: String,
    },
    /// XDP in generic mode does not see what a sender's tc program redirects over a veth wire.
    Unseen {
        /// The number of frames that were dropped.
        frames: u64,
    },
    /// The kernel does not join the frames that the NIC receives, and the shortcut relies on it.
    GroOff,
    /// The kernel does not join VXLAN frames: it has no device for that.
    NotJoined,
    /// The way to a VTEP has too small an MTU for IPv6 in networks.
    NarrowWay {
        /// The VTEP.
        vtep: IpAddr,
        /// The MTU of the way, bytes.
        mtu: usize,
        /// The least MTU for IPv6, bytes.
        least: usize,
    },
}

impl Note {
    /// The text of the note, for this NIC.
    #[must_use]
    pub fn what(&self, nic: &str) -> String {
        match self {
            Note::VtepAbsent { vtep } => {
                format!("no device has the VTEP address {vtep}: peers cannot find this node")
            }
            Note::Rival { device } => format!(
                "{device} has an address in the subnet of {nic}, and answers ARP requests for {nic}: what peers then send \
                 to {device} does not reach the networks"
            ),
            Note::Unseen { frames } => format!(
                "XDP in generic mode on {nic} did not see {frames} frames that a sender's shortcut redirected over a veth \
                 wire: they were dropped (tc_unseen)"
            ),
            Note::GroOff => {
                format!("the kernel does not join what {nic} receives (GRO): the shortcut is slower")
            }
            Note::NotJoined => format!(
                "the kernel does not join the VXLAN frames that {nic} receives, unless another VXLAN device has the port: \
                 the shortcut is slower"
            ),
            Note::NarrowWay { vtep, mtu, least } => format!(
                "the MTU of the way to {vtep}, {mtu}, is too small for IPv6 in the networks, which needs {least}: long \
                 packets of theirs are lost"
            ),
        }
    }

    /// The remedy, for this NIC.
    #[must_use]
    pub fn remedy(&self, nic: &str) -> String {
        match self {
            Note::VtepAbsent { vtep } => {
                format!("`ip address add` {vtep} to {nic}, or set `vtep` to what it has")
            }
            Note::Rival { device } => format!(
                "set net.ipv4.conf.{device}.arp_ignore to 1, and net.ipv4.conf.{device}.arp_announce to 2; or give it \
                 another subnet"
            ),
            Note::Unseen { .. } => {
                "set `path` to \"shortcut\" on this node, or to \"engine\" on the sender's".into()
            }
            Note::GroOff => format!("`ethtool -K {nic} gro on`"),
            Note::NotJoined => "stop what else has the port, and restart the data plane".into(),
            Note::NarrowWay { least, .. } => {
                format!("raise the MTU there, or the route's `mtu`, to {least} or more")
            }
        }
    }
}
