//! A node whose one user sends and receives numbered datagrams without end, so that a test can say of each frame whether
//! it was sent before or after something.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::cluster::v4;
use crate::common::engine::Engine;
use crate::common::packet::PacketSocket;
use crate::frames::{NIC, udp, vxlan};
use socket2::SockRef;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::Encapsulation;
use uvn_dataplane::port::link;
use uvn_rig::test::NetNs;
use uvn_wire::ethernet::Mac;

/// The user's network.
pub const VNI: u32 = 1234;
/// The overlay addresses here and there.
pub const OVERLAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2))];
/// What every datagram begins with.
const MARK: &[u8; 8] = b"tenant's";
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing must come that must not.
const QUIET: Duration = Duration::from_millis(300);

/// What the threads have in common.
#[derive(Default)]
struct Flow {
    /// Numbers of the next datagrams, in and out.
    next: [AtomicU64; 2],
    /// One more than the highest numbers that arrived: at the user, on the wire.
    seen: [AtomicU64; 2],
    /// Datagrams of the user that the host itself got, or that left without outer headers.
    leaked: AtomicU64,
    done: AtomicBool,
}

/// Ends them, however the test ends.
struct Threads(Arc<Flow>, Vec<JoinHandle<()>>);

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.done.store(true, SeqCst);
        self.1.drain(..).for_each(|thread| drop(thread.join()));
    }
}

pub struct Numbered {
    /// Dropped first.
    pub engine: Option<Engine>,
    pub node: NetNs,
    outside: NetNs,
    config: String,
    flow: Arc<Flow>,
}

impl Numbered {
    /// `top` begins the configuration file.
    pub fn new(top: &str) -> Numbered {
        Numbered::with(top, "")
    }

    /// With more networks.
    pub fn with(top: &str, networks: &str) -> Numbered {
        let (node, outside) = (NetNs::new("node"), NetNs::new("outside"));
        outside.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        let (own, peer, [here, there]) = (v4(1), v4(2), OVERLAY);
        let config = format!(
            r#"
            nic = "em1"
            vtep = ["{own}"]
            {top}
            [peers]
            vtep = [{{ address = "{peer}", overlay = ["{there}"] }}]
            [[network]]
            vni = {VNI}
            addresses = ["{here}/24"]
            device = {{ name = "u1234" }}
            {networks}
            "#
        );
        let mut rig = Numbered { engine: None, node, outside, config, flow: Arc::default() };
        rig.wire();
        rig.start();
        rig
    }

    /// The NIC and its wire.
    pub fn wire(&self) {
        self.node.veth("em1", &self.outside, "wire");
        self.node.ip(&format!("link set em1 address {NIC}"));
        self.node.run(|| link::disable_tx_offloads("em1")).unwrap();
        self.node.ip(&format!("addr add {}/24 dev em1", v4(1)));
        // The data plane may have asked for it already.
        self.node.ip(&format!("neigh replace {} lladdr 02:00:00:00:00:02 nud permanent dev em1", v4(2)));
    }

