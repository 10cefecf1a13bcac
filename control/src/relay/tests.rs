use super::*;
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

const WAIT: Duration = Duration::from_secs(20);

/// A relay with one network, and the address where it listens: no VRF here, so another port.
fn relay(uid: u32, service: SocketAddr) -> (Relay, SocketAddr) {
    let mut relay = Relay::start(&[service]).unwrap();
    let at = add(&mut relay, uid, service);
    (relay, at)
}

fn add(relay: &mut Relay, uid: u32, service: SocketAddr) -> SocketAddr {
    // A port that is free for TCP may be taken for UDP.
    let sockets = (0..100).find_map(|_| {
        let at = UdpSocket::bind((service.ip(), 0)).unwrap().local_addr().unwrap();
        Sockets::listen(None, at, service).ok()
    });
    let sockets = sockets.expect("a free port");
    let at = sockets.udp.local_addr().unwrap();
    relay.networks.insert(uid);
    relay.send(Command::Add(uid, vec![sockets])).unwrap();
    at
}

fn udp(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((at.ip(), 0)).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.connect(at).unwrap();
    socket
}

fn tcp(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// A service that answers each datagram with itself, twice if it says so.
fn echo() -> SocketAddr {
    echo_on([127, 0, 0, 1])
}

fn echo_on(address: [u8; 4]) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::from(address), 0)).unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            for _ in 0..1 + usize::from(buffer.starts_with(b"twice")) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    });
    at
}

#[test]
fn datagrams_find_their_client() {
    let (_relay, at) = relay(1000, echo());
    let clients: Vec<UdpSocket> = (0..20).map(|_| udp(at)).collect();
    let mut buffer = [0; 65535];
    for (index, client) in clients.iter().enumerate() {
        client.send(format!("{index}").as_bytes()).unwrap();
    }
    for (index, client) in clients.iter().enumerate() {
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], *format!("{index}").as_bytes());
    }
    clients[0].send(b"twice").unwrap();
    for _ in 0..2 {
        assert_eq!(clients[0].recv(&mut buffer).unwrap(), 5);
    }
    // The longest there is, and the shortest.
    for length in [65507, 0] {
        clients[1].send(&vec![7; length]).unwrap();
        assert_eq!(clients[1].recv(&mut buffer).unwrap(), length);
    }
}

#[test]
fn more_clients_than_are_kept_are_all_answered() {
    let (_relay, at) = relay(1000, echo());
    let mut buffer = [0; 16];
    for index in 0..1000_u32 {
        let client = udp(at);
        client.send(&index.to_le_bytes()).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], index.to_le_bytes());
    }
}

#[test]
fn one_users_flood_leaves_room_for_others() {
    let (mut relay, flooded) = relay(1000, echo());
    let quiet = udp(add(&mut relay, 1001, echo()));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let flood = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..10 {
                let _ = client.send_to(&[0; 100], flooded);
            }
        }
    });
    let answered = (0..10).filter(|_| quiet.send(b"q").is_ok() && quiet.recv(&mut [0; 16]).is_ok()).count();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
    assert_eq!(answered, 10);
}

#[test]
fn connections_are_copied_both_ways_to_their_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_relay, at) = relay(1000, listener.local_addr().unwrap());
    let service = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        // Ends when the client has said all, and answers then: each direction ends by itself.
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut client = tcp(at);
    client.write_all(&sent).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
    service.join().unwrap();
}

#[test]
fn a_service_may_come_later() {
    // It has its port, and refuses until it listens.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let (_relay, at) = relay(1000, socket.local_addr().unwrap().as_socket().unwrap());
    let mut buffer = [0; 16];
    let refused = tcp(at).read(&mut buffer);
    assert!(matches!(refused, Ok(0) | Err(_)), "{refused:?}");
    socket.listen(1).unwrap();
    let listener = TcpListener::from(socket);
    let mut client = tcp(at);
    client.write_all(b"hello").unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    assert_eq!(stream.read(&mut buffer).unwrap(), 5);
}

#[test]
fn connections_are_bounded_and_the_next_waits_its_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_relay, at) = relay(1000, listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            stream.write_all(b"!").unwrap();
            kept.push(stream);
        }
    });
    let mut buffer = [0; 1];
    let mut first: Vec<TcpStream> = (0..32).map(|_| tcp(at)).collect();
    first.iter_mut().for_each(|stream| stream.read_exact(&mut buffer).unwrap());
    let mut next = tcp(at);
    next.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(next.read(&mut buffer).is_err());
    // The service keeps its end open: only an end that both have shut frees the place, or a reset.
    first[0].write_all(b"x").unwrap();
    socket2::SockRef::from(&first[0]).set_linger(Some(Duration::ZERO)).unwrap();
    drop(first.swap_remove(0));
    next.set_read_timeout(Some(WAIT)).unwrap();
    next.read_exact(&mut buffer).unwrap();
}

#[test]
fn a_removed_network_is_served_no_more() {
    // An address of its own: no other test takes a port that has become free.
    let service = echo_on([127, 0, 0, 2]);
    let (mut relay, at) = relay(1000, service);
    let other = add(&mut relay, 1001, service);
    let client = udp(at);
    client.send(b"hello").unwrap();
    client.recv(&mut [0; 16]).unwrap();
    relay.remove(1000).unwrap();
    relay.remove(1000).unwrap();
    assert_eq!(relay.networks(), &BTreeSet::from([1001]));
    // The address is free, as soon as what other tests start has executed: until then it has copies of our files.
    let end = Instant::now() + WAIT;
    while TcpStream::connect(at).is_ok() || Sockets::listen(None, at, service).is_err() {
        assert!(Instant::now() < end, "{at} is still served");
        std::thread::sleep(Duration::from_millis(1));
    }
    let client = udp(other);
    client.send(b"hello").unwrap();
    client.recv(&mut [0; 16]).unwrap();
}

#[test]
fn an_address_in_use_is_named_with_a_remedy() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut relay = Relay::start(&[address]).unwrap();
    let error = relay.add(1000, "lo").unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot serve {address} inside lo: "))
            && error.contains("systemd-resolved"),
        "{error}"
    );
    assert!(relay.networks().is_empty());
}
