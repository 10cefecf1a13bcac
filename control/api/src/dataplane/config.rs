//! The TOML file of `uvn-dataplane run --config FILE`.

mod check;
#[cfg(test)]
mod tests;

pub use check::{allowed, check_peers};

use crate::toml_file::{self, ConfigError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path as File, PathBuf};
use std::str::FromStr;
use uvn_wire::vxlan::{self, Vni};

/// One NIC's data plane.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The underlay NIC, such as `em1`.
    pub nic: String,
    /// This node's VTEP addresses on it: at most one IPv4 and one IPv6.
    pub vtep: Vec<IpAddr>,
    /// The gear that carries the frames that need no decision.
    #[serde(default)]
    pub path: Path,
    /// The path of the control socket. None: no control socket.
    pub socket: Option<PathBuf>,
    /// The outer headers.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// The VTEPs that may send to this node.
    #[serde(default)]
    pub peers: Peers,
    /// The settings of the worker threads.
    #[serde(default)]
    pub workers: Workers,
    /// Networks that exist from the start; others come over the control socket.
    #[serde(default, rename = "network")]
    pub networks: Vec<Network>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the line, the key and what is allowed.
    pub fn load(file: &File) -> Result<Config, ConfigError> {
        toml_file::load(file)
    }
}

/// The gear that carries the frames that need no decision; the engine carries all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The shortcut gear if the kernel and the settings allow it, else the engine gear.
    #[default]
    Auto,
    /// The engine gear: workers between AF_XDP sockets and endpoints.
    Engine,
    /// The shortcut gear: tc programs on the endpoints and on the NIC. If it is not possible, the NIC is not put to
    /// use.
    Shortcut,
}

/// Outer header settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encapsulation {
    /// UDP destination port.
    pub port: u16,
    /// Outer TTL or hop limit, 1 to 255.
    pub ttl: u8,
    /// Outer DSCP: `"inherit"` copies the inner one, a number (0 to 63) is used as it is. ECN follows RFC 6040 always.
    pub dscp: Dscp,
    /// Compute the outer UDP checksum over IPv4. Off is RFC 7348's default; some NICs coalesce only with it.
    pub checksum: bool,
    /// Compute the outer UDP checksum over IPv6. On is the default; while it is on, a received zero is refused, as
    /// Linux does (`udp6zerocsumtx`, `udp6zerocsumrx`).
    pub ipv6_checksum: bool,
    /// Drop frames with a reserved VXLAN bit set, as Linux does; off ignores them, as RFC 7348 says.
    pub strict_flags: bool,
}

/// The outer DSCP: a fixed value, or the inner packet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "dscp is \"inherit\" or a number from 0 to 63")]
pub enum Dscp {
    /// A fixed value, 0 to 63.
    Fixed(u8),
    /// Copy the inner DSCP.
    Inherit(Inherit),
}

/// The word `inherit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inherit {
    /// The only value.
    Inherit,
}

impl Encapsulation {
    /// Whether the outer UDP checksum is computed for packets of this VTEP address.
    #[must_use]
    pub fn sums(&self, vtep: IpAddr) -> bool {
        if vtep.is_ipv4() { self.checksum } else { self.ipv6_checksum }
    }
}

impl Default for Encapsulation {
    fn default() -> Self {
        Encapsulation {
            port: vxlan::PORT,
            ttl: 64,
            dscp: Dscp::Fixed(0),
            checksum: false,
            ipv6_checksum: true,
            strict_flags: true,
        }
    }
}

/// The VTEPs that are valid outer sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// Single VTEPs, with the overlay addresses of their endpoints unless those are the VTEP address alone.
    pub vtep: Vec<Vtep>,
    /// Whole ranges, such as `10.0.0.0/16`. An IPv6 range must be /96 or longer, since an endpoint's MAC holds the
    /// last four bytes of its VTEP.
    pub range: Vec<Cidr>,
}

/// One allowed VTEP.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vtep {
    /// Its underlay address.
    pub address: IpAddr,
    /// Overlay addresses of its endpoints. Empty: its underlay address.
    #[serde(default)]
    pub overlay: Vec<IpAddr>,
}

