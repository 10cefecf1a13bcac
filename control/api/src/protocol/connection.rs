//! A client's end of a control socket.

use super::{Failure, MAX_BYTES, SCHEMA, parse_answer, refuses_schema, request_packet};
use crate::seqpacket;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a request got no reply.
#[derive(Debug)]
pub enum AskError {
    /// The connection broke, or the patience ended: WouldBlock.
    Lost(io::Error),
    /// The other side answered with a failure.
    Refused(Failure),
    /// The other side is of uvn 0.1.0: it has refused the request because of its schema, and closed the connection. The
    /// request must be sent again by [`Connection::older`]; [`Connection::ask`] does that itself.
    Older,
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> AskError {
        AskError::Lost(error)
    }
}

impl From<Failure> for AskError {
    fn from(failure: Failure) -> AskError {
        AskError::Refused(failure)
    }
}

/// A client's end of a control socket.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    path: PathBuf,
    patience: Duration,
    /// The schema of our requests; 0 once the other side is known to be of uvn 0.1.0.
    schema: u32,
    /// The connection that has replaced this one, which is closed then.
    older: OnceCell<Box<Connection>>,
}

impl Connection {
    /// Connects; `patience` bounds that and each later wait.
    ///
    /// # Errors
    /// Nobody listens at `path`, this process may not connect, or the patience ended: WouldBlock.
    pub fn open(path: &Path, patience: Duration) -> io::Result<Connection> {
        let socket = seqpacket::connect(path, patience)?;
        Ok(Connection { socket, path: path.into(), patience, schema: SCHEMA, older: OnceCell::new() })
    }

    /// Connects again; requests give no schema from then on.
    ///
    /// # Errors
    /// As for [`Connection::open`].
    pub fn older(&self) -> io::Result<Connection> {
        Ok(Connection { schema: 0, ..Connection::open(&self.path, self.patience)? })
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// The connection broke, the patience ended, or the other side answered with a failure.
    pub fn ask<R: Serialize, A: DeserializeOwned>(
        &self,
        request: &R,
        fds: &[BorrowedFd<'_>],
    ) -> Result<A, AskError> {
        self.send(request, fds)?;
        match self.receive() {
            Err(AskError::Older) => {
                let older = Box::new(self.older()?);
                self.older.get_or_init(|| older).ask(request, fds)
            }
            answer => answer,
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The connection broke, the patience ended, or the request does not fit a packet.
    pub fn send<R: Serialize>(&self, request: &R, fds: &[BorrowedFd<'_>]) -> Result<(), AskError> {
        let packet = request_packet(request, self.current().schema)?;
        Ok(seqpacket::send(self.as_fd(), &packet, fds, true)?)
    }

    /// Waits for the reply to a request that was sent.
    ///
    /// # Errors
    /// As for [`Connection::ask`].
    pub fn receive<A: DeserializeOwned>(&self) -> Result<A, AskError> {
        let mut buffer = vec![0; MAX_BYTES];
        let received = seqpacket::receive(self.as_fd(), &mut buffer, true)?;
        if received.length == 0 {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
        }
        buffer.truncate(received.length);
        if self.current().schema > 0 && refuses_schema(&buffer) {
            return Err(AskError::Older);
        }
        Ok(parse_answer(&buffer)?)
    }

    /// The PID of the other side: of the process that called listen(2) on the socket (SO_PEERCRED).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn process(&self) -> io::Result<i32> {
        seqpacket::peer(self.as_fd())
    }

    /// Whether the other side is known to be of uvn 0.1.0.
    #[must_use]
    pub fn is_older(&self) -> bool {
        self.current().schema == 0
    }

    fn current(&self) -> &Connection {
        self.older.get().map_or(self, |older| older)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.current().socket.as_fd()
    }
}
