//! What this node holds for its users, and the ways there: attach, detach, reconcile.
//!
//! Grant: lease (persisted), kernel objects, data planes, socket binding, answer. Revoke: socket binding, data planes,
//! kernel objects, lease. So a policed user's sockets are either in his whole network, or refused.

use super::holders::Holders;
use crate::binding::{self, Binding, BindingError, Devices, Policy};
use crate::config::{Config, PathChoice};
use crate::demand::{Demand, UnknownLog};
use crate::feed::{Feed, FeedError, Others};
use crate::firewall;
use crate::lease::state::{self, StateError};
use crate::lease::{self, LeaseError, Leases};
use crate::netlink::{Changes, Netlink, NetlinkError};
use crate::network::{DataPath, FIRST_TABLE, Network, Nic, Node, uid_of};
use crate::peers::Peers;
use crate::plan::{self, Item, Step};
use crate::relay::Relay;
use crate::sysctl;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_dataplane::protocol::{Code, Failure};
use uvn_dataplane::toml_file::ConfigError;
use uvn_wire::vxlan::Vni;

/// The leases.
pub const STATE: &str = "/run/uvn/state.json";

/// How often all is compared with what it shall be, though nothing is known to have changed.
const RESYNC: Duration = Duration::from_secs(30);
/// How often data planes are asked for the VNIs that peers sent to: a TCP connection is tried again after a second.
const ASK: Duration = Duration::from_millis(250);
/// How often a network that is not as it shall be is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Comparing again finds what the kernel took along with something else. More rounds than this do not help.
pub(super) const ROUNDS: usize = 4;

/// Why `uvnd` cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Processes cannot be watched, or data planes cannot be driven.
    #[error("poll: {0}")]
    Poll(#[from] io::Error),
    /// The kernel's networking cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The leases cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// Sockets cannot be bound.
    #[error(transparent)]
    Binding(#[from] BindingError),
}

/// Why a user has no network.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The process that shall hold it.
    #[error("process {0} is not there: it cannot hold a network")]
    Holder(i32),
    /// He can have none.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The lease cannot be written down.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel's objects.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// They do not stay as they were made.
    #[error(
        "the network of user {uid} does not stay as it was made: {step} again and again; what else changes it?"
    )]
    Unstable {
        /// The user.
        uid: u32,
        /// The step.
        step: String,
    },
    /// A device went away while it was made.
    #[error("a device of user {0}'s network went away while it was made; what else removes it?")]
    Gone(u32),
    /// No underlay NIC is there.
    #[error("none of the underlay NICs is there with an address in its subnets: see `uvn status`")]
    NoNic,
    /// A data plane.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// His sockets.
    #[error(transparent)]
    Binding(#[from] BindingError),
}

/// All that `uvnd` manages.
pub struct Networks {
    pub(super) file: PathBuf,
    pub(super) config: Config,
    pub(super) leases: Leases,
    pub(super) netlink: Netlink,
    pub(super) node: Node,
    pub(super) binding: Binding,
    pub(super) feeds: Vec<Feed>,
    pub(super) holders: Holders,
    /// Why a leased network is not as it shall be.
    pub(super) faults: BTreeMap<u32, String>,
    /// What else is wrong.
    pub(super) warnings: Vec<String>,
    /// Loopback services inside the networks; None: there are none, or it could not be started.
    pub(super) relay: Option<Relay>,
    pub(super) demand: Demand,
    /// VNIs that kernel VXLAN does not know.
    pub(super) unknown: Option<UnknownLog>,
    pub(super) wanted_by_peers: BTreeSet<(Vni, IpAddr)>,
    /// When the data planes are asked for theirs.
    pub(super) ask: Instant,
    peers: Peers,
    /// NICs that `auto` left to the kernel, and why.
    demoted: BTreeMap<String, String>,
    resync: Instant,
    retry: Instant,
    registry: Registry,
    first_feed: Token,
}

