//! Loads the programs of `ebpf/`, attaches the XDP program to a NIC, and fills the maps that all programs share.
//!
//! The XDP program is attached as long as the [`Xdp`] lives: its link is a file descriptor, and nothing is pinned.
//! However the process ends, the NIC is the host's again, and VXLAN from the wire reaches no user.

use crate::gear::tc;
use crate::port::link::{self, Link, LinkError};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, ProgramType, TcAttachType, Xdp as Program, XdpMode};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use netlink_packet_route::link::InfoKind;
use std::collections::HashSet;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use thiserror::Error;
use uvn_api::dataplane::config::{Cidr, Encapsulation};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;
use uvn_wire::xdp::{self, Address, Network, Unknown, Verdict, mac_key};

/// `cargo xtask ebpf` builds it from `ebpf/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/uvn-ebpf.o");

/// Why the XDP program could not be attached or its maps not changed.
#[derive(Debug, Error)]
pub enum XdpError {
    /// The NIC does not exist.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kernel refused the object.
    #[error("cannot load the XDP program (it needs root, or CAP_BPF and CAP_NET_ADMIN): {0}")]
    Load(#[from] EbpfError),
    /// The kernel refused the program.
    #[error("cannot load the XDP program (it needs root, or CAP_BPF and CAP_NET_ADMIN): {0}")]
    Program(#[from] ProgramError),
    /// Another program is attached to the NIC.
    #[error(
        "another XDP program is attached to {0}: stop its owner, such as another data plane (`bpftool net` shows it)"
    )]
    Busy(String),
    /// The NIC takes no XDP program in either mode.
    #[error("cannot attach XDP to {nic}: driver mode: {driver}; generic mode: {generic}")]
    Refused {
        /// The NIC.
        nic: String,
        /// The driver's reason.
        driver: String,
        /// The kernel's reason.
        generic: String,
    },
    /// The kernel attached the program without a link, so it outlives the process.
    #[error(
        "the kernel returned no XDP link on {0}; Linux 5.9 and later do. Detach the program: `ip link set {0} xdp off`"
    )]
    NoLink(String),
    /// More entries are needed than the map holds.
    #[error("the XDP program's map {map} holds {limit} entries at most: {need} are needed")]
    Full {
        /// The map.
        map: &'static str,
        /// Its size, set when `ebpf/` is built.
        limit: u32,
        /// The number of entries needed.
        need: usize,
    },
    /// A map operation failed.
    #[error("the XDP program's map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's reason.
        source: MapError,
    },
}

/// Where the XDP program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made an skb.
    Driver,
    /// In the kernel's stack, after it has made an skb: possible with every NIC, and slow.
    Generic {
        /// Why the driver does not take the program.
        refused: String,
    },
}

/// The programs and their maps.
pub struct Xdp {
    /// Where the XDP program runs, and its link. None in the shortcut gear.
    attached: Option<(Mode, FdLink)>,
    /// The link of the tc program behind it, in generic mode.
    guard: Option<FdLink>,
    mac: Array<MapData, [u32; 2]>,
    local: Addresses,
    vteps: Addresses,
    prefixes: LpmTrie<MapData, [u32; 4], u8>,
    networks: HashMap<MapData, u32, [u32; 21]>,
    sockets: XskMap<MapData>,
    unknown: PerCpuHashMap<MapData, u32, [u64; 3]>,
    counters: PerCpuArray<MapData, u64>,
    /// The other programs and maps, for [`crate::gear::shortcut`].
    object: Ebpf,
}

type Addresses = HashMap<MapData, [u32; 4], u8>;

impl Xdp {
    /// Attaches to `nic`, a device of this network namespace: in driver mode, or else in generic mode. The program
    /// takes VXLAN to the UDP port of `settings` once [`Xdp::set_local`] has set the addresses.
    ///
    /// # Errors
    /// The NIC does not exist or has another XDP program, a privilege is missing, or the kernel refuses both modes.
    pub fn attach(nic: &str, settings: &Encapsulation) -> Result<Xdp, XdpError> {
        let device = link::get(nic)?;
        let mut xdp = Xdp::load(device.index, settings, 0)?;
        let program: &mut Program =
            xdp.object.program_mut("uvn_xdp").ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load()?;
        let attached = attach(program, &device)?;
        if let Mode::Generic { .. } = attached.0 {
            xdp.guard = guard(&mut xdp.object, nic)
                .inspect_err(|error| {
                    let what =
                        "frames that a sender's tc program redirects reach the host's stack past generic XDP";
                    tracing::warn!(nic, %error, "cannot attach the guard; {what}");
                })
                .ok();
        }
        xdp.attached = Some(attached);
        Ok(xdp)
    }

