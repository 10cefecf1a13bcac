//! What a NIC and its data plane are doing, as values. A peer of a later version may have more of each: `Unknown`.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a NIC's frames are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gear {
    /// The workers' AF_XDP sockets.
    Engine,
    /// VXLAN in tc programs; the engine has what they leave.
    Shortcut,
    /// A gear that this build does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Gear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gear::Engine => "engine",
            Gear::Shortcut => "shortcut",
            Gear::Unknown => "unknown",
        })
    }
}