/// Start, and what a change of the node or of the configuration asks for.
impl Networks {
    /// Takes over what is there, and brings it to what is configured and leased. Data planes' connections get tokens
    /// from `feeds` on, processes from `holders` on.
    ///
    /// # Errors
    /// The node lacks something that no user could do without.
    pub fn start(
        file: &Path,
        config: Config,
        registry: &Registry,
        unknown: Token,
        feeds: Token,
        holders: Token,
    ) -> Result<Networks, StartError> {
        for hint in config.hints() {
            tracing::warn!("{}: {hint}", file.display());
        }
        let loaded = state::load(Path::new(STATE), config.nat.slots())?;
        let netlink = Netlink::open()?;
        let node = netlink.node(&config)?;
        // First of all: until it is there, nobody is kept out of the open network.
        let binding = Binding::attach(&binding::cgroup_root()?, Path::new(binding::PINS), &policy(&config))?;
        let now = Instant::now();
        let mut networks = Networks {
            file: file.into(),
            leases: loaded.leases,
            netlink,
            node,
            binding,
            feeds: Vec::new(),
            holders: Holders::new(registry, holders)?,
            faults: BTreeMap::new(),
            warnings: Vec::new(),
            relay: None,
            demand: Demand::new(lease::now()),
            unknown: open_unknown(registry, unknown),
            wanted_by_peers: BTreeSet::new(),
            ask: now,
            peers: Peers::default(),
            demoted: BTreeMap::new(),
            resync: now,
            retry: now,
            registry: registry.try_clone()?,
            first_feed: feeds,
            config,
        };
        if let Some(broken) = loaded.broken {
            tracing::error!("{broken}");
            networks.adopt();
        }
        networks.reap();
        networks.start_relay();
        networks.resolve_peers();
        networks.reconcile();
        Ok(networks)
    }

    /// Takes over the networks of the kernel: nobody knows any more who holds them, so they linger.
    fn adopt(&mut self) {
        let observed = self.netlink.observe().unwrap_or_default();
        for item in observed {
            // The number is in the VRF's table.
            let Item::Vrf { name, table } = item else { continue };
            let (Some(uid), Some(slot)) = (uid_of(&name), table.checked_sub(FIRST_TABLE)) else { continue };
            let adopted =
                self.config.network_of(uid, slot).map(|network| self.leases.adopt(network, lease::now()));
            if !matches!(adopted, Ok(true)) {
                tracing::error!(uid, "the network of this user cannot be taken over, and goes");
            }
        }
    }

    fn start_relay(&mut self) {
        match Relay::start(&self.config.relay) {
            Ok(relay) => self.relay = Some(relay),
            Err(error) => self.warn(format!("no loopback services inside networks: {error}")),
        }
    }

    /// Brings everything to what it shall be, and goes on past errors. Returns the steps in the kernel.
    pub(super) fn reconcile(&mut self) -> Vec<Step> {
        self.resync = Instant::now() + RESYNC;
        self.retry = Instant::now() + RETRY;
        self.warnings.clear();
        self.faults.clear();
        self.look();
        self.settle();
        if let Err(error) = self.unbind_strangers() {
            self.warn(error.to_string());
        }
        let steps = self.bring_all();
        // After the devices are there: what a data plane lacks is opened at once.
        self.drive_feeds();
        if let Err(error) = self.bind_all() {
            self.warn(error.to_string());
        }
        steps
    }

    /// Follows what has changed in the kernel.
    pub(super) fn follow(&mut self, changes: &Changes) {
        if changes.overflow {
            self.reconcile();
            return;
        }
        if changes.node {
            let before = self.node.clone();
            self.look();
            if self.node != before {
                tracing::info!("the node's NICs, addresses or routes have changed");
                self.reconcile();
                return;
            }
        }
        let slot_of = |network: &Network| changes.slots.contains(&network.slot);
        for network in self.wanted() {
            if changes.uids.contains(&network.uid) || slot_of(&network) {
                self.mend(&network);
            }
        }
    }

    /// Brings one network back to what it shall be.
    fn mend(&mut self, network: &Network) {
        let uid = network.uid;
        match self.bring(network, &self.items(network)) {
            Ok(steps) if steps.is_empty() => return,
            Ok(steps) => {
                tracing::warn!(uid, steps = steps.len(), first = %steps[0], "mended what something else changed")
            }
            Err(error) => self.fault(uid, error.to_string()),
        }
        for feed in &mut self.feeds {
            if let Err(error) = feed.add(network, None) {
                tracing::error!(uid, %error, "not mended");
            }
        }
        if let Err(error) = self.bind_all() {
            self.warn(error.to_string());
        }
    }

