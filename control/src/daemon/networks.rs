//! What this node holds for its users, and the ways there: attach, detach, reconcile.
//!
//! Grant: lease (persisted), kernel objects, data planes, socket binding, answer. Revoke: socket binding, data planes,
//! kernel objects, lease. So a policed user's sockets are either in his whole network, or refused.

use super::holders::Holders;
use super::newcomers::newcomers;
use super::refused::Refusals;
use crate::binding::policy::{policy, slurm_user};
use crate::binding::{self, Binding, BindingError, Devices, Executables, Policy};
use crate::config::{Config, Mode};
use crate::demand::{Demand, UnknownLog, Users};
use crate::feed::{Feed, FeedError, Others};
use crate::firewall::{self, FirewallError};
use crate::lease::state::{self, StateError};
use crate::lease::{self, LeaseError, Leases};
use crate::lockdown;
use crate::netlink::{self, Netlink, NetlinkError, PoolInUse};
use crate::network::{DataPath, FIRST_TABLE, Network, Node, uid_of};
use crate::peers::{self, Directory, Peers};
use crate::plan::{self, Item};
use crate::relay::Relay;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;
use uvn_api::uvnd::finding::{Finding, Id, LOG};
use uvn_wire::cgroup::NETWORK_ENTRIES;
use uvn_wire::vxlan::Vni;

/// The leases.
pub const STATE: &str = "/run/uvn/state.json";

/// How often all is compared with what it shall be, though nothing is known to have changed.
pub(super) const RESYNC: Duration = Duration::from_secs(30);
/// How often data planes are asked for the VNIs that peers sent to: a TCP connection is tried again after a second.
pub(super) const ASK: Duration = Duration::from_millis(250);
/// How often a network that is not as it shall be is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// How long the start waits for the addresses of nodes: without them, users reach nobody.
const GREETING: Duration = Duration::from_secs(2);
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
    /// A NAT pool is not free.
    #[error(transparent)]
    Pool(#[from] PoolInUse),
}

