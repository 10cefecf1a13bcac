//! A NIC in use: the XDP program on it, and one AF_XDP socket and worker for each of its queues.

use crate::config::Config;
use crate::cores;
use crate::link::Link;
use crate::port::Nic;
use crate::tables::Tables;
use crate::thread::{self, Handle, Notifier, Settings};
use crate::worker::{BATCH, Command};
use crate::xdp::{Mode, Xdp, XdpError};
use crate::xsk::{XskConfig, XskError, XskQueue};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};
use thiserror::Error;

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
        let xdp = Xdp::attach(&link.name, config.encapsulation.port)?;
        let mut queues = Queues { xdp, workers: Vec::new(), zero_copy: true };
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
