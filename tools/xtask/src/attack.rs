//! A hostile machine on the underlay: forged VXLAN packets to one node, none of which may reach a user.

use crate::probe::attack::Forgery;
use crate::rig::Rig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use uvn_rig::dataplane::Dataplane;
use uvn_rig::error::RigError;
use uvn_rig::process::Process;
use uvn_rig::rig::{NIC, USERS};
use uvn_rig::shell;

/// Packets of each forgery.
const COUNT: u64 = 100;
/// How long a report of a packet that must not arrive is waited for.
const SETTLE: Duration = Duration::from_millis(250);
/// How long packets that must arrive or be counted are waited for: a busy machine delays them.
const LATE: Duration = Duration::from_secs(20);

/// Sends every forgery from node 2's own NIC to node 1, and prints what was counted. Returns whether each packet was
/// counted for the right reason and none arrived; a genuine packet that is sent in the same way must arrive. Kernel
/// VXLAN gets the same packets, for comparison.
///
/// # Errors
/// A probe could not be run, or the data plane does not answer.
pub fn run(uvn: &Rig, kernel: &Rig) -> Result<bool, RigError> {
    println!("  {:<32}{:>6}{:>14}{:>16}  uvn counts it as", "", "sent", "reach a user", "kernel VXLAN");
    let mut good = true;
    for forgery in [&[Forgery::Genuine], &Forgery::FORGED[..]].concat() {
        let (arrived, counted) = send(uvn, forgery)?;
        let (arrived_by_kernel, _) = send(kernel, forgery)?;
        good &= print(forgery, arrived, arrived_by_kernel, &counted);
    }
    Ok(good)
}

/// The counters of node 1; none if the kernel carries the packets.
fn counters(rig: &Rig) -> Result<BTreeMap<String, u64>, RigError> {
    rig.dataplanes.first().map_or(Ok(BTreeMap::new()), Dataplane::counters)
}

/// Sends [`COUNT`] packets, and returns how many reached any user of node 1 and what was counted there.
fn send(rig: &Rig, forgery: Forgery) -> Result<(u64, BTreeMap<String, u64>), RigError> {
    let before = counters(rig)?;
    let attacker = rig.node_place(1);
    let device = rig.device(USERS[0]);
    let macs = [
        mac(&rig.node(0), NIC)?,
        mac(&rig.user(0, USERS[0]), &device)?,
        mac(&rig.user(1, USERS[0]), &device)?,
    ]
    .join(",");
    let word = format!("uvn-attack-{}", forgery.argument());
    let watchers = watch(rig, &word)?;
    let arguments = ["attack", &forgery.argument(), &COUNT.to_string(), &word, &macs];
    Process::start("probe attack", attacker.probe(&arguments))?.finish(LATE)?;
    let (end, mut arrived) = (Instant::now() + LATE, 0);
    loop {
        let counted = increases(&before, &counters(rig)?);
        // What comes of the packets that have been decided on by now is reported meanwhile.
        thread::sleep(SETTLE);
        let lines = watchers.iter().flat_map(Process::new_lines);
        arrived += lines.filter(|line| line.starts_with("arrived")).count() as u64;
        let is_over = match forgery {
            Forgery::Genuine => arrived >= COUNT,
            // Kernel VXLAN does not count.
            _ => rig.dataplanes.is_empty() || for_the_reason(forgery, &counted) >= COUNT,
        };
        if is_over || Instant::now() >= end {
            return Ok((arrived, counted));
        }
    }
}

/// The number of packets that were counted for the right reason.
fn for_the_reason(forgery: Forgery, counted: &BTreeMap<String, u64>) -> u64 {
    forgery.counters().iter().filter_map(|name| counted.get(*name)).sum()
}

/// Prints one line. False: it is not as expected.
fn print(forgery: Forgery, arrived: u64, arrived_by_kernel: u64, counted: &BTreeMap<String, u64>) -> bool {
    let right = match forgery {
        Forgery::Genuine => arrived == COUNT,
        _ => arrived == 0 && for_the_reason(forgery, counted) == COUNT,
    };
    let counted: Vec<String> = counted.iter().map(|(name, increase)| format!("{name} +{increase}")).collect();
    let counted = if counted.is_empty() { "no drop".to_owned() } else { counted.join(", ") };
    let mark = if right { "" } else { "   WRONG" };
    println!("  {:<32}{COUNT:>6}{arrived:>14}{arrived_by_kernel:>16}  {counted}{mark}", forgery.title());
    right
}

/// Starts to watch every user's endpoint on node 1 for a word.
fn watch(rig: &Rig, word: &str) -> Result<Vec<Process>, RigError> {
    let watch = |user| {
        let watcher = Process::start("probe watch", rig.place(0, user).probe(&["watch", word]))?;
        watcher.wait_for("ready", LATE)?;
        Ok(watcher)
    };
    USERS.into_iter().map(watch).collect()
}

/// The drop counters that went up.
fn increases(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let increase = |(name, after): (&String, &u64)| {
        let increase = after.saturating_sub(before.get(name).copied().unwrap_or(0));
        (increase > 0).then(|| (name.clone(), increase))
    };
    after.iter().filter_map(increase).collect()
}

fn mac(netns: &str, device: &str) -> Result<String, RigError> {
    let text = shell::read(Command::new("ip").args(["-json", "-n", netns, "link", "show", "dev", device]))?;
    let links: Value = serde_json::from_str(&text).unwrap_or_default();
    let mac = links[0]["address"].as_str();
    mac.map(str::to_owned).ok_or_else(|| RigError::program("ip link show", format!("no address of {device}")))
}
