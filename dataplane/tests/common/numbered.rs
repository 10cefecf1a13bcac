//! A node whose one user sends and receives numbered datagrams without end, so that a test can say of each frame whether
//! it was sent before or after something.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::NetNs;
use crate::common::cluster::v4;
use crate::common::engine::Engine;
use crate::common::packet::PacketSocket;
use crate::frames::{udp, vxlan};
use socket2::SockRef;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uvn_dataplane::config::Encapsulation;
use uvn_dataplane::link;
use uvn_wire::ethernet::Mac;

/// The user's network.
pub const VNI: u32 = 1234;
/// The overlay addresses here and there.
pub const OVERLAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2))];
/// What every datagram begins with.
const MARK: &[u8; 8] = b"tenant's";
const PATIENCE: Duration = Duration::from_secs(10);
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
        self.node.run(|| link::disable_tx_offloads("em1")).unwrap();
        self.node.ip(&format!("addr add {}/24 dev em1", v4(1)));
        self.node.ip(&format!("neigh add {} lladdr 02:00:00:00:00:02 nud permanent dev em1", v4(2)));
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
        let links = self.node.run(link::list).unwrap();
        let nic = links.iter().find(|link| link.name == "em1").and_then(|link| link.mac).unwrap();
        let wire = || PacketSocket::new(&self.outside, "wire");
        let (attacker, capture) = (wire(), wire());
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
                    let inner = inner((2, OVERLAY[1]), (1, to), number);
                    let frame = vxlan(&Encapsulation::default(), v4(2), v4(1), VNI, 0, &inner);
                    attacker.try_send(&[&nic.0, &frame[6..]].concat());
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
                let Some(number) = number(&frame).filter(|_| frame[12..14] == [8, 0]) else { return };
                match (&frame[26..30], frame[23], &frame[36..38]) {
                    ([10, 0, 0, 1], 17, [0x12, 0xb5]) => drop(flow.seen[1].fetch_max(number + 1, SeqCst)),
                    ([10, 1, 0, 1], ..) => drop(flow.leaked.fetch_add(1, SeqCst)),
                    // Ours, or the host's answers to it.
                    _ => {}
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
        let (next, seen) = (self.next(), self.seen());
        for way in 0..2 {
            assert!(next[way] > now[way] + 20, "{what}: nothing is tried");
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

fn inner((from, source): (u8, IpAddr), (to, destination): (u8, IpAddr), number: u64) -> Vec<u8> {
    let macs = (Mac::of(v4(from)), Mac::of(v4(to)));
    udp(macs, (source, 9), (destination, 9), 0, &payload(number))
}
