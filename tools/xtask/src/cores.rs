//! Which core runs what.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Cores of the two nodes. Each node has some for applications and one for networking: an engine's worker, or the
/// wire's NAPI thread. Where the machine has fewer than four, they are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores {
    /// Of the applications, by node.
    pub apps: [Vec<usize>; 2],
    /// Of networking, by node.
    pub net: [usize; 2],
}

impl Cores {
    /// Splits the cores that this process may use.
    #[must_use]
    pub fn of_this_machine() -> Cores {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let cores: Vec<usize> =
            (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect();
        Cores::split(&cores)
    }

    fn split(cores: &[usize]) -> Cores {
        let first = cores.first().copied().unwrap_or(0);
        match cores.len() {
            0 | 1 => Cores { apps: [vec![first], vec![first]], net: [first, first] },
            2 | 3 => Cores { apps: [vec![first], vec![cores[1]]], net: [first, cores[1]] },
            n => {
                let (apps, net) = cores.split_at(n - 2);
                let (left, right) = apps.split_at(apps.len() / 2);
                Cores { apps: [left.to_vec(), right.to_vec()], net: [net[0], net[1]] }
            }
        }
    }

    /// The same, with networking on each node's first application core.
    #[must_use]
    pub fn sharing(&self) -> Cores {
        let first = |node: usize| self.apps[node].first().copied().unwrap_or(self.net[node]);
        Cores { apps: self.apps.clone(), net: [first(0), first(1)] }
    }

    /// Whether networking shares its cores with applications.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.apps[0].contains(&self.net[0])
    }

    /// A node's application cores as taskset writes them.
    #[must_use]
    pub fn apps_list(&self, node: usize) -> String {
        list(&self.apps[node])
    }

    /// All of a node's cores as taskset writes them.
    #[must_use]
    pub fn node_list(&self, node: usize) -> String {
        let mut cores = self.apps[node].clone();
        if !cores.contains(&self.net[node]) {
            cores.push(self.net[node]);
        }
        list(&cores)
    }
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_cores_give_each_node_one_for_applications_and_one_for_networking() {
        let cores = Cores::split(&[0, 1, 2, 3]);
        assert_eq!(cores, Cores { apps: [vec![0], vec![1]], net: [2, 3] });
        assert!(!cores.shared());
        assert_eq!(cores.node_list(1), "1,3");
        assert_eq!(cores.sharing().net, [0, 1]);
        assert!(cores.sharing().shared());
    }

    #[test]
    fn two_cores_are_shared() {
        let cores = Cores::split(&[4, 7]);
        assert_eq!(cores, Cores { apps: [vec![4], vec![7]], net: [4, 7] });
        assert!(cores.shared());
        assert_eq!(cores.node_list(0), "4");
    }

    #[test]
    fn more_cores_go_to_applications() {
        let cores = Cores::split(&[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(cores, Cores { apps: [vec![0, 1, 2], vec![3, 4, 5]], net: [6, 7] });
    }
}
