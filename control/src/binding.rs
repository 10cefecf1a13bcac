//! The cgroup programs that keep every socket in its user's network.
//!
//! The pin folder, on a BPF file system, holds what outlives `uvnd`: `state-LAYOUT/` has the maps from users to
//! networks, `links-GENERATION/` the attached programs. The policy is part of the programs: a new policy comes as a new
//! generation, attached before the old one is detached, so that some policy always holds.

mod bpf;
mod btf;
mod executables;
mod object;
mod owners;
mod pins;
pub mod policy;
mod unix;

pub use btf::way;
pub use executables::{CalledBack, Executables, identify};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError};
use object::Object;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use thiserror::Error;
use uvn_api::dataplane::config::Cidr;
use uvn_wire::cgroup::{Device, DeviceFile, Network, Refused, Verdict};

pub use uvn_api::uvnd::policed::PINS;

/// Why sockets could not be policed, or the maps not be changed.
#[derive(Debug, Error)]
pub enum BindingError {
    /// No cgroup v2 tree is mounted as a whole.
    #[error(
        "/proc/self/mountinfo has no mount of the whole cgroup v2 tree: \
         `mount -t cgroup2 none /sys/fs/cgroup`"
    )]
    NoCgroup,
    /// Users other than root can change the folder.
    #[error("{}: users other than root can change it, and so detach the socket programs", .0.display())]
    Foreign(PathBuf),
    /// A file or folder cannot be used.
    #[error("{path}: {source}{}", remedy(path))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused the object.
    #[error("cannot load the cgroup programs (it needs root, or CAP_BPF and CAP_NET_ADMIN): {0}")]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("cannot load or attach the cgroup program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's reason.
        source: ProgramError,
    },
    /// The program is attached without a link, so it cannot be pinned.
    #[error("the kernel returned no link for the cgroup program {0}; Linux 5.7 and later do")]
    NoLink(&'static str),
    /// The link cannot be pinned.
    #[error("cannot pin {path}: {source}{}", remedy(path))]
    Pin {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: PinError,
    },
    /// The policy needs more entries than the map holds.
    #[error("the cgroup programs' map {map} holds {limit} entries at most: {need} are needed")]
    Full {
        /// The map.
        map: &'static str,
        /// Its size, set when `ebpf/` is built.
        limit: u32,
        /// The number of entries needed.
        need: usize,
    },
    /// A map operation failed.
    #[error("the cgroup programs' map {map}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's reason.
        source: MapError,
    },
}

fn remedy(path: &Path) -> &'static str {
    if path.starts_with("/sys/fs/bpf") {
        "; mount a BPF file system: `mount -t bpf -o mode=700 bpf /sys/fs/bpf`"
    } else {
        ""
    }
}

/// The maps that are pinned, so that networks outlive uvnd.
const MAPS: [&str; 5] = ["BOUND", "COUNTERS", "DEVICES", "NETWORKS", "OWNERS"];

/// The policed UIDs, and the ports, destinations and devices with rules of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Refuse nothing; count what would be refused.
    pub observe: bool,
    /// UIDs that get a socket only in their own network. Exempt UIDs are already cut out.
    pub policed: Vec<RangeInclusive<u32>>,
    /// Ports that users may not bind to.
    pub service_ports: Vec<RangeInclusive<u16>>,
    /// TCP ports where Slurm's daemons call `srun` back.
    pub srun_ports: Vec<RangeInclusive<u16>>,
    /// The only programs that may bind to `srun_ports`.
    pub called_back: CalledBack,
    /// The UID that slurmctld runs as: it may call `srun` back, as root may. 0: root alone.
    pub slurm_user: u32,
    /// UDP ports of VXLAN.
    pub vxlan_ports: Vec<u16>,
    /// The underlay's subnets: a user reaches them only through their own network.
    pub on_subnet: Vec<Cidr>,
    /// Hosts in these subnets that do not run uvn: reached by the NIC itself.
    pub hosts: Vec<Cidr>,
    /// Device files that policed users cannot open.
    pub denied: Vec<DeviceFile>,
}

/// The devices of a user's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// The network's number, from 1; the marks of its sockets hold it.
    pub number: u32,
    /// Interface index of the VRF.
    pub vrf: u32,
    /// Interface indexes of the endpoints.
    pub endpoints: Vec<u32>,
    /// Whether the network may reach beyond the underlay's subnets.
    pub off_subnet: bool,
}

