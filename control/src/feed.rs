//! The `uvn-dataplane` of each NIC: started, fed, reconciled.
//!
//! A [`Feed`] knows what one NIC's data plane shall carry and drives it there: whichever of the two daemons is restarted,
//! what is missing is added and what is not wanted is removed. It never waits long: a data plane that does not answer
//! within [`PATIENCE`] is killed, which cuts its users off, and started again.

mod choice;
mod peers;
mod process;

pub use choice::choose;
pub use peers::{MAX_BROADCAST, Others};

use crate::network::{Network, Nic};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeVal;
use process::Process;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_dataplane::client::{Client, ClientError};
use uvn_dataplane::config::{self, Config, Peers, Vtep};
use uvn_dataplane::message::{Counts, MAX_FDS, Reply, Request, Summary, UnknownVni};
use uvn_dataplane::protocol::Code;
use uvn_dataplane::tap::{Tap, TapError};
use uvn_dataplane::toml_file;
use uvn_wire::vxlan::Vni;

/// Where the control sockets, the configurations and the logs are.
const RUN: &str = "/run/uvn";
/// How long a data plane may take to answer: longer than it takes to give up on a worker (3 seconds).
const PATIENCE: TimeVal = TimeVal::new(4, 0);
/// How long it may take from its start to its first answer.
const START: Duration = Duration::from_secs(15);
/// How often a starting one is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The pause before one that has ended is started again; doubled each time, up to the second one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// One that has run this long had no trouble starting.
const STEADY: Duration = Duration::from_secs(60);
/// How long one turn may feed: uvnd has other things to do.
const TURN: Duration = Duration::from_millis(100);
/// How often what the data plane has is compared with what it shall have.
const AUDIT: Duration = Duration::from_secs(30);
/// Broadcast and multicast frames per second that a node sends for one network, all copies together.
const FLOOD: usize = 100_000;

/// Why a data plane does not do what it is to.
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
    /// It does not run.
    #[error("the data plane of {nic} does not run: {message}")]
    Down {
        /// The NIC.
        nic: String,
        /// Why.
        message: String,
    },
    /// A network's endpoint.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It refuses a network.
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

/// What `uvn status` shows of a data plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `running`, `down` (the NIC), `absent` (the NIC), `starting`, or why it does not run.
    pub state: String,
    /// `driver` or `generic`; None while it is not running.
    pub xdp: Option<String>,
    /// Whether the NIC and the data plane share the frames; None while it is not running.
    pub zero_copy: Option<bool>,
    /// Its worker threads, one per NIC queue.
    pub workers: usize,
    /// Networks that it carries.
    pub networks: usize,
    /// Networks that it does not carry, and why.
    pub faults: BTreeMap<u32, String>,
    /// How often it was started again since uvnd runs.
    pub restarts: u32,
    /// Its process.
    pub process: Option<i32>,
    /// Frames and drops, by reason.
    pub total: Counts,
    /// The XDP program's verdicts.
    pub verdicts: BTreeMap<String, u64>,
    /// Frames that the NIC or the kernel lost at the AF_XDP sockets.
    pub lost: u64,
}

/// One NIC's data plane and what it shall carry.
#[derive(Debug)]
pub struct Feed {
    nic: Nic,
    others: Others,
    wanted: BTreeMap<Vni, Wanted>,
    /// Networks to be told about: new, changed, or to be tried again.
    pending: BTreeSet<Vni>,
    state: State,
    /// Why it does not run.
    fault: Option<String>,
    pause: Duration,
    restarts: u32,
    /// When to compare with what it has.
    audit: Instant,
    source: (Registry, Token),
}

/// A network that the data plane shall carry.
#[derive(Debug)]
struct Wanted {
    network: Network,
    /// Nodes for its broadcast and multicast; None: all that are listed.
    nodes: Option<Vec<IpAddr>>,
    /// Why it is not carried.
    fault: Option<String>,
}

