//! `cargo xtask demo`: two nodes, two users and real data planes: who reaches whom, the speed, an attack.

use crate::attack;
use crate::cargo::build_release;
use crate::matrix;
use crate::rig::Rig;
use std::path::Path;
use std::time::Instant;
use uvn_bench::contender::REFERENCE;
use uvn_bench::report::{Report, Settings};
use uvn_bench::{plan, run, table};
use uvn_rig::cores::Cores;
use uvn_rig::error::RigError;
use uvn_rig::netns;
use uvn_rig::rig::{NIC, USERS};

/// Shows everything. False: something is not as expected.
///
/// # Errors
/// A step could not be done.
pub fn demo() -> Result<bool, RigError> {
    netns::prepare()?;
    let begin = Instant::now();
    println!("== building uvn-dataplane (release)");
    let program = build_release(&["uvn-dataplane"])?.join("uvn-dataplane");
    let good = isolation(&program)?;
    println!("== speed beside raw and kernel VXLAN, taking turns");
    let mut report = Report::new(Settings::default());
    run::sections(&mut [plan::glimpse()], &program, &mut report)?;
    table::print(&report, REFERENCE.name());
    println!("  a veth wire is not a NIC: compare ratios only; `cargo xtask bench --quick` measures longer");
    println!("== removed: data planes, namespaces, links");
    let verdict = if good { "all as expected" } else { "NOT as expected" };
    println!("{verdict}, after {} s", begin.elapsed().as_secs());
    Ok(good)
}

/// The part of the demo that has an expected result. False: it is not as expected.
///
/// # Errors
/// A step could not be done.
pub fn isolation(program: &Path) -> Result<bool, RigError> {
    let [first, second] = USERS;
    println!("== two nodes (network namespaces), joined by a veth wire {NIC}; users {first} and {second}");
    println!("  here each user's endpoint is in a namespace of its own; on kernels with VRF it is in a VRF");
    print_layout(&Cores::of_this_machine(2));
    let uvn = Rig::uvn(program)?;
    for (node, dataplane) in uvn.dataplanes.iter().enumerate() {
        println!("  node {}: uvn-dataplane {}", node + 1, dataplane.summary()?);
    }
    println!("== who reaches whom");
    let reached = matrix::run(&uvn)?;
    println!("== attack on user {} on node 1, from a hostile program on the wire", USERS[0]);
    Ok(attack::run(&uvn, &Rig::kernel()?)? && reached)
}

/// Prints which cores run applications, and which run networking.
fn print_layout(cores: &[Cores]) {
    let nodes: Vec<String> = cores
        .iter()
        .enumerate()
        .map(|(node, cores)| {
            format!(
                "node {} runs applications on {} and networking on {}",
                node + 1,
                cores.apps_list(),
                cores.net
            )
        })
        .collect();
    println!("cores: {}", nodes.join("; "));
    if cores.iter().any(Cores::shared) {
        println!(
            "  fewer than four cores: networking shares them with applications, which costs an engine most"
        );
    }
}
