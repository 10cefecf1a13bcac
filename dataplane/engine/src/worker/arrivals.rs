//! Received frames between verification and their endpoints, by network. The NIC's ring is one queue for all users, and
//! is emptied at once. Here each network has a queue of its own, and they take turns, so that nobody waits behind
//! another's flood. When there is no more room, the longest queue loses a frame.

use crate::rotation::{Rotation, Turn};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

/// An endpoint's share at a turn, in the unit of [`cost`]: 8 small frames; a super-frame of 64 KiB takes three shares.
const QUANTUM: u32 = 32 << 10;
/// The cost of handing over a frame or super-frame, bytes: one system call takes as long as copying this many.
const DELIVERY_COST: usize = 4 << 10;
/// The cost of each frame beyond that, bytes: verifying and joining it; in UDP the kernel also takes them apart again.
const FRAME_COST: usize = 512;

/// The cost of handing over `frames` frames of `bytes` bytes together, joined to `deliveries`.
pub fn cost(deliveries: usize, frames: usize, bytes: usize) -> i64 {
    (deliveries * DELIVERY_COST + frames * FRAME_COST + bytes) as i64
}

/// A verified frame.
pub struct Arrived<F> {
    /// The outer frame.
    pub frame: F,
    /// The place of the inner frame in it.
    pub inner: Range<usize>,
    /// The time at which it was taken off the NIC.
    pub since: Instant,
}

/// The received frames of all networks, by turns; see the module's text.
pub struct Arrivals<F> {
    /// The queues, by slot. They grow to the most that they ever held, and then stop allocating.
    queues: Vec<VecDeque<Arrived<F>>>,
    turns: Rotation,
    held: usize,
    most: usize,
}

impl<F> Arrivals<F> {
    /// Room for `most` frames of all networks together.
    pub fn new(most: usize) -> Arrivals<F> {
        Arrivals { queues: Vec::new(), turns: Rotation::new(QUANTUM), held: 0, most }
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// The number of frames for which there is room. If it is 0, the next frame costs another.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(self.held)
    }

    /// Queues a frame for the endpoint of a slot. If there is no room, returns the frame that is lost, another or this
    /// one, with its slot.
    #[must_use]
    pub fn push(&mut self, slot: u32, arrived: Arrived<F>) -> Option<(u32, F)> {
        let lost = (self.room() == 0).then(|| self.longest(slot));
        if lost == Some(slot) {
            return Some((slot, arrived.frame));
        }
        let index = slot as usize;
        if self.queues.len() <= index {
            self.queues.resize_with(index + 1, VecDeque::new);
        }
        self.queues[index].push_back(arrived);
        self.held += 1;
        self.turns.add(slot);
        let slot = lost?;
        let frame = self.queues.get_mut(slot as usize)?.pop_back()?.frame;
        self.held -= 1;
        Some((slot, frame))
    }

    /// The slot with the longest queue; `slot` itself if none is longer than its queue.
    fn longest(&self, slot: u32) -> u32 {
        let length = |slot: u32| self.queues.get(slot as usize).map_or(0, VecDeque::len);
        self.turns.slots().fold(slot, |most, other| if length(other) > length(most) { other } else { most })
    }

    /// Begins the turn of the slot that is handed frames next; [`Arrivals::end`] ends it.
    pub fn begin(&mut self) -> Option<Turn> {
        self.turns.begin()
    }

    /// Takes the oldest frame of a slot.
    pub fn pop(&mut self, slot: u32) -> Option<Arrived<F>> {
        let arrived = self.queues.get_mut(slot as usize)?.pop_front()?;
        self.held -= 1;
        Some(arrived)
    }

    /// Ends a turn that had this [`cost`].
    pub fn end(&mut self, turn: Turn, cost: i64) {
        let more = self.queues.get(turn.slot as usize).is_some_and(|queue| !queue.is_empty());
        self.turns.end(turn, cost, more);
    }

    /// Forgets a slot. Its queue must be empty.
    pub fn remove(&mut self, slot: u32) {
        self.turns.remove(slot);
    }
}
