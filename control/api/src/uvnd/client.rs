//! A blocking client of `uvnd`.

use crate::protocol::{AskError, Connection, Failure};
use crate::uvnd::message::{Claim, NetworkState, Outcome, Reply, Request};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take: `uvnd` does one thing at a time, and a burst of logins may come first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request got no reply.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody answers at this path.
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The answer took longer than it may.
    Late(Duration),
    /// The connection broke.
    Lost(io::Error),
    /// `uvnd` answered with a failure.
    Refused(Failure),
    /// The answer is not of the request's kind.
    Mismatch,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Connect { path, source } => write!(
                f,
                "uvnd does not answer at {}: {source}; start it with `systemctl start uvnd`",
                path.display()
            ),
            ClientError::Late(patience) => write!(
                f,
                "uvnd gave no answer within {} s; see `systemctl status uvnd`, and restart it if it hangs",
                patience.as_secs_f32()
            ),
            ClientError::Lost(error) => write!(f, "uvnd gave no answer: {error}; its log tells more"),
            ClientError::Refused(failure) => failure.fmt(f),
            ClientError::Mismatch => {
                f.write_str("uvnd's answer does not fit the request: is it of another version?")
            }
        }
    }
}

impl Error for ClientError {}

/// A connection to `uvnd`.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    patience: Duration,
}

impl Client {
    /// Connects to `uvnd`.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::within(path, PATIENCE)
    }

    /// Connects to `uvnd`. Connecting and an answer together take no longer than `patience`.
    ///
    /// # Errors
    /// Nobody listens at `path`, or the connection is not accepted in that time.
    pub fn within(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let connection = Connection::open(path, patience).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => ClientError::Late(patience),
            _ => ClientError::Connect { path: path.into(), source },
        })?;
        Ok(Client { connection, patience })
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// The connection broke, or `uvnd` answered with a failure.
    pub fn ask<S: DeserializeOwned>(&self, request: &Request) -> Result<Reply<S>, ClientError> {
        self.connection.ask(request, &[]).map_err(|error| match error {
            AskError::Lost(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ClientError::Late(self.patience)
            }
            AskError::Lost(error) => ClientError::Lost(error),
            AskError::Refused(failure) => ClientError::Refused(failure),
            AskError::Older => ClientError::Mismatch,
        })
    }

    /// Adds a lease; when this returns, the user's network works.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn attach(&self, uid: u32, claim: Claim) -> Result<Outcome, ClientError> {
        match self.ask::<IgnoredAny>(&Request::Attach { uid, claim, dry_run: false })? {
            Reply::Attached { outcome, .. } => Ok(outcome),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// All networks that this user may see.
    ///
    /// # Errors
    /// As for [`Client::ask`].
    pub fn networks(&self) -> Result<Vec<NetworkState>, ClientError> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(first) = from {
            let reply = self.ask::<IgnoredAny>(&Request::List { from: first })?;
            let Reply::Networks { networks, next } = reply else {
                return Err(ClientError::Mismatch);
            };
            all.extend(networks);
            from = next.filter(|next| *next > first);
        }
        Ok(all)
    }
}