/// Worker threads: one per NIC queue, or up to four beside the shortcut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// The core of each queue's worker. Empty: cores of the NIC's NUMA node, counted down from the last.
    pub cores: Vec<usize>,
    /// The NICs whose workers share those cores. Not written for one alone: a data plane of 0.1.0 does not know the key.
    #[serde(skip_serializing_if = "Share::is_alone")]
    pub share: Share,
    /// What may be boosted while a trial shows that it pays. Not written if nothing is: data planes up to 0.2.0 do not
    /// know the key.
    #[serde(skip_serializing_if = "Boosting::is_none")]
    pub boost: Boosting,
    /// How long an idle worker spins before it sleeps, microseconds. It should exceed a round trip through both nodes:
    /// otherwise every message of a ping-pong pays for waking two workers.
    pub spin_us: u32,
    /// SO_BUSY_POLL of the AF_XDP sockets, microseconds; 0 is off.
    pub busy_poll_us: u32,
    /// UMEM frames per queue (4 KiB each), a power of two from 256 to 65536. More frames absorb longer bursts, but fit
    /// into no cache: the kernel cycles through all of them.
    pub frames: u32,
}

/// What the data plane may do for its traffic beyond carrying it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boosting {
    /// Nothing.
    #[default]
    None,
    /// Shortcut gear, many packets: the NIC receives in threads of the kernel on the workers' cores (NAPI threads).
    Threads,
    /// That; and the workers' cores stay out of deep sleep.
    Awake,
}

impl Boosting {
    fn is_none(&self) -> bool {
        *self == Boosting::None
    }
}

/// One of several NICs that have the same cores near them: each begins at another of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Which of them this NIC is, from 0 on.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    fn is_alone(&self) -> bool {
        *self == Share::default()
    }
}

impl Default for Share {
    fn default() -> Self {
        Share { index: 0, of: 1 }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Workers {
            cores: Vec::new(),
            share: Share::default(),
            boost: Boosting::None,
            spin_us: 250,
            busy_poll_us: 0,
            frames: 1024,
        }
    }
}

/// One user's network on this NIC, from the file or over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The VXLAN network identifier.
    #[serde(with = "vni")]
    pub vni: Vni,
    /// The endpoint's overlay addresses with their prefix, such as `10.0.0.1/24`.
    pub addresses: Vec<Cidr>,
    /// The endpoint device to make. None: its file descriptors come with the request on the control socket.
    #[serde(default)]
    pub device: Option<Device>,
    /// VTEPs that also host this network: broadcast, multicast and unknown frames are replicated to them.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
    /// Underlay multicast group to use instead of replication to `peers`.
    #[serde(default)]
    pub group: Option<IpAddr>,
    /// Learn which VTEP a MAC is behind, for peers whose MACs are not derived from their VTEP.
    #[serde(default)]
    pub learning: bool,
    /// Bound on learned MACs (`maxaddress` of a kernel VXLAN device).
    #[serde(default = "default_max_addresses")]
    pub max_addresses: usize,
    /// Seconds after which an unused learned MAC is forgotten.
    #[serde(default = "default_ageing")]
    pub ageing: u32,
    /// Broadcast, multicast and unknown frames per second that this node sends for the network, before replication.
    #[serde(default = "default_flood_rate")]
    pub flood_rate: u32,
}

/// An endpoint device that the data plane makes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its kind; TAP if not given.
    #[serde(default)]
    pub kind: DeviceKind,
    /// The file of the network namespace to make it in, such as `/run/netns/u1234`. None: the data plane's own
    /// namespace.
    #[serde(default)]
    pub netns: Option<PathBuf>,
}

/// The kinds of endpoint device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A TAP: whole super-frames, best for bulk.
    #[default]
    Tap,
    /// A veth pair with AF_XDP on the data plane's end: frame by frame, best for latency.
    Veth,
}

fn default_max_addresses() -> usize {
    1024
}
fn default_ageing() -> u32 {
    300
}
fn default_flood_rate() -> u32 {
    1000
}

/// An address and a prefix length, written `10.0.0.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address, host bits kept.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Cidr {
    /// The subnet: the address without the bits beyond the prefix.
    #[must_use]
    pub fn subnet(self) -> Cidr {
        let prefix = u32::from(self.prefix);
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
            }
        };
        Cidr { address, prefix: self.prefix }
    }

    /// Whether `other` is in the same subnet.
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (a.to_bits() ^ b.to_bits()) & mask == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (a.to_bits() ^ b.to_bits()) & mask == 0
            }
            _ => false,
        }
    }

    /// Whether any address is in both subnets.
    #[must_use]
    pub fn overlaps(&self, other: &Cidr) -> bool {
        if self.prefix <= other.prefix { self.contains(other.address) } else { other.contains(self.address) }
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an address with a prefix length, such as 10.0.0.1/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix <= if address.is_ipv4() { 32 } else { 128 } {
            Ok(Cidr { address, prefix })
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

mod vni {
    use super::{Deserialize, Vni};
    use serde::{Deserializer, Serializer, de::Error};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(vni: &Vni, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(vni.get())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vni, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Vni::new(number).ok_or_else(|| D::Error::custom(format!("vni {number} needs more than 24 bits")))
    }
}
