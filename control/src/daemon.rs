//! The daemon: one thread, one poll loop.
//!
//! It waits for requests, for the end of processes that hold networks, for changes of the node's devices and routes,
//! for the data planes, for signals, and for time to pass. [`networks`] has what follows from each. A user's network is
//! removed only after their last lease has ended.

mod attach;
mod demoted;
mod feeds;
mod follow;
mod holders;
mod members;
mod networks;
mod newcomers;
mod page;
mod reconcile;
mod refused;
mod request;
mod status;

pub use networks::{Networks, STATE, StartError, devices, items};

use crate::config::Config;
use crate::folder;
use crate::lockdown;

use crate::netlink::{Changes, Monitor, NetlinkError};
use mio::{Events, Interest, Poll, Token};
use sd_notify::NotifyState;
use signal_hook_mio::v1_0::Signals;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_api::daemon::{notify, raise_file_limit};
use uvn_api::protocol::{Code, Failure};
use uvn_api::server::{Control, ControlError, Limits};
use uvn_api::toml_file::ConfigError;
use uvn_api::uvnd::message::{self, Request};
use uvn_api::uvnd::older;

const SIGNALS: Token = Token(0);
const NETLINK: Token = Token(1);
const UNKNOWN: Token = Token(2);
/// One per NIC from here on.
const FEEDS: Token = Token(16);
/// One per connection from here on: to the socket of root, and to that of everybody.
const ROOT: Token = Token(64);
const EVERYBODY: Token = Token(1 << 16);
/// One per process from here on.
const HOLDERS: Token = Token(1 << 20);

/// Each login of a burst has a connection.
const ROOT_LIMITS: Limits = Limits { everyone: false, connections: 4096, fds: 0 };
/// Every user may ask for the state of their own network.
const LIMITS: Limits = Limits { everyone: true, ..ROOT_LIMITS };
/// Folders whose files are trusted, so that root alone may change them.
const FOLDERS: [&str; 2] = ["/run/uvn", "/var/lib/uvn"];
/// How often work that depends on time is done.
const TICK: Duration = Duration::from_secs(1);
/// Changes of devices and routes come in bursts: how long they are collected before uvnd follows them.
const SETTLE: Duration = Duration::from_millis(100);
/// How long nothing is followed after that, as a multiple of the time it took.
const REST: u32 = 4;

/// Why `uvnd` could not start, or had to end.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel refuses something that uvnd needs.
    #[error("{what}: {source}")]
    Kernel {
        /// What it refuses.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel's notifications cannot be had.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The networks cannot be taken over.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl DaemonError {
    /// Whether a change of the configuration helps.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        matches!(self, DaemonError::Config(_) | DaemonError::Start(StartError::Pool(_)))
    }
}

/// The daemon: its loop, and what it waits for.
pub struct Daemon {
    poll: Poll,
    signals: Signals,
    monitor: Monitor,
    /// The socket of root, for logins, jobs and administrators: served before `everybody`.
    root: Control<Request>,
    everybody: Control<Request>,
    networks: Networks,
    /// Changes not followed yet, and when to follow them.
    changes: Changes,
    follow: Option<Instant>,
    /// Earliest time to follow changes again, so that a program that undoes our changes cannot starve requests.
    rest: Instant,
    watchdog: Option<Duration>,
    beat: Instant,
    stopping: bool,
}

impl Daemon {
    /// Takes over what an earlier uvnd has left, and brings it to what is configured and leased.
    ///
    /// # Errors
    /// The configuration is wrong, or the node lacks something that every network needs.
    pub fn start(file: &Path) -> Result<Daemon, DaemonError> {
        let kernel = |what| move |source| DaemonError::Kernel { what, source };
        // First: until the socket programs are attached, users are not isolated.
        if let Err(error) = lockdown::hold() {
            tracing::error!(%error, "cannot attach the socket programs yet; users are not isolated until uvnd is up");
        }
        let config = Config::load(file)?;
        for path in FOLDERS {
            folder::own(Path::new(path)).map_err(kernel("uvnd's folder"))?;
        }
        raise_file_limit();
        let poll = Poll::new().map_err(kernel("poll"))?;
        let registry = poll.registry();
        let mut signals =
            Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map_err(kernel("signals"))?;
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(kernel("signals"))?;
        // Before anything is read, so that every later change is notified.
        let mut monitor = Monitor::open()?;
        registry.register(&mut monitor, NETLINK, Interest::READABLE).map_err(kernel("rtnetlink"))?;
        // Before anything is changed: a second uvnd must fail here.
        let root = Control::listen(Path::new(message::ROOT_SOCKET), registry, ROOT, ROOT_LIMITS)?;
        let everybody = Control::listen(Path::new(message::SOCKET), registry, EVERYBODY, LIMITS)?;
        let networks = Networks::start(file, config, registry, UNKNOWN, FEEDS, HOLDERS)?;
        let watchdog = sd_notify::watchdog_enabled().map(|timeout| timeout / 3);
        Ok(Daemon {
            poll,
            signals,
            monitor,
            root,
            everybody,
            networks,
            changes: Changes::default(),
            follow: None,
            rest: Instant::now(),
            watchdog,
            beat: Instant::now(),
            stopping: false,
        })
    }

