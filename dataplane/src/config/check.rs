//! The rules for each key, and where in the file a broken one stands.

use super::{Config, Device, Dscp, Encapsulation, Network, Peers, Workers};
use crate::tables::Vteps;
use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use thiserror::Error;
use toml::de::{DeTable, DeValue};

/// A value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Invalid {
    /// The key with its way there, such as `network[2].addresses[0]`.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)?;
        match allowed(&self.key) {
            Some(allowed) => write!(f, "; allowed: {allowed}"),
            None => Ok(()),
        }
    }
}

impl Invalid {
    /// A key with what is wrong with it.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Invalid {
        Invalid { key: key.into(), problem: problem.into() }
    }

    fn within(self, table: &str) -> Invalid {
        Invalid { key: format!("{table}.{}", self.key), ..self }
    }
}

/// What a key may hold; the last name of `path` decides.
pub(super) fn allowed(path: &str) -> Option<&'static str> {
    let name = path.rsplit('.').next()?;
    Some(match name.split('[').next()? {
        "nic" | "name" => "a network device's name: 1 to 15 bytes, no blank, no slash, not `.` or `..`",
        "vtep" if !path.contains("peers") => "one IPv4 and one IPv6 unicast address, or one of the two",
        "vtep" => {
            "each VTEP once, as { address = \"10.0.0.2\" }, of a family that this node has a VTEP address of"
        }
        "socket" | "netns" => "an absolute path, at most 107 bytes",
        "port" => "a UDP port, 1 to 65535",
        "ttl" => "1 to 255",
        "dscp" => "\"inherit\" or 0 to 63",
        "df" | "checksum" | "ipv6_checksum" | "strict_flags" | "learning" => "true or false",
        "range" => "subnets such as 10.0.0.0/16 of this node's VTEP families; IPv6 ones /96 or longer",
        "address" | "overlay" => "unicast IP addresses",
        "cores" => "core numbers, 0 to 1023",
        "spin_us" => "0 to 1000000 microseconds",
        "busy_poll_us" => "0 to 100000 microseconds",
        "frames" => "a power of two from 256 to 65536",
        "vni" => "0 to 16777215, each once",
        "addresses" => "1 to 16 unicast addresses with their prefix length, such as 10.0.0.1/24",
        "device" => "a table such as { name = \"uvn1234\", kind = \"tap\" }",
        "kind" => "\"tap\" or \"veth\"",
        "peers" => {
            "unicast addresses of allowed VTEPs (peers.vtep, peers.range), each once; none beside a group"
        }
        "group" => "a multicast address of a family that this node has a VTEP address of",
        "max_addresses" => "1 to 1000000",
        "ageing" => "1 to 1000000 seconds",
        "flood_rate" => "0 to 10000000 frames per second",
        _ => return None,
    })
}

impl Config {
    /// Checks every rule that the types alone do not hold.
    ///
    /// # Errors
    /// The first key that breaks one.
    pub fn check(&self) -> Result<(), Invalid> {
        device_name("nic", &self.nic)?;
        own_vteps(&self.vtep)?;
        if let Some(socket) = &self.socket {
            absolute("socket", socket)?;
        }
        self.encapsulation.check().map_err(|invalid| invalid.within("encapsulation"))?;
        self.peers.check(&self.vtep).map_err(|invalid| invalid.within("peers"))?;
        Vteps::new(&self.peers).map_err(|conflict| Invalid::new("peers.vtep", conflict.to_string()))?;
        self.workers.check().map_err(|invalid| invalid.within("workers"))?;
        let mut vnis = HashSet::new();
        let mut devices = HashSet::new();
        for (index, network) in self.networks.iter().enumerate() {
            let broken = |invalid: Invalid| invalid.within(&format!("network[{index}]"));
            if !vnis.insert(network.vni) {
                let problem = format!("{} is already the VNI of another network", network.vni);
                return Err(broken(Invalid::new("vni", problem)));
            }
            let Some(device) = &network.device else {
                return Err(broken(Invalid::new("device", "missing: a network of this file needs one")));
            };
            if !devices.insert((&device.netns, &device.name)) {
                let problem = format!("`{}` is already the device of another network", device.name);
                return Err(broken(Invalid::new("device.name", problem)));
            }
            if device.netns.is_none() && device.name == self.nic {
                return Err(broken(Invalid::new("device.name", format!("`{}` is the NIC", device.name))));
            }
            network.check(&self.vtep, &self.peers).map_err(broken)?;
        }
        Ok(())
    }
}

