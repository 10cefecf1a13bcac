//! A NIC in use: the XDP program on it, and one AF_XDP socket and worker for each of its queues.

use crate::config::{Config, Path};
use crate::cores;
use crate::link::Link;
use crate::networks::Entry;
use crate::port::Nic;
use crate::shortcut::{Declined, Shortcut};
use crate::tables::Tables;
use crate::thread::{self, Handle, Notifier, Settings};
use crate::worker::{BATCH, Command};
use crate::xdp::{Mode, Xdp, XdpError};
use crate::xsk::{XskConfig, XskError, XskQueue};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_wire::vxlan::Vni;
use uvn_wire::xdp::Network;

/// How long a worker may take to run with new tables. It takes microseconds unless its core is taken from it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a NIC could not be put to use.
#[derive(Debug, Error)]
pub enum QueuesError {
    /// The XDP program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// An AF_XDP socket.
    #[error(transparent)]
    Socket(#[from] XskError),
    /// The in-kernel gear, which the configuration insists on.
    #[error("path = \"shortcut\": {0}; path = \"auto\" would leave it to the engine")]
    Shortcut(#[from] Declined),
    /// A worker's thread.
    #[error("cannot start the worker of queue {queue}: {source}")]
    Thread {
        /// The queue.
        queue: u32,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A worker did not take over new tables in time.
#[derive(Debug, Error)]
#[error("the worker of queue {0} does not answer: is its core taken by something else?")]
pub struct Stuck(pub u32);

/// One queue's worker.
pub struct Running {
    /// The thread.
    pub handle: Handle,
    /// Its NIC queue.
    pub queue: u32,
    /// Its core.
    pub core: Option<usize>,
}

/// A NIC in use.
pub struct Queues {
    /// The XDP program.
    pub xdp: Xdp,
    /// The in-kernel gear; after the XDP program, which is to go first.
    pub shortcut: Option<Shortcut>,
    /// Why there is an in-kernel gear, or none.
    pub gear_reason: String,
    /// In the order of the queues.
    pub workers: Vec<Running>,
    /// Whether all sockets are zero-copy.
    pub zero_copy: bool,
}

impl Queues {
    /// Attaches the XDP program and starts the workers. No VTEP address is ours yet: see [`Xdp::set_local`].
    ///
    /// # Errors
    /// The kernel refuses something; what had been done is undone.
    pub fn open(
        config: &Config,
        link: &Link,
        count: u32,
        tables: &Arc<Tables>,
        notifier: &Notifier,
        started: Instant,
    ) -> Result<Queues, QueuesError> {
        let cores = cores::choose(&link.name, &config.workers.cores, count as usize);
        let mut xdp = Xdp::attach(&link.name, &config.encapsulation)?;
        let (shortcut, gear_reason) = choose_gear(config, &mut xdp, &link.name)?;
        let mut queues = Queues { xdp, shortcut, gear_reason, workers: Vec::new(), zero_copy: true };
        for (queue, core) in (0..count).zip(cores) {
            if let Err(error) = queues.start(config, queue, core, tables, notifier, started) {
                queues.stop();
                return Err(error);
            }
        }
        let mode = match queues.xdp.mode() {
            Mode::Driver => "driver",
            Mode::Generic { refused } => {
                tracing::warn!(nic = link.name, refused, "XDP in generic mode, which is slow");
                "generic"
            }
        };
        let (gear, why) = (queues.gear(), &queues.gear_reason);
        tracing::info!(nic = link.name, gear, why, "the gear of what needs no decision");
        tracing::info!(nic = link.name, mode, zero_copy = queues.zero_copy, queues = count, "NIC in use");
        Ok(queues)
    }

    fn start(
        &mut self,
        config: &Config,
        queue: u32,
        core: Option<usize>,
        tables: &Arc<Tables>,
        notifier: &Notifier,
        started: Instant,
    ) -> Result<(), QueuesError> {
        let busy_poll_us = Some(config.workers.busy_poll_us).filter(|time| *time > 0);
        let socket = XskQueue::open(&XskConfig {
            interface: config.nic.clone(),
            queue,
            frames: config.workers.frames,
            batch: BATCH,
            busy_poll_us,
        })?;
        if busy_poll_us.is_some() && !socket.busy_poll() {
            tracing::warn!(queue, "this kernel has no busy polling for AF_XDP (5.11 and later have)");
        }
        self.zero_copy &= socket.zero_copy();
        if let Some(fd) = socket.fd() {
            self.xdp.set_socket(queue, fd)?;
        }
        let settings = Settings {
            queue: queue as usize,
            core,
            spin: Duration::from_micros(config.workers.spin_us.into()),
            started,
        };
        let handle = thread::spawn(socket, settings, tables.clone(), notifier.clone())
            .map_err(|source| QueuesError::Thread { queue, source })?;
        self.workers.push(Running { handle, queue, core });
        Ok(())
    }

    /// `shortcut` or `engine`.
    #[must_use]
    pub fn gear(&self) -> &'static str {
        if self.shortcut.is_some() { "shortcut" } else { "engine" }
    }

    /// Lets a network's frames through: the last step of a grant.
    ///
    /// # Errors
    /// The XDP program's map is full, or the kernel refuses.
    pub fn grant(&mut self, entry: &Entry) -> Result<(), XdpError> {
        let vni = entry.network.vni;
        let network = match self.shortcut.as_mut().map(|shortcut| shortcut.grant(&mut self.xdp, entry)) {
            None => Network::ENGINE,
            Some(Ok(network)) => network,
            Some(Err(declined)) => {
                tracing::info!(%vni, why = %declined, "the engine alone carries this network");
                Network::ENGINE
            }
        };
        self.xdp.set_network(vni, network)
    }

    /// Drops a network's frames from now on: the first step of a revocation.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn revoke(&mut self, vni: Vni) -> Result<(), XdpError> {
        let removed = self.xdp.remove_network(vni);
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.revoke(vni);
        }
        removed
    }

    /// Sends a command to every worker.
    pub fn send(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            worker.handle.send(command());
        }
    }

