//! A single-producer single-consumer ring of descriptors with the cursors of an AF_XDP ring: two free-running u32.
//!
//! The producer writes slots, then publishes them all with one store (release). The consumer reads the cursor
//! (acquire), and so sees the slots, and what was written to the frames that they name. The difference of the cursors
//! tells a full or empty ring, also after they wrap.

use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::sync::{Arc, AtomicU32, AtomicU64};

struct Shared {
    slots: Box<[AtomicU64]>,
    produced: AtomicU32,
    consumed: AtomicU32,
}

impl Shared {
    fn slot(&self, cursor: u32) -> &AtomicU64 {
        // The length is a power of two of at most 2^31: the remainder is a mask, and wrapping does not disturb it.
        &self.slots[cursor as usize & (self.slots.len() - 1)]
    }
}

/// The end that writes descriptors.
pub struct Producer {
    shared: Arc<Shared>,
    /// The next slot to write: ahead of `shared.produced` by the descriptors not submitted yet.
    cursor: u32,
    /// `shared.consumed` when it was last read.
    consumed: u32,
}

/// The end that takes descriptors.
pub struct Consumer {
    shared: Arc<Shared>,
    /// The next slot to read.
    cursor: u32,
    /// `shared.produced` when it was last read.
    produced: u32,
}

/// A ring of at least `capacity` slots (rounded up to a power of two, at most 2^31), both cursors at `start`.
#[must_use]
pub fn ring(capacity: u32, start: u32) -> (Producer, Consumer) {
    let capacity = capacity.clamp(1, 1 << 31).next_power_of_two();
    let shared = Arc::new(Shared {
        slots: (0..capacity).map(|_| AtomicU64::new(0)).collect(),
        produced: AtomicU32::new(start),
        consumed: AtomicU32::new(start),
    });
    let producer = Producer { shared: shared.clone(), cursor: start, consumed: start };
    (producer, Consumer { shared, cursor: start, produced: start })
}

impl Producer {
    /// Writes one descriptor, which the consumer sees after [`submit`](Self::submit). False: the ring is full.
    #[must_use]
    pub fn push(&mut self, descriptor: u64) -> bool {
        let capacity = self.shared.slots.len();
        if self.cursor.wrapping_sub(self.consumed) as usize == capacity {
            self.consumed = self.shared.consumed.load(Acquire);
            if self.cursor.wrapping_sub(self.consumed) as usize == capacity {
                return false;
            }
        }
        self.shared.slot(self.cursor).store(descriptor, Relaxed);
        self.cursor = self.cursor.wrapping_add(1);
        true
    }

    /// Publishes all written descriptors.
    pub fn submit(&mut self) {
        self.shared.produced.store(self.cursor, Release);
    }

    /// The number of descriptors that are written and not taken.
    #[must_use]
    pub fn under_way(&self) -> u32 {
        self.cursor.wrapping_sub(self.shared.consumed.load(Acquire))
    }
}

impl Consumer {
    /// Takes the oldest descriptor and frees its slot; None: none is submitted.
    #[must_use]
    pub fn pop(&mut self) -> Option<u64> {
        if self.cursor == self.produced {
            self.produced = self.shared.produced.load(Acquire);
            if self.cursor == self.produced {
                return None;
            }
        }
        let descriptor = self.shared.slot(self.cursor).load(Relaxed);
        self.cursor = self.cursor.wrapping_add(1);
        self.shared.consumed.store(self.cursor, Release);
        Some(descriptor)
    }
}
