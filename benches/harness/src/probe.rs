//! `probe`: the programs that run on nodes. Each writes `ready` when it serves, and its result as one line of JSON.
//!
//! - [`pingpong`]: many concurrent TCP ping-pongs
//! - [`busy_poll`]: an option of their sockets
//! - [`flood`]: UDP packets per second
//! - [`connect`]: TCP connections per second

mod busy_poll;
mod connect;
mod flood;
mod pingpong;

use crate::nodes::Look;
use crate::noise::Load;
use clap::Subcommand;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

/// A probe and its settings.
#[derive(Debug, Subcommand)]
pub enum Probe {
    /// Answer TCP ping-pongs on a port
    Pong {
        /// TCP port
        port: u16,
        /// Poll before sleeping
        #[arg(long)]
        busy_poll: bool,
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
        /// Poll before sleeping
        #[arg(long)]
        busy_poll: bool,
    },
    /// Count received UDP datagrams until there are no more
    Sink {
        /// UDP port
        port: u16,
        /// Also tell ten times a second how many there are by then
        #[arg(long)]
        tell: bool,
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
    /// Answer one byte per TCP connection
    Accept {
        /// TCP port
        port: u16,
        /// How many at once
        threads: usize,
    },
    /// Measure connections to `accept`
    Connect {
        /// Where `accept` listens
        to: SocketAddr,
        /// How many at once
        threads: usize,
        /// How long
        seconds: f64,
    },
    /// Say what this machine is, and how it reaches another
    Look {
        /// The other
        to: IpAddr,
    },
    /// Say how busy this machine is, and with what else
    Load,
}

/// Runs `bind` until it succeeds, for two seconds at most: on another node the last probe may take a moment to go.
fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const TRIES: u32 = 40;
    for _ in 1..TRIES {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                thread::sleep(Duration::from_millis(50))
            }
            result => return result,
        }
    }
    bind()
}

/// Runs one.
///
/// # Errors
/// A socket operation failed.
pub fn run(probe: Probe) -> io::Result<()> {
    match probe {
        Probe::Pong { port, busy_poll } => pingpong::pong(port, busy_poll),
        Probe::PingPong { to, connections, bytes, seconds, busy_poll } => {
            pingpong::ping(to, connections, bytes, seconds, busy_poll)
        }
        Probe::Sink { port, tell } => flood::sink(port, tell),
        Probe::Flood { to, seconds, rate } => flood::flood(to, seconds, rate),
        Probe::Accept { port, threads } => connect::accept(port, threads),
        Probe::Connect { to, threads, seconds } => connect::connect(to, threads, seconds),
        Probe::Look { to } => print(&Look::here(to)),
        Probe::Load => print(&Load::beside_session()),
    }
}

fn print(result: &impl serde::Serialize) -> io::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

/// Tells the parent that this probe serves now.
pub fn ready() {
    println!("ready");
}
