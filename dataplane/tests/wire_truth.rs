//! Hostile frames on a wire, with kernel VXLAN beside the data plane: what the kernel delivers we deliver, what it refuses
//! we refuse, byte for byte, whatever the NIC says of checksums. A socket buffer's verdict on them is lost in
//! BPF_PROG_TEST_RUN: here it is real. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;
#[path = "../engine/tests/common/frames.rs"]
mod frames;
#[path = "common/truth.rs"]
mod truth;
#[path = "common/verdict.rs"]
mod verdict;

use common::cluster::{Cluster, Settings, V4, V6, VNI};
use common::engine::Engine;
use common::packet::PacketSocket;
use common::traffic::{self, Place};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use truth::{Case, Inner, Receiver, encapsulation, ethtool, overlay};
use uvn_rig::test::NetNs;
use uvn_wire::checksum::Sum;
use uvn_wire::ecn::CE;
use uvn_wire::ethernet::Mac;
use uvn_wire::ipv4::protocol;
use verdict::Verdicts;

/// ECN-capable transport (RFC 3168 section 5).
const ECT0: u8 = 2;

/// What `ethtool -K` knows of joining received frames.
const MODES: [&str; 4] = [
    "gro on rx-gro-list off rx-udp-gro-forwarding off",
    "gro on rx-gro-list on rx-udp-gro-forwarding off",
    "gro on rx-gro-list off rx-udp-gro-forwarding on",
    "gro off rx-gro-list off rx-udp-gro-forwarding off",
];

/// Frames of one attack; each is a flow of its own.
struct Attack<'a> {
    vteps: &'a [IpAddr],
    cases: Vec<Case>,
}

impl<'a> Attack<'a> {
    fn new(vteps: &'a [IpAddr]) -> Self {
        Attack { vteps, cases: Vec::new() }
    }

    fn wrapped(&self, inner: Inner, v6: bool, outer_ecn: u8) -> Vec<u8> {
        let id = 20_000 + self.cases.len() as u16;
        let inner = inner.frame(self.vteps, overlay(v6), id);
        frames::vxlan(&encapsulation(), self.vteps[1], self.vteps[0], VNI, outer_ecn, &inner)
    }

    fn add(&mut self, name: impl Into<String>, frame: Vec<u8>, arrives: bool) {
        self.cases.push(Case { name: name.into(), frame, arrives });
    }

    /// Every protocol over both families, right and damaged.
    fn sums(mut self, sizes: &[usize]) -> Self {
        for (v6, protocol, size) in [false, true].into_iter().flat_map(|v6| {
            let protocols = [protocol::UDP, protocol::TCP, protocol::ICMP].into_iter();
            protocols.flat_map(move |protocol| sizes.iter().map(move |size| (v6, protocol, *size)))
        }) {
            for damaged in [false, true] {
                let inner = Inner { protocol, size, damaged, ..Inner::UDP };
                self.add(format!("IPv6 {v6}, {inner:?}"), self.wrapped(inner, v6, 0), !damaged);
            }
        }
        for v6 in [false, true] {
            let inner = Inner { unsummed: true, ..Inner::UDP };
            self.add("no inner sum", self.wrapped(inner, v6, 0), !v6);
        }
        self
    }

    /// Marked on the way.
    fn marks(mut self) -> Self {
        for (v6, size) in [(false, 20), (false, 300), (true, 20), (true, 300), (true, 1001)] {
            for (protocol, ecn) in [(protocol::UDP, ECT0), (protocol::TCP, ECT0), (protocol::UDP, 0)] {
                let inner = Inner { protocol, size, ecn, ..Inner::UDP };
                self.add(format!("CE, {inner:?}"), self.wrapped(inner, v6, CE), ecn != 0);
            }
            let inner = Inner { size, ecn: ECT0, damaged: true, ..Inner::UDP };
            self.add(format!("CE, {inner:?}"), self.wrapped(inner, v6, CE), false);
        }
        self
    }

