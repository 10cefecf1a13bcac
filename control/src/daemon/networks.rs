//! All networks of this node, and what attach, detach and reconcile work on.
//!
//! A grant makes, in this order: lease (saved), kernel objects, data planes, socket binding, answer. A revocation
//! undoes: socket binding, data planes, kernel objects, lease. So a policed user's sockets are in a complete network,
//! or refused.

use super::demoted::Demoted;
use super::holders::Holders;
use super::members::Members;
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

/// The file of the leases.
pub const STATE: &str = "/run/uvn/state.json";

/// How often everything is compared with what it must be, without a known change.
pub(super) const RESYNC: Duration = Duration::from_secs(30);
/// How often data planes are asked for the VNIs that peers sent to. A TCP client repeats its SYN after a second.
pub(super) const ASK: Duration = Duration::from_millis(250);
/// How often faulty networks are tried again.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// How long the start waits for the addresses of nodes: without them, users reach no other node.
const GREETING: Duration = Duration::from_secs(2);
/// How often wanted and observed items are compared: a second round finds what the kernel deleted with something else;
/// more rounds than these do not help.
pub(super) const ROUNDS: usize = 4;

/// Why `uvnd` cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Processes or data planes cannot be polled.
    #[error("poll: {0}")]
    Poll(#[from] io::Error),
    /// The kernel's network configuration cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The file of the leases cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The socket programs cannot be attached.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// Something else on the node uses a NAT pool.
    #[error(transparent)]
    Pool(#[from] PoolInUse),
}

/// Why a user has no network.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The process that is to hold it has ended.
    #[error("process {0} does not exist, so it cannot hold a network")]
    Holder(i32),
    /// The lease is refused.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The lease cannot be saved.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel refuses one of its objects.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Another program keeps changing the objects.
    #[error(
        "the network of user {uid} does not stay as uvnd makes it, {step} is due again and again: another program \
         changes it"
    )]
    Unstable {
        /// The user.
        uid: u32,
        /// The step that is needed again and again.
        step: String,
    },
    /// A device disappeared while the network was made.
    #[error("a device of user {0}'s network disappeared while uvnd made it: another program removes it")]
    Gone(u32),
    /// No underlay NIC has an address in its subnets.
    #[error("no underlay NIC has an address in its subnets: see `uvn status`")]
    NoNic,
    /// The nftables table is not in place.
    #[error("the packet filter is not in place: {0}")]
    Firewall(String),
    /// The connection tracker's flows of an earlier network cannot be deleted.
    #[error("cannot remove a former network's flows from the connection tracker: {0}")]
    Flows(#[source] io::Error),
    /// A data plane refuses the network.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The user's sockets cannot be bound.
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
    /// The packet filter's maps have the networks' numbers below this.
    pub(super) numbered: u32,
    /// The programs that Slurm's daemons call back.
    pub(super) srun: Executables,
    /// See [`slurm_user`].
    pub(super) slurm_user: u32,
    /// UIDs with processes when enforcement was to begin, each with a PID: they get networks before anybody is refused.
    pub(super) newcomers: BTreeMap<u32, i32>,
    pub(super) feeds: Vec<Feed>,
    pub(super) holders: Holders,
    /// Why a leased network is faulty, by UID.
    pub(super) faults: BTreeMap<u32, String>,
    /// Other findings, since the last reconcile.
    pub(super) findings: Vec<Finding>,
    /// Why the packet filter is not in place: nobody gets a network until it is.
    pub(super) firewall_fault: Option<String>,
    /// The relay for loopback services; None: it could not be started.
    pub(super) relay: Option<Relay>,
    pub(super) refusals: Refusals,
    pub(super) demand: Demand,
    /// Who may reach beyond the subnets.
    pub(super) members: Members,
    /// Earliest time to make a network for a peer.
    pub(super) demand_rest: Instant,
    /// The log of VNIs that peers sent to over kernel VXLAN; None: it could not be opened.
    pub(super) unknown: Option<UnknownLog>,
    pub(super) wanted_by_peers: BTreeSet<(Vni, IpAddr)>,
    /// When the data planes are asked next for VNIs that they do not know.
    pub(super) ask: Instant,
    pub(super) directory: Directory,
    /// The nodes that run uvn, from `directory`.
    pub(super) peers: Peers,
    /// Why the nodes cannot be listed.
    pub(super) peers_fault: Option<String>,
    pub(super) demoted: Demoted,
    pub(super) resync: Instant,
    pub(super) retry: Instant,
    pub(super) registry: Registry,
    pub(super) first_feed: Token,
}

