//! TAP, veth and AF_XDP ports on real devices, in namespaces of their own. Needs root.
#![allow(unsafe_code, reason = "a user opens a TAP by ioctl")]
#![allow(
    clippy::unwrap_used,
    reason = "the parts of tests outside test functions are not recognised as such"
)]

mod common;

use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use uvn_dataplane::port::link::{self, LinkError};
use uvn_dataplane::port::redirect;
use uvn_dataplane::port::tap::{Tap, TapError};
use uvn_dataplane::port::veth::{Veth, VethError};
use uvn_dataplane::port::xsk::{XskConfig, XskError, XskQueue};
use uvn_engine::port::{Endpoint, MAX_FRAME, MAX_PARTS, Nic, State, VnetHeader};
use uvn_rig::test::NetNs;
use uvn_wire::ethernet::Mac;

#[test]
fn links_are_made_changed_and_deleted() {
    let (here, there) = (NetNs::new("lnka"), NetNs::new("lnkb"));
    let peer_netns = std::fs::File::open(format!("/run/netns/{}", there.name())).unwrap();
    here.run(|| {
        link::create_veth("veth0", "veth1", Some(peer_netns.as_fd())).unwrap();
        assert!(matches!(link::create_veth("veth0", "veth9", None), Err(LinkError::Refused { .. })));
        let mac: Mac = "02:75:0a:00:00:01".parse().unwrap();
        link::set_mac("veth0", mac).unwrap();
        link::set_mtu("veth0", 1400).unwrap();
        link::set_up("veth0", true).unwrap();
        link::add_address("veth0", "10.9.0.1".parse::<IpAddr>().unwrap(), 24).unwrap();
        link::add_address("veth0", "fd09::1".parse::<IpAddr>().unwrap(), 64).unwrap();
        let veth = link::get("veth0").unwrap();
        assert_eq!((veth.mac, veth.mtu, veth.up, veth.arphrd), (Some(mac), 1400, true, 1));
        assert!(!veth.running, "its peer is down");
        assert_eq!(link::list().unwrap().len(), 2, "lo and veth0");
        assert_eq!(link::queues("veth0").unwrap(), 1);
        link::disable_tx_offloads("veth0").unwrap();
    });
    there.run(|| link::set_up("veth1", true)).unwrap();
    here.run(|| {
        // The kernel may take its time to find that the link is up.
        wait_for("carrier", || link::get("veth0").unwrap().running);
        link::set_up("veth0", false).unwrap();
        assert!(!link::get("veth0").unwrap().up);
        link::delete("veth0").unwrap();
    });
    for result in [
        there.run(|| link::get("veth1").map(drop)),
        there.run(|| link::set_mtu("veth1", 1400)),
        there.run(|| link::delete("veth1")),
        there.run(|| link::disable_tx_offloads("veth1")),
        there.run(|| link::queues("veth1").map(drop)),
    ] {
        assert!(matches!(&result, Err(LinkError::NotFound(name)) if name == "veth1"), "{result:?}");
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What went through a patch cable.
#[derive(Default)]
struct Cable {
    tcp_super_frames: usize,
    udp_super_frames: usize,
    unfinished_checksums: usize,
    refused: usize,
}

impl Cable {
    /// Hands every frame of one endpoint to the other, in two parts, both ways, until `done`.
    fn run(left: &mut dyn Endpoint, right: &mut dyn Endpoint, done: &AtomicBool) -> Cable {
        let mut cable = Cable::default();
        let mut buffer = vec![0; MAX_FRAME];
        while !done.load(Relaxed) {
            let moved = cable.carry(left, right, &mut buffer) + cable.carry(right, left, &mut buffer);
            if moved == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        cable
    }

    fn carry(&mut self, from: &mut dyn Endpoint, to: &mut dyn Endpoint, buffer: &mut [u8]) -> usize {
        let mut moved = 0;
        while moved < 64
            && let Some((header, length)) = from.receive(buffer).unwrap()
        {
            match header.gso_type & !VnetHeader::GSO_ECN {
                VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 => self.tcp_super_frames += 1,
                VnetHeader::GSO_UDP => self.udp_super_frames += 1,
                _ => {}
            }
            self.unfinished_checksums += usize::from(header.flags & VnetHeader::NEEDS_CHECKSUM != 0);
            let (head, tail) = buffer[..length].split_at(14);
            let sent = to.send(&header, &[IoSlice::new(head), IoSlice::new(tail)]).unwrap();
            self.refused += usize::from(!sent);
            moved += 1;
        }
        to.flush();
        moved
    }
}

const BULK: usize = 8 << 20;

/// Sends bulk TCP over IPv4 and IPv6 from one namespace to the other and compares what arrives.
fn tcp_between(here: &NetNs, there: &NetNs, to: &str) {
    let data: Vec<u8> = (0..BULK).map(|i| (i / 7) as u8).collect();
    let listener = there.run(|| TcpListener::bind((to, 7)).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = here.run(|| TcpStream::connect((to, 7)).unwrap());
            stream.write_all(&data).unwrap();
        });
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        assert!(received == data, "{} bytes of {BULK} arrived, or they differ", received.len());
    });
}