#[derive(Debug)]
enum State {
    /// To be started, or found, at that time.
    Down(Instant),
    /// Started or found, and not yet answering.
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
    /// The data plane of a NIC, to be driven by [`Feed::turn`]. Its connection gets `token` at `registry`.
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
            state: State::Down(now),
            fault: None,
            pause: PAUSE.0,
            restarts: 0,
            audit: now,
            source: (registry.try_clone()?, token),
        })
    }

    /// Starts it, or takes over one that runs, and waits until it answers. For the start of uvnd: under `auto`, a NIC
    /// that the engine cannot drive, or in generic mode only, is [`Feed::stop`]ped and left to the kernel.
    ///
    /// # Errors
    /// It does not start; the reason is its own.
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

    /// Why the engine is a bad choice for the NIC though it runs there; None: it is not. For `auto`.
    pub fn drawback(&mut self) -> Option<String> {
        let generic = self.summary().is_some_and(|summary| summary.xdp.as_deref() == Some("generic"));
        generic.then(|| "its driver has no XDP; the engine would be slower than the kernel".into())
    }

    /// Ends the data plane. Its networks' devices stay.
    pub fn stop(mut self) {
        self.halt();
        let _gone_already = fs::remove_file(self.path("toml"));
    }

    /// The NIC, as the data plane was last told.
    #[must_use]
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// Whether it runs and has been told everything.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Up { .. }) && self.pending.is_empty()
    }

    /// Follows a change of the NIC or of the configuration. Another VTEP address or port takes a restart.
    pub fn follow(&mut self, nic: Nic, others: Others) {
        let restart = (nic.vteps().first(), nic.port, &nic.name)
            != (self.nic.vteps().first(), self.nic.port, &self.nic.name);
        let renew = nic.addresses != self.nic.addresses || nic.group != self.nic.group;
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

    /// Adds a network; its endpoint must be there, in its VRF. When this returns, the data plane carries it.
    ///
    /// # Errors
    /// It does not run, the endpoint cannot be opened, or the data plane refuses. The network stays wanted.
    pub fn add(&mut self, network: &Network, nodes: Option<Vec<IpAddr>>) -> Result<(), FeedError> {
        /// For one that has just died.
        const REVIVAL: Duration = Duration::from_secs(2);

        let vni = network.vni;
        self.wanted.insert(vni, Wanted { network: network.clone(), nodes, fault: None });
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
        // What it has under this number may have another endpoint.
        self.forget(vni);
        self.pending.remove(&vni);
        self.feed(vni)
    }

    /// Removes a network: when this returns, the data plane carries it no more, or is killed.
    pub fn remove(&mut self, vni: Vni) {
        self.wanted.remove(&vni);
        self.pending.remove(&vni);
        self.forget(vni);
    }

    /// Changes the nodes for a network's broadcast and multicast; None: all that are listed.
    pub fn set_nodes(&mut self, vni: Vni, nodes: Option<Vec<IpAddr>>) {
        if let Some(wanted) = self.wanted.get_mut(&vni)
            && wanted.nodes != nodes
        {
            wanted.nodes = nodes;
            self.pending.insert(vni);
        }
    }

    /// Makes exactly these networks wanted. [`Feed::turn`] does the rest.
    pub fn reconcile(&mut self, networks: impl IntoIterator<Item = (Network, Option<Vec<IpAddr>>)>) {
        let wanted = networks
            .into_iter()
            .map(|(network, nodes)| (network.vni, Wanted { network, nodes, fault: None }));
        self.wanted = wanted.collect();
        self.pending.retain(|vni| self.wanted.contains_key(vni));
        self.audit = Instant::now();
    }

    /// When [`Feed::turn`] is due though its token reports nothing.
    #[must_use]
    pub fn due(&self) -> Instant {
        match &self.state {
            State::Down(until) => *until,
            State::Starting { .. } => Instant::now() + LOOK,
            State::Up { .. } if !self.pending.is_empty() => Instant::now(),
            State::Up { .. } => self.audit,
        }
    }

    /// Drives the data plane on, for [`TURN`] or so: starts it, notices its end, feeds it, compares.
    pub fn turn(&mut self, now: Instant) {
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

    /// VNIs that allowed VTEPs sent to though they are not here, since it was last asked.
    pub fn unknown(&mut self) -> Vec<UnknownVni> {
        // Before it has its networks back, all of them are unknown.
        if !self.is_settled() {
            return Vec::new();
        }
        match self.ask(&Request::Unknown) {
            Some(Reply::Unknown { seen }) => seen,
            _ => Vec::new(),
        }
    }

    /// The networks that it carries; empty if it does not run.
    pub fn networks(&mut self) -> BTreeSet<Vni> {
        self.states().unwrap_or_default().iter().filter_map(|state| Vni::new(state.vni)).collect()
    }

    /// How it is.
    pub fn status(&mut self) -> Status {
        let summary = self.summary();
        let counters = self.ask(&Request::Counters);
        let mut status = Status { restarts: self.restarts, ..Status::default() };
        let faults = self
            .wanted
            .iter()
            .filter_map(|(vni, wanted)| wanted.fault.clone().map(|fault| (vni.get(), fault)));
        status.faults = faults.collect();
        let Some(summary) = summary else {
            status.state = self.fault.clone().unwrap_or_else(|| "starting".into());
            return status;
        };
        if let State::Up { pid, .. } = self.state {
            status.process = Some(pid);
        }
        (status.state, status.xdp, status.zero_copy) = (summary.state, summary.xdp, summary.zero_copy);
        (status.workers, status.networks) = (summary.workers.len(), summary.networks);
        if let Some(Reply::Counters { total, xdp, lost, .. }) = counters {
            (status.total, status.verdicts, status.lost) = (total, xdp, lost);
        }
        status
    }
}

/// Start and end.
impl Feed {
    fn path(&self, extension: &str) -> PathBuf {
        Path::new(RUN).join(format!("{}.{extension}", self.nic.name))
    }

    fn down(&self, message: &str) -> FeedError {
        FeedError::Down { nic: self.nic.name.clone(), message: message.into() }
    }

    /// Finds one that runs, or starts one.
    fn begin(&mut self, now: Instant) {
        let found = Client::connect_for(&self.path("sock"), PATIENCE).ok();
        self.state = State::Starting { process: None, client: None, since: now };
        let result = match found {
            Some(client) => self.send_ping(client),
            None => self.launch(),
        };
        if let Err(error) = result {
            self.fail(error.to_string());
        }
    }

    fn launch(&mut self) -> Result<(), FeedError> {
        self.write_config()?;
        let started = Process::start(&self.nic.name, &self.path("toml"), &self.path("log"))?;
        if let State::Starting { process, .. } = &mut self.state {
            *process = Some(started);
        }
        Ok(())
    }

    /// Asks a new connection whether anybody is there, without waiting.
    fn send_ping(&mut self, new: Client) -> Result<(), FeedError> {
        let (registry, token) = &self.source;
        let fd = new.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&fd), *token, Interest::READABLE)
            .map_err(|source| FeedError::Launch { nic: self.nic.name.clone(), source })?;
        if let Err(error) = new.send(&Request::Ping, &[]) {
            tracing::debug!(nic = self.nic.name, %error, "the data plane has gone again");
        } else if let State::Starting { client, .. } = &mut self.state {
            *client = Some(new);
        }
        Ok(())
    }

    /// Looks whether a starting one answers.
    fn greet(&mut self, now: Instant) {
        let socket = self.path("sock");
        let State::Starting { process, client, since } = &mut self.state else { return };
        if let Some(reason) = process.as_mut().and_then(Process::ended) {
            return self.fail(reason);
        }
        if now.saturating_duration_since(*since) > START {
            if let Some(pid) = client.as_ref().and_then(|client| client.process().ok()) {
                process::signal(pid, Signal::SIGKILL);
            }
            return self.fail("it does not answer".into());
        }
        match client.take() {
            None => {
                let is_ours = process.is_some();
                let result = match Client::connect_for(&socket, PATIENCE) {
                    Ok(new) => self.send_ping(new),
                    // One that was found and has gone.
                    Err(_) if !is_ours => self.launch(),
                    Err(_) => Ok(()),
                };
                if let Err(error) = result {
                    self.fail(error.to_string());
                }
            }
            Some(waiting) if is_quiet(waiting.as_fd()) => *client = Some(waiting),
            // Otherwise it has gone: its exit, or another try, tells more.
            Some(answering) => {
                if let (Ok(Reply::Pong), Ok(pid)) = (answering.receive(), answering.process()) {
                    let process = process.take();
                    self.state = State::Up { process, client: answering, pid, since: now };
                    self.take_over();
                }
            }
        }
    }

    /// It answers: what it has need not be what it shall have.
    fn take_over(&mut self) {
        let file = self.path("toml");
        match (Config::load(&file), self.config()) {
            (Ok(has), Ok(wanted)) if has == wanted => {}
            (Ok(has), Ok(wanted)) if Config { peers: wanted.peers.clone(), ..has.clone() } == wanted => {
                self.allow(&has.peers);
            }
            (_, Err(error)) => return self.lose(&error.to_string()),
            _ => {
                tracing::info!(nic = self.nic.name, "the data plane has another configuration: started anew");
                self.halt();
                self.state = State::Down(Instant::now());
                return;
            }
        }
        self.fault = None;
        self.pending.extend(self.wanted.keys());
        self.compare(Instant::now());
        tracing::info!(nic = self.nic.name, "the data plane answers");
    }

    /// It could not start.
    fn fail(&mut self, reason: String) {
        let before = std::mem::replace(&mut self.state, State::Down(Instant::now() + self.pause));
        if let State::Starting { process: Some(process), .. } = before {
            process.abandon(&self.nic.name);
        }
        self.pause = (self.pause * 2).min(PAUSE.1);
        if self.fault.as_ref() != Some(&reason) {
            tracing::error!(nic = self.nic.name, reason, "the data plane does not start; trying again");
        }
        self.fault = Some(reason);
    }

    /// It is gone, or of no use: killed, and to be started again.
    fn lose(&mut self, reason: &str) {
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
        tracing::error!(nic = self.nic.name, reason, "the data plane is lost; its users are cut off");
        if let State::Up { client, pid, .. } = std::mem::replace(&mut self.state, State::Down(until))
            && !has_hung_up(client.as_fd())
        {
            process::signal(pid, Signal::SIGKILL);
        }
        self.restarts += 1;
        self.fault = Some(reason.into());
    }

    /// Ends it in order, or kills it.
    fn halt(&mut self) {
        const END: Duration = Duration::from_secs(5);
        let before = std::mem::replace(&mut self.state, State::Down(Instant::now()));
        process::stop_unit(&self.nic.name);
        match before {
            State::Down(_) => {}
            State::Starting { process, client, .. } => {
                if let Some(pid) = client.and_then(|client| client.process().ok()) {
                    process::signal(pid, Signal::SIGKILL);
                }
                if let Some(process) = process {
                    process.abandon(&self.nic.name);
                }
            }
            State::Up { process, client, pid, .. } => {
                if !has_hung_up(client.as_fd()) {
                    process::signal(pid, Signal::SIGTERM);
                }
                let end = Instant::now() + END;
                while !has_hung_up(client.as_fd()) && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if !has_hung_up(client.as_fd()) {
                    process::signal(pid, Signal::SIGKILL);
                }
                // It is ending: this reaps it.
                if let Some(process) = process {
                    process.abandon(&self.nic.name);
                }
            }
        }
    }

    /// What it is configured with.
    fn text(&self) -> String {
        #[derive(Serialize)]
        struct File<'a> {
            nic: &'a str,
            vtep: Vec<IpAddr>,
            socket: PathBuf,
            encapsulation: Encapsulation,
            peers: &'a Peers,
        }
        #[derive(Serialize)]
        struct Encapsulation {
            port: u16,
        }
        let file = File {
            nic: &self.nic.name,
            vtep: self.nic.vteps().into_iter().take(1).collect(),
            socket: self.path("sock"),
            encapsulation: Encapsulation { port: self.nic.port },
            peers: &self.others.allowed,
        };
        // Nothing in it that TOML cannot say.
        format!("# Written by uvnd.\n{}", toml::to_string(&file).unwrap_or_default())
    }

    fn config(&self) -> Result<Config, FeedError> {
        toml_file::parse(&self.text()).map_err(|(_, broken)| self.down(&broken.to_string()))
    }

    /// Writes it whole or not at all.
    fn write_config(&self) -> Result<(), FeedError> {
        self.config()?;
        let (path, new) = (self.path("toml"), self.path("toml.new"));
        let write = || {
            fs::create_dir_all(RUN)?;
            fs::write(&new, self.text())?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| FeedError::Write { path: path.clone(), source })
    }
}

