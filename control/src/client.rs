//! A blocking client of `uvnd`.

use crate::message::{Claim, NetworkState, Outcome, Reply, Request};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use uvn_dataplane::protocol::{Connection, Failure, parse_answer, request_packet};

/// `uvnd` does one thing at a time: a burst of logins may be before us.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request got no reply.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("uvnd does not answer at {path}: {source}; start it with `systemctl start uvnd`", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The connection broke.
    #[error("uvnd gave no answer: {0}; its log tells more")]
    Lost(#[from] io::Error),
    /// It answered that it could not do it.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// It answered something else than was asked.
    #[error("uvnd's answer does not fit the request: is it of another version?")]
    Mismatch,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to `uvnd`.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::within(path, PATIENCE)
    }

    /// Connects to `uvnd`, and waits no longer than `patience` for each answer.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn within(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let patience = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
        let connection = Connection::open(path, patience)
            .map_err(|source| ClientError::Connect { path: path.into(), source })?;
        Ok(Client { connection })
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// The connection broke, or the request failed there.
    pub fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        Ok(parse_answer(&self.connection.exchange(&request_packet(request)?, &[])?)?)
    }

    /// Adds a lease; the user's network works when this returns.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn attach(&self, uid: u32, claim: Claim) -> Result<Outcome, ClientError> {
        match self.ask(&Request::Attach { uid, claim, dry_run: false })? {
            Reply::Attached { outcome, .. } => Ok(outcome),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// Every network that we may see.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn networks(&self) -> Result<Vec<NetworkState>, ClientError> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(first) = from {
            let Reply::Networks { networks, next } = self.ask(&Request::List { from: first })? else {
                return Err(ClientError::Mismatch);
            };
            all.extend(networks);
            from = next.filter(|next| *next > first);
        }
        Ok(all)
    }
}
