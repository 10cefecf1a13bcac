//! Which UIDs are policed, and which VNI each has.

use super::{Config, VniRange};
use std::ops::RangeInclusive;
use thiserror::Error;
use uvn_api::uvnd::policed::is_policed;
use uvn_wire::vxlan::Vni;

/// Why a UID has no VNI.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoVni {
    /// The UID is not policed, so it has no network.
    #[error("UID {0} is not policed: it has no network; see `policed` and `exempt`")]
    NotPoliced(u32),
    /// The UID is 2^24 or more, and no range has it.
    #[error("UID {0} is 2^24 or more: a [[vni]] range must give it a VNI")]
    Unmapped(u32),
    /// A range has given the VNI that equals it to another UID.
    #[error(
        "UID {uid} and UID {other} would share VNI {uid}, which a [[vni]] range gives to {other}: change the range"
    )]
    Taken {
        /// The UID without a VNI.
        uid: u32,
        /// The UID that has its VNI.
        other: u32,
    },
}

impl VniRange {
    /// The VNI of a UID of the range.
    pub(super) fn vni_of(&self, uid: u32) -> Option<u32> {
        if !self.uids.contains(&uid) {
            return None;
        }
        self.first.checked_add(uid - self.uids.start())
    }

    /// The UID of a VNI of the range.
    pub(super) fn uid_of(&self, vni: u32) -> Option<u32> {
        let uid = self.uids.start().checked_add(vni.checked_sub(self.first)?)?;
        self.uids.contains(&uid).then_some(uid)
    }

    /// The VNIs of the range.
    pub(super) fn vnis(&self) -> RangeInclusive<u32> {
        self.first..=self.first.saturating_add(self.uids.end() - self.uids.start())
    }
}

impl Config {
    /// Whether a UID's sockets are bound to its network.
    #[must_use]
    pub fn is_policed(&self, uid: u32) -> bool {
        is_policed(uid, &self.policed, &self.exempt)
    }

    /// The policed UIDs without the exempt ones, in ascending ranges that neither touch nor overlap.
    #[must_use]
    pub fn policed_ranges(&self) -> Vec<RangeInclusive<u32>> {
        let exempt = merged(&self.exempt);
        let mut kept = Vec::new();
        for range in merged(&self.policed) {
            let mut first = *range.start();
            for hole in
                exempt.iter().filter(|hole| hole.end() >= range.start() && hole.start() <= range.end())
            {
                if *hole.start() > first {
                    kept.push(first..=hole.start() - 1);
                }
                // MAX_UID is below u32::MAX: no overflow.
                first = first.max(hole.end().saturating_add(1));
            }
            if first <= *range.end() {
                kept.push(first..=*range.end());
            }
        }
        kept
    }

    /// The VNI of a policed UID: below 2^24 its own number, else the number from a range. No two UIDs have the same.
    ///
    /// # Errors
    /// The UID has no VNI.
    pub fn vni_of(&self, uid: u32) -> Result<Vni, NoVni> {
        if !self.is_policed(uid) {
            return Err(NoVni::NotPoliced(uid));
        }
        let Some(own) = Vni::new(uid) else {
            let mapped = self.vnis.iter().find_map(|range| range.vni_of(uid));
            return mapped.and_then(Vni::new).ok_or(NoVni::Unmapped(uid));
        };
        match self.vnis.iter().find_map(|range| range.uid_of(uid)) {
            Some(other) => Err(NoVni::Taken { uid, other }),
            None => Ok(own),
        }
    }

    /// The policed UID that has this VNI.
    #[must_use]
    pub fn uid_of(&self, vni: Vni) -> Option<u32> {
        let mapped = self.vnis.iter().find_map(|range| range.uid_of(vni.get()));
        let uid = mapped.unwrap_or(vni.get());
        self.is_policed(uid).then_some(uid)
    }
}

/// The same UIDs in ascending ranges that neither touch nor overlap.
fn merged(ranges: &[RangeInclusive<u32>]) -> Vec<RangeInclusive<u32>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u32>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}
