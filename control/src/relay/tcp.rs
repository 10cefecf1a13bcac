//! TCP: bytes of a connection are copied both ways until both ends have closed their side.

use super::{Source, Sources};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

/// Connections of one port at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 32;
/// Connections of all ports at a time; beyond it, the port with the most drops the one that is unused longest.
const MAX_ALL: usize = 1024;
/// Connections that a port accepts, or buffers that a connection copies, in one turn.
const BATCH: usize = 8;
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(300);
/// Buffered bytes of a connection in one direction.
const BUFFER: usize = 16 << 10;

/// A network's TCP socket at one address.
pub(super) struct TcpPort {
    pub uid: u32,
    token: Token,
    listener: TcpListener,
    service: SocketAddr,
    /// Connections by the token of the client's end.
    connections: HashMap<Token, Connection>,
    /// The token of the client's end, by that of the service's end.
    clients: HashMap<Token, Token>,
}

struct Connection {
    client: TcpStream,
    service: TcpStream,
    service_token: Token,
    there: Pipe,
    back: Pipe,
    last: Instant,
}

/// One direction of a connection.
struct Pipe {
    buffer: Box<[u8]>,
    /// The bytes in `buffer` that are still to be written: from `start` to `end`.
    start: usize,
    end: usize,
    /// The source has closed its side.
    ended: bool,
    /// The destination has been told so.
    shut: bool,
}

impl TcpPort {
    pub fn new(uid: u32, token: Token, listener: TcpListener, service: SocketAddr) -> TcpPort {
        TcpPort { uid, token, listener, service, connections: HashMap::new(), clients: HashMap::new() }
    }

    pub fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    /// Accepts connections, as many as there is room for.
    pub fn accept(&mut self, sources: &mut Sources, token: Token, now: Instant) {
        for _ in 0..BATCH {
            if self.connections.len() >= MAX_CONNECTIONS {
                // `remove` wakes this port when a connection ends.
                return;
            }
            match self.listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = self.connect(sources, client, now) {
                        tracing::debug!(uid = self.uid, %error, "cannot reach the service; a connection is closed");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors, or the client has gone. Others that wait are accepted with the next connection.
                Err(_) => return,
            }
        }
        sources.wake(token);
    }

    /// Copies what either end of a connection has sent.
    pub fn copy(&mut self, sources: &mut Sources, token: Token, now: Instant) {
        let client = self.clients.get(&token).copied().unwrap_or(token);
        let Some(connection) = self.connections.get_mut(&client) else { return };
        connection.last = now;
        match connection.copy() {
            Ok(Progress::Waits) => {}
            Ok(Progress::More) => sources.wake(token),
            Ok(Progress::Done) | Err(_) => self.remove(sources, client),
        }
    }

    /// Drops connections that have been unused for [`IDLE`].
    pub fn forget(&mut self, sources: &mut Sources, now: Instant) {
        let old = |connection: &Connection| now.saturating_duration_since(connection.last) >= IDLE;
        let old = self.connections.iter().filter(|(_, connection)| old(connection));
        let old: Vec<Token> = old.map(|(token, _)| *token).collect();
        old.into_iter().for_each(|token| self.remove(sources, token));
    }

    /// Removes the port from `sources`. Always true: the port can then be dropped.
    pub fn close(&mut self, sources: &mut Sources) -> bool {
        self.connections.keys().chain(self.clients.keys()).for_each(|token| sources.remove(*token));
        sources.remove(self.token);
        true
    }

    fn connect(&mut self, sources: &mut Sources, mut client: TcpStream, now: Instant) -> io::Result<()> {
        let mut service = TcpStream::connect(self.service)?;
        let port = self.token;
        let both = Interest::READABLE | Interest::WRITABLE;
        let client_token = sources.add(&mut client, both, |_| Source::TcpEnd(port))?;
        let service_token = match sources.add(&mut service, both, |_| Source::TcpEnd(port)) {
            Ok(token) => token,
            Err(error) => {
                sources.remove(client_token);
                return Err(error);
            }
        };
        self.clients.insert(service_token, client_token);
        let connection =
            Connection { client, service, service_token, there: Pipe::new(), back: Pipe::new(), last: now };
        self.connections.insert(client_token, connection);
        Ok(())
    }

    fn remove(&mut self, sources: &mut Sources, client: Token) {
        if let Some(connection) = self.connections.remove(&client) {
            self.clients.remove(&connection.service_token);
            sources.remove(client);
            sources.remove(connection.service_token);
            // Clients may be waiting in the backlog for this place.
            sources.wake(self.token);
        }
    }

    fn drop_oldest(&mut self, sources: &mut Sources) {
        let oldest = self.connections.iter().min_by_key(|(_, connection)| connection.last);
        if let Some((&oldest, _)) = oldest {
            self.remove(sources, oldest);
        }
    }
}

/// The state of copying after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The kernel will report when there is more to do.
    Waits,
    /// The turn is over, with more to copy.
    More,
    /// The source has closed its side, and all is copied.
    Done,
}

impl Connection {
    fn copy(&mut self) -> io::Result<Progress> {
        let there = self.there.copy(&mut self.client, &mut self.service)?;
        let back = self.back.copy(&mut self.service, &mut self.client)?;
        Ok(match (there, back) {
            (Progress::Done, Progress::Done) => Progress::Done,
            (Progress::More, _) | (_, Progress::More) => Progress::More,
            _ => Progress::Waits,
        })
    }
}

impl Pipe {
    fn new() -> Pipe {
        Pipe { buffer: vec![0; BUFFER].into(), start: 0, end: 0, ended: false, shut: false }
    }

    fn copy(&mut self, from: &mut TcpStream, to: &mut TcpStream) -> io::Result<Progress> {
        for _ in 0..BATCH {
            if self.start == self.end {
                if self.shut {
                    return Ok(Progress::Done);
                }
                if self.ended {
                    // A socket that is still connecting cannot be shut down yet; a refused one fails when it is read.
                    match to.shutdown(Shutdown::Write) {
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                            return Ok(Progress::Waits);
                        }
                        result => result?,
                    }
                    self.shut = true;
                    return Ok(Progress::Done);
                }
                match from.read(&mut self.buffer) {
                    Ok(0) => self.ended = true,
                    Ok(length) => (self.start, self.end) = (0, length),
                    Err(error) => return waits(error),
                }
            }
            if let Some(rest) = self.buffer.get(self.start..self.end).filter(|rest| !rest.is_empty()) {
                match to.write(rest) {
                    Ok(written) => self.start += written,
                    Err(error) => return waits(error),
                }
            }
        }
        Ok(Progress::More)
    }
}

fn waits(error: io::Error) -> io::Result<Progress> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(Progress::Waits),
        io::ErrorKind::Interrupted => Ok(Progress::More),
        _ => Err(error),
    }
}

/// Drops connections until one turn of a port fits below [`MAX_ALL`].
pub(super) fn make_room(ports: &mut BTreeMap<Token, TcpPort>, sources: &mut Sources) {
    let mut all: usize = ports.values().map(|port| port.connections.len()).sum();
    while all + BATCH > MAX_ALL {
        let Some(most) = ports.values_mut().max_by_key(|port| port.connections.len()) else { return };
        most.drop_oldest(sources);
        all -= 1;
    }
}
