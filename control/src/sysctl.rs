//! Kernel settings, with a record of their former values.
//!
//! | setting | why |
//! | --- | --- |
//! | `net.ipv4.{tcp,udp,raw}_l3mdev_accept` = 1 | the node's services, which are in no VRF, answer into every VRF |
//! | `net.mptcp.enabled` = 0 | the kernel makes the sockets of subflows itself, and no program binds them |
//! | `net.ipv4.conf.DEVICE.forwarding` = 1 | replies from off-subnet come in by DEVICE and are forwarded into a VRF |
//! | `net.ipv6.conf.all.forwarding` = 1 | the same; IPv6 has no such switch for one device |
//! | `net.{ipv4,ipv6}.neigh.default.gc_thresh{2,3}` at least what fits the memory | see [`neighbours`] |
//! | `net.ipv6.conf.DEVICE.accept_ra` = 2 where it was 1 | with 1, forwarding turns router advertisements off |
//!
//! The packet filter drops all other packets that would be forwarded because of these settings: see [`opened`].

mod neighbours;

use crate::network::Node;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The folder of all settings.
const ROOT: &str = "/proc/sys";
/// The file of the record.
pub const RECORD: &str = "/run/uvn/sysctl.json";
/// Settings of kernels with VRF: if the first is missing, the kernel has no VRF.
const L3MDEV: [&str; 3] =
    ["net/ipv4/tcp_l3mdev_accept", "net/ipv4/udp_l3mdev_accept", "net/ipv4/raw_l3mdev_accept"];
const MPTCP: &str = "net/mptcp/enabled";
/// Flows in the connection tracker that a network may have, if the table is small.
pub const FLOWS: u32 = 1024;
const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";

/// Why a setting could not be read or changed.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// The kernel refuses a setting.
    #[error("cannot set {setting} to {value}: {source}{}", hint(setting, source))]
    Set {
        /// The setting, as sysctl(8) writes it.
        setting: String,
        /// The value that was to be set.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The record cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The kernel's reason, or what is wrong with its content.
        source: io::Error,
    },
}

fn hint(setting: &str, source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound if setting.ends_with("l3mdev_accept") => {
            "; the kernel has no VRF (CONFIG_NET_L3_MASTER_DEV)"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; /proc/sys is read-only here",
        _ => "",
    }
}

/// One setting as it was and as uvn set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Path below /proc/sys.
    setting: String,
    before: String,
    ours: String,
}

/// The forwarding that only uvn has switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// IPv4 from these devices.
    pub ipv4: Vec<String>,
    /// IPv6 from all devices.
    pub ipv6: bool,
}

/// Sets what networks on this node need. Former values are recorded first, so that they survive a crash.
///
/// # Errors
/// The first setting that the kernel refuses, or the record cannot be written.
pub fn apply(node: &Node, record: &Path) -> Result<(), SysctlError> {
    let mut entries = load(record)?;
    let mut wrong = Vec::new();
    for (setting, ours) in wanted(node) {
        let Some(is) = read(&setting) else {
            if setting == L3MDEV[0] {
                let source = io::ErrorKind::NotFound.into();
                return Err(SysctlError::Set { setting: dotted(&setting), value: ours, source });
            }
            continue;
        };
        if is != ours {
            match entries.iter_mut().find(|entry| entry.setting == setting) {
                Some(entry) => entry.ours.clone_from(&ours),
                None => entries.push(Entry { setting: setting.clone(), before: is, ours: ours.clone() }),
            }
            wrong.push((setting, ours));
        }
    }
    if !wrong.is_empty() {
        save(record, &entries)?;
    }
    wrong.into_iter().try_for_each(|(setting, value)| write(&setting, &value))
}

/// The settings that differ from what [`apply`] sets, as texts.
#[must_use]
pub fn check(node: &Node) -> Vec<String> {
    let wrong = wanted(node).into_iter().filter_map(|(setting, ours)| {
        let is = read(&setting)?;
        (is != ours).then(|| format!("{} is {is}, not {ours}", dotted(&setting)))
    });
    wrong.collect()
}

/// Restores the former values, except of settings that have been changed since, and deletes the record.
///
/// # Errors
/// The first setting that could not be restored. The others are, and the record stays.
pub fn restore(record: &Path) -> Result<(), SysctlError> {
    let mut result = Ok(());
    // In reverse order: forwarding before router advertisements.
    for Entry { setting, before, ours } in load(record)?.into_iter().rev() {
        // The settings of a device go with it.
        if read(&setting).is_some_and(|is| is == ours) {
            result = result.and(write(&setting, &before));
        }
    }
    result?;
    match fs::remove_file(record) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(record, source)),
        _ => Ok(()),
    }
}

