//! Networks that the in-kernel gear is still to take over from the engine, one at a time and not at once.
//!
//! For each of them the kernel waits for a grace period of RCU, 10 to 60 ms, under the lock that all changes of devices
//! need (tcx_entry_sync in include/net/tcx.h, under RTNL). So neither a request nor the devices of the next user shall
//! come behind many of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use uvn_wire::vxlan::Vni;

/// Between two of them, and after a network came or went: about what it takes to make a user's devices.
const PAUSE: Duration = Duration::from_millis(20);

/// The networks that wait.
#[derive(Debug)]
pub struct Waiting {
    networks: BTreeSet<Vni>,
    due: Instant,
}

impl Waiting {
    /// None.
    #[must_use]
    pub fn new(now: Instant) -> Waiting {
        Waiting { networks: BTreeSet::new(), due: now }
    }

    /// Adds a network. There already is fine.
    pub fn add(&mut self, vni: Vni, now: Instant) {
        self.networks.insert(vni);
        self.pause(now);
    }

    /// Drops a network. Not there is fine.
    pub fn remove(&mut self, vni: Vni, now: Instant) {
        self.networks.remove(&vni);
        self.pause(now);
    }

    /// The next one, which waits no more; None before its time.
    pub fn take(&mut self, now: Instant) -> Option<Vni> {
        if now < self.due { None } else { self.networks.pop_first() }
    }

    /// Leaves the kernel to others for a while.
    pub fn pause(&mut self, now: Instant) {
        self.due = now + PAUSE;
    }

    /// When [`Waiting::take`] has one; None: none waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (!self.networks.is_empty()).then_some(self.due)
    }

    /// Whether a network waits.
    #[must_use]
    pub fn contains(&self, vni: Vni) -> bool {
        self.networks.contains(&vni)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.networks.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vni(number: u32) -> Vni {
        Vni::new(number).unwrap()
    }

    #[test]
    fn each_is_taken_once_and_after_a_pause() {
        let start = Instant::now();
        let mut waiting = Waiting::new(start);
        assert_eq!((waiting.due(), waiting.take(start)), (None, None));
        [5, 6, 5].into_iter().for_each(|number| waiting.add(vni(number), start));
        assert_eq!((waiting.len(), waiting.take(start)), (2, None));
        let mut now = waiting.due().unwrap();
        assert_eq!(now, start + PAUSE);
        assert_eq!(waiting.take(now), Some(vni(5)));
        now += 3 * PAUSE;
        waiting.pause(now);
        assert_eq!((waiting.take(now), waiting.due()), (None, Some(now + PAUSE)));
        assert_eq!(waiting.take(now + PAUSE), Some(vni(6)));
        assert_eq!((waiting.take(now + 9 * PAUSE), waiting.due()), (None, None));
    }

    #[test]
    fn what_is_removed_is_not_taken_and_changes_postpone() {
        let start = Instant::now();
        let mut waiting = Waiting::new(start);
        [5, 6].into_iter().for_each(|number| waiting.add(vni(number), start));
        let later = start + PAUSE;
        waiting.remove(vni(5), later);
        waiting.remove(vni(7), later);
        assert!(!waiting.contains(vni(5)) && waiting.contains(vni(6)));
        assert_eq!(waiting.take(later), None);
        assert_eq!(waiting.take(later + PAUSE), Some(vni(6)));
        assert!(waiting.is_empty());
    }
}