/// Sends one UDP datagram that the kernel may segment: 20 of 1000 bytes each arrive.
fn udp_between(here: &NetNs, there: &NetNs, from: &str, to: &str) {
    let receiver = there.run(|| UdpSocket::bind((to, 7)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let sender = here.run(|| UdpSocket::bind((from, 0)).unwrap());
    let data: Vec<u8> = (0..20_000).map(|i| (i / 1000) as u8).collect();
    let segment = nix::sys::socket::ControlMessage::UdpGsoSegments(&1000);
    let address = nix::sys::socket::SockaddrIn::from(match format!("{to}:7").parse().unwrap() {
        std::net::SocketAddr::V4(v4) => v4,
        std::net::SocketAddr::V6(_) => unreachable!("the callers use IPv4"),
    });
    let flags = nix::sys::socket::MsgFlags::empty();
    let parts = [IoSlice::new(&data)];
    let fd = std::os::fd::AsRawFd::as_raw_fd(&sender);
    nix::sys::socket::sendmsg(fd, &parts, &[segment], flags, Some(&address)).unwrap();
    for number in 0..20 {
        let mut buffer = [0; 2000];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!((length, buffer[0], buffer[999]), (1000, number, number));
    }
}

fn configure(netns: &NetNs, device: &str, number: u8) {
    netns.run(|| {
        link::add_address(device, IpAddr::from([10, 9, 0, number]), 24).unwrap();
        link::add_address(device, format!("fd09::{number}").parse().unwrap(), 64).unwrap();
        link::set_up(device, true).unwrap();
    });
}

/// Connects two endpoints, runs traffic between the namespaces of their users, and tells what passed.
fn traffic(left: &NetNs, right: &NetNs, ends: (&mut dyn Endpoint, &mut dyn Endpoint)) -> Cable {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cable = scope.spawn(|| Cable::run(ends.0, ends.1, &done));
        let work = std::panic::catch_unwind(|| {
            tcp_between(left, right, "10.9.0.2");
            tcp_between(right, left, "fd09::1");
            udp_between(left, right, "10.9.0.1", "10.9.0.2");
        });
        done.store(true, Relaxed);
        let cable = cable.join().unwrap();
        work.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        cable
    })
}

#[test]
fn super_frames_pass_between_taps() {
    let (left, right) = (NetNs::new("tapl"), NetNs::new("tapr"));
    let mut tap_left = left.run(|| Tap::open("tap0", 1)).unwrap().remove(0);
    let mut tap_right = right.run(|| Tap::open("tap%d", 1)).unwrap().remove(0);
    assert_eq!(tap_right.name().unwrap(), "tap0");
    configure(&left, "tap0", 1);
    configure(&right, "tap0", 2);
    let cable = traffic(&left, &right, (&mut tap_left, &mut tap_right));
    assert!(cable.tcp_super_frames > 0 && cable.unfinished_checksums > 0);
    assert!(cable.udp_super_frames > 0 || !tap_left.offloads().udp);
    assert_eq!(cable.refused, 0);
}