/// Why a user has no network.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The process that shall hold it.
    #[error("process {0} does not exist, so it cannot hold a network")]
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
        "the network of user {uid} does not stay as uvnd makes it, {step} is due again and again: another program \
         changes it"
    )]
    Unstable {
        /// The user.
        uid: u32,
        /// The step.
        step: String,
    },
    /// A device went away while it was made.
    #[error("a device of user {0}'s network disappeared while uvnd made it: another program removes it")]
    Gone(u32),
    /// No underlay NIC is there.
    #[error("no underlay NIC has an address in its subnets: see `uvn status`")]
    NoNic,
    /// What keeps networks apart beside the socket programs.
    #[error("the packet filter is not in place: {0}")]
    Firewall(String),
    /// The connection tracker.
    #[error("cannot remove a former network's flows from the connection tracker: {0}")]
    Flows(#[source] io::Error),
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
    /// The packet filter knows the numbers below.
    pub(super) numbered: u32,
    /// What Slurm's daemons call back.
    pub(super) srun: Executables,
    /// See [`slurm_user`].
    pub(super) slurm_user: u32,
    /// Users who ran before the configuration was in force, each with a process: they get networks first.
    pub(super) newcomers: BTreeMap<u32, i32>,
    pub(super) feeds: Vec<Feed>,
    pub(super) holders: Holders,
    /// Why a leased network is not as it shall be.
    pub(super) faults: BTreeMap<u32, String>,
    /// What else is not as it should be.
    pub(super) findings: Vec<Finding>,
    /// Why the packet filter is not in place: nobody gets a network until it is.
    pub(super) firewall_fault: Option<String>,
    /// Loopback services inside the networks; None: there are none, or it could not be started.
    pub(super) relay: Option<Relay>,
    pub(super) refusals: Refusals,
    pub(super) demand: Demand,
    /// No network is made for a peer before.
    pub(super) demand_rest: Instant,
    /// VNIs that kernel VXLAN does not know.
    pub(super) unknown: Option<UnknownLog>,
    pub(super) wanted_by_peers: BTreeSet<(Vni, IpAddr)>,
    /// When the data planes are asked for theirs.
    pub(super) ask: Instant,
    pub(super) directory: Directory,
    /// Those that the directory knows.
    pub(super) peers: Peers,
    /// Why they cannot be listed.
    pub(super) peers_fault: Option<String>,
    /// NICs that `auto` left to the kernel, and why.
    pub(super) demoted: BTreeMap<String, String>,
    pub(super) resync: Instant,
    pub(super) retry: Instant,
    pub(super) registry: Registry,
    pub(super) first_feed: Token,
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
        let loaded = state::load(Path::new(STATE), config.nat.slots())?;
        let netlink = Netlink::open()?;
        if let Some(in_use) = netlink.pool_in_use(&config)? {
            return Err(in_use.into());
        }
        let node = netlink.node(&config)?;
        let srun = called_back(&config);
        let newcomers = newcomers(&config);
        let slurm_user = slurm_user(&config);
        let policy = policy(&config, &srun.known, slurm_user, !newcomers.is_empty());
        let binding = Binding::attach(&binding::cgroup_root()?, Path::new(binding::PINS), &policy)?;
        let now = Instant::now();
        let mut networks = Networks {
            file: file.into(),
            leases: loaded.leases,
            netlink,
            node,
            binding,
            numbered: 0,
            srun,
            slurm_user,
            newcomers,
            feeds: Vec::new(),
            holders: Holders::new(registry, holders)?,
            faults: BTreeMap::new(),
            findings: Vec::new(),
            firewall_fault: None,
            relay: None,
            refusals: Refusals::new(now),
            demand: Demand::new(lease::now(), Users::new()),
            demand_rest: now,
            unknown: open_unknown(registry, unknown),
            wanted_by_peers: BTreeSet::new(),
            ask: now,
            directory: Directory::new(Path::new(peers::KNOWN)),
            peers: Peers::default(),
            peers_fault: None,
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
        networks.begin();
        Ok(networks)
    }

    fn begin(&mut self) {
        for hint in self.config.hints() {
            tracing::warn!("{}: {hint}", self.file.display());
        }
        self.keep_config();
        self.reap();
        self.start_relay();
        self.list_peers();
        self.directory.wait(GREETING);
        self.learn_peers();
        self.reconcile();
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
                tracing::error!(uid, "cannot take over this user's network; it is removed");
            }
        }
    }

    /// For the next start, once it is in force.
    pub(super) fn keep_config(&mut self) {
        let kept = match self.config.mode {
            Mode::Enforce if self.observes() => return,
            Mode::Enforce => lockdown::keep(&self.file),
            Mode::Observe => lockdown::forget(),
        };
        if let Err(error) = kept {
            let users = match self.config.mode {
                Mode::Enforce => "not isolated",
                Mode::Observe => "refused sockets",
            };
            let what = format!("after a boot, users are {users} until uvnd is up");
            self.warn(Id::File, format!("{}: {error}; {what}", lockdown::LAST));
        }
    }

    pub(super) fn start_relay(&mut self) {
        match Relay::start(&self.config.relay) {
            Ok(relay) => self.relay = Some(relay),
            Err(error) => {
                self.warn(Id::Relay, format!("cannot reach loopback services inside networks: {error}"))
            }
        }
    }

    pub(super) fn warn(&mut self, id: Id, what: impl Display) {
        self.found(Finding::fault(id, what, LOG));
    }

    /// Remembers a finding until the node is looked at again.
    pub(super) fn found(&mut self, finding: Finding) {
        tracing::warn!("{finding}");
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    pub(super) fn fault(&mut self, uid: u32, text: String) {
        tracing::error!(uid, "{text}");
        self.faults.entry(uid).or_insert(text);
    }

    /// The networks that shall be there.
    pub(super) fn wanted(&self) -> Vec<Network> {
        let held = self.leases.iter().map(|(_, held)| held);
        held.filter(|held| !held.leaving).map(|held| held.network.clone()).collect()
    }

    /// Has the packet filter know the numbers of all networks, and as many again.
    pub(super) fn number(&mut self) -> Result<(), FirewallError> {
        let numbers = self.leases.iter().map(|(_, held)| held.network.number());
        let end = numbers.max().unwrap_or(0).saturating_add(1).next_power_of_two().clamp(64, NETWORK_ENTRIES);
        firewall::number(&self.node, end)?;
        self.numbered = end;
        Ok(())
    }

    /// The socket programs' part of the configuration, as it is in force.
    pub(super) fn policy(&self) -> Policy {
        policy(&self.config, &self.srun.known, self.slurm_user, self.observes())
    }

    /// What the kernel shall hold for a network.
    pub(super) fn items(&self, network: &Network) -> Vec<Item> {
        items(&self.node, &self.peers, network)
    }
}

/// What the kernel shall hold for a network; where there is no engine, the other nodes, too.
#[must_use]
pub fn items(node: &Node, peers: &Peers, network: &Network) -> Vec<Item> {
    let mut items = plan::network(node, network);
    for nic in node.nics.iter().filter(|nic| nic.path == DataPath::Kernel && !nic.vteps().is_empty()) {
        items.extend(Others::new(node, nic, peers).entries(nic, network));
    }
    items
}

/// The indexes of a network's devices; None: one is missing.
#[must_use]
pub fn devices(node: &Node, network: &Network) -> Option<Devices> {
    let index = |name: &str| netlink::index(name).ok();
    let with_vtep = node.nics.iter().filter(|nic| !nic.vteps().is_empty());
    let mut endpoints = with_vtep.map(|nic| index(&network.endpoint(nic))).collect::<Option<Vec<u32>>>()?;
    endpoints.sort_unstable();
    let (number, vrf) = (network.number(), index(&network.vrf())?);
    Some(Devices { number, vrf, endpoints, off_subnet: network.off_subnet })
}

/// Without it there are no networks on demand over kernel VXLAN.
fn open_unknown(registry: &Registry, token: Token) -> Option<UnknownLog> {
    let open = || {
        let log = UnknownLog::open()?;
        registry.register(&mut SourceFd(&log.as_raw_fd()), token, Interest::READABLE)?;
        Ok(log)
    };
    open()
        .inspect_err(
            |error: &io::Error| tracing::warn!(%error, "no networks are made on demand over kernel VXLAN"),
        )
        .ok()
}

/// The programs that Slurm's daemons call back; without ports there are none.
pub(super) fn called_back(config: &Config) -> Executables {
    if config.srun_ports.is_empty() {
        Executables::default()
    } else {
        Executables::find(config.srun.as_deref())
    }
}
