//! `cargo xtask demo`: two nodes, two users, real data planes, and what comes of it.

use crate::bench::{interleave, print_layout};
use crate::contender::{Kind, Setup};
use crate::cores::Cores;
use crate::dataplane;
use crate::matrix;
use crate::probe::attack::Forgery;
use crate::process::{Place, Process};
use crate::rig::{self, NIC, RigError, USERS};
use crate::shell;
use crate::workload::{SMALL, Workload};
use serde_json::Value;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const WORKLOADS: [Workload; 4] = [
    Workload::Bulk { streams: 1 },
    Workload::Udp,
    Workload::PingPong { connections: 1, bytes: SMALL },
    Workload::PingPong { connections: 28, bytes: SMALL },
];
/// Packets of each forgery.
const FORGED: u64 = 100;

/// Shows everything; false when something is not as it should be.
///
/// # Errors
/// A step could not be done.
pub fn demo() -> Result<bool, RigError> {
    rig::prepare()?;
    let begin = Instant::now();
    println!("== building uvn-dataplane (release)");
    let program = dataplane::build()?;
    let cores = Cores::of_this_machine();
    println!(
        "== two nodes: network namespaces, joined by a veth wire {NIC}; users {} and {}",
        USERS[0], USERS[1]
    );
    println!(
        "  each user's endpoint is in a namespace of its own; on a kernel with VRF it would be in a VRF"
    );
    print_layout(&cores);
    let uvn = Setup::new(Kind::Uvn, &cores, &program)?;
    print_dataplanes(&uvn)?;
    println!("== who reaches whom");
    let mut good = matrix::run(&uvn)?;
    println!("== attack on node 1, user {}, from a hostile program on the wire", USERS[0]);
    good &= attack(&uvn)?;
    println!("== speed beside raw and kernel VXLAN, taking turns");
    let others = [Kind::Raw, Kind::Kernel].map(|kind| Setup::new(kind, &cores, &program));
    let [raw, kernel] = others;
    let setups = [raw?, kernel?, uvn];
    interleave(&setups, &WORKLOADS, 3, 1.0)?.print(Kind::Kernel);
    println!(
        "  (wire: veth in copy mode, no NIC; only the ratios mean anything; `cargo xtask bench` measures longer)"
    );
    drop(setups);
    println!("== removed: namespaces, links, data planes");
    println!(
        "{} after {} s",
        if good { "all as expected" } else { "NOT as expected" },
        begin.elapsed().as_secs()
    );
    Ok(good)
}

fn print_dataplanes(uvn: &Setup) -> Result<(), RigError> {
    for (node, dataplane) in uvn.dataplanes.iter().enumerate() {
        let show = &dataplane.show()?["show"];
        let text = |name: &str| show[name].as_str().unwrap_or("?").to_owned();
        let copy = if show["zero_copy"] == true { "zero-copy" } else { "copy" };
        println!(
            "  node {}: uvn-dataplane {}: XDP in {} mode, AF_XDP in {copy} mode, {} networks, tables of epoch {}",
            node + 1,
            text("state"),
            text("xdp"),
            show["networks"],
            show["epoch"],
        );
    }
    Ok(())
}

/// Sends every forgery from node 2's own NIC and checks that each was counted, packet by packet, and that none came
/// through, after a genuine packet did.
fn attack(uvn: &Setup) -> Result<bool, RigError> {
    let attacker = Place { netns: uvn.rig.node(1), cores: uvn.place(1, USERS[0]).cores };
    let macs = [
        mac(&uvn.rig.node(0), NIC)?,
        mac(&uvn.rig.user(0, USERS[0]), &format!("u{}", USERS[0]))?,
        mac(&uvn.rig.user(1, USERS[0]), &format!("u{}", USERS[0]))?,
    ]
    .join(",");
    let victim = &uvn.dataplanes[0];
    let mut good = true;
    println!("  {:<32}{:>6}{:>10}  counted as", "forged", "sent", "arrived");
    for (index, forgery) in [&[Forgery::Genuine], &Forgery::FORGED[..]].concat().into_iter().enumerate() {
        let word = format!("uvn-attack-{index}-");
        let watchers = USERS.map(|user| {
            uvn.place(0, user).probe(&["watch", &word]).and_then(|watch| Process::start("probe watch", watch))
        });
        let watchers = watchers.into_iter().collect::<Result<Vec<_>, _>>()?;
        for watcher in &watchers {
            watcher.wait_for("ready", Duration::from_secs(5))?;
        }
        let before = victim.counters()?;
        let arguments = ["attack", &forgery.argument(), &FORGED.to_string(), &word, &macs];
        Process::start("probe attack", attacker.probe(&arguments)?)?.finish(Duration::from_secs(10))?;
        thread::sleep(Duration::from_millis(200));
        let after = victim.counters()?;
        let arrived =
            watchers.iter().flat_map(Process::new_lines).filter(|line| line.starts_with("arrived")).count()
                as u64;
        let delta = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
        let counted: u64 = forgery.counters().iter().map(|name| delta(name)).sum();
        let right =
            if forgery == Forgery::Genuine { arrived == FORGED } else { (arrived, counted) == (0, FORGED) };
        let deltas: Vec<String> = after
            .keys()
            .filter(|name| delta(name) > 0 && !["xdp_pass", "xdp_redirected"].contains(&name.as_str()))
            .map(|name| format!("{name} +{}", delta(name)))
            .collect();
        let mark = if right { "" } else { "   WRONG" };
        println!("  {:<32}{FORGED:>6}{arrived:>10}  {}{mark}", forgery.title(), deltas.join(", "));
        good &= right;
    }
    Ok(good)
}

fn mac(netns: &str, device: &str) -> Result<String, RigError> {
    let text = shell::read(Command::new("ip").args(["-json", "-n", netns, "link", "show", "dev", device]))?;
    let links: Value = serde_json::from_str(&text).unwrap_or_default();
    let mac = links[0]["address"].as_str();
    mac.map(str::to_owned).ok_or_else(|| RigError::Program {
        what: "ip link show".into(),
        why: format!("no address of {device}"),
    })
}
