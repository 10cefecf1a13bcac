//! `cargo xtask demo`: two nodes, two users, real data planes, and what comes of it.

use crate::attack;
use crate::bench::{interleave, print_layout};
use crate::contender::{Kind, Setup};
use crate::cores::Cores;
use crate::dataplane;
use crate::matrix;
use crate::rig::{self, NIC, RigError, USERS};
use crate::workload::{SMALL, Workload};
use std::path::Path;
use std::time::Instant;

const WORKLOADS: [Workload; 4] = [
    Workload::Bulk { streams: 1 },
    Workload::Udp,
    Workload::PingPong { connections: 1, bytes: SMALL },
    Workload::PingPong { connections: 28, bytes: SMALL },
];

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
    let uvn = start(&cores, &program)?;
    let kernel = Setup::new(Kind::Kernel, &cores, &program)?;
    let good = verify(&uvn, &kernel)?;
    println!("== speed beside raw and kernel VXLAN, taking turns");
    let raw = Setup::new(Kind::Raw, &cores, &program)?;
    let setups = [raw, kernel, uvn];
    interleave(&setups, &WORKLOADS, 3, 1.0)?.print(Kind::Kernel);
    println!("  a veth wire is no NIC: compare ratios only; `cargo xtask bench --quick` measures longer");
    drop(setups);
    println!("== removed: data planes, namespaces, links");
    let verdict = if good { "all as expected" } else { "NOT as expected" };
    println!("{verdict}, after {} s", begin.elapsed().as_secs());
    Ok(good)
}

/// The part of the demo that is either right or wrong; false when it is wrong.
///
/// # Errors
/// A step could not be done.
pub fn isolation(program: &Path) -> Result<bool, RigError> {
    let cores = Cores::of_this_machine();
    verify(&start(&cores, program)?, &Setup::new(Kind::Kernel, &cores, program)?)
}

fn start(cores: &Cores, program: &Path) -> Result<Setup, RigError> {
    let [first, second] = USERS;
    println!("== two nodes (network namespaces), joined by a veth wire {NIC}; users {first} and {second}");
    println!("  here each user's endpoint is in a namespace of its own; on kernels with VRF it is in a VRF");
    print_layout(cores);
    let uvn = Setup::new(Kind::Uvn, cores, program)?;
    for (node, dataplane) in uvn.dataplanes.iter().enumerate() {
        println!("  node {}: uvn-dataplane {}", node + 1, dataplane.summary()?);
    }
    Ok(uvn)
}

fn verify(uvn: &Setup, kernel: &Setup) -> Result<bool, RigError> {
    println!("== who reaches whom");
    let reached = matrix::run(uvn)?;
    println!("== attack on user {} on node 1, from a hostile program on the wire", USERS[0]);
    Ok(attack::run(uvn, kernel)? && reached)
}
