//! Which contenders do which work, how often and how long.

use crate::contender::Contender;
use crate::crowd;
use crate::hpcc::{self, Hpcc};
use crate::mpi::{self, Job, Patterns};
use crate::workload::Workload;
use crate::workload::bulk::{Bulk, Direction};
use crate::workload::connections::Connections;
use crate::workload::fairness::{Fairness, Flood};
use crate::workload::idle::Idle;
use crate::workload::ping_pong::{Curve, PAGE, PingPong, SMALL};
use crate::workload::udp;
use crate::workload::variant::Variant;
use uvn_rig::cores::Cores;

/// About how many seconds it takes to set a contender up on a node, and to remove it.
const SETUP_PER_NODE: f64 = 0.5;
/// The same for each network on it.
const SETUP_PER_NETWORK: f64 = 0.01;
/// How long cores stay awake after a workload that has gained from that: [`Setup::rest`](crate::contender::Setup::rest).
const REST: f64 = 0.5;

/// Contenders that take turns on the same work, on the same kind of nodes.
pub struct Section {
    /// For people.
    pub title: String,
    /// How many nodes each contender has.
    pub nodes: usize,
    /// Bytes of an IP packet on the wire.
    pub mtu: u32,
    /// Networks on each node. If these are several numbers, each contender takes part with each: [`crate::crowd`].
    pub networks: Vec<usize>,
    /// Everything runs in turns: [`Place::round_robin`](uvn_rig::place::Place).
    pub round_robin: bool,
    /// Who.
    pub contenders: Vec<Contender>,
    /// Who cannot, and why.
    pub absent: Vec<(Contender, &'static str)>,
    /// What.
    pub workloads: Vec<Box<dyn Workload>>,
    /// How often each takes its turn.
    pub rounds: usize,
    /// How long traffic flows each time.
    pub seconds: f64,
}

impl Section {
    /// About how many seconds it takes.
    #[must_use]
    pub fn takes(&self) -> f64 {
        let round = |contender: Contender| -> f64 {
            let fit = self.workloads.iter().filter(|workload| workload.unfit(contender).is_none());
            fit.map(|workload| self.turn(&**workload, contender)).sum()
        };
        let turns: f64 = self.contenders.iter().map(|&contender| self.rounds as f64 * round(contender)).sum();
        let each = |networks: &usize| SETUP_PER_NODE + *networks as f64 * SETUP_PER_NETWORK;
        let setup = (self.contenders.len() * self.nodes) as f64 * self.networks.iter().map(each).sum::<f64>();
        setup + self.networks.len() as f64 * turns
    }

    /// The same of one turn.
    #[must_use]
    pub fn turn(&self, workload: &dyn Workload, contender: Contender) -> f64 {
        let beforehand = warm_up(contender, workload).map(|seconds| workload.takes(seconds) + REST);
        workload.takes(self.seconds) + beforehand.unwrap_or(0.0)
    }

    /// Whether contenders take part with different numbers of networks.
    #[must_use]
    pub fn is_crowd(&self) -> bool {
        self.networks.len() > 1
    }

