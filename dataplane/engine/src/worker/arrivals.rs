//! Received frames between verification and their endpoints, by network. The NIC's ring is one queue for all users: it
//! is emptied at once, and here each has a queue of its own and they take turns, so that nobody waits behind another's
//! flood. When there is no more room, it is the longest queue that loses a frame.

use crate::rotation::{Rotation, Turn};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

/// What an endpoint is handed at a turn, in the unit of [`cost`]: 8 small frames; a super-frame of 64 KiB is three.
const QUANTUM: u32 = 32 << 10;
/// What handing over a frame or super-frame costs, in bytes: one system call takes as long as copying so many.
const DELIVERY_COST: usize = 4 << 10;
/// What each frame costs beyond that: verifying and joining it, and in UDP the kernel takes them apart again.
const FRAME_COST: usize = 512;

/// What it costs to hand over `frames` frames of `bytes` bytes together, joined to `deliveries`.
pub fn cost(deliveries: usize, frames: usize, bytes: usize) -> i64 {
    (deliveries * DELIVERY_COST + frames * FRAME_COST + bytes) as i64
}

/// A verified frame.
pub struct Arrived<F> {
    /// The outer frame.
    pub frame: F,
    /// Where in it the inner one lies.
    pub inner: Range<usize>,
    /// When it was taken off the NIC.
    pub since: Instant,
}

/// See the module's text.
pub struct Arrivals<F> {
    /// By slot. They grow to what they ever held at once, and stop allocating.
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

    /// For how many frames there is room: the next one costs another.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(self.held)
    }

    /// Queues a frame for the endpoint of a slot. Some if another has to go for it, or the frame itself: its slot too.
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

    /// Begins the turn of who is to be handed frames next; to be ended by [`Arrivals::end`].
    pub fn begin(&mut self) -> Option<Turn> {
        self.turns.begin()
    }

    /// Takes the oldest frame of a slot.
    pub fn pop(&mut self, slot: u32) -> Option<Arrived<F>> {
        let arrived = self.queues.get_mut(slot as usize)?.pop_front()?;
        self.held -= 1;
        Some(arrived)
    }

    /// Ends a turn that [`cost`] so much.
    pub fn end(&mut self, turn: Turn, cost: i64) {
        let more = self.queues.get(turn.slot as usize).is_some_and(|queue| !queue.is_empty());
        self.turns.end(turn, cost, more);
    }

    /// Forgets a slot. Its queue must be empty.
    pub fn remove(&mut self, slot: u32) {
        self.turns.remove(slot);
    }
}
