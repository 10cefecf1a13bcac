//! A control socket's listening end: one request at a time, bounded in every way.
//!
//! Nothing here waits: a peer that misbehaves loses its connection, and never slows the service down.

mod owner;

use crate::protocol::{Code, Failure, MAX_BYTES, SCHEMA, answer_packet, parse_request, schema_of};
use crate::seqpacket;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// uvn's own folder for sockets.
const RUN: &str = "/run/uvn";
/// The most connections at a time: of all users but root together, and of each user with their subordinate UIDs. A
/// program needs one.
const MAX_OTHERS: usize = 256;
const MAX_EACH: usize = 4;
/// The most connections accepted in one turn, refused ones included. Without it, a peer that connects faster than it is
/// refused would keep the service in that loop for ever.
const ACCEPTS: usize = 16;

/// The limits of a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Whether users other than root may connect, too. The service decides what each [`Incoming::peer`] may ask.
    pub everyone: bool,
    /// The most connections of root at a time.
    pub connections: usize,
    /// The most file descriptors beside one request.
    pub fds: usize,
}

/// The process that asks, by SO_PEERCRED (unix(7)): as it was when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The effective UID.
    pub uid: u32,
    /// The PID; 0 if the process is in another PID namespace.
    pub pid: i32,
}

/// Why the control socket cannot be made.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Another process answers there.
    #[error("{path} is answered by another process: stop it, or give this one another socket", path = .0.display())]
    InUse(PathBuf),
    /// The path is taken by something that is no socket.
    #[error("{path} is not a socket: remove it, or give another one", path = .0.display())]
    NotASocket(PathBuf),
    /// The folder of the socket does not exist, and is not uvn's own.
    #[error("control socket {path}: its folder does not exist: make it, or give another path", path = .0.display())]
    NoFolder(PathBuf),
    /// The kernel refused.
    #[error("control socket {path}: {source}", path = path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The listening socket and its connections, for requests `R`.
pub struct Control<R> {
    path: PathBuf,
    listener: OwnedFd,
    registry: Registry,
    /// Whether connections may wait at the listener.
    waiting: bool,
    /// The listener has token `first`; connection `i` has `first` + 1 + i.
    first: usize,
    limits: Limits,
    connections: Vec<Option<Connection>>,
    /// Connections that may have a packet.
    readable: VecDeque<usize>,
    buffer: Vec<u8>,
    turned_away: TurnedAway,
    requests: PhantomData<fn() -> R>,
}

struct Connection {
    socket: OwnedFd,
    peer: Peer,
    /// UID of the user who is responsible for it.
    owner: u32,
    /// Schema of its last request.
    schema: u32,
}

