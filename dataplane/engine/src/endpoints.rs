//! A worker's side of all endpoints, by slot: which ones have frames to send, must be flushed, or are broken.

use crate::port::{Endpoint, Offloads, VnetHeader};
use crate::rotation::{Rotation, Turn};
use std::io::{self, IoSlice};
use std::mem;
use std::time::{Duration, Instant};

/// What an endpoint may send in one turn, in the unit of [`cost`]: 7 small frames or 3 of 1500 bytes, about 10 us in
/// copy mode.
const QUANTUM: u32 = 8 << 10;
/// What handling a frame costs, in bytes: in copy mode, as much as 1 KiB or more of payload.
const FRAME_COST: usize = 1 << 10;

/// New MACs of one network that a worker reports in one second, at most, so that a sender who invents MACs does little
/// harm; and as many that have moved.
pub const LEARNED_RATE: u32 = 256;

/// The cost of sending `frames` frames of `bytes` bytes in all: both the NIC's and the core's time are shared fairly.
#[must_use]
pub fn cost(frames: usize, bytes: usize) -> i64 {
    (frames * FRAME_COST + bytes) as i64
}

/// A worker's endpoints, by slot.
pub struct Endpoints {
    slots: Vec<Option<Attached>>,
    ready: Rotation,
    unflushed: Vec<u32>,
}

impl Default for Endpoints {
    fn default() -> Endpoints {
        Endpoints { slots: Vec::new(), ready: Rotation::new(QUANTUM), unflushed: Vec::new() }
    }
}

struct Attached {
    endpoint: Box<dyn Endpoint>,
    offloads: Offloads,
    /// Whether it is in `Endpoints::unflushed`.
    unflushed: bool,
    /// Whether it has failed for good; the control thread will detach it.
    broken: bool,
    flood: Bucket,
    /// The numbers of new MACs and of moved ones reported, and in which second.
    learned: ([u32; 2], u32),
}

impl Endpoints {
    /// Serves an endpoint, which may have frames to send already.
    pub fn attach(&mut self, slot: u32, endpoint: Box<dyn Endpoint>) {
        self.detach(slot);
        let index = slot as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let offloads = endpoint.offloads();
        let flood = Bucket::default();
        self.slots[index] = Some(Attached {
            endpoint,
            offloads,
            unflushed: false,
            broken: false,
            flood,
            learned: Default::default(),
        });
        self.set_ready(slot);
    }

    /// Forgets an endpoint and returns it.
    pub fn detach(&mut self, slot: u32) -> Option<Box<dyn Endpoint>> {
        self.ready.remove(slot);
        self.unflushed.retain(|unflushed| *unflushed != slot);
        Some(self.slots.get_mut(slot as usize)?.take()?.endpoint)
    }

    fn get(&mut self, slot: u32) -> Option<&mut Attached> {
        self.slots.get_mut(slot as usize)?.as_mut().filter(|attached| !attached.broken)
    }

    /// Queues an endpoint that may have a frame to send.
    pub fn set_ready(&mut self, slot: u32) {
        if self.get(slot).is_some() {
            self.ready.add(slot);
        }
    }

    /// The number of endpoints that may have a frame to send.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.waiting()
    }

    /// Begins the next endpoint's turn to send, which ends by [`Endpoints::end`].
    #[must_use]
    pub fn begin(&mut self) -> Option<Turn> {
        self.ready.begin()
    }

    /// Ends a turn, with its [`cost`], and whether there may be more to send.
    pub fn end(&mut self, turn: Turn, cost: i64, more: bool) {
        self.ready.end(turn, cost, more);
    }

    /// See [`Endpoint::receive`]. Also None if there is no endpoint, or a broken one.
    ///
    /// # Errors
    /// The endpoint broke just now; it is used no more.
    pub fn receive(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        let Some(attached) = self.get(slot) else { return Ok(None) };
        let result = attached.endpoint.receive(buffer);
        attached.broken = result.is_err();
        result
    }

    /// See [`Endpoint::send`]. Also false if there is no endpoint, or a broken one.
    ///
    /// # Errors
    /// The endpoint broke just now; it is used no more.
    pub fn send(&mut self, slot: u32, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        let Some(attached) = self.get(slot) else { return Ok(false) };
        let result = attached.endpoint.send(header, parts);
        attached.broken = result.is_err();
        if !mem::replace(&mut attached.unflushed, true) {
            self.unflushed.push(slot);
        }
        result
    }

    /// Flushes the endpoints that were sent to since the last flush.
    pub fn flush(&mut self) {
        for slot in self.unflushed.drain(..) {
            if let Some(Some(attached)) = self.slots.get_mut(slot as usize) {
                attached.unflushed = false;
                attached.endpoint.flush();
            }
        }
    }

    /// The super-frames that the endpoint takes.
    #[must_use]
    pub fn offloads(&self, slot: u32) -> Offloads {
        match self.slots.get(slot as usize) {
            Some(Some(attached)) => attached.offloads,
            _ => Offloads::default(),
        }
    }

    /// Counts a MAC of the endpoint's network in this second, new or moved. False: [`LEARNED_RATE`] is reached.
    pub fn may_learn(&mut self, slot: u32, second: u32, has_moved: bool) -> bool {
        let Some(attached) = self.get(slot) else { return false };
        if attached.learned.1 != second {
            attached.learned = ([0; 2], second);
        }
        let count = &mut attached.learned.0[usize::from(has_moved)];
        *count += 1;
        *count <= LEARNED_RATE
    }

    /// Counts `frames` flooded frames, at `rate` frames per second. False: the endpoint may not flood them now.
    pub fn may_flood(&mut self, slot: u32, now: Instant, rate: u32, frames: usize) -> bool {
        self.get(slot).is_some_and(|attached| attached.flood.take(now, rate, frames))
    }
}

/// A token bucket that holds the tokens of one second.
#[derive(Debug, Default)]
struct Bucket {
    /// Tokens in billionths, so that no time is lost.
    tokens: u64,
    filled: Option<Instant>,
}

impl Bucket {
    /// Takes `count` tokens. False: there are fewer.
    fn take(&mut self, now: Instant, rate: u32, count: usize) -> bool {
        const TOKEN: u64 = 1_000_000_000;
        let elapsed =
            self.filled.map_or(Duration::from_secs(1), |filled| now.saturating_duration_since(filled));
        let nanoseconds = elapsed.as_nanos().min(TOKEN.into()) as u64;
        let rate = u64::from(rate);
        self.tokens = (self.tokens + nanoseconds * rate).min(rate * TOKEN);
        self.filled = Some(now);
        let wanted = count as u64 * TOKEN;
        let enough = self.tokens >= wanted;
        if enough {
            self.tokens -= wanted;
        }
        enough
    }
}
