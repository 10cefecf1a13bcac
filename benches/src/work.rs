//! What is measured: the functions of the hot path, each with what it works on.
//!
//! One list for all instruments: [`all`] offers every work to a [`Bench`].

use crate::{HERE, THERE, encapsulated, node, sent, tables, tcp, udp};
use crossbeam::channel::unbounded;
use hashbrown::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;
use uvn_api::dataplane::config::{Cidr, Peers, Vtep};
use uvn_engine::decap::decap;
use uvn_engine::encap::{Route, encap};
use uvn_engine::gro::Gro;
use uvn_engine::gso::Gso;
use uvn_engine::memory::{self, MemoryNic, User, Wire};
use uvn_engine::outer::Patch;
use uvn_engine::port::{Offloads, VnetHeader};
use uvn_engine::ring::{Consumer, Producer, ring};
use uvn_engine::tables::{Learned, Tables};
use uvn_engine::worker::{Status, Worker};
use uvn_wire::checksum::Sum;
use uvn_wire::ethernet::Mac;
use uvn_wire::packet;
use uvn_wire::vxlan::Vni;

/// Sizes of tables.
const ENTRIES: [u32; 3] = [1, 1_000, 100_000];
/// Networks on a node and VTEPs beside the peer, where whole frames are looked up.
const NODES: [(u32, u32); 3] = [(1, 1), (200, 1_000), (1_000, 50_000)];
/// Payload of a TCP segment: what an MTU of 1500 leaves an inner frame behind IPv4, with its options.
const SEGMENT: usize = 1396;
/// Segments of a super-frame.
const SEGMENTS: u32 = 46;
/// Frames in a worker's turn.
const TURN: u32 = 64;
/// How far apart neighbours in time are in a table. A prime: all entries have their turn.
const STEP: u32 = 7919;

/// Something to be measured.
pub trait Work {
    /// Whether it has anything to prepare.
    const PREPARES: bool = false;

    /// Makes what the next run works on; not measured.
    fn prepare(&mut self) {}

    /// Runs once; false if it did not do what it is to.
    fn run(&mut self) -> bool;
}

impl<F: FnMut() -> bool> Work for F {
    #[inline]
    fn run(&mut self) -> bool {
        self()
    }
}

/// What one run works on.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// So many frames, look-ups or descriptors.
    Frames(u32),
    /// One frame of so many bytes.
    Bytes(usize),
}

/// Numbers below a bound, in steps, without a division.
struct Cycle {
    next: u32,
    step: u32,
    bound: u32,
}

impl Cycle {
    fn new(bound: u32) -> Cycle {
        Cycle { next: 0, step: STEP % bound, bound }
    }

    #[inline]
    fn next(&mut self) -> u32 {
        self.next += self.step;
        if self.next >= self.bound {
            self.next -= self.bound;
        }
        black_box(self.next)
    }
}

/// An instrument.
pub trait Bench {
    /// Measures a work, unless it is not wanted.
    fn measure<W: Work>(&mut self, group: &str, name: &str, amount: Amount, work: W);
}

/// Has everything measured.
pub fn all(bench: &mut impl Bench) {
    for length in [64, 1448, 65_000] {
        let bytes = vec![0xa5; length];
        let sum = move || black_box(Sum::of(black_box(&bytes)).fold()) != 0;
        bench.measure("checksum", &length.to_string(), Amount::Bytes(length), sum);
    }
    for (networks, vteps) in NODES {
        let tables = Arc::new(tables(networks, vteps));
        let name = format!("{networks}_networks");
        bench.measure(
            "encap_64",
            &name,
            Amount::Frames(1),
            encapsulate(tables.clone(), vec![udp(HERE, THERE, 64)]),
        );
        bench.measure(
            "decap_64",
            &name,
            Amount::Frames(1),
            decapsulate(tables.clone(), to_each(&tables, 64)),
        );
    }
    let tables = Arc::new(tables(1, 1));
    bench.measure(
        "encap_1450",
        "1_networks",
        Amount::Frames(1),
        encapsulate(tables.clone(), vec![udp(HERE, THERE, 1450)]),
    );
    bench.measure(
        "decap_1450",
        "1_networks",
        Amount::Frames(1),
        decapsulate(tables.clone(), to_each(&tables, 1450)),
    );
    peers(bench);
    super_frames(bench);
    for entries in ENTRIES {
        lookups(bench, entries);
    }
    let (producer, consumer) = ring(TURN, u32::MAX - 2);
    bench.measure("ring", "64_descriptors", Amount::Frames(TURN), descriptors(producer, consumer));
    turns(bench);
}

