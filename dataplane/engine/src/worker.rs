//! The worker of one NIC queue: ingress, egress, flush. No lock, no allocation, no log and no clock read per packet.
//!
//! It owns its queue and its side of every endpoint, and learns of changes only between turns ([`Command`]).

mod arrivals;
mod egress;
mod ingress;

use crate::counters::{Counters, Drop};
use crate::endpoints::Endpoints;
use crate::fragments::Fragments;
use crate::gro::Gro;
use crate::port::{Endpoint, MAX_FRAME, MAX_PARTS, Nic, VnetHeader};
use crate::tables::{Network, Tables};
use arrivals::Arrivals;
use crossbeam::channel::Sender;
use egress::Begun;
use hashbrown::HashSet;
use hdrhistogram::Histogram;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

/// Frames to receive at a time, and to look through for what GRO can join: that and its head fit [`MAX_PARTS`].
pub const BATCH: usize = MAX_PARTS - 1;
/// Super-frames that are sent in parts at the same time, per worker, and one that is sent at once.
const BEGUN: usize = 9;
/// Frames that wait for the next hop of a VTEP, per worker.
const PARKED: usize = 64;
/// How long they wait.
const PARKED_FOR: Duration = Duration::from_secs(3);

/// What the control thread tells a worker. In order.
pub enum Command {
    /// Run with these from now on; acknowledged in [`Status::epoch`].
    Tables(Arc<Tables>),
    /// Serve this endpoint as the one of a slot.
    Attach {
        /// The network's slot.
        slot: u32,
        /// This worker's side of it.
        endpoint: Box<dyn Endpoint>,
    },
    /// Drop the endpoint of a slot.
    Detach {
        /// The network's slot.
        slot: u32,
    },
    /// Tell what is measured.
    Report(Sender<Report>),
    /// Flush, drop all and end.
    Stop,
}

/// What a worker tells the control thread.
pub enum Event {
    /// Frames wait for the next hop of this VTEP.
    Resolve(IpAddr),
    /// A MAC was seen for the first time, or behind another VTEP than before.
    Learned {
        /// The network's slot.
        slot: u32,
        /// The network.
        vni: Vni,
        /// The MAC.
        mac: Mac,
        /// Where it is.
        vtep: IpAddr,
    },
    /// An endpoint is not served any more and can be dropped.
    Detached {
        /// The network's slot.
        slot: u32,
        /// This worker's side of it.
        endpoint: Box<dyn Endpoint>,
    },
    /// An endpoint broke; the worker does not use it any more.
    EndpointLost {
        /// The network's slot.
        slot: u32,
        /// Why.
        error: io::Error,
    },
}

/// A worker's measurements.
#[derive(Debug, Clone)]
pub struct Report {
    /// Nanoseconds from taking a frame off the NIC to having handed it on: the longest of each turn.
    pub residency: Histogram<u64>,
    /// Frames lost by the NIC queue ([`Nic::lost`]).
    pub lost: u64,
}

/// What others may read while the worker runs.
#[derive(Debug, Default)]
pub struct Status {
    /// Epoch of the tables in use.
    pub epoch: AtomicU64,
    /// Turns of the loop: the heartbeat.
    pub turns: AtomicU64,
    /// All networks together.
    pub counters: Counters,
}

/// A frame that waits for a next hop.
struct Parked {
    slot: u32,
    header: VnetHeader,
    frame: Vec<u8>,
    since: Instant,
}

/// One NIC queue's worker.
pub struct Worker<N: Nic> {
    nic: N,
    queue: usize,
    tables: Arc<Tables>,
    status: Arc<Status>,
    events: Sender<Event>,
    /// An event was sent since [`Worker::take_told`].
    told: bool,
    endpoints: Endpoints,
    /// NIC frames to send with, all in all.
    frames: usize,
    /// Up to three quarters of the NIC frames to receive with, of which there are as many: the NIC needs the others.
    arrivals: Arrivals<N::Frame>,
    /// Turns in a row in which `arrivals` had no room for another batch.
    crowded: u32,
    gro: Gro,
    /// Datagrams that are not whole yet: received, and sent.
    incoming: Fragments,
    outgoing: Fragments,
    /// What is being verified or handed over, and where in each frame the inner one lies.
    batch: Vec<N::Frame>,
    inner: Vec<Range<usize>>,
    /// What endpoints have begun to send; the next part is for their next turn.
    begun: Vec<Begun>,
    /// Who sent last, and since when nobody else has.
    sender: (u32, Instant),
    /// To read into.
    spare: Vec<Box<[u8]>>,
    parked: Vec<Parked>,
    /// Frames that the kernel had not sent at the last flush.
    pending: usize,
    /// VTEPs asked for in this second.
    asked: HashSet<IpAddr>,
    /// Senders told in this second that their destination is dead.
    refused: usize,
    /// What was told of in this second, bounded by [`Endpoints::may_learn`]: slots, MACs, and behind which VTEPs.
    learned: HashSet<(u32, Mac, IpAddr)>,
    started: Instant,
    now: Instant,
    second: u32,
    residency: Histogram<u64>,
}