    /// Drives the data planes.
    pub(super) fn turn(&mut self, now: Instant) {
        for feed in &mut self.feeds {
            feed.turn(now);
        }
        if now >= self.ask {
            self.ask = now + ASK;
            self.ask_unknown();
        }
    }

    /// When [`Networks::turn`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.feeds.iter().map(|feed| feed.due().min(self.ask)).min()
    }

    /// What time brings, once a second.
    pub(super) fn tick(&mut self, now: Instant) {
        self.expire();
        if now >= self.resync || (now >= self.retry && !self.faults.is_empty()) {
            self.reap();
            self.reconcile();
        }
    }

    pub(super) fn warn(&mut self, text: String) {
        tracing::warn!("{text}");
        self.warnings.push(text);
    }

    pub(super) fn fault(&mut self, uid: u32, text: String) {
        tracing::error!(uid, "{text}");
        self.faults.entry(uid).or_insert(text);
    }

    /// Looks at the NICs.
    fn look(&mut self) {
        match self.netlink.node(&self.config) {
            Ok(node) => self.node = node,
            Err(error) => self.warn(error.to_string()),
        }
        for nic in &mut self.node.nics {
            if let Some(reason) = self.demoted.get(&nic.name) {
                (nic.path, nic.reason) = (DataPath::Kernel, reason.clone());
            }
        }
    }

    /// Kernel settings and packet filter.
    fn settle(&mut self) {
        let record = Path::new(sysctl::RECORD);
        if let Err(error) = sysctl::apply(&self.node, record) {
            self.warn(error.to_string());
        }
        let opened = sysctl::opened(&self.node, record);
        let ruleset = firewall::ruleset(&self.config, &self.node, &self.peers, &opened);
        let applied = firewall::is_applied(&ruleset).and_then(|applied| match applied {
            true => Ok(()),
            false => firewall::apply(&ruleset),
        });
        if let Err(error) = applied {
            self.warn(error.to_string());
        }
    }

    /// Nobody without a lease has a network.
    fn unbind_strangers(&mut self) -> Result<(), BindingError> {
        for uid in self.binding.bound().into_keys() {
            if self.leases.get(uid).is_none_or(|held| held.leaving) {
                self.binding.unbind(uid)?;
            }
        }
        Ok(())
    }

    /// The networks that shall be there.
    pub(super) fn wanted(&self) -> Vec<Network> {
        let held = self.leases.iter().map(|(_, held)| held);
        held.filter(|held| !held.leaving).map(|held| held.network.clone()).collect()
    }

    /// What the kernel shall hold for a network.
    pub(super) fn items(&self, network: &Network) -> Vec<Item> {
        items(&self.node, &self.peers, network)
    }

    /// Brings the kernel's objects to what they shall be: rules, and every network.
    fn bring_all(&mut self) -> Vec<Step> {
        let mut wanted = plan::node(&self.node);
        let mut networks = Vec::new();
        for network in self.wanted() {
            let items = self.items(&network);
            wanted.extend(items.iter().cloned());
            networks.push((network.uid, items));
        }
        let mut taken = Vec::new();
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let observed = match self.netlink.observe() {
                Ok(observed) => observed,
                Err(error) => {
                    self.warn(error.to_string());
                    break;
                }
            };
            let steps = plan::diff(&wanted, &observed);
            if steps.is_empty() {
                return taken;
            }
            refused.clear();
            for step in steps {
                if let Err(error) = self.netlink.apply(&step) {
                    refused.push(error.to_string());
                }
                taken.push(step);
            }
        }
        self.blame(&wanted, &networks, &refused);
        taken
    }

    /// Whose network lacks something, and what remains of others'.
    fn blame(&mut self, wanted: &[Item], networks: &[(u32, Vec<Item>)], refused: &[String]) {
        let observed: HashSet<Item> = self.netlink.observe().unwrap_or_default().into_iter().collect();
        for (uid, items) in networks {
            let Some(missing) = items.iter().find(|item| !observed.contains(item)) else { continue };
            let step = Step::Create(missing.clone()).to_string();
            let reason = refused.iter().find(|reason| reason.starts_with(&step)).cloned();
            self.fault(
                *uid,
                reason.unwrap_or_else(|| format!("{step}: it does not stay; what else changes it?")),
            );
        }
        for step in plan::diff(wanted, &observed.into_iter().collect::<Vec<_>>()) {
            if let Step::Delete(_) = step {
                let step = step.to_string();
                let reason = refused.iter().find(|reason| reason.starts_with(&step)).cloned();
                self.warn(reason.unwrap_or(step));
            }
        }
    }

    /// Has each data plane carry the networks that it shall.
    fn drive_feeds(&mut self) {
        let configured: BTreeSet<&str> = self.node.nics.iter().map(|nic| nic.name.as_str()).collect();
        let (keep, go): (Vec<Feed>, Vec<Feed>) =
            std::mem::take(&mut self.feeds).into_iter().partition(|feed| {
                self.node.nics.iter().all(|nic| nic.name != feed.nic().name || nic.path == DataPath::Engine)
                    && configured.contains(feed.nic().name.as_str())
            });
        self.feeds = keep;
        go.into_iter().for_each(Feed::stop);
        let engines: Vec<Nic> =
            self.node.nics.iter().filter(|nic| nic.path == DataPath::Engine).cloned().collect();
        let mut demoted = false;
        for nic in engines {
            let others = Others::new(&nic, &self.peers);
            let wanted: Vec<_> = self.wanted().into_iter().map(|network| (network, None)).collect();
            if let Some(feed) = self.feeds.iter_mut().find(|feed| feed.nic().name == nic.name) {
                feed.follow(nic, others);
                feed.reconcile(wanted);
            } else if let Err(error) = self.begin_feed(nic.clone(), others, wanted) {
                demoted |= self.demote(&nic, error);
            }
        }
        if demoted {
            self.look();
            self.settle();
            self.bring_all();
        }
    }

    /// Starts, or takes over, the data plane of a NIC.
    fn begin_feed(
        &mut self,
        nic: Nic,
        others: Others,
        wanted: Vec<(Network, Option<Vec<IpAddr>>)>,
    ) -> Result<(), String> {
        let auto = self.is_auto(&nic);
        let token = Token(self.first_feed.0 + usize::from(nic.slot));
        let mut feed = Feed::new(nic, others, &self.registry, token).map_err(|error| error.to_string())?;
        feed.reconcile(wanted);
        let drawback = match feed.start() {
            Ok(()) => feed.drawback().filter(|_| auto),
            Err(error) => Some(error.to_string()),
        };
        match drawback {
            Some(drawback) if auto => {
                feed.stop();
                Err(drawback)
            }
            drawback => {
                self.feeds.push(feed);
                drawback.into_iter().for_each(|drawback| self.warn(drawback));
                Ok(())
            }
        }
    }

    fn is_auto(&self, nic: &Nic) -> bool {
        let underlay = self.config.underlays.get(usize::from(nic.slot));
        underlay.is_some_and(|underlay| underlay.path == PathChoice::Auto)
    }

    /// Leaves a NIC to the kernel, until uvnd is started again. False: it is to have the engine or nothing.
    fn demote(&mut self, nic: &Nic, reason: String) -> bool {
        self.warn(format!("{}: left to kernel VXLAN: {reason}", nic.name));
        if self.is_auto(nic) {
            self.demoted.insert(nic.name.clone(), reason);
        }
        self.is_auto(nic)
    }

    /// Binds the users of whole networks, and unbinds those of others.
    fn bind_all(&mut self) -> Result<(), BindingError> {
        let bound = self.binding.bound();
        for network in self.wanted() {
            let uid = network.uid;
            match devices(&self.node, &network) {
                Some(devices) if bound.get(&uid) == Some(&devices) => {}
                Some(devices) if !self.faults.contains_key(&uid) => self.binding.bind(uid, &devices)?,
                // What is bound is not there as it was: refused until it is.
                _ => self.binding.unbind(uid)?,
            }
            self.relay_to(&network);
        }
        Ok(())
    }

    /// Has loopback services reached inside a network, or says why they are not.
    pub(super) fn relay_to(&mut self, network: &Network) {
        if let Some(relay) = &mut self.relay
            && let Err(error) = relay.add(network.uid, &network.vrf())
        {
            self.warn(error.to_string());
        }
    }

    /// Resolves the nodes that run uvn; keeps those that were known if that fails.
    fn resolve_peers(&mut self) {
        match self.config.resolve_peers() {
            Ok(peers) => {
                if !peers.unresolved.is_empty() {
                    self.warn(format!("peers: no address for {}", peers.unresolved.join(", ")));
                }
                self.peers = peers;
            }
            Err(error) => self.warn(error.to_string()),
        }
    }

    /// Reads the configuration again, and follows it. The old one stays if the new one is bad.
    ///
    /// # Errors
    /// It is bad, or cannot be put in force.
    pub(super) fn reload(&mut self, dry_run: bool) -> Result<Vec<Step>, Failure> {
        let invalid = |error: ConfigError| Failure::new(Code::Invalid, error.to_string());
        let config = Config::load(&self.file).map_err(invalid)?;
        if dry_run {
            return self.compare(&config);
        }
        if policy(&config) != policy(&self.config) {
            self.binding
                .set_policy(&policy(&config))
                .map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        }
        self.leases.set_slots(config.nat.slots());
        let relay = config.relay != self.config.relay;
        self.config = config;
        if relay {
            self.start_relay();
        }
        self.demoted.clear();
        self.resolve_peers();
        Ok(self.reconcile())
    }

    /// The steps that a configuration would take.
    fn compare(&self, config: &Config) -> Result<Vec<Step>, Failure> {
        let failed = |error: String| Failure::new(Code::Failed, error);
        let node = self.netlink.node(config).map_err(|error| failed(error.to_string()))?;
        let mut wanted = plan::node(&node);
        for network in self.wanted() {
            wanted.extend(items(&node, &self.peers, &network));
        }
        let observed = self.netlink.observe().map_err(|error| failed(error.to_string()))?;
        Ok(plan::diff(&wanted, &observed))
    }
}

