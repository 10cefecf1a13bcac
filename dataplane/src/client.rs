//! A blocking client of the control socket.

use crate::config::Network;
use crate::message::{HopState, NetworkState, Reply, Request};
use crate::protocol::{Connection, Failure, parse_answer, request_packet};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longer than a data plane takes to give up on a worker.
const PATIENCE: TimeVal = TimeVal::new(10, 0);

/// Why a request got no reply.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no data plane answers at {path}: {source}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the data plane does not answer: {0}")]
    Lost(#[from] io::Error),
    /// It answered that it could not do it.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// It answered something else than was asked.
    #[error("the data plane's answer does not fit the request")]
    Mismatch,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to a data plane.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connection = Connection::open(path, PATIENCE)
            .map_err(|source| ClientError::Connect { path: path.into(), source })?;
        Ok(Client { connection })
    }

    /// Sends a request and waits for its reply, 10 seconds at most.
    ///
    /// # Errors
    /// The connection broke, or the request failed there.
    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        Ok(parse_answer(&self.connection.exchange(&request_packet(request)?, fds)?)?)
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

    /// Every network.
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

    /// Every VTEP that was looked up.
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
