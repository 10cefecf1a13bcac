//! A NIC in use: the XDP program on it, and one AF_XDP socket and worker for each of its queues.

pub mod boost;
pub mod cores;
pub mod programs;
pub mod shortcut;
pub mod takeover;
pub mod thread;

use crate::gear::boost::Booster;
use crate::gear::programs::{Mode, Xdp, XdpError};
use crate::gear::shortcut::{Declined, Shortcut};
use crate::gear::takeover::Waiting;
use crate::gear::thread::{Handle, Notifier, Settings};
use crate::networks::{Entry, Networks};
use crate::port::link::{self, Link};
use crate::port::slow_path::{self, SlowPath};
use crate::port::xsk::{self, XskConfig, XskError, XskQueue};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_api::dataplane::config::{Config, Path};
use uvn_api::dataplane::message::Boost;
use uvn_engine::port::Nic;
use uvn_engine::tables::Tables;
use uvn_engine::worker::{BATCH, Command};
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
    /// The XDP program, or what the in-kernel gear shares with it.
    pub xdp: Xdp,
    /// The in-kernel gear.
    pub shortcut: Option<Shortcut>,
    /// What speeds the traffic up while it pays.
    pub booster: Option<Booster>,
    /// Why there is an in-kernel gear, or none.
    why: String,
    /// The networks that the in-kernel gear has not taken over yet.
    pub waiting: Waiting,
    /// In the order of the queues.
    pub workers: Vec<Running>,
    /// Whether all sockets are zero-copy; None in the in-kernel gear.
    pub zero_copy: Option<bool>,
}

/// What every worker is started with.
struct Engine<'a> {
    config: &'a Config,
    tables: &'a Arc<Tables>,
    notifier: &'a Notifier,
    started: Instant,
}