    /// Starts the data plane.
    pub fn start(&mut self) {
        self.engine = Some(Engine::start(&self.node, &self.config));
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// A frame as the user's kernel sends it.
    pub fn outgoing(&self, number: u64) -> Vec<u8> {
        inner((1, OVERLAY[0]), (2, OVERLAY[1]), number)
    }

    /// Sends the user one frame from the wire.
    pub fn send_in(&self, number: u64) {
        let inner = inner((2, OVERLAY[1]), (1, OVERLAY[0]), number);
        let frame = vxlan(&Encapsulation::default(), v4(2), v4(1), VNI, 0, &inner);
        PacketSocket::new(&self.outside, "wire").send(&frame);
    }

    /// Sends these networks' endpoints one frame each from the wire.
    pub fn send_each(&self, endpoints: &[(u32, IpAddr)]) {
        let (wire, nic) = self.outer_end();
        for (vni, address) in endpoints {
            wire.send(&incoming(nic, *vni, *address, 0));
        }
    }

    /// The wire's other end, and the NIC's MAC.
    fn outer_end(&self) -> (PacketSocket, Mac) {
        let nic = self.node.run(|| link::get("em1")).unwrap().mac.unwrap();
        (PacketSocket::new(&self.outside, "wire"), nic)
    }

    /// Datagrams go both ways until `done`: each of them arrives, and once.
    #[track_caller]
    pub fn assert_complete(&self, mut done: impl FnMut() -> bool) {
        let socket = |port: u16| {
            let socket = self.node.run(|| UdpSocket::bind((OVERLAY[0], port)).unwrap());
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let (user, sender, (wire, nic)) = (socket(9), socket(0), self.outer_end());
        wire.set_buffer(16 << 20);
        let (mut arrived, mut sent) = ([const { Vec::new() }; 2], 0);
        let take = |arrived: &mut [Vec<u64>; 2]| {
            let mut buffer = [0; 64];
            while let Ok(length) = user.recv(&mut buffer) {
                arrived[0].extend(number(&buffer[..length]));
            }
            while let Some(frame) = wire.receive(Duration::ZERO) {
                arrived[1].extend(sent_number(&frame));
            }
        };
        while !done() {
            for _ in 0..10 {
                // No more than the buffers hold: the worker's core may be busy with something else.
                if arrived.iter().all(|numbers| sent < numbers.len() as u64 + 100) {
                    wire.send(&incoming(nic, VNI, OVERLAY[0], sent));
                    sender.send_to(&payload(sent), (OVERLAY[1], 9)).unwrap();
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
                take(&mut arrived);
            }
        }
        let start = Instant::now();
        while arrived.iter().any(|numbers| numbers.len() < sent as usize) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            take(&mut arrived);
        }
        for (way, numbers) in arrived.iter_mut().enumerate() {
            numbers.sort_unstable();
            assert_eq!(*numbers, (0..sent).collect::<Vec<_>>(), "way {way}");
        }
    }

    /// Has both directions flow, and once they do, in the gear that was chosen, runs `work`.
    pub fn flow(&mut self, work: impl FnOnce(&mut Numbered)) {
        self.flow = Arc::default();
        let _threads = Threads(self.flow.clone(), self.threads());
        self.assert_open("at the start");
        let start = Instant::now();
        let is_carried = || {
            let counted = self.engine().counted();
            counted.verdict("tc_stripped").min(counted.verdict("tc_encapsulated")) > 10
        };
        while !is_carried() {
            assert!(start.elapsed() < PATIENCE, "not in the gear: {:?}", self.engine().counted());
            std::thread::sleep(Duration::from_millis(10));
        }
        work(self);
    }

    fn threads(&self) -> Vec<JoinHandle<()>> {
        let ((attacker, nic), (capture, _)) = (self.outer_end(), self.outer_end());
        let bind = |address: IpAddr, port: u16| {
            let socket = self.node.run(|| UdpSocket::bind((address, port)).unwrap());
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            socket
        };
        let (user, sender, host) = (bind(OVERLAY[0], 9), bind(OVERLAY[0], 0), bind(v4(1), 9));
        // Where nobody takes them, they must not hold up the next.
        sender.set_nonblocking(true).unwrap();
        // The host's own, by its NIC.
        self.node.run(|| SockRef::from(&host).bind_device(Some(b"em1"))).unwrap();
        let spawn = |mut turn: Box<dyn FnMut(&Flow) + Send>| {
            let flow = self.flow.clone();
            std::thread::spawn(move || {
                while !flow.done.load(SeqCst) {
                    turn(&flow);
                }
            })
        };
        vec![
            spawn(Box::new(move |flow| {
                let number = flow.next[0].fetch_add(1, SeqCst);
                // To the user's address, and to the host's.
                for to in [OVERLAY[0], v4(1)] {
                    attacker.try_send(&incoming(nic, VNI, to, number));
                }
                std::thread::sleep(Duration::from_micros(300));
            })),
            spawn(Box::new(move |flow| {
                let number = flow.next[1].fetch_add(1, SeqCst);
                let _no_way = sender.send_to(&payload(number), (OVERLAY[1], 9));
                std::thread::sleep(Duration::from_micros(300));
            })),
            spawn(Box::new(move |flow| {
                let mut buffer = [0; 64];
                if let Some(number) = user.recv(&mut buffer).ok().and_then(|length| number(&buffer[..length]))
                {
                    flow.seen[0].fetch_max(number + 1, SeqCst);
                }
            })),
            spawn(Box::new(move |flow| {
                let Some(frame) = capture.receive(Duration::from_millis(20)) else { return };
                if let Some(number) = sent_number(&frame) {
                    flow.seen[1].fetch_max(number + 1, SeqCst);
                } else if number(&frame).is_some()
                    && frame[12..14] == [8, 0]
                    && frame[26..30] == [10, 1, 0, 1]
                {
                    flow.leaked.fetch_add(1, SeqCst);
                }
            })),
            spawn(Box::new(move |flow| {
                if host.recv(&mut [0; 64]).is_ok() {
                    flow.leaked.fetch_add(1, SeqCst);
                }
            })),
        ]
    }

    fn next(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| self.flow.next[way].load(SeqCst))
    }

    fn seen(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| self.flow.seen[way].load(SeqCst))
    }

