//! The requests of networks for next hops: a queue per network, served in turns, so that a scan of a subnet delays only
//! its own network.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use uvn_wire::vxlan::Vni;

/// The most neighbours that are being asked for a network at the same time. One that exists answers within milliseconds
/// and makes room for the next, so this bounds the cost of silent ones: as many broadcasts a second, and three times as
/// many entries in the kernel, which asks three times.
const AT_ONCE: usize = 64;
/// How long a neighbour that does not answer takes up room.
const HOLD: Duration = Duration::from_secs(1);
/// The most VTEPs of a network that wait for their turn, and for how long: after that, nobody holds a frame for them.
const WAITING: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(3);

/// A queue that holds each address once.
#[derive(Debug, Default)]
pub struct Once {
    queue: VecDeque<IpAddr>,
    known: HashSet<IpAddr>,
}

impl Once {
    pub fn push(&mut self, address: IpAddr) {
        if self.known.insert(address) {
            self.queue.push_back(address);
        }
    }

    pub fn pop(&mut self) -> Option<IpAddr> {
        let address = self.queue.pop_front()?;
        self.known.remove(&address);
        Some(address)
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// The requests of all networks.
#[derive(Debug, Default)]
pub struct Asks {
    networks: HashMap<Vni, Queue>,
    /// The networks in turn: those that have something waiting, and room.
    turns: VecDeque<Vni>,
    /// Neighbours that are being asked, with the network and the time; and the same in order of time, with some that
    /// have answered.
    held: HashMap<IpAddr, (Vni, Instant)>,
    since: VecDeque<(Instant, IpAddr)>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(Instant, IpAddr)>,
    /// The VTEPs in it.
    known: HashSet<IpAddr>,
    held: usize,
    /// Whether it is among the turns.
    has_turn: bool,
}

impl Queue {
    /// The next VTEP whose request has not expired.
    fn pop(&mut self, now: Instant) -> Option<IpAddr> {
        while let Some((since, vtep)) = self.waiting.pop_front() {
            self.known.remove(&vtep);
            if now.saturating_duration_since(since) < PATIENCE {
                return Some(vtep);
            }
        }
        None
    }
}

impl Asks {
    /// Notes that a network asks for a VTEP. If there is no room, the VTEP is forgotten: the network's own frames ask
    /// again.
    pub fn add(&mut self, network: Vni, vtep: IpAddr, now: Instant) {
        let queue = self.networks.entry(network).or_default();
        if queue.waiting.len() < WAITING && queue.known.insert(vtep) {
            queue.waiting.push_back((now, vtep));
        }
        self.give_turn(network);
    }

    /// The next VTEP in turn, and its network.
    pub fn next(&mut self, now: Instant) -> Option<(Vni, IpAddr)> {
        self.expire(now);
        while let Some(network) = self.turns.pop_front() {
            let Some(queue) = self.networks.get_mut(&network) else { continue };
            queue.has_turn = false;
            if queue.held < AT_ONCE
                && let Some(vtep) = queue.pop(now)
            {
                self.give_turn(network);
                return Some((network, vtep));
            }
            self.forget_idle(network);
        }
        None
    }

    /// Notes that a neighbour is to be asked for a network. False: it is being asked already.
    pub fn hold(&mut self, network: Vni, neighbour: IpAddr, now: Instant) -> bool {
        if self.held.contains_key(&neighbour) {
            return false;
        }
        self.held.insert(neighbour, (network, now));
        self.since.push_back((now, neighbour));
        self.networks.entry(network).or_default().held += 1;
        true
    }

    /// Notes that a neighbour has answered, or will not.
    pub fn release(&mut self, neighbour: IpAddr) {
        let Some((network, _)) = self.held.remove(&neighbour) else { return };
        if let Some(queue) = self.networks.get_mut(&network) {
            queue.held = queue.held.saturating_sub(1);
        }
        self.give_turn(network);
        self.forget_idle(network);
    }

    /// Whether a network has a turn, and room.
    pub fn has_work(&self) -> bool {
        let has_room = |network| self.networks.get(network).is_some_and(|queue: &Queue| queue.held < AT_ONCE);
        self.turns.iter().any(has_room)
    }

    /// When the next network that waits for room gets it; None: none waits.
    pub fn due(&self) -> Option<Instant> {
        let waits = self.networks.values().any(|queue| !queue.waiting.is_empty());
        self.since.front().filter(|_| waits).map(|(since, _)| *since + HOLD)
    }

    fn give_turn(&mut self, network: Vni) {
        let Some(queue) = self.networks.get_mut(&network) else { return };
        if !queue.has_turn && queue.held < AT_ONCE && !queue.waiting.is_empty() {
            queue.has_turn = true;
            self.turns.push_back(network);
        }
    }

    fn forget_idle(&mut self, network: Vni) {
        let is_idle = |queue: &Queue| queue.held == 0 && queue.waiting.is_empty();
        if self.networks.get(&network).is_some_and(is_idle) {
            self.networks.remove(&network);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((since, neighbour)) = self.since.front().copied()
            && now.saturating_duration_since(since) >= HOLD
        {
            self.since.pop_front();
            // It may have answered and been asked again since.
            if self.held.get(&neighbour).is_some_and(|(_, held)| *held == since) {
                self.release(neighbour);
            }
        }
    }
}