/// Whole frames from and to all of one peer and of ten thousand, by the ways to list them.
fn peers(bench: &mut impl Bench) {
    const HERE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    for (here, bits) in [(HERE, 32), (HERE6, 128)] {
        // Of every four addresses one is a peer's.
        let peer = |number: u32| match here {
            IpAddr::V4(_) => IpAddr::from((0x0a01_0001 + 4 * number).to_be_bytes()),
            IpAddr::V6(_) => {
                IpAddr::from((0xfd00 << 112 | u128::from(0x0a01_0001 + 4 * number)).to_be_bytes())
            }
        };
        for (list, prefix) in
            [("exact", None), ("single_ranges", Some(bits)), ("ranges_of_four", Some(bits - 2))]
        {
            for count in [1, 10_000] {
                let all: Vec<IpAddr> = (0..count).map(peer).collect();
                let listed = match prefix {
                    Some(prefix) => {
                        let range = all.iter().map(|&address| Cidr { address, prefix }.subnet()).collect();
                        Peers { range, ..Peers::default() }
                    }
                    None => {
                        let vtep = all.iter().map(|&address| Vtep { address, overlay: Vec::new() }).collect();
                        Peers { vtep, ..Peers::default() }
                    }
                };
                let tables = Arc::new(node(here, 1, &listed, &all));
                let name = format!("{count}_{list}_ipv{}", if bits == 32 { 4 } else { 6 });
                let frames = all.iter().map(|peer| udp(here, *peer, 64)).collect();
                bench.measure("encap_peers", &name, Amount::Frames(1), encapsulate(tables.clone(), frames));
                let frames = all.iter().map(|peer| sent(*peer, here, 1, &udp(*peer, here, 64))).collect();
                bench.measure("decap_peers", &name, Amount::Frames(1), decapsulate(tables, frames));
            }
        }
    }
}

/// Parse, check, find the destination, copy behind the outer header: all that is done to a frame but for the rings.
fn encapsulate(tables: Arc<Tables>, frames: Vec<Vec<u8>>) -> impl Work {
    let mut buffer = [0; 2048];
    let mut slots = Cycle::new(tables.networks.len() as u32);
    let mut indexes = Cycle::new(frames.len() as u32);
    move || {
        let (slot, frame) = (slots.next(), &frames[indexes.next() as usize]);
        let mut written = || {
            let network = tables.by_slot(slot)?;
            let packet = packet::parse(black_box(frame)).ok()?;
            let outgoing = encap(&tables, network, frame, &packet).ok()?;
            let Route::Vtep(vtep) = outgoing.route else { return None };
            let hop = tables.hops.get(&vtep)?;
            let gso = Gso::new(&VnetHeader::default(), frame, &packet).ok()?;
            let inner = gso.write(0, &mut buffer[hop.outer.length()..])?;
            let patch =
                Patch { vni: network.vni, source_port: outgoing.source_port, inner_tos: outgoing.tos };
            hop.outer.write(black_box(&mut buffer), patch, inner)
        };
        written().is_some()
    }
}

/// One frame to each network.
fn to_each(tables: &Tables, length: usize) -> Vec<Vec<u8>> {
    let inner = udp(THERE, HERE, length);
    (1..=tables.networks.len() as u32).map(|vni| encapsulated(vni, &inner)).collect()
}

fn decapsulate(tables: Arc<Tables>, frames: Vec<Vec<u8>>) -> impl Work {
    let mut indexes = Cycle::new(frames.len() as u32);
    move || decap(&tables, black_box(&frames[indexes.next() as usize]), 0).is_ok()
}

