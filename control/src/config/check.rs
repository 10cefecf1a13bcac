//! The rules for each key of `uvn.toml`.

use super::{Config, MAX_UID, OffSubnet, PathChoice, Underlay, VniRange};
use crate::feed::MAX_PREFIXES;
use crate::network::{MAX_NICS, Nat};
use crate::peers::{PeerList, hostlist, without};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use uvn_api::dataplane::config::{self as dataplane, Cidr, Share};
use uvn_api::toml_file::{Invalid, TomlFile, absolute, device_name, each_once, unicast, within};
use uvn_wire::cgroup::EXECUTABLE_ENTRIES;
use uvn_wire::vxlan::{self, Vni};

/// The first UID that is too large to be its own VNI.
const FIRST_MAPPED: u32 = Vni::MAX + 1;

impl TomlFile for Config {
    fn allowed(key: &str) -> Option<&'static str> {
        let name = key.rsplit('.').next()?;
        Some(match name.split('[').next()? {
            "policed" | "exempt" => "UIDs from 1 to 4294967294, such as 1000 or \"1000-60000\"; not root's 0",
            "mode" => "\"enforce\" or \"observe\"",
            "attachment" => "\"required\" or \"optional\"",
            "admins" => "names of groups, each once, such as \"wheel\"",
            "linger_s" => "0 to 1000000 seconds",
            "service_ports" | "srun_ports" => {
                "ports from 1 to 65535, such as 111 or \"6817-6819\"; none in both lists"
            }
            "srun" => "absolute paths of up to 64 programs, such as \"/usr/bin/srun.real\", each once",
            "relay" => {
                "up to 16 loopback addresses with a port, such as \"127.0.0.53:53\"; a port from 1024 on must be \
                 among `service_ports`"
            }
            "hosts" => "addresses or subnets inside an underlay's subnets, such as \"10.0.0.250\"",
            "underlay" => "1 to 10 [[underlay]] tables",
            "subnets" => {
                "1 to 16 subnets such as \"10.0.0.0/16\", none overlapping another; the NIC has an address in them"
            }
            "nic" => "a network device's name: 1 to 15 bytes, no blank, no slash; each NIC once",
            "path" => "\"auto\", \"engine\", \"shortcut\" or \"kernel\"",
            "port" => "a UDP port, 1 to 65535; kernel VXLAN needs a different one on each NIC",
            "group" => "a multicast address of a family that the subnets have",
            "flood_rate" => "0 to 10000000 frames per second",
            "vni" => "[[vni]] tables such as uids = \"16777216-16781311\", first = 60001",
            "uids" => "UIDs from 16777216 to 4294967294, such as \"16777216-16781311\", each in one range",
            "first" => {
                "a VNI from 1; the VNIs of all `uids` must end at 16777215 or below, and be in no other range"
            }
            "ipv4" => "an IPv4 subnet from /8 to /30 that overlaps no underlay, such as \"100.64.0.0/10\"",
            "ipv6" => "an IPv6 subnet up to /126 that overlaps no underlay, such as \"fd75:766e::/64\"",
            "peers" => {
                "the nodes that run uvn, in a table [peers]: `range`, `nodes` or `slurm`, such as range = [\"10.0.0.0/16\"]"
            }
            "range" => {
                "subnets such as \"10.0.0.0/16\"; IPv6 ones /96 or longer; with `hosts` cut out, at most 900 prefixes: \
                 write `hosts` as subnets, or list `nodes` instead"
            }
            "nodes" => "addresses and host names, also many at once such as \"node[01-16,20]\"",
            "slurm" => "the absolute path of slurm.conf",
            "encapsulation" | "workers" => "a table as in the data plane's own configuration",
            "default" | "rdma" => "\"allow\" or \"deny\"",
            "allow_groups" | "deny_groups" => "names or numbers of groups, each once",
            _ if key.contains("encapsulation.") || key.contains("workers.") => {
                return dataplane::allowed(key);
            }
            _ => return None,
        })
    }

    fn check(&self) -> Result<(), Invalid> {
        uids("policed", &self.policed)?;
        uids("exempt", &self.exempt)?;
        each_once("admins", self.admins.iter())?;
        within("linger_s", self.linger_s.into(), 0..=1_000_000)?;
        self.check_ports()?;
        within("underlay", self.underlays.len() as u64, 1..=MAX_NICS as u64)
            .map_err(|_| Invalid::new("underlay", format!("{} tables", self.underlays.len())))?;
        for (index, underlay) in self.underlays.iter().enumerate() {
            let key = format!("underlay[{index}]");
            underlay.check().map_err(|invalid| invalid.within(&key))?;
            let others = self.underlays.get(..index).unwrap_or_default();
            underlay.check_beside(others).map_err(|invalid| invalid.within(&key))?;
        }
        self.check_srun()?;
        self.check_relay()?;
        self.check_hosts()?;
        check_vnis(&self.vnis)?;
        self.check_nat().map_err(|invalid| invalid.within("nat"))?;
        if self.peers == PeerList::default() {
            return Err(Invalid::new("peers", "it lists no nodes"));
        }
        self.peers.check(&self.hosts).map_err(|invalid| invalid.within("peers"))?;
        self.off_subnet.check().map_err(|invalid| invalid.within("off_subnet"))
    }
}

