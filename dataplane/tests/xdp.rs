//! The XDP program on a real NIC (a veth), frame by frame. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;

use common::packet::PacketSocket;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::{Cidr, Encapsulation};
use uvn_dataplane::gear::programs::{Mode, Xdp, XdpError};
use uvn_dataplane::gear::shortcut::Shortcut;
use uvn_dataplane::port::link;
use uvn_dataplane::port::slow_path::{self, SlowPath};
use uvn_dataplane::port::xsk::{XskConfig, XskQueue};
use uvn_engine::port::Nic;
use uvn_rig::test::NetNs;
use uvn_wire::arp::{self, Arp};
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::{PORT, Vni};
use uvn_wire::xdp::Network;
use uvn_wire::xdp::Verdict::{
    self, BadFlags, BadHeader, BadLength, Fragment, NoSocket, OtherHost, Pass, Redirected, UnknownVni,
    UnknownVtep,
};
use zerocopy::IntoBytes;

const VNI: u32 = 0x01_0203;
const PATIENCE: Duration = Duration::from_secs(30);

/// A NIC with the program, and the other end of its wire.
struct Rig {
    xdp: Xdp,
    wire: PacketSocket,
    /// Sees what reaches the host's stack.
    host: PacketSocket,
    node: NetNs,
    outside: NetNs,
    sent: u64,
}

impl Rig {
    /// Ours: 10.0.0.1, fd00::1, 239.1.1.1. Allowed: 10.0.0.2, fd00::2, 10.9.0.0/16, fd00:9::/96. One VNI.
    fn new(label: &str, mtu: u32) -> Rig {
        let (node, outside) = (NetNs::new(label), NetNs::new("outside"));
        // No IPv6 on the wire: a multicast listener's reports would be counted too.
        for netns in [&node, &outside] {
            netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        }
        node.veth("nic", &outside, "wire");
        node.ip(&format!("link set nic mtu {mtu}"));
        outside.ip(&format!("link set wire mtu {mtu}"));
        let mut xdp = node.run(|| Xdp::attach("nic", &Encapsulation::default())).unwrap();
        xdp.set_local(&addresses(&["10.0.0.1", "fd00::1", "239.1.1.1"])).unwrap();
        xdp.set_vteps(&addresses(&["10.0.0.2", "fd00::2"]), &prefixes(&["10.9.0.0/16", "fd00:9::/96"]))
            .unwrap();
        xdp.set_network(Network::engine(Vni::new(VNI).unwrap())).unwrap();
        let wire = PacketSocket::new(&outside, "wire");
        let host = PacketSocket::new(&node, "nic");
        Rig { xdp, wire, host, node, outside, sent: 0 }
    }

    /// Sends one frame and says what the program did with it, by the one counter that moved.
    fn verdict(&mut self, frame: &[u8]) -> Verdict {
        let before = self.xdp.counters().unwrap();
        assert_eq!(before.iter().sum::<u64>(), self.sent, "frames that the test did not send");
        self.wire.send(frame);
        self.sent += 1;
        let mut after = before;
        until("the program to see the frame", || {
            after = self.xdp.counters().unwrap();
            after.iter().sum::<u64>() >= self.sent
        });
        let moved: Vec<_> =
            Verdict::ALL.into_iter().filter(|v| after[*v as usize] != before[*v as usize]).collect();
        let [verdict] = moved[..] else { panic!("{moved:?}") };
        assert_eq!(after[verdict as usize], before[verdict as usize] + 1);
        let is_host = matches!(verdict, Pass | Fragment);
        let passed = self.host.receive(if is_host { PATIENCE } else { Duration::ZERO });
        // The kernel moves the first VLAN tag out of the frame.
        let expected = match frame[12..14] {
            [0x81, 0x00] | [0x88, 0xa8] => [&frame[..12], &frame[16..]].concat(),
            _ => frame.to_vec(),
        };
        assert_eq!(passed, is_host.then_some(expected), "{verdict:?}");
        verdict
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited for: {what}");
        std::thread::yield_now();
    }
}