impl Queues {
    /// The longest IP packet on the NIC that this can carry, bytes.
    #[must_use]
    pub fn max_mtu(&self) -> usize {
        if self.shortcut.is_some() { slow_path::MAX_MTU } else { xsk::MAX_MTU }
    }

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
        let engine = Engine { config, tables, notifier, started };
        let why = match wanted(config) {
            Err(why) => why.to_owned(),
            Ok(why) => match Queues::open_shortcut(&engine, link, &cores, why) {
                Ok(queues) => return Ok(queues),
                Err(error) if config.path == Path::Shortcut => return Err(error),
                Err(QueuesError::Shortcut(declined)) => declined.to_string(),
                Err(error) => error.to_string(),
            },
        };
        let xdp = Xdp::attach(&link.name, &config.encapsulation)?;
        // One that runs beside this, by mistake, has its own.
        if link::get(&slow_path::device(link.index)).is_err() {
            shortcut::clear(link.index);
        }
        if let Some(Mode::Generic { refused }) = xdp.mode() {
            tracing::warn!(nic = link.name, refused, "XDP in generic mode, which is slow");
        }
        tracing::info!(nic = link.name, queues = count, why, "NIC in use by the engine alone");
        let waiting = Waiting::new(started);
        let (workers, zero_copy) = (Vec::new(), Some(true));
        let booster = follow(link, None);
        let mut queues = Queues { xdp, shortcut: None, booster, why, waiting, workers, zero_copy };
        for (queue, core) in (0..count).zip(cores) {
            if let Err(error) = queues.start(&engine, queue, core) {
                queues.stop();
                return Err(error);
            }
        }
        Ok(queues)
    }

    /// The in-kernel gear, and workers that sleep until it leaves something over.
    fn open_shortcut(
        engine: &Engine<'_>,
        link: &Link,
        cores: &[Option<usize>],
        why: &str,
    ) -> Result<Queues, QueuesError> {
        let settings = &engine.config.encapsulation;
        let slow_paths = SlowPath::open(link.index, cores.len(), BATCH).map_err(Declined::from)?;
        let tap = link::get(&slow_path::device(link.index)).map_err(XdpError::from)?.index;
        let mut xdp = Xdp::load(link.index, settings, tap)?;
        let shortcut = Some(Shortcut::attach(&mut xdp, link, settings.port)?);
        tracing::info!(nic = link.name, queues = cores.len(), why, "NIC in use by the in-kernel gear");
        let booster = follow(link, Some(cores.iter().copied().flatten().collect()));
        let (why, waiting, workers) = (why.into(), Waiting::new(engine.started), Vec::new());
        let mut queues = Queues { xdp, shortcut, booster, why, waiting, workers, zero_copy: None };
        for (queue, slow_path) in (0..).zip(slow_paths) {
            if let Err(error) = queues.spawn(engine, slow_path, queue, None) {
                queues.stop();
                return Err(error);
            }
        }
        Ok(queues)
    }

    fn start(&mut self, engine: &Engine<'_>, queue: u32, core: Option<usize>) -> Result<(), QueuesError> {
        let config = engine.config;
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
        self.zero_copy = self.zero_copy.map(|all| all && socket.zero_copy());
        if let Some(fd) = socket.fd() {
            self.xdp.set_socket(queue, fd)?;
        }
        self.spawn(engine, socket, queue, core)
    }

    fn spawn<N: Nic<Frame: Send> + Send + 'static>(
        &mut self,
        engine: &Engine<'_>,
        nic: N,
        queue: u32,
        core: Option<usize>,
    ) -> Result<(), QueuesError> {
        let settings = Settings {
            queue: queue as usize,
            core,
            spin: Duration::from_micros(engine.config.workers.spin_us.into()),
            started: engine.started,
        };
        let handle = thread::spawn(nic, settings, engine.tables.clone(), engine.notifier.clone())
            .map_err(|source| QueuesError::Thread { queue, source })?;
        self.workers.push(Running { handle, queue, core });
        Ok(())
    }

    /// `shortcut` or `engine`.
    #[must_use]
    pub fn gear(&self) -> &'static str {
        if self.shortcut.is_some() { "shortcut" } else { "engine" }
    }

    /// What speeds the traffic up now.
    #[must_use]
    pub fn boost(&self) -> Option<Boost> {
        self.booster.as_ref().and_then(Booster::boost)
    }

    /// Why this gear, and what speeds the traffic up now.
    #[must_use]
    pub fn gear_reason(&self) -> String {
        let boost = match self.boost() {
            None => "",
            Some(Boost::Threads) => {
                "; receiving in threads on the workers' cores, which stay awake: that carries more now"
            }
            Some(Boost::Awake) => "; cores stay awake, which carries more now",
        };
        format!("{}{boost}", self.why)
    }

    /// Lets a network's frames through, by the engine: the last step of a grant. The in-kernel gear takes it over later,
    /// see [`Queues::upgrade`].
    ///
    /// # Errors
    /// The XDP program's map is full, or the kernel refuses.
    pub fn grant(&mut self, vni: Vni) -> Result<(), XdpError> {
        self.xdp.set_network(Network::engine(vni))?;
        if self.shortcut.is_some() {
            self.waiting.add(vni, Instant::now());
        }
        Ok(())
    }

    /// Has the in-kernel gear take over the next network that waits for it, if it is time. The engine has its frames
    /// until both directions change at once, by the map of networks; none is lost, those that the engine still holds
    /// come late.
    pub fn upgrade(&mut self, networks: &mut Networks) {
        let Some(vni) = self.waiting.take(Instant::now()) else { return };
        let (Some(shortcut), Some(entry)) = (&mut self.shortcut, networks.get_mut(vni)) else { return };
        // Between the last change of the map and this one lies the grace period of a grant: what the map used for
        // another network, and may use for this one, no program still reads.
        let granted = shortcut.grant(&mut self.xdp, entry).and_then(|network| {
            self.xdp.set_network(network).map_err(|error| {
                shortcut.revoke(vni);
                error.into()
            })
        });
        entry.declined = granted.err();
        if let Some(why) = &entry.declined {
            tracing::info!(%vni, %why, "the engine alone carries this network");
        }
        self.waiting.pause(Instant::now());
    }

    /// Drops a network's frames from now on: the first step of a revocation.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn revoke(&mut self, vni: Vni) -> Result<(), XdpError> {
        self.waiting.remove(vni, Instant::now());
        let removed = self.xdp.remove_network(vni);
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.revoke(vni);
        }
        removed
    }

    /// Leaves a network to the engine, whose endpoint the in-kernel gear may not use any more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn demote(&mut self, entry: &mut Entry) -> Result<(), XdpError> {
        let vni = entry.network.vni;
        if let Some(shortcut) = &self.shortcut {
            entry.keep(&shortcut.traffic(vni));
        }
        self.revoke(vni)?;
        self.xdp.set_network(Network::engine(vni))
    }

    /// What somebody has taken from the NIC that this cannot work without; None: nothing.
    #[must_use]
    pub fn broken(&self) -> Option<&'static str> {
        match &self.shortcut {
            Some(shortcut) => shortcut.broken(),
            None => self.xdp.is_detached().then_some("the XDP program was detached"),
        }
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

fn follow(link: &Link, threads: Option<Vec<usize>>) -> Option<Booster> {
    Booster::open(link, threads)
        .inspect_err(|error| tracing::info!(%error, "the NIC's traffic is not followed"))
        .ok()
}

/// Whether the in-kernel gear is wanted, and why; or why not.
fn wanted(config: &Config) -> Result<&'static str, &'static str> {
    let sums = |vtep: &IpAddr| {
        if vtep.is_ipv4() { config.encapsulation.checksum } else { config.encapsulation.ipv6_checksum }
    };
    match config.path {
        Path::Engine => Err("configured"),
        Path::Shortcut => Ok("configured"),
        Path::Auto if config.vtep.iter().all(sums) => {
            Err("outer UDP checksums are on, which only the engine computes")
        }
        Path::Auto => Ok("frames stay in the kernel: no hand-over between cores"),
    }
}
