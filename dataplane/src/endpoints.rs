//! A worker's side of all endpoints, by slot: which have something to send, which are to be flushed, which are broken.

use crate::port::{Endpoint, Offloads, VnetHeader};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::time::{Duration, Instant};

/// See the module's text.
#[derive(Default)]
pub struct Endpoints {
    slots: Vec<Option<Attached>>,
    ready: VecDeque<u32>,
    unflushed: Vec<u32>,
}

struct Attached {
    endpoint: Box<dyn Endpoint>,
    offloads: Offloads,
    /// It stands in `Endpoints::ready`.
    ready: bool,
    /// It stands in `Endpoints::unflushed`.
    unflushed: bool,
    /// It failed for good; the control thread will detach it.
    broken: bool,
    flood: Bucket,
}

impl Endpoints {
    /// Serves an endpoint, and looks at once whether it has something to send.
    pub fn attach(&mut self, slot: u32, endpoint: Box<dyn Endpoint>) {
        self.detach(slot);
        let index = slot as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let offloads = endpoint.offloads();
        let flood = Bucket::default();
        self.slots[index] =
            Some(Attached { endpoint, offloads, ready: false, unflushed: false, broken: false, flood });
        self.set_ready(slot);
    }

    /// Forgets an endpoint and returns it.
    pub fn detach(&mut self, slot: u32) -> Option<Box<dyn Endpoint>> {
        self.ready.retain(|ready| *ready != slot);
        self.unflushed.retain(|unflushed| *unflushed != slot);
        Some(self.slots.get_mut(slot as usize)?.take()?.endpoint)
    }

    fn get(&mut self, slot: u32) -> Option<&mut Attached> {
        self.slots.get_mut(slot as usize)?.as_mut().filter(|attached| !attached.broken)
    }

    /// Notes that an endpoint may have a frame to send.
    pub fn set_ready(&mut self, slot: u32) {
        if let Some(attached) = self.get(slot)
            && !mem::replace(&mut attached.ready, true)
        {
            self.ready.push_back(slot);
        }
    }

    /// How many may have a frame to send.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The next one that may; it is ready no more until [`Endpoints::set_ready`].
    pub fn next_ready(&mut self) -> Option<u32> {
        let slot = self.ready.pop_front()?;
        if let Some(attached) = self.get(slot) {
            attached.ready = false;
        }
        Some(slot)
    }

    /// See [`Endpoint::receive`]. None also where there is no endpoint, or a broken one.
    ///
    /// # Errors
    /// The endpoint broke just now; it is used no more.
    pub fn receive(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        let Some(attached) = self.get(slot) else { return Ok(None) };
        let result = attached.endpoint.receive(buffer);
        attached.broken = result.is_err();
        result
    }

    /// See [`Endpoint::send`]. False also where there is no endpoint, or a broken one.
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

    /// Flushes those that were sent to.
    pub fn flush(&mut self) {
        for slot in self.unflushed.drain(..) {
            if let Some(Some(attached)) = self.slots.get_mut(slot as usize) {
                attached.unflushed = false;
                attached.endpoint.flush();
            }
        }
    }

    /// Which super-frames the endpoint takes.
    #[must_use]
    pub fn offloads(&self, slot: u32) -> Offloads {
        match self.slots.get(slot as usize) {
            Some(Some(attached)) => attached.offloads,
            _ => Offloads::default(),
        }
    }

    /// Whether the endpoint may flood `frames` frames now, at `rate` frames per second.
    pub fn may_flood(&mut self, slot: u32, now: Instant, rate: u32, frames: usize) -> bool {
        self.get(slot).is_some_and(|attached| attached.flood.take(now, rate, frames))
    }
}

/// A token bucket: one second's worth of tokens at most.
#[derive(Debug, Default)]
struct Bucket {
    /// In billionths, so that no time is lost.
    tokens: u64,
    filled: Option<Instant>,
}

impl Bucket {
    /// Takes `count` tokens if there are as many.
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
