//! One of each message, with every field filled: today's, and the same as uvn 0.1.0 has it, in the same order.

use crate::old;
use std::collections::BTreeMap;
use uvn_api::dataplane::config::{Network, Vtep};
use uvn_api::dataplane::message as dataplane;
use uvn_api::dataplane::message::{Counts, Gear, Note, State, XdpMode};
use uvn_api::uvnd::finding::{Finding, Id};
use uvn_api::uvnd::message::{self as uvnd, Claim, Kind, Lease, Outcome, Place, Release};
use uvn_api::uvnd::status::{Carrier, DataPlane, NicState, Refused, Reply as UvndReply, Status};

fn network() -> Network {
    serde_json::from_str(r#"{"vni": 1234, "addresses": ["10.0.0.1/24"], "device": {"name": "u1234"}}"#)
        .unwrap()
}

fn vtep() -> Vtep {
    Vtep { address: [10, 0, 0, 2].into(), overlay: vec![[10, 0, 0, 2].into()] }
}

fn counts() -> Counts {
    let drops = BTreeMap::from([("rx_endpoint_full".into(), 9)]);
    Counts { rx_frames: 1, rx_bytes: 2, tx_frames: 3, tx_bytes: 4, drops }
}

fn verdicts() -> BTreeMap<String, u64> {
    BTreeMap::from([("xdp_redirected".into(), 5)])
}

pub fn dataplane_requests() -> Vec<dataplane::Request> {
    use dataplane::Request;
    vec![
        Request::Ping,
        Request::AddNetwork(network()),
        Request::RemoveNetwork { vni: 1234 },
        Request::SetPeers { vni: 1234, peers: vec![[10, 0, 0, 2].into()] },
        Request::Vteps {
            add: vec![vtep()],
            remove: vec!["fd00::1".parse().unwrap()],
            add_range: vec!["10.1.0.0/16".parse().unwrap()],
            remove_range: Vec::new(),
        },
        Request::Show,
        Request::Networks { from: 7 },
        Request::Hops { from: Some([10, 0, 0, 2].into()) },
        Request::Unknown,
        Request::Counters,
        Request::Histogram,
    ]
}

pub fn old_dataplane_requests() -> Vec<old::dataplane::Request> {
    use old::dataplane::Request;
    vec![
        Request::Ping,
        Request::AddNetwork(network()),
        Request::RemoveNetwork { vni: 1234 },
        Request::SetPeers { vni: 1234, peers: vec![[10, 0, 0, 2].into()] },
        Request::Vteps {
            add: vec![vtep()],
            remove: vec!["fd00::1".parse().unwrap()],
            add_range: vec!["10.1.0.0/16".parse().unwrap()],
            remove_range: Vec::new(),
        },
        Request::Show,
        Request::Networks { from: 7 },
        Request::Hops { from: Some([10, 0, 0, 2].into()) },
        Request::Unknown,
        Request::Counters,
        Request::Histogram,
    ]
}

pub fn dataplane_answers() -> Vec<dataplane::Reply> {
    use dataplane::{HopState, NetworkState, Place, Reply, Residency, Summary, UnknownVni, WorkerState};
    let summary = Summary {
        nic: "em1".into(),
        state: State::Failed,
        fault: Some("AF_XDP socket: device busy".into()),
        mtu: 1500,
        mac: "02:75:0a:00:00:01".into(),
        vtep: vec![[10, 0, 0, 1].into()],
        port: 4789,
        xdp: Some(XdpMode::Driver),
        zero_copy: Some(true),
        gear: Some(Gear::Engine),
        gear_reason: Some("configured".into()),
        boost: Some(dataplane::Boost::Threads),
        workers: vec![WorkerState { queue: 0, core: Some(1), epoch: 3 }],
        epoch: 3,
        networks: 2,
        shortcut: 1,
        waiting: 1,
        hops: 4,
        unresolved: 1,
        vteps: 5,
        ranges: vec!["10.1.0.0/16".parse().unwrap()],
        notes: vec![Note::GroOff, Note::Rival { device: "em2".into() }],
    };
    let state = NetworkState {
        vni: 1234,
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
        mac: "02:75:0a:00:00:01".into(),
        device: Some("u1234".into()),
        endpoint: Some(Place { device: "u1234".into(), netns: Some("/run/netns/u".into()) }),
        fault: Some("lost".into()),
        notes: vec!["its endpoint is down".into()],
        flood: vec![[10, 0, 0, 2].into()],
        flood_count: 1,
        learned: 2,
        shortcut: true,
        waiting: false,
        counts: counts(),
    };
    let hop =
        HopState { address: [10, 0, 0, 2].into(), mac: Some("02:75:0a:00:00:02".into()), mtu: Some(1500) };
    vec![
        Reply::Pong,
        Reply::Done { epoch: 3 },
        Reply::Show(Box::new(summary)),
        Reply::Networks { networks: vec![state], next: Some(1235) },
        Reply::Hops { hops: vec![hop], next: Some([10, 0, 0, 3].into()) },
        Reply::Unknown { seen: vec![UnknownVni { vni: 9, vtep: [10, 0, 0, 2].into(), frames: 7 }] },
        Reply::Counters { total: counts(), workers: vec![counts()], xdp: verdicts(), lost: 6 },
        Reply::Histogram(Residency { batches: 1, p50: 2, p99: 3, p999: 4, max: 5 }),
    ]
}

fn old_counts() -> old::dataplane::Counts {
    let Counts { rx_frames, rx_bytes, tx_frames, tx_bytes, drops } = counts();
    old::dataplane::Counts { rx_frames, rx_bytes, tx_frames, tx_bytes, drops }
}

pub fn old_dataplane_answers() -> Vec<old::dataplane::Reply> {
    use old::dataplane::{HopState, NetworkState, Reply, Residency, Summary, UnknownVni, WorkerState};
    let summary = Summary {
        nic: "em1".into(),
        state: "AF_XDP socket: device busy".into(),
        mtu: 1500,
        mac: "02:75:0a:00:00:01".into(),
        vtep: vec![[10, 0, 0, 1].into()],
        port: 4789,
        xdp: Some("driver".into()),
        zero_copy: Some(true),
        gear: Some("engine".into()),
        gear_reason: Some("configured".into()),
        measure: Some(old::dataplane::Measure::Threads),
        workers: vec![WorkerState { queue: 0, core: Some(1), epoch: 3 }],
        epoch: 3,
        networks: 2,
        shortcut: 1,
        waiting: 1,
        hops: 4,
        unresolved: 1,
        vteps: 5,
        ranges: vec!["10.1.0.0/16".parse().unwrap()],
    };
    let state = NetworkState {
        vni: 1234,
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
        mac: "02:75:0a:00:00:01".into(),
        device: Some("u1234".into()),
        fault: Some("lost".into()),
        flood: vec![[10, 0, 0, 2].into()],
        flood_count: 1,
        learned: 2,
        shortcut: true,
        waiting: false,
        counts: old_counts(),
    };
    let hop =
        HopState { address: [10, 0, 0, 2].into(), mac: Some("02:75:0a:00:00:02".into()), mtu: Some(1500) };
    vec![
        Reply::Pong,
        Reply::Done { epoch: 3 },
        Reply::Show(Box::new(summary)),
        Reply::Networks { networks: vec![state], next: Some(1235) },
        Reply::Hops { hops: vec![hop], next: Some([10, 0, 0, 3].into()) },
        Reply::Unknown { seen: vec![UnknownVni { vni: 9, vtep: [10, 0, 0, 2].into(), frames: 7 }] },
        Reply::Counters { total: old_counts(), workers: vec![old_counts()], xdp: verdicts(), lost: 6 },
        Reply::Histogram(Residency { batches: 1, p50: 2, p99: 3, p999: 4, max: 5 }),
    ]
}

pub fn uvnd_requests() -> Vec<uvnd::Request> {
    use uvnd::Request;
    let job = Claim::Job { job: "1.0".into(), pid: 77 };
    vec![
        Request::Ping,
        Request::Attach { uid: 1000, claim: Claim::Session { pid: 77 }, dry_run: true },
        Request::Detach { uid: 1000, what: Release::Claim(job), dry_run: false },
        Request::List { from: 7 },
        Request::Status,
        Request::StatusFrom(Place::Finding { after: "UVN-NIC-DOWN: em1 is down".into() }),
        Request::Reload { dry_run: true, force: true },
        Request::Stop,
    ]
}

pub fn old_uvnd_requests() -> Vec<old::uvnd::Request> {
    use old::uvnd::{Claim, Release, Request};
    let job = Claim::Job { job: "1.0".into(), pid: 77 };
    vec![
        Request::Ping,
        Request::Attach { uid: 1000, claim: Claim::Session { pid: 77 }, dry_run: true },
        Request::Detach { uid: 1000, what: Release::Claim(job), dry_run: false },
        Request::List { from: 7 },
        Request::Status,
        Request::Reload { dry_run: true },
        Request::Stop,
    ]
}

pub fn uvnd_answers() -> Vec<UvndReply> {
    let job = Lease::Held { kind: Kind::Job, name: "1.0".into(), pid: Some(77) };
    let manual = Lease::Held { kind: Kind::Manual, name: String::new(), pid: None };
    let state = uvnd::NetworkState {
        uid: 1000,
        vni: 1000,
        vrf: "uvn1000".into(),
        table: 1_966_080_000,
        off_subnet: true,
        leases: vec![job, manual],
        goes_in: Some(60),
        fault: Some("lost".into()),
    };
    let data_plane = DataPlane {
        state: State::Failed,
        fault: Some("it is busy".into()),
        xdp: Some(XdpMode::Generic),
        zero_copy: Some(false),
        gear: Some(Gear::Shortcut),
        gear_reason: Some("configured".into()),
        shortcut: 1,
        waiting: 1,
        workers: 2,
        networks: 2,
        notes: vec![Note::NotJoined],
        endpoint_full: BTreeMap::from([(1000, 3)]),
        restarts: 1,
        process: Some(77),
        total: counts(),
        verdicts: verdicts(),
        lost: 6,
    };
    let nic = NicState {
        name: "em1".into(),
        up: true,
        mtu: 1500,
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
        vteps: vec![[10, 0, 0, 1].into()],
        port: 4789,
        carrier: Carrier::DataPlane,
        reason: "Ethernet".into(),
        data_plane: Some(data_plane),
    };
    let status = Status {
        version: "0.2.0".into(),
        pid: 76,
        config: "/etc/uvn/uvn.toml".into(),
        nics: vec![nic],
        networks: 2,
        leases: 3,
        verdicts: vec![("bound".into(), 4)],
        observes: true,
        refused: vec![Refused { uid: 1001, count: 2, program: "curl".into() }],
        findings: vec![
            Finding::of_data_plane("em1", 5, "lost"),
            Finding::of_user(1000, "lost"),
            Finding::warning(Id::Observes, "uvn observes", "wait"),
        ],
        warnings: Vec::new(),
        next: Some(Place::Nic { slot: 3 }),
    };
    vec![
        UvndReply::Pong,
        UvndReply::Attached { outcome: Outcome::Made, steps: vec!["a step".into()] },
        UvndReply::Detached { leases: 1, steps: vec!["a step".into()] },
        UvndReply::Networks { networks: vec![state], next: Some(1001) },
        UvndReply::Status(Box::new(status)),
        UvndReply::Steps { steps: vec!["a step".into()], count: 1 },
        UvndReply::Done,
    ]
}

pub fn old_uvnd_answers() -> Vec<old::uvnd::Reply> {
    use old::uvnd::{DataPlane, NetworkState, NicState, Outcome, Reply, Status};
    let state = NetworkState {
        uid: 1000,
        vni: 1000,
        vrf: "uvn1000".into(),
        table: 1_966_080_000,
        off_subnet: true,
        leases: vec!["session sshd (process 77)".into()],
        goes_in: Some(60),
        fault: Some("lost".into()),
    };
    let engine = DataPlane {
        state: "running".into(),
        xdp: Some("generic".into()),
        zero_copy: Some(false),
        gear: Some("shortcut".into()),
        gear_reason: Some("configured".into()),
        shortcut: 1,
        waiting: 1,
        workers: 2,
        networks: 2,
        faults: BTreeMap::from([(1000, "lost".into())]),
        restarts: 1,
        process: Some(77),
        total: old_counts(),
        verdicts: verdicts(),
        lost: 6,
    };
    let nic = NicState {
        name: "em1".into(),
        up: true,
        mtu: 1500,
        addresses: vec!["10.0.0.1/24".parse().unwrap()],
        vteps: vec![[10, 0, 0, 1].into()],
        port: 4789,
        path: "engine".into(),
        reason: "Ethernet".into(),
        engine: Some(engine),
    };
    let status = Status {
        version: "0.1.0".into(),
        pid: 76,
        config: "/etc/uvn/uvn.toml".into(),
        nics: vec![nic],
        networks: 2,
        leases: 3,
        verdicts: vec![("bound".into(), 4)],
        warnings: vec!["network 1000 on em1: lost".into()],
    };
    vec![
        Reply::Pong,
        Reply::Attached { outcome: Outcome::Made, steps: vec!["a step".into()] },
        Reply::Detached { leases: 1, steps: vec!["a step".into()] },
        Reply::Networks { networks: vec![state], next: Some(1001) },
        Reply::Status(Box::new(status)),
        Reply::Steps { steps: vec!["a step".into()], count: 1 },
        Reply::Done,
    ]
}
