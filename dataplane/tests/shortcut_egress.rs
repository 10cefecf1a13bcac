//! What the shortcut puts on the wire, byte for byte: the frames and super-frames of an endpoint in the headers
//! that the engine would have written. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;
#[path = "../engine/tests/common/frames.rs"]
mod crafted;
#[path = "../engine/tests/frames/mod.rs"]
mod frames;

use aya::TestRunOptions;
use aya::programs::{ProgramType, SchedClassifier, TcAttachType, TestRun};
use aya::sys::{BpfHelper, is_helper_supported};
use common::cluster::{network, v4, v6};
use common::engine::Engine;
use common::packet::PacketSocket;
use crafted::fragment;
use frames::{Spec, bytes};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;
use uvn_api::dataplane::config::{Dscp, Encapsulation};
use uvn_dataplane::port::link;
use uvn_dataplane::port::tap::Tap;
use uvn_engine::outer::{Outer, Patch};
use uvn_engine::port::VnetHeader;
use uvn_rig::test::NetNs;
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::Vni;
use zerocopy::IntoBytes;

const VNI: u32 = 0x01_0203;
const NIC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const NEXT: Mac = Mac([2, 0, 0, 0, 0, 2]);
const PATIENCE: Duration = Duration::from_secs(30);
/// include/uapi/linux/pkt_cls.h
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_REDIRECT: i32 = 7;
/// Where struct __sk_buff has the index of its device (include/uapi/linux/bpf.h).
const IFINDEX: usize = 40;

/// A node with one endpoint, whose kernel is silent, and the other end of its wire.
struct Rig {
    engine: Engine,
    endpoint: PacketSocket,
    wire: PacketSocket,
    outer: Outer,
    vteps: [IpAddr; 2],
    mtu: usize,
    _netns: [NetNs; 2],
}

impl Rig {
    /// `settings` as in the section `[encapsulation]`, too.
    fn new(ipv6: bool, settings: Encapsulation, section: &str) -> Rig {
        let netns = [NetNs::new("node"), NetNs::new("outside")];
        let [node, outside] = &netns;
        node.veth("em1", outside, "wire");
        node.ip(&format!("link set em1 address {NIC}"));
        // The wire carries finished frames.
        node.run(|| link::disable_tx_offloads("em1")).unwrap();
        let vteps = if ipv6 { [v6(1), v6(2)] } else { [v4(1), v4(2)] };
        let nodad = if ipv6 { "nodad" } else { "" };
        node.ip(&format!("addr add {}/{} dev em1 {nodad}", vteps[0], if ipv6 { 64 } else { 24 }));
        node.ip(&format!("neigh add {} lladdr {NEXT} nud permanent dev em1", vteps[1]));
        for netns in &netns {
            netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        }
        outside.run(|| std::fs::write("/proc/sys/net/ipv6/conf/wire/disable_ipv6", "1").unwrap());
        let overlay = |last: u8| Spec { v6: true, ..Spec::tcp(&[]) }.address_of(last);
        let mut engine = Engine::start(
            node,
            &format!(
                r#"
                nic = "em1"
                vtep = ["{}"]
                path = "shortcut"
                [encapsulation]
                {section}
                [peers]
                vtep = [{{ address = "{}", overlay = ["{}", "{}"] }}]
                "#,
                vteps[0],
                vteps[1],
                v4(2),
                overlay(2)
            ),
        );
        let tap = node.run(|| Tap::open("uvn", 1)).unwrap().remove(0);
        node.ip("link set uvn mtu 9000 up");
        let network = network(VNI, [v4(1), overlay(1)], vteps[1]);
        engine.client().add_network(&network, &[tap.as_fd()]).unwrap();
        engine.wait_for_hops();
        engine.wait_for_gear();
        assert!(engine.network(VNI).shortcut);
        let (endpoint, wire) = (PacketSocket::new(node, "uvn"), PacketSocket::new(outside, "wire"));
        endpoint.set_metadata();
        wire.set_buffer(16 << 20);
        let outer = Outer::new(&settings, NIC, NEXT, vteps[0], vteps[1]);
        let mtu = if ipv6 { 1430 } else { 1450 };
        Rig { engine, endpoint, wire, outer, vteps, mtu, _netns: netns }
    }

    /// A frame of the endpoint to the peer.
    fn spec(&self, v6: bool, tcp: bool, payload: usize) -> Spec {
        let payload = bytes(payload, 42);
        let [own, peer] = self.vteps.map(|vtep| Mac::of(vtep).0);
        let macs = [peer, own].concat().try_into().unwrap();
        Spec { v6, macs, ..if tcp { Spec::tcp(&payload) } else { Spec::udp(&payload) } }
    }

