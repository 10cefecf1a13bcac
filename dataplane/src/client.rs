//! A blocking client of the control socket.

use crate::config::Network;
use crate::message::{Failure, HopState, MAX_BYTES, NetworkState, Reply, Request, parse_answer};
use crate::seqpacket;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
    socket: OwnedFd,
}

impl Client {
    /// Connects to a data plane.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
            setsockopt(&socket, sockopt::SendTimeout, &PATIENCE)?;
            connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Client { socket }),
            Err(errno) => Err(ClientError::Connect { path: path.into(), source: errno.into() }),
        }
    }

    /// Sends a request and waits for its reply, 10 seconds at most.
    ///
    /// # Errors
    /// The connection broke, or the request failed there.
    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        seqpacket::send(self.socket.as_fd(), &request.packet()?, fds, true)?;
        let mut buffer = vec![0; MAX_BYTES];
        let packet = seqpacket::receive(self.socket.as_fd(), &mut buffer, true)?;
        match buffer.get(..packet.length) {
            Some(bytes) if !bytes.is_empty() => Ok(parse_answer(bytes)?),
            _ => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        }
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