/// What it is told.
impl Feed {
    /// Asks it; None if it does not run, is lost by now, or refuses.
    fn ask(&mut self, request: &Request) -> Option<Reply> {
        let State::Up { client, .. } = &self.state else { return None };
        match client.ask(request, &[]) {
            Ok(reply) => Some(reply),
            Err(ClientError::Refused(failure)) => {
                tracing::warn!(nic = self.nic.name, %failure, "the data plane refuses a request");
                None
            }
            Err(error) => {
                self.lose(&error.to_string());
                None
            }
        }
    }

    fn summary(&mut self) -> Option<Summary> {
        match self.ask(&Request::Show) {
            Some(Reply::Show(summary)) => Some(*summary),
            _ => None,
        }
    }

    fn states(&mut self) -> Option<Vec<uvn_dataplane::message::NetworkState>> {
        let State::Up { client, .. } = &self.state else { return None };
        match client.networks() {
            Ok(states) => Some(states),
            Err(error) => {
                self.lose(&error.to_string());
                None
            }
        }
    }

    /// Changes the allowed VTEPs from what it was told before. What does not fit one request takes a restart.
    fn allow(&mut self, before: &Peers) {
        let now = &self.others.allowed;
        let is_in = |vtep: &Vtep, list: &[Vtep]| list.iter().any(|other| other.address == vtep.address);
        let request = Request::Vteps {
            add: now.vtep.iter().filter(|vtep| !before.vtep.contains(vtep)).cloned().collect(),
            remove: before
                .vtep
                .iter()
                .filter(|vtep| !is_in(vtep, &now.vtep))
                .map(|vtep| vtep.address)
                .collect(),
            add_range: now.range.iter().filter(|range| !before.range.contains(range)).copied().collect(),
            remove_range: before.range.iter().filter(|range| !now.range.contains(range)).copied().collect(),
        };
        let written = match self.ask(&request) {
            Some(Reply::Done { .. }) => self.write_config(),
            _ => Err(self.down("it does not take the new list of peers")),
        };
        if let Err(error) = written {
            tracing::warn!(nic = self.nic.name, %error, "the data plane is started anew");
            self.halt();
            self.state = State::Down(Instant::now());
        }
    }

