//! Networks on demand: a network is made when a peer sends to it, so that `ssh othernode` works before the user has
//! ever been there.
//!
//! A data plane reports VNIs that it does not know. Kernel VXLAN drops their packets silently: there, nftables logs one
//! packet per VNI and [`SILENCE_S`], known or not, which [`UnknownLog`] reads.
//!
//! A peer is another node, whose root decides what it sends: it can have any user's network made here, if the user
//! database has the user. So the rate is limited, and the number, so that sessions and jobs always find room.

mod log;
mod users;

pub use log::{GROUP, UnknownLog};
pub use users::Users;

use crate::config::Config;
use crate::lease::Leases;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use thiserror::Error;
use uvn_wire::vxlan::Vni;

/// Seconds for which nftables logs no further packet of a VNI.
pub const SILENCE_S: u32 = 5;
/// New networks, and users to look up, for one VTEP: at once, and then per second.
const PER_VTEP: (f64, f64) = (10.0, 2.0);
/// New networks, and users to look up, for all VTEPs together: at once, and then per second.
const IN_ALL: (f64, f64) = (20.0, 5.0);
/// Networks that only peers' traffic holds, at most.
const MAX_NETWORKS: usize = 1000;
/// How long after a failure a network is not tried again.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// VTEPs, failures and users that are remembered, at most of each.
const MAX_REMEMBERED: usize = 4096;

/// Why no network is made for a peer's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No policed user has this VNI.
    #[error("no policed user has VNI {0}")]
    NoUser(Vni),
    /// The user database has no such user.
    #[error("the user database has no user {0}")]
    Stranger(u32),
    /// The user is being looked up: try again.
    #[error("user {0} is being looked up in the user database")]
    Asked(u32),
    /// Too many look-ups are waiting.
    #[error("too many users wait to be looked up in the user database")]
    Busy,
    /// It could not be made within the last [`COOL_DOWN`].
    #[error("the network of UID {0} could not be made less than 30 s ago")]
    CoolingDown(u32),
    /// This peer asks for more than [`PER_VTEP`].
    #[error("{0} asks for more new networks than one peer may")]
    PeerTooFast(IpAddr),
    /// All peers together ask for more than [`IN_ALL`].
    #[error("peers ask for more new networks than all of them may")]
    TooFast,
    /// Peers' networks must leave room for sessions and jobs.
    #[error("{0} networks are here for peers' traffic alone, which is the limit")]
    TooMany(usize),
}

/// The limits on networks on demand, and what peers have asked for lately.
#[derive(Debug)]
pub struct Demand {
    all: Bucket,
    users: Users,
    vteps: HashMap<IpAddr, Bucket>,
    /// By UID, the time until which the network is not tried again.
    failed: HashMap<u32, Duration>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Duration,
    limit: (f64, f64),
}

impl Demand {
    /// Full buckets; `now` is the time since boot.
    #[must_use]
    pub fn new(now: Duration, users: Users) -> Demand {
        Demand { all: Bucket::new(IN_ALL, now), users, vteps: HashMap::new(), failed: HashMap::new() }
    }

    /// The UID whose network to make, because an allowed VTEP sent to this VNI. None: the network exists.
    ///
    /// # Errors
    /// No network is made now: see [`Refusal`].
    pub fn admit(
        &mut self,
        config: &Config,
        leases: &Leases,
        vni: Vni,
        vtep: IpAddr,
        now: Duration,
    ) -> Result<Option<u32>, Refusal> {
        let uid = config.uid_of(vni).ok_or(Refusal::NoUser(vni))?;
        if leases.get(uid).is_some_and(|held| !held.leaving) {
            return Ok(None);
        }
        if self.failed.get(&uid).is_some_and(|until| now < *until) {
            return Err(Refusal::CoolingDown(uid));
        }
        let peers = leases.iter().filter(|(_, held)| !held.is_kept()).count();
        let room = config.nat.slots() as usize / 2;
        if peers >= MAX_NETWORKS.min(room) {
            return Err(Refusal::TooMany(peers));
        }
        if self.vteps.len() >= MAX_REMEMBERED {
            self.vteps.retain(|_, bucket| !bucket.is_full(now));
            if self.vteps.len() >= MAX_REMEMBERED {
                return Err(Refusal::TooFast);
            }
        }
        let known = self.users.knows(uid, now);
        if known == Some(false) {
            return Err(Refusal::Stranger(uid));
        }
        // The peer's own limit first: a peer that is too fast must not use up the limit of all.
        if !self.vteps.entry(vtep).or_insert(Bucket::new(PER_VTEP, now)).take(now) {
            return Err(Refusal::PeerTooFast(vtep));
        }
        if known.is_none() {
            return Err(if self.users.ask(uid) { Refusal::Asked(uid) } else { Refusal::Busy });
        }
        if !self.all.take(now) {
            return Err(Refusal::TooFast);
        }
        Ok(Some(uid))
    }

    /// Notes that a user's network could not be made at `now`.
    pub fn failed(&mut self, uid: u32, now: Duration) {
        if self.failed.len() >= MAX_REMEMBERED {
            self.failed.retain(|_, until| now < *until);
        }
        self.failed.insert(uid, now.saturating_add(COOL_DOWN));
    }
}

