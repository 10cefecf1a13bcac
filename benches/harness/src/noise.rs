//! Whether something else disturbed a sample: other virtual machines, or other programs on this one.

use crate::cpu::{ProcessTime, SystemTime};
use crate::netns;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

/// Part of the cores' time that others may have before a sample is marked.
const STOLEN: f64 = 0.01;
const FOREIGN: f64 = 0.02;
/// kthreadd, the parent of kernel threads: whose work they do cannot be told.
const KTHREADD: i32 = 2;

/// Watches from its making to [`Watch::disturbance`].
pub struct Watch {
    system: SystemTime,
    foreign: f64,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn start() -> Watch {
        Watch { system: SystemTime::now(), foreign: foreign_time() }
    }

    /// What disturbed since the start; None when nothing did.
    #[must_use]
    pub fn disturbance(&self) -> Option<String> {
        let system = SystemTime::now().since(self.system);
        let total = system.total().max(0.01);
        let (stolen, foreign) = (system.stolen / total, (foreign_time() - self.foreign) / total);
        let part = |share: f64, limit: f64, who: &str| {
            (share > limit).then(|| format!("{who} had {:.0} % of the cores' time", 100.0 * share))
        };
        let parts: Vec<String> = [
            part(stolen, STOLEN, "other virtual machines"),
            part(foreign, FOREIGN, "other programs on this machine"),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Processor time of every program that is neither of our making nor in a namespace of ours, with the children it has
/// waited for: so the sum does not shrink when one ends.
fn foreign_time() -> f64 {
    let processes = processes();
    let own_namespaces: BTreeSet<u64> = netns::own_inodes().into_iter().collect();
    let ours = |pid: i32| {
        let namespace = std::fs::metadata(format!("/proc/{pid}/ns/net")).map(|metadata| metadata.ino());
        namespace.is_ok_and(|inode| own_namespaces.contains(&inode))
            || descends(&processes, pid, std::process::id() as i32)
    };
    let foreign = processes.iter().filter(|(pid, _)| !descends(&processes, **pid, KTHREADD) && !ours(**pid));
    foreign.map(|(_, time)| time.own + time.children).sum()
}

fn processes() -> BTreeMap<i32, ProcessTime> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, ProcessTime::of(pid)?)))
        .collect()
}

/// Whether `pid` is `ancestor` or one of its descendants.
fn descends(processes: &BTreeMap<i32, ProcessTime>, mut pid: i32, ancestor: i32) -> bool {
    while pid != ancestor {
        match processes.get(&pid) {
            Some(time) if time.parent > 0 && time.parent != pid => pid = time.parent,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descent_goes_by_parents() {
        let time = |parent| ProcessTime { parent, own: 0.0, children: 0.0 };
        let processes =
            BTreeMap::from([(1, time(0)), (2, time(0)), (5, time(1)), (6, time(5)), (9, time(2))]);
        assert!(descends(&processes, 6, 5));
        assert!(descends(&processes, 5, 5));
        assert!(descends(&processes, 9, KTHREADD));
        assert!(!descends(&processes, 1, 5));
        assert!(!descends(&processes, 77, 5));
    }
}
