//! `cargo xtask bench`: the side-by-side measurement. Contenders take turns, so that whatever else disturbs the
//! machine disturbs them alike; only ratios within one run mean anything.

use crate::contender::{Kind, Setup};
use crate::cores::Cores;
use crate::dataplane;
use crate::report::{self, Report};
use crate::rig::{self, RigError, USERS};
use crate::workload::{SMALL, Workload};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const CONTENDERS: [Kind; 7] = [
    Kind::Raw,
    Kind::Kernel,
    Kind::KernelAllCores,
    Kind::KernelTuned,
    Kind::Uvn,
    Kind::UvnNapi,
    Kind::UvnShared,
];

const WORKLOADS: [Workload; 5] = [
    Workload::Bulk { streams: 1 },
    Workload::Bulk { streams: 4 },
    Workload::Udp,
    Workload::PingPong { connections: 1, bytes: SMALL },
    Workload::PingPong { connections: 28, bytes: SMALL },
];

const CROWD_WORKLOADS: [Workload; 3] = [
    Workload::Bulk { streams: 1 },
    Workload::PingPong { connections: 1, bytes: SMALL },
    Workload::PingPong { connections: 28, bytes: SMALL },
];

/// How long an idle data plane is watched.
const IDLE: Duration = Duration::from_secs(2);

/// Measures, prints the table and writes `target/bench/report.json`.
///
/// # Errors
/// A rig or a program on it failed.
pub fn bench(quick: bool) -> Result<(), RigError> {
    rig::prepare()?;
    let (rounds, seconds) = if quick { (5, 1.0) } else { (15, 3.0) };
    let program = dataplane::build()?;
    let begin = Instant::now();
    let cores = Cores::of_this_machine();
    let machine = report::machine(&cores);
    print_layout(&cores);
    let mut setups =
        CONTENDERS.iter().map(|&kind| Setup::new(kind, &cores, &program)).collect::<Result<Vec<_>, _>>()?;
    for setup in &setups {
        println!("  {:<18} {}", setup.kind.name(), setup.kind.about());
        if let Some(dataplane) = setup.dataplanes.first() {
            println!("  {:<18} {}", "", dataplane.summary()?);
        }
    }
    let offloads = rig::offloads(&setups[0].rig.node(0))?;
    let report = interleave(&setups, &WORKLOADS, rounds, seconds)?;
    report.print(Kind::Kernel);
    println!("\nwhat many networks cost: the same traffic on one network, alone and among 200");
    setups.retain(|setup| setup.kind == Kind::Uvn);
    setups.push(Setup::new(Kind::UvnCrowded, &cores, &program)?);
    let crowd = interleave(&setups, &CROWD_WORKLOADS, rounds, seconds)?;
    crowd.print(Kind::Uvn);
    let idle = setups.iter().map(idle).collect::<Result<Vec<_>, _>>()?;
    drop(setups);
    write(&json!({
        "machine": machine,
        "contenders": CONTENDERS.map(|kind| json!({ "name": kind.name(), "about": kind.about() })),
        "offloads": offloads,
        "rounds": rounds,
        "seconds": seconds,
        "results": report.samples_json(),
        "many_networks": crowd.samples_json(),
        "data_planes": idle,
    }))?;
    println!("took {} s", begin.elapsed().as_secs());
    Ok(())
}

/// How a contender's data planes are driven, and what they use when nothing is to do.
fn idle(setup: &Setup) -> Result<Value, RigError> {
    let name = setup.kind.name();
    let mut nodes = Vec::new();
    for (node, dataplane) in setup.dataplanes.iter().enumerate() {
        let cpu = dataplane.cpu_percent(IDLE);
        println!("{name}, node {}: {cpu:.1} % of a core when idle", node + 1);
        nodes.push(json!({ "idle_cpu_percent": cpu, "show": dataplane.show()?["show"] }));
    }
    Ok(json!({ "contender": name, "nodes": nodes }))
}

/// Says which core runs what.
pub fn print_layout(cores: &Cores) {
    println!(
        "cores: node 1 runs applications on {} and networking on {}, node 2 on {} and {}",
        cores.apps_list(0),
        cores.net[0],
        cores.apps_list(1),
        cores.net[1],
    );
    let load = report::load();
    if load > 1.0 {
        println!("  load average {load}: other programs are running, which disturbs every figure");
    }
    if cores.shared() {
        println!(
            "  fewer than four cores: networking shares them with applications, which costs an engine most"
        );
    }
}

/// Runs every workload on every contender in each round; each round begins with another contender.
///
/// # Errors
/// A program failed.
pub fn interleave(
    setups: &[Setup],
    workloads: &[Workload],
    rounds: usize,
    seconds: f64,
) -> Result<Report, RigError> {
    let mut report = Report::default();
    for round in 0..rounds {
        println!("round {} of {rounds}: each of {} workloads on each contender", round + 1, workloads.len());
        for &workload in workloads {
            for turn in 0..setups.len() {
                let setup = &setups[(turn + round) % setups.len()];
                let sample = workload.run(&setup.place(0, USERS[0]), &setup.place(1, USERS[0]), seconds)?;
                report.add(workload, setup.kind, sample);
            }
        }
    }
    Ok(report)
}

fn write(report: &Value) -> Result<(), RigError> {
    let path = dataplane::target_directory()?.join("bench/report.json");
    let failed = |source| RigError::Io { what: format!("write {}", path.display()), source };
    std::fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(failed)?;
    std::fs::write(&path, format!("{report:#}\n")).map_err(failed)?;
    println!("all samples: {}", path.display());
    Ok(())
}
