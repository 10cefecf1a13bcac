//! UDP: each client address has a socket to the service, kept while it is used.

use super::{Source, Sources};
use mio::net::UdpSocket;
use mio::{Interest, Token};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Client addresses of one port at a time; beyond it, the one that is unused longest is dropped.
const MAX_FLOWS: usize = 64;
/// Client addresses of all ports at a time; beyond it, the port with the most drops one.
const MAX_ALL: usize = 4096;
/// Datagrams that one socket passes on in one turn.
const BATCH: usize = 16;
/// How long an unused client address is kept: resolvers answer, or give up, in less.
const IDLE: Duration = Duration::from_secs(10);
/// The longest datagram, bytes.
pub(super) const MAX_BYTES: usize = 65535;

/// A network's UDP socket at one address.
pub(super) struct UdpPort {
    pub uid: u32,
    token: Token,
    socket: UdpSocket,
    service: SocketAddr,
    clients: HashMap<SocketAddr, Token>,
    flows: HashMap<Token, Flow>,
}

struct Flow {
    client: SocketAddr,
    socket: UdpSocket,
    last: Instant,
}

impl UdpPort {
    pub fn new(uid: u32, token: Token, socket: UdpSocket, service: SocketAddr) -> UdpPort {
        UdpPort { uid, token, socket, service, clients: HashMap::new(), flows: HashMap::new() }
    }

    pub fn is_idle(&self) -> bool {
        self.flows.is_empty()
    }

    /// Passes on what clients have sent.
    pub fn ask(&mut self, sources: &mut Sources, buffer: &mut [u8], now: Instant) {
        for _ in 0..BATCH {
            let (length, client) = match self.socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An earlier answer could not be delivered.
                Err(_) => continue,
            };
            let flow = match self.clients.get(&client) {
                Some(flow) => *flow,
                None => match self.open(sources, client, now) {
                    Ok(flow) => flow,
                    Err(error) => {
                        tracing::debug!(uid = self.uid, %error, "no socket to the service; a datagram is lost");
                        continue;
                    }
                },
            };
            if let (Some(flow), Some(datagram)) = (self.flows.get_mut(&flow), buffer.get(..length)) {
                flow.last = now;
                // If the service does not run, the datagram is lost, as any may be.
                let _ = flow.socket.send(datagram);
            }
        }
        sources.wake(self.token);
    }

    /// Passes on what the service has answered.
    pub fn answer(&mut self, sources: &mut Sources, buffer: &mut [u8], token: Token, now: Instant) {
        let Some(flow) = self.flows.get_mut(&token) else { return };
        for _ in 0..BATCH {
            match flow.socket.recv(buffer) {
                Ok(length) => {
                    flow.last = now;
                    if let Some(datagram) = buffer.get(..length) {
                        let _ = self.socket.send_to(datagram, flow.client);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Port unreachable: the service does not run.
                Err(_) => {}
            }
        }
        sources.wake(token);
    }

    /// Drops client addresses that have been unused for [`IDLE`].
    pub fn forget(&mut self, sources: &mut Sources, now: Instant) {
        let old = self.flows.iter().filter(|(_, flow)| now.saturating_duration_since(flow.last) >= IDLE);
        let old: Vec<Token> = old.map(|(token, _)| *token).collect();
        old.into_iter().for_each(|token| self.drop_flow(sources, token));
    }

    /// Removes the port from `sources`. Always true: the port can then be dropped.
    pub fn close(&mut self, sources: &mut Sources) -> bool {
        self.flows.keys().for_each(|token| sources.remove(*token));
        sources.remove(self.token);
        true
    }

    fn open(&mut self, sources: &mut Sources, client: SocketAddr, now: Instant) -> io::Result<Token> {
        if self.flows.len() >= MAX_FLOWS {
            self.drop_oldest(sources);
        }
        let any: IpAddr = match self.service {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut socket = UdpSocket::bind((any, 0).into())?;
        socket.connect(self.service)?;
        let port = self.token;
        let token = sources.add(&mut socket, Interest::READABLE, |_| Source::UdpFlow(port))?;
        self.clients.insert(client, token);
        self.flows.insert(token, Flow { client, socket, last: now });
        Ok(token)
    }

    fn drop_oldest(&mut self, sources: &mut Sources) {
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last).map(|(token, _)| *token);
        if let Some(oldest) = oldest {
            self.drop_flow(sources, oldest);
        }
    }

    fn drop_flow(&mut self, sources: &mut Sources, token: Token) {
        if let Some(flow) = self.flows.remove(&token) {
            self.clients.remove(&flow.client);
            sources.remove(token);
        }
    }
}

/// Drops client addresses until one turn of a port fits below [`MAX_ALL`].
pub(super) fn make_room(ports: &mut BTreeMap<Token, UdpPort>, sources: &mut Sources) {
    let mut all: usize = ports.values().map(|port| port.flows.len()).sum();
    while all + BATCH > MAX_ALL {
        let Some(most) = ports.values_mut().max_by_key(|port| port.flows.len()) else { return };
        most.drop_oldest(sources);
        all -= 1;
    }
}
