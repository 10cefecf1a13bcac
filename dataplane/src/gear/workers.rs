//! A NIC's workers: one for each of its queues; beside the shortcut up to four.

use crate::gear::thread::{self, Handle, Notifier, Settings};
use crossbeam::channel::unbounded;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_api::dataplane::message::{Counts, WorkerState};
use uvn_engine::port::{Endpoint, Nic};
use uvn_engine::tables::Tables;
use uvn_engine::worker::{Command, Report};

/// How long a worker may take to answer. It takes microseconds unless its core is taken from it.
const PATIENCE: Duration = Duration::from_secs(3);

/// The worker of this queue did not answer within three seconds.
#[derive(Debug, Error)]
#[error("the worker of queue {0} has not answered for 3 s; another program may hold its core")]
pub struct Stuck(pub u32);

/// The settings that all workers share.
pub(super) struct Common<'a> {
    pub tables: &'a Arc<Tables>,
    pub notifier: &'a Notifier,
    /// How long each spins without work, before it sleeps.
    pub spin: Duration,
    /// Second 0 of [`uvn_engine::tables::Learned::seen`].
    pub started: Instant,
}

struct Worker {
    handle: Handle,
    queue: u32,
    core: Option<usize>,
}

/// The workers, in the order of the queues.
#[derive(Default)]
pub(super) struct Workers(Vec<Worker>);

impl Workers {
    /// Starts the worker of a queue.
    ///
    /// # Errors
    /// The kernel starts no thread.
    pub fn spawn<N: Nic<Frame: Send> + Send + 'static>(
        &mut self,
        common: &Common<'_>,
        nic: N,
        queue: u32,
        core: Option<usize>,
    ) -> io::Result<()> {
        let settings = Settings { queue: queue as usize, core, spin: common.spin, started: common.started };
        let handle = thread::spawn(nic, settings, common.tables.clone(), common.notifier.clone())?;
        self.0.push(Worker { handle, queue, core });
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn send(&self, command: impl Fn() -> Command) {
        self.0.iter().for_each(|worker| worker.handle.send(command()));
    }

    /// Gives each worker its side of an endpoint.
    pub fn attach(&self, slot: u32, endpoints: Vec<Box<dyn Endpoint>>) {
        for (worker, endpoint) in self.0.iter().zip(endpoints) {
            worker.handle.send(Command::Attach { slot, endpoint });
        }
    }

    /// Waits until every worker runs with tables of at least this epoch.
    ///
    /// # Errors
    /// One does not within three seconds.
    pub fn wait(&self, epoch: u64) -> Result<(), Stuck> {
        let end = Instant::now() + PATIENCE;
        for worker in &self.0 {
            while worker.handle.status.epoch.load(Acquire) < epoch {
                if Instant::now() > end {
                    return Err(Stuck(worker.queue));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    /// Whether one has ended on its own.
    pub fn has_ended(&self) -> bool {
        self.0.iter().any(|worker| worker.handle.has_ended())
    }

    /// The number of turns of each worker's loop so far. Wakes the workers, since an idle one turns only when it is
    /// woken.
    pub fn turns(&self) -> Vec<u64> {
        self.0
            .iter()
            .map(|worker| {
                let turns = worker.handle.status.turns.load(Relaxed);
                worker.handle.wake();
                turns
            })
            .collect()
    }

    pub fn states(&self) -> Vec<WorkerState> {
        let state = |worker: &Worker| WorkerState {
            queue: worker.queue as usize,
            core: worker.core,
            epoch: worker.handle.status.epoch.load(Acquire),
        };
        self.0.iter().map(state).collect()
    }

    /// The counts of each worker.
    pub fn counts(&self) -> Vec<Counts> {
        let counted = |worker: &Worker| {
            let mut counts = Counts::default();
            worker.handle.status.counters.add_to(&mut counts);
            counts
        };
        self.0.iter().map(counted).collect()
    }

    /// The measurements of each worker.
    ///
    /// # Errors
    /// One does not answer.
    pub fn reports(&self) -> Result<Vec<Report>, Stuck> {
        let end = Instant::now() + PATIENCE;
        let ask = |worker: &Worker| {
            let (sender, receiver) = unbounded();
            worker.handle.send(Command::Report(sender));
            (worker.queue, receiver)
        };
        let asked: Vec<_> = self.0.iter().map(ask).collect();
        asked
            .into_iter()
            .map(|(queue, receiver)| receiver.recv_deadline(end).map_err(|_| Stuck(queue)))
            .collect()
    }

    /// Ends each after it has sent what it holds.
    pub fn stop(&mut self) {
        for worker in self.0.drain(..) {
            if !worker.handle.stop() {
                tracing::error!(queue = worker.queue, "the worker has panicked");
            }
        }
    }
}