#[test]
fn a_tap_takes_only_what_it_can() {
    let netns = NetNs::new("tap");
    let mut tap = netns.run(|| Tap::open("tap0", 1)).unwrap().remove(0);
    assert_eq!(tap.index().unwrap(), netns.run(|| link::get("tap0")).unwrap().index);
    let frame = [IoSlice::new(&[2; 60])];
    let plain = VnetHeader::default();
    assert!(!tap.send(&plain, &frame).unwrap(), "the device is down");
    netns.run(|| link::set_up("tap0", true)).unwrap();
    assert!(tap.send(&plain, &frame).unwrap());
    let malformed = VnetHeader { gso_type: 77, ..plain };
    assert!(!tap.send(&malformed, &frame).unwrap());
    assert!(tap.send(&plain, &[IoSlice::new(&[2]); MAX_PARTS]).unwrap());
    assert!(!tap.send(&plain, &[IoSlice::new(&[2]); MAX_PARTS + 1]).unwrap());

    netns.run(|| link::delete("tap0")).unwrap();
    assert!(tap.send(&plain, &frame).is_err());
    assert!(tap.receive(&mut [0; 64]).is_err());
    assert!(tap.name().is_err() && tap.index().is_err());
}

#[test]
fn a_tap_outlives_its_descriptor_only_if_persistent() {
    let netns = NetNs::new("tapp");
    let taps = netns.run(|| Tap::open("tap0", 2)).unwrap();
    assert_eq!(taps.len(), 2);
    assert_eq!(taps[0].index().unwrap(), taps[1].index().unwrap());
    taps[0].set_persistent(true).unwrap();
    drop(taps);
    let index = netns.run(|| link::get("tap0")).unwrap().index;

    let tap = netns.run(|| Tap::open("tap0", 2)).unwrap().remove(0);
    assert_eq!(tap.index().unwrap(), index);
    tap.set_persistent(false).unwrap();
    drop(tap);
    // Other tests start programs: until their exec, a copy of the descriptor lives on.
    wait_for("the TAP goes", || matches!(netns.run(|| link::get("tap0")), Err(LinkError::NotFound(_))));
}

#[test]
fn a_tap_has_its_address_wherever_it_is() {
    let (netns, other) = (NetNs::new("tapm"), NetNs::new("tapm2"));
    let (own, foreign) = (Mac([2, 0x75, 10, 0, 0, 1]), Mac([0x6e, 1, 2, 3, 4, 5]));
    let taps = netns.run(|| Tap::open_as("tap0", 2, own)).unwrap();
    assert_eq!(netns.run(|| link::get("tap0")).unwrap().mac, Some(own));
    netns.ip(&format!("link set tap0 netns {} name tap7", other.name()));
    other.ip(&format!("link set tap7 address {foreign}"));
    assert_eq!(taps[1].mac().unwrap(), foreign);
    taps[0].set_mac(own).unwrap();
    assert_eq!(other.run(|| link::get("tap7")).unwrap().mac, Some(own));
    assert_eq!(netns.run(|| taps[0].there(str::to_owned)).unwrap(), "tap7");
}

#[test]
fn a_queue_that_nobody_reads_gets_nothing() {
    let netns = NetNs::new("tapq");
    let mut taps = netns.run(|| Tap::open("tap0", 2)).unwrap();
    netns.ip("link set tap0 up");
    netns.ip("addr add 10.0.0.1/24 dev tap0");
    netns.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0");
    let flows: Vec<_> =
        (0..64).map(|_| netns.run(|| std::net::UdpSocket::bind("10.0.0.1:0").unwrap())).collect();
    let send = |taps: &mut [Tap]| {
        let mut count = [0, 0];
        for flow in &flows {
            flow.send_to(b"uvn", "10.0.0.2:9").unwrap();
        }
        for (count, tap) in count.iter_mut().zip(taps) {
            let mut buffer = [0; 2048];
            // The kernel itself speaks IPv6 there.
            while let Ok(Some((_, length))) = tap.receive(&mut buffer) {
                *count += usize::from(buffer[..length].ends_with(b"uvn"));
            }
        }
        count
    };
    for _ in 0..2 {
        let [first, second] = send(&mut taps);
        assert!(first > 0 && second > 0, "{first} and {second}");
        taps[1].set_attached(false).unwrap();
        taps[1].set_attached(false).unwrap();
        assert_eq!(send(&mut taps[..1])[0], flows.len());
        taps[1].set_attached(true).unwrap();
        taps[1].set_attached(true).unwrap();
    }
}

