//! Whether something else disturbed a sample: other virtual machines, or other programs on this one.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use uvn_rig::cpu::{ProcessTime, SystemTime};
use uvn_rig::error::RigError;
use uvn_rig::netns;
use uvn_rig::place::Place;
use uvn_rig::process::Process;

/// Part of the cores' time that others may have before a sample is marked.
const STOLEN: f64 = 0.01;
const FOREIGN: f64 = 0.02;
/// kthreadd, the parent of kernel threads: whose work they do cannot be told.
const KTHREADD: i32 = 2;

/// Watches this machine from its making to [`Watch::disturbance`].
pub struct Watch(Load);

impl Watch {
    /// Begins.
    #[must_use]
    pub fn start() -> Watch {
        Watch(Load::beside_rig())
    }

    /// What disturbed since the start; None when nothing did.
    #[must_use]
    pub fn disturbance(&self) -> Option<String> {
        Load::beside_rig().disturbance_since(&self.0)
    }
}

/// What a machine has spent since it started.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// On everything.
    pub system: SystemTime,
    /// Seconds on programs that are not the bench's. They include the children that they have waited for: so the sum
    /// does not shrink when one ends.
    pub foreign: f64,
}

impl Load {
    /// Of this machine. Ours is what is of our making or in a namespace of ours.
    fn beside_rig() -> Load {
        let own_namespaces: BTreeSet<u64> = netns::own_inodes().into_iter().collect();
        let is_in_ours = |pid: i32| {
            let namespace = std::fs::metadata(format!("/proc/{pid}/ns/net")).map(|metadata| metadata.ino());
            namespace.is_ok_and(|inode| own_namespaces.contains(&inode))
        };
        Load::beside(std::process::id() as i32, is_in_ours)
    }

    /// Of this machine. Ours is what came over the same ssh connection.
    #[must_use]
    pub fn beside_session() -> Load {
        let mut pid = std::process::id() as i32;
        let is_sshd = |pid: i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd"))
        };
        while !is_sshd(pid) {
            match ProcessTime::of(pid) {
                Some(time) if time.parent > 1 => pid = time.parent,
                _ => break,
            }
        }
        Load::beside(pid, |_| false)
    }

    /// Of the machines of these places.
    ///
    /// # Errors
    /// One does not answer.
    pub fn at(places: [&Place; 2]) -> Result<[Load; 2], RigError> {
        const LOAD: &str = "probe load";
        const PATIENCE: Duration = Duration::from_secs(10);
        let [client, server] = places.map(|place| Process::start(LOAD, place.probe(&["load"])));
        let read = |load: Process| {
            let line = load.finish(PATIENCE)?.join("");
            serde_json::from_str(&line).map_err(|error| RigError::program(LOAD, error))
        };
        Ok([read(client?)?, read(server?)?])
    }

    fn beside(ancestor: i32, is_ours: impl Fn(i32) -> bool) -> Load {
        let processes = processes();
        let is_foreign = |pid: i32| {
            !descends(&processes, pid, KTHREADD) && !descends(&processes, pid, ancestor) && !is_ours(pid)
        };
        let foreign = processes.iter().filter(|(pid, _)| is_foreign(**pid));
        Load { system: SystemTime::now(), foreign: foreign.map(|(_, time)| time.own + time.children).sum() }
    }

    /// What disturbed between then and now; None when nothing did.
    #[must_use]
    pub fn disturbance_since(&self, earlier: &Load) -> Option<String> {
        let system = self.system.since(earlier.system);
        let total = system.total().max(0.01);
        let (stolen, foreign) = (system.stolen / total, (self.foreign - earlier.foreign) / total);
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