impl<N: Nic> Worker<N> {
    /// The worker of NIC queue number `queue`; `started` is second 0 of [`crate::tables::Learned::seen`].
    #[must_use]
    pub fn new(
        nic: N,
        queue: usize,
        tables: Arc<Tables>,
        events: Sender<Event>,
        started: Instant,
    ) -> Worker<N> {
        let status = Arc::new(Status::default());
        status.epoch.store(tables.epoch, Release);
        let frames = nic.room();
        Worker {
            nic,
            queue,
            tables,
            status,
            events,
            told: false,
            endpoints: Endpoints::default(),
            frames,
            arrivals: Arrivals::new(frames / 4 * 3),
            crowded: 0,
            gro: Gro::default(),
            incoming: Fragments::default(),
            outgoing: Fragments::default(),
            batch: Vec::new(),
            inner: Vec::new(),
            begun: Vec::new(),
            sender: (0, started),
            spare: vec![vec![0; MAX_FRAME].into(); BEGUN],
            parked: Vec::new(),
            pending: 0,
            asked: HashSet::new(),
            refused: 0,
            learned: HashSet::new(),
            started,
            now: started,
            second: 0,
            residency: Histogram::new_with_max(10_000_000_000, 2).unwrap_or_else(|_| unreachable!()),
        }
    }

    /// What others may read.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// The NIC queue.
    #[must_use]
    pub fn nic(&self) -> &N {
        &self.nic
    }

    /// Runs with new tables, and tries again what waited for them. What was received under the old ones is handed over
    /// before.
    pub fn set_tables(&mut self, tables: Arc<Tables>) {
        self.hand_over(i64::MAX);
        self.endpoints.flush();
        self.tables = tables;
        self.status.epoch.store(self.tables.epoch, Release);
        for parked in mem::take(&mut self.parked) {
            self.send_parked(&parked);
        }
    }

    /// Serves an endpoint.
    pub fn attach(&mut self, slot: u32, endpoint: Box<dyn Endpoint>) {
        self.forget_begun(slot);
        self.endpoints.attach(slot, endpoint);
    }

    /// Forgets an endpoint. Another thread drops it: the end of a device takes the kernel tens of milliseconds.
    pub fn detach(&mut self, slot: u32) {
        self.parked.retain(|parked| parked.slot != slot);
        self.forget_arrivals(slot);
        self.incoming.forget(slot);
        self.forget_begun(slot);
        if let Some(endpoint) = self.endpoints.detach(slot) {
            self.tell(Event::Detached { slot, endpoint });
        }
    }

    /// Notes that an endpoint may have a frame to send.
    pub fn set_ready(&mut self, slot: u32) {
        self.endpoints.set_ready(slot);
    }

    /// What is measured.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { residency: self.residency.clone(), lost: self.nic.lost() }
    }

    /// Whether events were sent since the last call.
    pub fn take_told(&mut self) -> bool {
        mem::take(&mut self.told)
    }

    /// Before the end: gives the kernel some time to send what is queued.
    pub fn drain(&mut self) {
        for _ in 0..100 {
            if self.nic.flush() == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// How soon [`Worker::turn`] is due even if nothing happens: to reap what the kernel has yet to send, or to give
    /// up waiting for a next hop or a fragment. None: not at all.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        // The last flush may have made the room that endpoints waited for.
        let may_send = self.endpoints.ready() > 0 && self.nic.room() >= self.frames / 4 * 3;
        let waits = !(self.parked.is_empty() && self.incoming.is_empty() && self.outgoing.is_empty());
        match (self.pending > 0 || may_send, waits) {
            (true, _) => Some(Duration::from_millis(1)),
            (false, true) => Some(Duration::from_secs(1)),
            (false, false) => None,
        }
    }

    /// Receives and sends for a while, which is short. False if there was nothing to do.
    pub fn turn(&mut self, now: Instant) -> bool {
        self.now = now;
        self.tick();
        self.receive();
        let oldest = self.hand_over(ingress::TURN);
        let sent = self.egress();
        self.endpoints.flush();
        self.pending = self.nic.flush();
        if let Some(since) = oldest {
            self.residency.saturating_record(since.elapsed().as_nanos() as u64);
        }
        self.status.turns.fetch_add(1, Relaxed);
        oldest.is_some() || sent
    }

    /// Once a second: seconds for learned MACs, another chance to tell of them and to ask for next hops, an end to waiting.
    fn tick(&mut self) {
        let second = self.now.saturating_duration_since(self.started).as_secs() as u32;
        if second == self.second {
            return;
        }
        self.second = second;
        self.asked.clear();
        self.learned.clear();
        self.refused = 0;
        let (tables, status, queue) = (&self.tables, &self.status, self.queue);
        for (fragments, reason) in
            [(&mut self.incoming, Drop::RxFragment), (&mut self.outgoing, Drop::TxFragment)]
        {
            fragments.expire(second, |slot, frames| {
                count_drop(status, tables.by_slot(slot), queue, reason, frames);
            });
        }
        let now = self.now;
        let is_over = |parked: &mut Parked| now.saturating_duration_since(parked.since) >= PARKED_FOR;
        let over: Vec<Parked> = self.parked.extract_if(.., is_over).collect();
        over.iter().for_each(|parked| self.send_parked(parked));
    }

    /// A full channel loses nothing that matters: frames of an unknown MAC or next hop tell again, and a broken
    /// endpoint stays unused.
    fn tell(&mut self, event: Event) {
        self.told |= self.events.try_send(event).is_ok();
    }
}

fn count_drop(status: &Status, network: Option<&Network>, queue: usize, reason: Drop, frames: u64) {
    status.counters.dropped(reason, frames);
    if let Some(network) = network {
        network.counters(queue).for_each(|counters| counters.dropped(reason, frames));
    }
}