#[test]
fn no_other_user_gets_a_queue() {
    let netns = NetNs::new("tapo");
    let taps = netns.run(|| Tap::open("tap0", 2)).unwrap();
    let attempt = |uid: u32| {
        // Open to everybody on most systems, unlike on some that this runs on.
        let fd = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all zero is an ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE) as i16;
        // SAFETY: numbers only. By system call, which changes this thread alone: it ends here.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, 0);
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    let as_user =
        |uid| netns.run(|| std::thread::scope(|scope| scope.spawn(|| attempt(uid)).join().unwrap()));
    assert_eq!(as_user(1000).unwrap_err().raw_os_error(), Some(libc::EPERM));
    as_user(0).unwrap();
    drop(taps);
}

#[test]
fn descriptors_are_taken_over_only_from_taps() {
    let netns = NetNs::new("tapf");
    let tap = netns.run(|| Tap::open("tap0", 1)).unwrap().remove(0);
    let refused = netns.run(|| Tap::open("tap0", 1)).unwrap_err();
    assert!(refused.to_string().ends_with("another process has it open"), "{refused}");
    assert!(matches!(netns.run(|| Tap::open("sixteen-bytes-xx", 1)), Err(TapError::Create { .. })));

    let mut same = Tap::from_fd(tap.as_fd().try_clone_to_owned().unwrap()).unwrap();
    drop(tap);
    netns.run(|| link::set_up("tap0", true)).unwrap();
    assert_eq!(same.name().unwrap(), "tap0");
    assert!(same.send(&VnetHeader::default(), &[IoSlice::new(&[2; 60])]).unwrap());

    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let unattached: OwnedFd = std::fs::File::open("/dev/net/tun").unwrap().into();
    for fd in [file, unattached] {
        assert!(matches!(Tap::from_fd(fd), Err(TapError::NotATap)));
    }
}

fn netns_path(netns: &NetNs) -> PathBuf {
    PathBuf::from(format!("/run/netns/{}", netns.name()))
}

#[test]
fn traffic_passes_between_veth_endpoints() {
    let (left, right, engine) = (NetNs::new("vethl"), NetNs::new("vethr"), NetNs::new("vethe"));
    let (mut veth_left, mut veth_right) = engine.run(|| {
        let create = |name, netns| Veth::create(name, "em1", Some(&netns_path(netns)), 1500).unwrap();
        (create("l", &left), create("r", &right))
    });
    configure(&left, "em1", 1);
    configure(&right, "em1", 2);
    let cable = traffic(&left, &right, (&mut veth_left, &mut veth_right));
    assert_eq!(cable.tcp_super_frames + cable.udp_super_frames + cable.unfinished_checksums, 0);
    let whole = [IoSlice::new(&[2; 60])];
    let super_frame = VnetHeader { gso_type: VnetHeader::GSO_TCPV4, gso_size: 9, ..VnetHeader::default() };
    assert!(!veth_left.send(&super_frame, &whole).unwrap());
    assert!(!veth_left.send(&VnetHeader::default(), &[IoSlice::new(&[2; 4000])]).unwrap());

    let (jumbo, absent) = engine.run(|| {
        (
            Veth::create("j", "user", None, 9000),
            Veth::create("a", "user", Some("/run/netns/-".as_ref()), 1500),
        )
    });
    assert!(matches!(jumbo, Err(VethError::Program { name, .. }) if name == "j"));
    assert!(matches!(absent, Err(VethError::Netns { name, .. }) if name == "user"));
    assert_eq!(engine.run(link::list).unwrap().len(), 3, "lo and our two ends: none is left behind");

    engine.run(|| drop(veth_left));
    assert!(matches!(left.run(|| link::get("em1")), Err(LinkError::NotFound(_))));
    right.run(|| link::delete("em1")).unwrap();
    let mut buffer = [0; 2000];
    wait_for("the endpoint notices", || veth_right.receive(&mut buffer).is_err());
    engine.run(|| drop(veth_right));
}