/// What the kernel shall hold for a network; where there is no engine, the other nodes, too.
#[must_use]
pub fn items(node: &Node, peers: &Peers, network: &Network) -> Vec<Item> {
    let mut items = plan::network(node, network);
    for nic in node.nics.iter().filter(|nic| nic.path == DataPath::Kernel && !nic.vteps().is_empty()) {
        items.extend(Others::new(nic, peers).entries(nic, network));
    }
    items
}

/// The indexes of a network's devices; None: one is missing.
#[must_use]
pub fn devices(node: &Node, network: &Network) -> Option<Devices> {
    let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    let with_vtep = node.nics.iter().filter(|nic| !nic.vteps().is_empty());
    let mut endpoints = with_vtep.map(|nic| index(&network.endpoint(nic))).collect::<Option<Vec<u32>>>()?;
    endpoints.sort_unstable();
    Some(Devices { vrf: index(&network.vrf())?, endpoints, off_subnet: network.off_subnet })
}

/// Without it there are no networks on demand over kernel VXLAN.
fn open_unknown(registry: &Registry, token: Token) -> Option<UnknownLog> {
    let open = || {
        let log = UnknownLog::open()?;
        registry.register(&mut SourceFd(&log.as_raw_fd()), token, Interest::READABLE)?;
        Ok(log)
    };
    open()
        .inspect_err(|error: &io::Error| tracing::warn!(%error, "no networks on demand over kernel VXLAN"))
        .ok()
}

/// The socket programs' part of the configuration.
#[must_use]
pub fn policy(config: &Config) -> Policy {
    let ports: BTreeSet<u16> = config.underlays.iter().map(|underlay| underlay.port).collect();
    Policy {
        policed: config.policed_ranges(),
        service_ports: config.service_ports.clone(),
        srun_ports: config.srun_ports.clone(),
        vxlan_ports: ports.into_iter().collect(),
        on_subnet: config.underlays.iter().flat_map(|underlay| underlay.subnets.clone()).collect(),
        hosts: config.hosts.clone(),
    }
}
