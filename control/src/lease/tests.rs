use super::state::{load, save};
use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use uvn_wire::vxlan::Vni;

const LINGER: Duration = Duration::from_secs(7);

fn network(uid: u32) -> impl FnOnce(u32) -> Result<Network, NoVni> {
    move |slot| Ok(Network { uid, vni: Vni::new(uid).ok_or(NoVni::Unmapped(uid))?, slot, off_subnet: true })
}

fn lease(kind: Kind, pid: i32) -> Lease {
    Lease { kind, name: "test".into(), holder: (pid > 0).then_some(Process { pid, start: 1 }) }
}

fn at(second: u64) -> Duration {
    Duration::from_secs(second)
}

#[derive(Debug, Clone)]
enum Op {
    Attach(u32, Kind, i32),
    Detach(u32, Kind, i32),
    Gone(i32),
    Wait(u64),
    Busy(u32),
    TearDown { finished: bool },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Session), Just(Kind::Job), Just(Kind::Manual), Just(Kind::Peer)];
    prop_oneof![
        6 => (1..8u32, kind.clone(), 0..4i32).prop_map(|(uid, kind, pid)| Op::Attach(uid, kind, pid)),
        4 => (1..8u32, kind, 0..4i32).prop_map(|(uid, kind, pid)| Op::Detach(uid, kind, pid)),
        2 => (1..4i32).prop_map(Op::Gone),
        3 => (0..15u64).prop_map(Op::Wait),
        1 => (1..8u32).prop_map(Op::Busy),
        3 => any::<bool>().prop_map(|finished| Op::TearDown { finished }),
        1 => Just(Op::Restart),
    ]
}

/// What the caller of [`Leases`] may rely on, kept the plain way: the leases, and which networks the kernel has.
#[derive(Default)]
struct Model {
    leases: BTreeSet<(u32, Lease)>,
    slots: BTreeMap<u32, u32>,
    half_gone: BTreeSet<u32>,
    last: BTreeMap<u32, Duration>,
}

impl Model {
    fn kept(&self, uid: u32) -> bool {
        self.leases.iter().any(|(of, lease)| *of == uid && lease.kind != Kind::Peer)
    }

    fn attach(&mut self, leases: &mut Leases, uid: u32, lease: Lease, now: Duration) {
        let free = (0..).find(|slot| !self.slots.values().any(|used| used == slot)).unwrap();
        let known = self.slots.contains_key(&uid);
        let result = leases.attach(uid, lease.clone(), now, network(uid));
        if !known && free >= 5 {
            assert_eq!(result, Err(LeaseError::Full(5)));
            return;
        }
        let slot = *self.slots.entry(uid).or_insert(free);
        match result.unwrap() {
            Attached::New(network) => {
                assert!(!known || self.half_gone.remove(&uid));
                assert_eq!((network.uid, network.slot), (uid, slot));
            }
            Attached::Known(network) => {
                assert!(known && !self.half_gone.contains(&uid));
                assert_eq!((network.uid, network.slot), (uid, slot));
            }
        }
        self.leases.insert((uid, lease));
        self.last.insert(uid, now);
    }