/// A request to be answered by [`Control::answer`].
#[derive(Debug)]
pub struct Incoming<R> {
    /// The connection by which it came.
    pub connection: usize,
    /// The process that asks.
    pub peer: Peer,
    /// The schema of the messages that the peer knows; 0: those of uvn 0.1.0.
    pub schema: u32,
    /// The request itself.
    pub request: R,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl<R: DeserializeOwned> Control<R> {
    /// Listens at `path`; a socket at which nobody answers any more is replaced. All tokens from `first` on are its
    /// own.
    ///
    /// # Errors
    /// Another process listens there, the path is taken by something that is no socket, or the kernel refuses.
    pub fn listen(
        path: &Path,
        registry: &Registry,
        first: Token,
        limits: Limits,
    ) -> Result<Control<R>, ControlError> {
        let refused = |source: io::Error| ControlError::Refused { path: path.into(), source };
        remove_stale(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(|errno| refused(errno.into()))?;
        let address = UnixAddr::new(path).map_err(|errno| refused(errno.into()))?;
        bind(listener.as_raw_fd(), &address).map_err(|errno| refused(errno.into()))?;
        // SO_PEERCRED keeps others out; the mode only shows them that.
        let mode = if limits.everyone { 0o666 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(refused)?;
        listen(&listener, Backlog::MAXALLOWABLE).map_err(|errno| refused(errno.into()))?;
        registry
            .register(&mut SourceFd(&listener.as_raw_fd()), first, Interest::READABLE)
            .map_err(refused)?;
        Ok(Control {
            path: path.into(),
            listener,
            registry: registry.try_clone().map_err(refused)?,
            waiting: false,
            first: first.0,
            limits,
            connections: Vec::new(),
            readable: VecDeque::new(),
            buffer: vec![0; MAX_BYTES],
            turned_away: TurnedAway::default(),
            requests: PhantomData,
        })
    }

    /// Notes that mio has reported one of this socket's tokens.
    pub fn ready(&mut self, token: Token) {
        match token.0.checked_sub(self.first) {
            Some(0) => self.waiting = true,
            Some(connection) if !self.readable.contains(&(connection - 1)) => {
                self.readable.push_back(connection - 1);
            }
            _ => {}
        }
    }

    /// Whether [`Control::take`] may have a request.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.waiting || !self.readable.is_empty()
    }

    /// The next request, of the connections by turns. First accepts some of the connections that wait.
    pub fn take(&mut self) -> Option<Incoming<R>> {
        if self.waiting {
            self.waiting = self.accept();
        }
        self.turned_away.tell(&self.path);
        while let Some(connection) = self.readable.pop_front() {
            let Some(Some(from)) = self.connections.get_mut(connection) else { continue };
            let (socket, peer) = (&from.socket, from.peer);
            let packet = match seqpacket::receive(socket.as_fd(), &mut self.buffer, false) {
                Ok(packet) => packet,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    self.close(connection, &error.to_string());
                    continue;
                }
            };
            if packet.length == 0 && !packet.cut {
                tracing::debug!(connection, "control connection closed by its peer");
                self.connections[connection] = None;
                continue;
            }
            let bytes = self.buffer.get(..packet.length).unwrap_or_default();
            let schema = schema_of(bytes);
            from.schema = schema;
            let parsed = if packet.cut {
                Err(Failure::new(Code::Malformed, format!("more than {MAX_BYTES} bytes")))
            } else if packet.fds.len() > self.limits.fds {
                let message = format!("more than {} file descriptors", self.limits.fds);
                Err(Failure::new(Code::Malformed, message))
            } else {
                parse_request(bytes)
            };
            match parsed {
                Ok(request) => {
                    // The connection may have more packets; the others come first.
                    self.readable.push_back(connection);
                    return Some(Incoming { connection, peer, schema, request, fds: packet.fds });
                }
                Err(failure) => {
                    let reason = failure.to_string();
                    self.answer::<()>(connection, Err(failure));
                    self.close(connection, &reason);
                }
            }
        }
        None
    }

    /// Answers a request, with our schema if the peer gave its own. A peer that leaves no room for the answer loses its
    /// connection.
    pub fn answer<A: Serialize>(&mut self, connection: usize, answer: Result<A, Failure>) {
        let Some(Some(Connection { socket, schema, .. })) = self.connections.get(connection) else { return };
        let packet = answer_packet(answer, if *schema > 0 { SCHEMA } else { 0 });
        if let Err(error) = seqpacket::send(socket.as_fd(), &packet, &[], false) {
            self.close(connection, &format!("the answer cannot be delivered: {error}"));
        }
    }

    /// Accepts up to [`ACCEPTS`] connections. True: more may wait.
    fn accept(&mut self) -> bool {
        for _ in 0..ACCEPTS {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.listener.as_raw_fd(), flags).map(own) {
                Ok(socket) => self.welcome(socket),
                Err(nix::Error::EAGAIN) => return false,
                Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => {}
                Err(error) => {
                    // No descriptor is free: the peers wait, and the next connection causes another try.
                    self.turned_away.count(None, error.desc());
                    return false;
                }
            }
        }
        true
    }

