//! The gear that carries a NIC's frames. The engine gear has an AF_XDP socket and a worker for each queue, behind an
//! XDP program. The shortcut gear has tc programs in the kernel, and workers for the frames that those leave to the
//! engine.
//!
//! No other module touches a gear's programs, maps or workers. A new gear needs: its programs beside `shortcut.rs`, its
//! part of [`Gear::open`], and its part of grant, revoke and `places.rs`.

pub mod boost;
pub mod cores;
mod places;
pub mod programs;
pub mod shortcut;
mod takeover;
mod tc;
pub mod thread;
mod workers;

pub use workers::Stuck;

use crate::networks::Networks;
use crate::port::link::{self, Link};
use crate::port::slow_path::{self, SlowPath};
use crate::port::xsk::{self, XskConfig, XskError, XskQueue};
use boost::Booster;
use boost::trial::Load;
use programs::{Mode, Xdp, XdpError};
use shortcut::{Declined, Shortcut};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use takeover::Takeover;
use thiserror::Error;
use thread::Notifier;
use uvn_api::dataplane::config::{Config, Path};
use uvn_api::dataplane::message::{self, Counts, NetworkState, Note, Summary, XdpMode};
use uvn_api::dataplane::vteps::Vteps;
use uvn_engine::port::Nic as _;
use uvn_engine::tables::Tables;
use uvn_engine::worker::{BATCH, Command, Report};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;
use uvn_wire::xdp::{Network, Verdict};
use workers::{Common, Workers};

/// Workers beside the shortcut at most: it leaves little over, and each takes 5 MiB.
const SLOW_PATHS: usize = 4;

