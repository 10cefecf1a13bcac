//! Makes services that listen on loopback only reachable inside networks, such as the resolver at 127.0.0.53.
//!
//! Each network has a 127.0.0.0/8 of its own, in which the node's loopback services do not listen. So a socket in the
//! user's VRF listens at the service's address, and what it receives is passed to the service from a socket in the
//! default VRF. One thread serves all networks. It does a bounded amount of work at each socket in turn, so that a user
//! who floods their own socket hardly delays others; what is kept for a user is bounded, too.

mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use mio::{Events, Interest, Poll, Registry, Token, Waker};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tcp::TcpPort;
use thiserror::Error;
use udp::UdpPort;

const WAKER: Token = Token(0);
/// How often unused clients and connections are looked for.
const TICK: Duration = Duration::from_secs(1);

/// Why an address cannot be served in a network.
#[derive(Debug, Error)]
pub enum RelayError {
    /// Its socket cannot be bound.
    #[error("cannot serve {address} inside {vrf}: {source}{}", remedy(.source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The VRF.
        vrf: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The thread has ended.
    #[error("the relay's thread has ended; restart uvnd")]
    Ended,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; a service holds the address on all devices: bind it to the device lo, as systemd-resolved does"
        }
        _ => "",
    }
}

/// The relay's thread, and the networks that it serves.
pub struct Relay {
    addresses: Vec<SocketAddr>,
    networks: BTreeSet<u32>,
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Add(u32, Vec<Sockets>),
    Remove(u32, SyncSender<()>),
    Stop,
}

/// A network's listening sockets at one address, and the service behind them.
struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    service: SocketAddr,
}

impl Relay {
    /// Starts the thread. The services need not run yet.
    ///
    /// # Errors
    /// No thread can be started, or no descriptors are left for it.
    pub fn start(addresses: &[SocketAddr]) -> io::Result<Relay> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let sources = Sources {
            registry: poll.registry().try_clone()?,
            next: WAKER.0,
            all: HashMap::new(),
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
        };
        let (commands, receiver) = channel();
        let turn = Turn {
            poll,
            commands: receiver,
            sources,
            udp: BTreeMap::new(),
            tcp: BTreeMap::new(),
            buffer: vec![0; udp::MAX_BYTES],
            stopped: false,
        };
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || turn.run())?;
        Ok(Relay {
            addresses: addresses.into(),
            networks: BTreeSet::new(),
            commands,
            waker,
            thread: Some(thread),
        })
    }

    /// Serves a network whose VRF is up. Does nothing for a network that is served already.
    ///
    /// # Errors
    /// A socket cannot be bound to one of the addresses; then the network is not served.
    pub fn add(&mut self, uid: u32, vrf: &str) -> Result<(), RelayError> {
        if self.addresses.is_empty() || self.networks.contains(&uid) {
            return Ok(());
        }
        let listen = |&address: &SocketAddr| {
            Sockets::listen(Some(vrf), address, address).map_err(|source| RelayError::Listen {
                address,
                vrf: vrf.into(),
                source,
            })
        };
        let sockets = self.addresses.iter().map(listen).collect::<Result<_, _>>()?;
        self.send(Command::Add(uid, sockets))?;
        self.networks.insert(uid);
        Ok(())
    }

    /// Stops serving a network, and closes its sockets before it returns.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn remove(&mut self, uid: u32) -> Result<(), RelayError> {
        if !self.networks.remove(&uid) {
            return Ok(());
        }
        let (done, wait) = sync_channel(1);
        self.send(Command::Remove(uid, done))?;
        // If the thread ends now, it drops the sender.
        wait.recv().map_err(|_| RelayError::Ended)
    }

    /// The UIDs whose networks are served.
    #[must_use]
    pub fn networks(&self) -> &BTreeSet<u32> {
        &self.networks
    }

    fn send(&self, command: Command) -> Result<(), RelayError> {
        self.commands.send(command).map_err(|_| RelayError::Ended)?;
        self.waker.wake().map_err(|_| RelayError::Ended)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // An error means that the thread has ended.
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Sockets {
    fn listen(device: Option<&str>, at: SocketAddr, service: SocketAddr) -> io::Result<Sockets> {
        let bound = |kind: Type, protocol: Protocol, at: SocketAddr| -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(at), kind.nonblocking(), Some(protocol))?;
            socket.bind_device(device.map(str::as_bytes))?;
            if at.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            if kind == Type::STREAM {
                // Connections of an earlier listener may still be closing.
                socket.set_reuse_address(true)?;
            }
            socket.bind(&SockAddr::from(at))?;
            Ok(socket)
        };
        let udp = bound(Type::DGRAM, Protocol::UDP, at)?;
        let tcp = bound(Type::STREAM, Protocol::TCP, at)?;
        tcp.listen(64)?;
        Ok(Sockets { udp: udp.into(), tcp: tcp.into(), service })
    }
}

