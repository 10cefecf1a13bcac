//! The rules for the values of each key.

use super::{Config, Device, Dscp, Encapsulation, Network, Peers, Share, Workers};
use crate::dataplane::vteps::Vteps;
use crate::toml_file::{Invalid, TomlFile, absolute, device_name, each_once, unicast, within};
use std::collections::HashSet;
use std::net::IpAddr;

/// The values that a key may have, in words. The last name of `path` decides; None: the key is unknown.
pub fn allowed(path: &str) -> Option<&'static str> {
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
        "df" => {
            "nothing: DF is always set. All outer packets have identification 0, which RFC 6864 section 4.1 allows only for \
             what nobody may fragment: else receivers mix up the fragments of users. Raise the underlay's MTU"
        }
        "checksum" | "ipv6_checksum" | "strict_flags" | "learning" => "true or false",
        "range" => "subnets such as 10.0.0.0/16 of this node's VTEP families; IPv6 ones /96 or longer",
        "address" | "overlay" => "unicast IP addresses",
        "cores" => "core numbers, 0 to 1023",
        "share" => "a table such as { index = 0, of = 2 }, the index below the other, which is 64 at most",
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

impl TomlFile for Config {
    fn allowed(key: &str) -> Option<&'static str> {
        allowed(key)
    }

    fn check(&self) -> Result<(), Invalid> {
        device_name("nic", &self.nic)?;
        own_vteps(&self.vtep)?;
        if let Some(socket) = &self.socket {
            absolute("socket", socket)?;
        }
        self.encapsulation.check().map_err(|invalid| invalid.within("encapsulation"))?;
        self.peers.check(&self.vtep).map_err(|invalid| invalid.within("peers"))?;
        let vteps =
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
            network.check(&self.vtep, &vteps).map_err(broken)?;
        }
        Ok(())
    }
}

impl Network {
    /// Checks one network against this node's VTEP addresses and the allowed VTEPs. Keys are relative to the network.
    ///
    /// # Errors
    /// The first key that breaks a rule.
    pub fn check(&self, vtep: &[IpAddr], allowed: &Vteps) -> Result<(), Invalid> {
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

    fn check_flooding(&self, vtep: &[IpAddr], allowed: &Vteps) -> Result<(), Invalid> {
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
/// The first entry that is listed twice, not unicast, of a wrong family or not an allowed VTEP.
pub fn check_peers(peers: &[IpAddr], vtep: &[IpAddr], allowed: &Vteps) -> Result<(), Invalid> {
    each_once("peers", peers.iter().copied())?;
    for (index, &peer) in peers.iter().enumerate() {
        let key = format!("peers[{index}]");
        unicast(&key, peer)?;
        same_family(&key, peer, vtep)?;
        if !allowed.allows(peer) {
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
    /// Checks each value.
    ///
    /// # Errors
    /// The first key that breaks a rule.
    pub fn check(&self) -> Result<(), Invalid> {
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
    /// The first entry that is listed twice, not unicast or of a wrong family.
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
    /// Checks each value.
    ///
    /// # Errors
    /// The first key that breaks a rule.
    pub fn check(&self) -> Result<(), Invalid> {
        for (index, &core) in self.cores.iter().enumerate() {
            within(&format!("cores[{index}]"), core as u64, 0..=1023)?;
        }
        let Share { index, of } = self.share;
        if index >= of || of > 64 {
            return Err(Invalid::new("share", format!("NIC {index} of {of}")));
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

fn same_family(key: &str, address: IpAddr, own: &[IpAddr]) -> Result<(), Invalid> {
    if own.iter().any(|vtep| vtep.is_ipv4() == address.is_ipv4()) {
        return Ok(());
    }
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    Err(Invalid::new(key, format!("{address}: this node has no {family} VTEP address")))
}