    /// What belongs to this host, and what does not.
    fn outsides(mut self) -> Self {
        let tags: [(&str, &[u8], bool); 4] = [
            ("priority 0", &[0x81, 0, 0, 0], true),
            ("priority 3", &[0x81, 0, 0x60, 0], true),
            ("service priority", &[0x88, 0xa8, 0, 0], true),
            ("VLAN", &[0x81, 0, 0, 5], false),
        ];
        for v6 in [false, true] {
            for (name, tag, arrives) in tags {
                let frame = self.wrapped(Inner::UDP, v6, 0);
                self.add(name, [&frame[..12], tag, &frame[12..]].concat(), arrives);
                let inner = Inner { damaged: true, ..Inner::UDP };
                let frame = self.wrapped(inner, v6, 0);
                self.add(format!("{name}, damaged"), [&frame[..12], tag, &frame[12..]].concat(), false);
            }
            let other = self.wrapped(Inner::UDP, v6, 0);
            self.add("another host's MAC", [&[2, 0, 0, 0, 0, 9], &other[6..]].concat(), false);
            let all = self.wrapped(Inner::UDP, v6, 0);
            self.add("broadcast MAC", [&[0xff; 6], &all[6..]].concat(), true);
        }
        if self.vteps[0].is_ipv4() {
            // Loose source route by way of 10.0.0.9 (RFC 791 section 3.1).
            let routed = with_options(&self.wrapped(Inner::UDP, false, 0), [131, 7, 4, 10, 0, 0, 9, 0]);
            self.add("source route", routed, false);
            let mut wrong = self.wrapped(Inner::UDP, false, 0);
            wrong[24] ^= 1;
            self.add("wrong outer header sum", wrong, false);
        }
        self
    }
}

/// With eight bytes of options in the outer IPv4 header.
fn with_options(frame: &[u8], options: [u8; 8]) -> Vec<u8> {
    let mut header = [&frame[14..34], &options].concat();
    let length = u16::from_be_bytes([header[2], header[3]]) + 8;
    header[0] = 0x47;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[10..12].fill(0);
    let sum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&frame[..14], &header, &frame[34..]].concat()
}

/// Each receiver, the kernel first, meets the same frames in every mode.
fn compare(receivers: &[Receiver], cases: &[Case], modes: &[&str], says: impl Fn(&str) -> Nic) {
    let tell = cases.iter().filter(|case| case.arrives).count();
    for mode in modes {
        let outcomes: Vec<_> = receivers
            .iter()
            .map(|receiver| {
                receiver.offloads(mode);
                receiver.judge(cases.iter().map(|case| &case.frame[..]), tell)
            })
            .collect();
        for (receiver, outcome) in receivers.iter().zip(&outcomes) {
            let name = receiver.name;
            for case in cases {
                let inner = case.frame.len().checked_sub(20).map(|start| &case.frame[start..]).unwrap();
                let [kernel, here] = [&outcomes[0], outcome]
                    .map(|outcome| outcome.handed.iter().find(|frame| frame.ends_with(inner)));
                assert_eq!(here, kernel, "{name}, {mode}: {}: what the endpoint gets", case.name);
            }
            assert_eq!(outcome.told.len(), tell, "{name}, {mode}: how many arrive");
            assert!(
                outcome.told == outcomes[0].told,
                "{name}, {mode}: what arrives is not what the kernel's gets"
            );
            // XDP takes them before there is a socket buffer.
            if name != "engine" {
                let Verdicts { none, complete, unnecessary } = outcome.verdicts;
                let verified: u64 = unnecessary.iter().sum();
                let said = match says(mode) {
                    Nic::Nothing => none > 0 && complete + verified == 0,
                    Nic::Sum => complete > 0 && none + verified == 0,
                    // The outer sum of all, and the inner one of TCP, where it is right.
                    Nic::Verified => unnecessary[0] > 0 && unnecessary[1] > 0 && complete == 0,
                };
                assert!(said, "{name}, {mode}: {:?}", outcome.verdicts);
            }
        }
    }
}

/// What a NIC, or GRO behind it, says of checksums.
#[derive(Debug, Clone, Copy)]
enum Nic {
    /// CHECKSUM_NONE.
    Nothing,
    /// CHECKSUM_COMPLETE.
    Sum,
    /// CHECKSUM_UNNECESSARY.
    Verified,
}

