//! The kernel's VXLAN devices, and the wire's NAPI in threads.

use super::vni;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;
use uvn_rig::error::RigError;
use uvn_rig::rig::{NIC, Rig, mac, overlay, permanent_neighbours, underlay};
use uvn_rig::shell;

/// The name of a network's device.
pub fn device(vni: u32) -> String {
    format!("vx{vni}")
}

/// A VXLAN device per network and node. Without outer UDP checksum, as the data plane: the same bytes on the wire.
/// Neighbours and forwarding entries are permanent, as uvnd makes them: nothing is flooded or learnt.
pub fn add_devices(rig: &Rig, networks: usize) -> Result<(), RigError> {
    for node in 0..rig.nodes() {
        let (mut links, mut forwarding) = (String::new(), String::new());
        let own = underlay(node).0;
        for network in 0..networks {
            let (vni, own_mac) = (vni(network), mac(node));
            let (device, (v4, v6)) = (device(vni), overlay(node, network));
            let _infallible = writeln!(
                links,
                "link add {device} address {own_mac} type vxlan id {vni} dev {NIC} local {own} dstport 4789 noudpcsum nolearning\n\
                 addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up",
            );
            for peer in (0..rig.nodes()).filter(|peer| *peer != node) {
                let (mac, vtep) = (mac(peer), underlay(peer).0);
                links += &permanent_neighbours(overlay(peer, network), peer, &device);
                let _infallible = writeln!(forwarding, "fdb add {mac} dev {device} dst {vtep}");
            }
        }
        rig.batch(node, "ip", &links)?;
        rig.batch(node, "bridge", &forwarding)?;
    }
    Ok(())
}

/// Moves the receive processing of each node's end of the wire into a kernel thread, pinned to a core as a real NIC's
/// interrupt is. On a veth it otherwise runs inside the *sender's* transmit call.
/// `round_robin`: as everything else runs so.
pub fn thread_napi(rig: &Rig, round_robin: bool, core: impl Fn(usize) -> usize) -> Result<(), RigError> {
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
            let (core, thread) = (core(node).to_string(), thread.to_string());
            shell::read(Command::new("taskset").args(["-p", "-c", &core, &thread]))?;
            // Other programs on its core must not keep the wire waiting.
            if round_robin {
                shell::read(Command::new("chrt").args(["--rr", "-p", "1", &thread]))?;
            } else {
                shell::read(Command::new("renice").args(["-n", "-20", "-p", &thread]))?;
            }
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
