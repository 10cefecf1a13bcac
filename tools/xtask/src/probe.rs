//! `cargo xtask probe`: the programs that run inside a rig's namespaces. Each writes `ready` when it serves, and its
//! result as one line of JSON.
//!
//! - [`reach`]: who reaches whom by TCP, UDP and ping
//! - [`attack`]: forged VXLAN packets

pub mod attack;
pub mod reach;

use clap::Subcommand;
use std::io;
use std::time::Duration;

/// A probe and its settings.
#[derive(Subcommand)]
pub enum Probe {
    /// One of those that measure
    #[command(flatten)]
    Measure(uvn_bench::probe::Probe),
    /// Echo TCP and UDP, and report every probe that arrives, pings included
    Serve {
        /// TCP and UDP port
        port: u16,
    },
    /// Try to reach all these at once; say which answered
    Reach {
        /// How long to wait for an answer, in milliseconds
        patience: u64,
        /// As `tcp:10.0.0.2:7000:WORD`; a ping's port means nothing
        targets: Vec<reach::Target>,
    },
    /// Send forged VXLAN packets out of the NIC
    Attack {
        /// What to forge
        kind: attack::Forgery,
        /// How many
        count: usize,
        /// Word in the payload, by which an arrival would be noticed
        word: String,
        /// MAC addresses: attacked NIC, attacked endpoint, endpoint on the sending node
        macs: attack::Macs,
    },
    /// Report every frame in this namespace that holds a word
    Watch {
        /// The word
        word: String,
    },
}

/// Runs a probe.
///
/// # Errors
/// A socket operation failed.
pub fn run(probe: Probe) -> io::Result<()> {
    match probe {
        Probe::Measure(probe) => uvn_bench::probe::run(probe),
        Probe::Serve { port } => reach::serve(port),
        Probe::Reach { patience, targets } => reach::reach(&targets, Duration::from_millis(patience)),
        Probe::Attack { kind, count, word, macs } => attack::attack(kind, count, &word, &macs),
        Probe::Watch { word } => attack::watch(&word),
    }
}
