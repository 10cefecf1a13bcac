//! The eBPF programs of a NIC and of an endpoint, by the kernel's own clock (BPF_PROG_TEST_RUN): `cargo bench -p
//! uvn-benches --bench programs`, with baselines as criterion has them. Needs root; works in a network namespace of its
//! own.
//!
//! `once` means one run per call, for programs that change the frame. Reading the clock is in it, as it is in
//! `once/nothing`, where the program finds nothing to do: what is between the two is the work.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark stops where it cannot go on")]

use aya::programs::{ProgramInfo, SchedClassifier, Xdp as Program, loaded_programs};
use aya::{TestRun, TestRunOptions, TestRunResult};
use aya_obj::programs::XdpAttachType;
use criterion::{BenchmarkId, Criterion};
use nix::sched::{CloneFlags, unshare};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;
use uvn_api::dataplane::config::{self, Encapsulation};
use uvn_benches::{HERE, THERE, encapsulated, tables, udp};
use uvn_dataplane::gear::programs::Xdp;
use uvn_dataplane::gear::shortcut::Shortcut;
use uvn_dataplane::networks::Entry;
use uvn_dataplane::port::device::EndpointSource;
use uvn_dataplane::port::link;
use uvn_dataplane::port::slow_path::SlowPath;
use uvn_dataplane::port::tap::Tap;
use uvn_wire::ethernet::Mac;
use uvn_wire::vxlan::{self, Vni};
use uvn_wire::xdp::Network;

/// Networks and VTEPs in the maps.
const ENTRIES: [u32; 3] = [1, 1_000, 10_000];
/// include/uapi/linux/bpf.h
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// include/uapi/linux/pkt_cls.h
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_REDIRECT: u32 = 7;
/// Where struct __sk_buff has the index of its device (include/uapi/linux/bpf.h).
const IFINDEX: usize = 40;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("the eBPF programs are not measured: that needs root");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link add em1 type veth peer name wire");
    ip("link set em1 up");
    let mut criterion = Criterion::default().configure_from_args();
    let mut xdp = Xdp::attach("em1", &Encapsulation::default()).unwrap();
    xdp.set_local(&[HERE]).unwrap();
    engine(&mut criterion, &mut xdp);
    drop(xdp);
    let nic = link::get("em1").unwrap();
    // The engine's end of what is left over.
    let _tap = SlowPath::open(nic.index, 1, 1).unwrap();
    let mut xdp = Xdp::load(nic.index, &Encapsulation::default(), nic.index).unwrap();
    xdp.set_local(&[HERE]).unwrap();
    match Shortcut::attach(&mut xdp, &nic, vxlan::PORT) {
        Ok(shortcut) => in_kernel(&mut criterion, &mut xdp, shortcut),
        Err(error) => println!("the shortcut is not measured: {error}"),
    }
    criterion.final_summary();
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The engine's gear: the XDP program on frames that are ours and on others, with maps of several sizes.
fn engine(c: &mut Criterion, xdp: &mut Xdp) {
    let program = Program::from_program_info(on_nic(), "uvn_xdp".into(), XdpAttachType::Interface).unwrap();
    let ours = encapsulated(1, &udp(THERE, HERE, 64));
    for entries in ENTRIES {
        fill(xdp, entries);
        // To a socket, if there was one: without it the frame is dropped at the very end.
        many(c, "xdp_ours", &entries.to_string(), &program, &ours, XDP_DROP);
    }
    many(c, "xdp", "not_ours", &program, &udp(THERE, HERE, 64), XDP_PASS);
    many(c, "xdp", "unknown_vni", &program, &encapsulated(Vni::MAX, &udp(THERE, HERE, 64)), XDP_DROP);
}

