//! What the data plane sends, in tshark's eyes: no malformed frame, no bad checksum, nothing missing. Needs root.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

mod common;

use common::capture::{Checksum, Decoded, choose_ports, decode, watch};
use common::cluster::{Cluster, Settings, V4, V6, VNI};
use common::traffic::{self, Place};
use std::net::IpAddr;
use uvn_dataplane::port::link;
use uvn_wire::ethernet::Mac;

/// Bytes of bulk TCP, each way.
const BULK: usize = 1 << 20;
/// Payloads of pings and datagrams; the last one is longer than any MTU.
const LENGTHS: [usize; 5] = [0, 1, 999, 1200, 5000];
/// Of a datagram that is left to the device to cut.
const SEGMENTS: usize = 40;

/// Frames that tshark finds fault with.
fn faulty(decoded: &[Decoded]) -> Vec<usize> {
    let is_faulty = |decoded: &Decoded| {
        decoded.malformed || decoded.checksums().any(|checksum| checksum == Checksum::Bad)
    };
    (0..decoded.len()).filter(|index| is_faulty(&decoded[*index])).collect()
}

/// What was sent.
struct Sent {
    /// VXLAN frames of the data plane on the wire.
    frames: Vec<Vec<u8>>,
    /// ARP replies, neighbour advertisements, "too big": what the data plane itself says to the user.
    answers: Vec<Vec<u8>>,
}

/// All kinds of traffic between a data plane and a kernel. The way to the peer takes less than the user's device, so
/// that "too big" is among the answers.
fn everything(vteps: &[IpAddr]) -> Sent {
    let cluster = Cluster::wired(vteps, 1);
    let (here, user) = (&cluster.nodes[0], &cluster.users[0]);
    cluster.users.iter().for_each(choose_ports);
    here.ip(&format!(
        "route add {}/{} dev em1 mtu 1400",
        vteps[1],
        if vteps[1].is_ipv4() { 32 } else { 128 }
    ));
    let engine = cluster.engine(0, &Settings::default());
    cluster.kernel(1, &format!("remote {}", vteps[0]), Mac::of(vteps[1]));
    let sent = || engine.counted_since_ready().tx_frames;
    let (earlier, mut during) = (sent(), 0);
    let mut on_the_wire = Vec::new();
    let at_the_user = watch(user, "uvn", || {
        on_the_wire = watch(&cluster.nodes[1], "em1", || {
            let before = sent();
            for [first, second] in [[V4[0], V4[1]], [V6[0], V6[1]]] {
                let (a, b) = (Place(user, first), Place(&cluster.users[1], second));
                // First, so that the user's kernel knows the path's MTU when there is no second try.
                traffic::tcp(a, b, BULK);
                traffic::tcp(b, a, BULK);
                traffic::ping(a, second, &LENGTHS);
                traffic::ping(b, first, &LENGTHS);
                traffic::udp(a, b, &LENGTHS);
                traffic::udp(b, a, &LENGTHS);
                traffic::udp_segmented(a, b, SEGMENTS, 1000);
            }
            during = sent() - before;
        });
    });
    let since = sent() - earlier;
    let counted = engine.counted_since_ready();
    // A busy machine leaves the worker without its core for a while: bulk may then overflow a queue.
    let drops: Vec<_> = counted.drops.keys().filter(|reason| *reason != "rx_endpoint_full").collect();
    assert_eq!(drops, ["tx_too_big"], "{counted:?}");
    let nic = here.run(|| link::get("em1")).unwrap().mac.unwrap();
    let frames: Vec<_> = on_the_wire.into_iter().filter(|frame| is_vxlan_from(frame, nic)).collect();
    // The user's kernel adds multicast listener reports when it likes: beside the traffic there may be one.
    let count = frames.len() as u64;
    assert!((during..=since).contains(&count), "{during} to {since} frames were sent, {count} seen");
    let peer = Mac::of(vteps[1]);
    let answers =
        at_the_user.into_iter().filter(|frame| frame[6..12] == peer.0 && is_answer(frame)).collect();
    Sent { frames, answers }
}

