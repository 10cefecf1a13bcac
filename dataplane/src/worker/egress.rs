//! From the endpoints to the NIC: check, find the way, cut, encapsulate.

use super::{Event, PARKED, PARKED_FOR, Parked, Worker, count_drop};
use crate::answer;
use crate::counters::Drop;
use crate::encap::{Outgoing, Route, encap};
use crate::endpoints;
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

/// What all endpoints together may send before the worker looks at its NIC again, in the unit of [`endpoints::cost`]: 22
/// small frames, or 10 of 1500 bytes. The longer a turn, the longer everyone waits for his.
const TURN: i64 = 24 << 10;
/// An endpoint is read only while this many NIC frames are free, or half of all: a super-frame of 64 KiB in 536-byte
/// segments.
const ROOM: usize = 128;
/// One that had more to send than its share needs more, or three quarters: so others find room, however much it sends.
const BACKLOG_ROOM: usize = 256;

/// Who has been the only one to send for so long gets all of a super-frame sent at once. In parts, which let others in
/// between, bulk loses a tenth.
const ALONE: Duration = Duration::from_millis(10);

/// A frame of an endpoint, or what is left of a super-frame.
pub(super) struct Begun {
    pub(super) slot: u32,
    header: VnetHeader,
    pub(super) buffer: Box<[u8]>,
    length: usize,
    /// The next segment to be sent.
    next: usize,
}

/// How far a frame was sent.
struct Progress {
    /// The next segment; None: all of it was sent, or dropped.
    next: Option<usize>,
    bytes: usize,
}

/// What came of reading an endpoint.
enum Read {
    /// It was read until its credit was used up.
    More,
    /// It has no more.
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

    /// Sends frames of one endpoint; what that cost.
    fn read(&mut self, turn: Turn) -> (i64, Read) {
        let room =
            if turn.backlogged { BACKLOG_ROOM.min(self.frames / 4 * 3) } else { ROOM.min(self.frames / 2) };
        let alone = self.is_alone(turn.slot);
        let mut cost = 0;
        while cost < turn.credit {
            let free = self.nic.room();
            if free < room {
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
            // Nobody waits for the rest, or there is no buffer for the next endpoint: it is all sent now.
            let credit = if alone || self.spare.is_empty() { i64::MAX } else { turn.credit - cost };
            let frame = begun.buffer.get(..begun.length).unwrap_or_default();
            let progress = self.send(turn.slot, begun.header, frame, self.now, begun.next, credit);
            // A frame that is not sent costs, too.
            cost += endpoints::cost((free - self.nic.room()).max(1), progress.bytes);
            match progress.next {
                Some(next) => {
                    begun.next = next;
                    self.begun.push(begun);
                }
                None => self.spare.push(begun.buffer),
            }
        }
        (cost, Read::More)
    }

    /// Whether no other endpoint has sent anything for a while.
    fn is_alone(&mut self, slot: u32) -> bool {
        if self.sender.0 != slot {
            self.sender = (slot, self.now);
        }
        self.now.saturating_duration_since(self.sender.1) > ALONE
    }

    /// What an endpoint sends next, if anything: the rest of a super-frame, or else what is read from it.
    fn begin(&mut self, slot: u32) -> io::Result<Option<Begun>> {
        if let Some(index) = self.begun.iter().position(|begun| begun.slot == slot) {
            return Ok(Some(self.begun.swap_remove(index)));
        }
        // There is one: what is read into the last is sent at once.
        let Some(mut buffer) = self.spare.pop() else { return Ok(None) };
        match self.endpoints.receive(slot, &mut buffer) {
            Ok(Some((header, length))) => Ok(Some(Begun { slot, header, buffer, length, next: 0 })),
            nothing => {
                self.spare.push(buffer);
                nothing.map(|_| None)
            }
        }
    }

    /// Forgets what is left of an endpoint's super-frame.
    pub(super) fn forget_begun(&mut self, slot: u32) {
        if let Some(index) = self.begun.iter().position(|begun| begun.slot == slot) {
            self.spare.push(self.begun.swap_remove(index).buffer);
        }
    }

    /// Sends one frame or super-frame of an endpoint, from that segment on and about as many as the credit pays for;
    /// `since` is when it came.
    fn send(
        &mut self,
        slot: u32,
        header: VnetHeader,
        frame: &[u8],
        since: Instant,
        from: usize,
        credit: i64,
    ) -> Progress {
        let all = Progress { next: None, bytes: frame.len() };
        let tables = self.tables.clone();
        let Some(network) = tables.by_slot(slot) else { return all };
        let Ok(packet) = packet::parse(frame) else {
            count_drop(&self.status, Some(network), self.queue, Drop::TxLength, 1);
            return all;
        };
        let gso = Gso::new(&header, frame, &packet);
        let segments = gso.as_ref().map_or(1, Gso::segments);
        let mut to = segments;
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
                        if segments.saturating_sub(from) > 1 {
                            let each = endpoints::cost(1, gso.largest());
                            to = segments.min(from.saturating_add((credit / each).max(1) as usize));
                        }
                        let result = self.transmit(network, hop, &outgoing, &gso, from..to);
                        if result == Err(Drop::TooBig) {
                            self.too_big(slot, network, hop, frame, &packet);
                        }
                        result
                    }
                    None => {
                        self.ask(*vtep);
                        if from == 0 && self.park(slot, header, frame, since) {
                            Ok(())
                        } else {
                            Err(Drop::NoNextHop)
                        }
                    }
                },
            },
        };
        if let Err(reason) = result {
            count_drop(&self.status, Some(network), self.queue, reason, segments.saturating_sub(from) as u64);
            return all;
        }
        let part = to.saturating_sub(from);
        let bytes = if part < segments { frame.len() / segments * part } else { frame.len() };
        Progress { next: (to < segments).then_some(to), bytes }
    }

    /// Sends a frame that has waited for new tables.
    pub(super) fn send_parked(&mut self, parked: &Parked) {
        self.send(parked.slot, parked.header, &parked.frame, parked.since, 0, i64::MAX);
    }

    /// Builds segments in NIC frames and queues them.
    fn transmit(
        &mut self,
        network: &Network,
        hop: &Hop,
        outgoing: &Outgoing,
        gso: &Gso<'_>,
        segments: Range<usize>,
    ) -> Result<(), Drop> {
        if gso.largest() > hop.largest_inner() {
            return Err(Drop::TooBig);
        }
        let patch = Patch { vni: network.vni, source_port: outgoing.source_port, inner_tos: outgoing.tos };
        let headers = hop.outer.length();
        let (mut frames, mut bytes) = (0, 0);
        let end = segments.end;
        for index in segments {
            let Some(mut frame) = self.nic.reserve() else {
                let left = (end - index) as u64;
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
        for vtep in &network.flood {
            if tables.local.contains(vtep) && !vtep.is_multicast() {
                continue;
            }
            let sent = match tables.hops.get(vtep) {
                Some(hop) => self.transmit(network, hop, outgoing, gso, 0..gso.segments()),
                None => {
                    self.ask(*vtep);
                    Err(Drop::NoNextHop)
                }
            };
            // Each copy by itself: others may have been sent.
            if let Err(reason) = sent {
                count_drop(&self.status, Some(network), self.queue, reason, gso.segments() as u64);
            }
        }
        Ok(())
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
        let mtu = hop.largest_inner().saturating_sub(ethernet::HEADER);
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
