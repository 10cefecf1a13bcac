//! Loads the object of `ebpf/`, fills in the policy and attaches the programs.

use super::{BindingError, Policy, bpf, file, map, owners, take, unix};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Lsm, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use uvn_api::dataplane::config::Cidr;
use uvn_dataplane::gear::programs::prefix_key;
use uvn_dataplane::port::link;
use uvn_wire::cgroup::{self, DeviceFile, Range};

/// `cargo xtask ebpf` builds it from `ebpf/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/uvn-cgroup.o");

/// The programs that every supported kernel takes.
const PROGRAMS: [&str; 10] = [
    "uvn_create",
    "uvn_bind4",
    "uvn_bind6",
    "uvn_connect4",
    "uvn_connect6",
    "uvn_sendmsg4",
    "uvn_sendmsg6",
    "uvn_egress",
    "uvn_ingress",
    "uvn_device",
];

/// The LSM programs, for what cgroups have no hook for, and their hooks.
const UNIX: [(&str, &str); 3] = [
    ("uvn_unix_connect", "unix_stream_connect"),
    ("uvn_unix_send", "unix_may_send"),
    ("uvn_disconnect", "socket_connect"),
];

/// The loaded object.
pub struct Object {
    /// Its programs and maps.
    pub ebpf: Ebpf,
    /// Why there are no programs on Unix sockets; None: there are.
    pub without_unix: Option<String>,
}

/// The programs that are attached, with or without those on Unix sockets.
pub fn programs(with_unix: bool) -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().chain(UNIX.into_iter().map(|(name, _)| name).filter(move |_| with_unix))
}

/// Destinations that are on some link of this node by nature, and so never off-subnet: "this host", loopback,
/// link-local, multicast, broadcast (RFC 6890, RFC 4291 section 2.4).
const NEAR: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// Loads the object for the calling thread's network namespace. Maps that are pinned in `state` are taken over, missing
/// ones are pinned there; the maps of the policy are new.
///
/// # Errors
/// The policy is too large, or the kernel refuses.
pub fn load(state: &Path, policy: &Policy) -> Result<Object, BindingError> {
    let netns = link::netns_cookie().map_err(file(Path::new("/proc/self/ns/net")))?;
    let tag = cgroup::tag(netns);
    let way: [u32; 6] = zerocopy::transmute!(policy.called_back.way);
    let unix = unix::layout();
    let (layout, datagram) = unix.clone().unwrap_or_default();
    let (layout, datagram): ([u32; 9], [u32; 5]) =
        (zerocopy::transmute!(layout), zerocopy::transmute!(datagram));
    // The object has no BTF to relocate; reading the kernel's would take a while.
    owners::make(&state.join("OWNERS"))?;
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .default_map_pin_directory(state)
        .override_global("NETNS", &netns, true)
        .override_global("TAG", &tag, true)
        .override_global("OBSERVE", &u32::from(policy.observe), true)
        .override_global("SLURM_USER", &policy.slurm_user, true)
        .override_global("WAY", &way, true)
        .override_global("UNIX", &layout, true)
        .override_global("DATAGRAM", &datagram, true)
        .load(OBJECT)?;
    // Before the maps are filled: a loaded program keeps them in the kernel.
    for name in PROGRAMS {
        let failed = |source| BindingError::Program { program: name, source };
        load_one(ebpf.program_mut(name).ok_or(failed(ProgramError::NotLoaded))?).map_err(failed)?;
    }
    let with_unix = unix.and_then(|_| load_unix(&mut ebpf).map_err(|error| error.to_string()));
    fill(&mut ebpf, policy)?;
    Ok(Object { ebpf, without_unix: with_unix.err() })
}

