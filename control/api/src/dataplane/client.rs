//! A blocking client of the control socket.

use crate::dataplane::config::Network;
use crate::dataplane::message::{HopState, NetworkState, Reply, Request};
use crate::protocol::{AskError, Connection, Failure};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// How long an answer may take: longer than a data plane takes to give up on a worker.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request got no reply.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No data plane answers at this path.
    #[error("no data plane answers at {path}: {source}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The connection broke, or no answer came in time.
    #[error("the data plane does not answer: {0}")]
    Lost(#[from] io::Error),
    /// The data plane answered with a failure.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The answer is not of the request's kind.
    #[error("the data plane's answer does not fit the request")]
    Mismatch,
    /// The data plane is of uvn 0.1.0 and needs [`Client::older`]; [`Client::ask`] does that itself.
    #[error("the data plane is of uvn 0.1.0")]
    Older,
}

impl From<AskError> for ClientError {
    fn from(error: AskError) -> ClientError {
        match error {
            AskError::Lost(error) => ClientError::Lost(error),
            AskError::Refused(failure) => ClientError::Refused(failure),
            AskError::Older => ClientError::Older,
        }
    }
}

/// A connection to a data plane's control socket.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to a data plane, which may take 10 seconds to answer a request.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::connect_for(path, PATIENCE)
    }

    /// Connects to a data plane that may take `patience` to answer a request.
    ///
    /// # Errors
    /// Nobody listens at `path`, or the connection is not accepted in that time.
    pub fn connect_for(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let connection = Connection::open(path, patience)
            .map_err(|source| ClientError::Connect { path: path.into(), source })?;
        Ok(Client { connection })
    }

    /// Connects again, to a data plane of uvn 0.1.0.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn older(&self) -> io::Result<Client> {
        Ok(Client { connection: self.connection.older()? })
    }

    /// Whether the data plane is known to be of uvn 0.1.0.
    #[must_use]
    pub fn is_older(&self) -> bool {
        self.connection.is_older()
    }

    /// The PID of the data plane: of the process that called listen(2) on the socket.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn process(&self) -> io::Result<i32> {
        self.connection.process()
    }

    /// Sends a request and waits for its reply. After [`ClientError::Lost`] the connection is useless: the reply may
    /// still come later.
    ///
    /// # Errors
    /// The connection broke, no answer came in time, or the data plane answered with a failure.
    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        Ok(self.connection.ask(request, fds)?)
    }

    /// Sends a request. Its reply must be taken by [`Client::receive`] before the next request.
    ///
    /// # Errors
    /// The connection broke, or the request does not fit a packet.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        Ok(self.connection.send(request, fds)?)
    }

    /// Waits for the reply to a request that was sent.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn receive(&self) -> Result<Reply, ClientError> {
        Ok(self.connection.receive()?)
    }

    /// Adds a network; `fds` are its TAP queues if it has no `device`. Returns the epoch from which on it works.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn add_network(&self, network: &Network, fds: &[BorrowedFd<'_>]) -> Result<u64, ClientError> {
        self.change(&Request::AddNetwork(network.clone()), fds)
    }

    /// Removes a network. Returns the epoch from which on it is gone.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn remove_network(&self, vni: u32) -> Result<u64, ClientError> {
        self.change(&Request::RemoveNetwork { vni }, &[])
    }

    /// Sends a request that is answered by an epoch.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn change(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<u64, ClientError> {
        match self.ask(request, fds)? {
            Reply::Done { epoch } => Ok(epoch),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// All networks, asked for page by page.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn networks(&self) -> Result<Vec<NetworkState>, ClientError> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(first) = from {
            let Reply::Networks { networks, next } = self.ask(&Request::Networks { from: first }, &[])?
            else {
                return Err(ClientError::Mismatch);
            };
            all.extend(networks);
            from = next.filter(|next| *next > first);
        }
        Ok(all)
    }

    /// All VTEPs that have been looked up, asked for page by page.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn hops(&self) -> Result<Vec<HopState>, ClientError> {
        let mut all = Vec::new();
        let mut from = None;
        loop {
            let Reply::Hops { hops, next } = self.ask(&Request::Hops { from }, &[])? else {
                return Err(ClientError::Mismatch);
            };
            all.extend(hops);
            match next {
                Some(next) if Some(next) > from => from = Some(next),
                _ => return Ok(all),
            }
        }
    }
}

impl AsFd for Client {
    /// Readable when a reply has come, or when the data plane has gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