impl Network {
    /// Checks one network against this node's VTEP addresses and the allowed VTEPs. Keys are relative to the network.
    ///
    /// # Errors
    /// The first key that breaks a rule.
    pub fn check(&self, vtep: &[IpAddr], allowed: &Peers) -> Result<(), Invalid> {
        if !(1..=16).contains(&self.addresses.len()) {
            return Err(Invalid::new("addresses", format!("{} addresses", self.addresses.len())));
        }
        each_once("addresses", self.addresses.iter().map(|cidr| cidr.address))?;
        for (index, cidr) in self.addresses.iter().enumerate() {
            let key = format!("addresses[{index}]");
            unicast(&key, cidr.address)?;
            if cidr.prefix == 0 {
                return Err(Invalid::new(key, format!("{cidr} makes every address on-subnet")));
            }
        }
        if let Some(device) = &self.device {
            device.check().map_err(|invalid| invalid.within("device"))?;
        }
        self.check_flooding(vtep, allowed)?;
        within("max_addresses", self.max_addresses as u64, 1..=1_000_000)?;
        within("ageing", self.ageing.into(), 1..=1_000_000)?;
        within("flood_rate", self.flood_rate.into(), 0..=10_000_000)
    }

    fn check_flooding(&self, vtep: &[IpAddr], allowed: &Peers) -> Result<(), Invalid> {
        check_peers(&self.peers, vtep, allowed)?;
        let Some(group) = self.group else { return Ok(()) };
        if !self.peers.is_empty() {
            return Err(Invalid::new("peers", "given beside a group"));
        }
        if !group.is_multicast() {
            return Err(Invalid::new("group", format!("{group} is not a multicast address")));
        }
        same_family("group", group, vtep)
    }
}

/// Checks a network's list of peers.
///
/// # Errors
/// The first entry that is twice there, not unicast, of a wrong family or not an allowed VTEP.
pub fn check_peers(peers: &[IpAddr], vtep: &[IpAddr], allowed: &Peers) -> Result<(), Invalid> {
    each_once("peers", peers.iter().copied())?;
    let listed: HashSet<IpAddr> = allowed.vtep.iter().map(|vtep| vtep.address).collect();
    for (index, &peer) in peers.iter().enumerate() {
        let key = format!("peers[{index}]");
        unicast(&key, peer)?;
        same_family(&key, peer, vtep)?;
        if !listed.contains(&peer) && !allowed.range.iter().any(|range| range.contains(peer)) {
            return Err(Invalid::new(key, format!("{peer} is not an allowed VTEP")));
        }
    }
    Ok(())
}

impl Device {
    fn check(&self) -> Result<(), Invalid> {
        device_name("name", &self.name)?;
        self.netns.as_deref().map_or(Ok(()), |netns| absolute("netns", netns))
    }
}

impl Encapsulation {
    fn check(&self) -> Result<(), Invalid> {
        within("port", self.port.into(), 1..=65535)?;
        within("ttl", self.ttl.into(), 1..=255)?;
        match self.dscp {
            Dscp::Fixed(value) => within("dscp", value.into(), 0..=63),
            Dscp::Inherit(_) => Ok(()),
        }
    }
}

impl Peers {
    /// Checks the allowed VTEPs against this node's own addresses.
    ///
    /// # Errors
    /// The first entry that is twice there, not unicast or of a wrong family.
    pub fn check(&self, own: &[IpAddr]) -> Result<(), Invalid> {
        each_once("vtep", self.vtep.iter().map(|vtep| vtep.address))?;
        for (index, vtep) in self.vtep.iter().enumerate() {
            let key = format!("vtep[{index}].address");
            unicast(&key, vtep.address)?;
            same_family(&key, vtep.address, own)?;
            for (inner, overlay) in vtep.overlay.iter().enumerate() {
                unicast(&format!("vtep[{index}].overlay[{inner}]"), *overlay)?;
            }
        }
        each_once("range", self.range.iter().copied())?;
        for (index, range) in self.range.iter().enumerate() {
            let key = format!("range[{index}]");
            same_family(&key, range.address, own)?;
            if range.address.is_ipv6() && range.prefix < 96 {
                return Err(Invalid::new(key, format!("{range} is too wide")));
            }
        }
        Ok(())
    }
}

impl Workers {
    fn check(&self) -> Result<(), Invalid> {
        for (index, &core) in self.cores.iter().enumerate() {
            within(&format!("cores[{index}]"), core as u64, 0..=1023)?;
        }
        within("spin_us", self.spin_us.into(), 0..=1_000_000)?;
        within("busy_poll_us", self.busy_poll_us.into(), 0..=100_000)?;
        if self.frames.is_power_of_two() {
            within("frames", self.frames.into(), 256..=65536)
        } else {
            Err(Invalid::new("frames", self.frames.to_string()))
        }
    }
}