impl Config {
    fn check_ports(&self) -> Result<(), Invalid> {
        for (key, ranges) in [("service_ports", &self.service_ports), ("srun_ports", &self.srun_ports)] {
            disjoint(key, ranges)?;
            if let Some(index) = ranges.iter().position(|range| *range.start() == 0) {
                return Err(Invalid::new(format!("{key}[{index}]"), "0"));
            }
        }
        for (index, srun) in self.srun_ports.iter().enumerate() {
            if let Some(service) = self.service_ports.iter().find(|service| meet(srun, service)) {
                let problem = format!("{} overlaps {} of `service_ports`", shown(srun), shown(service));
                return Err(Invalid::new(format!("srun_ports[{index}]"), problem));
            }
        }
        Ok(())
    }

    fn check_srun(&self) -> Result<(), Invalid> {
        let files = self.srun.as_deref().unwrap_or_default();
        each_once("srun", files.iter().map(|file| file.display().to_string()))?;
        if files.len() > EXECUTABLE_ENTRIES as usize {
            return Err(Invalid::new("srun", format!("{} programs", files.len())));
        }
        match files.iter().position(|file| !file.is_absolute()) {
            Some(index) => {
                Err(Invalid::new(format!("srun[{index}]"), format!("`{}`", files[index].display())))
            }
            None => Ok(()),
        }
    }

