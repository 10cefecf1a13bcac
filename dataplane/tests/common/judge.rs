//! The shortcut's program on the NIC and the engine's judge, side by side over the same tables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::cases::{A, A6, B, B6, C, D6, USERS};
use crate::common::cluster::{network, v4};
use crate::frames;
use aya::maps::{self, Map, MapData, MapInfo};
use aya::programs::{SchedClassifier, TcAttachType, TestRun};
use aya::{Pod, TestRunOptions};
use hashbrown::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use uvn_api::dataplane::config::{Cidr, Encapsulation, Peers, Vtep};
use uvn_api::dataplane::vteps::Vteps;
use uvn_dataplane::gear::programs::Xdp;
use uvn_dataplane::gear::shortcut::Shortcut;
use uvn_dataplane::networks::{Entry, Networks};
use uvn_dataplane::port::device::EndpointSource;
use uvn_dataplane::port::link;
use uvn_dataplane::port::slow_path::{self, SlowPath};
use uvn_dataplane::port::tap::Tap;
use uvn_engine::counters::Drop;
use uvn_engine::decap::{decap, set_ecn};
use uvn_engine::outer::Outer;
use uvn_engine::tables::{Hop, Tables};
use uvn_rig::test::NetNs;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::{PORT, Vni};

/// Zero checksums, IPv6 too: the outer frames that need no look at the payload.
pub fn encapsulation() -> Encapsulation {
    Encapsulation { ipv6_checksum: false, ..Encapsulation::default() }
}

/// include/uapi/linux/pkt_cls.h
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;

/// What the two have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether checksums over IPv6 must be there.
    pub ipv6_checksum: bool,
    /// These allow the VTEPs, our own among them, and not a list.
    pub ranges: Vec<Cidr>,
}

impl Settings {
    /// The whole subnets.
    pub fn ranges() -> Settings {
        let ranges = vec![Cidr { address: v4(0), prefix: 24 }, Cidr { address: A6, prefix: 96 }];
        Settings { ranges, ..Settings::default() }
    }
}

/// Who would carry a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The program takes it, and the engine would have, with the same result.
    Gear,
    /// It leaves it to the engine, which takes it.
    Engine,
    /// It is dropped, or is not ours.
    Nobody,
}

pub struct Judges {
    program: SchedClassifier,
    shortcut: Shortcut,
    tables: Tables,
    _xdp: Xdp,
    _slow_path: Vec<SlowPath>,
    _node: NetNs,
}