    /// Sends it, `size` bytes of payload in a segment, and expects its segments on the wire, from this gear.
    fn expect(&self, spec: &Spec, size: u16, header: VnetHeader, frame: &[u8]) {
        let name = format!("{size} bytes of {} in {spec:.0?}", spec.payload.len());
        let before = self.engine.counted();
        self.endpoint.send(&[header.as_bytes(), frame].concat());
        let segments = if size == 0 { vec![spec.clone()] } else { spec.segments(size) };
        for segment in &segments {
            self.expect_on_wire(&segment.build(), spec.tos, &name);
        }
        assert_eq!(self.next(Duration::ZERO), None, "{name}: more than that");
        let counted = self.engine.counted().since(&before);
        assert_eq!(
            (counted.verdict("tc_encapsulated"), counted.tx_frames),
            (1, segments.len() as u64),
            "{name}"
        );
    }

    /// The next frame on the wire. Not what the node's kernel says of its own accord, when it likes: MLD, router
    /// solicitations.
    fn next(&self, timeout: Duration) -> Option<Vec<u8>> {
        let is_udp = |frame: &Vec<u8>| frame[12..14] != [0x86, 0xdd] || frame[20] == 17;
        std::iter::from_fn(|| self.wire.receive(timeout)).find(is_udp)
    }

    fn expect_on_wire(&self, inner: &[u8], tos: u8, name: &str) {
        let mut got = self.next(PATIENCE).unwrap_or_else(|| panic!("{name}: nothing"));
        let ipv4 = got[12] == 8;
        let upper = if ipv4 { 34 } else { 54 };
        let source_port = u16::from_be_bytes([got[upper], got[upper + 1]]);
        assert!(source_port >= 0xc000, "{name}");
        let mut expected = vec![0; self.outer.length() + inner.len()];
        expected[self.outer.length()..].copy_from_slice(inner);
        let patch = Patch { vni: Vni::new(VNI).unwrap(), source_port, inner_tos: tos };
        self.outer.write(&mut expected, patch, inner.len()).unwrap();
        assert!(got.len() <= 1514, "{name}: {} bytes", got.len());
        if ipv4 {
            assert!(Sum::of(&got[14..34]).is_valid(), "{name}: the outer header's sum");
            // The kernel numbers the packets that it cuts, which nobody needs who never fragments (RFC 6864).
            for frame in [&mut got, &mut expected] {
                frame[18..20].fill(0);
                frame[24..26].fill(0);
            }
        }
        assert_eq!(got[..self.outer.length()], expected[..self.outer.length()], "{name}: the outer headers");
        assert!(got == expected, "{name}: inside\n{got:02x?}\n{expected:02x?}");
    }
}

/// Encapsulations as TOML and as the engine has them.
fn encapsulations() -> Vec<(&'static str, Encapsulation)> {
    let default = Encapsulation { ipv6_checksum: false, ..Encapsulation::default() };
    let inherit = toml::from_str::<Encapsulation>("dscp = \"inherit\"").unwrap().dscp;
    vec![
        ("ipv6_checksum = false", default),
        (
            "ipv6_checksum = false\nttl = 7\ndscp = 46",
            Encapsulation { ttl: 7, dscp: Dscp::Fixed(46), ..default },
        ),
        ("ipv6_checksum = false\ndscp = \"inherit\"", Encapsulation { dscp: inherit, ..default }),
    ]
}

#[test]
fn frames_are_those_of_the_engine() {
    for (section, settings) in encapsulations() {
        for ipv6 in [false, true] {
            let rig = Rig::new(ipv6, settings, section);
            for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
                for tos in [0, 1, 2, 3, 0xb8, 0xb9, 0xbb] {
                    let spec = Spec { tos, ..rig.spec(v6, tcp, 100) };
                    rig.expect(&spec, 0, VnetHeader::default(), &spec.build());
                }
                // With the checksum still to be finished, up to what just fits.
                let longest = rig.mtu + 14 - rig.spec(v6, tcp, 0).headers();
                for payload in [1, 2, 3, 999, longest] {
                    let spec = rig.spec(v6, tcp, payload);
                    let (header, frame) = spec.super_frame(0);
                    rig.expect(&spec, 0, header, &frame);
                }
            }
        }
    }
}

#[test]
fn segments_are_those_of_the_engine() {
    for (section, settings) in encapsulations() {
        for ipv6 in [false, true] {
            let rig = Rig::new(ipv6, settings, section);
            for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
                let most = (rig.mtu + 14 - rig.spec(v6, tcp, 0).headers()) as u16;
                for (size, payload) in
                    [(most, 60_000), (most, usize::from(most) + 1), (1000, 2000), (536, 40_000)]
                {
                    let spec = Spec { tos: 0x2a, ..rig.spec(v6, tcp, payload) };
                    let (header, frame) = spec.super_frame(size);
                    rig.expect(&spec, size, header, &frame);
                }
            }
        }
    }
}

