//! One receiver of hostile frames: kernel VXLAN or a gear of the data plane on a node's NIC, and what its user gets of
//! them. The other end of the wire is the attacker's.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::cluster::{Cluster, Settings, VNI};
use crate::common::engine::Engine;
use crate::common::packet::PacketSocket;
use crate::common::traffic::content;
use crate::frames;
use crate::verdict::{Probe, Verdicts};
use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::Encapsulation;
use uvn_dataplane::port::link;
use uvn_engine::outer::endpoint_mtu;
use uvn_rig::test::NetNs;
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::Mac;
use uvn_wire::ipv4::protocol;

/// For what must come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// For what must not come: it would be there soon.
const GRACE: Duration = Duration::from_millis(200);
/// The UDP port of the user's socket. All others are closed.
const PORT: u16 = 7600;
/// Nobody listens there: a TCP segment is answered with a reset, if its sum is right.
const CLOSED: u16 = 7601;

/// A frame on the wire, and whether kernel VXLAN gives it to the user's sockets.
pub struct Case {
    pub name: String,
    pub frame: Vec<u8>,
    pub arrives: bool,
}

/// What came of some frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The inner frames that the endpoint got, whole.
    pub handed: BTreeSet<Vec<u8>>,
    /// Datagrams that the user's socket got; resets and echo replies of his kernel, from the transport header on.
    pub told: BTreeSet<Vec<u8>>,
    /// What the socket buffers at the NIC said of checksums.
    pub verdicts: Verdicts,
}

pub struct Receiver {
    pub name: &'static str,
    pub engine: Option<Engine>,
    wire: PacketSocket,
    endpoint: PacketSocket,
    probe: Probe,
    sockets: [UdpSocket; 2],
    /// Takes what the node answers: the attacker's kernel has nothing to say to that.
    _port: UdpSocket,
    cluster: Cluster,
}

/// Zero checksums over IPv6, too.
pub fn encapsulation() -> Encapsulation {
    Encapsulation { ipv6_checksum: false, ..Encapsulation::default() }
}

/// Switches offloads of a device, each with on or off.
pub fn ethtool(node: &NetNs, device: &str, settings: &str) {
    let output = node.command("ethtool").args(["-K", device]).args(settings.split(' ')).output().unwrap();
    assert!(output.status.success(), "ethtool {settings}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Receiver {
    /// `name` is `kernel` or a gear.
    pub fn new(name: &'static str, cluster: Cluster) -> Receiver {
        let cluster = cluster.together();
        let peer = cluster.vteps[1];
        let v6 = peer.is_ipv6();
        let engine = match (name, v6) {
            ("kernel", _) => {
                let sums = if v6 { "udp6zerocsumtx udp6zerocsumrx" } else { "noudpcsum" };
                cluster.kernel(0, &format!("remote {peer} nolearning {sums}"), Mac::of(cluster.vteps[0]));
                let node = &cluster.nodes[0];
                let mtu = node.run(|| link::get("em1").unwrap().mtu) as usize;
                node.ip(&format!("link set uvn mtu {}", endpoint_mtu(mtu, peer)));
                None
            }
            ("engine", false) => Some("path = \"engine\""),
            ("engine", true) => Some("path = \"engine\"\n[encapsulation]\nipv6_checksum = false"),
            (_, false) => Some("path = \"shortcut\""),
            (_, true) => Some("path = \"shortcut\"\n[encapsulation]\nipv6_checksum = false"),
        };
        let engine = engine.map(|sections| cluster.engine(0, &Settings { sections, ..Settings::default() }));
        let ((node, own), (_, others)) = (cluster.user(0), cluster.user(1));
        for other in others {
            node.ip(&format!("neigh replace {other} lladdr {} dev uvn nud permanent", Mac::of(peer)));
        }
        if let Some(engine) = &engine {
            assert_eq!(engine.network(VNI).shortcut, name == "shortcut");
        }
        let sockets = own.map(|address| node.run(|| UdpSocket::bind((address, PORT)).unwrap()));
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let wire = PacketSocket::new(&cluster.nodes[1], "em1");
        let endpoint = PacketSocket::new(node, "uvn");
        [&wire, &endpoint].into_iter().for_each(|socket| socket.set_buffer(16 << 20));
        // The program of the gear stands behind it.
        let probe = Probe::new(node, "em1");
        let port = cluster.nodes[1].run(|| UdpSocket::bind(("::", 4789)).unwrap());
        Receiver { name, engine, wire, endpoint, probe, sockets, _port: port, cluster }
    }

    /// Switches offloads of the NIC.
    pub fn offloads(&self, settings: &str) {
        ethtool(&self.cluster.nodes[0], "em1", settings);
    }

    /// Sends frames from the wire and waits until so many of them have told the user something.
    pub fn judge<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]>, tell: usize) -> Outcome {
        let before = self.probe.verdicts();
        frames.into_iter().for_each(|frame| self.wire.send(frame));
        let (start, mut outcome) = (Instant::now(), Outcome::default());
        while outcome.told.len() < tell && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
            self.collect(&mut outcome);
        }
        std::thread::sleep(GRACE);
        self.collect(&mut outcome);
        outcome.verdicts = self.probe.verdicts().since(&before);
        outcome
    }

    fn collect(&self, outcome: &mut Outcome) {
        let [mine, theirs] = [0, 1].map(|node: usize| Mac::of(self.cluster.vteps[node]));
        let mut buffer = [0; 65_536];
        for socket in &self.sockets {
            while let Ok(length) = socket.recv(&mut buffer) {
                outcome.told.insert(buffer[..length].to_vec());
            }
        }
        while let Some(frame) = self.endpoint.receive(Duration::ZERO) {
            if frame[..6] == mine.0 && frame[6..12] == theirs.0 {
                outcome.handed.insert(frame);
            }
        }
        let outer = if self.cluster.vteps[0].is_ipv4() { 50 } else { 70 };
        while let Some(frame) = self.wire.receive(Duration::ZERO) {
            if let Some(answer) = frame.get(outer..).and_then(|inner| answer(inner, theirs)) {
                outcome.told.insert(answer.to_vec());
            }
        }
    }
}

