//! RDMA devices: a process that has one open sends without the kernel, and so outside of every network.

use crate::config::{Config, Rdma};
use std::fs;
use uvn_api::uvnd::finding::{Finding, Id};
use uvn_wire::cgroup::{DEVICE_FILE_ENTRIES, DeviceFile};

/// Has a folder for each RDMA device.
const DEVICES: &str = "/sys/class/infiniband";
/// Lists drivers with their major numbers (proc_devices in proc(5)).
const DRIVERS: &str = "/proc/devices";
/// Holds the major and minor number of the connection manager's file.
const MANAGER: &str = "/sys/class/misc/rdma_cm/dev";
/// Prefixes of RDMA drivers' names: verbs and management datagrams; Omni-Path's own.
const OF_RDMA: [&str; 2] = ["infiniband", "hfi1"];
/// The major number of the first 32 devices, fixed even before the module is loaded
/// (drivers/infiniband/core/uverbs_main.c, IB_UVERBS_MAJOR).
const VERBS: u32 = 231;

/// The device files that policed users may not open; none unless `rdma = "deny"`.
#[must_use]
pub fn denied(config: &Config) -> Vec<DeviceFile> {
    if config.rdma != Some(Rdma::Deny) {
        return Vec::new();
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    files(&read(DRIVERS), &read(MANAGER))
}

fn files(drivers: &str, manager: &str) -> Vec<DeviceFile> {
    let (_, characters) = drivers.split_once("Character devices:").unwrap_or_default();
    let (characters, _) = characters.split_once("Block devices:").unwrap_or((characters, ""));
    let major = |line: &str| {
        let (major, name) = line.trim().split_once(' ')?;
        OF_RDMA.iter().any(|of| name.starts_with(of)).then(|| major.parse().ok())?
    };
    let majors = characters.lines().filter_map(major).chain([VERBS]);
    let mut files: Vec<DeviceFile> =
        majors.map(|major| DeviceFile { major, minor: DeviceFile::ANY }).collect();
    let manager = manager.trim().split_once(':');
    files.extend(manager.and_then(|(major, minor)| {
        Some(DeviceFile { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }));
    files.sort_unstable();
    files.dedup();
    files.truncate(DEVICE_FILE_ENTRIES as usize);
    files
}

/// A warning if the node has RDMA devices and the configuration does not say whether users may open them.
#[must_use]
pub fn undecided(config: &Config) -> Option<Finding> {
    let devices = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let mut names: Vec<String> = devices.map(|file| file.file_name().to_string_lossy().into()).collect();
    names.sort();
    (config.rdma.is_none() && !names.is_empty()).then(|| {
        Finding::warning(
            Id::Rdma,
            format!(
                "users can open RDMA devices ({}) and reach each other through them, bypassing uvn",
                uvn_api::uvnd::finding::few(&names)
            ),
            "set `rdma = \"deny\"`, or `rdma = \"allow\"` and give each user a partition key",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_their_drivers() {
        let drivers = "Character devices:\n  1 mem\n 10 misc\n231 infiniband_verbs\n231 infiniband_mad\n240 hfi1\n\
                       511 infiniband_verbs\n\nBlock devices:\n  8 sd\n259 infiniband\n";
        let any = |major| DeviceFile { major, minor: DeviceFile::ANY };
        assert_eq!(
            files(drivers, "10:121\n"),
            [DeviceFile { major: 10, minor: 121 }, any(231), any(240), any(511)]
        );
        // Before the modules are there.
        assert_eq!(files("Character devices:\n  1 mem\n", ""), [any(231)]);
        assert_eq!(files("", "10"), [any(231)]);
    }
}
