//! The `uvn-dataplane` of each NIC: started, fed, reconciled.
//!
//! A [`Feed`] holds what one NIC's data plane should carry, and makes it carry that: whichever of the two daemons is
//! restarted, missing networks are added and unwanted ones removed. It never waits long: a data plane that does not
//! answer within [`PATIENCE`] is killed, which cuts its users off, and started again.

mod choice;
mod peers;
mod process;
mod supervise;
mod sync;

pub use choice::{choose, obstacle};
pub use peers::{MAX_BROADCAST, MAX_PREFIXES, Others};
pub use supervise::{end, left, was_told};

use crate::network::{Network, Nic};
use mio::{Registry, Token};
use process::Process;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use supervise::is_quiet;
use thiserror::Error;
use uvn_api::dataplane::client::{Client, ClientError};
use uvn_api::dataplane::config::{Share, Workers};
use uvn_api::dataplane::message::{
    self, ENDPOINT_FULL, ENDPOINT_QUEUES, Gear, NetworkState, Reply, Request, UnknownVni, XdpMode,
};
use uvn_api::uvnd::status::DataPlane;
use uvn_dataplane::port::tap::TapError;
use uvn_dataplane::port::xsk::MAX_MTU;
use uvn_wire::vxlan::Vni;

/// The folder of the control sockets, the configurations and the logs.
const RUN: &str = "/run/uvn";
/// How long a data plane may take to answer: longer than it takes to give up on a worker twice (3 seconds each), to add
/// a network and to remove it again.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a data plane may take from its start to its first answer.
const START: Duration = Duration::from_secs(15);
/// How often a starting data plane is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The pause before a data plane that has ended is started again: the first, doubled each time, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A data plane that has run this long had no trouble starting.
const STEADY: Duration = Duration::from_secs(60);
/// How long one turn may feed networks: uvnd has other work, too.
const TURN: Duration = Duration::from_millis(100);
/// The pause before a failed step is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How often the data plane's networks are compared with those that it should have.
const AUDIT: Duration = Duration::from_secs(30);
/// Broadcast and multicast frames per second that a node sends for one network, all copies together, unless the
/// configuration gives a number of frames.
const FLOOD: usize = 100_000;

/// Why a data plane does not do what it should.
#[derive(Debug, Error)]
pub enum FeedError {
    /// Its configuration cannot be written.
    #[error("{path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("cannot start uvn-dataplane for {nic}: {source}; is it installed beside uvnd or in /usr/sbin?")]
    Launch {
        /// The NIC.
        nic: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The data plane does not run.
    #[error("the data plane of {nic} does not run: {message}")]
    Down {
        /// The NIC.
        nic: String,
        /// The reason.
        message: String,
    },
    /// The endpoint of a network cannot be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The data plane refuses a network.
    #[error("the data plane of {nic} refuses network {vni}: {source}")]
    Refused {
        /// The NIC.
        nic: String,
        /// The network.
        vni: Vni,
        /// Its reason.
        source: ClientError,
    },
}

/// One NIC's data plane, and what it should carry.
#[derive(Debug)]
pub struct Feed {
    nic: Nic,
    others: Others,
    wanted: BTreeMap<Vni, Wanted>,
    /// Networks that the data plane is still to be told: new, changed, or to be tried again.
    pending: BTreeSet<Vni>,
    /// Networks that the data plane carries, as far as is known here.
    carried: BTreeSet<Vni>,
    state: State,
    /// Why the data plane does not run.
    fault: Option<String>,
    pause: Duration,
    restarts: u32,
    /// The time of the next comparison with the data plane's networks.
    audit: Instant,
    /// Data planes that are ending: with many endpoints, the kernel takes seconds.
    ending: Vec<Process>,
    source: (Registry, Token),
}

/// A network that the data plane should carry.
#[derive(Debug)]
struct Wanted {
    network: Network,
    /// Why it is not carried.
    fault: Option<String>,
}

#[derive(Debug)]
enum State {
    /// To be started, or found running, at that time.
    Down(Instant),
    /// Started or found, and not answering yet.
    Starting {
        process: Option<Process>,
        client: Option<Client>,
        since: Instant,
    },
    Up {
        process: Option<Process>,
        client: Client,
        pid: i32,
        since: Instant,
    },
}

impl Feed {
    /// The data plane of a NIC, driven by [`Feed::turn`]. Its connection gets `token` at `registry`.
    ///
    /// # Errors
    /// The kernel gives no descriptor.
    pub fn new(nic: Nic, others: Others, registry: &Registry, token: Token) -> io::Result<Feed> {
        let now = Instant::now();
        Ok(Feed {
            nic,
            others,
            wanted: BTreeMap::new(),
            pending: BTreeSet::new(),
            carried: BTreeSet::new(),
            state: State::Down(now),
            fault: None,
            pause: PAUSE.0,
            restarts: 0,
            audit: now,
            ending: Vec::new(),
            source: (registry.try_clone()?, token),
        })
    }