/// Why a NIC could not be put to use.
#[derive(Debug, Error)]
pub enum GearError {
    /// A program cannot be loaded or attached.
    #[error(transparent)]
    Programs(#[from] XdpError),
    /// An AF_XDP socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] XskError),
    /// The shortcut cannot be had, and the configuration allows no other gear.
    #[error("path = \"shortcut\": {0}; with path = \"auto\" the engine would carry the NIC")]
    Shortcut(#[from] Declined),
    /// A worker's thread cannot be started.
    #[error("cannot start the worker of queue {queue}: {source}")]
    Thread {
        /// The queue.
        queue: u32,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A NIC in use.
pub struct Gear {
    /// The engine's XDP program, or the maps that the shortcut shares with it.
    programs: Xdp,
    /// None in the engine gear.
    shortcut: Option<Shortcut>,
    /// Boosts the traffic while that pays; None: not allowed, or not possible.
    booster: Option<Booster>,
    /// Why the NIC has this gear.
    why: String,
    /// The networks that the shortcut has not taken over yet.
    takeover: Takeover,
    /// The networks that the shortcut does not carry, and why.
    declined: HashMap<Vni, Declined>,
    workers: Workers,
    /// Queues of the NIC.
    queues: u32,
    /// Whether all AF_XDP sockets are zero-copy; None in the shortcut gear.
    zero_copy: Option<bool>,
}

impl Gear {
    /// Attaches the programs and starts the workers. They take no frames before [`Gear::set_local`].
    ///
    /// # Errors
    /// The kernel refuses something. What had been done is undone.
    pub fn open(
        config: &Config,
        link: &Link,
        queues: u32,
        tables: &Arc<Tables>,
        notifier: &Notifier,
        started: Instant,
    ) -> Result<Gear, GearError> {
        let cores = cores::choose(&link.name, &config.workers, queues as usize);
        let spin = Duration::from_micros(config.workers.spin_us.into());
        let common = Common { tables, notifier, spin, started };
        let why = match wanted(config) {
            Err(why) => why.to_owned(),
            Ok(why) => match Gear::open_shortcut(config, &common, link, &cores, why) {
                Ok(gear) => return Ok(gear),
                Err(error) if config.path == Path::Shortcut => return Err(error),
                Err(GearError::Shortcut(declined)) => declined.to_string(),
                Err(error) => error.to_string(),
            },
        };
        Gear::open_engine(config, &common, link, &cores, why)
    }

    fn open_engine(
        config: &Config,
        common: &Common<'_>,
        link: &Link,
        cores: &[Option<usize>],
        why: String,
    ) -> Result<Gear, GearError> {
        let programs = Xdp::attach(&link.name, &config.encapsulation)?;
        // While slow-N exists, another data plane may run on this NIC and need its device for GRO.
        if link::get(&slow_path::device(link.index)).is_err() {
            shortcut::clear(link.index);
        }
        if let Some(Mode::Generic { refused }) = programs.mode() {
            tracing::warn!(
                nic = link.name,
                refused,
                "XDP runs in generic mode, which is slow: the driver refuses it"
            );
        }
        tracing::info!(nic = link.name, queues = cores.len(), why, "NIC in use by the engine alone");
        let mut gear = Gear {
            programs,
            shortcut: None,
            booster: Booster::open(link, config.workers.boost, cores, false),
            why,
            takeover: Takeover::new(common.started),
            declined: HashMap::new(),
            workers: Workers::default(),
            queues: cores.len() as u32,
            zero_copy: Some(true),
        };
        for (queue, core) in (0..).zip(cores) {
            if let Err(error) = gear.start(config, common, queue, *core) {
                gear.stop();
                return Err(error);
            }
        }
        Ok(gear)
    }

    /// Opens the shortcut gear: its workers sleep until the tc programs leave frames to them.
    fn open_shortcut(
        config: &Config,
        common: &Common<'_>,
        link: &Link,
        cores: &[Option<usize>],
        why: &str,
    ) -> Result<Gear, GearError> {
        let settings = &config.encapsulation;
        let slow_paths =
            SlowPath::open(link.index, cores.len().min(SLOW_PATHS), BATCH).map_err(Declined::from)?;
        let tap = link::get(&slow_path::device(link.index)).map_err(XdpError::from)?.index;
        let mut programs = Xdp::load(link.index, settings, tap)?;
        let shortcut = Shortcut::attach(&mut programs, link, settings.port)?;
        tracing::info!(nic = link.name, queues = cores.len(), why, "NIC in use by the shortcut");
        let mut gear = Gear {
            programs,
            shortcut: Some(shortcut),
            booster: Booster::open(link, config.workers.boost, cores, true),
            why: why.into(),
            takeover: Takeover::new(common.started),
            declined: HashMap::new(),
            workers: Workers::default(),
            queues: cores.len() as u32,
            zero_copy: None,
        };
        for (queue, slow_path) in (0..).zip(slow_paths) {
            if let Err(source) = gear.workers.spawn(common, slow_path, queue, None) {
                gear.stop();
                return Err(GearError::Thread { queue, source });
            }
        }
        Ok(gear)
    }

    fn start(
        &mut self,
        config: &Config,
        common: &Common<'_>,
        queue: u32,
        core: Option<usize>,
    ) -> Result<(), GearError> {
        let busy_poll_us = Some(config.workers.busy_poll_us).filter(|time| *time > 0);
        let socket = XskQueue::open(&XskConfig {
            interface: config.nic.clone(),
            queue,
            frames: config.workers.frames,
            batch: BATCH,
            busy_poll_us,
        })?;
        if busy_poll_us.is_some() && !socket.busy_poll() {
            tracing::warn!(queue, "busy_poll_us has no effect: AF_XDP sockets have it from Linux 5.11 on");
        }
        self.zero_copy = self.zero_copy.map(|all| all && socket.zero_copy());
        if let Some(fd) = socket.fd() {
            self.programs.set_socket(queue, fd)?;
        }
        self.workers.spawn(common, socket, queue, core).map_err(|source| GearError::Thread { queue, source })
    }

    /// The longest IP packet on the NIC that the gear can carry, bytes.
    #[must_use]
    pub fn max_mtu(&self) -> usize {
        if self.shortcut.is_some() { slow_path::MAX_MTU } else { xsk::MAX_MTU }
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// How many queues the NIC had when this was opened.
    #[must_use]
    pub fn queues(&self) -> u32 {
        self.queues
    }

    /// Lets a network's frames through to the engine: the last step of a grant. The shortcut takes the network over
    /// later, in [`Gear::step`].
    ///
    /// # Errors
    /// The map of networks is full, or the kernel refuses.
    pub fn grant(&mut self, vni: Vni) -> Result<(), XdpError> {
        self.admit(vni)?;
        if self.shortcut.is_some() {
            self.takeover.add(vni, Instant::now());
        }
        Ok(())
    }

    fn admit(&mut self, vni: Vni) -> Result<(), XdpError> {
        self.programs.set_network(Network::engine(vni))
    }

    /// Drops a network's frames from now on: the first step of a revocation.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn revoke(&mut self, vni: Vni) -> Result<(), XdpError> {
        self.takeover.remove(vni, Instant::now());
        self.declined.remove(&vni);
        let removed = self.programs.remove_network(vni);
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.revoke(vni);
        }
        removed
    }

    /// When [`Gear::step`] must be called next; None: it has nothing to do.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.takeover.due().into_iter().chain(self.booster.as_ref().map(Booster::due)).min()
    }

    /// Boosts the traffic as it needs, and has the shortcut take over the next waiting network when it is time and no
    /// request waits.
    pub fn step(&mut self, networks: &Networks, requests_wait: bool) {
        if !requests_wait && let Some(vni) = self.takeover.take(Instant::now()) {
            self.take_over(vni, networks);
            self.takeover.pause(Instant::now());
        }
        // Taken out while the counters are read.
        if let Some(mut booster) = self.booster.take() {
            booster.follow(Instant::now(), || self.load());
            self.booster = Some(booster);
        }
    }

    /// Hands a network from the engine to the shortcut: an entry in the map of networks switches both directions at
    /// once. No frame is lost; frames that the engine still holds arrive late.
    fn take_over(&mut self, vni: Vni, networks: &Networks) {
        let (Some(shortcut), Some((_, entry))) = (&mut self.shortcut, networks.get(vni)) else { return };
        // The grace period of the grant lies between the last change of the map and this one, so no program still reads
        // an element that belonged to another network and is used for this one.
        let granted = shortcut.grant(&mut self.programs, entry).and_then(|network| {
            self.programs.set_network(network).map_err(|error| {
                shortcut.revoke(vni);
                error.into()
            })
        });
        if let Err(why) = granted {
            tracing::info!(%vni, %why, "the engine alone carries this network");
            self.declined.insert(vni, why);
        }
    }

    /// Gives new tables to the workers, and changed next hops to the shortcut.
    pub fn publish(&mut self, tables: &Arc<Tables>, hops_changed: bool) {
        self.workers.send(|| Command::Tables(tables.clone()));
        if hops_changed
            && let Some(shortcut) = &mut self.shortcut
            && let Err(error) = shortcut.follow(tables)
        {
            tracing::error!(%error, "cannot update the shortcut's next hops; the engine carries what is missing");
        }
    }

    /// Waits until every worker runs with tables of at least this epoch.
    ///
    /// # Errors
    /// One does not within three seconds.
    pub fn wait(&self, epoch: u64) -> Result<(), Stuck> {
        self.workers.wait(epoch)
    }

    /// Takes frames from these VTEPs and no others.
    ///
    /// # Errors
    /// A map is too small, or the kernel refuses.
    pub fn set_vteps(&mut self, vteps: &Vteps) -> Result<(), XdpError> {
        let (exact, ranges) = vteps.listed();
        self.programs.set_vteps(&exact.collect::<Vec<_>>(), ranges)
    }

    /// Takes frames to the NIC's MAC.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mac(&mut self, mac: Mac) -> Result<(), XdpError> {
        self.programs.set_mac(mac)
    }

    /// Takes frames to these outer destinations.
    ///
    /// # Errors
    /// The map is too small, or the kernel refuses.
    pub fn set_local(&mut self, local: &[IpAddr]) -> Result<(), XdpError> {
        self.programs.set_local(local)
    }

    /// Restores what another program has removed and the gear can work without.
    pub fn mend(&mut self) {
        if let Some(shortcut) = &mut self.shortcut {
            shortcut.mend();
        }
    }

    /// What is gone that the gear cannot work without; None: nothing.
    #[must_use]
    pub fn broken(&self) -> Option<&'static str> {
        let taken = match &self.shortcut {
            Some(shortcut) => shortcut.broken(),
            None => self.programs.is_detached().then_some("the XDP program was detached by another program"),
        };
        taken.or(self.workers.has_ended().then_some("a worker has ended"))
    }