/// The attached programs and the networks that they know.
pub struct Binding {
    cgroup: PathBuf,
    pins: PathBuf,
    generation: u32,
    /// The pins of the maps, by inode: another process may remove them, all or some.
    state: BTreeMap<PathBuf, u64>,
    policy: Policy,
    without_unix: Option<String>,
    /// The networks in the maps, by UID.
    known: BTreeMap<u32, Devices>,
    maps: Maps,
    /// A map of the current policy's programs.
    refused: HashMap<MapData, u32, [u64; 3]>,
}

struct Maps {
    bound: HashMap<MapData, u32, u32>,
    networks: Array<MapData, [u64; 4]>,
    devices: HashMap<MapData, u32, u64>,
    counters: PerCpuArray<MapData, u64>,
}

/// The folder above the pins, if users other than root can make files in it.
#[must_use]
pub fn open_file_system(pins: &Path) -> Option<&Path> {
    pins.parent().filter(|folder| matches!(pins::verify(folder), Err(BindingError::Foreign(_))))
}

/// Whether the kernel says that programs can keep users from each other's abstract Unix sockets.
#[must_use]
pub fn can_police_unix() -> bool {
    unix::layout().is_ok()
}

/// Where the cgroup v2 tree is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside cgroup v1. A mount of a
/// part of it, as container runtimes make, does not count: the programs would not see processes outside of that part.
///
/// # Errors
/// It is not mounted as a whole.
pub fn cgroup_root() -> Result<PathBuf, BindingError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(file(path))?;
    root_of_tree(&mounts).ok_or(BindingError::NoCgroup)
}

/// In the words of proc_pid_mountinfo(5): the root within the file system is the fourth, the mount point the fifth; the
/// kind is behind a dash.
fn root_of_tree(mounts: &str) -> Option<PathBuf> {
    let tree = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (root, point) = (words.next()?, words.next()?);
        let kind = file_system.split(' ').next()?;
        (kind == "cgroup2" && root == "/").then(|| PathBuf::from(point))
    };
    mounts.lines().find_map(tree)
}

impl Binding {
    /// Attaches the programs to `cgroup` for the calling thread's network namespace, and pins them below `pins`. Takes
    /// over the networks that are pinned there; programs that are there are replaced once the new ones are attached.
    ///
    /// # Errors
    /// No privileges, no BPF file system at `pins`, a policy too large, or the kernel refuses. What was attached stays.
    pub fn attach(cgroup: &Path, pins: &Path, policy: &Policy) -> Result<Binding, BindingError> {
        let state = pins::state(pins);
        pins::create(pins, &state)?;
        let mut object = object::load(&state, policy)?;
        let ebpf = &mut object.ebpf;
        let maps = Maps {
            bound: take(ebpf, "BOUND")?,
            networks: take(ebpf, "NETWORKS")?,
            devices: take(ebpf, "DEVICES")?,
            counters: take(ebpf, "COUNTERS")?,
        };
        let mut binding = Binding {
            cgroup: cgroup.to_owned(),
            pins: pins.to_owned(),
            generation: pins::generation(pins)?,
            state: pins::inodes(&state)?,
            policy: policy.clone(),
            without_unix: None,
            known: maps.read()?,
            maps,
            refused: take(ebpf, "REFUSED")?,
        };
        binding.replace(object)?;
        Ok(binding)
    }

    /// What another process has pinned below `pins`: whether its programs are attached, and the networks that they
    /// know.
    ///
    /// # Errors
    /// Nothing is pinned there, users other than root could change it, or the kernel refuses.
    pub fn pinned(pins: &Path) -> Result<(bool, BTreeMap<u32, Devices>), BindingError> {
        let state = pins::state(pins);
        pins::verify(pins)?;
        pins::verify(&state)?;
        let open = |name| MapData::from_pin(state.join(name)).map_err(map(name));
        let maps = Maps {
            bound: Map::HashMap(open("BOUND")?).try_into().map_err(map("BOUND"))?,
            networks: Map::Array(open("NETWORKS")?).try_into().map_err(map("NETWORKS"))?,
            devices: Map::HashMap(open("DEVICES")?).try_into().map_err(map("DEVICES"))?,
            counters: Map::PerCpuArray(open("COUNTERS")?).try_into().map_err(map("COUNTERS"))?,
        };
        Ok((is_linked(pins, pins::generation(pins)?, false), maps.read()?))
    }