    fn welcome(&mut self, socket: OwnedFd) {
        let peer = match getsockopt(&socket, PeerCredentials) {
            Ok(peer) => Peer { uid: peer.uid(), pid: peer.pid() },
            Err(error) => return self.turned_away.count(None, error.desc()),
        };
        let owner = match self.admit(peer) {
            Ok(owner) => owner,
            Err(reason) => return self.turned_away.count(Some(peer.uid), reason),
        };
        let free = self.connections.iter().position(Option::is_none);
        let connection = free.unwrap_or(self.connections.len());
        let token = Token(self.first + 1 + connection);
        let fd = socket.as_raw_fd();
        if let Err(error) = self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
            return self.turned_away.count(Some(peer.uid), &error.to_string());
        }
        let new = Some(Connection { socket, peer, owner, schema: 0 });
        match self.connections.get_mut(connection) {
            Some(place) => *place = new,
            None => self.connections.push(new),
        }
    }

    /// UID of the user who is responsible for one more connection of `peer`, if it is allowed.
    fn admit(&self, peer: Peer) -> Result<u32, &'static str> {
        let count = |counts: &dyn Fn(&Connection) -> bool| {
            self.connections.iter().flatten().filter(|connection| counts(connection)).count()
        };
        if peer.uid == 0 {
            let room = count(&|connection| connection.peer.uid == 0) < self.limits.connections;
            return if room { Ok(0) } else { Err("too many") };
        }
        if !self.limits.everyone {
            return Err("not root");
        }
        let others = count(&|connection| connection.peer.uid != 0);
        if others >= MAX_OTHERS {
            return Err("too many");
        }
        let owner = owner::of(peer).map_err(|_| "it cannot be told whose it is")?;
        let own = count(&|connection| connection.peer.uid != 0 && connection.owner == owner);
        if own < MAX_EACH { Ok(owner) } else { Err("too many") }
    }

    /// Closes a connection: dropping its descriptor also takes it out of mio's poll.
    fn close(&mut self, connection: usize, reason: &str) {
        let Some(place) = self.connections.get_mut(connection) else { return };
        self.turned_away.count(place.take().map(|closed| closed.peer.uid), reason);
    }
}

/// Connections that were refused or dropped: one line a second in the log, however many they are.
#[derive(Debug, Default)]
struct TurnedAway {
    total: u64,
    told: u64,
    at: Option<Instant>,
    /// The user of the last one, if known, and why it was refused or dropped.
    last: (Option<u32>, String),
}

impl TurnedAway {
    /// The least time between two lines.
    const PAUSE: Duration = Duration::from_secs(1);

    fn count(&mut self, uid: Option<u32>, reason: &str) {
        self.total += 1;
        self.last = (uid, reason.to_owned());
    }

    fn tell(&mut self, path: &Path) {
        let count = self.total - self.told;
        if count == 0 || self.at.is_some_and(|at| at.elapsed() < TurnedAway::PAUSE) {
            return;
        }
        (self.told, self.at) = (self.total, Some(Instant::now()));
        let (uid, reason) = &self.last;
        let (total, path) = (self.total, path.display());
        tracing::warn!(%path, count, total, last.uid = uid, last.reason = reason, "control connections refused");
    }
}

impl<R> Drop for Control<R> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

/// Takes over a descriptor that accept4 has just returned.
#[allow(unsafe_code, reason = "nix returns a bare descriptor")]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: accept4 has just opened it for us, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Removes the socket that a killed process has left.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let refused = |source: io::Error| ControlError::Refused { path: path.into(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.parent() {
                Some(own) if own == Path::new(RUN) => fs::create_dir_all(own).map_err(refused),
                // Not made: the path may have a typing error.
                Some(other) if !other.is_dir() => Err(ControlError::NoFolder(path.into())),
                _ => Ok(()),
            };
        }
        Err(error) => return Err(refused(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ControlError::NotASocket(path.into()));
    }
    // Non-blocking: a live listener with a full backlog answers EAGAIN.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(|errno| refused(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| refused(errno.into()))?;
    match connect(probe.as_raw_fd(), &address) {
        Err(nix::Error::ECONNREFUSED) => fs::remove_file(path).map_err(refused),
        Err(nix::Error::ENOENT) => Ok(()),
        _ => Err(ControlError::InUse(path.into())),
    }
}

#[cfg(test)]
mod tests;
