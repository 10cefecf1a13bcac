//! Where programs run: a node, and cores of it.

use crate::process::own_program;
use crate::ssh::Login;
use std::net::IpAddr;
use std::process::Command;

/// Where a program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub host: Host,
    /// Its cores, as taskset writes them; a real node's programs run on all cores.
    pub cores: String,
    /// The address by which other nodes reach it.
    pub address: IpAddr,
    /// Whether programs run in the real-time class SCHED_RR, in which a program that yields is queued behind all
    /// others. In the usual class it runs again before them, and where many programs poll on few cores, they wait
    /// milliseconds for their turn.
    pub round_robin: bool,
}

/// A node, here or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A network namespace of this machine.
    Netns(String),
    /// A real node.
    Ssh(Login),
}

impl Place {
    /// A command that will run there. In a namespace its process ID is the child's: `ip netns exec`, taskset and chrt
    /// replace themselves.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        match &self.host {
            Host::Netns(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, "taskset", "-c", &self.cores]);
                if self.round_robin {
                    command.args(["chrt", "--rr", "1"]);
                }
                command.arg(program);
                command
            }
            Host::Ssh(login) => login.command(program),
        }
    }

    /// A probe of this program that will run there; `arguments` begin with its name.
    #[must_use]
    pub fn probe(&self, arguments: &[&str]) -> Command {
        let own = match &self.host {
            Host::Netns(_) => own_program(),
            Host::Ssh(login) => login.program(),
        };
        let mut command = self.command(&own);
        command.arg("probe").args(arguments);
        command
    }
}