const FRAMES: u32 = 64;

fn open(netns: &NetNs, device: &str) -> XskQueue {
    netns.run(|| {
        let queue = XskQueue::open(&config(device, 0)).unwrap();
        redirect::attach(device, queue.fd().unwrap()).unwrap();
        queue
    })
}

fn config(device: &str, queue: u32) -> XskConfig {
    XskConfig { interface: device.into(), queue, frames: FRAMES, batch: 16, busy_poll_us: None }
}

/// Two namespaces joined by a veth pair `wire`, where the kernel itself sends nothing.
fn wire(label: &str) -> (NetNs, NetNs) {
    let (left, right) = (NetNs::new(label), NetNs::new(label));
    for netns in [&left, &right] {
        netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).unwrap();
    }
    left.veth("wire", &right, "wire");
    (left, right)
}

/// Queues one frame of this number; false if there is no free one.
fn transmit(queue: &mut XskQueue, number: u32) -> bool {
    let Some(mut frame) = queue.reserve() else { return false };
    let length = 60 + number as usize % 1400;
    let buffer = &mut queue.buffer(&mut frame)[..length];
    buffer.fill(number as u8);
    buffer[..6].fill(0xff);
    buffer[14..18].copy_from_slice(&number.to_be_bytes());
    queue.transmit(frame, length);
    true
}

/// The numbers of what arrived.
fn arrived(queue: &mut XskQueue) -> Vec<u32> {
    let mut frames = Vec::new();
    queue.receive(&mut frames);
    let mut numbers = Vec::new();
    for frame in frames {
        let bytes = queue.bytes(&frame);
        let number = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
        assert_eq!(bytes.len(), 60 + number as usize % 1400);
        assert!(bytes[18..].iter().chain(&bytes[6..14]).all(|&byte| byte == number as u8));
        numbers.push(number);
        queue.release(frame);
    }
    queue.flush();
    numbers
}

#[test]
fn frames_arrive_once_in_order_and_all_come_back() {
    let (left, right) = wire("xskl");
    let (mut sender, mut receiver) = (open(&left, "wire"), open(&right, "wire"));
    assert!(!sender.zero_copy(), "veth has none");
    assert_eq!(sender.room(), FRAMES as usize / 2);
    // Far more than the rings hold, both ways at once.
    let (mut sent, mut there, mut back) = (0, 0, 0);
    let start = Instant::now();
    while there < 1000 || back < 1000 {
        assert!(start.elapsed() < Duration::from_secs(20), "{sent} sent, {there} arrived, {back} came back");
        // At most as many as the other side has room for, or the kernel would rightly drop them.
        while sent < 1000 && sent < back + FRAMES / 2 && transmit(&mut sender, sent) {
            sent += 1;
        }
        sender.flush();
        for number in arrived(&mut receiver) {
            assert_eq!(number, there);
            there += 1;
            assert!(transmit(&mut receiver, number), "what it received it has room to send");
        }
        receiver.flush();
        for number in arrived(&mut sender) {
            assert_eq!(number, back);
            back += 1;
        }
    }
    for queue in [&mut sender, &mut receiver] {
        wait_for("all frames come back", || queue.flush() == 0);
        assert_eq!((queue.room(), queue.lost(), queue.state()), (FRAMES as usize / 2, 0, State::Up));
    }
}