/// Whether the NIC has an XDP program. Programs that other tests start have copies of our files, also of a link that was
/// dropped, until they execute.
fn has_program(node: &NetNs) -> bool {
    node.ip("-d link show nic").contains("prog/xdp")
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn prefixes(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The outer headers of a frame, and 60 bytes inside.
#[derive(Clone, Copy)]
struct Frame {
    /// Types and control fields.
    tags: &'static [[u16; 2]],
    source: &'static str,
    destination: &'static str,
    options: usize,
    /// IPv4's flags and offset.
    fragment: u16,
    /// In IPv6 a fragment header, with this protocol and offset, is behind the IPv6 header.
    fragment6: Option<(u8, u16)>,
    protocol: u8,
    port: u16,
    udp_length: Option<u16>,
    flags: u8,
    vni: u32,
    inner: [u8; 60],
}

impl Frame {
    const IPV4: Frame = Frame {
        tags: &[],
        source: "10.0.0.2",
        destination: "10.0.0.1",
        options: 0,
        fragment: 0x4000,
        fragment6: None,
        protocol: 17,
        port: PORT,
        udp_length: None,
        flags: 8,
        vni: VNI,
        // Unicast: the first bit of the destination MAC is 0.
        inner: [0x54; 60],
    };
    const IPV6: Frame = Frame { source: "fd00::2", destination: "fd00::1", ..Frame::IPV4 };

    fn bytes(&self) -> Vec<u8> {
        let mut vxlan = vec![self.flags, 0, 0, 0];
        vxlan.extend((self.vni << 8).to_be_bytes());
        let mut udp = 49_152_u16.to_be_bytes().to_vec();
        udp.extend(self.port.to_be_bytes());
        udp.extend(self.udp_length.unwrap_or(8 + 8 + 60).to_be_bytes());
        udp.extend([0, 0]);
        let payload = [udp, vxlan, self.inner.to_vec()].concat();
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(self.tags.as_flattened().iter().flat_map(|field| field.to_be_bytes()));
        match (self.source.parse().unwrap(), self.destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = 20 + self.options;
                frame.extend([8, 0, 0x40 | (header / 4) as u8, 0]);
                frame.extend(((header + payload.len()) as u16).to_be_bytes());
                frame.extend([0, 0]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                // End of options (RFC 791 section 3.1).
                frame.extend(vec![0; self.options]);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let header = self.fragment6.map(|(protocol, offset)| {
                    let [high, low] = offset.to_be_bytes();
                    [protocol, 0, high, low, 0, 0, 0, 9]
                });
                let header = header.as_slice().as_flattened();
                frame.extend(((header.len() + payload.len()) as u16).to_be_bytes());
                frame.extend([if header.is_empty() { self.protocol } else { 44 }, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(header);
            }
            _ => unreachable!("one family"),
        }
        frame.extend(payload);
        frame
    }
}

/// What every frame must come to, as (name, frame, verdict), on a NIC without an AF_XDP socket.
fn cases() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let mut cases = Vec::new();
    let mut case = |name, frame: Frame, verdict| cases.push((name, frame.bytes(), verdict));
    for base in [Frame::IPV4, Frame::IPV6] {
        case("ours", base, NoSocket);
        case("VLAN", Frame { tags: &[[0x8100, 7]], ..base }, Pass);
        case("QinQ", Frame { tags: &[[0x88a8, 7], [0x8100, 7]], ..base }, Pass);
        case("priority", Frame { tags: &[[0x8100, 0x6000]], ..base }, NoSocket);
        case("service priority", Frame { tags: &[[0x88a8, 0]], ..base }, NoSocket);
        case("priority and VLAN", Frame { tags: &[[0x8100, 0xe000], [0x8100, 7]], ..base }, Pass);
        case("priority twice", Frame { tags: &[[0x8100, 0], [0x8100, 0]], ..base }, BadHeader);
        case("TCP", Frame { protocol: 6, ..base }, Pass);
        case("other port", Frame { port: 8472, ..base }, Pass);
        case("byte-swapped port", Frame { port: PORT.swap_bytes(), ..base }, Pass);
        case("UDP length without payload", Frame { udp_length: Some(8), ..base }, BadLength);
        case("UDP length of half a header", Frame { udp_length: Some(15), ..base }, BadLength);
        case("UDP length of a header", Frame { udp_length: Some(16), ..base }, NoSocket);
        case("no I flag", Frame { flags: 0, ..base }, BadFlags);
        case("all flags but I", Frame { flags: 0xf7, ..base }, BadFlags);
        case("unknown VNI", Frame { vni: VNI + 1, ..base }, UnknownVni);
        case("byte-swapped VNI", Frame { vni: 0x03_0201, ..base }, UnknownVni);
        case("VNI 0", Frame { vni: 0, ..base }, UnknownVni);
    }
    let v4 = |source, destination| Frame { source, destination, ..Frame::IPV4 };
    case("not our address", v4("10.0.0.2", "10.0.0.3"), Pass);
    case("group", v4("10.0.0.2", "239.1.1.1"), NoSocket);
    case("other group", v4("10.0.0.2", "239.1.1.2"), Pass);
    case("broadcast", v4("10.0.0.2", "255.255.255.255"), Pass);
    case("stranger", v4("10.0.0.4", "10.0.0.1"), UnknownVtep);
    case("first of the prefix", v4("10.9.0.0", "10.0.0.1"), NoSocket);
    case("last of the prefix", v4("10.9.255.255", "10.0.0.1"), NoSocket);
    case("before the prefix", v4("10.8.255.255", "10.0.0.1"), UnknownVtep);
    case("after the prefix", v4("10.10.0.0", "10.0.0.1"), UnknownVtep);
    case("unknown VNI from a stranger", Frame { vni: 9, ..v4("10.0.0.4", "10.0.0.1") }, UnknownVni);
    // Only a first one shows its port; a later one may hold anything in its place.
    let first = Frame { fragment: 0x2000, ..Frame::IPV4 };
    case("first fragment", first, Fragment);
    case("first fragment that must not be one", Frame { fragment: 0x6000, ..first }, Fragment);
    case("first fragment with options", Frame { options: 8, ..first }, Fragment);
    case("first fragment from a stranger", Frame { source: "10.0.0.4", ..first }, Fragment);
    case("first fragment of an unknown VNI", Frame { vni: 9, flags: 0, ..first }, Fragment);
    case("first fragment to a group", Frame { destination: "239.1.1.1", ..first }, Fragment);
    case("first fragment to another address", Frame { destination: "10.0.0.3", ..first }, Pass);
    case("first fragment to another port", Frame { port: 53, ..first }, Pass);
    case("first fragment of TCP", Frame { protocol: 6, ..first }, Pass);
    case("middle fragment", Frame { fragment: 0x2001, ..Frame::IPV4 }, Pass);
    case("last fragment", Frame { fragment: 1, ..Frame::IPV4 }, Pass);
    let first = Frame { fragment6: Some((17, 1)), ..Frame::IPV6 };
    case("first IPv6 fragment", first, Fragment);
    case("the only IPv6 fragment", Frame { fragment6: Some((17, 0)), ..first }, Fragment);
    case("first IPv6 fragment to another address", Frame { destination: "fd00::3", ..first }, Pass);
    case("first IPv6 fragment to another port", Frame { port: 53, ..first }, Pass);
    case("later IPv6 fragment", Frame { fragment6: Some((17, 9)), ..first }, Pass);
    for protocol in [0, 6, 43, 44, 60] {
        case("IPv6 fragment of something else", Frame { fragment6: Some((protocol, 1)), ..first }, Pass);
    }
    for options in (4..=40).step_by(4) {
        case("options", Frame { options, ..Frame::IPV4 }, BadHeader);
    }
    let v6 = |source, destination| Frame { source, destination, ..Frame::IPV6 };
    case("not our IPv6 address", v6("fd00::2", "fd00::3"), Pass);
    case("IPv6 stranger", v6("fd00::4", "fd00::1"), UnknownVtep);
    case("in the IPv6 prefix", v6("fd00:9::ffff:ffff", "fd00::1"), NoSocket);
    case("after the IPv6 prefix", v6("fd00:9::1:0:0", "fd00::1"), UnknownVtep);
    for protocol in [0, 43, 44, 60] {
        case("IPv6 extension header", Frame { protocol, ..Frame::IPV6 }, Pass);
    }
    cases.extend(edited());
    cases
}

/// Frames that no sender builds.
fn edited() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let edit = |frame: &Frame, at: usize, byte: u8| {
        let mut frame = frame.bytes();
        frame[at] = byte;
        frame
    };
    vec![
        ("IPv4 header of 16 bytes", edit(&Frame::IPV4, 14, 0x44), Pass),
        ("IPv4 header of no bytes", edit(&Frame::IPV4, 14, 0x40), Pass),
        ("version 6 in IPv4", edit(&Frame::IPV4, 14, 0x65), Pass),
        ("version 4 in IPv6", edit(&Frame::IPV6, 14, 0x40), Pass),
        ("ARP", edit(&Frame::IPV4, 13, 6), Pass),
        ("802.3", edit(&Frame::IPV4, 12, 0), Pass),
        ("reserved flags and I", edit(&Frame::IPV4, 14 + 20 + 8, 0xff), NoSocket),
    ]
}

fn every_verdict(label: &str, mtu: u32, driver: bool) {
    let mut rig = Rig::new(label, mtu);
    assert_eq!(rig.xdp.mode() == Some(&Mode::Driver), driver, "{:?}", rig.xdp.mode());
    for (name, frame, verdict) in cases() {
        assert_eq!(rig.verdict(&frame), verdict, "{name}: {frame:02x?}");
    }
    let with_options = Frame { options: 40, ..Frame::IPV4 };
    let first = Frame { fragment: 0x2000, ..Frame::IPV4 };
    let first6 = Frame { fragment6: Some((17, 1)), ..Frame::IPV6 };
    let cut = [(Frame::IPV4, 20), (Frame::IPV6, 40), (with_options, 60), (first, 20), (first6, 48)];
    for (frame, headers) in cut.map(|(frame, headers)| (frame, 14 + headers)) {
        let has_options = frame.options > 0;
        let is_fragment = frame.fragment == 0x2000 || frame.fragment6.is_some();
        let frame = frame.bytes();
        for length in 14..=frame.len() {
            let expected = match length {
                _ if length < headers + 8 => Pass,
                _ if is_fragment => Fragment,
                _ if has_options => BadHeader,
                _ if length < headers + 8 + 8 => BadLength,
                _ => NoSocket,
            };
            assert_eq!(rig.verdict(&frame[..length]), expected, "cut to {length} bytes");
        }
    }
    assert_eq!(rig.host.receive(Duration::from_millis(100)), None, "late");
}

#[test]
fn every_verdict_in_driver_mode() {
    every_verdict("driver", 1500, true);
}

/// A veth's driver refuses programs without multi-buffer support at this MTU.
#[test]
fn every_verdict_in_generic_mode() {
    every_verdict("generic", 9000, false);
}

fn redirected(label: &str, mtu: u32) {
    let mut rig = Rig::new(label, mtu);
    let config = XskConfig { interface: "nic".into(), queue: 0, frames: 64, batch: 8, busy_poll_us: None };
    let mut queue = rig.node.run(|| XskQueue::open(&config)).unwrap();
    rig.xdp.set_socket(0, queue.fd().unwrap()).unwrap();
    for base in [Frame::IPV4, Frame::IPV6, Frame { tags: &[[0x8100, 0x6000]], ..Frame::IPV6 }] {
        assert_eq!(rig.verdict(&base.bytes()), Redirected);
        // A priority tag is taken out.
        let frame = Frame { tags: &[], ..base }.bytes();
        let mut frames = Vec::new();
        until("the frame on the socket", || queue.receive(&mut frames) > 0);
        assert_eq!(frames.len(), 1);
        assert_eq!(queue.bytes(&frames[0]), frame);
        frames.drain(..).for_each(|frame| queue.release(frame));
    }
    // What is not for the socket goes where it went without.
    assert_eq!(rig.verdict(&Frame { vni: 9, ..Frame::IPV4 }.bytes()), UnknownVni);
    assert_eq!(rig.verdict(&Frame { port: 22, ..Frame::IPV4 }.bytes()), Pass);
    assert_eq!(queue.receive(&mut Vec::new()), 0);
    // 32 frames to receive with: what does not fit is lost, and never the host's.
    for _ in 0..40 {
        assert_eq!(rig.verdict(&Frame::IPV4.bytes()), Redirected);
    }
    drop(queue);
    // Not at once: a program that another test starts holds a copy of the socket between its fork and its exec.
    until("the map to forget the socket", || rig.verdict(&Frame::IPV4.bytes()) == NoSocket);
}

#[test]
fn the_socket_gets_what_is_ours_in_driver_mode() {
    redirected("socket", 1500);
}

#[test]
fn the_socket_gets_what_is_ours_in_generic_mode() {
    redirected("socket9k", 9000);
}

/// The program once more, over slices.
fn judge(frame: &[u8]) -> Verdict {
    let be16 = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let mut has_options = false;
    let is_fragment;
    let (source, destination, udp): (IpAddr, IpAddr, &[u8]) = match (be16(&frame[12..]), &frame[14..]) {
        (0x0800, ip) if ip.len() >= 20 => {
            let header = usize::from(ip[0] & 15) * 4;
            is_fragment = be16(&ip[6..]) & 0x2000 != 0;
            if ip[0] >> 4 != 4
                || header < 20
                || be16(&ip[6..]) & 0x1fff != 0
                || ip[9] != 17
                || ip.len() < header
            {
                return Pass;
            }
            let address = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap();
            has_options = header > 20;
            (address(12).into(), address(16).into(), &ip[header..])
        }
        (0x86dd, ip) if ip.len() >= 40 && ip[0] >> 4 == 6 => {
            let address = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap();
            is_fragment = ip[6] == 44;
            match (ip[6], &ip[40..]) {
                (17, udp) => (address(8).into(), address(24).into(), udp),
                (44, [17, _, high, low, _, _, _, _, udp @ ..]) if be16(&[*high, *low]) & !7 == 0 => {
                    (address(8).into(), address(24).into(), udp)
                }
                _ => return Pass,
            }
        }
        _ => return Pass,
    };
    let ours = addresses(&["10.0.0.1", "fd00::1", "239.1.1.1"]).contains(&destination);
    if !ours || udp.len() < 8 || be16(&udp[2..]) != PORT {
        return Pass;
    }
    if is_fragment {
        return Fragment;
    }
    if has_options {
        return BadHeader;
    }
    if udp.len() < 16 || be16(&udp[4..]) < 16 {
        return BadLength;
    }
    let known = addresses(&["10.0.0.2", "fd00::2"]).contains(&source)
        || prefixes(&["10.9.0.0/16", "fd00:9::/96"]).iter().any(|prefix| prefix.contains(source));
    match (udp[8] & 8 != 0, udp[12..15] == VNI.to_be_bytes()[1..], known) {
        (false, _, _) => BadFlags,
        (true, false, _) => UnknownVni,
        (true, true, false) => UnknownVtep,
        (true, true, true) => NoSocket,
    }
}

#[test]
fn random_changes_are_judged_as_over_slices() {
    let mut rig = Rig::new("random", 1500);
    // xorshift64 (Marsaglia 2003), from a fixed seed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut seen = [0; Verdict::ALL.len()];
    for _ in 0..15_000 {
        let base = match random(8) {
            0 => Frame { options: 12, ..Frame::IPV4 },
            1 => Frame { fragment: 0x2000, ..Frame::IPV4 },
            2 => Frame { fragment6: Some((17, 1)), ..Frame::IPV6 },
            odd if odd % 2 == 1 => Frame::IPV4,
            _ => Frame::IPV6,
        };
        let mut frame = base.bytes();
        for _ in 0..random(3) {
            // Not the type of the VLAN tag that the kernel would take out.
            let at = [random(12), 14 + random(70)][usize::from(random(8) > 0)];
            frame[at] = [random(256) as u8, frame[at] ^ 1 << random(8)][random(2)];
        }
        frame.truncate([frame.len(), 14 + random(80)][usize::from(random(4) == 0)]);
        let verdict = rig.verdict(&frame);
        assert_eq!(verdict, judge(&frame), "{frame:02x?}");
        seen[verdict as usize] += 1;
    }
    for verdict in [Pass, Fragment, NoSocket, BadHeader, BadLength, BadFlags, UnknownVni, UnknownVtep] {
        assert!(seen[verdict as usize] > 20, "only {seen:?}");
    }
}

/// As the kernel does (eth_type_trans): the NIC's own MAC, or a group's.
#[test]
fn frames_to_another_hosts_mac_are_refused() {
    let mut rig = Rig::new("mac", 1500);
    let to = |mac: [u8; 6], base: Frame| [&mac, &base.bytes()[6..]].concat();
    for mac in [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]] {
        rig.xdp.set_mac(Mac(mac)).unwrap();
        let tagged = Frame { tags: &[[0x8100, 0]], ..Frame::IPV4 };
        for base in [Frame::IPV4, Frame::IPV6, tagged] {
            assert_eq!(rig.verdict(&to(mac, base)), NoSocket);
            assert_eq!(rig.verdict(&to([0xff; 6], base)), NoSocket);
            assert_eq!(rig.verdict(&to([2, 0, 0, 0, 0, 2], base)), OtherHost);
        }
        // What is not ours is the kernel's to judge.
        assert_eq!(rig.verdict(&to([2, 0, 0, 0, 0, 2], Frame { port: 22, ..Frame::IPV4 })), Pass);
    }
}

/// XDP in generic mode skips what a tc program has redirected to the other end of a veth.
#[test]
fn what_generic_xdp_does_not_see_reaches_nobody() {
    let rig = Rig::new("unseen", 9000);
    let (mut sender, _shortcut) = rig.outside.run(|| {
        let wire = link::get("wire").unwrap();
        let sender = SlowPath::open(wire.index, 1, 1).unwrap().remove(0);
        let tap = link::get(&slow_path::device(wire.index)).unwrap().index;
        let mut xdp = Xdp::load(wire.index, &Encapsulation::default(), tap).unwrap();
        let shortcut = Shortcut::attach(&mut xdp, &wire, PORT).unwrap();
        (sender, (xdp, shortcut))
    });
    let tagged = Frame { tags: &[[0x8100, 0]], ..Frame::IPV4 };
    for (base, reaches_host) in [
        (Frame::IPV4, false),
        (Frame::IPV6, false),
        (tagged, false),
        (Frame { port: 22, ..Frame::IPV4 }, true),
        (Frame { fragment: 0x2000, ..Frame::IPV4 }, true),
    ] {
        let (before, bytes) = (rig.xdp.counters().unwrap(), base.bytes());
        let mut frame = sender.reserve().unwrap();
        sender.buffer(&mut frame)[..bytes.len()].copy_from_slice(&bytes);
        sender.transmit(frame, bytes.len());
        sender.flush();
        // Packet sockets come before tc.
        assert!(rig.host.receive(PATIENCE).is_some());
        let unseen =
            || rig.xdp.counters().unwrap()[Verdict::Unseen as usize] - before[Verdict::Unseen as usize];
        if reaches_host {
            std::thread::sleep(Duration::from_millis(100));
        } else {
            until("the frame to be dropped", || unseen() == 1);
        }
        assert_eq!(unseen(), u64::from(!reaches_host));
    }
}

#[test]
fn maps_hold_exactly_what_was_set() {
    let mut rig = Rig::new("maps", 1500);
    let frame = Frame::IPV4.bytes();
    let other_source = Frame { source: "10.0.0.7", ..Frame::IPV4 }.bytes();
    let in_prefix = Frame { source: "10.9.1.1", ..Frame::IPV4 }.bytes();
    rig.xdp.set_vteps(&addresses(&["10.0.0.7"]), &[]).unwrap();
    assert_eq!(rig.verdict(&frame), UnknownVtep);
    assert_eq!(rig.verdict(&in_prefix), UnknownVtep);
    assert_eq!(rig.verdict(&other_source), NoSocket);
    rig.xdp.set_vteps(&[], &prefixes(&["10.9.77.77/16", "10.0.0.0/30"])).unwrap();
    assert_eq!(rig.verdict(&frame), NoSocket);
    assert_eq!(rig.verdict(&in_prefix), NoSocket);
    assert_eq!(rig.verdict(&other_source), UnknownVtep);
    rig.xdp.set_vteps(&addresses(&["10.0.0.2"]), &[]).unwrap();
    assert_eq!(rig.verdict(&in_prefix), UnknownVtep);

    let vni = Vni::new(VNI).unwrap();
    rig.xdp.set_network(Network::engine(vni)).unwrap();
    rig.xdp.remove_network(vni).unwrap();
    assert_eq!(rig.verdict(&frame), UnknownVni);
    rig.xdp.remove_network(vni).unwrap();
    rig.xdp.set_network(Network::engine(vni)).unwrap();
    assert_eq!(rig.verdict(&frame), NoSocket);

    rig.xdp.set_local(&addresses(&["10.0.0.3"])).unwrap();
    assert_eq!(rig.verdict(&frame), Pass);
    assert_eq!(rig.verdict(&Frame { destination: "10.0.0.3", ..Frame::IPV4 }.bytes()), NoSocket);
}

#[test]
fn a_full_map_is_named_and_left_as_it_was() {
    let mut rig = Rig::new("full", 1500);
    let many: Vec<IpAddr> = (0..65).map(|n| [10, 1, 0, n].into()).collect();
    let error = rig.xdp.set_local(&many).unwrap_err().to_string();
    assert_eq!(error, "the XDP program's map LOCAL holds 64 entries at most: 65 are needed");
    let many: Vec<IpAddr> = (0..16_385_u32).map(|n| n.to_be_bytes().into()).collect();
    let error = rig.xdp.set_vteps(&many, &[]).unwrap_err().to_string();
    assert_eq!(error, "the XDP program's map VTEPS holds 16384 entries at most: 16385 are needed");
    let ranges: Vec<Cidr> =
        (0..1025_u32).map(|n| Cidr { address: (n << 8).to_be_bytes().into(), prefix: 24 }).collect();
    let error = rig.xdp.set_vteps(&[], &ranges).unwrap_err().to_string();
    assert_eq!(error, "the XDP program's map VTEP_PREFIXES holds 1024 entries at most: 1025 are needed");
    assert_eq!(rig.verdict(&Frame::IPV4.bytes()), NoSocket);

    rig.xdp.set_vteps(&many[..16_384], &ranges[..1024]).unwrap();
    // One VNI is there already.
    for vni in 0..16_383 {
        rig.xdp.set_network(Network::engine(Vni::new(Vni::MAX - vni).unwrap())).unwrap();
    }
    let error = rig.xdp.set_network(Network::engine(Vni::new(1).unwrap())).unwrap_err().to_string();
    assert_eq!(error, "the XDP program's map NETWORKS holds 16384 entries at most: 16385 are needed");
}

#[test]
fn unknown_vnis_are_noted_once_for_allowed_vteps() {
    let mut rig = Rig::new("unknown", 1500);
    let frame = |source, vni| Frame { source, vni, ..Frame::IPV4 }.bytes();
    for bytes in [frame("10.0.0.2", 5), frame("10.0.0.2", 5), frame("10.9.0.9", 5), frame("10.0.0.4", 6)] {
        assert_eq!(rig.verdict(&bytes), UnknownVni);
    }
    assert_eq!(rig.verdict(&Frame { vni: Vni::MAX, ..Frame::IPV6 }.bytes()), UnknownVni);
    let mut taken = rig.xdp.take_unknown().unwrap();
    taken.sort_unstable();
    let (five, largest) = (Vni::new(5).unwrap(), Vni::new(Vni::MAX).unwrap());
    assert_eq!(
        taken.iter().map(|&(vni, _, count)| (vni, count)).collect::<Vec<_>>(),
        [(five, 3), (largest, 1)]
    );
    // Which VTEP was first is known per CPU only.
    assert!(addresses(&["10.0.0.2", "10.9.0.9"]).contains(&taken[0].1));
    assert_eq!(taken[1].1, addresses(&["fd00::2"])[0]);
    assert!(rig.xdp.take_unknown().unwrap().is_empty());
}

/// Broadcast goes to every node: only what asks for this one calls for a network here.
#[test]
fn unknown_vnis_of_broadcast_are_noted_for_arp_requests_only() {
    let mut rig = Rig::new("flood", 1500);
    let arp = |target: [u8; 4]| {
        let target = (Mac([0; 6]), target.into());
        let request = Arp::new(arp::REQUEST, (Mac([2; 6]), [10, 0, 0, 2].into()), target);
        let mut inner = [0xff; 60];
        inner[12..14].copy_from_slice(&[8, 6]);
        inner[14..42].copy_from_slice(request.as_bytes());
        inner
    };
    let broadcast = [0xff; 60];
    for (vni, inner) in [(5, broadcast), (6, arp([10, 0, 0, 1])), (7, arp([10, 0, 0, 3]))] {
        assert_eq!(rig.verdict(&Frame { vni, inner, ..Frame::IPV4 }.bytes()), UnknownVni);
    }
    let taken: Vec<u32> = rig.xdp.take_unknown().unwrap().iter().map(|(vni, ..)| vni.get()).collect();
    assert_eq!(taken, [6]);
}

#[test]
fn one_program_per_nic_and_none_after_drop() {
    let rig = Rig::new("busy", 1500);
    assert!(has_program(&rig.node));
    let Err(error) = rig.node.run(|| Xdp::attach("nic", &Encapsulation::default())) else {
        panic!("attached twice")
    };
    assert!(matches!(&error, XdpError::Busy(nic) if nic == "nic"), "{error}");
    assert!(has_program(&rig.node));
    let Rig { xdp, node, .. } = rig;
    drop(xdp);
    until("detaching", || !has_program(&node));
    assert!(node.run(|| Xdp::attach("nic", &Encapsulation::default())).is_ok());
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The test is both processes: the one that is killed runs it with HOLD set.
#[test]
fn a_killed_process_leaves_the_nic_to_the_host() {
    const HOLD: &str = "UVN_TEST_HOLD";
    if std::env::var_os(HOLD).is_some() {
        let mut xdp = Xdp::attach("nic", &Encapsulation::default()).unwrap();
        xdp.set_local(&addresses(&["10.0.0.1"])).unwrap();
        println!("\nattached");
        loop {
            std::thread::park();
        }
    }
    let Rig { xdp, wire, host, node, outside: _outside, .. } = Rig::new("killed", 1500);
    drop(xdp);
    until("detaching", || !has_program(&node));
    let mut holder = node.command(std::env::current_exe().unwrap().to_str().unwrap());
    holder.args(["--exact", "a_killed_process_leaves_the_nic_to_the_host", "--nocapture"]).env(HOLD, "1");
    let mut holder = Killed(holder.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(holder.0.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "attached"), "the holder ended");
    let frame = Frame::IPV4.bytes();
    wire.send(&frame);
    assert_eq!(host.receive(Duration::from_millis(200)), None);
    drop(holder);
    until("detaching", || !has_program(&node));
    wire.send(&frame);
    assert_eq!(host.receive(PATIENCE), Some(frame));
    assert!(node.run(|| Xdp::attach("nic", &Encapsulation::default())).is_ok());
}

#[test]
fn a_nic_that_is_not_there_is_named() {
    let node = NetNs::new("missing");
    let Err(error) = node.run(|| Xdp::attach("em9", &Encapsulation::default())) else {
        panic!("attached to nothing")
    };
    assert_eq!(error.to_string(), "no network device named `em9` in this network namespace");
}