/// The shortcut: encapsulation on the endpoint; verification and stripping on the NIC.
fn in_kernel(c: &mut Criterion, xdp: &mut Xdp, mut shortcut: Shortcut) {
    let tap = Tap::open("user", 1).unwrap().remove(0);
    let source = EndpointSource::take(vec![tap.as_fd().try_clone_to_owned().unwrap()]).unwrap();
    let network: config::Network =
        serde_json::from_str(r#"{"vni": 1, "addresses": ["10.0.0.1/16"]}"#).unwrap();
    let entry = Entry::new(network, Mac::of(HERE), source, 1);
    let granted = shortcut.grant(xdp, &entry).unwrap();
    let program =
        |name: &str| SchedClassifier::from_program_info(by_name(name), name.to_owned().into()).unwrap();
    let (egress, ingress) = (program("uvn_egress"), program("uvn_ingress"));
    let mut skb = [0; IFINDEX + 4];
    skb[IFINDEX..].copy_from_slice(&granted.endpoint.to_ne_bytes());
    let not_ours = udp(THERE, HERE, 64);
    once(c, "tc_once", "nothing", &egress, (&not_ours, None), TC_ACT_UNSPEC);
    for entries in ENTRIES {
        fill(xdp, entries);
        xdp.set_network(granted).unwrap();
        shortcut.follow(&tables(1, entries)).unwrap();
        for length in [64, 1450] {
            let name = format!("{length}_bytes_{entries}_entries");
            let incoming = encapsulated(1, &udp(THERE, HERE, length));
            once(c, "tc_once", &format!("strip_{name}"), &ingress, (&incoming, None), TC_ACT_REDIRECT);
            let outgoing = udp(HERE, THERE, length);
            once(c, "tc_once", &format!("encap_{name}"), &egress, (&outgoing, Some(&skb)), TC_ACT_REDIRECT);
        }
    }
}

/// As many networks and VTEPs. The peer and network 1 are the first, and stay.
fn fill(xdp: &mut Xdp, entries: u32) {
    let IpAddr::V4(first) = THERE else { unreachable!() };
    let vteps: Vec<IpAddr> =
        (0..entries).map(|number| Ipv4Addr::from_bits(first.to_bits() + number).into()).collect();
    xdp.set_vteps(&vteps, &[]).unwrap();
    (1..=entries).for_each(|vni| xdp.set_network(Network::engine(Vni::new(vni).unwrap())).unwrap());
}

/// The program on em1.
fn on_nic() -> ProgramInfo {
    let shown = ip("link show em1");
    let id: u32 = shown.split_once("prog/xdp id ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    loaded_programs().flatten().find(|info| info.id() == id).unwrap()
}

/// The newest program of this name.
fn by_name(name: &str) -> ProgramInfo {
    loaded_programs()
        .flatten()
        .filter(|info| info.name_as_str() == Some(name))
        .max_by_key(ProgramInfo::id)
        .unwrap()
}

/// Runs a program and returns the mean of `repeat` runs.
fn run<P>(program: &P, (frame, context): (&[u8], Option<&[u8]>), repeat: u32, expected: u32) -> Duration
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let options =
        TestRunOptions { data_in: Some(frame), ctx_in: context, repeat, ..TestRunOptions::default() };
    let result = program.test_run(options).unwrap();
    assert_eq!(result.return_value, expected, "another verdict");
    result.duration
}

/// Many runs on the same frame, which the program leaves as it is.
fn many(c: &mut Criterion, group: &str, name: &str, program: &Program, frame: &[u8], expected: u32) {
    c.benchmark_group(group).bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter_custom(|runs| {
            let runs = u32::try_from(runs).unwrap();
            run(program, (frame, None), runs, expected) * runs
        });
    });
}

/// One run per call, each on a new copy of the frame.
fn once<P>(
    c: &mut Criterion,
    group: &str,
    name: &str,
    program: &P,
    input: (&[u8], Option<&[u8]>),
    expected: u32,
) where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    c.benchmark_group(group).bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter_custom(|runs| (0..runs).map(|_| run(program, input, 1, expected)).sum());
    });
}