#[test]
fn fragments_are_those_of_the_engine() {
    for ipv6 in [false, true] {
        let rig = Rig::new(ipv6, encapsulations()[0].1, encapsulations()[0].0);
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let spec = Spec { tos: 0x2a, ..rig.spec(v6, tcp, 200) };
            for (range, more) in [(0..104, true), (104..160, true), (160..208, false)] {
                let (name, before) = (format!("{range:?} of {spec:.0?}"), rig.engine.counted());
                let frame = fragment(&spec.build(), range, more);
                rig.endpoint.send(&[VnetHeader::default().as_bytes(), &frame].concat());
                rig.expect_on_wire(&frame, spec.tos, &name);
                let counted = rig.engine.counted().since(&before);
                assert_eq!((counted.verdict("tc_encapsulated"), counted.tx_frames), (1, 1), "{name}");
            }
        }
    }
}

/// Whether a socket's frames are this gear's: from the endpoint's own network namespace, and from another, to which somebody
/// has just moved it.
#[test]
fn frames_of_another_network_namespace_are_the_engines() {
    let rig = Rig::new(false, Encapsulation::default(), "");
    let [node, outside] = &rig._netns;
    let index = node.run(|| link::get("uvn").unwrap().index);
    outside.ip(&format!("link add moved index {index} type veth peer name far"));
    let program = node.run(|| {
        let (_, mut programs) = SchedClassifier::query_tcx("uvn", TcAttachType::Egress).unwrap();
        SchedClassifier::from_program_info(programs.remove(0), "uvn_egress".into()).unwrap()
    });
    let frame = rig.spec(false, false, 100).build();
    let run = || {
        let mut skb = [0; IFINDEX + 4];
        skb[IFINDEX..].copy_from_slice(&index.to_ne_bytes());
        let mut out = [0; 512];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            ctx_in: Some(&skb),
            ..TestRunOptions::default()
        };
        program.test_run(options).unwrap().return_value as i32
    };
    assert_eq!(node.run(run), TC_ACT_REDIRECT);
    // Before Linux 6.13 no program can tell.
    let knows =
        is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_get_netns_cookie).unwrap();
    assert_eq!(outside.run(run), if knows { TC_ACT_UNSPEC } else { TC_ACT_REDIRECT });
}

/// What is not plain, or does not fit, takes the engine's way; the gear neither sends nor drops it.
#[test]
fn the_rest_is_the_engines() {
    let rig = Rig::new(false, Encapsulation::default(), "");
    let check = |name: &str, header: VnetHeader, frame: &[u8], sent: u64, drops: &[(&str, u64)]| {
        let before = rig.engine.counted();
        let all = |counted: &common::engine::Counted| counted.tx_frames + counted.drops.values().sum::<u64>();
        rig.endpoint.send(&[header.as_bytes(), frame].concat());
        let count = sent + drops.iter().map(|(_, count)| count).sum::<u64>();
        let counted = rig.engine.counted_when(name, |now| all(now) >= all(&before) + count).since(&before);
        let drops = drops.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        assert_eq!((counted.tx_frames, &counted.drops), (sent, &drops), "{name}");
        let gear: Vec<_> = counted.xdp.keys().filter(|name| name.starts_with("tc_")).collect();
        assert!(gear.is_empty(), "{name}: {counted:?}");
        for _ in 0..sent {
            assert!(rig.next(PATIENCE).is_some(), "{name}");
        }
        assert_eq!(rig.next(Duration::ZERO), None, "{name}");
    };
    let none = VnetHeader::default();
    let udp = rig.spec(false, false, 100).build();
    let edited = |at: usize, byte: u8| {
        let mut frame = udp.clone();
        frame[at] = byte;
        frame
    };
    check("another protocol", none, &edited(23, 47), 1, &[]);
    // Held by the engine: what will not become whole goes no further.
    let other = edited(23, 47);
    check(
        "a fragment of it",
        none,
        &[&other[..20], &[0x20], &other[21..]].concat(),
        0,
        &[("tx_fragment", 1)],
    );
    check("broadcast", none, &[&[0xff; 6], &udp[6..]].concat(), 1, &[]);
    check(
        "own VXLAN port",
        none,
        &[&udp[..36], &[0x12, 0xb5], &udp[38..]].concat(),
        0,
        &[("tx_nested_vxlan", 1)],
    );
    let to_port = [&udp[..20], &[0x20], &udp[21..36], &[0x12, 0xb5], &udp[38..]].concat();
    check("a fragment to it", none, &to_port, 0, &[("tx_nested_vxlan", 1)]);
    let long = rig.spec(false, false, 2000).build();
    check("too long", none, &long, 0, &[("tx_too_big", 1)]);
    // Segments of more than fits: the kernel cuts them for the TAP, as their sender is not to be trusted.
    let spec = rig.spec(false, true, 4000);
    let (header, frame) = spec.super_frame(2000);
    check("too long segments", header, &frame, 0, &[("tx_too_big", 2)]);
    // VIRTIO_NET_HDR_GSO_UDP: one datagram, to be cut into IP fragments.
    let spec = Spec { dont_fragment: false, ..rig.spec(false, false, 4000) };
    let (header, frame) = spec.super_frame(1400);
    check("fragments to be made", VnetHeader { gso_type: 3, ..header }, &frame, 3, &[]);
}
