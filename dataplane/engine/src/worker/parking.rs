//! The frames that wait for next hops, and the VTEPs that the control thread is asked for. Each network has room of its
//! own, so that a user who scans a subnet fills nobody else's.

use super::{PARKED_FOR, Parked};
use crate::tables::Tables;
use crossbeam::channel::Sender;
use hashbrown::{HashMap, HashSet};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;
use uvn_wire::vxlan::Vni;

/// The most bytes of frames that a network may have waiting, about what a kernel lets wait for one neighbour
/// (unres_qlen_bytes). They hold the ARP requests of a job that starts on a thousand nodes.
const ROOM: usize = 256 << 10;
/// The cost of a frame besides its length, bytes.
const FRAME_COST: usize = 128;
/// The most for all networks together, bytes; beyond that, the room that each network has nevertheless.
const ROOM_OF_ALL: usize = 4 << 20;
const LEAST_ROOM: usize = 8 << 10;
/// The most frames that are sent in one go when their VTEP answers.
const AT_ONCE: usize = 256;
/// The most unanswered VTEPs that a network asks for in a second.
const ASKED: usize = 1024;
/// The most senders of a network that are told in a second that their destination is dead.
const REFUSED: usize = 64;

/// The waiting frames and VTEPs of all networks.
#[derive(Default)]
pub(super) struct Parking {
    networks: HashMap<u32, Waiting>,
    bytes: usize,
    /// See [`Parking::has_settled`].
    has_settled: bool,
    /// VTEPs to be asked for; the channel has had no room yet.
    unsaid: VecDeque<(Vni, IpAddr)>,
}

/// The waiting frames and VTEPs of one network.
#[derive(Default)]
struct Waiting {
    frames: Vec<Parked>,
    bytes: usize,
    /// VTEPs asked for in this second.
    asked: HashSet<IpAddr>,
    /// The number of senders told in this second.
    refused: usize,
}

impl Parking {
    /// Keeps a frame, whose bytes are in `frame`. False: there is no room.
    pub fn park(&mut self, parked: Parked, frame: &[u8]) -> bool {
        let waiting = self.networks.entry(parked.slot).or_default();
        let cost = cost(frame);
        let room = if self.bytes + cost <= ROOM_OF_ALL { ROOM } else { LEAST_ROOM };
        let fits = waiting.bytes + cost <= room;
        if fits {
            waiting.bytes += cost;
            self.bytes += cost;
            waiting.frames.push(Parked { frame: frame.to_vec(), ..parked });
        }
        fits
    }

    /// Takes out the frames that wait no more: their VTEP answers, or does not, or they have waited long enough. Takes
    /// as many as a turn may send; [`Parking::has_settled`] tells of more.
    pub fn take(&mut self, tables: &Tables, now: Instant) -> Vec<Parked> {
        let mut taken = Vec::new();
        for waiting in self.networks.values_mut() {
            let mut left = AT_ONCE.saturating_sub(taken.len());
            let settled = |parked: &mut Parked| {
                let is_it = left > 0
                    && (tables.hops.contains_key(&parked.vtep)
                        || is_hopeless(tables, parked.vtep, parked.since, now));
                left -= usize::from(is_it);
                is_it
            };
            let before = taken.len();
            taken.extend(waiting.frames.extract_if(.., settled));
            let bytes = taken[before..].iter().map(|parked| cost(&parked.frame)).sum::<usize>();
            waiting.bytes -= bytes;
            self.bytes -= bytes;
        }
        self.has_settled = taken.len() == AT_ONCE;
        taken
    }

    /// Whether there may be more to take.
    pub fn has_settled(&self) -> bool {
        self.has_settled
    }

    /// Every VTEP that frames still wait for, with the slot of their network.
    pub fn vteps(&self, tables: &Tables, now: Instant) -> Vec<(u32, IpAddr)> {
        let of = |(slot, waiting): (&u32, &Waiting)| {
            let is_open = |parked: &&Parked| {
                !tables.hops.contains_key(&parked.vtep)
                    && !is_hopeless(tables, parked.vtep, parked.since, now)
            };
            let vteps: HashSet<IpAddr> =
                waiting.frames.iter().filter(is_open).map(|parked| parked.vtep).collect();
            vteps.into_iter().map(|vtep| (*slot, vtep)).collect::<Vec<_>>()
        };
        self.networks.iter().flat_map(of).collect()
    }

    /// Whether a network may ask for a VTEP: once a second, and not for too many that do not answer.
    pub fn may_ask(&mut self, slot: u32, vtep: IpAddr) -> bool {
        let asked = &mut self.networks.entry(slot).or_default().asked;
        asked.len() < ASKED && asked.insert(vtep)
    }

    /// Forgets that VTEPs were asked for which are known now: they make room for others.
    pub fn forget_answered(&mut self, tables: &Tables) {
        for waiting in self.networks.values_mut() {
            waiting.asked.retain(|vtep| !tables.hops.contains_key(vtep));
        }
    }

    /// Whether one more sender of a network may be told that their destination is dead.
    pub fn may_refuse(&mut self, slot: u32) -> bool {
        let refused = &mut self.networks.entry(slot).or_default().refused;
        *refused += 1;
        *refused <= REFUSED
    }

    /// Notes a VTEP to be asked for when the channel has room.
    pub fn ask_later(&mut self, network: Vni, vtep: IpAddr) {
        self.unsaid.push_back((network, vtep));
    }

    /// The next VTEP to ask for, if the channel has room now.
    pub fn take_unsaid<T>(&mut self, events: &Sender<T>) -> Option<(Vni, IpAddr)> {
        if self.has_unsaid() && has_room(events) { self.unsaid.pop_front() } else { None }
    }

    /// Whether a VTEP is still to be asked for.
    pub fn has_unsaid(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// Once a second: begins the limits anew, and forgets what is still to be asked for, since waiting frames ask
    /// again.
    pub fn tick(&mut self) {
        self.unsaid.clear();
        self.networks.retain(|_, waiting| {
            waiting.asked.clear();
            waiting.refused = 0;
            !waiting.frames.is_empty()
        });
    }

    /// Forgets a network.
    pub fn forget(&mut self, slot: u32) {
        self.bytes -= self.networks.remove(&slot).map_or(0, |waiting| waiting.bytes);
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// Whether the channel has room for what may be repeated: half of it is for events that are sent only once.
pub(super) fn has_room<T>(events: &Sender<T>) -> bool {
    events.capacity().is_none_or(|capacity| events.len() < capacity / 2)
}

/// Whether waiting is in vain: the frame has waited long enough, or the VTEP has just failed to answer.
pub(super) fn is_hopeless(tables: &Tables, vtep: IpAddr, since: Instant, now: Instant) -> bool {
    let recent = |then: Instant| now.saturating_duration_since(then) < PARKED_FOR;
    !recent(since) || tables.dead.get(&vtep).is_some_and(|failed| recent(*failed))
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + FRAME_COST
}
