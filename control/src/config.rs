//! The TOML file of `uvnd`: `/etc/uvn/uvn.toml`.
//!
//! Reading it looks at no other file. Names, groups and slurm.conf are looked up when they are needed
//! ([`Config::peers`], [`Config::network_of`]).

mod check;
mod groups;
mod ids;
#[cfg(test)]
mod tests;

pub use ids::NoVni;
pub use uvn_api::uvnd::policed::{Attachment, FILE, MAX_UID, Mode, default_admins, default_policed};

use crate::network::{Nat, Network};
use crate::peers::PeerList;
use nix::unistd::geteuid;
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uvn_api::dataplane::config::{Cidr, Encapsulation, Path as Gear, Workers};
use uvn_api::toml_file::{self, ConfigError};
use uvn_api::uvnd::policed::{range, ranges};
use uvn_wire::vxlan;

/// The configuration, as in the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether sockets are refused, or only counted.
    #[serde(default)]
    pub mode: Mode,
    /// UIDs whose sockets are bound to their network, and refused without one.
    #[serde(default = "default_policed", deserialize_with = "ranges")]
    pub policed: Vec<RangeInclusive<u32>>,
    /// UIDs among `policed` that are left alone.
    #[serde(default, deserialize_with = "ranges")]
    pub exempt: Vec<RangeInclusive<u32>>,
    /// Whether a login or job is refused when its network cannot be made.
    #[serde(default)]
    pub attachment: Attachment,
    /// Groups of administrators, who can log in without a network, to repair a node.
    #[serde(default = "default_admins")]
    pub admins: Vec<String>,
    /// Seconds that a network stays after its last lease.
    #[serde(default = "default_linger")]
    pub linger_s: u32,
    /// TCP and UDP ports that policed users may not bind, since system services of the node use them.
    #[serde(default = "default_service_ports", deserialize_with = "ranges")]
    pub service_ports: Vec<RangeInclusive<u16>>,
    /// Ports where srun listens (`SrunPortRange` of slurm.conf): a socket there is outside of the user's network, and
    /// only Slurm's daemons reach it.
    #[serde(default, deserialize_with = "ranges")]
    pub srun_ports: Vec<RangeInclusive<u16>>,
    /// The programs that may listen on `srun_ports`. None: `srun`, `salloc` and `sattach` in the usual folders.
    pub srun: Option<Vec<PathBuf>>,
    /// Loopback services of the node, over UDP and TCP, that stay reachable inside the networks.
    #[serde(default = "default_relay")]
    pub relay: Vec<SocketAddr>,
    /// On-subnet hosts that do not run uvn: storage, licence servers.
    #[serde(default, deserialize_with = "hosts")]
    pub hosts: Vec<Cidr>,
    /// The NICs that carry the networks.
    #[serde(rename = "underlay", default)]
    pub underlays: Vec<Underlay>,
    /// VNIs of UIDs from 2^24 on.
    #[serde(rename = "vni", default)]
    pub vnis: Vec<VniRange>,
    /// Pools of NAT addresses, for traffic beyond the underlay's subnets.
    #[serde(default)]
    pub nat: Nat,
    /// The nodes that run uvn.
    #[serde(default)]
    pub peers: PeerList,
    /// Which users may reach beyond the underlay's subnets.
    #[serde(default)]
    pub off_subnet: OffSubnet,
    /// Whether policed users may open RDMA devices. None: they may, and `uvn check` warns where there are such devices.
    pub rdma: Option<Rdma>,
}

/// See [`Config::rdma`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rdma {
    /// They may.
    Allow,
    /// They may not.
    Deny,
}

