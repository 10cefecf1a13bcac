//! What an ordinary user may try to get out of his network, or into somebody else's.
//!
//! An [`Attempt`] aims at servers that it must not reach: the victim's, and a host of the subnet that is not listed.
//! It has succeeded if one of them answers, or says that it was asked; its name is part of what it says. Where there
//! is nobody to ask, such as a socket of another protocol family, it has succeeded if nothing refuses it.
//!
//! - [`socket`]: sockets of any kind, their options, and messages with ancillary data
//! - [`device`]: through another device than the own network's
//! - [`source`]: from somebody else's address
//! - [`protocol`]: with other protocols and families
//! - [`vxlan`]: with VXLAN made by hand
//! - [`process`]: as another user, in other namespaces, with sockets made by others
//! - [`uring`]: by io_uring
//! - [`unix`]: by abstract Unix sockets
//! - [`rdma`]: by RDMA devices
//! - [`call`]: by other system calls and kinds of address, with sockets that were something else before
//! - [`route`]: by source routes
//! - [`deputy`]: by programs with privileges, other processes and UIDs, from a network namespace of one's own
//! - [`race`]: by changing what was checked
//! - [`obstruct`]: by standing in the way
//! - [`eavesdrop`], [`listen`]: not by sending, but by receiving what is somebody else's

pub mod call;
pub mod deputy;
pub mod device;
pub mod eavesdrop;
pub mod listen;
pub mod obstruct;
pub mod process;
pub mod protocol;
pub mod race;
pub mod rdma;
pub mod route;
pub mod socket;
pub mod source;
pub mod unix;
pub mod uring;
pub mod vxlan;

use crate::cluster::OUTSIDE;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The victim's servers on 0.0.0.0 and `[::]` of both nodes, TCP and UDP.
pub const PORT: u16 = 5000;
/// Those on IPv6.
pub const PORT6: u16 = 6000;
/// A TCP port where Slurm's daemons call back.
pub const SRUN_PORT: u16 = 60_001;
/// A UDP port where the victim has no server.
pub const FREE_PORT: u16 = 5010;

/// Who attempts, and against whom.
#[derive(Debug, Clone, clap::Args)]
pub struct Aim {
    /// Who we say we are
    #[arg(long)]
    pub who: String,
    /// Our own UID, where an attempt starts as root
    #[arg(long)]
    pub uid: u32,
    /// The victim's UID
    #[arg(long)]
    pub victim: u32,
    /// The victim's VNI
    #[arg(long)]
    pub vni: u32,
    /// This node's addresses
    #[arg(long)]
    pub here: Ipv4Addr,
    /// This node's addresses
    #[arg(long)]
    pub here6: Ipv6Addr,
    /// The other node's
    #[arg(long)]
    pub there: Ipv4Addr,
    /// The other node's
    #[arg(long)]
    pub there6: Ipv6Addr,
    /// A host of the subnet that is not listed; its servers are on the same ports
    #[arg(long)]
    pub host: Ipv4Addr,
    /// A host of the subnet that is not listed; its servers are on the same ports
    #[arg(long)]
    pub host6: Ipv6Addr,
    /// A host off-subnet that sends back what it gets on PORT
    #[arg(long, default_value_t = OUTSIDE.0)]
    pub outside: Ipv4Addr,
    /// A host off-subnet that sends back what it gets on PORT
    #[arg(long, default_value_t = OUTSIDE.1)]
    pub outside6: Ipv6Addr,
    /// The victim's NAT addresses; by default of the node's first network
    #[arg(long, default_value = "100.64.0.1")]
    pub nat: Ipv4Addr,
    /// The victim's NAT addresses; by default of the node's first network
    #[arg(long, default_value = "fd75:766e::1")]
    pub nat6: Ipv6Addr,
    /// The NIC
    #[arg(long)]
    pub nic: String,
}

impl Aim {
    /// The victim's VRF.
    #[must_use]
    pub fn vrf(&self) -> String {
        format!("uvn{}", self.victim)
    }

    /// The victim's endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("uvn{}.0", self.victim)
    }

    /// A server on this address.
    #[must_use]
    pub fn at(address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, if address.is_ipv4() { PORT } else { PORT6 })
    }
}

/// What to do: it gets what to say, and returns who answered, or why it did not work.
type Run = dyn Fn(&Aim, &str) -> io::Result<String>;

/// Something to try.
pub struct Attempt {
    /// What it is called.
    pub name: String,
    run: Box<Run>,
}

impl Attempt {
    /// Called so.
    pub fn new(name: impl Into<String>, run: impl Fn(&Aim, &str) -> io::Result<String> + 'static) -> Attempt {
        Attempt { name: name.into(), run: Box::new(run) }
    }
}

/// All attempts.
#[must_use]
pub fn all() -> Vec<Attempt> {
    let mut all = device::attempts();
    all.extend(source::attempts());
    all.extend(protocol::attempts());
    all.extend(vxlan::attempts());
    all.extend(process::attempts());
    all.extend(uring::attempts());
    all.extend(call::attempts());
    all.extend(route::attempts());
    all.extend(deputy::attempts());
    all.extend(race::attempts());
    all.extend(eavesdrop::attempts());
    all.extend(obstruct::attempts());
    all.extend(unix::attempts());
    all
}

/// Makes the attempts with these names, each in a process of its own and all at once, and writes a line about each
/// ([`crate::reach::parse`] reads them).
///
/// # Errors
/// No such attempt, or no process.
pub fn run(aim: &Aim, names: &[String]) -> io::Result<()> {
    let mut all = all();
    all.extend(protocol::families());
    all.extend(rdma::attempts());
    let mut children = Vec::new();
    for name in names {
        let attempt = all.iter().find(|attempt| attempt.name == *name);
        let attempt = attempt.ok_or_else(|| io::Error::other(format!("no attempt is called {name}")))?;
        // SAFETY: this program has one thread.
        #[allow(unsafe_code, reason = "fork")]
        match unsafe { fork() }? {
            ForkResult::Child => {
                let line = match (attempt.run)(aim, &format!("{}/{name}", aim.who)) {
                    Ok(answer) => format!("{name} = {answer}\n"),
                    Err(error) => format!("{name} ! {error}\n"),
                };
                // In one piece: the others write, too.
                let _reader_gone = io::stdout().write_all(line.as_bytes());
                std::process::exit(0);
            }
            ForkResult::Parent { child } => children.push(child),
        }
    }
    for child in children {
        waitpid(child, None)?;
    }
    Ok(())
}