    /// Starts the data plane, or takes over a running one, and waits until it answers. For the start of uvnd: under
    /// `auto`, a data plane that cannot drive the NIC is [`Feed::stop`]ped, and the NIC is left to the kernel; also one
    /// that has a [`Feed::drawback`], if the kernel does better.
    ///
    /// # Errors
    /// The data plane does not start; the reason is its own.
    pub fn start(&mut self) -> Result<(), FeedError> {
        let end = Instant::now() + START;
        loop {
            let now = Instant::now();
            self.turn(now);
            match (&self.state, &self.fault) {
                (State::Up { .. }, _) => return Ok(()),
                (State::Down(_), Some(fault)) => return Err(self.down(fault)),
                _ if now >= end => return Err(self.down("it does not answer")),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Why the data plane is a bad choice for the NIC though it runs there; None: it is a good one. For `auto`.
    pub fn drawback(&mut self) -> Option<String> {
        let summary = self.summary()?;
        if self.nic.mtu as usize > MAX_MTU && summary.gear == Some(Gear::Engine) {
            let (mtu, why) = (self.nic.mtu, summary.gear_reason.unwrap_or_default());
            return Some(format!("MTU {mtu} is more than the engine takes ({MAX_MTU}); no shortcut: {why}"));
        }
        let copies = summary.zero_copy == Some(false);
        let why = match summary.xdp {
            Some(XdpMode::Generic) => "its driver has no XDP",
            _ if copies => "its driver has no zero-copy for AF_XDP",
            _ => return None,
        };
        let no_shortcut = summary.gear_reason.unwrap_or_default();
        Some(format!("{why}: the engine would be slower than the kernel; no shortcut: {no_shortcut}"))
    }

    /// Ends the data plane. The devices of its networks stay.
    pub fn stop(mut self) {
        self.halt();
        let _gone_already = fs::remove_file(self.path("toml"));
    }

    /// The NIC, as the data plane was last told.
    #[must_use]
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// Whether the data plane runs and has been told everything.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Up { .. }) && self.pending.is_empty()
    }

    /// Applies a change of the NIC or of the configuration. Another VTEP address, gear, encapsulation or
    /// workers require a restart.
    pub fn follow(&mut self, nic: Nic, others: Others) {
        // Other NICs that come and go are no reason.
        let begins = |nic: &Nic| {
            let workers = Workers { share: Share::default(), ..nic.workers.clone() };
            (nic.vteps().first().copied(), nic.encapsulation, workers, nic.gear, nic.name.clone())
        };
        let restart = begins(&nic) != begins(&self.nic);
        let told = |nic: &Nic| {
            (nic.addresses.clone(), nic.group, nic.queues.min(ENDPOINT_QUEUES as u32), nic.flood_rate)
        };
        let renew = told(&nic) != told(&self.nic);
        let allow = others != self.others;
        self.nic = nic;
        let before = std::mem::replace(&mut self.others, others);
        if restart {
            self.halt();
            self.state = State::Down(Instant::now());
        } else if renew || allow {
            if allow && matches!(self.state, State::Up { .. }) {
                self.allow(&before.allowed);
            }
            if renew {
                self.wanted.keys().copied().collect::<Vec<_>>().into_iter().for_each(|vni| self.forget(vni));
            }
            self.pending.extend(self.wanted.keys());
        }
    }

    /// Adds a network, whose endpoint must exist in its VRF. When this returns, the data plane carries the network.
    ///
    /// # Errors
    /// The data plane does not run, the endpoint cannot be opened, or the data plane refuses. The network stays wanted.
    pub fn add(&mut self, network: &Network) -> Result<(), FeedError> {
        /// How long to wait for a data plane that has just died.
        const REVIVAL: Duration = Duration::from_secs(2);

        let vni = network.vni;
        self.wanted.insert(vni, Wanted { network: network.clone(), fault: None });
        self.pending.insert(vni);
        let end = Instant::now() + REVIVAL;
        while !matches!(self.state, State::Up { .. }) {
            let now = Instant::now();
            if now >= end {
                return Err(self.down(self.fault.as_deref().unwrap_or("it is starting")));
            }
            self.turn(now);
            std::thread::sleep(Duration::from_millis(5));
        }
        // The network that it has under this number may have another endpoint.
        self.forget(vni);
        self.pending.remove(&vni);
        loop {
            match self.feed(vni) {
                // A data plane that was killed may not have released the device yet.
                Err(FeedError::Tap(TapError::Create { source, .. }))
                    if source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Removes a network. When this returns, the data plane no longer carries it, or has been killed.
    pub fn remove(&mut self, vni: Vni) {
        self.wanted.remove(&vni);
        self.pending.remove(&vni);
        self.forget(vni);
    }

    /// Makes exactly these networks wanted. [`Feed::turn`] does the rest.
    pub fn reconcile(&mut self, networks: impl IntoIterator<Item = Network>) {
        let mut before = std::mem::take(&mut self.wanted);
        for network in networks {
            let vni = network.vni;
            let had = before.remove(&vni);
            if had.as_ref().is_none_or(|had| had.network != network) {
                self.pending.insert(vni);
            }
            let fault = had.and_then(|had| had.fault);
            self.wanted.insert(vni, Wanted { network, fault });
        }
        self.pending.retain(|vni| self.wanted.contains_key(vni));
        self.audit = Instant::now();
    }

    /// When [`Feed::turn`] is due even if its token reports nothing.
    #[must_use]
    pub fn due(&self) -> Instant {
        match &self.state {
            State::Down(until) => *until,
            State::Starting { .. } => Instant::now() + LOOK,
            State::Up { .. } if !self.pending.is_empty() => Instant::now(),
            State::Up { .. } => self.audit,
        }
    }

    /// Drives the data plane on, for about [`TURN`]: starts it, notices its end, feeds it, compares.
    pub fn turn(&mut self, now: Instant) {
        self.ending.retain_mut(|process| !process.is_reaped());
        match &mut self.state {
            State::Down(until) if now < *until => {}
            State::Down(_) => self.begin(now),
            State::Starting { .. } => self.greet(now),
            State::Up { process, client, since, .. } => {
                let steady = now.saturating_duration_since(*since) > STEADY;
                let ended = process.as_mut().and_then(Process::ended);
                if ended.is_some() || !is_quiet(client.as_fd()) {
                    return self.lose(&ended.unwrap_or_else(|| "it ended".into()));
                }
                if steady {
                    self.pause = PAUSE.0;
                }
                if now >= self.audit {
                    self.compare(now);
                }
                self.catch_up(now + TURN);
            }
        }
    }

    /// VNIs that allowed VTEPs sent to though they are not on this NIC, since the last such call.
    pub fn unknown(&mut self) -> Vec<UnknownVni> {
        // Until the data plane has its networks back, all of them are unknown to it.
        if !self.is_settled() {
            return Vec::new();
        }
        match self.ask(&Request::Unknown) {
            Some(Reply::Unknown { seen }) => seen,
            _ => Vec::new(),
        }
    }

    /// The networks that the data plane carries; empty if it does not run.
    pub fn networks(&mut self) -> BTreeSet<Vni> {
        self.states().unwrap_or_default().iter().filter_map(|state| Vni::new(state.vni)).collect()
    }

    /// The networks that the data plane does not carry, and why.
    pub fn faults(&self) -> impl Iterator<Item = (Vni, &str)> {
        self.wanted.iter().filter_map(|(vni, wanted)| Some((*vni, wanted.fault.as_deref()?)))
    }

    /// The state of the data plane, for `uvn status`.
    pub fn status(&mut self) -> DataPlane {
        let summary = self.summary();
        let counters = self.ask(&Request::Counters);
        let mut status = DataPlane { restarts: self.restarts, ..DataPlane::default() };
        let Some(summary) = summary else {
            status.fault.clone_from(&self.fault);
            if status.fault.is_some() {
                status.state = message::State::Failed;
            }
            return status;
        };
        if let State::Up { pid, .. } = self.state {
            status.process = Some(pid);
        }
        (status.state, status.fault) = (summary.state, summary.fault);
        (status.xdp, status.zero_copy) = (summary.xdp, summary.zero_copy);
        (status.gear, status.gear_reason) = (summary.gear, summary.gear_reason);
        (status.shortcut, status.waiting) = (summary.shortcut, summary.waiting);
        (status.workers, status.networks) = (summary.workers.len(), summary.networks);
        status.notes = summary.notes;
        if let Some(Reply::Counters { total, xdp, lost, .. }) = counters {
            (status.total, status.verdicts, status.lost) = (total, xdp, lost);
        }
        if status.total.drops.contains_key(ENDPOINT_FULL) {
            status.endpoint_full = self.endpoint_full();
        }
        status
    }

    /// The networks whose endpoints have dropped the most frames.
    fn endpoint_full(&mut self) -> BTreeMap<u32, u64> {
        /// The most networks shown, so that a status of many NICs fits one message.
        const SHOWN: usize = 10;
        let states = self.states().unwrap_or_default();
        let dropped = |state: &NetworkState| Some((state.vni, *state.counts.drops.get(ENDPOINT_FULL)?));
        let mut networks: Vec<(u32, u64)> = states.iter().filter_map(dropped).collect();
        networks.sort_by_key(|(_, dropped)| std::cmp::Reverse(*dropped));
        networks.into_iter().take(SHOWN).collect()
    }
}