    /// Waits until every worker runs with tables of at least this epoch.
    ///
    /// # Errors
    /// One does not within three seconds.
    pub fn wait(&self, epoch: u64) -> Result<(), Stuck> {
        let end = Instant::now() + PATIENCE;
        for worker in &self.workers {
            while worker.handle.status.epoch.load(Acquire) < epoch {
                if Instant::now() > end {
                    return Err(Stuck(worker.queue));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    /// Ends the workers, each after it has sent what it holds, then detaches the XDP program.
    pub fn stop(self) {
        for worker in self.workers {
            if !worker.handle.stop() {
                tracing::error!(queue = worker.queue, "the worker had panicked");
            }
        }
    }
}

/// The in-kernel gear, or none, and why.
fn choose_gear(config: &Config, xdp: &mut Xdp, nic: &str) -> Result<(Option<Shortcut>, String), QueuesError> {
    let sums = |vtep: &IpAddr| {
        if vtep.is_ipv4() { config.encapsulation.checksum } else { config.encapsulation.ipv6_checksum }
    };
    if config.path == Path::Engine {
        return Ok((None, "configured".into()));
    }
    if config.path == Path::Auto && config.vtep.iter().all(sums) {
        return Ok((None, "outer UDP checksums are on, which only the engine computes".into()));
    }
    match Shortcut::attach(xdp, nic) {
        Ok(shortcut) if config.path == Path::Shortcut => Ok((Some(shortcut), "configured".into())),
        Ok(shortcut) => Ok((Some(shortcut), "frames stay in the kernel: no hand-over between cores".into())),
        Err(declined) if config.path == Path::Shortcut => Err(declined.into()),
        Err(declined) => Ok((None, declined.to_string())),
    }
}
