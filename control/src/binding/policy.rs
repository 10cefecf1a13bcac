//! The socket programs' policy, from a configuration.

use super::{CalledBack, Policy};
use crate::config::{Config, Mode};
use crate::{peers, rdma};
use std::collections::BTreeSet;

/// The policy of a configuration; with `observe`, it refuses nothing yet.
#[must_use]
pub fn policy(config: &Config, called_back: &CalledBack, slurm_user: u32, observe: bool) -> Policy {
    let ports: BTreeSet<u16> = config.underlays.iter().map(|underlay| underlay.port).collect();
    Policy {
        observe: observe || config.mode == Mode::Observe,
        policed: config.policed_ranges(),
        service_ports: config.service_ports.clone(),
        srun_ports: config.srun_ports.clone(),
        called_back: called_back.clone(),
        slurm_user,
        vxlan_ports: ports.into_iter().collect(),
        on_subnet: config.underlays.iter().flat_map(|underlay| underlay.subnets.clone()).collect(),
        hosts: config.hosts.clone(),
        denied: rdma::denied(config),
    }
}

/// The UID of slurmctld; 0 without `srun_ports`. Reads slurm.conf, which may be on a network file system: not for every
/// turn of the daemon's loop.
#[must_use]
pub fn slurm_user(config: &Config) -> u32 {
    if config.srun_ports.is_empty() { 0 } else { peers::slurm_user(&config.peers) }
}
