//! The worker of one NIC queue: ingress, egress, flush. No lock, no allocation, no log and no clock read per packet.
//!
//! It owns its queue and its side of every endpoint, and learns of changes only between turns ([`Command`]).

use crate::answer;
use crate::counters::{Counters, Drop};
use crate::decap::{self, decap};
use crate::encap::{Outgoing, Route, encap};
use crate::endpoints::Endpoints;
use crate::gro::{Delivery, Gro};
use crate::gso::Gso;
use crate::outer::Patch;
use crate::port::{Endpoint, MAX_FRAME, MAX_PARTS, Nic, VnetHeader};
use crate::tables::{Hop, Network, Tables};
use crossbeam::channel::Sender;
use hashbrown::HashSet;
use hdrhistogram::Histogram;
use std::io::{self, IoSlice};
use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};
use std::time::{Duration, Instant};
use uvn_wire::ethernet::{self, Mac};
use uvn_wire::packet::{self, Packet};
use uvn_wire::vxlan::Vni;

/// Frames to receive in one turn: what GRO joins of them, and its head, fit [`MAX_PARTS`].
pub const BATCH: usize = MAX_PARTS - 1;
/// Frames that one endpoint may queue in a turn before others have theirs.
const EGRESS_BUDGET: usize = 64;
/// An endpoint is read only while this many NIC frames are free: a super-frame of 64 KiB in 536-byte segments.
const EGRESS_ROOM: usize = 128;
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
    /// Nanoseconds from taking a batch off the NIC to having handed all of it on, once per batch.
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
    gro: Gro,
    /// The batch being received, and where in each frame the inner one lies.
    batch: Vec<N::Frame>,
    inner: Vec<Range<usize>>,
    buffer: Box<[u8]>,
    parked: Vec<Parked>,
    /// Frames that the kernel had not sent at the last flush.
    pending: usize,
    /// VTEPs asked for in this second.
    asked: HashSet<IpAddr>,
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
        Worker {
            nic,
            queue,
            tables,
            status,
            events,
            told: false,
            endpoints: Endpoints::default(),
            gro: Gro::default(),
            batch: Vec::new(),
            inner: Vec::new(),
            buffer: vec![0; MAX_FRAME].into(),
            parked: Vec::new(),
            pending: 0,
            asked: HashSet::new(),
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

    /// Runs with new tables, and tries again what waited for them.
    pub fn set_tables(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
        self.status.epoch.store(self.tables.epoch, Release);
        for parked in mem::take(&mut self.parked) {
            self.send(parked.slot, parked.header, &parked.frame, parked.since);
        }
    }

    /// Serves an endpoint.
    pub fn attach(&mut self, slot: u32, endpoint: Box<dyn Endpoint>) {
        self.endpoints.attach(slot, endpoint);
    }

    /// Forgets an endpoint. Another thread drops it: the end of a device takes the kernel tens of milliseconds.
    pub fn detach(&mut self, slot: u32) {
        self.parked.retain(|parked| parked.slot != slot);
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
    /// up waiting for a next hop. None: not at all.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        match (self.pending, self.parked.is_empty()) {
            (0, true) => None,
            (0, false) => Some(Duration::from_secs(1)),
            _ => Some(Duration::from_millis(1)),
        }
    }

    /// Receives and sends once. False if there was nothing to do.
    pub fn turn(&mut self, now: Instant) -> bool {
        self.now = now;
        self.tick();
        let received = self.ingress();
        let sent = self.egress();
        self.endpoints.flush();
        self.pending = self.nic.flush();
        if received > 0 {
            let nanoseconds = now.elapsed().as_nanos() as u64;
            self.residency.saturating_record(nanoseconds);
        }
        self.status.turns.fetch_add(1, Relaxed);
        received > 0 || sent
    }

    /// Once a second: seconds for learned MACs, another chance to ask for next hops, an end to waiting.
    fn tick(&mut self) {
        let second = self.now.saturating_duration_since(self.started).as_secs() as u32;
        if second == self.second {
            return;
        }
        self.second = second;
        self.asked.clear();
        let (now, tables, status, queue) = (self.now, &self.tables, &self.status, self.queue);
        self.parked.retain(|parked| {
            let keep = now.saturating_duration_since(parked.since) < PARKED_FOR;
            if !keep {
                count_drop(status, tables.by_slot(parked.slot), queue, Drop::NoNextHop, 1);
            }
            keep
        });
    }

    fn ingress(&mut self) -> usize {
        let mut batch = mem::take(&mut self.batch);
        let count = self.nic.receive(&mut batch);
        if count > 0 {
            let tables = self.tables.clone();
            self.inner.clear();
            for (index, frame) in batch.iter_mut().enumerate() {
                let inner = self.verify(&tables, index as u32, frame);
                self.inner.push(inner);
            }
            self.deliver(&tables, &batch);
            for frame in batch.drain(..) {
                self.nic.release(frame);
            }
        }
        self.batch = batch;
        count
    }

    /// Decapsulates a frame and hands it to GRO; where the inner frame lies.
    fn verify(&mut self, tables: &Tables, index: u32, frame: &mut N::Frame) -> Range<usize> {
        let received = match decap(tables, self.nic.bytes(frame), self.second) {
            Ok(received) => received,
            Err(rejected) => {
                let network = rejected.slot.and_then(|slot| tables.by_slot(slot));
                count_drop(&self.status, network, self.queue, rejected.reason, 1);
                return 0..0;
            }
        };
        if let Some(mac) = received.learn
            && let Some(network) = tables.by_slot(received.slot)
        {
            self.tell(Event::Learned { slot: received.slot, vni: network.vni, mac, vtep: received.vtep });
        }
        if let Some(ecn) = received.ecn {
            decap::set_ecn(&mut self.nic.bytes_mut(frame)[received.inner.clone()], ecn);
        }
        let offloads = self.endpoints.offloads(received.slot);
        let inner = &self.nic.bytes(frame)[received.inner.clone()];
        if let Ok(packet) = packet::parse(inner) {
            self.gro.push(received.slot, index, inner, &packet, offloads);
        }
        received.inner
    }

    /// Writes what GRO made of the batch to the endpoints.
    fn deliver(&mut self, tables: &Tables, batch: &[N::Frame]) {
        let mut gro = mem::take(&mut self.gro);
        gro.flush(|delivery| {
            let inner = |index: u32| {
                let frame = batch.get(index as usize).map(|frame| self.nic.bytes(frame));
                frame.and_then(|bytes| bytes.get(self.inner.get(index as usize)?.clone())).unwrap_or_default()
            };
            let (slot, frames, bytes, sent) = match &delivery {
                Delivery::Single { network, index } => {
                    let frame = inner(*index);
                    let parts = [IoSlice::new(frame)];
                    let sent = self.endpoints.send(*network, &VnetHeader::default(), &parts);
                    (*network, 1, frame.len(), sent)
                }
                Delivery::Super(coalesced) => {
                    let mut parts = [IoSlice::new(coalesced.head()); MAX_PARTS];
                    let mut bytes = coalesced.segments() * coalesced.head().len();
                    for (part, (index, range)) in parts[1..].iter_mut().zip(coalesced.parts()) {
                        *part = IoSlice::new(inner(index).get(range).unwrap_or_default());
                        bytes += part.len();
                    }
                    let parts = parts.get(..=coalesced.segments()).unwrap_or_default();
                    let sent = self.endpoints.send(coalesced.network(), &coalesced.header(), parts);
                    (coalesced.network(), coalesced.segments() as u64, bytes, sent)
                }
            };
            let Some(network) = tables.by_slot(slot) else { return };
            if sent.as_ref().is_ok_and(|sent| *sent) {
                for counters in [&self.status.counters, &network.counters[self.queue]] {
                    counters.rx_frames.add(frames);
                    counters.rx_bytes.add(bytes as u64);
                }
            } else {
                count_drop(&self.status, Some(network), self.queue, Drop::EndpointFull, frames);
            }
            if let Err(error) = sent {
                self.tell(Event::EndpointLost { slot, error });
            }
        });
        self.gro = gro;
    }

    /// Reads the endpoints that have something to send, each up to its budget. False if none had.
    fn egress(&mut self) -> bool {
        let mut sent = false;
        let mut buffer = mem::take(&mut self.buffer);
        for _ in 0..self.endpoints.ready() {
            let Some(slot) = self.endpoints.next_ready() else { break };
            sent |= self.read(slot, &mut buffer);
        }
        self.buffer = buffer;
        sent
    }

    /// Sends frames of one endpoint, which stays ready while it may have more. False if it had none.
    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> bool {
        let mut any = false;
        let room = self.nic.room();
        while self.nic.room() >= EGRESS_ROOM && room - self.nic.room() < EGRESS_BUDGET {
            match self.endpoints.receive(slot, buffer) {
                Ok(Some((header, length))) => {
                    any = true;
                    self.send(slot, header, buffer.get(..length).unwrap_or_default(), self.now);
                }
                Ok(None) => return any,
                Err(error) => {
                    self.tell(Event::EndpointLost { slot, error });
                    return any;
                }
            }
        }
        self.endpoints.set_ready(slot);
        any
    }

    /// A full channel loses nothing that matters: frames of an unknown MAC or next hop tell again, and a broken
    /// endpoint stays unused.
    fn tell(&mut self, event: Event) {
        self.told |= self.events.try_send(event).is_ok();
    }

    /// Sends one frame or super-frame of an endpoint; `since` is when it came.
    fn send(&mut self, slot: u32, header: VnetHeader, frame: &[u8], since: Instant) {
        let tables = self.tables.clone();
        let Some(network) = tables.by_slot(slot) else { return };
        let Ok(packet) = packet::parse(frame) else {
            return count_drop(&self.status, Some(network), self.queue, Drop::TxLength, 1);
        };
        let gso = Gso::new(&header, frame, &packet);
        let frames = gso.as_ref().map_or(1, |gso| gso.segments() as u64);
        let result = match (encap(&tables, network, frame, &packet), gso) {
            (Err(reason), _) => Err(reason),
            (Ok(_), Err(_)) => Err(Drop::TxLength),
            (Ok(outgoing), Ok(gso)) => match &outgoing.route {
                Route::Absorb => Ok(()),
                Route::Answer(answer, vtep) => {
                    if !tables.hops.contains_key(vtep) {
                        self.ask(*vtep);
                    }
                    self.answer(slot, network, answer);
                    Ok(())
                }
                Route::Flood => self.flood(slot, &tables, network, &outgoing, &gso),
                Route::Vtep(vtep) => match tables.hops.get(vtep) {
                    Some(hop) => {
                        let result = self.transmit(network, hop, &outgoing, &gso);
                        if result == Err(Drop::TooBig) {
                            self.too_big(slot, network, hop, frame, &packet);
                        }
                        result
                    }
                    None => {
                        self.ask(*vtep);
                        if self.park(slot, header, frame, since) { Ok(()) } else { Err(Drop::NoNextHop) }
                    }
                },
            },
        };
        if let Err(reason) = result {
            count_drop(&self.status, Some(network), self.queue, reason, frames);
        }
    }

    /// Builds the segments in NIC frames and queues them.
    fn transmit(
        &mut self,
        network: &Network,
        hop: &Hop,
        outgoing: &Outgoing,
        gso: &Gso<'_>,
    ) -> Result<(), Drop> {
        if gso.largest() > largest_inner(hop) {
            return Err(Drop::TooBig);
        }
        let patch = Patch { vni: network.vni, source_port: outgoing.source_port, inner_tos: outgoing.tos };
        let headers = hop.outer.length();
        let (mut frames, mut bytes) = (0, 0);
        for index in 0..gso.segments() {
            let Some(mut frame) = self.nic.reserve() else {
                let left = (gso.segments() - index) as u64;
                count_drop(&self.status, Some(network), self.queue, Drop::NicFull, left);
                break;
            };
            let buffer = self.nic.buffer(&mut frame);
            let written = buffer.get_mut(headers..).and_then(|room| gso.write(index, room));
            let whole = written.and_then(|inner| hop.outer.write(buffer, patch, inner));
            let (Some(inner), Some(length)) = (written, whole) else {
                self.nic.release(frame);
                return Err(Drop::TooBig);
            };
            self.nic.transmit(frame, length);
            frames += 1;
            bytes += inner as u64;
        }
        for counters in [&self.status.counters, &network.counters[self.queue]] {
            counters.tx_frames.add(frames);
            counters.tx_bytes.add(bytes);
        }
        Ok(())
    }

    /// Sends a copy to each peer of the network, or one to its group.
    fn flood(
        &mut self,
        slot: u32,
        tables: &Tables,
        network: &Network,
        outgoing: &Outgoing,
        gso: &Gso<'_>,
    ) -> Result<(), Drop> {
        let rate = network.flood_rate.div_ceil(network.counters.len() as u32);
        let allowed = self.endpoints.may_flood(slot, self.now, rate, gso.segments());
        if !allowed {
            return Err(Drop::FloodLimit);
        }
        if network.flood.is_empty() {
            return Err(Drop::NoDestination);
        }
        let mut result = Ok(());
        for vtep in &network.flood {
            if tables.local.contains(vtep) && !is_multicast(*vtep) {
                continue;
            }
            result = match tables.hops.get(vtep) {
                Some(hop) => self.transmit(network, hop, outgoing, gso),
                None => {
                    self.ask(*vtep);
                    Err(Drop::NoNextHop)
                }
            };
        }
        result
    }

    /// Asks the control thread for a next hop, once a second at most.
    fn ask(&mut self, vtep: IpAddr) {
        if self.asked.len() < PARKED && self.asked.insert(vtep) {
            self.tell(Event::Resolve(vtep));
        }
    }

    /// Keeps a frame until the next tables. False if there is no room, or it has waited long enough.
    fn park(&mut self, slot: u32, header: VnetHeader, frame: &[u8], since: Instant) -> bool {
        let fits = self.parked.len() < PARKED && self.now.saturating_duration_since(since) < PARKED_FOR;
        if fits {
            self.parked.push(Parked { slot, header, frame: frame.to_vec(), since });
        }
        fits
    }

    /// Tells the sender of a frame what would fit.
    fn too_big(&mut self, slot: u32, network: &Network, hop: &Hop, frame: &[u8], packet: &Packet<'_>) {
        let mtu = largest_inner(hop).saturating_sub(ethernet::HEADER);
        if let Some(answer) = answer::too_big(frame, packet, mtu) {
            self.answer(slot, network, &answer);
        }
    }

    /// Hands a frame of our own to the endpoint.
    fn answer(&mut self, slot: u32, network: &Network, answer: &answer::Frame) {
        match self.endpoints.send(slot, &VnetHeader::default(), &[IoSlice::new(answer.bytes())]) {
            Ok(true) => {}
            Ok(false) => count_drop(&self.status, Some(network), self.queue, Drop::EndpointFull, 1),
            Err(error) => self.tell(Event::EndpointLost { slot, error }),
        }
    }
}

/// The longest inner frame that fits the path's MTU: the outer Ethernet header does not count.
fn largest_inner(hop: &Hop) -> usize {
    (hop.mtu + ethernet::HEADER).saturating_sub(hop.outer.length())
}

const fn is_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

fn count_drop(status: &Status, network: Option<&Network>, queue: usize, reason: Drop, frames: u64) {
    status.counters.dropped(reason, frames);
    if let Some(network) = network {
        network.counters[queue].dropped(reason, frames);
    }
}