#[test]
fn one_flush_sends_a_whole_ring() {
    const MANY: u32 = 512;
    let (left, right) = wire("xsks");
    let large = XskConfig { frames: 2 * MANY, batch: MANY as usize, ..config("wire", 0) };
    let mut sender = left.run(|| XskQueue::open(&large)).unwrap();
    let polled = XskConfig { busy_poll_us: Some(20), ..large };
    let mut receiver = right.run(|| XskQueue::open(&polled)).unwrap();
    assert!(receiver.busy_poll());
    let socket = receiver.fd().unwrap();
    right.run(|| redirect::attach("wire", socket)).unwrap();
    for number in 0..MANY {
        assert!(transmit(&mut sender, number));
    }
    sender.flush();
    let mut numbers = Vec::new();
    wait_for("all arrive", || {
        numbers.extend(arrived(&mut receiver));
        numbers.len() == MANY as usize
    });
    assert_eq!(numbers, (0..MANY).collect::<Vec<_>>());
}

#[test]
fn a_frame_of_another_queue_is_refused() {
    let (left, right) = wire("xskf");
    let (mut one, mut other) = (open(&left, "wire"), open(&right, "wire"));
    let mut frame = one.reserve().unwrap();
    assert!(other.buffer(&mut frame).is_empty() && other.bytes(&frame).is_empty());
    let room = other.room();
    other.transmit(frame, 60);
    other.release(one.reserve().unwrap());
    assert_eq!((other.flush(), other.room()), (0, room));
}

#[test]
fn a_nic_goes_down_and_up_and_away() {
    let (left, right) = wire("xskd");
    let (mut sender, mut receiver) = (open(&left, "wire"), open(&right, "wire"));
    left.run(|| link::set_up("wire", false)).unwrap();
    assert_eq!(sender.state(), State::Down);
    for number in 0..FRAMES / 2 {
        assert!(transmit(&mut sender, number));
        assert_eq!(sender.flush(), 0, "nothing to wait for");
    }
    assert!(!transmit(&mut sender, 0));
    assert_eq!(sender.room(), 0);

    left.run(|| link::set_up("wire", true)).unwrap();
    wait_for("the link is up", || left.run(|| link::get("wire")).unwrap().running);
    let mut numbers = Vec::new();
    wait_for("queued frames arrive", || {
        sender.flush();
        numbers.extend(arrived(&mut receiver));
        numbers.len() == FRAMES as usize / 2
    });
    assert_eq!(numbers, (0..FRAMES / 2).collect::<Vec<_>>());
    wait_for("they come back", || sender.flush() == 0 && sender.room() == FRAMES as usize / 2);

    left.run(|| link::delete("wire")).unwrap();
    for queue in [&mut sender, &mut receiver] {
        wait_for("the queue notices", || queue.state() == State::Gone);
        while transmit(queue, 1) {}
        assert_eq!(queue.flush(), 0);
        assert!(arrived(queue).is_empty());
    }
}

#[test]
fn a_queue_is_opened_once_and_again_when_it_is_free() {
    let netns = NetNs::new("xsko");
    netns.ip("link add wire0 numtxqueues 2 numrxqueues 2 type veth peer name wire1");
    netns.ip("link set wire0 up");
    let try_open = |device, queue| netns.run(|| XskQueue::open(&config(device, queue)));
    let refusal = |result: Result<XskQueue, XskError>| result.map(drop).unwrap_err().to_string();
    let first = try_open("wire0", 0).unwrap();
    let second = try_open("wire0", 1).unwrap();
    assert_ne!(first.fd(), second.fd());
    let busy = refusal(try_open("wire0", 0));
    assert!(busy.starts_with("AF_XDP socket on queue 0 of `wire0`"), "{busy}");
    assert!(busy.ends_with("stop that process"), "{busy}");
    assert_eq!(try_open("wire1", 0).unwrap().state(), State::Down);
    assert!(refusal(try_open("wire0", 7)).ends_with("fewer queues (ethtool -l)"));
    assert!(refusal(try_open("wire9", 0)).ends_with("no such NIC in this network namespace"));
    let odd = XskConfig { frames: 100, ..config("wire0", 0) };
    assert!(matches!(netns.run(|| XskQueue::open(&odd)), Err(XskError::Frames(100))));

    // Its owner goes while another waits for it.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| try_open("wire0", 0).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
        waiting.join().unwrap().unwrap();
    });
}