    /// The number of turns of each worker's loop so far. Wakes the workers, since an idle one turns only when it is
    /// woken.
    #[must_use]
    pub fn turns(&self) -> Vec<u64> {
        self.workers.turns()
    }

    /// The measurements of each worker.
    ///
    /// # Errors
    /// One does not answer.
    pub fn reports(&self) -> Result<Vec<Report>, Stuck> {
        self.workers.reports()
    }

    /// The counts of each worker. Adds them all, and what the shortcut carried, to `total`.
    pub fn counts(&self, total: &mut Counts) -> Vec<Counts> {
        let workers = self.workers.counts();
        workers.iter().for_each(|counts| total.add(counts));
        if let Some(shortcut) = &self.shortcut {
            total.add_traffic(&shortcut.total());
        }
        workers
    }

    /// What uvn has carried on this NIC: other traffic is none of the boosts' business.
    fn load(&self) -> Load {
        let mut total = Counts::default();
        let _each = self.counts(&mut total);
        Load {
            rx_packets: total.rx_frames,
            rx_bytes: total.rx_bytes,
            tx_packets: total.tx_frames,
            tx_bytes: total.tx_bytes,
        }
    }

    /// Frames by the programs' verdict, in the order of [`Verdict::ALL`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn verdicts(&self) -> Result<[u64; Verdict::ALL.len()], XdpError> {
        self.programs.counters()
    }

    /// VNIs without a network on this NIC: the VTEP that sent to each, and the number of frames since the last call.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_unknown(&mut self) -> Result<Vec<(Vni, IpAddr, u64)>, XdpError> {
        self.programs.take_unknown()
    }

    /// Fills in what `show` says of the gear.
    pub fn show(&self, summary: &mut Summary) {
        summary.xdp = self.programs.mode().map(|mode| match mode {
            Mode::Driver => XdpMode::Driver,
            Mode::Generic { .. } => XdpMode::Generic,
        });
        summary.zero_copy = self.zero_copy;
        summary.gear = Some(match self.shortcut {
            Some(_) => message::Gear::Shortcut,
            None => message::Gear::Engine,
        });
        let boosted = self.booster.as_ref().map_or("", Booster::about);
        summary.gear_reason = Some(format!("{}{boosted}", self.why));
        summary.boost = self.booster.as_ref().and_then(Booster::boost);
        summary.workers = self.workers.states();
        summary.shortcut = self.shortcut.as_ref().map_or(0, Shortcut::networks);
        summary.waiting = self.takeover.len();
    }

    /// Fills in what the gear knows of a network.
    pub fn show_network(&self, vni: Vni, state: &mut NetworkState) {
        if let Some(shortcut) = &self.shortcut {
            state.counts.add_traffic(&shortcut.traffic(vni));
            state.shortcut = shortcut.carries(vni);
        }
        state.waiting = self.takeover.contains(vni);
        let alone = self.declined.get(&vni).map(|why| format!("the engine alone carries it: {why}"));
        state.notes.extend(alone);
    }

    /// The gear's drawbacks: it works, but for these.
    #[must_use]
    pub fn notes(&self, nic: &str) -> Vec<Note> {
        let joins = self.shortcut.as_ref().map(Shortcut::joins);
        let no_gro = joins.is_some() && matches!(link::joins_frames(nic), Ok(false));
        let unseen = self.verdicts().map_or(0, |counters| counters[Verdict::Unseen as usize]);
        let notes = [
            (unseen > 0).then_some(Note::Unseen { frames: unseen }),
            no_gro.then_some(Note::GroOff),
            (joins == Some(false)).then_some(Note::NotJoined),
        ];
        notes.into_iter().flatten().collect()
    }

    /// Ends the gear: it stops taking frames, then the workers end, then the programs. Counts are added to `past` and
    /// to the networks.
    pub fn close(mut self, networks: &mut Networks, past: &mut Counts) {
        // All networks at once: the kernel takes a while to detach thousands of programs.
        if let Err(error) = self.programs.clear_networks() {
            tracing::error!(%error, "cannot empty the map of networks; the programs take frames until they end");
        }
        let _each = self.counts(past);
        if let Some(shortcut) = &self.shortcut {
            for (_, entry) in networks.iter_mut() {
                let traffic = shortcut.traffic(entry.network.vni);
                entry.keep(&traffic);
            }
        }
        self.stop();
    }

    fn stop(mut self) {
        self.workers.stop();
    }
}

/// Why the configuration wants the shortcut; or, as an error, why it does not.
fn wanted(config: &Config) -> Result<&'static str, &'static str> {
    let sums = |vtep: &IpAddr| config.encapsulation.sums(*vtep);
    match config.path {
        Path::Engine => Err("configured"),
        Path::Shortcut => Ok("configured"),
        Path::Auto if config.vtep.iter().all(sums) => {
            Err("outer UDP checksums are on, which only the engine computes")
        }
        Path::Auto => Ok("frames stay in the kernel: no hand-over between cores"),
    }
}
