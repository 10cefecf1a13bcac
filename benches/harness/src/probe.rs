//! `probe`: the programs that run on nodes. Each writes `ready` when it serves, and its result as one line of JSON.
//!
//! - [`pingpong`]: many concurrent TCP ping-pongs
//! - [`flood`]: UDP packets per second

mod flood;
mod pingpong;

use clap::Subcommand;
use std::io;
use std::net::SocketAddr;

/// A probe and its settings.
#[derive(Debug, Subcommand)]
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
    /// Send 64-byte UDP datagrams
    Flood {
        /// Where `sink` listens
        to: SocketAddr,
        /// How long
        seconds: f64,
        /// Datagrams per second; as fast as possible without
        #[arg(long)]
        rate: Option<f64>,
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
        Probe::Flood { to, seconds, rate } => flood::flood(to, seconds, rate),
    }
}

/// Tells the parent that this probe serves now.
pub fn ready() {
    println!("ready");
}
