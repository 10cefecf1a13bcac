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
    /// Its cores, as taskset writes them; all of a real node's.
    pub cores: String,
    /// Where the others reach it.
    pub address: IpAddr,
    /// In real-time class SCHED_RR: where many programs wait by polling on few cores, whoever yields stands behind all
    /// others. In the usual class he comes back before them, and programs wait milliseconds for their turn.
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
    /// A command that will run there. In a namespace it keeps its process id: `ip netns exec`, taskset and chrt replace
    /// themselves.
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

    /// One of our own probes that will run there; `arguments` begin with its name.
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