    /// A workload's name in the report.
    #[must_use]
    pub fn name_of(&self, workload: &dyn Workload, networks: usize) -> String {
        if self.is_crowd() { crowd::name(&workload.name(), networks) } else { workload.name() }
    }
}

/// The contenders of most sections.
const MAIN: [Contender; 6] = [
    Contender::Raw,
    Contender::Kernel,
    Contender::KernelTuned,
    Contender::Auto,
    Contender::Engine,
    Contender::OpenVswitch,
];

/// The same programs on other cores, or on cores that are boosted.
const PLACEMENTS: [Contender; 6] = [
    Contender::Kernel,
    Contender::KernelAllCores,
    Contender::AutoAllCores,
    Contender::AutoBoosted,
    Contender::EngineNapi,
    Contender::EngineShared,
];

/// Those who carry jumbo frames.
const JUMBO: [Contender; 4] = [Contender::Raw, Contender::Kernel, Contender::Auto, Contender::Engine];
const NO_JUMBO: (Contender, &str) = (Contender::OpenVswitch, "its AF_XDP port takes no jumbo frames");

/// Those who run MPI jobs on nodes with less than two cores each.
const CROWDED: [Contender; 5] =
    [Contender::Raw, Contender::Kernel, Contender::KernelTuned, Contender::Auto, Contender::Engine];
const NO_CORES: (Contender, &str) = (
    Contender::OpenVswitch,
    "its polling threads, one per node, never sleep: with less than two cores per node jobs do not come to an end",
);

/// How often each takes its turn: enough for a median, and its spread.
const ROUNDS: usize = 5;

/// How long an MPI pattern runs with each of its lengths.
const MPI_SECONDS: f64 = 0.2;
/// The same on sixteen nodes, where jobs of the same contender differ more than operations of a job do.
const SIXTEEN_SECONDS: f64 = 0.1;
/// How often there: so that what every round says of one of twenty patterns is chance in one run of 25.
const SIXTEEN_ROUNDS: usize = 9;

/// The run of at most five minutes.
#[must_use]
pub fn quick() -> Vec<Section> {
    let workloads = vec![
        bulk(1, Direction::Forth),
        bulk(4, Direction::Forth),
        ping_pong(1, SMALL),
        busy_ping_pong(1, SMALL),
        ping_pong(28, SMALL),
        ping_pong(28, PAGE),
        Box::new(udp::Flood),
        Box::new(udp::Paced::default()),
        Box::new(Connections),
        Box::new(Fairness(Flood::Udp)),
        Box::new(Idle),
    ];
    vec![two_nodes("two nodes, MTU 1500", &MAIN, workloads, 0.3)]
}

/// The run of at most forty minutes.
#[must_use]
pub fn full() -> Vec<Section> {
    vec![
        two_nodes("two nodes, MTU 1500", &MAIN, everything(), 0.75),
        two_nodes("two nodes, other cores", &PLACEMENTS, on("other cores", essentials()), 0.75),
        Section {
            mtu: 9000,
            absent: vec![NO_JUMBO],
            ..two_nodes("two nodes, MTU 9000", &JUMBO, on("MTU 9000", jumbo()), 0.75)
        },
        many_networks(),
        mpi_two(),
        mpi_sixteen(),
        application(),
    ]
}

/// One network and many.
fn many_networks() -> Section {
    let contenders = [Contender::Kernel, Contender::Auto, Contender::Engine];
    let workloads = vec![bulk(1, Direction::Forth), ping_pong(1, SMALL), ping_pong(28, SMALL)];
    let networks = crowd::NETWORKS.to_vec();
    Section { networks, ..two_nodes("many networks", &contenders, workloads, 0.4) }
}

/// Two nodes with many ranks each.
fn mpi_two() -> Section {
    let job = Job { nodes: 2, ranks: 8 };
    let patterns = Patterns::new("MPI, 2 nodes x 8 ranks", job, mpi::PAIRS);
    mpi("MPI on two nodes", job, vec![Box::new(patterns)])
}

/// Sixteen nodes with a rank each.
fn mpi_sixteen() -> Section {
    let job = Job { nodes: 16, ranks: 1 };
    let patterns = Patterns::new(mpi::SIXTEEN_NODES, job, mpi::ALL);
    let section = mpi("MPI on sixteen nodes", job, vec![Box::new(patterns)]);
    Section { rounds: SIXTEEN_ROUNDS, seconds: SIXTEEN_SECONDS, ..section }
}

/// An application on four nodes.
fn application() -> Section {
    mpi("application", hpcc::JOB, vec![Box::new(Hpcc)])
}

fn mpi(title: &str, job: Job, workloads: Vec<Box<dyn Workload>>) -> Section {
    let (contenders, absent) = if Cores::of_this_machine(job.nodes)[0].shared() {
        (&CROWDED[..], vec![NO_CORES])
    } else {
        (&MAIN[..], Vec::new())
    };
    let section = two_nodes(title, contenders, workloads, MPI_SECONDS);
    Section { nodes: job.nodes, networks: vec![1], round_robin: true, absent, ..section }
}

/// A few figures for the demo.
#[must_use]
pub fn glimpse() -> Section {
    let contenders = [Contender::Raw, Contender::Kernel, Contender::Auto];
    Section { rounds: 3, ..two_nodes("two nodes", &contenders, essentials(), 0.5) }
}

fn two_nodes(
    title: &str,
    contenders: &[Contender],
    workloads: Vec<Box<dyn Workload>>,
    seconds: f64,
) -> Section {
    Section {
        title: title.to_owned(),
        nodes: 2,
        mtu: 1500,
        networks: vec![2],
        round_robin: false,
        contenders: contenders.to_vec(),
        absent: Vec::new(),
        workloads,
        rounds: ROUNDS,
        seconds,
    }
}

fn everything() -> Vec<Box<dyn Workload>> {
    let mut all: Vec<Box<dyn Workload>> = Vec::new();
    for direction in [Direction::Forth, Direction::Back, Direction::Both] {
        all.extend([1, 4, 8].map(|streams| bulk(streams, direction)));
    }
    all.extend([ping_pong(1, SMALL), busy_ping_pong(1, SMALL)]);
    all.extend(Curve::SIZES.map(|bytes| Box::new(Curve { bytes }) as Box<dyn Workload>));
    for connections in [28, 64] {
        all.extend([SMALL, PAGE].map(|bytes| ping_pong(connections, bytes)));
    }
    all.push(Box::new(udp::Flood));
    all.push(Box::new(udp::Paced::default()));
    all.push(Box::new(Connections));
    all.extend([Flood::Udp, Flood::Tcp].map(|flood| Box::new(Fairness(flood)) as Box<dyn Workload>));
    all.push(Box::new(Idle));
    all
}

fn essentials() -> Vec<Box<dyn Workload>> {
    vec![
        bulk(1, Direction::Forth),
        bulk(4, Direction::Forth),
        Box::new(udp::Flood),
        ping_pong(1, SMALL),
        ping_pong(28, SMALL),
        ping_pong(28, PAGE),
    ]
}

fn jumbo() -> Vec<Box<dyn Workload>> {
    vec![
        bulk(1, Direction::Forth),
        bulk(4, Direction::Forth),
        bulk(4, Direction::Both),
        ping_pong(1, SMALL),
        ping_pong(28, PAGE),
    ]
}

fn bulk(streams: usize, direction: Direction) -> Box<dyn Workload> {
    Box::new(Bulk { streams, direction })
}

fn ping_pong(connections: usize, bytes: usize) -> Box<dyn Workload> {
    Box::new(PingPong { connections, bytes, busy_poll: false })
}

fn busy_ping_pong(connections: usize, bytes: usize) -> Box<dyn Workload> {
    Box::new(PingPong { connections, bytes, busy_poll: true })
}

/// The same under another heading.
fn on(ground: &'static str, workloads: Vec<Box<dyn Workload>>) -> Vec<Box<dyn Workload>> {
    let variant = |workload| Box::new(Variant { ground, workload }) as Box<dyn Workload>;
    workloads.into_iter().map(variant).collect()
}

/// For how many seconds a workload runs beforehand, unmeasured, where the data plane tries boosts.
#[must_use]
pub fn warm_up(contender: Contender, workload: &dyn Workload) -> Option<f64> {
    workload.warm_up().filter(|_| contender == Contender::AutoBoosted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn minutes(sections: &[Section]) -> f64 {
        sections.iter().map(Section::takes).sum::<f64>() / 60.0
    }

    #[test]
    fn both_runs_keep_their_time() {
        // Less than they may take: a busy machine takes longer.
        assert!(minutes(&quick()) <= 4.8, "{}", minutes(&quick()));
        // With 32 cores and more, where each of sixteen nodes has two, it takes longest.
        assert!(minutes(&full()) <= 39.0, "{}", minutes(&full()));
    }

    #[test]
    fn no_two_workloads_of_a_run_have_the_same_name() {
        for run in [quick(), full()] {
            let names_of = |section: &Section| -> Vec<String> {
                let of =
                    |networks| section.workloads.iter().map(move |work| section.name_of(&**work, networks));
                section.networks.iter().flat_map(|&networks| of(networks)).collect()
            };
            let names: Vec<String> = run.iter().flat_map(names_of).collect();
            let distinct: BTreeSet<&String> = names.iter().collect();
            assert_eq!(names.len(), distinct.len());
        }
    }
}
