//! Servers that say their name, and clients that say theirs: who reaches whom.

use crate::escape::socket;
use socket2::{Domain, Protocol, Type};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for an answer that should come, at most: an emulated machine may stand still for a while, and between
/// a user's nodes the first answer may have to wait for a network on demand.
pub const LONG: Duration = Duration::from_secs(30);
/// How long to wait for one that should not come.
pub const SHORT: Duration = Duration::from_secs(4);
/// A datagram may be lost, and a neighbour given up: who has no answer after so long asks again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who answered, or why nobody did.
pub type Answer = Result<String, String>;

/// A TCP or UDP socket, written `tcp:10.0.0.1:5000` or `udp:[::1]:5000`; `udp:127.0.0.53:53@lo` is bound to a device.
#[derive(Debug, Clone)]
pub struct Socket {
    udp: bool,
    address: SocketAddr,
    device: Option<String>,
}

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not like tcp:10.0.0.1:5000");
        let (protocol, address) = text.split_once(':').ok_or_else(wrong)?;
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err(wrong()),
        };
        let (address, device) = address
            .split_once('@')
            .map_or((address, None), |(address, device)| (address, Some(device.to_owned())));
        Ok(Socket { udp, address: address.parse().map_err(|_| wrong())?, device })
    }
}

impl Socket {
    /// Opens it to serve.
    fn open(&self) -> io::Result<socket2::Socket> {
        let (kind, protocol) =
            if self.udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
        let socket = socket2::Socket::new(Domain::for_address(self.address), kind, Some(protocol))?;
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if !self.udp {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&self.address.into())?;
        if !self.udp {
            socket.listen(128)?;
        }
        Ok(socket)
    }
}

/// Opens `sockets`, writes `ready`, answers everybody with `name`, and writes the name of everybody. Runs for ever.
///
/// # Errors
/// A socket cannot be opened.
pub fn serve(name: &str, sockets: &[Socket]) -> io::Result<()> {
    for socket in sockets {
        let open =
            socket.open().map_err(|error| io::Error::new(error.kind(), format!("{socket:?}: {error}")))?;
        let name = name.to_owned();
        if socket.udp {
            let udp = UdpSocket::from(open);
            thread::spawn(move || serve_udp(&udp, &name));
        } else {
            let tcp = TcpListener::from(open);
            thread::spawn(move || tcp.incoming().flatten().for_each(|stream| serve_tcp(stream, &name)));
        }
    }
    println!("ready");
    loop {
        thread::park();
    }
}

/// Answers every datagram with `name`, and writes the name of everybody. Runs for ever.
pub fn serve_udp(udp: &UdpSocket, name: &str) {
    let mut datagram = [0; 512];
    loop {
        // An error is an ICMP answer to what we sent to somebody who has left.
        let Ok((length, from)) = udp.recv_from(&mut datagram) else { continue };
        println!("{}", String::from_utf8_lossy(&datagram[..length]));
        let _gone = udp.send_to(name.as_bytes(), from);
    }
}

/// Answers a client with `name`, and writes his.
pub fn serve_tcp(mut stream: TcpStream, name: &str) {
    let name = name.to_owned();
    thread::spawn(move || -> io::Result<()> {
        stream.set_read_timeout(Some(LONG))?;
        let mut client = [0; 512];
        let length = stream.read(&mut client)?;
        println!("{}", String::from_utf8_lossy(&client[..length]));
        stream.write_all(name.as_bytes())
    });
}

/// Reaches for all `targets` at once, saying `name`, and writes a line about each ([`parse`] reads them). Bound to `from`
/// before, if there is one.
pub fn reach(name: &str, from: Option<SocketAddr>, targets: &[(String, Socket)], patience: Duration) {
    let end = Instant::now() + patience;
    thread::scope(|scope| {
        for (target, socket) in targets {
            scope.spawn(move || {
                let ask = if socket.udp { ask_udp } else { ask_tcp };
                let answer = ask(name, from, socket.address, end);
                match answer {
                    Ok(answer) => println!("{target} = {answer}"),
                    Err(error) => println!("{target} ! {error}"),
                }
            });
        }
    });
}

fn ask_tcp(name: &str, from: Option<SocketAddr>, to: SocketAddr, end: Instant) -> io::Result<String> {
    let mut stream = loop {
        match connect(from, to, left(end)) {
            Err(error) if is_worth_another_try(&error, end) => thread::sleep(AGAIN),
            result => break result?,
        }
    };
    stream.set_read_timeout(Some(left(end)))?;
    stream.write_all(name.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

fn connect(from: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket.into())
}

/// Connected, so that only `to` can answer and a refusal is heard.
fn connected(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let udp = UdpSocket::bind(from.unwrap_or(SocketAddr::new(any, 0)))?;
    udp.connect(to)?;
    Ok(udp)
}

/// The address that a program finds for itself: that of a socket connected to `to`.
///
/// # Errors
/// The kernel's.
pub fn own_address(to: SocketAddr) -> io::Result<IpAddr> {
    Ok(connected(None, to)?.local_addr()?.ip())
}

/// What the kernel takes for the MTU of the way to `to` after datagrams of `length` bytes that nobody may cut, once it is
/// less or LONG has passed.
///
/// # Errors
/// The kernel's.
pub fn path_mtu(to: SocketAddr, length: usize) -> io::Result<i32> {
    let udp = socket2::Socket::from(connected(None, to)?);
    let (level, discover, mtu) = match to {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU),
    };
    socket::set(&udp, level, discover, &libc::IP_PMTUDISC_DO)?;
    let end = Instant::now() + LONG;
    loop {
        // Refused, once it is known to be too long.
        let sent = udp.send(&vec![0; length]);
        let mtu = socket::get(&udp, level, mtu)?;
        if sent.is_err() || Instant::now() >= end {
            return Ok(mtu);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn ask_udp(name: &str, from: Option<SocketAddr>, to: SocketAddr, end: Instant) -> io::Result<String> {
    let udp = connected(from, to)?;
    let mut answer = [0; 512];
    udp.set_read_timeout(Some(AGAIN))?;
    loop {
        match udp.send(name.as_bytes()).and_then(|_| udp.recv(&mut answer)) {
            // That wait is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            Err(error) if is_worth_another_try(&error, end) => thread::sleep(AGAIN),
            result => return Ok(String::from_utf8_lossy(&answer[..result?]).into_owned()),
        }
    }
}

/// A time-out must not be 0.
fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Whether a neighbour may only not have answered in time.
fn is_worth_another_try(error: &io::Error, end: Instant) -> bool {
    error.kind() == io::ErrorKind::HostUnreachable && Instant::now() + AGAIN < end
}

/// What [`reach`] wrote, by target.
#[must_use]
pub fn parse(lines: &str) -> BTreeMap<String, Answer> {
    let answer = |line: &str| {
        let (target, rest) = line.split_once(' ')?;
        let answer = match rest.split_once(' ')? {
            ("=", answer) => Ok(answer.to_owned()),
            ("!", error) => Err(error.to_owned()),
            _ => return None,
        };
        Some((target.to_owned(), answer))
    };
    lines.lines().filter_map(answer).collect()
}