    /// Compares what it has with what is wanted: both ways.
    fn compare(&mut self, now: Instant) {
        self.audit = now + AUDIT;
        let Some(states) = self.states() else { return };
        let mut missing: BTreeSet<Vni> = self.wanted.keys().copied().collect();
        for state in states {
            let Some(vni) = Vni::new(state.vni) else { continue };
            let keeps = self.wanted.contains_key(&vni) && state.fault.is_none();
            if keeps && state.addresses == self.nic.addresses {
                missing.remove(&vni);
            } else {
                tracing::info!(nic = self.nic.name, %vni, fault = state.fault, "removed from the data plane");
                self.forget(vni);
            }
        }
        self.pending.extend(missing);
    }

    /// Feeds what is pending, until `end`.
    fn catch_up(&mut self, end: Instant) {
        while Instant::now() < end && matches!(self.state, State::Up { .. }) {
            let Some(vni) = self.pending.pop_first() else { return };
            if let Err(error) = self.feed(vni) {
                tracing::error!(nic = self.nic.name, %vni, %error, "the data plane does not carry a network");
            }
        }
    }

    /// Makes it carry a network as it is wanted; one that it has gets its peers.
    fn feed(&mut self, vni: Vni) -> Result<(), FeedError> {
        let Some(wanted) = self.wanted.get(&vni) else { return Ok(()) };
        let (network, device) = (self.request(wanted), wanted.network.endpoint(&self.nic));
        let mut result = self.offer(&network, &device);
        if let Err(FeedError::Refused { source: ClientError::Refused(failure), .. }) = &result
            && failure.code == Code::Exists
        {
            result = self.update(network);
        }
        let lost = match &result {
            Err(FeedError::Refused { source, .. }) if !matches!(source, ClientError::Refused(_)) => {
                Some(source.to_string())
            }
            _ => None,
        };
        if let Some(wanted) = self.wanted.get_mut(&vni) {
            wanted.fault = result.as_ref().err().map(ToString::to_string);
        }
        if let Some(reason) = lost {
            self.pending.insert(vni);
            self.lose(&reason);
        }
        result
    }

