//! From the endpoints to the NIC: check, find the way, cut, encapsulate.

use super::parking::{has_room, is_hopeless};
use super::{Event, Parked, Worker, count_drop};
use crate::answer;
use crate::counters::Drop;
use crate::encap::{Outgoing, Route, encap};
use crate::endpoints;
use crate::fragments;
use crate::gso::Gso;
use crate::outer::Patch;
use crate::port::{Nic, VnetHeader};
use crate::rotation::Turn;
use crate::tables::{Hop, Network, Tables};
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::ops::Range;
use std::time::{Duration, Instant};
use uvn_wire::ethernet;
use uvn_wire::packet::{self, Packet};

/// The most that all endpoints together send before the worker looks at its NIC again, in the unit of
/// [`endpoints::cost`]: 22 small frames, or 10 of 1500 bytes. The longer a turn, the longer each endpoint waits for its
/// own.
const TURN: i64 = 24 << 10;
/// An endpoint is read only while this many NIC frames are free, or half of all if that is less: enough for a
/// super-frame of 64 KiB in 536-byte segments.
const ROOM: usize = 128;
/// An endpoint that had more to send than its share needs this many, or three quarters of all: so others find room,
/// however much it sends.
const BACKLOG_ROOM: usize = 256;

/// An endpoint that has been the only one to send for so long has all of a super-frame sent at once. In parts, which
/// let others in between, bulk loses a tenth.
const ALONE: Duration = Duration::from_millis(10);

/// A frame of an endpoint, or the rest of a super-frame.
pub(super) struct Begun {
    pub(super) slot: u32,
    header: VnetHeader,
    pub(super) buffer: Box<[u8]>,
    length: usize,
    /// The next segment to be sent.
    next: usize,
    /// Whether it is a fragment that was held until its datagram was whole.
    is_whole: bool,
}

/// The next frame on the wire, and the number of those that remain; None: all were sent, or dropped.
struct Progress {
    /// The next segment, and the number of those that remain; None: all were sent, or dropped.
    next: Option<(usize, usize)>,
    bytes: usize,
    is_dropped: bool,
}

/// The part of a frame to be sent now, counted in frames on the wire: segments; of a flooded frame, those of all
/// copies.
#[derive(Clone, Copy)]
struct Part {
    from: usize,
    credit: i64,
    /// Whether a fragment waits for the rest of its datagram.
    may_wait: bool,
}

impl Part {
    /// The whole frame.
    const ALL: Part = Part { from: 0, credit: i64::MAX, may_wait: false };

    /// The end of the part: about where the credit ends.
    fn end(self, all: usize, gso: &Gso<'_>) -> usize {
        if all.saturating_sub(self.from) <= 1 {
            return all;
        }
        let affordable = (self.credit / endpoints::cost(1, gso.largest())).max(1);
        all.min(self.from.saturating_add(usize::try_from(affordable).unwrap_or(usize::MAX)))
    }
}

/// The result of reading an endpoint.
enum Read {
    /// The endpoint was read until its credit was used up.
    More,
    /// The endpoint has no more frames.
    Empty,
    /// The NIC has no room for more.
    Full,
}

impl<N: Nic> Worker<N> {
    /// Reads the endpoints that have something to send, by turns. False if none had.
    pub(super) fn egress(&mut self) -> bool {
        let (mut left, mut full) = (TURN, 0);
        while left > 0
            && full < self.endpoints.ready()
            && let Some(turn) = self.endpoints.begin()
        {
            let (cost, read) = self.read(turn);
            full = if matches!(read, Read::Full) { full + 1 } else { 0 };
            left -= cost;
            self.endpoints.end(turn, cost, !matches!(read, Read::Empty));
        }
        left < TURN
    }