/// The transport of a reset or an echo reply to us.
fn answer(inner: &[u8], us: Mac) -> Option<&[u8]> {
    let (packet, protocol) = match inner.get(12..14)? {
        [8, 0] => (inner.get(34..)?, inner[23]),
        [0x86, 0xdd] => (inner.get(54..)?, inner[20]),
        _ => return None,
    };
    let is_answer = match protocol {
        protocol::TCP => true,
        protocol::ICMP => packet.first() == Some(&0),
        protocol::ICMPV6 => packet.first() == Some(&129),
        _ => false,
    };
    (inner[..6] == us.0 && is_answer).then_some(packet)
}

/// What an inner frame holds.
#[derive(Debug, Clone, Copy)]
pub struct Inner {
    pub protocol: u8,
    /// Bytes of payload.
    pub size: usize,
    /// One bit is not what it was when the checksum was made.
    pub damaged: bool,
    /// The UDP checksum is left out.
    pub unsummed: bool,
    /// ECN field.
    pub ecn: u8,
}

impl Inner {
    pub const UDP: Inner =
        Inner { protocol: protocol::UDP, size: 300, damaged: false, unsummed: false, ecn: 0 };

    /// The frame, from the attacker's user to the receiver's; `id` makes it another flow.
    pub fn frame(&self, vteps: &[IpAddr], [to, from]: [IpAddr; 2], id: u16) -> Vec<u8> {
        let payload = content(self.size, u32::from(id));
        let [high, low] = id.to_be_bytes();
        let (protocol, mut header, at) = match self.protocol {
            protocol::TCP => {
                let mut header = [id.to_be_bytes(), CLOSED.to_be_bytes()].concat();
                header.extend([high, low, 1, 1, 0, 0, 0, 0, 0x50, 0x02, 16, 0, 0, 0, 0, 0]);
                (protocol::TCP, header, 16)
            }
            protocol::UDP => {
                let length = (8 + payload.len()) as u16;
                (protocol::UDP, [id, PORT, length, 0].map(u16::to_be_bytes).concat(), 6)
            }
            _ if from.is_ipv4() => (protocol::ICMP, vec![8, 0, 0, 0, high, low, 0, 1], 2),
            _ => (protocol::ICMPV6, vec![128, 0, 0, 0, high, low, 0, 1], 2),
        };
        let mut sum = Sum::of(&[&header[..], &payload].concat());
        if protocol != protocol::ICMP {
            sum += frames::pseudo(from, to, protocol, header.len() + payload.len());
        }
        if !self.unsummed {
            let sum = if protocol == protocol::UDP { sum.udp_checksum() } else { sum.checksum() };
            header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut transport = [header, payload].concat();
        if self.damaged {
            *transport.last_mut().unwrap() ^= 0x40;
        }
        let (ethertype, packet) = frames::ip(from, to, protocol, self.ecn, &transport);
        frames::ethernet(Mac::of(vteps[1]), Mac::of(vteps[0]), ethertype, &packet)
    }
}

/// The overlay addresses of one family, here and there.
pub fn overlay(v6: bool) -> [IpAddr; 2] {
    if v6 { ["fd00:11::1", "fd00:11::2"] } else { ["10.1.0.1", "10.1.0.2"] }.map(|text| text.parse().unwrap())
}
