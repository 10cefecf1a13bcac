//! Segmentation and coalescing against a segmenter that builds each frame on its own, and against each other.

mod frames;

use frames::{Spec, bytes, spec};
use proptest::collection::vec;
use proptest::prelude::*;
use uvn_engine::gro::{Delivery, Gro};
use uvn_engine::gso::{BadOffload, Gso, MAX_SEGMENTS};
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_wire::packet::{Packet, parse};
use zerocopy::FromBytes;

const ALL: Offloads = Offloads { tcp: true, udp: true };

/// The frames that GSO makes of one.
fn cut(header: &VnetHeader, frame: &[u8]) -> Result<Vec<Vec<u8>>, BadOffload> {
    let gso = Gso::new(header, frame, &parse(frame).expect("a frame that parses"))?;
    let mut buffer = vec![0xee; gso.largest() + 1];
    let frames: Vec<Vec<u8>> = (0..gso.segments())
        .map(|index| {
            let length = gso.write(index, &mut buffer).expect("the buffer is large enough");
            assert!(length <= gso.largest());
            assert_eq!(buffer[gso.largest()], 0xee);
            buffer[..length].to_vec()
        })
        .collect();
    assert_eq!(gso.write(gso.segments(), &mut buffer), None);
    assert_eq!(gso.write(0, &mut buffer[..gso.largest() - 1]), None);
    Ok(frames)
}

/// What GRO makes of frames, each with its network: super-frames as they would be written to the endpoint.
fn join(batch: &[(u32, Vec<u8>)], offloads: Offloads) -> Vec<(u32, VnetHeader, Vec<u8>)> {
    let mut gro = Gro::default();
    let first = join_with(&mut gro, batch, offloads);
    assert_eq!(join_with(&mut gro, batch, offloads), first, "the first batch left something behind");
    first
}

fn join_with(gro: &mut Gro, batch: &[(u32, Vec<u8>)], offloads: Offloads) -> Vec<(u32, VnetHeader, Vec<u8>)> {
    for (index, (network, frame)) in batch.iter().enumerate() {
        gro.push(*network, index as u32, frame, &parse(frame).expect("a frame that parses"), offloads);
    }
    let mut delivered = Vec::new();
    let mut used = vec![false; batch.len()];
    let mut take = |network: u32, index: u32| {
        assert!(!std::mem::replace(&mut used[index as usize], true), "frame {index} is delivered twice");
        assert_eq!(batch[index as usize].0, network);
        &batch[index as usize].1
    };
    gro.flush(|delivery| match delivery {
        Delivery::Single { network, index } => {
            delivered.push((network, VnetHeader::default(), take(network, index).clone()));
        }
        Delivery::Super(joined) => {
            let mut frame = joined.head().to_vec();
            for (index, range) in joined.parts() {
                frame.extend(&take(joined.network(), index)[range]);
            }
            assert!(joined.segments() > 1);
            assert_eq!(joined.segments(), joined.parts().count());
            delivered.push((joined.network(), joined.header(), frame));
        }
    });
    assert!(used.iter().all(|used| *used), "a frame is lost");
    delivered
}

fn on_one_network(frames: impl IntoIterator<Item = Spec>) -> Vec<(u32, Vec<u8>)> {
    frames.into_iter().map(|spec| (1, spec.build())).collect()
}

/// How many frames each delivery stands for.
fn shape(frames: impl IntoIterator<Item = Spec>) -> Vec<usize> {
    let joined = join(&on_one_network(frames), ALL);
    joined
        .iter()
        .map(|(_, header, frame)| cut(header, frame).expect("what GRO made can be cut").len())
        .collect()
}

#[test]
fn plain_frames_pass_unchanged() {
    let frame = Spec::tcp(b"x").build();
    assert_eq!(cut(&VnetHeader::default(), &frame).unwrap(), [frame]);
    let mut arp = [[0xff; 6], [2; 6]].concat();
    arp.extend([8, 6]);
    arp.resize(42, 0);
    assert_eq!(cut(&VnetHeader::default(), &arp).unwrap(), [arp]);
}