fn is_vxlan_from(frame: &[u8], nic: Mac) -> bool {
    let port = match frame[12..14] {
        [0x08, 0x00] => frame.get(36..38),
        _ => frame.get(56..58),
    };
    frame[6..12] == nic.0 && port == Some(&4789_u16.to_be_bytes())
}

fn is_answer(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x06] => true,
        [0x08, 0x00] => frame[23] == 1 && frame[34] == 3,
        _ => frame[20] == 58 && matches!(frame[54], 2 | 136),
    }
}

/// Counts frames whose inner layers begin so, with these states of their own checksum.
fn count(decoded: &[Decoded], layers: &str, checksum: Checksum) -> usize {
    let inner = format!(":vxlan:eth:ethertype:{layers}");
    let is_one = |decoded: &&Decoded| {
        let at_end = decoded.protocols.ends_with(&inner) || decoded.protocols.contains(&format!("{inner}:"));
        at_end && decoded.innermost() == Some(checksum)
    };
    decoded.iter().filter(is_one).count()
}

fn assert_decodes(vteps: &[IpAddr], outer_checksum: Checksum) -> Sent {
    let sent = everything(vteps);
    let decoded = decode(&sent.frames);
    assert_eq!(faulty(&decoded), Vec::<usize>::new());
    for frame in &decoded {
        assert_eq!((&frame.vnis[..], frame.udp[0]), (&[VNI][..], outer_checksum), "{frame:?}");
        assert!(frame.ip.iter().all(|checksum| *checksum == Checksum::Good), "{frame:?}");
    }
    // Half of the requests and half of the answers: as many as there are lengths, the last one in fragments.
    let whole = 2 * (LENGTHS.len() - 1);
    for (ip, icmp) in [("ip", "icmp"), ("ipv6", "icmpv6")] {
        let count = |layers: &str, checksum| count(&decoded, &format!("{ip}:{layers}"), checksum);
        assert_eq!(count("udp", Checksum::Good), whole + SEGMENTS, "{ip}");
        let fragment = if ip == "ip" { "" } else { "ipv6.fraghdr:" };
        for protocol in ["udp", icmp] {
            assert_eq!(count(&format!("{fragment}{protocol}"), Checksum::Unverified), 2, "{ip} {protocol}");
        }
        // Neighbours are asked by ICMPv6, too.
        assert!((whole..whole + 5).contains(&count(icmp, Checksum::Good)), "{ip}");
        let tcp = decoded
            .iter()
            .filter(|frame| frame.protocols.contains(&format!(":vxlan:eth:ethertype:{ip}:tcp")));
        let payload: usize = tcp.map(|frame| frame.tcp_payload).sum();
        assert!(payload >= 2 * BULK, "{payload} bytes of TCP");
    }
    let mut answers = decode(&sent.answers);
    // What they quote has the checksum that the user's kernel left to us, as in the kernel's own answers.
    answers.iter_mut().for_each(|answer| answer.tcp.clear());
    assert_eq!(faulty(&answers), Vec::<usize>::new(), "{answers:?}");
    for layers in ["arp", "ip:icmp:ip:tcp:data", "ipv6:icmpv6", "ipv6:icmpv6:ipv6:tcp:data"] {
        let layers = format!("eth:ethertype:{layers}");
        assert!(answers.iter().any(|answer| answer.protocols == layers), "no {layers}: {answers:?}");
    }
    sent
}

#[test]
fn what_is_sent_over_ipv4_decodes() {
    let sent = assert_decodes(&V4[..2], Checksum::NotPresent);

    // And what is wrong would be seen: one byte of a payload, one length.
    let long = |frame: &&Vec<u8>| frame.len() > 1000;
    let good: Vec<Vec<u8>> = sent.frames.iter().filter(long).take(5).cloned().collect();
    assert_eq!(faulty(&decode(&good)), Vec::<usize>::new());
    let mut flipped = good.clone();
    flipped[2][500] ^= 1;
    assert_eq!(faulty(&decode(&flipped)), [2]);
    let mut cut = good;
    // A TCP header longer than the packet.
    cut[3].truncate(50 + 14 + 20 + 20);
    let decoded = decode(&cut);
    assert!(decoded[3].malformed, "{decoded:?}");
}

#[test]
fn what_is_sent_over_ipv6_decodes() {
    assert_decodes(&V6[..2], Checksum::Good);
}