/// The number of packets that a device, such as a network's VRF, has received. None: the device does not exist.
#[must_use]
pub fn received(device: &str) -> Option<u64> {
    let path = format!("/sys/class/net/{device}/statistics/rx_packets");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Bucket {
    fn new(limit: (f64, f64), now: Duration) -> Bucket {
        Bucket { tokens: limit.0, at: now, limit }
    }

    fn refill(&mut self, now: Duration) {
        let (most, per_second) = self.limit;
        self.tokens = (self.tokens + now.saturating_sub(self.at).as_secs_f64() * per_second).min(most);
        self.at = self.at.max(now);
    }

    fn take(&mut self, now: Duration) -> bool {
        self.refill(now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn is_full(&mut self, now: Duration) -> bool {
        self.refill(now);
        self.tokens >= self.limit.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Kind, Lease};
    use uvn_api::toml_file::parse;

    fn config(more: &str) -> Config {
        parse(&format!("[[underlay]]\nsubnets = [\"10.0.0.0/16\"]\n[peers]\nnodes = [\"n1\"]\n{more}"))
            .unwrap()
    }

    fn vni(number: u32) -> Vni {
        Vni::new(number).unwrap()
    }

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn attach(config: &Config, leases: &mut Leases, uid: u32, kind: Kind) {
        let lease = Lease { kind, name: String::new(), holder: None };
        leases.attach(uid, lease, Duration::ZERO, |slot| config.network_of(uid, slot, true)).unwrap();
    }

    /// Every user is known.
    fn demand() -> Demand {
        Demand::new(NOW, Users::all_known())
    }

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn packets_of_a_device() {
        assert!(received("lo").is_some() && received("no-such-device").is_none());
    }

    #[test]
    fn only_policed_users_without_a_network_get_one() {
        let config = config("[[vni]]\nuids = 16777221\nfirst = 60001");
        let (mut demand, mut leases) = (demand(), Leases::new(100));
        let mut ask = |leases: &Leases, number| demand.admit(&config, leases, vni(number), peer(1), NOW);
        assert_eq!(ask(&leases, 1000), Ok(Some(1000)));
        assert_eq!(ask(&leases, 60001), Ok(Some(16_777_221)));
        assert_eq!(ask(&leases, 999), Err(Refusal::NoUser(vni(999))));
        attach(&config, &mut leases, 1000, Kind::Session);
        assert_eq!(ask(&leases, 1000), Ok(None));
        leases.leave(1000);
        assert_eq!(ask(&leases, 1000), Ok(Some(1000)));
    }

    #[test]
    fn one_fast_peer_leaves_room_for_others() {
        let (config, leases) = (config(""), Leases::new(100));
        let mut demand = demand();
        let mut ask = |number, from, now| demand.admit(&config, &leases, vni(number), from, now);
        let admitted = (0..1000).filter(|user| ask(1000 + user, peer(1), NOW).is_ok()).count();
        assert_eq!(admitted, 10);
        assert_eq!(ask(2000, peer(1), NOW), Err(Refusal::PeerTooFast(peer(1))));
        assert_eq!(ask(2000, peer(2), NOW), Ok(Some(2000)));
        let admitted = (3..250).filter(|last| ask(3000 + u32::from(*last), peer(*last), NOW).is_ok()).count();
        assert_eq!(admitted, 9);
        assert_eq!(ask(2000, peer(250), NOW), Err(Refusal::TooFast));
        let later = NOW + Duration::from_secs(1);
        assert_eq!((0..10).filter(|_| ask(2000, peer(1), later).is_ok()).count(), 2);
    }

    #[test]
    fn many_vteps_are_not_remembered_for_ever() {
        let (config, leases) = (config(""), Leases::new(100));
        let mut demand = demand();
        for second in 0..10_000_u32 {
            let vtep = IpAddr::from((0x0a00_0000 + second).to_be_bytes());
            let now = NOW + Duration::from_secs(second.into());
            assert_eq!(demand.admit(&config, &leases, vni(1000), vtep, now), Ok(Some(1000)));
        }
        assert!(demand.vteps.len() <= MAX_REMEMBERED);
        for uid in 0..10_000_u32 {
            demand.failed(uid, NOW + Duration::from_secs(uid.into()));
        }
        assert!(demand.failed.len() <= MAX_REMEMBERED);
    }

    #[test]
    fn what_failed_is_tried_again_later() {
        let (config, leases) = (config(""), Leases::new(100));
        let mut demand = demand();
        demand.failed(1000, NOW);
        let mut ask = |now| demand.admit(&config, &leases, vni(1000), peer(1), now);
        assert_eq!(ask(NOW), Err(Refusal::CoolingDown(1000)));
        assert_eq!(ask(NOW + COOL_DOWN), Ok(Some(1000)));
    }

    #[test]
    fn sessions_find_room_whatever_peers_do() {
        let config = config("[nat]\nipv4 = \"100.64.0.0/29\"");
        let (mut demand, mut leases) = (demand(), Leases::new(config.nat.slots()));
        attach(&config, &mut leases, 1000, Kind::Session);
        for uid in 1001..1004 {
            assert_eq!(demand.admit(&config, &leases, vni(uid), peer(1), NOW), Ok(Some(uid)));
            attach(&config, &mut leases, uid, Kind::Peer);
        }
        assert_eq!(demand.admit(&config, &leases, vni(1004), peer(1), NOW), Err(Refusal::TooMany(3)));
    }

    #[test]
    fn only_users_of_the_database_get_one() {
        let (config, leases) = (config(""), Leases::new(100));
        let mut demand = Demand::new(NOW, Users::by(|uid| Some(uid == 1000)));
        let mut settled = |uid| {
            // The answer comes from another thread.
            let mut attempts = 0;
            loop {
                let now = NOW + Duration::from_secs(attempts);
                match demand.admit(&config, &leases, vni(uid), peer(1), now) {
                    Err(Refusal::Asked(asked)) => assert_eq!(asked, uid),
                    verdict => return verdict,
                }
                attempts += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        assert_eq!(settled(1000), Ok(Some(1000)));
        assert_eq!(settled(300_000), Err(Refusal::Stranger(300_000)));
    }
}