    /// Sends frames of one endpoint. Returns their cost, and why reading ended.
    fn read(&mut self, turn: Turn) -> (i64, Read) {
        let room =
            if turn.backlogged { BACKLOG_ROOM.min(self.frames / 4 * 3) } else { ROOM.min(self.frames / 2) };
        let alone = self.is_alone(turn.slot);
        let mut cost = 0;
        while cost < turn.credit {
            let free = self.nic.room();
            if free < room || !self.may_begin(turn.slot) {
                return (cost, Read::Full);
            }
            let mut begun = match self.begin(turn.slot) {
                Ok(Some(begun)) => begun,
                Ok(None) => return (cost, Read::Empty),
                Err(error) => {
                    self.tell(Event::EndpointLost { slot: turn.slot, error });
                    return (cost, Read::Empty);
                }
            };
            // If nobody waits for the rest, or no buffer is left for the next endpoint, as much as the NIC takes is
            // sent now.
            let frame = begun.buffer.get(..begun.length).unwrap_or_default();
            // A broadcast goes by parts, unless there is no buffer for the next endpoint: it may be thousands of copies.
            let is_group = frame.first().is_some_and(|first| first & 1 != 0);
            let at_once = alone && !is_group || self.spare.is_empty();
            let credit = if at_once { i64::MAX } else { turn.credit - cost };
            let part = Part { from: begun.next, credit, may_wait: !begun.is_whole };
            let progress = self.send(turn.slot, begun.header, frame, self.now, part);
            // A frame that is not sent has a cost, too.
            cost += endpoints::cost((free - self.nic.room()).max(1), progress.bytes);
            if begun.is_whole && progress.is_dropped {
                let (left, network) = (self.outgoing.drop_rest(turn.slot), self.tables.by_slot(turn.slot));
                count_drop(&self.status, network, self.queue, Drop::TxFragment, left);
            }
            match progress.next {
                Some((next, _)) => {
                    begun.next = next;
                    self.begun.push(begun);
                }
                None => self.spare.push(begun.buffer),
            }
        }
        (cost, Read::More)
    }

    /// Whether a frame of an endpoint has been begun, or a buffer to read into is left.
    fn may_begin(&self, slot: u32) -> bool {
        !self.spare.is_empty() || self.begun.iter().any(|begun| begun.slot == slot)
    }

    /// Whether no other endpoint has sent anything for a while.
    fn is_alone(&mut self, slot: u32) -> bool {
        if self.sender.0 != slot {
            self.sender = (slot, self.now);
        }
        self.now.saturating_duration_since(self.sender.1) > ALONE
    }

    /// Holds a frame of an endpoint if it is a fragment of a datagram that may become whole.
    fn hold(&mut self, slot: u32, header: VnetHeader, frame: &[u8]) -> bool {
        let is_finished = header.flags & VnetHeader::NEEDS_CHECKSUM == 0;
        let Some(part) = fragments::Part::of(slot, frame).filter(|_| is_finished) else { return false };
        let (tables, status, queue) = (&self.tables, &self.status, self.queue);
        self.outgoing.push(&part, self.second, |slot, frames| {
            count_drop(status, tables.by_slot(slot), queue, Drop::TxFragment, frames);
        });
        true
    }

    /// The frame that an endpoint sends next, if any: the rest of a super-frame or datagram, or else one that is read
    /// from it.
    fn begin(&mut self, slot: u32) -> io::Result<Option<Begun>> {
        if let Some(index) = self.begun.iter().position(|begun| begun.slot == slot) {
            return Ok(Some(self.begun.swap_remove(index)));
        }
        let Some(mut buffer) = self.spare.pop() else { return Ok(None) };
        if let Some(frame) = self.outgoing.next(slot) {
            let (header, length) = (VnetHeader::default(), frame.len());
            buffer.iter_mut().zip(frame).for_each(|(to, from)| *to = *from);
            return Ok(Some(Begun { slot, header, buffer, length, next: 0, is_whole: true }));
        }
        match self.endpoints.receive(slot, &mut buffer) {
            Ok(Some((header, length))) => {
                Ok(Some(Begun { slot, header, buffer, length, next: 0, is_whole: false }))
            }
            nothing => {
                self.spare.push(buffer);
                nothing.map(|_| None)
            }
        }
    }

    /// Forgets the rest of an endpoint's super-frame or datagram.
    pub(super) fn forget_begun(&mut self, slot: u32) {
        self.outgoing.forget(slot);
        if let Some(index) = self.begun.iter().position(|begun| begun.slot == slot) {
            self.spare.push(self.begun.swap_remove(index).buffer);
        }
    }