/// What a token of mio's stands for. A port is a network's socket at one address.
#[derive(Clone, Copy)]
enum Source {
    UdpPort(Token),
    /// The socket to the service for one client of that port.
    UdpFlow(Token),
    TcpPort(Token),
    /// Either end of a connection of that port.
    TcpEnd(Token),
}

/// What the ports share: the meaning of each token, and the tokens with work left.
struct Sources {
    registry: Registry,
    next: usize,
    all: HashMap<Token, Source>,
    /// Tokens with work left, each once: mio reports a readiness only once.
    ready: VecDeque<Token>,
    queued: BTreeSet<Token>,
}

impl Sources {
    /// Registers a socket and returns its token, from which `source` makes its meaning.
    fn add(
        &mut self,
        socket: &mut impl mio::event::Source,
        interest: Interest,
        source: impl FnOnce(Token) -> Source,
    ) -> io::Result<Token> {
        self.next += 1;
        let token = Token(self.next);
        self.registry.register(socket, token, interest)?;
        self.all.insert(token, source(token));
        Ok(token)
    }

    /// Forgets a token whose socket is about to be dropped; the drop ends its registration.
    fn remove(&mut self, token: Token) {
        self.all.remove(&token);
    }

    fn wake(&mut self, token: Token) {
        if self.queued.insert(token) {
            self.ready.push_back(token);
        }
    }
}

/// The state of the thread.
struct Turn {
    poll: Poll,
    commands: Receiver<Command>,
    sources: Sources,
    udp: BTreeMap<Token, UdpPort>,
    tcp: BTreeMap<Token, TcpPort>,
    /// Room for one datagram.
    buffer: Vec<u8>,
    stopped: bool,
}

impl Turn {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut tick = Instant::now() + TICK;
        while !self.stopped {
            let idle = self.udp.values().all(UdpPort::is_idle) && self.tcp.values().all(TcpPort::is_idle);
            let wait = match (self.sources.ready.is_empty(), idle) {
                (false, _) => Some(Duration::ZERO),
                (true, true) => None,
                (true, false) => Some(tick.saturating_duration_since(Instant::now())),
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "poll failed; loopback services are unreachable inside all networks");
                    return;
                }
                _ => {}
            }
            for event in &events {
                if event.token() == WAKER {
                    self.take_commands();
                } else {
                    self.sources.wake(event.token());
                }
            }
            let now = Instant::now();
            for _ in 0..self.sources.ready.len() {
                let Some(token) = self.sources.ready.pop_front() else { break };
                self.sources.queued.remove(&token);
                self.serve(token, now);
            }
            if now >= tick {
                tick = now + TICK;
                self.udp.values_mut().for_each(|port| port.forget(&mut self.sources, now));
                self.tcp.values_mut().for_each(|port| port.forget(&mut self.sources, now));
            }
        }
    }

    fn serve(&mut self, token: Token, now: Instant) {
        let Some(&source) = self.sources.all.get(&token) else { return };
        match source {
            Source::UdpPort(port) => {
                udp::make_room(&mut self.udp, &mut self.sources);
                if let Some(port) = self.udp.get_mut(&port) {
                    port.ask(&mut self.sources, &mut self.buffer, now);
                }
            }
            Source::UdpFlow(port) => {
                if let Some(port) = self.udp.get_mut(&port) {
                    port.answer(&mut self.sources, &mut self.buffer, token, now);
                }
            }
            Source::TcpPort(port) => {
                tcp::make_room(&mut self.tcp, &mut self.sources);
                if let Some(port) = self.tcp.get_mut(&port) {
                    port.accept(&mut self.sources, token, now);
                }
            }
            Source::TcpEnd(port) => {
                if let Some(port) = self.tcp.get_mut(&port) {
                    port.copy(&mut self.sources, token, now);
                }
            }
        }
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add(uid, sockets) => {
                    for sockets in sockets {
                        if let Err(error) = self.add(uid, sockets) {
                            tracing::error!(uid, %error, "cannot serve a loopback service inside this user's network");
                        }
                    }
                }
                Command::Remove(uid, done) => {
                    let sources = &mut self.sources;
                    self.udp.retain(|_, port| port.uid != uid || !port.close(sources));
                    self.tcp.retain(|_, port| port.uid != uid || !port.close(sources));
                    // Nobody may be waiting for the answer any more.
                    let _ = done.try_send(());
                }
                Command::Stop => self.stopped = true,
            }
        }
    }

    fn add(&mut self, uid: u32, sockets: Sockets) -> io::Result<()> {
        let mut udp = mio::net::UdpSocket::from_std(sockets.udp);
        let token = self.sources.add(&mut udp, Interest::READABLE, Source::UdpPort)?;
        self.udp.insert(token, UdpPort::new(uid, token, udp, sockets.service));
        let mut tcp = mio::net::TcpListener::from_std(sockets.tcp);
        let token = self.sources.add(&mut tcp, Interest::READABLE, Source::TcpPort)?;
        self.tcp.insert(token, TcpPort::new(uid, token, tcp, sockets.service));
        Ok(())
    }
}
