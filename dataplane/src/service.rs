//! The control thread: it owns the NIC, the workers, the networks and their tables, and it alone changes them.
//!
//! A change becomes new [`Tables`] with the next epoch, sent to every worker; a request is answered when every worker
//! runs with them. A network is granted in the order tables, endpoint, XDP map, and revoked in the order XDP map,
//! endpoint, tables, device: in between its frames are dropped, never passed on.

mod endpoint;
mod nic;
mod notes;
mod request;
mod show;

use crate::gear::thread::Notifier;
use crate::gear::{Gear, Stuck};
use crate::networks::Networks;
use crate::port::link::{Link, LinkError};
use crate::underlay::route::{Change, Notifications};
use crate::underlay::{NextHop, Underlay};
use crossbeam::channel::{Receiver, bounded};
use hashbrown::HashMap;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use sd_notify::NotifyState;
use signal_hook_mio::v1_0::Signals;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_api::daemon::{notify, raise_file_limit};
use uvn_api::dataplane::config::{Config, Peers};
use uvn_api::dataplane::message::{Counts, MAX_FDS, Request};
use uvn_api::dataplane::vteps::{Conflict, Vteps};
use uvn_api::server::{Control, ControlError, Limits};
use uvn_engine::outer::Outer;
use uvn_engine::tables::{Hop, Tables};
use uvn_engine::worker::Event;

const SIGNALS: Token = Token(0);
const EVENTS: Token = Token(1);
const NETLINK: Token = Token(2);
const CONTROL: Token = Token(3);

/// Only root may connect, and a program needs one connection.
const LIMITS: Limits = Limits { everyone: false, connections: 64, fds: MAX_FDS };
/// The most events of workers that wait to be read. More are lost: a worker repeats those that still hold.
const EVENT_ROOM: usize = 4096;
/// How often time-dependent work is done.
const TICK: Duration = Duration::from_secs(1);