    /// Makes the maps and programs for the NIC with this index, without attaching any. `engine` is the index of the TAP
    /// by which the tc program hands frames to the engine.
    ///
    /// # Errors
    /// A privilege is missing, or the kernel refuses.
    pub fn load(index: u32, settings: &Encapsulation, engine: u32) -> Result<Xdp, XdpError> {
        // The object has no BTF to relocate; reading the kernel's would take a while.
        let mut object = EbpfLoader::new()
            .btf(None)
            .override_global("PORT", &settings.port, true)
            .override_global("NIC", &index, true)
            .override_global("ENGINE", &engine, true)
            .override_global("NETNS", &netns(), true)
            .override_global("IPV6_ZERO_CHECKSUM", &u8::from(!settings.ipv6_checksum), true)
            .load(OBJECT)?;
        Ok(Xdp {
            attached: None,
            guard: None,
            mac: take(&mut object, "MAC")?,
            local: take(&mut object, "LOCAL")?,
            vteps: take(&mut object, "VTEPS")?,
            prefixes: take(&mut object, "VTEP_PREFIXES")?,
            networks: take(&mut object, "NETWORKS")?,
            sockets: take(&mut object, "XSKS")?,
            unknown: take(&mut object, "UNKNOWN")?,
            counters: take(&mut object, "COUNTERS")?,
            object,
        })
    }

    /// The object's other programs and their own maps.
    pub(crate) fn object(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    /// Where the XDP program runs; None in the shortcut gear.
    #[must_use]
    pub fn mode(&self) -> Option<&Mode> {
        Some(&self.attached.as_ref()?.0)
    }

    /// Whether another program has detached the XDP program or the guard.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        let links = self.attached.iter().map(|(_, link)| link).chain(&self.guard);
        links.into_iter().any(tc::is_detached)
    }

