//! What an ordinary user's program may try. The suites run it as such a user; it needs nothing but itself.

use clap::Parser;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use uvn_hwtests::escape::listen::{self, Trick};
use uvn_hwtests::escape::{self, Aim};
use uvn_hwtests::reach::{self, Socket};

/// What an ordinary user may try.
#[derive(Parser)]
enum Probe {
    /// Answer with NAME on TCP and UDP sockets (tcp:0.0.0.0:5000), and print who asked
    Serve {
        /// What to answer
        name: String,
        /// Where
        #[arg(required = true)]
        sockets: Vec<Socket>,
    },
    /// Ask all targets (udp:10.0.0.2:5000) at once, and print who answered or why nobody did
    Reach {
        /// How many seconds to wait for those who do not answer
        #[arg(long, default_value_t = reach::LONG.as_secs())]
        patience: u64,
        /// Bind to this address and port first (10.0.0.1:0)
        #[arg(long)]
        from: Option<SocketAddr>,
        /// Who we say we are
        name: String,
        /// Whom to ask
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Print the own address that a program finds on the way to TO (192.0.2.1:9)
    OwnAddress {
        /// Where to
        to: SocketAddr,
    },
    /// Print the MTU of the way to TO (192.0.2.1:9) after datagrams of LENGTH bytes
    PathMtu {
        /// Where to
        to: SocketAddr,
        /// Bytes of a datagram
        length: usize,
    },
    /// Attempt to get out of the own network, and print what came of it
    Escape {
        #[command(flatten)]
        aim: Aim,
        /// Which attempts
        #[arg(required = true)]
        attempts: Vec<String>,
    },
    /// Listen where one should not, answer with NAME, and print who asked
    Listen {
        /// How
        how: Trick,
        /// What to answer
        name: String,
        /// Bind the socket to this device
        #[arg(long)]
        device: Option<String>,
    },
    /// Started as root: make sockets as the user, become another one, wait for a line of input, then try to send
    Hold {
        #[command(flatten)]
        aim: Aim,
        /// Whom to become
        #[arg(long)]
        heir: u32,
    },
    /// Use network namespaces of one's own
    Own,
    /// Answer on Unix sockets of each kind with this name (a path, or abstract)
    UnixServe {
        /// It
        name: String,
    },
    /// Ask those with this name, and print what came of it
    UnixAsk {
        /// It
        name: String,
    },
}

fn main() -> ExitCode {
    match run(Probe::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(probe: Probe) -> Result<(), Box<dyn std::error::Error>> {
    match probe {
        Probe::Serve { name, sockets } => reach::serve(&name, &sockets)?,
        Probe::OwnAddress { to } => println!("{}", reach::own_address(to)?),
        Probe::PathMtu { to, length } => println!("{}", reach::path_mtu(to, length)?),
        Probe::Reach { patience, from, name, targets } => {
            let targets: Result<Vec<_>, String> =
                targets.into_iter().map(|target| Ok((target.clone(), target.parse()?))).collect();
            reach::reach(&name, from, &targets?, Duration::from_secs(patience));
        }
        Probe::Escape { aim, attempts } => escape::run(&aim, &attempts)?,
        Probe::Listen { how, name, device } => listen::run(how, &name, device.as_deref())?,
        Probe::Hold { aim, heir } => escape::process::hold(&aim, heir)?,
        Probe::Own => escape::process::own_namespaces()?,
        Probe::UnixServe { name } => escape::unix::serve(&name)?,
        Probe::UnixAsk { name } => escape::unix::ask(&name)?,
    }
    Ok(())
}