/// What the endpoint's kernel says of a super-frame.
fn super_header() -> VnetHeader {
    VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        header_length: 54,
        gso_size: SEGMENT as u16,
        checksum_start: 34,
        checksum_offset: 16,
    }
}

/// Segments as they arrive, in order.
fn segments(payload: &[u8]) -> Vec<Vec<u8>> {
    let chunks = (1..).step_by(SEGMENT).zip(payload.chunks(SEGMENT));
    chunks.map(|(sequence, chunk)| tcp(THERE, HERE, sequence, chunk)).collect()
}

/// GSO and GRO of the most that a super-frame holds, with checksums; and memcpy of as much.
fn super_frames(bench: &mut impl Bench) {
    let payload = vec![0x5a; SEGMENT * SEGMENTS as usize];
    let mut buffers = vec![[0_u8; 2048]; SEGMENTS as usize];
    let bytes = payload.clone();
    bench.measure("super_frame", "memcpy", Amount::Frames(SEGMENTS), move || {
        for (chunk, buffer) in black_box(&bytes).chunks(SEGMENT).zip(&mut buffers) {
            buffer[..chunk.len()].copy_from_slice(chunk);
        }
        black_box(&mut buffers).len() == SEGMENTS as usize
    });
    let mut buffers = vec![[0_u8; 2048]; SEGMENTS as usize];
    let frame = tcp(HERE, THERE, 1, &payload);
    bench.measure("super_frame", "gso", Amount::Frames(SEGMENTS), move || {
        let Ok(packet) = packet::parse(black_box(&frame)) else { return false };
        let Ok(gso) = Gso::new(&super_header(), &frame, &packet) else { return false };
        let written =
            (0..gso.segments()).zip(&mut buffers).all(|(index, buffer)| gso.write(index, buffer).is_some());
        written && black_box(&mut buffers).len() == gso.segments()
    });
    let segments = segments(&payload);
    let mut gro = Gro::default();
    bench.measure("super_frame", "gro", Amount::Frames(SEGMENTS), move || {
        for (index, frame) in (0..).zip(&segments) {
            if let Ok(packet) = packet::parse(black_box(frame)) {
                gro.push(0, index, frame, &packet, Offloads { tcp: true, udp: true });
            }
        }
        let mut count = 0;
        gro.flush(|_| count += 1);
        count == 1
    });
}

/// Every table that a frame may be looked up in, with this many entries.
fn lookups(bench: &mut impl Bench, entries: u32) {
    let tables = tables(entries, entries);
    let peers: Vec<IpAddr> = tables.vteps.listed().0.collect();
    let peer = |index: u32| peers[index as usize];
    lookup(bench, "vni", entries, |index| Vni::new(index + 1).and_then(|vni| tables.network(vni)).is_some());
    lookup(bench, "vtep", entries, |index| tables.vteps.allows(peer(index)));
    lookup(bench, "owner", entries, |index| tables.vteps.of_overlay(peer(index)).is_some());
    lookup(bench, "mac", entries, |index| tables.vteps.of_mac(Mac::of(peer(index))).is_some());
    lookup(bench, "next_hop", entries, |index| tables.hops.contains_key(&peer(index)));
    let mac = |index: u32| Mac([0x52, 0x54, 0, (index >> 16) as u8, (index >> 8) as u8, index as u8]);
    let learned = || Arc::new(Learned { vtep: THERE, seen: AtomicU32::new(0) });
    let fdb: HashMap<Mac, Arc<Learned>> = (0..entries).map(|index| (mac(index), learned())).collect();
    lookup(bench, "learned_mac", entries, |index| fdb.contains_key(&mac(index)));
}

fn lookup(bench: &mut impl Bench, table: &str, entries: u32, mut found: impl FnMut(u32) -> bool) {
    let mut indexes = Cycle::new(entries);
    let work = || found(indexes.next());
    bench.measure(&format!("lookup_{table}"), &entries.to_string(), Amount::Frames(1), work);
}