/// The forwarding on this node that uvn has switched on, or will by [`apply`].
#[must_use]
pub fn opened(node: &Node, record: &Path) -> Opened {
    let entries = load(record).unwrap_or_default();
    let was_closed = |setting: &str| match entries.iter().find(|entry| entry.setting == setting) {
        Some(entry) => entry.before == "0",
        None => read(setting).is_some_and(|is| is == "0"),
    };
    let ipv4 = devices(node).into_iter().filter(|device| was_closed(&forwarding_v4(device)));
    Opened { ipv4: ipv4.map(String::from).collect(), ipv6: forwards_v6(node) && was_closed(FORWARDING_V6) }
}

/// The settings and their values, in the order in which they are set.
fn wanted(node: &Node) -> Vec<(String, String)> {
    let set = |setting: &str, value: &str| (setting.to_owned(), value.to_owned());
    let mut wanted: Vec<_> = L3MDEV.iter().map(|setting| set(setting, "1")).collect();
    wanted.push(set(MPTCP, "0"));
    // Whoever has set more keeps it.
    let is_less = |(setting, ours): &(String, u32)| {
        read(setting).and_then(|is| is.parse::<u32>().ok()).is_some_and(|is| is < *ours)
    };
    let tables = neighbours::wanted().into_iter().filter(is_less);
    wanted.extend(tables.map(|(setting, ours)| (setting, ours.to_string())));
    wanted.extend(devices(node).into_iter().map(|device| set(&forwarding_v4(device), "1")));
    if forwards_v6(node) {
        // Before forwarding, which otherwise deletes the routes of advertisements (rt6_purge_dflt_routers).
        wanted.extend(advertised().into_iter().map(|setting| set(&setting, "2")));
        wanted.push(set(FORWARDING_V6, "1"));
    }
    wanted
}

/// Devices by which replies to networks come in.
fn devices(node: &Node) -> Vec<&str> {
    let nics = node.nics.iter().map(|nic| nic.name.as_str());
    let mut devices: Vec<&str> = nics.chain(node.exits.iter().map(|exit| exit.device.as_str())).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

fn forwards_v6(node: &Node) -> bool {
    let exits = node.exits.iter().any(|exit| exit.address.is_ipv6());
    node.ipv6 && (exits || node.hosts.iter().any(|host| host.address.is_ipv6()))
}

fn forwarding_v4(device: &str) -> String {
    format!("net/ipv4/conf/{device}/forwarding")
}

/// The `accept_ra` settings of devices that accept router advertisements only while they do not forward.
fn advertised() -> Vec<String> {
    let Ok(devices) = fs::read_dir(format!("{ROOT}/net/ipv6/conf")) else { return Vec::new() };
    let mut settings: Vec<String> = devices
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|device| crate::network::uid_of(device).is_none())
        .map(|device| format!("net/ipv6/conf/{device}/accept_ra"))
        .filter(|setting| read(setting).is_some_and(|is| is == "1"))
        .collect();
    settings.sort();
    settings
}

/// The connection tracker's number of flows, of all network namespaces, and its limit; None: it is not loaded.
#[must_use]
pub fn flows() -> Option<(u32, u32)> {
    let number = |name: &str| read(&format!("net/netfilter/nf_conntrack_{name}"))?.parse().ok();
    Some((number("count")?, number("max")?))
}

/// The number of flows that one network may have: a sixteenth of the limit, or [`FLOWS`] if that is more, at most half.
#[must_use]
pub fn flows_of_one() -> u32 {
    flows().map_or(FLOWS, |(_, limit)| (limit / 16).max(FLOWS).min(limit / 2))
}

fn read(setting: &str) -> Option<String> {
    let text = neighbours::there(setting, || fs::read_to_string(path(setting))).ok()?;
    Some(text.trim().to_owned())
}

fn write(setting: &str, value: &str) -> Result<(), SysctlError> {
    neighbours::there(setting, || fs::write(path(setting), value)).map_err(|source| SysctlError::Set {
        setting: dotted(setting),
        value: value.into(),
        source,
    })
}

fn path(setting: &str) -> PathBuf {
    Path::new(ROOT).join(setting)
}

/// A setting as sysctl(8) writes it: a dot in a device's name becomes a slash.
fn dotted(setting: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    setting.chars().map(swap).collect()
}

fn failed(path: &Path, source: io::Error) -> SysctlError {
    SysctlError::Record { path: path.into(), source }
}

/// Reads the record. Without one, nothing has been changed.
fn load(record: &Path) -> Result<Vec<Entry>, SysctlError> {
    match fs::read(record) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(record, error.into())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed(record, source)),
    }
}

fn save(record: &Path, entries: &[Entry]) -> Result<(), SysctlError> {
    let new = record.with_extension("new");
    let save = || {
        if let Some(folder) = record.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(entries)?)?;
        file.sync_all()?;
        fs::rename(&new, record)
    };
    save().map_err(|source| failed(record, source))
}