/// Why the data plane cannot start, or must end.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The kernel refuses something that the data plane needs.
    #[error("{what}: {source}")]
    Kernel {
        /// The action or object that it refuses.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The NIC does not exist, or the kernel refuses to read or change it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The NIC is no Ethernet device.
    #[error("{0} is not an Ethernet device: VXLAN there needs the kernel's own devices")]
    NotEthernet(String),
    /// The NIC cannot be used.
    #[error("{nic} cannot be used: {message}")]
    Nic {
        /// The NIC.
        nic: String,
        /// The reason.
        message: String,
    },
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The list of allowed VTEPs is refused.
    #[error(transparent)]
    Vteps(#[from] Conflict),
    /// A network of the configuration file cannot be made.
    #[error("network {vni}: {message}")]
    Network {
        /// Its VNI.
        vni: u32,
        /// The reason.
        message: String,
    },
}

/// The tables of a NIC that is not in use yet.
fn first_tables(config: &Config, vteps: &Arc<Vteps>) -> Tables {
    Tables {
        epoch: 0,
        encapsulation: config.encapsulation,
        nic: None,
        local: config.vtep.clone(),
        vteps: vteps.clone(),
        hops: Arc::default(),
        dead: Arc::default(),
        networks: Vec::new(),
        slots: HashMap::new(),
    }
}

/// One NIC's data plane.
pub struct Service {
    config: Config,
    poll: Poll,
    signals: Signals,
    notifications: Notifications,
    control: Option<Control<Request>>,
    events: Receiver<Event>,
    notifier: Notifier,
    /// Second 0 of the times at which MACs are seen.
    started: Instant,
    /// The allowed VTEPs: the configured ones, with the changes by requests.
    peers: Peers,
    vteps: Arc<Vteps>,
    underlay: Underlay,
    networks: Networks,
    /// The NIC as it was last seen; None: absent.
    link: Option<Link>,
    gear: Option<Gear>,
    /// Why the NIC is not in use.
    fault: Option<String>,
    tables: Arc<Tables>,
    /// Whether the next hops differ from those of the tables.
    hops_changed: bool,
    /// Whether anything else differs from the tables.
    tables_changed: bool,
    /// Whether some device's addresses have changed since they were examined.
    addresses_changed: bool,
    /// VTEP addresses that no device has.
    absent: Vec<IpAddr>,
    /// Devices beside the NIC with an address on its link.
    on_link: Vec<String>,
    /// The counts of earlier workers.
    past: Counts,
    watchdog: Watchdog,
}

/// The service manager's watchdog: it is told that all is well only while every worker's heart beats.
struct Watchdog {
    every: Option<Duration>,
    due: Instant,
    turns: Vec<u64>,
}

impl Service {
    /// Sets everything up: the NIC is in use, every configured network works, the control socket is open.
    ///
    /// # Errors
    /// A step is refused; the earlier steps are undone.
    pub fn start(config: Config) -> Result<Service, ServiceError> {
        let kernel = |what| move |source| ServiceError::Kernel { what, source };
        raise_file_limit();
        let poll = Poll::new().map_err(kernel("poll"))?;
        let registry = poll.registry();
        let mut signals = Signals::new([libc::SIGTERM, libc::SIGINT]).map_err(kernel("signals"))?;
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(kernel("signals"))?;
        let waker = Arc::new(Waker::new(registry, EVENTS).map_err(kernel("waker"))?);
        let (sender, events) = bounded(EVENT_ROOM);
        let notifications = Notifications::subscribe().map_err(kernel("rtnetlink"))?;
        registry
            .register(&mut SourceFd(&notifications.as_raw_fd()), NETLINK, Interest::READABLE)
            .map_err(kernel("rtnetlink"))?;
        // Before the NIC: a second data plane must fail here, without disturbing the first.
        let control = config
            .socket
            .as_deref()
            .map(|path| Control::listen(path, registry, CONTROL, LIMITS))
            .transpose()?;
        let vteps = Arc::new(Vteps::new(&config.peers)?);
        let every = sd_notify::watchdog_enabled().map(|timeout| timeout / 2);
        let mut service = Service {
            peers: config.peers.clone(),
            poll,
            signals,
            notifications,
            control,
            events,
            notifier: Notifier { events: sender, waker },
            started: Instant::now(),
            tables: Arc::new(first_tables(&config, &vteps)),
            vteps,
            underlay: Underlay::default(),
            networks: Networks::default(),
            link: None,
            gear: None,
            fault: None,
            hops_changed: false,
            tables_changed: false,
            addresses_changed: true,
            absent: Vec::new(),
            on_link: Vec::new(),
            past: Counts::default(),
            watchdog: Watchdog { every, due: Instant::now(), turns: Vec::new() },
            config,
        };
        if let Err(error) = service.start_nic().and_then(|()| service.start_networks()) {
            service.stop();
            return Err(error);
        }
        Ok(service)
    }

    /// Runs until SIGTERM or SIGINT, then ends in order.
    ///
    /// # Errors
    /// The kernel refuses to poll.
    pub fn run(mut self) -> Result<(), ServiceError> {
        notify(&[NotifyState::Ready]);
        let mut events = Events::with_capacity(256);
        let mut tick = Instant::now() + TICK;
        loop {
            let busy = self.control.as_ref().is_some_and(Control::has_work);
            let due = [self.gear.as_ref().and_then(Gear::due), self.underlay.due()];
            let due = due.into_iter().flatten().fold(tick, Instant::min);
            let wait = if busy { Duration::ZERO } else { due.saturating_duration_since(Instant::now()) };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(source) if source.kind() != io::ErrorKind::Interrupted => {
                    self.stop();
                    return Err(ServiceError::Kernel { what: "poll", source });
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    SIGNALS => {
                        if let Some(signal) = self.signals.pending().next() {
                            tracing::info!(signal, "stopping");
                            notify(&[NotifyState::Stopping]);
                            self.stop();
                            return Ok(());
                        }
                    }
                    EVENTS => self.take_events(),
                    NETLINK => self.take_changes(),
                    token => {
                        if let Some(control) = &mut self.control {
                            control.ready(token);
                        }
                    }
                }
            }
            // One request a turn: the rest of the work is done in between.
            let incoming = self.control.as_mut().and_then(Control::take);
            let requests_wait = incoming.is_some();
            if let Some(incoming) = incoming {
                let answer = self.answer(incoming.request, incoming.fds);
                let answer = answer.map(|reply| reply.in_schema(incoming.schema));
                if let Some(control) = &mut self.control {
                    control.answer(incoming.connection, answer);
                }
            }
            if let Some(gear) = &mut self.gear {
                gear.step(&self.networks, requests_wait);
            }
            let now = Instant::now();
            if now >= tick {
                tick = now + TICK;
                self.tick(now);
            }
            self.hops_changed |= self.underlay.serve(now);
            self.publish();
        }
    }

    /// Does the work that depends on time.
    fn tick(&mut self, now: Instant) {
        self.check_nic();
        self.mend_endpoints();
        if let Some(gear) = &mut self.gear {
            gear.restore_places(&mut self.networks);
        }
        if std::mem::take(&mut self.addresses_changed) {
            self.follow_addresses();
        }
        self.hops_changed |= self.underlay.tick(now);
        self.tables_changed |= self.networks.age(self.second());
        self.beat(now);
    }

    /// Handles the events of workers.
    fn take_events(&mut self) {
        let (now, second) = (Instant::now(), self.second());
        // A bound, so that requests are not kept waiting.
        for event in self.events.clone().try_iter().take(EVENT_ROOM) {
            match event {
                Event::Resolve { vni, vtep } => {
                    if self.vteps.allows(vtep) {
                        self.underlay.ask(vni, vtep, now);
                    }
                }
                Event::Learned { slot, vni, mac, vtep } => {
                    if self.vteps.allows(vtep) {
                        self.tables_changed |= self.networks.learn(slot, vni, mac, vtep, second);
                    }
                }
                // Closing a TAP takes the kernel tens of milliseconds: not the worker's.
                Event::Detached { endpoint, .. } => drop(endpoint),
                Event::EndpointLost { slot, error } => self.lose_endpoint(slot, &error),
            }
        }
    }

    /// Handles the notifications of the kernel.
    fn take_changes(&mut self) {
        match self.notifications.read() {
            Ok(changes) => {
                // First: until then the shortcut may send by another device.
                if let Some(gear) = &mut self.gear {
                    gear.check_places(&changes, &mut self.networks);
                }
                if changes
                    .iter()
                    .any(|change| matches!(change, Change::Link(_) | Change::Gone(_) | Change::Lost))
                {
                    self.check_nic();
                }
                self.addresses_changed |=
                    changes.iter().any(|change| matches!(change, Change::Addresses | Change::Lost));
                self.hops_changed |= self.underlay.follow(&changes);
            }
            Err(error) => tracing::error!(%error, "cannot read rtnetlink notifications"),
        }
    }

    /// Sends changes to the workers, as new tables.
    fn publish(&mut self) {
        if !self.hops_changed && !self.tables_changed {
            return;
        }
        let hops_changed = std::mem::take(&mut self.hops_changed);
        let (hops, dead) = if hops_changed {
            (Arc::new(self.hops()), Arc::new(self.underlay.dead().collect()))
        } else {
            (self.tables.hops.clone(), self.tables.dead.clone())
        };
        self.tables_changed = false;
        let (networks, slots) = self.networks.tables(&self.vteps);
        self.tables = Arc::new(Tables {
            epoch: self.tables.epoch + 1,
            encapsulation: self.config.encapsulation,
            nic: self.link.as_ref().and_then(|link| link.mac),
            local: self.local(),
            vteps: self.vteps.clone(),
            hops,
            dead,
            networks,
            slots,
        });
        if let Some(gear) = &mut self.gear {
            gear.publish(&self.tables, hops_changed);
        }
    }

    /// Publishes changes, and waits until every worker runs with them.
    fn commit(&mut self) -> Result<u64, Stuck> {
        self.tables_changed = true;
        self.publish();
        if let Some(gear) = &self.gear {
            gear.wait(self.tables.epoch)?;
        }
        Ok(self.tables.epoch)
    }

    fn hops(&self) -> HashMap<IpAddr, Hop> {
        let Some(nic) = self.link.as_ref().and_then(|link| link.mac) else { return HashMap::new() };
        let hop = |(address, hop): (IpAddr, NextHop)| {
            let source = *self.config.vtep.iter().find(|own| own.is_ipv4() == address.is_ipv4())?;
            let outer = Outer::new(&self.config.encapsulation, nic, hop.mac, source, address);
            Some((address, Hop { outer, mtu: hop.mtu }))
        };
        self.underlay.hops().filter_map(hop).collect()
    }

    /// The outer destinations that belong to this node.
    fn local(&self) -> Vec<IpAddr> {
        self.config.vtep.iter().copied().chain(self.underlay.groups()).collect()
    }

    /// Seconds since the workers' second 0.
    fn second(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Tells the service manager that all is well, if every worker has turned since the last time.
    fn beat(&mut self, now: Instant) {
        let Some(every) = self.watchdog.every else { return };
        if now < self.watchdog.due {
            return;
        }
        self.watchdog.due = now + every;
        let turns = self.gear.as_ref().map(Gear::turns).unwrap_or_default();
        let before = std::mem::replace(&mut self.watchdog.turns, turns);
        let stuck = before.len() == self.watchdog.turns.len()
            && before.iter().zip(&self.watchdog.turns).any(|(before, now)| before == now);
        if stuck {
            tracing::error!("a worker does not turn; the watchdog is not told");
        } else {
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// Ends everything in order: workers, XDP program, devices that were made here, control socket.
    fn stop(&mut self) {
        self.close_nic();
        self.networks.remove_all();
        self.control = None;
        tracing::info!("stopped");
    }
}
