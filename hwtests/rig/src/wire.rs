//! Sets the offloads of a veth wire to those that a NIC has, and verifies them.

use crate::error::RigError;
use crate::shell;
use serde_json::Value;
use std::process::Command;

/// The underlay NIC's name on every node.
pub const NIC: &str = "em1";

/// Offloads that must be off, by ethtool's names: with them, 64 KiB frames or unfinished checksums would cross the
/// wire, which no NIC sends. `tx` is the group of all transmit checksums.
const OFF: &[&str] =
    &["tso", "gso", "tx", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation"];
/// The same offloads, as `ethtool -k` reports them.
const REPORTED_OFF: &[&str] = &[
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "tx-checksumming",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
];
const REPORTED_GRO: &str = "generic-receive-offload";

/// Switches the offloads of one end, and checks the result, since a driver may refuse silently. `gro` is on where a
/// node receives, as in a NIC's driver, and off in a switch.
///
/// # Errors
/// ethtool failed, or an offload is not as it should be.
pub fn set_offloads(netns: &str, device: &str, gro: bool) -> Result<(), RigError> {
    let mut set = Command::new("ip");
    set.args(["netns", "exec", netns, "ethtool", "-K", device]);
    for feature in OFF {
        set.args([feature, "off"]);
    }
    shell::read(set.args(["gro", word(gro)]))?;
    let features = offloads(Some(netns), device)?;
    let off = REPORTED_OFF.iter().map(|feature| (*feature, false));
    for (feature, active) in off.chain([(REPORTED_GRO, gro)]) {
        if features[feature]["active"] != Value::Bool(active) {
            return Err(RigError::Offload { device: device.to_owned(), feature, wanted: word(active) });
        }
    }
    Ok(())
}

/// The output of `ethtool -k` for one end of a wire; with None as `netns`, for a device of this machine.
///
/// # Errors
/// ethtool failed, or its output is not JSON.
pub fn offloads(netns: Option<&str>, device: &str) -> Result<Value, RigError> {
    let mut ethtool = netns.map_or_else(
        || Command::new("ethtool"),
        |netns| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns, "ethtool"]);
            command
        },
    );
    let text = shell::read(ethtool.args(["--json", "-k", device]))?;
    let mut all: Vec<Value> =
        serde_json::from_str(&text).map_err(|error| RigError::program("ethtool --json -k", error))?;
    Ok(all.pop().unwrap_or_default())
}

const fn word(active: bool) -> &'static str {
    if active { "on" } else { "off" }
}