#[test]
fn a_udp_checksum_of_zero_becomes_ffff() {
    let mut spec = Spec::udp(&[0, 0]);
    let rest = spec.build();
    let checksum = u16::from_be_bytes([rest[40], rest[41]]);
    spec.payload = checksum.to_be_bytes().to_vec();
    let (header, frame) = spec.super_frame(0);
    let frames = cut(&header, &frame).unwrap();
    assert_eq!(frames[0][40..42], [0xff, 0xff]);
    assert_eq!(frames, [spec.build()]);
}

/// A super-frame whose payload fits one segment is an ordinary one (virtio_net_hdr_to_skb).
#[test]
fn one_segment_is_no_super_frame() {
    let spec = Spec::tcp(&bytes(1448, 1));
    let (header, frame) = spec.super_frame(1448);
    assert_eq!(cut(&header, &frame).unwrap(), [spec.build()]);
}

#[test]
fn contradictions_are_refused() {
    let (good, frame) = Spec::tcp(&bytes(3000, 1)).super_frame(1448);
    assert_eq!(cut(&good, &frame).unwrap().len(), 3);
    let size = |size, payload| BadOffload::Size { size, payload };
    assert_eq!(cut(&VnetHeader { gso_size: 0, ..good }, &frame), Err(size(0, 3000)));
    assert_eq!(cut(&VnetHeader { gso_size: 1, ..good }, &frame), Err(size(1, 3000)));
    const { assert!(MAX_SEGMENTS < 3000) };
    for (gso_type, error) in [
        (2, BadOffload::Type(2)),
        (VnetHeader::GSO_TCPV6, BadOffload::Protocol("TCP over IPv6")),
        (VnetHeader::GSO_UDP, BadOffload::Protocol("UDP")),
    ] {
        assert_eq!(cut(&VnetHeader { gso_type, ..good }, &frame), Err(error));
    }
    for header in [
        VnetHeader { flags: 0, ..good },
        VnetHeader { checksum_start: 33, ..good },
        VnetHeader { checksum_offset: 6, ..good },
    ] {
        assert!(matches!(cut(&header, &frame), Err(BadOffload::Checksum { .. })), "{header:?}");
    }
    let mut fragment = frame.clone();
    fragment[20] |= 0x20;
    assert_eq!(cut(&good, &fragment), Err(BadOffload::Protocol("TCP over IPv4")));
    for offset in [0x40, 0xf0] {
        let mut frame = Spec::tcp(&[0; 20]).super_frame(10).1;
        frame[46] = offset;
        assert_eq!(cut(&VnetHeader { gso_size: 10, ..good }, &frame), Err(BadOffload::Header));
    }
}

/// The checksum is stored after addresses and ports were verified: it must not fall on them.
#[test]
fn the_checksum_cannot_overwrite_what_was_verified() {
    let (good, frame) = Spec::udp(&bytes(10, 1)).super_frame(0);
    for field in 0..=u16::from(u8::MAX) {
        for start in [0, 14, 34, field] {
            let Some(offset) = field.checked_sub(start) else { continue };
            let header = VnetHeader { checksum_start: start, checksum_offset: offset, ..good };
            let allowed = (38..=50).contains(&field);
            match cut(&header, &frame) {
                Ok(frames) => assert!(allowed && frames[0][..38] == frame[..38], "{header:?}"),
                Err(error) => assert!(!allowed && matches!(error, BadOffload::Checksum { .. }), "{header:?}"),
            }
        }
    }
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
    assert!(cut(&good, &arp).is_err());
}