fn load_one(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupDevice(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn load_unix(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let btf = Btf::from_sys_fs()?;
    for (name, hook) in UNIX {
        let program: &mut Lsm = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(hook, &btf)?;
    }
    Ok(())
}

fn fill(ebpf: &mut Ebpf, policy: &Policy) -> Result<(), BindingError> {
    let mut policed: Array<_, [u32; 2]> = take(ebpf, "POLICED")?;
    fits("POLICED", cgroup::RANGE_ENTRIES, policy.policed.len())?;
    // Marks the end, where the ranges do not fill the map.
    let end = Range { first: 1, last: 0 };
    let ranges = policy.policed.iter().map(|range| Range { first: *range.start(), last: *range.end() });
    for (index, range) in (0..cgroup::RANGE_ENTRIES).zip(ranges.chain(std::iter::repeat(end))) {
        let words: [u32; 2] = zerocopy::transmute!(range);
        policed.set(index, words, 0).map_err(map("POLICED"))?;
    }

    let mut executables: HashMap<_, [u64; 2], u8> = take(ebpf, "EXECUTABLES")?;
    for executable in &policy.called_back.executables {
        let key: [u64; 2] = zerocopy::transmute!(*executable);
        executables.insert(key, 1, 0).map_err(map("EXECUTABLES"))?;
    }

    let mut files: Array<_, [u32; 2]> = take(ebpf, "DEVICE_FILES")?;
    fits("DEVICE_FILES", cgroup::DEVICE_FILE_ENTRIES, policy.denied.len())?;
    let denied = policy.denied.iter().copied().chain(std::iter::repeat(DeviceFile::NONE));
    for (index, file) in (0..cgroup::DEVICE_FILE_ENTRIES).zip(denied) {
        let words: [u32; 2] = zerocopy::transmute!(file);
        files.set(index, words, 0).map_err(map("DEVICE_FILES"))?;
    }

    let mut kinds = vec![0_u8; 1 << 16];
    let service = policy.service_ports.iter().cloned().map(|ports| (ports, cgroup::PORT_SERVICE));
    let srun = policy.srun_ports.iter().cloned().map(|ports| (ports, cgroup::PORT_SRUN));
    let vxlan = policy.vxlan_ports.iter().map(|&port| (port..=port, cgroup::PORT_VXLAN));
    for (ports, kind) in service.chain(srun).chain(vxlan) {
        for port in ports {
            if let Some(kinds) = kinds.get_mut(usize::from(port)) {
                *kinds |= kind;
            }
        }
    }
    let mut ports: Array<_, u8> = take(ebpf, "PORTS")?;
    for (port, kinds) in (0..).zip(kinds).filter(|&(_, kinds)| kinds != 0) {
        ports.set(port, kinds, 0).map_err(map("PORTS"))?;
    }

    let near: Vec<Cidr> = NEAR.iter().filter_map(|cidr| cidr.parse().ok()).collect();
    let near = near.iter().chain(&policy.on_subnet).map(|cidr| (cidr, cgroup::DESTINATION_NEAR));
    // Last, so that a host wins over a subnet of one address.
    let hosts = policy.hosts.iter().map(|cidr| (cidr, cgroup::DESTINATION_HOST));
    let need = NEAR.len().saturating_add(policy.on_subnet.len()).saturating_add(policy.hosts.len());
    fits("DESTINATIONS", cgroup::DESTINATION_ENTRIES, need)?;
    let mut destinations: LpmTrie<_, [u32; 4], u8> = take(ebpf, "DESTINATIONS")?;
    for (cidr, kind) in near.chain(hosts) {
        let (length, address) = prefix_key(cidr);
        destinations.insert(&Key::new(length, address), kind, 0).map_err(map("DESTINATIONS"))?;
    }
    Ok(())
}

fn fits(map: &'static str, limit: u32, need: usize) -> Result<(), BindingError> {
    match u32::try_from(need) {
        Ok(entries) if entries <= limit => Ok(()),
        _ => Err(BindingError::Full { map, limit, need }),
    }
}

/// Attaches every program to `cgroup`, beside whatever else is attached there, and pins the links in `folder`.
///
/// # Errors
/// The kernel refuses; those attached before stay.
pub fn attach(object: &mut Object, cgroup: &File, folder: &Path) -> Result<(), BindingError> {
    for name in PROGRAMS {
        let failed = |source| BindingError::Program { program: name, source };
        let program = object.ebpf.program_mut(name).ok_or(failed(ProgramError::NotLoaded))?;
        let path = folder.join(name);
        if let Program::CgroupDevice(program) = program {
            let program = program.fd().map_err(failed)?.as_fd();
            let link = bpf::link_device_program(program, cgroup.as_fd());
            link.and_then(|link| bpf::pin(link.as_fd(), &path)).map_err(file(&path))?;
            continue;
        }
        let link = attach_one(program, cgroup).map_err(failed)?.ok_or(BindingError::NoLink(name))?;
        link.pin(&path).map_err(|source| BindingError::Pin { path, source })?;
    }
    if object.without_unix.is_none() {
        object.without_unix = attach_unix(&mut object.ebpf, folder).err();
    }
    Ok(())
}

/// Attaches all LSM programs or none: the finding says that all are missing.
fn attach_unix(ebpf: &mut Ebpf, folder: &Path) -> Result<(), String> {
    let mut links = Vec::new();
    for (name, _) in UNIX {
        let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded);
        let link = program.and_then(|program| {
            let program: &mut Lsm = program.try_into()?;
            let id = program.attach()?;
            Ok(FdLink::from(program.take_link(id)?))
        });
        links.push((name, link.map_err(|error| error.to_string())?));
    }
    for (name, link) in links {
        link.pin(folder.join(name)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn attach_one(program: &mut Program, cgroup: &File) -> Result<Option<FdLink>, ProgramError> {
    // No flags: a link always lets others attach (kernel/bpf/cgroup.c, cgroup_bpf_link_attach).
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into().ok()
        }
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into().ok()
        }
        Program::CgroupSkb(program) => {
            let to = program.expected_attach_type().unwrap_or(CgroupSkbAttachType::Egress);
            let id = program.attach(cgroup, to, mode)?;
            program.take_link(id)?.try_into().ok()
        }
        _ => None,
    })
}