    /// Sends a part of an endpoint's frame or super-frame; `since` is the time at which it came.
    fn send(&mut self, slot: u32, header: VnetHeader, frame: &[u8], since: Instant, part: Part) -> Progress {
        let mut progress = Progress { next: None, bytes: frame.len(), is_dropped: false };
        let tables = self.tables.clone();
        let Some(network) = tables.by_slot(slot) else { return progress };
        let Ok(packet) = packet::parse(frame) else {
            count_drop(&self.status, Some(network), self.queue, Drop::TxLength, 1);
            return progress;
        };
        let gso = Gso::new(&header, frame, &packet);
        let segments = gso.as_ref().map_or(1, Gso::segments);
        let mut all = segments;
        let result = match (encap(&tables, network, frame, &packet), gso) {
            (Err(reason), _) => Err(reason),
            (Ok(_), Err(_)) => Err(Drop::TxLength),
            (Ok(_), Ok(_)) if part.may_wait && self.hold(slot, header, frame) => Ok(all),
            (Ok(outgoing), Ok(gso)) => match &outgoing.route {
                Route::Absorb => Ok(all),
                Route::Answer(answer, vtep) => {
                    let parked = Parked { slot, vtep: *vtep, header, frame: Vec::new(), since };
                    self.answer_for(&tables, network, answer, parked, frame).map(|()| all)
                }
                Route::Flood => self
                    .flood(slot, &tables, network, &outgoing, &gso, part)
                    .inspect(|_| all = segments * network.flood.len()),
                Route::Vtep(vtep) => match tables.hops.get(vtep) {
                    Some(hop) => {
                        let range = part.from..part.end(segments, &gso);
                        let result = self.transmit(network, hop, &outgoing, &gso, range);
                        if result == Err(Drop::TooBig) {
                            let mtu = hop.largest_inner().saturating_sub(ethernet::HEADER);
                            self.refuse(slot, network, frame, &packet, answer::Error::TooBig(mtu));
                        }
                        result
                    }
                    None if is_hopeless(&tables, *vtep, since, self.now) => {
                        self.unreachable(slot, network, frame, &packet);
                        Err(Drop::NoNextHop)
                    }
                    None => {
                        self.ask(slot, network, *vtep);
                        let parked = Parked { slot, vtep: *vtep, header, frame: Vec::new(), since };
                        let waits = part.from == 0 && self.parking.park(parked, frame);
                        if waits { Ok(all) } else { Err(Drop::NoNextHop) }
                    }
                },
            },
        };
        match result {
            Err(reason) => {
                progress.is_dropped = true;
                let left = all.saturating_sub(part.from) as u64;
                count_drop(&self.status, Some(network), self.queue, reason, left);
            }
            Ok(next) => {
                progress.bytes = frame.len() / segments * next.saturating_sub(part.from);
                progress.next = (next < all).then(|| (next, all - next));
            }
        }
        progress
    }

    /// Answers an endpoint for the VTEP that it asks for, once that is found.
    fn answer_for(
        &mut self,
        tables: &Tables,
        network: &Network,
        answer: &answer::Frame,
        parked: Parked,
        frame: &[u8],
    ) -> Result<(), Drop> {
        let (slot, vtep) = (parked.slot, parked.vtep);
        if tables.hops.contains_key(&vtep) {
            self.answer(slot, network, answer);
            return Ok(());
        }
        // Nothing is answered for a VTEP that does not answer: so the sender's kernel notices, and says so.
        if is_hopeless(tables, vtep, parked.since, self.now) {
            return Err(Drop::NoNextHop);
        }
        self.ask(slot, network, vtep);
        let waits = !tables.dead.contains_key(&vtep) && self.parking.park(parked, frame);
        if waits { Ok(()) } else { Err(Drop::NoNextHop) }
    }

    /// Sends the frames that wait no more: these tables have their next hop, or waiting is in vain.
    pub(super) fn send_settled(&mut self) {
        for parked in self.parking.take(&self.tables, self.now) {
            let progress = self.send(parked.slot, parked.header, &parked.frame, parked.since, Part::ALL);
            if let Some((_, left)) = progress.next {
                let network = self.tables.by_slot(parked.slot);
                count_drop(&self.status, network, self.queue, Drop::NicFull, left as u64);
            }
        }
    }

