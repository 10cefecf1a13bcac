//! Networks that the shortcut is still to take over from the engine, one at a time and not at once.
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
pub struct Takeover {
    networks: BTreeSet<Vni>,
    due: Instant,
}

impl Takeover {
    /// None.
    #[must_use]
    pub fn new(now: Instant) -> Takeover {
        Takeover { networks: BTreeSet::new(), due: now }
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

    /// When [`Takeover::take`] has one; None: none waits.
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
        let mut takeover = Takeover::new(start);
        assert_eq!((takeover.due(), takeover.take(start)), (None, None));
        [5, 6, 5].into_iter().for_each(|number| takeover.add(vni(number), start));
        assert_eq!((takeover.len(), takeover.take(start)), (2, None));
        let mut now = takeover.due().unwrap();
        assert_eq!(now, start + PAUSE);
        assert_eq!(takeover.take(now), Some(vni(5)));
        now += 3 * PAUSE;
        takeover.pause(now);
        assert_eq!((takeover.take(now), takeover.due()), (None, Some(now + PAUSE)));
        assert_eq!(takeover.take(now + PAUSE), Some(vni(6)));
        assert_eq!((takeover.take(now + 9 * PAUSE), takeover.due()), (None, None));
    }

    #[test]
    fn what_is_removed_is_not_taken_and_changes_postpone() {
        let start = Instant::now();
        let mut takeover = Takeover::new(start);
        [5, 6].into_iter().for_each(|number| takeover.add(vni(number), start));
        let later = start + PAUSE;
        takeover.remove(vni(5), later);
        takeover.remove(vni(7), later);
        assert!(!takeover.contains(vni(5)) && takeover.contains(vni(6)));
        assert_eq!(takeover.take(later), None);
        assert_eq!(takeover.take(later + PAUSE), Some(vni(6)));
        assert_eq!(takeover.len(), 0);
    }
}
