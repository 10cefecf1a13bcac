//! What the kernel's own software GSO sends, byte for byte, is what ours sends. Needs root.

mod common;
#[path = "../engine/tests/frames/mod.rs"]
mod frames;

use frames::{Spec, spec};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::io::IoSlice;
use std::time::{Duration, Instant};
use uvn_dataplane::port::link;
use uvn_dataplane::port::tap::Tap;
use uvn_engine::gro::{Delivery, Gro};
use uvn_engine::gso::Gso;
use uvn_engine::port::{Endpoint, MAX_FRAME, Offloads, VnetHeader};
use uvn_rig::test::NetNs;
use uvn_wire::packet::parse;

/// Cases of each property: a second.
const CASES: u32 = 2000;

/// Two TAPs on a bridge: what enters the first leaves by the second, which takes finished frames only.
struct Cutter {
    left: Tap,
    right: Tap,
    buffer: Vec<u8>,
    _netns: NetNs,
}

impl Cutter {
    fn new() -> Cutter {
        let netns = NetNs::new("gso");
        // A device without IPv6 sends nothing of its own accord.
        netns
            .run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))
            .expect("IPv6 is off");
        netns.ip("link add bridge type bridge mcast_snooping 0 ageing_time 0");
        let open = |name: &str| {
            let tap = netns.run(|| Tap::open(name, 1)).expect("there is a TUN driver").remove(0);
            netns.ip(&format!("link set {name} mtu 9000 txqueuelen 2000 master bridge up"));
            tap
        };
        let (left, right) = (open("left"), open("right"));
        netns.run(|| link::disable_tx_offloads("right")).expect("a TAP can do without offloads");
        netns.ip("link set bridge up");
        Cutter { left, right, buffer: vec![0; MAX_FRAME], _netns: netns }
    }

    /// What the kernel makes of a super-frame.
    fn cut(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>], expected: usize) -> Vec<Vec<u8>> {
        assert!(self.left.send(header, parts).expect("the TAP is there"), "the kernel takes {header:?}");
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut frames = Vec::new();
        while frames.len() < expected && Instant::now() < deadline {
            match self.right.receive(&mut self.buffer).expect("the TAP is there") {
                Some((header, length)) => {
                    assert_eq!((header.flags, header.gso_type), (0, VnetHeader::GSO_NONE), "{header:?}");
                    frames.push(self.buffer[..length].to_vec());
                }
                None => std::thread::yield_now(),
            }
        }
        assert!(
            self.right.receive(&mut self.buffer).expect("the TAP is there").is_none(),
            "one frame too many"
        );
        frames
    }
}

fn ours(header: &VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let gso = Gso::new(header, frame, &parse(frame).expect("a good frame")).expect("good metadata");
    let mut buffer = vec![0; gso.largest()];
    let write = |index| gso.write(index, &mut buffer).map(|length| buffer[..length].to_vec());
    (0..gso.segments()).map_while(write).collect()
}

/// Any packet of a protocol that the TAP takes super-frames of: before kernel 6.2 not UDP.
fn taken(offloads: Offloads) -> impl Strategy<Value = Spec> {
    spec(40_000)
        .prop_map(move |spec| if offloads.udp || spec.tcp { spec } else { Spec { tcp: true, ..spec } })
}

/// Any super-frame that makes up to 100 segments, or with a size of zero a frame with an unfinished checksum.
/// No super-frame of one segment: with TCP options the kernel drops those (it makes none).
fn super_frame(offloads: Offloads) -> impl Strategy<Value = (Spec, u16)> {
    (taken(offloads), 0u16..3, 400u16..8000, any::<bool>()).prop_map(|(mut spec, kind, size, cwr)| {
        if cwr && spec.tcp {
            spec.flags |= 0x80;
        }
        if kind == 0 || spec.payload.len() <= usize::from(size) {
            spec.payload.truncate(8000);
            return (spec, 0);
        }
        (spec, size)
    })
}

fn run<S: Strategy>(strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig {
        cases: CASES,
        max_shrink_time: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if let Err(error) = TestRunner::new(config).run(strategy, property) {
        unreachable!("{error}");
    }
}

#[test]
fn segments_are_those_of_the_kernel() {
    let cutter = RefCell::new(Cutter::new());
    let offloads = cutter.borrow().left.offloads();
    run(&super_frame(offloads), |(spec, size)| {
        let (header, frame) = spec.super_frame(size);
        let ours = ours(&header, &frame);
        let kernels = cutter.borrow_mut().cut(&header, &[IoSlice::new(&frame)], ours.len());
        prop_assert_eq!(ours, kernels);
        Ok(())
    });
}

/// UDP knows no checksum of zero, and when it finishes a single frame the kernel avoids it in TCP too.
#[test]
fn checksums_of_zero_are_those_of_the_kernel() {
    let mut cutter = Cutter::new();
    for (tcp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
        if !tcp && !cutter.left.offloads().udp {
            continue;
        }
        for (size, zero) in [(0, [0xff, 0xff]), (2, if tcp { [0, 0] } else { [0xff, 0xff] })] {
            let mut spec =
                Spec { v6, flags: 0x10, ..if tcp { Spec::tcp(&[0; 2]) } else { Spec::udp(&[0; 2]) } };
            spec.payload = vec![0; if size == 0 { 2 } else { 2 * usize::from(size) }];
            // A segment whose payload is the checksum it would have without has none left.
            let field = spec.headers() - if tcp { 4 + spec.options.len() } else { 2 };
            let segments = spec.segments(2);
            spec.payload =
                segments.iter().flat_map(|segment| segment.build()[field..field + 2].to_vec()).collect();
            let (header, frame) = spec.super_frame(size);
            let ours = ours(&header, &frame);
            assert!(
                ours.iter().all(|frame| frame[field..field + 2] == zero),
                "tcp {tcp}, v6 {v6}, size {size}"
            );
            assert_eq!(cutter.cut(&header, &[IoSlice::new(&frame)], ours.len()), ours);
        }
    }
}

#[test]
fn the_kernel_takes_joined_frames_and_cuts_them_back() {
    let cutter = RefCell::new(Cutter::new());
    let offloads = cutter.borrow().left.offloads();
    run(&(taken(offloads), 700u16..8000), |(spec, size)| {
        let frames: Vec<Vec<u8>> = spec.segments(size).iter().map(Spec::build).collect();
        let mut gro = Gro::default();
        for (index, frame) in frames.iter().enumerate() {
            let packet = parse(frame).expect("a good frame");
            gro.push(1, index as u32, frame, &packet, offloads);
        }
        let mut kernels = Vec::new();
        gro.flush(|delivery| match delivery {
            Delivery::Single { index, .. } => {
                let frame = IoSlice::new(&frames[index as usize]);
                kernels.extend(cutter.borrow_mut().cut(&VnetHeader::default(), &[frame], 1));
            }
            Delivery::Super(joined) => {
                let mut parts = vec![IoSlice::new(joined.head())];
                parts.extend(
                    joined.parts().map(|(index, range)| IoSlice::new(&frames[index as usize][range])),
                );
                kernels.extend(cutter.borrow_mut().cut(&joined.header(), &parts, joined.segments()));
            }
        });
        prop_assert_eq!(frames, kernels);
        Ok(())
    });
}