    /// Builds segments in NIC frames and queues them, as many as there are free frames. Returns the next segment.
    fn transmit(
        &mut self,
        network: &Network,
        hop: &Hop,
        outgoing: &Outgoing,
        gso: &Gso<'_>,
        segments: Range<usize>,
    ) -> Result<usize, Drop> {
        if gso.largest() > hop.largest_inner() {
            return Err(Drop::TooBig);
        }
        let patch = Patch { vni: network.vni, source_port: outgoing.source_port, inner_tos: outgoing.tos };
        let headers = hop.outer.length();
        let (mut next, mut frames, mut bytes) = (segments.start, 0, 0);
        for index in segments {
            let Some(mut frame) = self.nic.reserve() else { break };
            let buffer = self.nic.buffer(&mut frame);
            let written = buffer.get_mut(headers..).and_then(|room| gso.write(index, room));
            let whole = written.and_then(|inner| hop.outer.write(buffer, patch, inner));
            let (Some(inner), Some(length)) = (written, whole) else {
                self.nic.release(frame);
                return Err(Drop::TooBig);
            };
            self.nic.transmit(frame, length);
            next = index + 1;
            frames += 1;
            bytes += inner as u64;
        }
        for counters in network.counters(self.queue).chain([&self.status.counters]) {
            counters.tx_frames.add(frames);
            counters.tx_bytes.add(bytes);
        }
        Ok(next)
    }

    /// Sends copies to the peers of the network, or one to its group: copy by copy, each with all its segments. Returns
    /// the next frame on the wire; the other peers have their turn when the NIC has room again.
    fn flood(
        &mut self,
        slot: u32,
        tables: &Tables,
        network: &Network,
        outgoing: &Outgoing,
        gso: &Gso<'_>,
        part: Part,
    ) -> Result<usize, Drop> {
        let segments = gso.segments();
        let rate = network.flood_rate;
        if part.from == 0 && !self.endpoints.may_flood(slot, self.now, rate, segments) {
            return Err(Drop::FloodLimit);
        }
        if network.flood.is_empty() {
            return Err(Drop::NoDestination);
        }
        let end = part.end(segments * network.flood.len(), gso);
        let mut next = part.from;
        while next < end
            && let Some(vtep) = network.flood.get(next / segments)
        {
            let (first, from) = (next - next % segments, next);
            next = first + segments;
            if tables.local.contains(vtep) && !vtep.is_multicast() {
                continue;
            }
            let sent = match tables.hops.get(vtep) {
                Some(hop) => {
                    let range = from - first..segments.min(end - first);
                    self.transmit(network, hop, outgoing, gso, range)
                }
                None => {
                    self.ask(slot, network, *vtep);
                    Err(Drop::NoNextHop)
                }
            };
            match sent {
                Ok(sent) if sent < segments => return Ok(first + sent),
                Ok(_) => {}
                // Each copy is counted by itself: others may have been sent.
                Err(reason) => {
                    count_drop(&self.status, Some(network), self.queue, reason, (next - from) as u64);
                }
            }
        }
        Ok(next)
    }

    /// Asks the control thread for a next hop, once a second at most.
    pub(super) fn ask(&mut self, slot: u32, network: &Network, vtep: IpAddr) {
        if !self.parking.may_ask(slot, vtep) {
            return;
        }
        let vni = network.vni;
        if !self.parking.has_unsaid() && has_room(&self.events) {
            self.tell(Event::Resolve { vni, vtep });
        } else {
            self.parking.ask_later(vni, vtep);
        }
    }

    /// Asks for the VTEPs for which the channel had no room.
    pub(super) fn say_unsaid(&mut self) {
        while let Some((vni, vtep)) = self.parking.take_unsaid(&self.events) {
            self.tell(Event::Resolve { vni, vtep });
        }
    }

    /// Tells the sender of a frame that its destination is dead, as a kernel does if a neighbour does not answer.
    fn unreachable(&mut self, slot: u32, network: &Network, frame: &[u8], packet: &Packet<'_>) {
        if self.parking.may_refuse(slot) {
            self.refuse(slot, network, frame, packet, answer::Error::Unreachable);
        }
    }

    /// Tells the sender of a frame why it is dropped.
    fn refuse(
        &mut self,
        slot: u32,
        network: &Network,
        frame: &[u8],
        packet: &Packet<'_>,
        error: answer::Error,
    ) {
        if let Some(answer) = answer::error(frame, packet, error) {
            self.answer(slot, network, &answer);
        }
    }

    /// Hands a frame of the worker's own to the endpoint.
    fn answer(&mut self, slot: u32, network: &Network, answer: &answer::Frame) {
        match self.endpoints.send(slot, &VnetHeader::default(), &[IoSlice::new(answer.bytes())]) {
            Ok(true) => {}
            Ok(false) => count_drop(&self.status, Some(network), self.queue, Drop::EndpointFull, 1),
            Err(error) => self.tell(Event::EndpointLost { slot, error }),
        }
    }
}