    /// Sets the NIC's MAC: frames to another MAC are another host's.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mac(&mut self, mac: Mac) -> Result<(), XdpError> {
        self.mac.set(0, mac_key(mac), 0).map_err(|source| XdpError::Map { map: "MAC", source })
    }

    /// Takes frames to exactly these destinations: VTEP addresses and joined multicast groups.
    ///
    /// # Errors
    /// More than [`xdp::LOCAL_ENTRIES`], or the kernel refuses.
    pub fn set_local(&mut self, addresses: &[IpAddr]) -> Result<(), XdpError> {
        set(&mut self.local, "LOCAL", xdp::LOCAL_ENTRIES, keys(addresses))
    }

    /// Allows exactly these outer sources. A source that stays is allowed all the time.
    ///
    /// # Errors
    /// More than [`xdp::VTEP_ENTRIES`] addresses or [`xdp::PREFIX_ENTRIES`] prefixes, or the kernel refuses.
    pub fn set_vteps(&mut self, addresses: &[IpAddr], prefixes: &[Cidr]) -> Result<(), XdpError> {
        let prefixes: HashSet<_> = prefixes.iter().map(prefix_key).collect();
        fits("VTEP_PREFIXES", xdp::PREFIX_ENTRIES, prefixes.len())?;
        set(&mut self.vteps, "VTEPS", xdp::VTEP_ENTRIES, keys(addresses))?;
        set(&mut self.prefixes, "VTEP_PREFIXES", xdp::PREFIX_ENTRIES, prefixes)
    }

    /// Lets a VNI's frames through, to the engine or to the shortcut. Replaces an existing entry.
    ///
    /// # Errors
    /// More than [`xdp::VNI_ENTRIES`], or the kernel refuses.
    pub fn set_network(&mut self, network: Network) -> Result<(), XdpError> {
        let value: [u32; 21] = zerocopy::transmute!(network);
        self.networks.insert(network.vni, value, 0).map_err(|source| match errno(&source) {
            Some(libc::E2BIG) => XdpError::Full {
                map: "NETWORKS",
                limit: xdp::VNI_ENTRIES,
                need: usize::try_from(xdp::VNI_ENTRIES).unwrap_or(usize::MAX).saturating_add(1),
            },
            _ => XdpError::Map { map: "NETWORKS", source },
        })
    }

    /// Drops a VNI's frames from now on, in both gears and directions. The VNI may be absent.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_network(&mut self, vni: Vni) -> Result<(), XdpError> {
        unless_missing(self.networks.remove(&vni.get()))
            .map_err(|source| XdpError::Map { map: "NETWORKS", source })
    }

    /// Drops all networks' frames from now on, in both gears and directions.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn clear_networks(&mut self) -> Result<(), XdpError> {
        let failed = |source| XdpError::Map { map: "NETWORKS", source };
        let vnis: Vec<u32> = self.networks.keys().collect::<Result<_, _>>().map_err(failed)?;
        vnis.iter().try_for_each(|vni| unless_missing(self.networks.remove(vni))).map_err(failed)
    }

    /// Hands a queue's frames to this AF_XDP socket, until the socket is closed.
    ///
    /// # Errors
    /// `queue` is not below [`xdp::QUEUE_ENTRIES`], or the socket is not an AF_XDP socket bound to a queue.
    pub fn set_socket(&mut self, queue: u32, socket: impl AsRawFd) -> Result<(), XdpError> {
        self.sockets.set(queue, socket, 0).map_err(|source| XdpError::Map { map: "XSKS", source })
    }

    /// Frames since the program was attached, in the order of [`Verdict::ALL`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn counters(&self) -> Result<[u64; Verdict::ALL.len()], XdpError> {
        let mut counters = [0; Verdict::ALL.len()];
        for (verdict, counter) in Verdict::ALL.into_iter().zip(&mut counters) {
            let values = self
                .counters
                .get(&(verdict as u32), 0)
                .map_err(|source| XdpError::Map { map: "COUNTERS", source })?;
            *counter = values.iter().sum();
        }
        Ok(counters)
    }

    /// VNIs without a network on this NIC to which an allowed VTEP sent: the first such VTEP, and the number of frames
    /// since the last call. Only the most recent [`xdp::UNKNOWN_ENTRIES`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_unknown(&mut self) -> Result<Vec<(Vni, IpAddr, u64)>, XdpError> {
        let failed = |source| XdpError::Map { map: "UNKNOWN", source };
        // All keys first: after a removal, the kernel starts from the beginning.
        let vnis: Vec<u32> = self.unknown.keys().collect::<Result<_, _>>().map_err(failed)?;
        let mut taken = Vec::with_capacity(vnis.len());
        for key in vnis {
            let values = match self.unknown.get(&key, 0) {
                Ok(values) => values,
                // A newer VNI has taken its place meanwhile.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(failed(error)),
            };
            unless_missing(self.unknown.remove(&key)).map_err(failed)?;
            let values = values.iter().map(|words| -> Unknown { zerocopy::transmute!(*words) });
            let (mut source, mut count) = (None, 0_u64);
            for value in values {
                count = count.saturating_add(value.count);
                if value.source != Address([0; 4]) {
                    source = Some(IpAddr::from(value.source));
                }
            }
            if let (Some(vni), Some(source)) = (Vni::new(key), source) {
                taken.push((vni, source, count));
            }
        }
        Ok(taken)
    }
}

/// This network namespace's cookie, for the tc programs. 0: the kernel does not let them read cookies.
fn netns() -> u64 {
    match is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_get_netns_cookie) {
        Ok(true) => link::netns_cookie().unwrap_or(0),
        _ => 0,
    }
}

/// Attaches in driver mode, or else in generic mode.
fn attach(program: &mut Program, nic: &Link) -> Result<(Mode, FdLink), XdpError> {
    let busy = || XdpError::Busy(nic.name.clone());
    let driver = if nic.kind == Some(InfoKind::Bond) {
        // A bond runs the program in its ports' drivers, and then a socket of the bond takes none of their frames
        // (xsk_rcv_check, net/xdp/xsk.c).
        Err("the program would run in the bond's ports, whose frames a socket of the bond does not take"
            .into())
    } else {
        match program.attach_to_if_index(nic.index, XdpMode::Driver) {
            Err(error) if is_busy(&error) => return Err(busy()),
            attached => attached.map_err(|error| reason(&error)),
        }
    };
    let (id, mode) = match driver {
        Ok(id) => (id, Mode::Driver),
        Err(refused) => match program.attach_to_if_index(nic.index, XdpMode::Skb) {
            Ok(id) => (id, Mode::Generic { refused }),
            Err(error) if is_busy(&error) => return Err(busy()),
            Err(generic) => {
                let (nic, generic) = (nic.name.clone(), reason(&generic));
                return Err(XdpError::Refused { nic, driver: refused, generic });
            }
        },
    };
    let link = program.take_link(id)?.try_into().map_err(|_| XdpError::NoLink(nic.name.clone()))?;
    Ok((mode, link))
}

/// Attaches a tc program that drops uvn's frames which XDP on this NIC has not seen, until the link is closed.
fn guard(object: &mut Ebpf, nic: &str) -> Result<FdLink, ProgramError> {
    tc::program(object, "uvn_guard")?.load()?;
    tc::link(tc::program(object, "uvn_guard")?, nic, TcAttachType::Ingress)
}

