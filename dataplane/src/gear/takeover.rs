//! The networks that wait for the shortcut to take them over from the engine, one at a time, with pauses.
//!
//! For each network the kernel waits for a grace period of RCU, 10 to 60 ms, under the lock that all changes of devices
//! need (tcx_entry_sync in include/net/tcx.h, under RTNL). The pauses keep requests, and the devices of the next user,
//! from waiting for many of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use uvn_wire::vxlan::Vni;

/// The pause between two networks, and after a network was added or removed: about as long as making a user's devices
/// takes.
const PAUSE: Duration = Duration::from_millis(20);

/// The waiting networks.
#[derive(Debug)]
pub struct Takeover {
    networks: BTreeSet<Vni>,
    due: Instant,
}

impl Takeover {
    /// No network waits.
    #[must_use]
    pub fn new(now: Instant) -> Takeover {
        Takeover { networks: BTreeSet::new(), due: now }
    }

    /// Adds a network, which may be waiting already.
    pub fn add(&mut self, vni: Vni, now: Instant) {
        self.networks.insert(vni);
        self.pause(now);
    }

    /// Removes a network, which need not be waiting.
    pub fn remove(&mut self, vni: Vni, now: Instant) {
        self.networks.remove(&vni);
        self.pause(now);
    }

    /// Takes the next network off the queue; None: it is not due yet, or none waits.
    pub fn take(&mut self, now: Instant) -> Option<Vni> {
        if now < self.due { None } else { self.networks.pop_first() }
    }

    /// Makes the next network due after a pause from `now`.
    pub fn pause(&mut self, now: Instant) {
        self.due = now + PAUSE;
    }

    /// When [`Takeover::take`] returns a network; None: none waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (!self.networks.is_empty()).then_some(self.due)
    }

    /// Whether a network waits.
    #[must_use]
    pub fn contains(&self, vni: Vni) -> bool {
        self.networks.contains(&vni)
    }

    /// The number of waiting networks.
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