/// One NIC that carries networks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// Its subnets: on them, users reach only their own networks.
    pub subnets: Vec<Cidr>,
    /// The NIC's name. None: the NIC that has an address in one of the subnets.
    pub nic: Option<String>,
    /// What carries the networks.
    #[serde(default)]
    pub path: PathChoice,
    /// UDP port of VXLAN.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Underlay multicast group for broadcast and unknown frames.
    pub group: Option<IpAddr>,
    /// Broadcast and multicast frames per second that this node sends for one network, before copies for each peer.
    /// None: a rate that suits the number of nodes.
    pub flood_rate: Option<u32>,
    /// The outer headers, but for the port, which is `port`.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// The worker threads of the data plane.
    #[serde(default)]
    pub workers: Workers,
}

/// See [`Underlay::path`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathChoice {
    /// The data plane where the NIC allows it, in the gear that it chooses; else kernel VXLAN.
    #[default]
    Auto,
    /// The data plane with the engine gear; never kernel VXLAN.
    Engine,
    /// The data plane with the shortcut gear; never kernel VXLAN.
    Shortcut,
    /// Kernel VXLAN.
    Kernel,
}

impl PathChoice {
    /// The `path` of the data plane's own configuration.
    #[must_use]
    pub fn gear(self) -> Gear {
        match self {
            PathChoice::Engine => Gear::Engine,
            PathChoice::Shortcut => Gear::Shortcut,
            PathChoice::Auto | PathChoice::Kernel => Gear::Auto,
        }
    }
}

/// VNIs for a range of UIDs from 2^24 on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VniRange {
    /// The UIDs.
    #[serde(deserialize_with = "range")]
    pub uids: RangeInclusive<u32>,
    /// The VNI of the first UID; the others follow.
    pub first: u32,
}

/// Which users may reach beyond the underlay's subnets, by group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OffSubnet {
    /// The verdict for users in neither list.
    pub default: Verdict,
    /// Members of one of these groups may.
    pub allow_groups: Vec<Group>,
    /// Members of one of these groups may not, even if `allow_groups` has another group of theirs.
    pub deny_groups: Vec<Group>,
}

/// See [`OffSubnet::default`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They may.
    #[default]
    Allow,
    /// They may not.
    Deny,
}

/// A group of users.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged, expecting = "a group is a name or a number")]
pub enum Group {
    /// Its GID.
    Number(u32),
    /// Its name.
    Name(String),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Group::Number(gid) => gid.fmt(f),
            Group::Name(name) => name.fmt(f),
        }
    }
}

fn default_linger() -> u32 {
    60
}
fn default_service_ports() -> Vec<RangeInclusive<u16>> {
    // The ports of Slurm's daemons. Ports below 1024 are root's anyway.
    vec![6817..=6819]
}
fn default_relay() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([127, 0, 0, 53], 53))]
}
fn default_port() -> u16 {
    vxlan::PORT
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the line, the key and what is allowed.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        owned(file).map_err(|source| ConfigError::Read { file: file.into(), source })?;
        toml_file::load(file)
    }

    /// A user's network with lease number `slot`, which may reach beyond the subnets or not.
    ///
    /// # Errors
    /// The user has no VNI.
    pub fn network_of(&self, uid: u32, slot: u32, off_subnet: bool) -> Result<Network, NoVni> {
        Ok(Network { uid, vni: self.vni_of(uid)?, slot, off_subnet })
    }

    /// Texts for the log about settings that are allowed, but probably not meant.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        check::hints(self)
    }
}

/// Refuses a file that users other than root could change, since it decides who is policed.
fn owned(file: &Path) -> io::Result<()> {
    let metadata = fs::metadata(file)?;
    let trusted = [0, geteuid().as_raw()].contains(&metadata.uid());
    if trusted && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    let remedy = "users other than root can change it: `chown root`, `chmod go-w`";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, remedy))
}

/// Reads subnets and single addresses.
fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cidr>, D::Error> {
    let host = |text: String| match text.parse::<IpAddr>() {
        Ok(address) => Ok(Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } }),
        Err(_) => text.parse().map_err(serde::de::Error::custom),
    };
    Vec::deserialize(deserializer)?.into_iter().map(host).collect()
}
