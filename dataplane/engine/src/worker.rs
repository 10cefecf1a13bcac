//! The worker of one NIC queue: it receives, sends and flushes. No lock, allocation, log or clock read per packet.
//!
//! It owns its queue and its side of every endpoint, and takes changes ([`Command`]) only between turns.

mod arrivals;
mod egress;
mod ingress;
mod parking;

use crate::counters::{Counters, Drop};
use crate::endpoints::Endpoints;
use crate::fragments::Fragments;
use crate::gro::Gro;
use crate::port::{Endpoint, MAX_FRAME, MAX_PARTS, Nic, VnetHeader};
use crate::tables::{Network, Tables};
use arrivals::Arrivals;
use crossbeam::channel::Sender;
use egress::Begun;
use hashbrown::HashMap;
use hdrhistogram::Histogram;
use parking::Parking;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;

/// Frames to receive at a time, among which GRO joins segments: so many payloads and a head fit [`MAX_PARTS`].
pub const BATCH: usize = MAX_PARTS - 1;
/// The most super-frames that a worker has sent in part, and one more that is sent at once.
const BEGUN: usize = 9;
/// How long frames wait for the next hop of a VTEP.
const PARKED_FOR: Duration = Duration::from_secs(3);

/// The messages of the control thread to a worker, in order.
pub enum Command {
    /// Use these tables from now on; acknowledged in [`Status::epoch`].
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
    /// Send a report.
    Report(Sender<Report>),
    /// Flush, drop everything and end.
    Stop,
}

/// The messages of a worker to the control thread.
pub enum Event {
    /// Frames of a network wait for the next hop of a VTEP.
    Resolve {
        /// The network, which has its own share of the look-ups.
        vni: Vni,
        /// The VTEP.
        vtep: IpAddr,
    },
    /// A MAC was seen for the first time, or behind another VTEP than before.
    Learned {
        /// The network's slot.
        slot: u32,
        /// The network.
        vni: Vni,
        /// The MAC.
        mac: Mac,
        /// The VTEP behind which it is.
        vtep: IpAddr,
    },
    /// An endpoint is no longer served and can be dropped.
    Detached {
        /// The network's slot.
        slot: u32,
        /// This worker's side of it.
        endpoint: Box<dyn Endpoint>,
    },
    /// An endpoint broke; the worker no longer uses it.
    EndpointLost {
        /// The network's slot.
        slot: u32,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// A worker's measurements.
#[derive(Debug, Clone)]
pub struct Report {
    /// Nanoseconds from taking a frame off the NIC to having handed it on: the longest time in each turn.
    pub residency: Histogram<u64>,
    /// Frames lost by the NIC queue ([`Nic::lost`]).
    pub lost: u64,
}

/// The state of a running worker that other threads may read.
#[derive(Debug, Default)]
pub struct Status {
    /// Epoch of the tables in use.
    pub epoch: AtomicU64,
    /// Turns of the loop so far: the heartbeat.
    pub turns: AtomicU64,
    /// The counters of all networks together.
    pub counters: Counters,
}

/// A frame that waits for a next hop.
struct Parked {
    slot: u32,
    vtep: IpAddr,
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
    /// Whether an event was sent since [`Worker::take_told`].
    told: bool,
    endpoints: Endpoints,
    /// The number of NIC frames to send with.
    frames: usize,
    /// Received frames that wait: at most three quarters of the frames to receive with (as many as to send with), since
    /// the NIC needs the others.
    arrivals: Arrivals<N::Frame>,
    /// Turns in a row in which `arrivals` had no room for another batch.
    crowded: u32,
    gro: Gro,
    /// Datagrams that are not whole yet: received ones, and sent ones.
    incoming: Fragments,
    outgoing: Fragments,
    /// The frames being verified or handed over, and the place of the inner frame in each.
    batch: Vec<N::Frame>,
    inner: Vec<Range<usize>>,
    /// Super-frames that endpoints have sent in part; the rest waits for their next turns.
    begun: Vec<Begun>,
    /// The slot that sent last, and since when no other slot has.
    sender: (u32, Instant),
    /// Buffers to read frames into.
    spare: Vec<Box<[u8]>>,
    parking: Parking,
    /// The number of frames that the kernel had not sent at the last flush.
    pending: usize,
    /// MACs reported in this second, bounded by [`Endpoints::may_learn`]: the last VTEP of each, and the one that the tables
    /// had then.
    learned: HashMap<(u32, Mac), (IpAddr, Option<IpAddr>)>,
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
            parking: Parking::default(),
            pending: 0,
            learned: HashMap::new(),
            started,
            now: started,
            second: 0,
            residency: Histogram::new_with_max(10_000_000_000, 2).unwrap_or_else(|_| unreachable!()),
        }
    }

