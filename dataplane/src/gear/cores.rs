//! Chooses the core of each worker.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::fs::read_to_string;
use uvn_api::dataplane::config::{Share, Workers};

/// The cores for `queues` workers of this NIC: the configured cores in turn; or else those of the NIC's NUMA node,
/// counted down from the last, then all others. Several NICs that share them begin at another core each. Only cores that
/// this process may use; None: it may use none.
#[must_use]
pub fn choose(nic: &str, configured: &Workers, queues: usize) -> Vec<Option<usize>> {
    let allowed = allowed();
    for core in configured.cores.iter().filter(|core| !allowed.contains(core)) {
        tracing::warn!(core, "workers.cores names a core that this process may not use; it is left out");
    }
    let node = numa_node(nic)
        .and_then(|node| read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).ok());
    let local = node.map(|list| parse_list(list.trim())).unwrap_or_default();
    pick(&allowed, &local, configured, queues)
}

/// The NUMA node of a NIC; None: it has none, or does not tell.
#[must_use]
pub fn numa_node(nic: &str) -> Option<u32> {
    let node = read_to_string(format!("/sys/class/net/{nic}/device/numa_node")).ok()?;
    // -1 stands for none.
    node.trim().parse().ok()
}

fn pick(allowed: &[usize], local: &[usize], configured: &Workers, queues: usize) -> Vec<Option<usize>> {
    let usable = |core: &usize| allowed.contains(core);
    let Share { index, of } = configured.share;
    let mut order: Vec<usize> = configured.cores.iter().copied().filter(usable).collect();
    if order.is_empty() {
        let (mut near, mut far): (Vec<usize>, Vec<usize>) =
            allowed.iter().partition(|core| local.contains(core));
        for cores in [&mut near, &mut far] {
            cores.sort_unstable_by(|a, b| b.cmp(a));
            let first = cores.len() * index / of;
            cores.rotate_left(first);
        }
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
        let cores = |cores: &[usize]| Workers { cores: cores.to_vec(), ..Workers::default() };
        assert_eq!(pick(&[0, 1, 2, 3], &[0, 1], &cores(&[]), 3), some(&[1, 0, 3]));
        assert_eq!(pick(&[0, 1, 2, 3], &[], &cores(&[]), 2), some(&[3, 2]));
        assert_eq!(
            pick(&[0, 2], &[1, 2], &cores(&[]), 3),
            some(&[2, 0, 2]),
            "in turn when there are too few"
        );
        assert_eq!(pick(&[0, 1, 2, 3], &[0], &cores(&[2, 1]), 3), some(&[2, 1, 2]));
        assert_eq!(pick(&[0, 1], &[], &cores(&[7]), 1), some(&[1]), "what may not be used is left out");
        assert_eq!(pick(&[], &[], &cores(&[]), 2), [None, None]);
    }

    #[test]
    fn nics_that_share_cores_begin_at_another_each() {
        let share = |index, of| Workers { share: Share { index, of }, ..Workers::default() };
        let cores: Vec<usize> = (0..64).collect();
        let of = |index| pick(&cores, &cores[..32], &share(index, 2), 16);
        let (first, second) = (of(0), of(1));
        assert_eq!((first[0], second[0]), (Some(31), Some(15)));
        assert!(first.iter().all(|core| !second.contains(core)));
        assert_eq!(pick(&[0, 1], &[0, 1], &share(1, 2), 2), [Some(0), Some(1)]);
        assert_eq!(pick(&[0], &[0], &share(1, 2), 1), [Some(0)]);
    }

    #[test]
    fn core_lists() {
        assert_eq!(parse_list("0-2,8,10-11"), [0, 1, 2, 8, 10, 11]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
        assert_eq!(parse_list("5"), [5]);
    }

    #[test]
    fn this_process_may_use_some_core() {
        assert!(choose("lo", &Workers::default(), 1)[0].is_some());
    }
}
