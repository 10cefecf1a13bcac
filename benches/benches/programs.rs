//! The eBPF programs of a NIC, by the kernel's own clock (BPF_PROG_TEST_RUN): `cargo bench -p uvn-benches --bench
//! programs`, with baselines as criterion has them. Needs root; works in a network namespace of its own.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops where it cannot go on")]

use aya::programs::{Xdp as Program, loaded_programs};
use aya::{TestRun, TestRunOptions};
use aya_obj::programs::XdpAttachType;
use criterion::{BenchmarkId, Criterion};
use nix::sched::{CloneFlags, unshare};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use uvn_benches::{HERE, THERE, encapsulated, udp};
use uvn_dataplane::xdp::Xdp;
use uvn_wire::vxlan::{PORT, Vni};

/// Networks and VTEPs in the program's maps.
const ENTRIES: [u32; 3] = [1, 1_000, 10_000];
/// include/uapi/linux/bpf.h
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("the eBPF programs are not measured: that needs root");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link add em1 type veth peer name wire");
    ip("link set em1 up");
    let mut criterion = Criterion::default().configure_from_args();
    xdp(&mut criterion);
    criterion.final_summary();
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The XDP program on frames that are ours and on others, with tables of several sizes.
fn xdp(c: &mut Criterion) {
    let mut xdp = Xdp::attach("em1", PORT).unwrap();
    xdp.set_local(&[HERE]).unwrap();
    let program = attached();
    let ours = encapsulated(1, &udp(THERE, HERE, 64));
    // The peer has the lowest address, network 1 the lowest VNI; both stay.
    for entries in ENTRIES {
        let vteps: Vec<IpAddr> = (0..entries).map(vtep).collect();
        xdp.set_vteps(&vteps, &[]).unwrap();
        (1..=entries).for_each(|vni| xdp.add_vni(Vni::new(vni).unwrap()).unwrap());
        // To a socket, if there was one: without it the frame is dropped at the very end.
        time(c, "xdp_ours", &entries.to_string(), &program, &ours, XDP_DROP);
    }
    time(c, "xdp", "not_ours", &program, &udp(THERE, HERE, 64), XDP_PASS);
    let unknown = encapsulated(Vni::MAX, &udp(THERE, HERE, 64));
    time(c, "xdp", "unknown_vni", &program, &unknown, XDP_DROP);
}

fn vtep(number: u32) -> IpAddr {
    let IpAddr::V4(first) = THERE else { unreachable!() };
    IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() + number))
}

/// The program on em1.
fn attached() -> Program {
    let shown = ip("link show em1");
    let id: u32 = shown.split_once("prog/xdp id ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    let info = loaded_programs().map(Result::unwrap).find(|info| info.id() == id).unwrap();
    Program::from_program_info(info, "uvn_xdp".into(), XdpAttachType::Interface).unwrap()
}

fn time(
    c: &mut Criterion,
    group: &str,
    name: &str,
    program: &impl for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::TestRunResult>,
    frame: &[u8],
    expected: u32,
) {
    let run = |repeat| {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
        let result = program.test_run(options).unwrap();
        assert_eq!(result.return_value, expected, "{group}/{name}");
        // The mean of all runs.
        result.duration * repeat
    };
    let mut group = c.benchmark_group(group);
    group.bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter_custom(|runs| run(u32::try_from(runs).unwrap()));
    });
}