/// Whether a program is attached already. EBUSY: in this mode. EEXIST: in the other mode (net/core/dev.c,
/// dev_xdp_attach).
fn is_busy(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    matches!(error.io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        error => error.to_string(),
    }
}

pub(crate) fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, XdpError> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "not in the embedded object");
    ebpf.take_map(name)
        .ok_or_else(|| missing().into())
        .and_then(M::try_from)
        .map_err(|source| XdpError::Map { map: name, source })
}

fn keys(addresses: &[IpAddr]) -> HashSet<[u32; 4]> {
    addresses.iter().map(|&address| Address::from(address).0).collect()
}

/// A prefix as the key of a map: its length, and its address without host bits, which the kernel would compare when a
/// key is removed.
#[must_use]
pub fn prefix_key(cidr: &Cidr) -> (u32, [u32; 4]) {
    let length = match cidr.address {
        IpAddr::V4(_) => Address::IPV4_BITS.saturating_add(u32::from(cidr.prefix)),
        IpAddr::V6(_) => u32::from(cidr.prefix),
    };
    let host = u128::MAX.checked_shr(length).unwrap_or(0);
    let bits: u128 = zerocopy::transmute!(Address::from(cidr.address).0);
    (length, zerocopy::transmute!(bits & (!host).to_be()))
}

/// A map used as a set.
trait Set<K> {
    fn all(&self) -> Result<HashSet<K>, MapError>;
    fn add(&mut self, key: &K) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod + Eq + Hash> Set<K> for HashMap<MapData, K, u8> {
    fn all(&self) -> Result<HashSet<K>, MapError> {
        self.keys().collect()
    }

    fn add(&mut self, key: &K) -> Result<(), MapError> {
        self.insert(key, 0, 0)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        HashMap::remove(self, key)
    }
}

impl<K: Pod + Eq + Hash> Set<(u32, K)> for LpmTrie<MapData, K, u8> {
    fn all(&self) -> Result<HashSet<(u32, K)>, MapError> {
        self.keys().map(|key| key.map(|key| (key.prefix_len(), key.data()))).collect()
    }

    fn add(&mut self, &(length, address): &(u32, K)) -> Result<(), MapError> {
        self.insert(&Key::new(length, address), 0, 0)
    }

    fn remove(&mut self, &(length, address): &(u32, K)) -> Result<(), MapError> {
        LpmTrie::remove(self, &Key::new(length, address))
    }
}

/// Makes `map` hold exactly `wanted`, changing only what differs. Removes first, to make room.
fn set<K: Eq + Hash>(
    map: &mut impl Set<K>,
    name: &'static str,
    limit: u32,
    wanted: HashSet<K>,
) -> Result<(), XdpError> {
    fits(name, limit, wanted.len())?;
    let failed = |source| XdpError::Map { map: name, source };
    let present = map.all().map_err(failed)?;
    for key in present.difference(&wanted) {
        unless_missing(map.remove(key)).map_err(failed)?;
    }
    for key in wanted.difference(&present) {
        map.add(key).map_err(failed)?;
    }
    Ok(())
}

fn fits(map: &'static str, limit: u32, need: usize) -> Result<(), XdpError> {
    match u32::try_from(need) {
        Ok(entries) if entries <= limit => Ok(()),
        _ => Err(XdpError::Full { map, limit, need }),
    }
}

pub(crate) fn unless_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cidr: &str) -> (u32, IpAddr) {
        let (length, address) = prefix_key(&cidr.parse().unwrap());
        (length, IpAddr::from(Address(address)))
    }

    #[test]
    fn prefixes_become_keys_without_host_bits() {
        assert_eq!(key("10.1.2.3/16"), (112, "10.1.0.0".parse().unwrap()));
        assert_eq!(key("10.1.2.3/32"), (128, "10.1.2.3".parse().unwrap()));
        assert_eq!(key("0.0.0.0/0"), (96, "0.0.0.0".parse().unwrap()));
        assert_eq!(key("fd00::1:2:3/112"), (112, "fd00::1:2:0".parse().unwrap()));
        assert_eq!(key("fd00::1/128"), (128, "fd00::1".parse().unwrap()));
    }

    #[test]
    fn limits_are_inclusive() {
        assert!(fits("LOCAL", 64, 64).is_ok());
        let error = fits("LOCAL", 64, 65).unwrap_err().to_string();
        assert_eq!(error, "the XDP program's map LOCAL holds 64 entries at most: 65 are needed");
    }
}
