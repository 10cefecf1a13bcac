//! TAP, veth and AF_XDP ports on real devices, in namespaces of their own. Needs root.
#![allow(
    clippy::unwrap_used,
    reason = "the parts of tests outside test functions are not recognised as such"
)]

mod common;

use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::NetNs;
use uvn_dataplane::link::{self, LinkError};
use uvn_dataplane::port::{Endpoint, MAX_FRAME, MAX_PARTS, VnetHeader};
use uvn_dataplane::tap::{Tap, TapError};
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
        assert!(link::get("veth0").unwrap().running);
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