    /// The state that other threads may read.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// The NIC queue.
    #[must_use]
    pub fn nic(&self) -> &N {
        &self.nic
    }

    /// Switches to new tables, after handing over what was received under the old ones. Tries parked frames again.
    pub fn set_tables(&mut self, tables: Arc<Tables>) {
        self.hand_over(i64::MAX);
        self.endpoints.flush();
        let before = mem::replace(&mut self.tables, tables);
        self.status.epoch.store(self.tables.epoch, Release);
        let (hops, dead) = (&self.tables.hops, &self.tables.dead);
        if !(Arc::ptr_eq(&before.hops, hops) && Arc::ptr_eq(&before.dead, dead)) {
            self.parking.forget_answered(&self.tables);
            self.send_settled();
        }
    }

    /// Serves an endpoint.
    pub fn attach(&mut self, slot: u32, endpoint: Box<dyn Endpoint>) {
        self.forget_begun(slot);
        self.endpoints.attach(slot, endpoint);
    }

    /// Forgets an endpoint, and hands it to the control thread: the kernel takes tens of milliseconds to end a device.
    pub fn detach(&mut self, slot: u32) {
        self.parking.forget(slot);
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

    /// The measurements so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { residency: self.residency.clone(), lost: self.nic.lost() }
    }

    /// Whether events were sent since the last call.
    pub fn take_told(&mut self) -> bool {
        mem::take(&mut self.told)
    }

    /// Before the end, gives the kernel some time to send what is queued.
    pub fn drain(&mut self) {
        for _ in 0..100 {
            if self.nic.flush() == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// How soon [`Worker::turn`] is due even if nothing happens: to take back frames that the kernel has yet to send,
    /// or to give up waiting for a next hop or a fragment. None: only when something happens.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        // The last flush may have made room that endpoints waited for.
        let may_send = self.endpoints.ready() > 0 && self.nic.room() >= self.frames / 4 * 3;
        let waits = !(self.parking.is_empty() && self.incoming.is_empty() && self.outgoing.is_empty());
        match (self.pending > 0 || may_send || self.parking.has_unsaid() || self.parking.has_settled(), waits)
        {
            (true, _) => Some(Duration::from_millis(1)),
            (false, true) => Some(Duration::from_secs(1)),
            (false, false) => None,
        }
    }

    /// Receives and sends for a short while. False: there was nothing to do.
    pub fn turn(&mut self, now: Instant) -> bool {
        self.now = now;
        self.tick();
        self.receive();
        let oldest = self.hand_over(ingress::TURN);
        let sent = self.egress();
        self.say_unsaid();
        if self.parking.has_settled() {
            self.send_settled();
        }
        self.endpoints.flush();
        self.pending = self.nic.flush();
        if let Some(since) = oldest {
            self.residency.saturating_record(since.elapsed().as_nanos() as u64);
        }
        self.status.turns.fetch_add(1, Relaxed);
        oldest.is_some() || sent
    }

    /// Once a second: new limits on reports of MACs and next hops, and an end to waiting for fragments and next hops.
    fn tick(&mut self) {
        let second = self.now.saturating_duration_since(self.started).as_secs() as u32;
        if second == self.second {
            return;
        }
        self.second = second;
        self.parking.tick();
        self.learned.clear();
        let (tables, status, queue) = (&self.tables, &self.status, self.queue);
        for (fragments, reason) in
            [(&mut self.incoming, Drop::RxFragment), (&mut self.outgoing, Drop::TxFragment)]
        {
            fragments.expire(second, |slot, frames| {
                count_drop(status, tables.by_slot(slot), queue, reason, frames);
            });
        }
        self.send_settled();
        let tables = self.tables.clone();
        for (slot, vtep) in self.parking.vteps(&tables, self.now) {
            if let Some(network) = tables.by_slot(slot) {
                self.ask(slot, network, vtep);
            }
        }
    }

    /// Sends an event. A full channel loses nothing that matters: later frames with an unknown MAC or next hop cause
    /// the event again, and a broken endpoint stays unused.
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