/// GRO finds the outer sum right, which is not there; without it nobody has looked.
fn plain_nic(mode: &str) -> Nic {
    if mode.starts_with("gro on") { Nic::Verified } else { Nic::Nothing }
}

fn receivers(names: &[&'static str], cluster: impl Fn() -> Cluster) -> Vec<Receiver> {
    names.iter().map(|name| Receiver::new(name, cluster())).collect()
}

fn frames_over(vteps: &[IpAddr]) {
    let receivers = receivers(&["kernel", "engine", "shortcut"], || Cluster::wired(vteps, 1));
    let attack = Attack::new(vteps).sums(&[20, 300, 1300]).marks().outsides();
    compare(&receivers, &attack.cases, &MODES, plain_nic);
}

#[test]
fn frames_over_ipv4() {
    frames_over(&V4[..2]);
}

#[test]
fn frames_over_ipv6() {
    frames_over(&V6[..2]);
}

/// What the kernel takes and we refuse, with a counter: no VXLAN sender writes it.
#[test]
fn outer_headers_that_nobody_writes() {
    let receivers = receivers(&["kernel", "engine", "shortcut"], || Cluster::wired(&V4[..2], 1));
    let attack = Attack::new(&V4[..2]);
    let frame = attack.wrapped(Inner::UDP, false, 0);
    let tag = [0x81, 0, 0, 0];
    let twice = [&frame[..12], &tag, &tag, &frame[12..]].concat();
    for frame in [with_options(&frame, [1; 8]), twice] {
        for receiver in &receivers {
            let before = receiver.engine.as_ref().map(Engine::counted);
            let tell = usize::from(receiver.engine.is_none());
            let outcome = receiver.judge([&frame[..]], tell);
            assert_eq!(outcome.told.len(), tell, "{}", receiver.name);
            if let (Some(engine), Some(before)) = (&receiver.engine, before) {
                assert!(outcome.handed.is_empty());
                assert_eq!(engine.counted().since(&before).verdict("xdp_bad_header"), 1, "{}", receiver.name);
            }
        }
    }
}

/// The kernel has a sum over the whole frame, which every change to a header must keep right.
#[test]
fn frames_of_a_nic_that_sums_up() {
    for vteps in [&V4[..2], &V6[..2]] {
        let receivers = receivers(&["kernel", "shortcut"], || Cluster::summed(vteps));
        let attack = Attack::new(vteps).sums(&[20, 300]).marks().outsides();
        compare(&receivers, &attack.cases, &["gro on", "gro off"], |_| Nic::Sum);
    }
}

#[test]
fn jumbo_frames() {
    for vteps in [&V4[..2], &V6[..2]] {
        let receivers = receivers(&["kernel", "shortcut"], || {
            let cluster = Cluster::wired(vteps, 1);
            cluster.nodes.iter().for_each(|node| drop(node.ip("link set em1 mtu 9000")));
            cluster
        });
        let attack = Attack::new(vteps).sums(&[2000, 8800]);
        compare(&receivers, &attack.cases, &[MODES[0], MODES[3]], plain_nic);
    }
}

/// Carries frames between two ports and damages one in so many of the long ones to the first, until it is dropped.
fn relay(between: &NetNs, done: &AtomicBool, damaged: &AtomicU64) {
    const ONE_IN: u64 = 50;
    let ports = [0, 1].map(|port| PacketSocket::new(between, &format!("port{port}")));
    ports.iter().for_each(|port| port.set_buffer(64 << 20));
    std::thread::scope(|scope| {
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to, is_hit) = (&ports[from], &ports[to], to == 0);
            scope.spawn(move || {
                let mut long = 0;
                while !done.load(Relaxed) {
                    let Some(mut frame) = from.receive(Duration::from_millis(20)) else { continue };
                    if is_hit && frame.len() > 1000 {
                        long += 1;
                        if long % ONE_IN == 0 {
                            frame[700] ^= 0x40;
                            damaged.fetch_add(1, Relaxed);
                        }
                    }
                    to.try_send(&frame);
                }
            });
        }
    });
}

