//! From the NIC to the endpoints: verify, join, hand over.

use super::arrivals::{self, Arrived};
use super::{BATCH, Event, Worker, count_drop};
use crate::counters::Drop;
use crate::decap::{self, decap};
use crate::fragments::Part;
use crate::gro::Delivery;
use crate::port::{MAX_PARTS, Nic, VnetHeader};
use crate::rotation::Turn;
use crate::tables::{Network, Tables};
use std::io::IoSlice;
use std::mem;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Instant;
use uvn_wire::ethernet::Mac;
use uvn_wire::packet;

/// The most that is handed to all endpoints together before the worker goes on, in the unit of [`arrivals::cost`]: 21
/// small frames, or the frames of one super-frame.
pub(super) const TURN: i64 = 96 << 10;
/// The most batches that are taken off the NIC in one turn: there are also frames to send.
const BATCHES: usize = 8;
/// The number of turns that a burst may wait in the NIC's ring. If it is there for longer, it is a flood, behind which
/// others wait.
const PATIENCE: u32 = 8;

impl<N: Nic> Worker<N> {
    /// Takes arrived frames off the NIC, and queues them for the endpoints.
    pub(super) fn receive(&mut self) {
        let mut batch = mem::take(&mut self.batch);
        for _ in 0..BATCHES {
            if self.arrivals.room() < BATCH && self.crowded < PATIENCE {
                break;
            }
            let count = self.nic.receive(&mut batch);
            if count > 0 {
                let tables = self.tables.clone();
                for frame in batch.drain(..) {
                    self.queue(&tables, frame);
                }
            }
            if count < BATCH {
                break;
            }
        }
        self.batch = batch;
        self.crowded = if self.arrivals.room() < BATCH { self.crowded.saturating_add(1) } else { 0 };
    }

    /// Queues a frame for its endpoint, if it is valid.
    fn queue(&mut self, tables: &Tables, mut frame: N::Frame) {
        let Some((slot, inner)) = self.verify(tables, &mut frame) else { return self.nic.release(frame) };
        let arrived = Arrived { frame, inner, since: self.now };
        if let Some((slot, lost)) = self.arrivals.push(slot, arrived) {
            count_drop(&self.status, tables.by_slot(slot), self.queue, Drop::EndpointFull, 1);
            self.nic.release(lost);
        }
    }

    /// Decapsulates a frame. Returns its slot, and the place of the inner frame in it.
    fn verify(&mut self, tables: &Tables, frame: &mut N::Frame) -> Option<(u32, Range<usize>)> {
        let received = match decap(tables, self.nic.bytes(frame), self.second) {
            Ok(received) => received,
            Err(rejected) => {
                let network = rejected.slot.and_then(|slot| tables.by_slot(slot));
                count_drop(&self.status, network, self.queue, rejected.reason, 1);
                return None;
            }
        };
        if let Some(mac) = received.learn
            && let Some(network) = tables.by_slot(received.slot)
        {
            self.tell_of(received.slot, network, mac, received.vtep);
        }
        if let Some(ecn) = received.ecn {
            decap::set_ecn(&mut self.nic.bytes_mut(frame)[received.inner.clone()], ecn);
        }
        Some((received.slot, received.inner))
    }

    /// Reports where a MAC is, once a second: the control thread may have no room for it, and its frames keep coming. A
    /// move is reported at once.
    fn tell_of(&mut self, slot: u32, network: &Network, mac: Mac, vtep: IpAddr) {
        let known = network.fdb.get(&mac).map(|learned| learned.vtep);
        let before = self.learned.get(&(slot, mac)).copied();
        let has_moved = before.is_some() || known.is_some();
        if before != Some((vtep, known)) && self.endpoints.may_learn(slot, self.second, has_moved) {
            self.learned.insert((slot, mac), (vtep, known));
            self.tell(Event::Learned { slot, vni: network.vni, mac, vtep });
        }
    }

    /// Hands frames to the endpoints by turns until their cost reaches `left`. Returns when the oldest of them was
    /// received; None: there were none.
    pub(super) fn hand_over(&mut self, mut left: i64) -> Option<Instant> {
        let mut oldest: Option<Instant> = None;
        let tables = (!self.arrivals.is_empty()).then(|| self.tables.clone())?;
        while left > 0
            && let Some(turn) = self.arrivals.begin()
        {
            let (cost, since) = self.serve(&tables, turn);
            oldest = oldest.min(since).or(since);
            left -= cost;
            self.arrivals.end(turn, cost);
        }
        oldest
    }

