//! Logs users who are refused sockets for lack of a network, or would be: a line for each user, at most once a minute.

use crate::binding::Binding;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use uvn_api::uvnd::status::Refused;

/// The least time between two such reports.
const EVERY: Duration = Duration::from_secs(60);
/// The most users in one report, and in `uvn status`.
const NAMED: usize = 8;

/// The refusals that have been logged so far.
#[derive(Debug)]
pub(super) struct Refusals {
    told: BTreeMap<u32, u64>,
    next: Instant,
}

impl Refusals {
    pub(super) fn new(now: Instant) -> Refusals {
        Refusals { told: BTreeMap::new(), next: now }
    }

    /// The users with new refusals, and the number of new ones; most refusals first.
    fn news(&mut self, refused: &[Refused]) -> Vec<Refused> {
        let mut news = Vec::new();
        for one in refused {
            // Under a new policy, counts begin at zero again.
            let told = self.told.insert(one.uid, one.count).filter(|told| *told <= one.count).unwrap_or(0);
            if one.count > told {
                news.push(Refused { count: one.count - told, ..one.clone() });
            }
        }
        self.told.retain(|uid, _| refused.iter().any(|one| one.uid == *uid));
        news.sort_by_key(|one| std::cmp::Reverse(one.count));
        news
    }

    /// Whether new refusals may be logged.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Logs new refusals.
    pub(super) fn tell(&mut self, refused: &[Refused], observes: bool, now: Instant) {
        let news = self.news(refused);
        if news.is_empty() {
            return;
        }
        self.next = now + EVERY;
        for Refused { uid, count, program } in news {
            if observes {
                tracing::info!(
                    uid,
                    count,
                    program,
                    "the user has no network; enforced, sockets would be refused"
                );
            } else {
                tracing::warn!(
                    uid,
                    count,
                    program,
                    "sockets refused: the user has no network; PAM, Slurm or `uvn attach` give one"
                );
            }
        }
    }
}

/// The users with the most refusals.
pub(super) fn most(binding: &Binding) -> Vec<Refused> {
    let of = |(uid, (count, program))| Refused { uid, count, program };
    let mut refused: Vec<Refused> = binding.refused().into_iter().map(of).collect();
    refused.sort_by_key(|one| std::cmp::Reverse(one.count));
    refused.truncate(NAMED);
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_for_what_is_new() {
        let one = |uid, count| Refused { uid, count, program: "cat".into() };
        let mut refusals = Refusals::new(Instant::now());
        assert_eq!(refusals.news(&[one(1, 5), one(2, 9)]), [one(2, 9), one(1, 5)]);
        assert_eq!(refusals.news(&[one(1, 5), one(2, 10)]), [one(2, 1)]);
        assert_eq!(refusals.news(&[one(1, 5)]), []);
        assert_eq!(refusals.news(&[one(1, 2), one(2, 3)]), [one(2, 3), one(1, 2)]);
    }
}