/// TCP protects its bytes against what passes the checksums of the link.
#[test]
fn a_damaged_stream_is_repaired() {
    for sections in ["path = \"engine\"", "path = \"shortcut\""] {
        let (cluster, between) = Cluster::relayed(&V4[..2]);
        let cluster = cluster.together();
        ethtool(&cluster.nodes[0], "em1", MODES[0]);
        let (done, damaged) = (AtomicBool::new(false), AtomicU64::new(0));
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| relay(&between, &done, &damaged));
            let _done = Done(&done);
            let _engine = cluster.engine(0, &Settings { sections, ..Settings::default() });
            cluster.kernel(1, "remote 10.0.0.1 noudpcsum", Mac::of(V4[1]));
            let ((here, own), (there, others)) = (cluster.user(0), cluster.user(1));
            for (own, other) in own.into_iter().zip(others) {
                traffic::tcp(Place(there, other), Place(here, own), 1 << 20);
            }
        });
        assert!(damaged.load(Relaxed) > 10, "{sections}: only {damaged:?} frames were damaged");
    }
}

/// A wire between containers hands a super-frame over as it is, and a NIC may join one: the receiver's kernel cuts it.
#[test]
fn udp_super_frames_arrive() {
    for (vteps, kernel) in [
        (&V4[..2], "remote 10.0.0.1 noudpcsum"),
        (&V6[..2], "remote fd00:10::1 udp6zerocsumtx udp6zerocsumrx"),
    ] {
        let cluster = Cluster::wired(vteps, 1).together();
        let offloads = "tx on tso on gso on tx-udp-segmentation on tx-udp_tnl-segmentation on";
        cluster.nodes.iter().for_each(|node| ethtool(node, "em1", offloads));
        let sections = "path = \"shortcut\"\n[encapsulation]\nipv6_checksum = false";
        let engine = cluster.engine(0, &Settings { sections, ..Settings::default() });
        let before = engine.counted();
        cluster.kernel(1, kernel, Mac::of(vteps[1]));
        let nic = PacketSocket::new(&cluster.nodes[0], "em1");
        nic.set_buffer(64 << 20);
        for (from, to) in [(1, 0), (0, 1)] {
            let ((here, own), (there, others)) = (cluster.user(from), cluster.user(to));
            for (own, other) in own.into_iter().zip(others) {
                traffic::udp_segmented(Place(here, own), Place(there, other), 40, 1000);
            }
            let mut longest = 0;
            while let Some(frame) = nic.receive(Duration::ZERO) {
                longest = longest.max(frame.len());
            }
            assert!(longest > 40_000, "it was cut: {longest}");
        }
        assert!(engine.counted().since(&before).drops.is_empty());
    }
}

/// The kernel could not cut what has outer headers already and no checksum to be computed by the device.
#[test]
fn udp_super_frames_leave_an_endpoint_without_checksum_offload() {
    for vteps in [&V4[..2], &V6[..2]] {
        let cluster = Cluster::wired(vteps, 1).together();
        let sections = "path = \"shortcut\"\n[encapsulation]\nipv6_checksum = false";
        let settings = Settings { sections, ..Settings::default() };
        let engines = [0, 1].map(|node| cluster.engine(node, &settings));
        let ((here, own), (there, others)) = (cluster.user(0), cluster.user(1));
        for offload in ["tx off", "tx on"] {
            ethtool(here, "uvn", offload);
            let before = engines[0].counted();
            for (own, other) in own.into_iter().zip(others) {
                traffic::udp_segmented(Place(here, own), Place(there, other), 40, 1000);
            }
            let encapsulated = engines[0].counted().since(&before).verdict("tc_encapsulated");
            assert_eq!(encapsulated >= 2, offload == "tx on", "{offload}: {encapsulated}");
            for (own, other) in own.into_iter().zip(others) {
                let (own, other) = (Place(here, own), Place(there, other));
                traffic::udp(own, other, &[1000]);
                traffic::tcp(own, other, 1 << 16);
            }
        }
        engines.iter().for_each(Engine::assert_no_drops);
    }
}