    /// Hands frames to one endpoint. Returns their cost, and when the first of them was received.
    fn serve(&mut self, tables: &Tables, turn: Turn) -> (i64, Option<Instant>) {
        let mut batch = mem::take(&mut self.batch);
        let offloads = self.endpoints.offloads(turn.slot);
        let (mut bytes, mut first, mut fragments, mut is_whole) = (0, None, 0, false);
        self.inner.clear();
        // Of a super-frame, only the delivery must be covered, or it would be cut short; the rest may become a debt.
        while !is_whole
            && arrivals::cost(self.gro.deliveries(), 0, 0) < turn.credit
            && batch.len() + fragments < BATCH
            && let Some(arrived) = self.arrivals.pop(turn.slot)
        {
            let inner = &self.nic.bytes(&arrived.frame)[arrived.inner.clone()];
            if let Some(part) = Part::of(turn.slot, inner).filter(|_| come_together(tables, turn.slot)) {
                bytes += inner.len();
                fragments += 1;
                let (status, queue) = (&self.status, self.queue);
                is_whole = self.incoming.push(&part, self.second, |slot, frames| {
                    count_drop(status, tables.by_slot(slot), queue, Drop::RxFragment, frames);
                });
                first = first.or(Some(arrived.since));
                self.nic.release(arrived.frame);
                continue;
            }
            if let Ok(packet) = packet::parse(inner) {
                self.gro.push(turn.slot, batch.len() as u32, inner, &packet, offloads);
            }
            bytes += inner.len();
            first = first.or(Some(arrived.since));
            batch.push(arrived.frame);
            self.inner.push(arrived.inner);
        }
        let deliveries = self.gro.deliveries();
        self.deliver(tables, &batch);
        // After the frames that came before its last fragment.
        let delivered = if is_whole { self.deliver_datagram(tables, turn.slot) } else { 0 };
        let cost = arrivals::cost(deliveries + delivered, batch.len() + fragments, bytes);
        for frame in batch.drain(..) {
            self.nic.release(frame);
        }
        self.batch = batch;
        (cost, first)
    }

    /// Hands over a datagram that has become whole, fragment by fragment. Returns the number of fragments.
    fn deliver_datagram(&mut self, tables: &Tables, slot: u32) -> usize {
        let Some(network) = tables.by_slot(slot) else { return 0 };
        let mut delivered = 0;
        while let Some(frame) = self.incoming.next(slot) {
            let sent = self.endpoints.send(slot, &VnetHeader::default(), &[IoSlice::new(frame)]);
            let bytes = frame.len() as u64;
            if !sent.as_ref().is_ok_and(|sent| *sent) {
                let left = 1 + self.incoming.drop_rest(slot);
                count_drop(&self.status, Some(network), self.queue, Drop::EndpointFull, left);
            } else {
                for counters in network.counters(self.queue).chain([&self.status.counters]) {
                    counters.rx_frames.add(1);
                    counters.rx_bytes.add(bytes);
                }
            }
            if let Err(error) = sent {
                self.tell(Event::EndpointLost { slot, error });
            }
            delivered += 1;
        }
        delivered
    }

    /// Drops the frames that wait for the endpoint of a slot.
    pub(super) fn forget_arrivals(&mut self, slot: u32) {
        while let Some(arrived) = self.arrivals.pop(slot) {
            count_drop(&self.status, self.tables.by_slot(slot), self.queue, Drop::EndpointFull, 1);
            self.nic.release(arrived.frame);
        }
        self.arrivals.remove(slot);
    }

    /// Writes the frames that GRO has made of the batch to the endpoints.
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
                for counters in network.counters(self.queue).chain([&self.status.counters]) {
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
}

/// Whether all fragments of a datagram come to one worker. uvn and the kernel send them from one port; the behaviour of
/// peers of other makes, which only learning networks have, is not known.
fn come_together(tables: &Tables, slot: u32) -> bool {
    tables.by_slot(slot).is_none_or(|network| !network.learning || network.counters.len() == 1)
}