    fn check_relay(&self) -> Result<(), Invalid> {
        each_once("relay", self.relay.iter())?;
        if self.relay.len() > 16 {
            return Err(Invalid::new("relay", format!("{} addresses", self.relay.len())));
        }
        for (index, address) in self.relay.iter().enumerate() {
            let wrong =
                |what: &str| Err(Invalid::new(format!("relay[{index}]"), format!("{address} {what}")));
            let port = address.port();
            if !address.ip().is_loopback() {
                return wrong("is not a loopback address");
            }
            // Otherwise a user could bind the address in their network, and the relay would fail for no visible reason.
            if port == 0 || port >= 1024 && !self.service_ports.iter().any(|range| range.contains(&port)) {
                return wrong("has a port that users may take");
            }
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), Invalid> {
        each_once("hosts", self.hosts.iter())?;
        let subnets = || self.underlays.iter().flat_map(|underlay| &underlay.subnets);
        for (index, host) in self.hosts.iter().enumerate() {
            let key = format!("hosts[{index}]");
            subnet(&key, *host)?;
            if !subnets().any(|subnet| subnet.prefix < host.prefix && subnet.contains(host.address)) {
                return Err(Invalid::new(key, format!("{host} is not inside an underlay's subnet")));
            }
        }
        Ok(())
    }

    fn check_nat(&self) -> Result<(), Invalid> {
        let Nat { ipv4, ipv6 } = self.nat;
        if !ipv4.address.is_ipv4() || !(8..=30).contains(&ipv4.prefix) {
            return Err(Invalid::new("ipv4", ipv4.to_string()));
        }
        if !ipv6.address.is_ipv6() || ipv6.prefix > 126 {
            return Err(Invalid::new("ipv6", ipv6.to_string()));
        }
        for (key, pool) in [("ipv4", ipv4), ("ipv6", ipv6)] {
            subnet(key, pool)?;
            let taken = self.underlays.iter().flat_map(|underlay| &underlay.subnets).chain(&self.peers.range);
            if let Some(other) = taken.into_iter().find(|other| pool.overlaps(other)) {
                return Err(Invalid::new(key, format!("{pool} overlaps {other}")));
            }
        }
        Ok(())
    }
}

impl Underlay {
    fn check(&self) -> Result<(), Invalid> {
        if !(1..=16).contains(&self.subnets.len()) {
            return Err(Invalid::new("subnets", format!("{} subnets", self.subnets.len())));
        }
        for (index, cidr) in self.subnets.iter().enumerate() {
            let key = format!("subnets[{index}]");
            subnet(&key, *cidr)?;
            let others = self.subnets.get(..index).unwrap_or_default();
            if let Some(other) = others.iter().find(|other| cidr.overlaps(other)) {
                return Err(Invalid::new(key, format!("{cidr} overlaps {other}")));
            }
        }
        if let Some(nic) = &self.nic {
            device_name("nic", nic)?;
            // VRFs and endpoints have such names.
            if crate::network::uid_of(nic).is_some() {
                return Err(Invalid::new("nic", format!("`{nic}` is a name of uvn's own devices")));
            }
        }
        within("port", self.port.into(), 1..=65535)?;
        within("flood_rate", self.flood_rate.unwrap_or(0).into(), 0..=10_000_000)?;
        self.encapsulation.check().map_err(|invalid| invalid.within("encapsulation"))?;
        if self.encapsulation.port != vxlan::PORT {
            return Err(Invalid::new("encapsulation.port", "the port of an [[underlay]] is its key `port`"));
        }
        if self.workers.share != Share::default() {
            return Err(Invalid::new("workers.share", "uvnd finds out which NICs share cores"));
        }
        self.workers.check().map_err(|invalid| invalid.within("workers"))?;
        let Some(group) = self.group else { return Ok(()) };
        if !group.is_multicast() {
            return Err(Invalid::new("group", format!("{group} is not a multicast address")));
        }
        if !self.subnets.iter().any(|subnet| subnet.address.is_ipv4() == group.is_ipv4()) {
            return Err(Invalid::new("group", format!("{group}: no subnet is of its family")));
        }
        Ok(())
    }