/// Through a ring, one batch at a time.
fn descriptors(mut producer: Producer, mut consumer: Consumer) -> impl Work {
    move || {
        let pushed = (0..TURN).all(|descriptor| producer.push(descriptor.into()));
        producer.submit();
        pushed && (0..TURN).all(|descriptor| consumer.pop() == Some(descriptor.into()))
    }
}

/// A worker over ports in memory, whose own work is measured with it.
struct Turn {
    worker: Worker<MemoryNic>,
    status: Arc<Status>,
    wire: Wire,
    users: Vec<User>,
    /// What the endpoints send, and what arrives on the wire.
    outgoing: Vec<(u32, VnetHeader, Vec<u8>)>,
    incoming: Vec<Vec<u8>>,
    /// Frames that this makes.
    frames: u64,
    now: Instant,
}

/// A worker's turn: receiving and sending, small frames and super-frames, one network and many.
fn turns(bench: &mut impl Bench) {
    let small = udp(HERE, THERE, 64);
    let plain = |slot| (slot, VnetHeader::default(), small.clone());
    for networks in [1, 1_000] {
        let mut slots = Cycle::new(networks);
        let slots: Vec<u32> = (0..TURN).map(|_| slots.next()).collect();
        let arriving = |slot: &u32| encapsulated(slot + 1, &udp(THERE, HERE, 64));
        let ingress = Turn::new(networks, TURN, Vec::new(), slots.iter().map(arriving).collect());
        let egress = Turn::new(networks, TURN, slots.into_iter().map(plain).collect(), Vec::new());
        let name = format!("{networks}_networks");
        bench.measure("worker_ingress_64", &name, Amount::Frames(TURN), ingress);
        bench.measure("worker_egress_64", &name, Amount::Frames(TURN), egress);
    }
    let payload = vec![0x5a; SEGMENT * SEGMENTS as usize];
    let incoming = segments(&payload).iter().map(|segment| encapsulated(1, segment)).collect();
    let ingress = Turn::new(1, SEGMENTS, Vec::new(), incoming);
    bench.measure("worker_ingress_tcp", "1_networks", Amount::Frames(SEGMENTS), ingress);
    let whole = (0, super_header(), tcp(HERE, THERE, 1, &payload));
    let egress = Turn::new(1, SEGMENTS, vec![whole], Vec::new());
    bench.measure("worker_egress_tcp", "1_networks", Amount::Frames(SEGMENTS), egress);
}

impl Turn {
    fn new(
        networks: u32,
        frames: u32,
        outgoing: Vec<(u32, VnetHeader, Vec<u8>)>,
        incoming: Vec<Vec<u8>>,
    ) -> Turn {
        let now = Instant::now();
        let (nic, wire) = memory::nic(4096, TURN as usize);
        // Nobody reads them.
        let (events, _) = unbounded();
        let mut worker = Worker::new(nic, 0, Arc::new(tables(networks, 1)), events, now);
        // The small frames are UDP, and stay single.
        let offloads = Offloads { tcp: true, udp: false };
        let (endpoints, users): (Vec<_>, _) = (0..networks).map(|_| memory::endpoint(4096, offloads)).unzip();
        for (slot, endpoint) in (0..).zip(endpoints) {
            worker.attach(slot, Box::new(endpoint));
        }
        let status = worker.status();
        Turn { worker, status, wire, users, outgoing, incoming, frames: frames.into(), now }
    }

    fn moved(&self) -> u64 {
        self.status.counters.rx_frames.get() + self.status.counters.tx_frames.get()
    }
}

impl Work for Turn {
    const PREPARES: bool = true;

    fn prepare(&mut self) {
        while self.wire.sent().is_some() {}
        self.users.iter().for_each(|user| while user.received().is_some() {});
        for frame in &self.incoming {
            self.wire.deliver(frame);
        }
        for (slot, header, frame) in &self.outgoing {
            self.users[*slot as usize].send(*header, frame);
        }
    }

    fn run(&mut self) -> bool {
        let before = self.moved();
        for (slot, ..) in &self.outgoing {
            self.worker.set_ready(*slot);
        }
        while self.worker.turn(self.now) {}
        self.moved() == before + self.frames
    }
}
