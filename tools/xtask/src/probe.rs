//! `cargo xtask probe`: the programs that run inside a rig's namespaces. Each writes `ready` when it serves, and its
//! result as one line of JSON.
//!
//! - [`pingpong`]: many concurrent TCP ping-pongs
//! - [`flood`]: UDP packets per second
//! - [`reach`]: who reaches whom by TCP, UDP and ping
//! - [`attack`]: forged VXLAN packets

pub mod attack;
pub mod flood;
pub mod pingpong;
pub mod reach;

use clap::Subcommand;
use std::io;
use std::net::SocketAddr;

/// A probe and its settings.
#[derive(Subcommand)]
pub enum Probe {
    /// Answer TCP ping-pongs on a port
    Pong {
        /// TCP port
        port: u16,
    },
    /// Measure TCP ping-pongs against `pong`
    PingPong {
        /// Where `pong` listens
        to: SocketAddr,
        /// How many at once
        connections: usize,
        /// Bytes of a message
        bytes: usize,
        /// How long
        seconds: f64,
    },
    /// Count received UDP datagrams until there are no more
    Sink {
        /// UDP port
        port: u16,
    },
    /// Send 64-byte UDP datagrams as fast as possible
    Flood {
        /// Where `sink` listens
        to: SocketAddr,
        /// Sending threads
        threads: usize,
        /// How long
        seconds: f64,
    },
    /// Echo TCP and UDP, and report every probe that arrives, pings included
    Serve {
        /// TCP and UDP port
        port: u16,
    },
    /// Try to reach all these at once; say which answered
    Reach {
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

/// Runs one.
///
/// # Errors
/// A socket operation failed.
pub fn run(probe: Probe) -> io::Result<()> {
    match probe {
        Probe::Pong { port } => pingpong::pong(port),
        Probe::PingPong { to, connections, bytes, seconds } => {
            pingpong::ping(to, connections, bytes, seconds)
        }
        Probe::Sink { port } => flood::sink(port),
        Probe::Flood { to, threads, seconds } => flood::flood(to, threads, seconds),
        Probe::Serve { port } => reach::serve(port),
        Probe::Reach { targets } => reach::reach(&targets),
        Probe::Attack { kind, count, word, macs } => attack::attack(kind, count, &word, &macs),
        Probe::Watch { word } => attack::watch(&word),
    }
}

/// Tells the parent that this probe serves now.
fn ready() {
    println!("ready");
}
