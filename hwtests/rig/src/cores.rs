//! Shares the cores of this machine among nodes, for applications and for networking.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The cores of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cores {
    /// The cores of applications.
    pub apps: Vec<usize>,
    /// The core of networking: an engine's worker, or the wire's NAPI thread.
    pub net: usize,
}

impl Cores {
    /// Gives each of `nodes` nodes its share of the cores that this process may use.
    #[must_use]
    pub fn of_this_machine(nodes: usize) -> Vec<Cores> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let cores: Vec<usize> =
            (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect();
        split(&cores, nodes)
    }

    /// The same cores, with networking on the first application core.
    #[must_use]
    pub fn sharing(&self) -> Cores {
        Cores { apps: self.apps.clone(), net: self.apps.first().copied().unwrap_or(self.net) }
    }

    /// The same cores, with applications on the networking core as well.
    #[must_use]
    pub fn all(&self) -> Cores {
        let mut apps = self.apps.clone();
        if !apps.contains(&self.net) {
            apps.push(self.net);
        }
        Cores { apps, net: self.net }
    }

    /// Whether networking shares its core with applications.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.apps.contains(&self.net)
    }

    /// The application cores as taskset writes them.
    #[must_use]
    pub fn apps_list(&self) -> String {
        self.apps.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

/// With two cores or more per node, the last cores are for networking, one per node. With one core per node, it is for
/// both. With fewer, nodes share cores evenly, and each stays on its core: in a real-time class the kernel does not
/// balance, so if it may choose, some cores have six ranks and others two as long as a job lasts, and jobs differ by
/// half.
fn split(cores: &[usize], nodes: usize) -> Vec<Cores> {
    let count = cores.len();
    let of = |node: usize| {
        if count >= 2 * nodes {
            let (apps, net) = cores.split_at(count - nodes);
            let share = apps.len() / nodes;
            Cores { apps: apps[node * share..(node + 1) * share].to_vec(), net: net[node] }
        } else {
            let place = if count >= nodes { node } else { digit_sum(node, count) % count.max(1) };
            let core = cores.get(place).copied().unwrap_or(0);
            Cores { apps: vec![core], net: core }
        }
    };
    (0..nodes).map(of).collect()
}

/// The sum of a number's digits in base `base`. So nodes whose numbers differ in one digit are on different cores: on
/// four cores, all nodes that talk to each other in a pattern of `patterns.c`.
fn digit_sum(mut number: usize, base: usize) -> usize {
    let mut sum = 0;
    while base > 1 && number > 0 {
        sum += number % base;
        number /= base;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(apps: &[usize], net: usize) -> Cores {
        Cores { apps: apps.to_vec(), net }
    }

    #[test]
    fn four_cores_give_each_of_two_nodes_one_for_applications_and_one_for_networking() {
        let split = split(&[0, 1, 2, 3], 2);
        assert_eq!(split, [cores(&[0], 2), cores(&[1], 3)]);
        assert!(!split[0].shared());
        assert_eq!(split[1].all().apps_list(), "1,3");
        assert_eq!(split[1].sharing(), cores(&[1], 1));
    }

    #[test]
    fn two_cores_are_shared() {
        assert_eq!(split(&[4, 7], 2), [cores(&[4], 4), cores(&[7], 7)]);
        assert_eq!(split(&[4, 7], 2)[0].all().apps_list(), "4");
    }

    #[test]
    fn more_cores_go_to_applications() {
        assert_eq!(split(&[0, 1, 2, 3, 4, 5, 6, 7], 2), [cores(&[0, 1, 2], 6), cores(&[3, 4, 5], 7)]);
    }

    #[test]
    fn more_nodes_than_cores_are_spread_evenly() {
        let split = split(&[0, 1, 2, 3], 16);
        let cores: Vec<usize> = split.iter().map(|cores| cores.apps[0]).collect();
        assert_eq!(cores, [0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 0, 1, 3, 0, 1, 2]);
        assert!(split.iter().all(Cores::shared));
        // Neighbours on a torus of four by four, and pairs, are on different cores.
        for node in 0..16 {
            for peer in [(node / 4 * 4) + (node + 1) % 4, (node + 4) % 16, (node + 8) % 16] {
                assert_ne!(cores[node], cores[peer]);
            }
        }
    }
}