    /// Puts a policy in force without a gap: the former one holds until the kernel has detached it. Networks stay. If
    /// pins are gone, the programs are attached with maps of their own again.
    ///
    /// # Errors
    /// As [`Binding::attach`]; the old policy then still holds.
    pub fn set_policy(&mut self, policy: &Policy) -> Result<(), BindingError> {
        if !self.is_attached() {
            let known = self.known.clone();
            *self = Binding::attach(&self.cgroup, &self.pins, policy)?;
            let bound = known.iter().map(|(uid, devices)| self.bind(*uid, devices));
            return bound.fold(Ok(()), Result::and);
        }
        let mut object = object::load(&pins::state(&self.pins), policy)?;
        let refused = take(&mut object.ebpf, "REFUSED")?;
        self.replace(object)?;
        self.refused = refused;
        self.policy = policy.clone();
        Ok(())
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Puts a user's sockets into their network from now on, or changes the network's devices.
    ///
    /// # Errors
    /// The number is not below [`uvn_wire::cgroup::NETWORK_ENTRIES`], or the kernel refuses.
    pub fn bind(&mut self, uid: u32, devices: &Devices) -> Result<(), BindingError> {
        let number = devices.number;
        if self.known.get(&uid).is_some_and(|old| old.number != number) {
            self.unbind(uid)?;
        }
        // Recorded first, so that unbind can undo what an error leaves half done.
        let old = self.known.insert(uid, devices.clone());
        self.maps.networks.set(number, words(devices.network(uid)), 0).map_err(map("NETWORKS"))?;
        for device in devices.all() {
            let value = Device::new(device, devices.vrf).0;
            self.maps.devices.insert(device, value, 0).map_err(map("DEVICES"))?;
        }
        self.maps.bound.insert(uid, number, 0).map_err(map("BOUND"))?;
        for device in old.iter().flat_map(Devices::all) {
            if !devices.all().any(|wanted| wanted == device) {
                unless_missing(self.maps.devices.remove(&device)).map_err(map("DEVICES"))?;
            }
        }
        Ok(())
    }

    /// Refuses a policed user every socket from now on, and stops their open ones. A user without a network is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unbind(&mut self, uid: u32) -> Result<(), BindingError> {
        let Some(devices) = self.known.get(&uid) else { return Ok(()) };
        unless_missing(self.maps.bound.remove(&uid)).map_err(map("BOUND"))?;
        self.maps.networks.set(devices.number, words(Network::NONE), 0).map_err(map("NETWORKS"))?;
        for device in devices.all() {
            unless_missing(self.maps.devices.remove(&device)).map_err(map("DEVICES"))?;
        }
        self.known.remove(&uid);
        Ok(())
    }

    /// Whether a user's sockets are put into their network.
    #[must_use]
    pub fn is_bound(&self, uid: u32) -> bool {
        self.known.contains_key(&uid)
    }

    /// The bound networks, by UID.
    #[must_use]
    pub fn bound(&self) -> BTreeMap<u32, Devices> {
        self.known.clone()
    }

