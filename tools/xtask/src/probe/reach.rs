//! Tests who reaches whom. A probe carries a word; the server reports every word that it sees, so that a packet which
//! arrives but is not answered is noticed, too.

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use nix::sys::socket::{recv, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};
use uvn_bench::probe::ready;

/// The beginning of every word.
const MARK: &str = "uvn-reach-";
/// How long to wait for an answer before asking again: datagrams may be lost.
const AGAIN: Duration = Duration::from_millis(200);

/// The protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Connect, send, read the echo.
    Tcp,
    /// Send, read the echo.
    Udp,
    /// ICMP or ICMPv6 echo.
    Ping,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Ping];

    /// Its name, as in a [`Target`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Ping => "ping",
        }
    }
}

/// One thing to reach, written `tcp:10.0.0.2:7000:WORD`.
#[derive(Debug, Clone)]
pub struct Target {
    /// The protocol.
    pub protocol: Protocol,
    /// The address and the port.
    pub to: SocketAddr,
    /// The word to send.
    pub word: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not like tcp:10.0.0.2:7000:WORD");
        let (protocol, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (to, word) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let protocol = Protocol::ALL.into_iter().find(|known| known.name() == protocol).ok_or_else(wrong)?;
        Ok(Target { protocol, to: to.parse().map_err(|_| wrong())?, word: word.to_owned() })
    }
}

/// Echoes TCP and UDP, and writes `seen WORD` for each word that arrives by any protocol. Runs for ever.
///
/// # Errors
/// A port cannot be opened, or raw sockets are not allowed.
pub fn serve(port: u16) -> io::Result<()> {
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    for socket in [icmp_socket(false)?, icmp_socket(true)?] {
        thread::spawn(move || {
            let mut packet = [0; 2048];
            while let Ok(length) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                report(packet.get(..length).unwrap_or_default());
            }
        });
    }
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut datagram) {
            let datagram = datagram.get(..length).unwrap_or_default();
            report(datagram);
            let _best_effort = udp.send_to(datagram, from);
        }
    });
    ready();
    for stream in tcp.incoming() {
        let mut stream = stream?;
        thread::spawn(move || -> io::Result<()> {
            let mut bytes = [0; 2048];
            loop {
                let length = stream.read(&mut bytes)?;
                let bytes =
                    bytes.get(..length).filter(|bytes| !bytes.is_empty()).ok_or(io::ErrorKind::BrokenPipe)?;
                report(bytes);
                stream.write_all(bytes)?;
            }
        });
    }
    Ok(())
}

/// Writes the word in these bytes, if there is one.
fn report(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(at) = text.find(MARK) {
        let word =
            text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap_or_default();
        println!("seen {word}");
    }
}

/// Tries all targets at once, and writes `reached WORD` for each that answered.
///
/// # Errors
/// Never: a target that does not answer is not reached.
pub fn reach(targets: &[Target], patience: Duration) -> io::Result<()> {
    thread::scope(|scope| {
        for (index, target) in targets.iter().enumerate() {
            scope.spawn(move || {
                let word = format!("{MARK}{}", target.word);
                let result = match target.protocol {
                    Protocol::Tcp => tcp(target.to, &word, patience),
                    Protocol::Udp => udp(target.to, &word, patience),
                    Protocol::Ping => ping(target.to.ip(), &word, index as u16, patience),
                };
                if result.is_ok() {
                    println!("reached {}", target.word);
                }
            });
        }
    });
    Ok(())
}

fn tcp(to: SocketAddr, word: &str, patience: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(word.as_bytes())?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer)?;
    if answer == word.as_bytes() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn udp(to: SocketAddr, word: &str, patience: Duration) -> io::Result<()> {
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(AGAIN))?;
    let mut answer = [0; 2048];
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let asked = socket.send(word.as_bytes());
        if let Ok(length) = asked.and_then(|_| socket.recv(&mut answer))
            && answer.get(..length) == Some(word.as_bytes())
        {
            return Ok(());
        }
        // A refusal comes at once.
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn icmp_socket(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol) = if v6 {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// Sends echo requests until the reply with this word comes.
fn ping(to: IpAddr, word: &str, identifier: u16, patience: Duration) -> io::Result<()> {
    let v6 = to.is_ipv6();
    let socket = icmp_socket(v6)?;
    let again = i64::try_from(AGAIN.as_millis()).unwrap_or(1000);
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(again))?;
    let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
    let mut message = vec![request, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(word.as_bytes());
    if !v6 {
        // The kernel itself computes the checksum of ICMPv6 on raw sockets (RFC 3542 section 3.1).
        let sum = super::attack::checksum(&message, 0);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let to = SockaddrStorage::from(SocketAddr::new(to, 0));
    let end = Instant::now() + patience;
    while Instant::now() < end {
        sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty())?;
        let mut packet = [0; 2048];
        while let Ok(length) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            // A raw IPv4 socket gets the IP header too; the kernel's echo has no options.
            let packet = packet.get(if v6 { 0 } else { 20 }..length).unwrap_or_default();
            if packet.first() == Some(&reply) && packet.ends_with(word.as_bytes()) {
                return Ok(());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
