//! The kernel's VXLAN devices, and the wire's NAPI in threads.

use super::vni;
use crate::error::RigError;
use crate::netns::ip;
use crate::rig::{NIC, Rig, overlay, underlay};
use crate::shell;
use std::collections::BTreeSet;
use std::process::Command;

/// The name of a network's device.
pub fn device(vni: u32) -> String {
    format!("vx{vni}")
}

/// A VXLAN device per network and node. Without outer UDP checksum, as the data plane: the same bytes on the wire.
pub fn add_devices(rig: &Rig, networks: usize) -> Result<(), RigError> {
    for node in 0..rig.nodes() {
        let netns = rig.node(node);
        let own = underlay(node).0.to_string();
        for network in 0..networks {
            let (id, device) = (vni(network).to_string(), device(vni(network)));
            let vxlan =
                ["type", "vxlan", "id", &id, "dev", NIC, "local", &own, "dstport", "4789", "noudpcsum"];
            ip(&[&["-n", &netns, "link", "add", &device], &vxlan[..]].concat())?;
            let (v4, v6) = overlay(node, network);
            ip(&["-n", &netns, "addr", "add", &format!("{v4}/24"), "dev", &device])?;
            ip(&["-n", &netns, "addr", "add", &format!("{v6}/64"), "dev", &device, "nodad"])?;
            for peer in (0..rig.nodes()).filter(|peer| *peer != node) {
                let all = ["fdb", "append", "00:00:00:00:00:00", "dev", &device, "dst"];
                let peer = underlay(peer).0.to_string();
                shell::read(Command::new("bridge").args(["-n", &netns]).args(all).arg(&peer))?;
            }
            ip(&["-n", &netns, "link", "set", &device, "up"])?;
        }
    }
    Ok(())
}

/// Moves the receive processing of each node's end of the wire into a kernel thread, pinned to a core as a real NIC's
/// interrupt is. On a veth it otherwise runs inside the *sender's* transmit call.
pub fn thread_napi(rig: &Rig, core: impl Fn(usize) -> usize) -> Result<(), RigError> {
    for node in 0..rig.nodes() {
        let before = napi_threads();
        let switch = format!("echo 1 > /sys/class/net/{NIC}/threaded");
        shell::read(Command::new("ip").args(["netns", "exec", &rig.node(node), "sh", "-c", &switch]))?;
        let threads: Vec<i32> = napi_threads().difference(&before).copied().collect();
        if threads.is_empty() {
            let why = "no napi/ kernel thread appeared after switching to threaded NAPI";
            return Err(RigError::program(&rig.node(node), why));
        }
        for thread in threads {
            shell::read(Command::new("taskset").args([
                "-p",
                "-c",
                &core(node).to_string(),
                &thread.to_string(),
            ]))?;
            // Other programs on its core must not keep the wire waiting.
            shell::read(Command::new("renice").args(["-n", "-20", "-p", &thread.to_string()]))?;
        }
    }
    Ok(())
}

/// The kernel's NAPI threads of all devices named as the wire.
fn napi_threads() -> BTreeSet<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with(&format!("napi/{NIC}-")))
        })
        .collect()
}
