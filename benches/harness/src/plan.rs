//! Which contenders do which work, how often and how long.

use crate::contender::Contender;
use crate::crowd;
use crate::hpcc::Hpcc;
use crate::mpi::{self, Job, Patterns};
use crate::workload::Workload;
use crate::workload::bulk::{Bulk, Direction};
use crate::workload::ping_pong::{PingPong, SMALL};
use crate::workload::udp::Flood;

/// Who runs MPI jobs.
const MPI: [Contender; 4] = [Contender::Raw, Contender::Kernel, Contender::KernelTuned, Contender::Engine];

/// About how many seconds it takes to set a contender up on a node, and to remove it.
const SETUP_PER_NODE: f64 = 0.5;

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
    /// Everything runs in turns: [`Place::round_robin`](crate::process::Place).
    pub round_robin: bool,
    /// Who.
    pub contenders: Vec<Contender>,
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
        let round: f64 = self.workloads.iter().map(|workload| workload.takes(self.seconds)).sum();
        let setups = self.contenders.len() as f64 * self.networks.len() as f64;
        setups * (SETUP_PER_NODE * self.nodes as f64 + self.rounds as f64 * round)
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

/// The run of at most five minutes.
#[must_use]
pub fn quick() -> Vec<Section> {
    vec![two_nodes(5, 1.0)]
}

/// The run of at most forty minutes.
#[must_use]
pub fn full() -> Vec<Section> {
    vec![two_nodes(15, 3.0), many_networks(5), mpi_two(5), mpi_sixteen(5)]
}

fn two_nodes(rounds: usize, seconds: f64) -> Section {
    let bulk = |streams, direction| Box::new(Bulk { streams, direction }) as Box<dyn Workload>;
    let ping_pong = |connections, bytes| Box::new(PingPong { connections, bytes }) as Box<dyn Workload>;
    Section {
        title: "two nodes, MTU 1500".into(),
        nodes: 2,
        mtu: 1500,
        networks: vec![2],
        round_robin: false,
        contenders: Contender::ALL.to_vec(),
        workloads: vec![
            bulk(1, Direction::Forth),
            bulk(4, Direction::Forth),
            Box::new(Flood),
            ping_pong(1, SMALL),
            ping_pong(28, SMALL),
        ],
        rounds,
        seconds,
    }
}

/// One network and many.
fn many_networks(rounds: usize) -> Section {
    let ping_pong = |connections| Box::new(PingPong { connections, bytes: SMALL }) as Box<dyn Workload>;
    Section {
        title: "many networks".into(),
        nodes: 2,
        mtu: 1500,
        networks: crowd::NETWORKS.to_vec(),
        round_robin: false,
        contenders: vec![Contender::Kernel, Contender::Engine],
        workloads: vec![
            Box::new(Bulk { streams: 1, direction: Direction::Forth }),
            ping_pong(1),
            ping_pong(28),
        ],
        rounds,
        seconds: 1.0,
    }
}

fn mpi(title: &str, nodes: usize, rounds: usize, workloads: Vec<Box<dyn Workload>>) -> Section {
    Section {
        title: title.into(),
        nodes,
        mtu: 1500,
        networks: vec![1],
        round_robin: true,
        contenders: MPI.to_vec(),
        workloads,
        rounds,
        seconds: 0.2,
    }
}

/// Sixteen nodes with a rank each, and an application.
fn mpi_sixteen(rounds: usize) -> Section {
    let patterns = Patterns::new("MPI, 16 nodes", Job { nodes: 16, ranks: 1 }, mpi::ALL);
    mpi("MPI on sixteen nodes", 16, rounds, vec![Box::new(patterns), Box::new(Hpcc)])
}

/// Two nodes with many ranks each.
fn mpi_two(rounds: usize) -> Section {
    let patterns = Patterns::new("MPI, 2 nodes x 8 ranks", Job { nodes: 2, ranks: 8 }, mpi::PAIRS);
    mpi("MPI on two nodes", 2, rounds, vec![Box::new(patterns)])
}

/// A few figures for the demo.
#[must_use]
pub fn glimpse() -> Section {
    let mut section = two_nodes(3, 1.0);
    section.contenders = vec![Contender::Raw, Contender::Kernel, Contender::Engine];
    section
}