fn own_vteps(vteps: &[IpAddr]) -> Result<(), Invalid> {
    for (index, &vtep) in vteps.iter().enumerate() {
        unicast(&format!("vtep[{index}]"), vtep)?;
    }
    let ipv4 = vteps.iter().filter(|vtep| vtep.is_ipv4()).count();
    match (ipv4, vteps.len() - ipv4) {
        (0, 0) => Err(Invalid::new("vtep", "empty")),
        (0 | 1, 0 | 1) => Ok(()),
        (ipv4, ipv6) => Err(Invalid::new("vtep", format!("{ipv4} IPv4 and {ipv6} IPv6 addresses"))),
    }
}

fn within(key: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), Invalid> {
    if range.contains(&value) { Ok(()) } else { Err(Invalid::new(key, value.to_string())) }
}

fn unicast(key: &str, address: IpAddr) -> Result<(), Invalid> {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    // IPv4-mapped addresses never travel (RFC 4291 section 2.5.5.2): they would name an IPv4 VTEP twice.
    let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    if address.is_multicast() || address.is_unspecified() || address.is_loopback() || broadcast || mapped {
        return Err(Invalid::new(key, format!("{address} is not a unicast address")));
    }
    Ok(())
}

fn same_family(key: &str, address: IpAddr, own: &[IpAddr]) -> Result<(), Invalid> {
    if own.iter().any(|vtep| vtep.is_ipv4() == address.is_ipv4()) {
        return Ok(());
    }
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    Err(Invalid::new(key, format!("{address}: this node has no {family} VTEP address")))
}

fn each_once<T: Eq + Hash + fmt::Display>(key: &str, values: impl Iterator<Item = T>) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for (index, value) in values.enumerate() {
        if let Some(value) = seen.replace(value) {
            return Err(Invalid::new(format!("{key}[{index}]"), format!("{value} is there twice")));
        }
    }
    Ok(())
}

fn absolute(key: &str, path: &Path) -> Result<(), Invalid> {
    // struct sockaddr_un has 108 bytes for the path and its final zero.
    if path.is_absolute() && path.as_os_str().len() <= 107 {
        return Ok(());
    }
    Err(Invalid::new(key, format!("`{}`", path.display())))
}

/// The kernel's own rule (net/core/dev.c, dev_valid_name).
fn device_name(key: &str, name: &str) -> Result<(), Invalid> {
    let wrong = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    if (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(wrong) {
        return Ok(());
    }
    Err(Invalid::new(key, format!("`{name}`")))
}

/// Where the value of `path` stands in the file; its nearest table if the key is missing.
pub(super) fn span_of(root: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let mut span = None;
    let mut steps = path.split(['.', '[', ']']).filter(|step| !step.is_empty());
    let (name, value) = root.get_key_value(steps.next()?)?;
    span = span.or(Some(name.span()));
    let mut value = value;
    for step in steps {
        let next = match value.get_ref() {
            DeValue::Table(table) => table.get_key_value(step).map(|(name, value)| (name.span(), value)),
            DeValue::Array(array) => {
                step.parse().ok().and_then(|index: usize| array.get(index)).map(|value| (value.span(), value))
            }
            _ => None,
        };
        let Some((here, deeper)) = next else { break };
        (span, value) = (Some(here), deeper);
    }
    span
}

/// The key whose name or value stands at byte `offset` of the file.
pub(super) fn path_at(root: &DeTable<'_>, offset: usize) -> Option<String> {
    root.iter().find_map(|(name, value)| {
        let own = name.span().contains(&offset);
        path_in(value.get_ref(), value.span(), name.get_ref().to_string(), offset, own)
    })
}

fn path_in(
    value: &DeValue<'_>,
    span: Range<usize>,
    path: String,
    offset: usize,
    own: bool,
) -> Option<String> {
    let deeper = match value {
        DeValue::Table(table) => table.iter().find_map(|(name, value)| {
            let own = name.span().contains(&offset);
            path_in(value.get_ref(), value.span(), format!("{path}.{}", name.get_ref()), offset, own)
        }),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(index, value)| {
            path_in(value.get_ref(), value.span(), format!("{path}[{index}]"), offset, false)
        }),
        _ => None,
    };
    deeper.or_else(|| (own || span.contains(&offset)).then_some(path))
}