    fn tear_down(&mut self, leases: &mut Leases, now: Duration, finished: bool) {
        let due = leases.due(now, LINGER);
        let expected = self.slots.keys().copied().filter(|uid| {
            let linger = if self.leases.iter().any(|(of, lease)| of == uid && lease.kind == Kind::Peer) {
                PEER_LINGER
            } else {
                LINGER
            };
            !self.kept(*uid) && (self.half_gone.contains(uid) || now - self.last[uid] >= linger)
        });
        assert_eq!(due, expected.collect::<BTreeSet<u32>>());
        for uid in due {
            leases.leave(uid);
            self.half_gone.insert(uid);
            if finished {
                leases.remove(uid).unwrap();
                self.slots.remove(&uid);
                self.half_gone.remove(&uid);
                self.leases.retain(|(of, _)| *of != uid);
            }
        }
    }
}

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("uvn-lease-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

proptest! {
    #[test]
    fn no_lease_is_lost_and_no_number_given_twice(ops in prop::collection::vec(op(), 0..80)) {
        let folder = scratch("model");
        let file = folder.join("state.json");
        let (mut leases, mut model, mut now) = (Leases::new(5), Model::default(), at(100));
        for op in ops {
            match op {
                Op::Attach(uid, kind, pid) => model.attach(&mut leases, uid, lease(kind, pid), now),
                Op::Detach(uid, kind, pid) => {
                    let lease = lease(kind, pid);
                    let there = leases.detach(uid, &lease, now);
                    prop_assert_eq!(there, model.leases.remove(&(uid, lease)));
                    if there {
                        model.last.insert(uid, now);
                    }
                }
                Op::Gone(pid) => {
                    let gone = |lease: &Lease| lease.holder.is_some_and(|holder| holder.pid == pid);
                    for (uid, lease) in leases.end(now, |_, lease| gone(lease)) {
                        prop_assert!(model.leases.remove(&(uid, lease)));
                        model.last.insert(uid, now);
                    }
                    prop_assert!(!model.leases.iter().any(|(_, lease)| gone(lease)));
                }
                Op::Wait(seconds) => now += at(seconds),
                Op::Busy(uid) => {
                    leases.in_use(uid, now);
                    model.last.insert(uid, now);
                }
                Op::TearDown { finished } => model.tear_down(&mut leases, now, finished),
                Op::Restart => {
                    save(&leases, &file).unwrap();
                    let loaded = load(&file, 5).unwrap();
                    prop_assert!(loaded.broken.is_none());
                    leases = loaded.leases;
                }
            }
            let slots: BTreeMap<u32, u32> = leases.iter().map(|(uid, held)| (uid, held.network.slot)).collect();
            prop_assert_eq!(&slots, &model.slots);
            let all = leases.iter().flat_map(|(uid, held)| held.leases.iter().map(move |lease| (uid, lease.clone())));
            prop_assert_eq!(all.collect::<BTreeSet<_>>(), model.leases.clone());
            let holders = model.leases.iter().filter_map(|(_, lease)| lease.holder).collect::<BTreeSet<_>>();
            prop_assert_eq!(leases.holders(), holders);
        }
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_network_lingers_and_then_goes() {
    let mut leases = Leases::new(10);
    let session = lease(Kind::Session, 7);
    assert!(matches!(leases.attach(1, session.clone(), at(0), network(1)), Ok(Attached::New(_))));
    assert!(matches!(leases.attach(1, session.clone(), at(1), network(1)), Ok(Attached::Known(_))));
    assert!(leases.due(at(1000), LINGER).is_empty() && leases.next_due(LINGER).is_none());
    assert!(leases.detach(1, &session, at(1000)) && !leases.detach(1, &session, at(1000)));
    assert_eq!(leases.next_due(LINGER), Some(at(1007)));
    assert!(leases.due(at(1006), LINGER).is_empty());
    assert_eq!(leases.due(at(1007), LINGER), BTreeSet::from([1]));
    leases.in_use(1, at(1007));
    assert!(leases.due(at(1013), LINGER).is_empty());
    // What still comes for a session that is over keeps nothing.
    leases.received(1, 50, at(1013));
    assert_eq!(leases.due(at(1014), LINGER), BTreeSet::from([1]));
}

#[test]
fn peers_keep_a_network_while_they_send() {
    let mut leases = Leases::new(10);
    leases.attach(1, lease(Kind::Peer, 0), at(0), network(1)).unwrap();
    assert!(leases.due(at(9), LINGER).is_empty());
    assert_eq!(leases.due(at(10), LINGER), BTreeSet::from([1]));
    leases.received(1, 50, at(10));
    assert_eq!(leases.next_due(LINGER), Some(at(20)));
    leases.received(1, 50, at(19));
    assert_eq!(leases.due(at(20), LINGER), BTreeSet::from([1]));
    leases.attach(1, lease(Kind::Manual, 0), at(20), network(1)).unwrap();
    assert!(leases.due(at(100), LINGER).is_empty());
}

#[test]
fn users_never_share_a_vni() {
    let mut leases = Leases::new(10);
    leases.attach(1000, lease(Kind::Manual, 0), at(0), network(1000)).unwrap();
    let before = leases.clone();
    let changed = |slot| Ok(Network { uid: 20_000_000, ..network(1000)(slot)? });
    let error = leases.attach(20_000_000, lease(Kind::Manual, 0), at(0), changed).unwrap_err();
    assert_eq!(error, LeaseError::Collision { uid: 20_000_000, other: 1000, vni: 1000 });
    assert!(error.to_string().contains("20000000") && error.to_string().contains("UID 1000"), "{error}");
    let refused = leases.attach(1 << 24, lease(Kind::Manual, 0), at(0), network(1 << 24));
    assert_eq!(refused, Err(LeaseError::NoVni(NoVni::Unmapped(1 << 24))));
    assert_eq!(leases, before);
}

#[test]
fn a_broken_file_is_moved_aside() {
    let folder = scratch("broken");
    let file = folder.join("state.json");
    let mut leases = Leases::new(10);
    leases.attach(1000, lease(Kind::Job, 5), at(3), network(1000)).unwrap();
    leases.attach(1001, lease(Kind::Session, 6), at(4), network(1001)).unwrap();
    save(&leases, &file).unwrap();
    let good = fs::read_to_string(&file).unwrap();
    let broken = [
        (good[..good.len() - 20].to_owned(), "EOF"),
        (String::new(), "EOF"),
        (good.replace("\"version\":1", "\"version\":2"), "version 2"),
        (good.replace("\"slot\":1", "\"slot\":0"), "UID 1001, VNI 1001 or lease number 0 is there twice"),
        (good.replace("\"vni\":1001", "\"vni\":16777216"), "VNI 16777216"),
        (good.replace("\"vni\"", "\"vnj\""), "vnj"),
    ];
    for (text, reason) in broken {
        fs::write(&file, &text).unwrap();
        let loaded = load(&file, 10).unwrap();
        assert!(loaded.leases.is_empty());
        let said = loaded.broken.unwrap();
        assert!(said.contains(reason) && said.contains("state.json is broken"), "{said}");
        assert!(!file.exists());
        assert_eq!(fs::read_to_string(folder.join("state.json.broken")).unwrap(), text);
    }
    assert!(load(&file, 10).unwrap().broken.is_none());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn networks_of_the_kernel_are_adopted_once() {
    let mut leases = Leases::new(10);
    let found = |uid: u32, slot: u32| network(uid)(slot).unwrap();
    assert!(leases.adopt(found(1000, 4), at(0)));
    assert!(!leases.adopt(found(1000, 5), at(0)) && !leases.adopt(found(1001, 4), at(0)));
    assert!(leases.adopt(found(1001, 0), at(0)));
    assert!(matches!(
        leases.attach(1002, lease(Kind::Manual, 0), at(0), network(1002)),
        Ok(Attached::New(Network { slot: 1, .. }))
    ));
}