    /// Runs until SIGTERM, SIGINT or a request ends it. The networks stay and work on.
    ///
    /// # Errors
    /// The kernel refuses to poll.
    pub fn run(mut self) -> Result<(), DaemonError> {
        notify(&[NotifyState::Ready]);
        let mut events = Events::with_capacity(1024);
        let mut tick = Instant::now() + TICK;
        while !self.stopping {
            let wait = self.wait(tick);
            match self.poll.poll(&mut events, Some(wait)) {
                Err(source) if source.kind() != io::ErrorKind::Interrupted => {
                    return Err(DaemonError::Kernel { what: "poll", source });
                }
                _ => {}
            }
            for event in &events {
                self.take(event.token());
            }
            self.serve();
            let now = Instant::now();
            if self.follow.is_some_and(|at| now >= at) {
                self.follow = None;
                self.networks.follow(&std::mem::take(&mut self.changes));
                self.rest = Instant::now() + now.elapsed() * REST;
            }
            self.networks.turn(now, self.root.has_work());
            if now >= tick {
                tick = now + TICK;
                self.networks.tick(now);
                self.beat(now);
            }
        }
        notify(&[NotifyState::Stopping]);
        tracing::info!("stopping; the networks stay");
        Ok(())
    }

    /// How long the loop may sleep.
    fn wait(&self, tick: Instant) -> Duration {
        if self.root.has_work() || self.everybody.has_work() {
            return Duration::ZERO;
        }
        let next = [Some(tick), self.follow, self.networks.due()].into_iter().flatten().min();
        next.unwrap_or(tick).saturating_duration_since(Instant::now())
    }

    fn take(&mut self, token: Token) {
        match token {
            SIGNALS => {
                for signal in self.signals.pending().collect::<Vec<_>>() {
                    match signal {
                        libc::SIGHUP => self.reload(),
                        _ => self.stopping = true,
                    }
                }
            }
            NETLINK => {
                match self.monitor.drain() {
                    Ok(Changes { overflow, node, uids, slots, rules, firewall }) => {
                        self.changes.rules |= rules;
                        self.changes.firewall |= firewall;
                        self.changes.overflow |= overflow;
                        self.changes.node |= node;
                        self.changes.uids.extend(uids);
                        self.changes.slots.extend(slots);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot read the kernel's notifications; uvnd compares everything");
                        self.changes.overflow = true;
                    }
                }
                if !self.changes.is_empty() {
                    let rest = self.rest;
                    self.follow.get_or_insert_with(|| rest.max(Instant::now() + SETTLE));
                }
            }
            UNKNOWN => self.networks.read_unknown(),
            token if token >= HOLDERS => self.networks.holder_ended(token),
            token if token >= EVERYBODY => self.everybody.ready(token),
            token if token >= ROOT => self.root.ready(token),
            // A data plane's connection: `turn` reads it anyway.
            _ => {}
        }
    }

    fn reload(&mut self) {
        notify(&[NotifyState::Reloading]);
        match self.networks.reload(false, false) {
            Ok(steps) => tracing::info!(steps = steps.len(), "reloaded"),
            Err(failure) => tracing::error!(%failure, "not reloaded; the old configuration stays in force"),
        }
        notify(&[NotifyState::Ready]);
    }

    /// Answers one request, root's first; other work is done between two requests.
    fn serve(&mut self) {
        for control in [&mut self.root, &mut self.everybody] {
            let Some(incoming) = control.take() else { continue };
            self.stopping |= incoming.request == Request::Stop && incoming.peer.uid == 0;
            let answer = self.networks.answer(incoming.request, incoming.peer);
            if incoming.schema > 0 {
                return control.answer(incoming.connection, answer);
            }
            let answer = answer.and_then(|reply| {
                older::reply(reply).map_err(|error| Failure::new(Code::Failed, error.to_string()))
            });
            return control.answer(incoming.connection, answer);
        }
    }

    /// Feeds the service manager's watchdog.
    fn beat(&mut self, now: Instant) {
        let Some(every) = self.watchdog else { return };
        if now >= self.beat {
            self.beat = now + every;
            notify(&[NotifyState::Watchdog]);
        }
    }
}