    /// A network as the data plane is told of it.
    fn request(&self, wanted: &Wanted) -> config::Network {
        let group = self.nic.group;
        let peers = match group {
            Some(_) => Vec::new(),
            None => self.others.broadcast(wanted.nodes.as_deref()),
        };
        let flood_rate = (FLOOD / peers.len().max(1)).clamp(50, 1000);
        config::Network {
            vni: wanted.network.vni,
            addresses: self.nic.addresses.clone(),
            device: None,
            peers,
            group,
            learning: false,
            max_addresses: 1024,
            ageing: 300,
            flood_rate: flood_rate.try_into().unwrap_or(50),
        }
    }

    /// Adds a network with its endpoint's queues: one for each of the NIC's, as many as a packet can carry.
    fn offer(&self, network: &config::Network, device: &str) -> Result<(), FeedError> {
        let State::Up { client, .. } = &self.state else { return Err(self.down("it is starting")) };
        // What the device was made for.
        let queues = (self.nic.queues as usize).clamp(1, MAX_FDS);
        let taps = Tap::open(device, queues)?;
        let fds: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
        let refused = |source| FeedError::Refused { nic: self.nic.name.clone(), vni: network.vni, source };
        client.add_network(network, &fds).map(drop).map_err(refused)
    }

    /// Tells it the peers of a network that it has.
    fn update(&self, network: config::Network) -> Result<(), FeedError> {
        let State::Up { client, .. } = &self.state else { return Err(self.down("it is starting")) };
        if network.group.is_some() {
            return Ok(());
        }
        let refused = |source| FeedError::Refused { nic: self.nic.name.clone(), vni: network.vni, source };
        let request = Request::SetPeers { vni: network.vni.get(), peers: network.peers };
        client.change(&request, &[]).map(drop).map_err(refused)
    }

    /// Makes it carry a network no more.
    fn forget(&mut self, vni: Vni) {
        let State::Up { client, .. } = &self.state else { return };
        match client.remove_network(vni.get()) {
            Ok(_) => {}
            Err(ClientError::Refused(failure)) if failure.code == Code::NotFound => {}
            // Half removed: dead is safe.
            Err(error) => self.lose(&error.to_string()),
        }
    }
}

/// Whether nothing is to be read from a socket, and nobody has closed it.
fn is_quiet(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0) | Err(nix::Error::EINTR))
}

/// Whether the other side of a socket has closed it.
fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let polled = poll(&mut polled, PollTimeout::ZERO).map(|_| polled[0].revents());
    matches!(polled, Ok(Some(events)) if events.contains(PollFlags::POLLHUP))
}