impl Judges {
    /// Two networks on a NIC, both the gear's.
    pub fn new(settings: &Settings) -> Judges {
        let (node, outside) = (NetNs::new("judge"), NetNs::new("outside"));
        node.veth("nic", &outside, "wire");
        let encapsulation = Encapsulation { ipv6_checksum: settings.ipv6_checksum, ..encapsulation() };
        let peer = |address: IpAddr, overlay: &[IpAddr]| Vtep { address, overlay: overlay.to_vec() };
        let listed = vec![peer(B, &[B, B6]), peer(C, &[]), peer(D6, &[D6, v4(4)])];
        let peers = Peers { vtep: listed, range: settings.ranges.clone() };
        let vteps = Arc::new(Vteps::new(&peers).unwrap());
        let hop = |vtep: IpAddr| {
            let source = if vtep.is_ipv4() { A } else { A6 };
            let outer = Outer::new(&encapsulation, Mac([2; 6]), Mac([4; 6]), source, vtep);
            (vtep, Hop { outer, mtu: 1500 })
        };
        let mut networks = Networks::default();
        for (number, vni) in USERS.iter().enumerate() {
            let name = format!("u{number}");
            let tap = node.run(|| Tap::open(&name, 1)).unwrap().remove(0);
            node.ip(&format!("link set {name} up"));
            let source = EndpointSource::take(vec![tap.as_fd().try_clone_to_owned().unwrap()]).unwrap();
            networks.insert(Entry::new(network(*vni, [A, A6], B), Mac::of(A), source, 1));
        }
        let (by_slot, slots) = networks.tables(&vteps);
        let tables = Tables {
            epoch: 1,
            encapsulation,
            nic: Some(frames::NIC),
            local: vec![A, A6],
            vteps: vteps.clone(),
            // Our own: the worst case, where ranges allow it.
            hops: Arc::new([A, A6, B, C, D6].map(hop).into_iter().collect::<HashMap<_, _>>()),
            dead: Arc::default(),
            networks: by_slot,
            slots,
        };
        let (xdp, shortcut, slow_path, program) = node.run(|| {
            let nic = link::get("nic").unwrap();
            let slow_path = SlowPath::open(nic.index, 1, 1).unwrap();
            let tap = link::get(&slow_path::device(nic.index)).unwrap().index;
            let mut xdp = Xdp::load(nic.index, &encapsulation, tap).unwrap();
            let mut shortcut = Shortcut::attach(&mut xdp, &nic, PORT).unwrap();
            xdp.set_mac(frames::NIC).unwrap();
            xdp.set_local(&tables.local).unwrap();
            let (exact, ranges) = vteps.listed();
            xdp.set_vteps(&exact.collect::<Vec<_>>(), ranges).unwrap();
            shortcut.follow(&tables).unwrap();
            for (_, entry) in networks.iter() {
                let network = shortcut.grant(&mut xdp, entry).unwrap();
                xdp.set_network(network).unwrap();
            }
            let (_, mut programs) = SchedClassifier::query_tcx("nic", TcAttachType::Ingress).unwrap();
            let program =
                SchedClassifier::from_program_info(programs.remove(0), "uvn_ingress".into()).unwrap();
            (xdp, shortcut, slow_path, program)
        });
        Judges { program, shortcut, tables, _xdp: xdp, _slow_path: slow_path, _node: node }
    }

    /// Lets both judge a frame; fails where the program's word is not the engine's.
    pub fn judge(&self, frame: &[u8]) -> Taken {
        let before = self.traffic();
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = self.program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let judged = decap(&self.tables, frame, 0);
        match (result.return_value as i32, judged) {
            // To the engine's TAP.
            (TC_ACT_REDIRECT, judged) if out == frame => match judged {
                Ok(_) => Taken::Engine,
                Err(_) => Taken::Nobody,
            },
            (TC_ACT_SHOT, Err(_)) => Taken::Nobody,
            // Not ours: cut short, perhaps.
            (TC_ACT_UNSPEC, Err(rejected)) if out == frame => {
                let not_ours = matches!(rejected.reason, Drop::NotOurs | Drop::RxLength);
                assert!(not_ours, "{:?} passed: {frame:02x?}", rejected.reason);
                Taken::Nobody
            }
            (TC_ACT_REDIRECT, Ok(received)) => {
                let mut inner = frame[received.inner.clone()].to_vec();
                if let Some(ecn) = received.ecn {
                    set_ecn(&mut inner, ecn);
                }
                assert_eq!(out, inner, "of {frame:02x?}");
                assert_eq!(received.learn, None);
                let network = self.tables.by_slot(received.slot).unwrap();
                let grown = USERS[usize::from(self.traffic()[0] == before[0])];
                assert_eq!(network.vni.get(), grown, "of {frame:02x?}");
                Taken::Gear
            }
            (action, judged) => {
                panic!("tc says {action} and the engine {judged:?}: {frame:02x?} became {out:02x?}")
            }
        }
    }

    /// A map of the program.
    pub fn map<K: Pod, V: Pod>(&self, name: &str) -> maps::HashMap<MapData, K, V> {
        let ids = self.program.info().unwrap().map_ids().unwrap().unwrap();
        let is_it = |id: &u32| MapInfo::from_id(*id).unwrap().name_as_str() == Some(name);
        let id = ids.into_iter().find(is_it).unwrap();
        Map::HashMap(MapData::from_id(id).unwrap()).try_into().unwrap()
    }

    /// Frames and bytes that the gear counted for each network.
    pub fn traffic(&self) -> [(u64, u64); 2] {
        USERS.map(|vni| {
            let traffic = self.shortcut.traffic(Vni::new(vni).unwrap());
            (traffic.rx_frames, traffic.rx_bytes)
        })
    }
}
