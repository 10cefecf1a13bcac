//! criterion benches of the data plane's hot path, each on one core and in memory.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::channel::unbounded;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use uvn_benches::{HERE, THERE, encapsulated, tables, tcp, udp};
use uvn_dataplane::decap::decap;
use uvn_dataplane::encap::{Route, encap};
use uvn_dataplane::gro::Gro;
use uvn_dataplane::gso::Gso;
use uvn_dataplane::memory;
use uvn_dataplane::outer::Patch;
use uvn_dataplane::port::{Offloads, VnetHeader};
use uvn_dataplane::worker::Worker;
use uvn_wire::checksum::Sum;
use uvn_wire::packet;
use uvn_wire::vxlan::Vni;

/// Sizes of the tables: networks and VTEPs.
const SIZES: [(u32, u32); 3] = [(1, 1), (200, 1_000), (1_000, 50_000)];

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for length in [64, 1448, 65_000] {
        let bytes = vec![0xa5; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| Sum::of(black_box(&bytes)).fold())
        });
    }
}

/// Parse, check, find the destination, copy behind the outer header: all that is done to a frame but for the rings.
fn encapsulate(c: &mut Criterion) {
    let mut group = c.benchmark_group("encap_64");
    for (networks, vteps) in SIZES {
        let tables = tables(networks, vteps);
        let frame = udp(HERE, THERE, 64);
        let mut buffer = [0; 2048];
        let mut slot = 0;
        group.bench_function(BenchmarkId::from_parameter(format!("{networks}_networks")), |b| {
            b.iter(|| {
                slot = (slot + 7) % networks;
                let network = tables.by_slot(slot)?;
                let packet = packet::parse(black_box(&frame)).ok()?;
                let outgoing = encap(&tables, network, &frame, &packet).ok()?;
                let Route::Vtep(vtep) = outgoing.route else { return None };
                let hop = tables.hops.get(&vtep)?;
                let gso = Gso::new(&VnetHeader::default(), &frame, &packet).ok()?;
                let inner = gso.write(0, &mut buffer[hop.outer.length()..])?;
                let patch =
                    Patch { vni: network.vni, source_port: outgoing.source_port, inner_tos: outgoing.tos };
                hop.outer.write(black_box(&mut buffer), patch, inner)
            });
        });
    }
}

fn decapsulate(c: &mut Criterion) {
    let mut group = c.benchmark_group("decap_64");
    for (networks, vteps) in SIZES {
        let tables = tables(networks, vteps);
        let frames: Vec<_> = (1..=networks).map(|vni| encapsulated(vni, &udp(THERE, HERE, 64))).collect();
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(format!("{networks}_networks")), |b| {
            b.iter(|| {
                next = (next + 7) % frames.len();
                decap(&tables, black_box(&frames[next]), 0).is_ok()
            });
        });
    }
}

fn gso(c: &mut Criterion) {
    let payload = vec![0x5a; 65_000];
    let frame = tcp(HERE, THERE, 1, &payload);
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        header_length: 54,
        gso_size: 1396,
        checksum_start: 34,
        checksum_offset: 16,
    };
    let mut group = c.benchmark_group("super_frame_65000");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    let mut buffers = vec![[0u8; 2048]; 64];
    group.bench_function("memcpy", |b| {
        b.iter(|| {
            for (chunk, buffer) in black_box(&payload).chunks(1396).zip(&mut buffers) {
                buffer[..chunk.len()].copy_from_slice(chunk);
            }
            black_box(&mut buffers);
        });
    });
    group.bench_function("gso", |b| {
        b.iter(|| {
            let packet = packet::parse(black_box(&frame)).ok()?;
            let gso = Gso::new(&header, &frame, &packet).ok()?;
            for (index, buffer) in (0..gso.segments()).zip(&mut buffers) {
                gso.write(index, buffer)?;
            }
            black_box(&mut buffers);
            Some(())
        });
    });
    let segments: Vec<_> = (0..46).map(|n| tcp(THERE, HERE, 1 + n * 1396, &payload[..1396])).collect();
    let mut gro = Gro::default();
    group.bench_function("gro_46_segments", |b| {
        b.iter(|| {
            for (index, frame) in (0..).zip(&segments) {
                if let Ok(packet) = packet::parse(black_box(frame)) {
                    gro.push(0, index, frame, &packet, Offloads { tcp: true, udp: true });
                }
            }
            let mut count = 0;
            gro.flush(|_| count += 1);
            count
        });
    });
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for entries in [1, 1_000, 100_000] {
        let tables = tables(entries, entries);
        let mut next = 0;
        group.bench_function(BenchmarkId::new("vni", entries), |b| {
            b.iter(|| {
                next = (next + 7919) % entries;
                tables.network(Vni::new(black_box(next + 1))?).map(|(slot, _)| slot)
            });
        });
        let listed: Vec<_> = tables.vteps.listed().0.collect();
        group.bench_function(BenchmarkId::new("vtep", entries), |b| {
            b.iter(|| {
                next = (next + 7919) % entries;
                tables.vteps.allows(black_box(listed[next as usize % listed.len()]))
            });
        });
    }
}

/// 64 frames through a worker's turn, ports in memory; the ports' own work is in it.
fn worker(c: &mut Criterion) {
    let mut group = c.benchmark_group("worker_turn_64_frames");
    group.throughput(Throughput::Elements(64));
    let frame = udp(HERE, THERE, 64);
    let received = encapsulated(1, &udp(THERE, HERE, 64));
    let (nic, mut wire) = memory::nic(4096, 64);
    let (endpoint, user) = memory::endpoint(4096, Offloads::default());
    let (events, _receiver) = unbounded();
    let now = Instant::now();
    let mut worker = Worker::new(nic, 0, Arc::new(tables(1, 1)), events, now);
    worker.attach(0, Box::new(endpoint));
    group.bench_function("ingress", |b| {
        b.iter_batched(
            || {
                while user.received().is_some() {}
                (0..64).filter(|_| wire.deliver(&received)).count()
            },
            |_| worker.turn(now),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("egress", |b| {
        b.iter_batched(
            || {
                while wire.sent().is_some() {}
                (0..64).for_each(|_| user.send(VnetHeader::default(), &frame));
            },
            |()| {
                worker.set_ready(0);
                worker.turn(now)
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(hot_path, checksum, encapsulate, decapsulate, gso, lookups, worker);
criterion_main!(hot_path);