/// The start, and what all operations share.
impl Networks {
    /// Takes over what an earlier uvnd has left, and brings it to what is configured and leased. Connections to data
    /// planes get tokens from `feeds` on, processes from `holders` on.
    ///
    /// # Errors
    /// The node lacks something that every network needs.
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
        let newcomers = lockdown::newcomers(&config);
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
            members: Members::new(config.off_subnet.clone()),
            demand_rest: now,
            unknown: open_unknown(registry, unknown),
            wanted_by_peers: BTreeSet::new(),
            ask: now,
            directory: Directory::new(Path::new(peers::KNOWN)),
            peers: Peers::default(),
            peers_fault: None,
            demoted: Demoted::load(),
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
        // By which the earlier uvnd has decided.
        let former = Config::load(Path::new(lockdown::LAST))
            .is_ok_and(|last| last.off_subnet == self.config.off_subnet);
        self.keep_config();
        self.reap();
        self.ask_for_members(self.config.off_subnet.clone(), former);
        self.start_relay();
        self.list_peers();
        self.directory.wait(GREETING);
        self.learn_peers();
        self.reconcile();
    }

    /// Takes over the networks of the kernel after the file of the leases was lost: without leases, they linger.
    fn adopt(&mut self) {
        let observed = self.netlink.observe().unwrap_or_default();
        for item in observed {
            // The number of the VRF's table gives the lease number.
            let Item::Vrf { name, table } = item else { continue };
            let (Some(uid), Some(slot)) = (uid_of(&name), table.checked_sub(FIRST_TABLE)) else { continue };
            let off_subnet = self.members.allows(uid).unwrap_or(false);
            let network = self.config.network_of(uid, slot, off_subnet);
            let adopted = network.map(|network| self.leases.adopt(network, lease::now()));
            if !matches!(adopted, Ok(true)) {
                tracing::error!(uid, "cannot take over this user's network; it is removed");
            }
        }
    }

    /// Saves the configuration for the next boot if it is enforced, and deletes the saved one if uvn observes.
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

    /// Logs a finding, and keeps it until the next reconcile.
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

    /// The networks that must exist: all but those being removed.
    pub(super) fn wanted(&self) -> Vec<Network> {
        let held = self.leases.iter().map(|(_, held)| held);
        held.filter(|held| !held.leaving).map(|held| held.network.clone()).collect()
    }

    /// Adds the numbers of all networks to the packet filter's maps, with room for more: up to the next power of two.
    pub(super) fn number(&mut self) -> Result<(), FirewallError> {
        let numbers = self.leases.iter().map(|(_, held)| held.network.number());
        let end = numbers.max().unwrap_or(0).saturating_add(1).next_power_of_two().clamp(64, NETWORK_ENTRIES);
        firewall::number(&self.node, end)?;
        self.numbered = end;
        Ok(())
    }

    /// The socket programs' policy in force.
    pub(super) fn policy(&self) -> Policy {
        policy(&self.config, &self.srun.known, self.slurm_user, self.observes())
    }

    /// What the kernel must hold for a network.
    pub(super) fn items(&self, network: &Network) -> Vec<Item> {
        items(&self.node, &self.peers, network)
    }
}

/// What the kernel must hold for a network, including the other nodes' entries on NICs that kernel VXLAN carries.
#[must_use]
pub fn items(node: &Node, peers: &Peers, network: &Network) -> Vec<Item> {
    let mut items = plan::network(node, network);
    for nic in node.nics.iter().filter(|nic| nic.path == DataPath::Kernel && !nic.vteps().is_empty()) {
        items.extend(Others::new(node, nic, peers).entries(nic, network));
    }
    items
}

/// The interface indexes of a network's devices; None: a device is missing.
#[must_use]
pub fn devices(node: &Node, network: &Network) -> Option<Devices> {
    let index = |name: &str| netlink::index(name).ok();
    let with_vtep = node.nics.iter().filter(|nic| !nic.vteps().is_empty());
    let mut endpoints = with_vtep.map(|nic| index(&network.endpoint(nic))).collect::<Option<Vec<u32>>>()?;
    endpoints.sort_unstable();
    let (number, vrf) = (network.number(), index(&network.vrf())?);
    Some(Devices { number, vrf, endpoints, off_subnet: network.off_subnet })
}

/// Opens the log of kernel VXLAN's VNIs; None: there are no networks on demand over kernel VXLAN.
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

/// The programs that Slurm's daemons call back; none without `srun_ports`.
pub(super) fn called_back(config: &Config) -> Executables {
    if config.srun_ports.is_empty() {
        Executables::default()
    } else {
        Executables::find(config.srun.as_deref())
    }
}