#[test]
fn a_flow_ends_as_in_linux() {
    let segment = |number: u32, length: usize| Spec {
        sequence: 1000 + number * 100,
        identification: number as u16,
        ..Spec::tcp(&bytes(length, number))
    };
    let three = |change: &dyn Fn(&mut Spec)| {
        let mut segments: Vec<Spec> = (0..3).map(|number| segment(number, 100)).collect();
        change(&mut segments[1]);
        shape(segments)
    };
    assert_eq!(three(&|_| ()), [3]);
    assert_eq!(three(&|second| second.flags |= 0x08), [2, 1], "PSH");
    assert_eq!(three(&|second| second.flags |= 0x01), [2, 1], "FIN");
    assert_eq!(three(&|second| second.payload.truncate(99)), [2, 1], "short");
    type Change = (&'static str, fn(&mut Spec));
    let apart: [Change; 18] = [
        ("longer", |second| second.payload.push(0)),
        ("SYN", |second| second.flags |= 0x02),
        ("RST", |second| second.flags |= 0x04),
        ("URG", |second| second.flags |= 0x20),
        ("ECE", |second| second.flags |= 0x40),
        ("CWR", |second| second.flags |= 0x80),
        ("acknowledgement", |second| second.acknowledgement += 1),
        ("sequence", |second| second.sequence += 1),
        ("window", |second| second.window += 1),
        ("option", |second| second.options[7] += 1),
        ("options", |second| second.options.truncate(8)),
        ("CE", |second| second.tos |= 3),
        ("TTL", |second| second.ttl -= 1),
        ("DF", |second| second.dont_fragment = false),
        ("identification", |second| second.identification += 7),
        ("source MAC", |second| second.macs[11] += 1),
        ("urgent pointer", |second| second.urgent += 1),
        ("destination", |second| second.addresses.1 += 1),
    ];
    for (name, change) in apart {
        assert_eq!(three(&change), [1, 1, 1], "{name}");
    }
    let apart_v6: [Change; 3] = [
        ("flow label", |second| second.flow_label += 1),
        ("traffic class", |second| second.tos += 4),
        ("hop limit", |second| second.ttl -= 1),
    ];
    let all_v6 = |change: &dyn Fn(&mut Spec)| {
        let mut segments: Vec<Spec> =
            (0..3).map(|number| Spec { v6: true, ..segment(number, 100) }).collect();
        change(&mut segments[1]);
        shape(segments)
    };
    assert_eq!(all_v6(&|_| ()), [3]);
    for (name, change) in apart_v6 {
        assert_eq!(all_v6(&change), [1, 1, 1], "{name}");
    }
    // Another flow's frame does not come between.
    assert_eq!(three(&|second| second.ports.0 += 1), [1, 1, 1]);
    let mut segments: Vec<Spec> = (0..3).map(|number| segment(number, 100)).collect();
    segments.insert(1, Spec { ports: (1, 2), ..segment(0, 100) });
    assert_eq!(shape(segments), [3, 1]);
    // Pure acknowledgements end the flow and are not joined.
    let acknowledgement = Spec { sequence: 1100, ..segment(1, 0) };
    assert_eq!(
        shape([segment(0, 100), acknowledgement.clone(), acknowledgement, segment(1, 100)]),
        [1, 1, 1, 1]
    );
}

#[test]
fn a_wrong_checksum_is_passed_on_alone() {
    for field in [24, 50] {
        let mut batch = on_one_network(Spec::tcp(&bytes(500, 3)).segments(100));
        batch[2].1[field] ^= 1;
        let joined = join(&batch, ALL);
        let lengths: Vec<usize> = joined.iter().map(|(_, _, frame)| frame.len()).collect();
        assert_eq!(lengths, [66 + 200, 66 + 100, 66 + 200], "byte {field}");
        assert_eq!(joined[1].2, batch[2].1);
    }
}

#[test]
fn ipv4_options_are_not_joined() {
    let mut batch = on_one_network(Spec::udp(&bytes(200, 3)).segments(100));
    for (_, frame) in &mut batch {
        // A header that is longer by four one-byte options.
        frame.splice(34..34, [1, 1, 1, 1]);
        frame[14] = 0x46;
        let length = u16::from_be_bytes([frame[16], frame[17]]) + 4;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame[24..26].fill(0);
        let checksum = uvn_wire::checksum::Sum::of(&frame[14..38]).checksum();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    let joined = join(&batch, ALL);
    assert_eq!(joined.iter().map(|(_, _, frame)| frame).collect::<Vec<_>>(), [&batch[0].1, &batch[1].1]);
}

#[test]
fn udp_rules() {
    let datagrams = |sizes: &[usize]| {
        let number = |(number, size): (usize, &usize)| Spec {
            identification: number as u16,
            ..Spec::udp(&bytes(*size, number as u32))
        };
        sizes.iter().enumerate().map(number).collect::<Vec<_>>()
    };
    assert_eq!(shape(datagrams(&[50, 50, 50])), [3]);
    assert_eq!(shape(datagrams(&[50, 50, 20, 50])), [3, 1]);
    assert_eq!(shape(datagrams(&[50, 60, 60])), [1, 2]);
    assert_eq!(shape(datagrams(&[1; 130])), [64, 64, 2]);
    // Datagrams without checksum stay as they are.
    let mut batch = on_one_network(datagrams(&[50, 50]));
    for (_, frame) in &mut batch {
        frame[40..42].fill(0);
    }
    assert_eq!(join(&batch, ALL).len(), 2);
    // As does everything the endpoint does not take.
    let batch = on_one_network(datagrams(&[50, 50]));
    assert_eq!(join(&batch, Offloads { tcp: true, udp: false }).len(), 2);
    let batch = on_one_network(Spec::tcp(&[0; 100]).segments(50));
    assert_eq!(join(&batch, Offloads { tcp: false, udp: true }).len(), 2);
}

/// RFC 6864: with DF the identification says nothing. Linux joins such packets if all bear the same one.
#[test]
fn a_constant_identification_with_df() {
    let segments = |dont_fragment| {
        let mut segments = Spec { dont_fragment, ..Spec::tcp(&bytes(400, 1)) }.segments(100);
        segments.iter_mut().for_each(|segment| segment.identification = 7);
        segments
    };
    assert_eq!(shape(segments(true)), [4]);
    assert_eq!(shape(segments(false)), [1, 1, 1, 1]);
    let mut mixed = segments(true);
    mixed[2].identification = 9;
    assert_eq!(shape(mixed), [2, 1, 1]);
}

#[test]
fn ethernet_padding_is_cut_off() {
    let mut batch = on_one_network(Spec::udp(&[7; 12]).segments(8));
    batch[1].1.resize(60, 0xaa);
    let joined = join(&batch, ALL);
    assert_eq!(joined.len(), 1);
    assert_eq!(joined[0].2, Spec::udp(&[7; 12]).super_frame(8).1);
}

#[test]
fn nothing_overtakes_a_fragment() {
    let mut segments = on_one_network(Spec::udp(&bytes(300, 1)).segments(100));
    let mut fragment = Spec::udp(&bytes(100, 9)).build();
    fragment[20] = 0x20;
    segments.insert(1, (1, fragment.clone()));
    let joined = join(&segments, ALL);
    assert_eq!(joined.len(), 3);
    assert_eq!(joined[1].2, fragment);
    segments[1].0 = 2;
    assert_eq!(join(&segments, ALL).len(), 2);
}

#[test]
fn a_super_frame_is_a_packet_of_64_kib_at_most() {
    for v6 in [false, true] {
        let spec = |sequence: u32, number: u16| Spec {
            v6,
            sequence,
            identification: number,
            ..Spec::tcp(&bytes(1448, u32::from(number)))
        };
        assert_eq!(shape((0..60).map(|number| spec(u32::from(number) * 1448, number))), [45, 15]);
    }
}

#[test]
fn more_flows_than_are_kept_open() {
    let flows = (0..40u16).flat_map(|flow| [0, 1].map(|round| (round, flow)));
    let mut order: Vec<(u16, u16)> = flows.collect();
    order.sort_unstable();
    let frames = order.iter().map(|(round, flow)| Spec {
        ports: (*flow, 80),
        ..Spec::tcp(&bytes(200, 0)).segments(100)[usize::from(*round)].clone()
    });
    let shape = shape(frames);
    assert_eq!(shape, [vec![2; 32], vec![1; 8], vec![1; 8]].concat());
}

/// One step of a random batch: the next segment of a flow, or something in its way.
#[derive(Debug, Clone)]
enum Step {
    Segment(usize),
    Again(usize),
    Acknowledgement(usize),
    Corrupt(usize, usize),
    Padded(usize),
    Arp,
}

fn step() -> impl Strategy<Value = Step> {
    let flow = 0usize..6;
    prop_oneof![
        12 => flow.clone().prop_map(Step::Segment),
        1 => flow.clone().prop_map(Step::Again),
        1 => flow.clone().prop_map(Step::Acknowledgement),
        1 => (flow.clone(), any::<usize>()).prop_map(|(flow, byte)| Step::Corrupt(flow, byte)),
        1 => flow.prop_map(Step::Padded),
        1 => Just(Step::Arp),
    ]
}

/// The frames of the steps, each with its network and its flow.
fn play(flows: &[(Spec, u16)], steps: &[Step]) -> Vec<(u32, usize, Vec<u8>)> {
    let segments: Vec<Vec<Spec>> = flows.iter().map(|(spec, size)| spec.segments(*size)).collect();
    let mut next = vec![0; flows.len()];
    let mut arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
    let mut arps = 0;
    let mut take = |flow: usize, advance: bool| {
        let spec = segments[flow][next[flow] % segments[flow].len()].clone();
        next[flow] += usize::from(advance);
        spec
    };
    let frame = |step: &Step| {
        let (flow, frame) = match *step {
            Step::Segment(flow) => (flow, take(flow, true).build()),
            Step::Again(flow) => (flow, take(flow, false).build()),
            Step::Acknowledgement(flow) => (flow, Spec { payload: Vec::new(), ..take(flow, false) }.build()),
            Step::Corrupt(flow, byte) => {
                let spec = take(flow, true);
                let mut frame = spec.build();
                let payload = frame.len() - spec.payload.len();
                frame[payload + byte % spec.payload.len()] ^= 0x55;
                (flow, frame)
            }
            Step::Padded(flow) => {
                let mut frame = take(flow, true).build();
                frame.resize(frame.len().max(60), 0);
                (flow, frame)
            }
            Step::Arp => {
                arps += 1;
                arp[41] = arps;
                (flows.len(), arp.clone())
            }
        };
        (flow as u32 % 2, flow, frame)
    };
    steps.iter().map(frame).collect()
}

/// A frame without what GRO may change: Ethernet padding, and the identification where DF makes it meaningless.
fn normal(frame: &[u8]) -> Vec<u8> {
    let Ok(Packet::Ip(ip)) = parse(frame) else { return frame.to_vec() };
    let mut normal = frame[..ip.end()].to_vec();
    if ip.source().is_ipv4() && frame[20] & 0x40 != 0 {
        normal[18..20].fill(0);
        normal[24..26].fill(0);
    }
    normal
}

proptest! {
    #[test]
    fn gso_equals_frames_built_one_by_one(mut spec in spec(20_000), size in 20u16..9000, cwr: bool) {
        if cwr && spec.tcp {
            spec.flags |= 0x80;
        }
        let (header, frame) = spec.super_frame(size);
        let mut expected: Vec<Vec<u8>> = spec.segments(size).iter().map(Spec::build).collect();
        // In a frame that stays in one, the kernel avoids a checksum of zero in TCP, too (skb_checksum_help).
        if let [whole] = &mut expected[..] && spec.tcp {
            let checksum = spec.headers() - 4 - spec.options.len();
            if whole[checksum..checksum + 2] == [0, 0] {
                whole[checksum..checksum + 2].fill(0xff);
            }
        }
        prop_assert_eq!(cut(&header, &frame).unwrap(), expected);
    }

    #[test]
    fn gro_of_gso_is_the_identity(spec in spec(20_000), size in 400u16..9000) {
        // At least two segments, at most 50.
        let size = size.min(spec.payload.len().div_ceil(2) as u16);
        prop_assume!(spec.payload.len() > 1);
        let (header, frame) = spec.super_frame(size);
        let segments = cut(&header, &frame).unwrap().into_iter().map(|frame| (1, frame)).collect::<Vec<_>>();
        prop_assert_eq!(join(&segments, ALL), [(1, header, frame)]);
    }

    #[test]
    fn interleaved_flows_keep_their_frames_and_order(
        flows in vec((spec(3000), 1u16..1000), 6),
        steps in vec(step(), 0..64),
    ) {
        let mut flows = flows;
        for (number, (flow, _)) in flows.iter_mut().enumerate() {
            flow.ports = (number as u16, 80);
        }
        let input = play(&flows, &steps);
        let batch: Vec<(u32, Vec<u8>)> = input.iter().map(|(network, _, frame)| (*network, frame.clone())).collect();
        let output: Vec<(u32, Vec<u8>)> = join(&batch, ALL)
            .iter()
            .flat_map(|(network, header, frame)| {
                cut(header, frame).unwrap().into_iter().map(|frame| (*network, normal(&frame))).collect::<Vec<_>>()
            })
            .collect();
        prop_assert_eq!(output.len(), input.len());
        for flow in 0..=flows.len() {
            let port = |frame: &[u8]| match parse(frame) {
                Ok(Packet::Ip(ip)) => usize::from(ip.ports().unwrap().0),
                _ => flows.len(),
            };
            let sent = input.iter().filter(|(_, of, _)| *of == flow);
            let sent: Vec<_> = sent.map(|(network, _, frame)| (*network, normal(frame))).collect();
            let received: Vec<_> = output.iter().filter(|(_, frame)| port(frame) == flow).cloned().collect();
            prop_assert_eq!(received, sent, "flow {}", flow);
        }
    }

    #[test]
    fn random_metadata_and_bytes_do_not_panic(
        spec in spec(3000),
        size in 0u16..1500,
        header: [u8; VnetHeader::LENGTH],
        keep in vec(any::<bool>(), VnetHeader::LENGTH),
        damage in vec((0usize..120, any::<u8>()), 0..6),
    ) {
        let (good, mut frame) = spec.super_frame(size);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let mut bytes = zerocopy::IntoBytes::as_bytes(&good).to_vec();
        for ((byte, random), keep) in bytes.iter_mut().zip(header).zip(keep) {
            if !keep {
                *byte = random;
            }
        }
        let header = VnetHeader::read_from_bytes(&bytes).unwrap();
        let Ok(packet) = parse(&frame) else { return Ok(()) };
        if let Ok(gso) = Gso::new(&header, &frame, &packet) {
            let mut buffer = vec![0; gso.largest()];
            prop_assert!(gso.segments() <= MAX_SEGMENTS);
            for index in 0..gso.segments() {
                let length = gso.write(index, &mut buffer);
                prop_assert!(length.is_some_and(|length| parse(&buffer[..length]).is_ok()));
            }
        }
        // Where they are joined, since an unfinished checksum is right by chance, nothing is lost.
        let same = normal(&frame);
        let batch: Vec<(u32, Vec<u8>)> = vec![(1, frame); 3];
        let joined = join(&batch, ALL);
        let parts = joined.iter().flat_map(|(_, header, frame)| cut(header, frame).unwrap());
        prop_assert_eq!(parts.map(|frame| normal(&frame)).collect::<Vec<_>>(), vec![same; 3]);
    }
}
