//! How a control protocol is packed: one JSON object per packet of a Unix SOCK_SEQPACKET socket.
//!
//! `{"version": 1, "request": "ping"}` is answered by `{"version": 1, "reply": "pong"}` or by
//! `{"version": 1, "error": {"code": ..., "message": ...}}`. A connection has one request under way at a time.

use crate::seqpacket;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The one version that this build speaks.
pub const VERSION: u32 = 1;
/// The longest packet, either way.
pub const MAX_BYTES: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people: the thing and the remedy.
    pub message: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Not a request of this protocol.
    Malformed,
    /// Another protocol version.
    Version,
    /// A value is not allowed.
    Invalid,
    /// It is there already.
    Exists,
    /// There is no such thing.
    NotFound,
    /// The kernel refused, or a worker does not answer.
    Failed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

impl Failure {
    /// One failure.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked<R> {
    version: u32,
    request: R,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answered<A> {
    version: u32,
    // Not `default`: that would ask for A: Default.
    #[serde(skip_serializing_if = "Option::is_none", default = "none")]
    reply: Option<A>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

fn none<A>() -> Option<A> {
    None
}

/// Reads a request. Pure, and for any bytes.
///
/// # Errors
/// [`Code::Malformed`] or [`Code::Version`].
pub fn parse_request<R: DeserializeOwned>(bytes: &[u8]) -> Result<R, Failure> {
    check_version(bytes)?;
    serde_json::from_slice::<Asked<R>>(bytes).map(|asked| asked.request).map_err(malformed)
}

/// The packet of a request.
///
/// # Errors
/// [`Code::Invalid`] if it is longer than [`MAX_BYTES`].
pub fn request_packet<R: Serialize>(request: &R) -> Result<Vec<u8>, Failure> {
    bounded(&Asked { version: VERSION, request })
}

/// Reads an answer.
///
/// # Errors
/// The failure that the other side reports, or [`Code::Malformed`] or [`Code::Version`].
pub fn parse_answer<A: DeserializeOwned>(bytes: &[u8]) -> Result<A, Failure> {
    check_version(bytes)?;
    match serde_json::from_slice(bytes).map_err(malformed)? {
        Answered { reply: Some(reply), error: None, .. } => Ok(reply),
        Answered { error: Some(error), reply: None, .. } => Err(error),
        _ => Err(Failure::new(Code::Malformed, "an answer holds either `reply` or `error`")),
    }
}

/// The packet that answers a request; a reply that is too long becomes a failure that says so.
#[must_use]
pub fn answer_packet<A: Serialize>(answer: Result<A, Failure>) -> Vec<u8> {
    let answered = |reply: Option<A>, error| bounded(&Answered { version: VERSION, reply, error });
    let packet = match answer {
        Ok(reply) => answered(Some(reply), None),
        Err(failure) => answered(None, Some(failure)),
    };
    packet.or_else(|failure| answered(None, Some(failure))).unwrap_or_default()
}

/// How many of `items` fit one packet beside `reserved` bytes of other content.
pub fn fitting<T: Serialize>(items: impl IntoIterator<Item = T>) -> usize {
    /// For what stands around the items.
    const AROUND: usize = 256;
    let mut room = MAX_BYTES - AROUND;
    let fits = |item: T| {
        let length = serde_json::to_vec(&item).map_or(usize::MAX, |bytes| bytes.len().saturating_add(1));
        room = room.checked_sub(length)?;
        Some(())
    };
    items.into_iter().map_while(fits).count()
}

fn check_version(bytes: &[u8]) -> Result<(), Failure> {
    if bytes.len() > MAX_BYTES {
        return Err(Failure::new(Code::Malformed, format!("more than {MAX_BYTES} bytes")));
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version == VERSION {
        return Ok(());
    }
    let message = format!("protocol version {version} is not supported: this is version {VERSION}");
    Err(Failure::new(Code::Version, message))
}

fn malformed(error: serde_json::Error) -> Failure {
    Failure::new(Code::Malformed, error.to_string())
}

fn bounded<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    let bytes = serde_json::to_vec(value).map_err(malformed)?;
    if bytes.len() <= MAX_BYTES {
        return Ok(bytes);
    }
    Err(Failure::new(Code::Invalid, format!("{} bytes are more than one packet's {MAX_BYTES}", bytes.len())))
}

/// A client's end of a control socket.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects; `patience` bounds that and each wait from then on.
    ///
    /// # Errors
    /// Nobody listens at `path`, it is closed to us, or patience ended: WouldBlock.
    pub fn open(path: &Path, patience: Duration) -> io::Result<Connection> {
        Ok(Connection { socket: seqpacket::connect(path, patience)? })
    }

    /// Sends a request's packet and waits for the one that answers it.
    ///
    /// # Errors
    /// The connection broke, or patience ended: WouldBlock.
    pub fn exchange(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
        self.send(packet, fds)?;
        self.receive()
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// As for [`Connection::exchange`].
    pub fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        seqpacket::send(self.socket.as_fd(), packet, fds, true)
    }

    /// Waits for a packet.
    ///
    /// # Errors
    /// As for [`Connection::exchange`].
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; MAX_BYTES];
        let received = seqpacket::receive(self.socket.as_fd(), &mut buffer, true)?;
        if received.length == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        buffer.truncate(received.length);
        Ok(buffer)
    }

    /// The other side's process: who called listen(2) on the socket (SO_PEERCRED).
    ///
    /// # Errors
    /// The kernel's.
    pub fn process(&self) -> io::Result<i32> {
        seqpacket::peer(self.socket.as_fd())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