    fn check_beside(&self, others: &[Underlay]) -> Result<(), Invalid> {
        for (index, other) in others.iter().enumerate() {
            for (own, cidr) in self.subnets.iter().enumerate() {
                if let Some(theirs) = other.subnets.iter().find(|theirs| cidr.overlaps(theirs)) {
                    let problem = format!("{cidr} overlaps {theirs} of underlay[{index}]");
                    return Err(Invalid::new(format!("subnets[{own}]"), problem));
                }
            }
            if let Some(nic) = self.nic.as_ref().filter(|nic| other.nic.as_ref() == Some(nic)) {
                return Err(Invalid::new("nic", format!("`{nic}` is also the NIC of underlay[{index}]")));
            }
            // The kernel has one VXLAN socket per port, and refuses a VNI there twice (drivers/net/vxlan).
            let kernel = |underlay: &Underlay| underlay.path == PathChoice::Kernel;
            if kernel(self) && kernel(other) && self.port == other.port {
                let problem =
                    format!("{} is the port of underlay[{index}], and both are kernel VXLAN", self.port);
                return Err(Invalid::new("port", problem));
            }
        }
        Ok(())
    }
}

impl PeerList {
    fn check(&self, hosts: &[Cidr]) -> Result<(), Invalid> {
        each_once("range", self.range.iter())?;
        for (index, range) in self.range.iter().enumerate() {
            let key = format!("range[{index}]");
            subnet(&key, *range)?;
            // An endpoint's MAC holds the last four bytes of its VTEP.
            if range.address.is_ipv6() && range.prefix < 96 {
                return Err(Invalid::new(key, format!("{range} is too wide")));
            }
        }
        let is_wide = |range: &&Cidr| range.prefix < if range.address.is_ipv4() { 32 } else { 128 };
        let prefixes = without(self.range.clone(), hosts).iter().filter(is_wide).count();
        within("range", prefixes as u64, 0..=MAX_PREFIXES as u64).map_err(|_| {
            Invalid::new(
                "range",
                format!("with `hosts` cut out, it is {prefixes} prefixes of more than one address"),
            )
        })?;
        each_once("nodes", self.nodes.iter())?;
        for (index, nodes) in self.nodes.iter().enumerate() {
            hostlist::expand(nodes)
                .map_err(|error| Invalid::new(format!("nodes[{index}]"), error.to_string()))?;
        }
        self.slurm.as_deref().map_or(Ok(()), |path| absolute("slurm", path))
    }
}

impl OffSubnet {
    fn check(&self) -> Result<(), Invalid> {
        each_once("allow_groups", self.allow_groups.iter())?;
        each_once("deny_groups", self.deny_groups.iter())?;
        let both = self.deny_groups.iter().position(|group| self.allow_groups.contains(group));
        match both {
            Some(index) => Err(Invalid::new(format!("deny_groups[{index}]"), "it is also in `allow_groups`")),
            None => Ok(()),
        }
    }
}

fn check_vnis(vnis: &[VniRange]) -> Result<(), Invalid> {
    for (index, range) in vnis.iter().enumerate() {
        let key = |name: &str| format!("vni[{index}].{name}");
        if !(FIRST_MAPPED..=MAX_UID).contains(range.uids.start()) || *range.uids.end() > MAX_UID {
            return Err(Invalid::new(key("uids"), shown(&range.uids)));
        }
        let size = range.uids.end() - range.uids.start();
        if range.first == 0 || range.first.checked_add(size).is_none_or(|last| last > Vni::MAX) {
            let problem = format!("{} and {} more", range.first, size);
            return Err(Invalid::new(key("first"), problem));
        }
        for (other_index, other) in vnis.iter().enumerate().take(index) {
            if meet(&range.uids, &other.uids) {
                let problem =
                    format!("{} overlaps {} of vni[{other_index}]", shown(&range.uids), shown(&other.uids));
                return Err(Invalid::new(key("uids"), problem));
            }
            if meet(&range.vnis(), &other.vnis()) {
                let vni = *range.vnis().start().max(other.vnis().start());
                let name = |range: &VniRange| range.uid_of(vni).unwrap_or_default();
                let problem = format!("UID {} and UID {} would share VNI {vni}", name(other), name(range));
                return Err(Invalid::new(key("first"), problem));
            }
        }
    }
    Ok(())
}

/// See [`Config::hints`].
pub(super) fn hints(config: &Config) -> Vec<String> {
    let mut hints = Vec::new();
    let is_listed = config.peers.lists_nodes();
    for (index, underlay) in config.underlays.iter().enumerate() {
        let may_be_kernel = matches!(underlay.path, PathChoice::Auto | PathChoice::Kernel);
        if !is_listed && underlay.group.is_none() && may_be_kernel {
            hints.push(format!(
                "underlay[{index}]: kernel VXLAN reaches no other node: list nodes in peers.nodes or peers.slurm, or \
                 set a `group`"
            ));
        }
        if !is_listed && underlay.subnets.iter().any(|subnet| subnet.address.is_ipv6()) {
            hints.push(format!(
                "underlay[{index}]: over IPv6, users reach only listed nodes (peers.nodes, peers.slurm)"
            ));
        }
        let is_ipv4 = underlay.subnets.iter().any(|subnet| subnet.address.is_ipv4());
        let vtep = if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        if underlay.path == PathChoice::Shortcut && underlay.encapsulation.sums(vtep) {
            hints.push(format!(
                "underlay[{index}]: outer UDP checksums are on, so the engine carries all frames, not the shortcut"
            ));
        }
    }
    let ranges = config.policed_ranges();
    for (index, range) in config.vnis.iter().enumerate() {
        if let Some(own) = ranges.iter().find(|own| meet(own, &range.vnis())) {
            let uid = *own.start().max(range.vnis().start());
            let other = range.uid_of(uid).unwrap_or_default();
            hints.push(format!(
                "vni[{index}] takes VNIs of policed UIDs, which get no network: UID {other} has the VNI of UID {uid}"
            ));
        }
    }
    // The first and last port (Documentation/networking/ip-sysctl.rst).
    let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ephemeral = ephemeral.split_whitespace().map(str::parse);
    if let (Some(Ok(first)), Some(Ok(last))) = (ephemeral.next(), ephemeral.next()) {
        hints.extend(ephemeral_hints(config, &(first..=last)));
    }
    hints
}

/// Hints about ports that the kernel itself gives to outgoing connections: those do not pass the bind programs.
pub(super) fn ephemeral_hints(config: &Config, ephemeral: &RangeInclusive<u16>) -> Vec<String> {
    let lists = [("service_ports", &config.service_ports), ("srun_ports", &config.srun_ports)];
    let inside = lists.into_iter().flat_map(|(key, ranges)| {
        ranges.iter().filter(|range| meet(range, ephemeral)).map(move |range| (key, range))
    });
    let hint = |(key, range)| {
        format!(
            "`{key}` {} overlaps the ports that the kernel gives to outgoing connections ({}): add it to \
             net.ipv4.ip_local_reserved_ports",
            shown(range),
            shown(ephemeral)
        )
    };
    inside.map(hint).collect()
}

fn uids(key: &str, ranges: &[RangeInclusive<u32>]) -> Result<(), Invalid> {
    let wrong = ranges.iter().position(|range| *range.start() == 0 || *range.end() > MAX_UID);
    if let Some((index, range)) = wrong.and_then(|index| Some((index, ranges.get(index)?))) {
        return Err(Invalid::new(format!("{key}[{index}]"), shown(range)));
    }
    disjoint(key, ranges)
}

fn disjoint<T: PartialOrd + Display>(key: &str, ranges: &[RangeInclusive<T>]) -> Result<(), Invalid> {
    for (index, range) in ranges.iter().enumerate() {
        if let Some(other) = ranges.iter().take(index).find(|other| meet(range, other)) {
            let problem = format!("{} overlaps {}", shown(range), shown(other));
            return Err(Invalid::new(format!("{key}[{index}]"), problem));
        }
    }
    Ok(())
}

/// Checks that it is a subnet of unicast addresses, without host bits.
fn subnet(key: &str, cidr: Cidr) -> Result<(), Invalid> {
    if cidr.prefix == 0 {
        return Err(Invalid::new(key, format!("{cidr} is every address")));
    }
    unicast(key, cidr.address)?;
    let network: IpAddr = match cidr.address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(cidr.prefix)).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(cidr.prefix)).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    };
    if network == cidr.address {
        return Ok(());
    }
    Err(Invalid::new(key, format!("{cidr} is an address in {network}/{}", cidr.prefix)))
}

fn meet<T: PartialOrd>(a: &RangeInclusive<T>, b: &RangeInclusive<T>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

fn shown<T: PartialEq + Display>(range: &RangeInclusive<T>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}