    /// Nothing that is sent from now on arrives.
    #[track_caller]
    pub fn assert_closed(&self, what: &str) {
        let now = self.next();
        std::thread::sleep(QUIET);
        let start = Instant::now();
        while (0..2).any(|way: usize| self.next()[way] <= now[way] + 20) {
            assert!(start.elapsed() < PATIENCE, "{what}: nothing is tried");
            std::thread::sleep(Duration::from_millis(5));
        }
        let seen = self.seen();
        for way in 0..2 {
            assert!(
                seen[way] <= now[way],
                "{what}, way {way}: {} arrived, sent after {}",
                seen[way] - 1,
                now[way]
            );
        }
        assert_eq!(self.flow.leaked.load(SeqCst), 0, "{what}: leaked");
    }

    /// What is sent from now on arrives, both ways, and nowhere else.
    #[track_caller]
    pub fn assert_open(&self, what: &str) {
        let (now, start) = (self.next(), Instant::now());
        while (0..2).any(|way: usize| self.seen()[way] <= now[way]) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:?} and not yet {now:?}", self.seen());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.flow.leaked.load(SeqCst), 0, "{what}: leaked");
    }
}

fn payload(number: u64) -> Vec<u8> {
    [&MARK[..], &number.to_be_bytes()].concat()
}

fn number(bytes: &[u8]) -> Option<u64> {
    let (rest, number) = bytes.split_last_chunk::<8>()?;
    rest.ends_with(MARK).then(|| u64::from_be_bytes(*number))
}

/// The number in a frame that the node has sent, with outer headers.
fn sent_number(frame: &[u8]) -> Option<u64> {
    let number = number(frame).filter(|_| frame[12..14] == [8, 0])?;
    let is_ours = frame[26..30] == [10, 0, 0, 1] && frame[23] == 17 && frame[36..38] == [0x12, 0xb5];
    is_ours.then_some(number)
}

/// A frame of the peer to an endpoint of the node whose NIC has this MAC.
fn incoming(nic: Mac, vni: u32, to: IpAddr, number: u64) -> Vec<u8> {
    let inner = inner((2, OVERLAY[1]), (1, to), number);
    let frame = vxlan(&Encapsulation::default(), v4(2), v4(1), vni, 0, &inner);
    [&nic.0, &frame[6..]].concat()
}

fn inner((from, source): (u8, IpAddr), (to, destination): (u8, IpAddr), number: u64) -> Vec<u8> {
    let macs = (Mac::of(v4(from)), Mac::of(v4(to)));
    udp(macs, (source, 9), (destination, 9), 0, &payload(number))
}