    /// Sockets and packets by verdict, in the order of [`Verdict::ALL`], since the maps were first pinned.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn counters(&self) -> Result<[u64; Verdict::ALL.len()], BindingError> {
        let mut counters = [0; Verdict::ALL.len()];
        for (verdict, counter) in Verdict::ALL.into_iter().zip(&mut counters) {
            let values = self.maps.counters.get(&(verdict as u32), 0).map_err(map("COUNTERS"))?;
            *counter = values.iter().sum();
        }
        Ok(counters)
    }

    /// Users who were refused a socket for want of a network (or would have been) since this policy is in force, by
    /// UID: the number of sockets, and the last program that asked.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<u32, (u64, String)> {
        let refused = self.refused.iter().flatten().map(|(uid, words)| {
            let Refused { count, program } = zerocopy::transmute!(words);
            let name = program.split(|byte| *byte == 0).next().unwrap_or_default();
            (uid, (count, String::from_utf8_lossy(name).into_owned()))
        });
        refused.collect()
    }

    /// Whether the programs are still pinned, and with that attached, and their maps, too.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        let state = pins::state(&self.pins);
        // They may have gone while they were made.
        let is_whole = MAPS.iter().all(|name| self.state.contains_key(&state.join(name)));
        is_whole
            && is_linked(&self.pins, self.generation, self.without_unix.is_none())
            && pins::inodes(&state).is_ok_and(|state| state == self.state)
    }

    /// Why users can reach each other's abstract Unix sockets; None: they cannot.
    #[must_use]
    pub fn without_unix(&self) -> Option<&str> {
        self.without_unix.as_deref()
    }

    /// Detaches all programs pinned below `pins` and removes the maps: nobody is policed any more. Goes on after an
    /// error. An absent folder is fine.
    ///
    /// # Errors
    /// The first one met.
    pub fn remove(pins: &Path) -> Result<(), BindingError> {
        pins::remove(pins)
    }

    /// Attaches the programs as a new generation, then removes the others, and maps of another layout.
    fn replace(&mut self, mut object: Object) -> Result<(), BindingError> {
        let generation = self.generation.wrapping_add(1);
        let folder = pins::links(&self.pins, generation);
        let cgroup = File::open(&self.cgroup).map_err(file(&self.cgroup))?;
        pins::create(&self.pins, &folder)?;
        if let Err(error) = object::attach(&mut object, &cgroup, &folder) {
            // The first error is the one to report.
            let _ = pins::remove(&folder);
            return Err(error);
        }
        self.generation = generation;
        self.without_unix = object.without_unix;
        pins::keep_only(&self.pins, &[folder, pins::state(&self.pins)])
    }
}

impl Devices {
    fn all(&self) -> impl Iterator<Item = u32> {
        self.endpoints.iter().copied().chain([self.vrf])
    }

    fn network(&self, uid: u32) -> Network {
        let mut name = [0; 16];
        // The name that network.rs gives the VRF: at most 15 bytes.
        for (to, from) in name.iter_mut().zip(format!("uvn{uid}").bytes()) {
            *to = from;
        }
        Network { name, uid, vrf: self.vrf, off_subnet: self.off_subnet.into(), padding: 0 }
    }
}

impl Maps {
    /// The networks that the maps hold.
    fn read(&self) -> Result<BTreeMap<u32, Devices>, BindingError> {
        let mut endpoints: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in self.devices.iter() {
            let (device, value) = entry.map_err(map("DEVICES"))?;
            let vrf = Device(value).vrf();
            if device != vrf {
                endpoints.entry(vrf).or_default().push(device);
            }
        }
        let mut known = BTreeMap::new();
        for entry in self.bound.iter() {
            let (uid, number) = entry.map_err(map("BOUND"))?;
            let words = self.networks.get(&number, 0).map_err(map("NETWORKS"))?;
            let Network { vrf, off_subnet, .. } = zerocopy::transmute!(words);
            let mut endpoints = endpoints.remove(&vrf).unwrap_or_default();
            endpoints.sort_unstable();
            known.insert(uid, Devices { number, vrf, endpoints, off_subnet: off_subnet != 0 });
        }
        Ok(known)
    }
}

fn is_linked(pins: &Path, generation: u32, with_unix: bool) -> bool {
    let folder = pins::links(pins, generation);
    object::programs(with_unix).all(|name| folder.join(name).exists())
}

fn words(network: Network) -> [u64; 4] {
    zerocopy::transmute!(network)
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, BindingError> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "not in the embedded object");
    ebpf.take_map(name).ok_or_else(|| missing().into()).and_then(M::try_from).map_err(map(name))
}

fn map(map: &'static str) -> impl Fn(MapError) -> BindingError {
    move |source| BindingError::Map { map, source }
}

fn file(path: &Path) -> impl Fn(io::Error) -> BindingError {
    move |source| BindingError::File { path: path.to_owned(), source }
}

fn unless_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_cgroup_tree_is_not_its_root() {
        let part = "40 30 0:26 /system.slice/box /box/sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let whole =
            "31 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let other = "32 24 0:27 / /sys/fs/cgroup rw - tmpfs cgroup2 rw\n";
        let found = root_of_tree(&[part, other, whole].concat());
        assert_eq!(found, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(root_of_tree(&[part, other].concat()), None);
    }
}
