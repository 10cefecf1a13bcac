//! Traffic between two namespaces by the kernel's sockets, its content compared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use nix::sys::socket::{
    ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt::RcvBufForce,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;
use uvn_rig::test::NetNs;

const PATIENCE: Duration = Duration::from_secs(30);
/// How often a ping is tried.
const TRIES: u8 = 4;
/// Bytes of a bulk transfer, each way.
pub const BULK: usize = 4 << 20;

/// A namespace and an address of it.
#[derive(Clone, Copy)]
pub struct Place<'a>(pub &'a NetNs, pub IpAddr);

/// Does it again when a signal came in between: a receive with a timeout is not restarted (signal(7)).
pub fn uninterrupted<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Bytes that depend on where they are, so that nothing can change places unseen.
pub fn content(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Echo requests with these payload lengths, each of which must be answered with its own payload. They are tried again:
/// on a busy machine a kernel gives up on a neighbour that takes 3 seconds to answer (mcast_solicit of neighbour.c), and
/// loses what waits for it.
pub fn ping(from: Place<'_>, to: IpAddr, lengths: &[usize]) {
    from.0.run(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap());
    let (domain, protocol, request) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let mut socket = from.0.run(|| Socket::new(domain, Type::DGRAM, Some(protocol)).unwrap());
    socket.set_read_timeout(Some(PATIENCE / 2)).unwrap();
    socket.bind(&SocketAddr::new(from.1, 0).into()).unwrap();
    socket.connect(&SocketAddr::new(to, 0).into()).unwrap();
    for (number, &length) in lengths.iter().enumerate() {
        let payload = content(length, number as u32);
        let first = number as u8 * TRIES;
        let answered = (first..first + TRIES).any(|sequence| {
            let header = [request, 0, 0, 0, 0, 0, 0, sequence];
            socket.send(&[&header[..], &payload].concat()).unwrap();
            let mut reply = vec![0; 65_536];
            while let Ok(received) = uninterrupted(|| socket.read(&mut reply)) {
                // Answers to what was given up may come late.
                if reply[7] >= first {
                    assert!(reply[6] == 0 && reply[7] <= sequence, "another sequence number");
                    assert!(reply[8..received] == payload, "another payload");
                    return true;
                }
            }
            println!("ping {} -> {to}, {length} bytes: no answer to {sequence}", from.1);
            false
        });
        assert!(answered, "ping {} -> {to}, {length} bytes", from.1);
    }
}

/// Datagrams with these payload lengths to an echo server, each of which must come back.
pub fn udp(from: Place<'_>, to: Place<'_>, lengths: &[usize]) {
    let bind = |place: Place<'_>| {
        let socket = place.0.run(|| UdpSocket::bind((place.1, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (client, server) = (bind(from), bind(to));
    let (client_address, server_address) = (client.local_addr().unwrap(), server.local_addr().unwrap());
    let mut buffer = vec![0; 65_536];
    for &length in lengths {
        let payload = content(length, length as u32);
        for (sender, to, receiver, from) in [
            (&client, server_address, &server, client_address),
            (&server, client_address, &client, server_address),
        ] {
            sender.send_to(&payload, to).unwrap();
            let received = uninterrupted(|| receiver.recv_from(&mut buffer));
            let (received, source) =
                received.unwrap_or_else(|error| panic!("UDP {from} -> {to}, {length} bytes: {error}"));
            assert_eq!(source, from);
            assert!(buffer[..received] == payload, "another payload");
        }
    }
}

/// One datagram of `count` times `length` bytes that the kernel leaves to the device to cut; all segments must arrive,
/// in order.
pub fn udp_segmented(from: Place<'_>, to: Place<'_>, count: usize, length: u16) {
    let receiver = to.0.run(|| UdpSocket::bind((to.1, 0)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    // All at once, on a busy machine: each short segment may take a page.
    setsockopt(&receiver, RcvBufForce, &(4 << 20)).unwrap();
    let sender = from.0.run(|| UdpSocket::bind((from.1, 0)).unwrap());
    let data = content(count * usize::from(length), 7);
    let address = SockaddrStorage::from(receiver.local_addr().unwrap());
    let control = [ControlMessage::UdpGsoSegments(&length)];
    let parts = [IoSlice::new(&data)];
    sendmsg(sender.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&address)).unwrap();
    let mut buffer = vec![0; 65_536];
    for segment in data.chunks(usize::from(length)) {
        let received = uninterrupted(|| receiver.recv(&mut buffer));
        let received = received.unwrap_or_else(|error| panic!("segmented UDP: {error}"));
        assert!(buffer[..received] == *segment, "another payload");
    }
}

/// Bulk TCP, first from the client, then from the server.
pub fn tcp(from: Place<'_>, to: Place<'_>, bytes: usize) {
    let listener = to.0.run(|| TcpListener::bind((to.1, 0)).unwrap());
    // For accept(2): if nobody comes the test must end.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).unwrap();
    let address = listener.local_addr().unwrap();
    let (request, reply) = (content(bytes, 1), content(bytes, 2));
    let carry = |mut stream: TcpStream, mine: &[u8], theirs: &[u8], first: bool| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        if first {
            stream.write_all(mine).unwrap();
        }
        let mut received = vec![0; theirs.len()];
        let result = stream.read_exact(&mut received);
        result.unwrap_or_else(|error| panic!("TCP {} -> {address}: {error}", from.1));
        assert!(received == theirs, "other content");
        if !first {
            stream.write_all(mine).unwrap();
        }
        // A close here while the other end still has data would be a reset.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap(), 0);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| carry(uninterrupted(|| listener.accept()).unwrap().0, &reply, &request, false));
        let socket = from.0.run(|| Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap());
        socket.bind(&SocketAddr::new(from.1, 0).into()).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap();
        carry(socket.into(), &request, &reply, true);
    });
}

/// All of it, from `a` to `b` and from `b` to `a`. `mtu` is what an IP packet between them may have at most.
pub fn all(a: Place<'_>, b: Place<'_>, mtu: usize) {
    let header = if a.1.is_ipv4() { 20 } else { 40 };
    // The longest that fits, and one that its sender cuts into fragments.
    let lengths = [0, 1, 56, 1000, mtu - header - 8, 5000];
    for (from, to) in [(a, b), (b, a)] {
        ping(from, to.1, &lengths);
        udp(from, to, &lengths);
        udp_segmented(from, to, 40, 1000);
        tcp(from, to, BULK);
    }
}
