//! Chooses the core of each worker.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::fs::read_to_string;

/// The cores for `queues` workers of this NIC: the configured cores in turn; or else those of the NIC's NUMA node,
/// counted down from the last, then all others. Only cores that this process may use; None: it may use none.
#[must_use]
pub fn choose(nic: &str, configured: &[usize], queues: usize) -> Vec<Option<usize>> {
    let allowed = allowed();
    for core in configured.iter().filter(|core| !allowed.contains(core)) {
        tracing::warn!(core, "workers.cores names a core that this process may not use; it is left out");
    }
    let node = read_to_string(format!("/sys/class/net/{nic}/device/numa_node"))
        .ok()
        .and_then(|node| node.trim().parse::<u32>().ok())
        .and_then(|node| read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).ok());
    let local = node.map(|list| parse_list(list.trim())).unwrap_or_default();
    pick(&allowed, &local, configured, queues)
}

fn pick(allowed: &[usize], local: &[usize], configured: &[usize], queues: usize) -> Vec<Option<usize>> {
    let usable = |core: &usize| allowed.contains(core);
    let mut order: Vec<usize> = configured.iter().copied().filter(usable).collect();
    if order.is_empty() {
        let (mut near, mut far): (Vec<usize>, Vec<usize>) =
            allowed.iter().partition(|core| local.contains(core));
        near.sort_unstable_by(|a, b| b.cmp(a));
        far.sort_unstable_by(|a, b| b.cmp(a));
        order = near;
        order.append(&mut far);
    }
    (0..queues).map(|queue| order.get(queue % order.len().max(1)).copied()).collect()
}

fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
}

/// Parses a list such as `0-3,8` (cpuset(7), list format).
fn parse_list(text: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cores.extend(first..=last.min(CpuSet::count()));
        }
    }
    cores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nics_node_comes_first_counted_down() {
        let some = |cores: &[usize]| cores.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(pick(&[0, 1, 2, 3], &[0, 1], &[], 3), some(&[1, 0, 3]));
        assert_eq!(pick(&[0, 1, 2, 3], &[], &[], 2), some(&[3, 2]));
        assert_eq!(pick(&[0, 2], &[1, 2], &[], 3), some(&[2, 0, 2]), "in turn when there are too few");
        assert_eq!(pick(&[0, 1, 2, 3], &[0], &[2, 1], 3), some(&[2, 1, 2]));
        assert_eq!(pick(&[0, 1], &[], &[7], 1), some(&[1]), "what may not be used is left out");
        assert_eq!(pick(&[], &[], &[], 2), [None, None]);
    }

    #[test]
    fn core_lists() {
        assert_eq!(parse_list("0-2,8,10-11"), [0, 1, 2, 8, 10, 11]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
        assert_eq!(parse_list("5"), [5]);
    }

    #[test]
    fn this_process_may_use_some_core() {
        assert!(choose("lo", &[], 1)[0].is_some());
    }
}
