//! The PAM module of uvn: a session's processes are inside their user's network, or the session is refused.
//!
//! When a session opens, it asks `uvnd` for a lease on the user's network, held by the process that opens the session.
//! It runs no program and reads no environment: variables that users set (pam_env, sshd's AcceptEnv, su) have no
//! effect. If `uvnd` refuses, or does not answer within `timeout_s`, the module gives the reason: to the user through
//! PAM's conversation, and to syslog, because cron has no conversation. `attachment` of uvn.toml decides whether the
//! session is refused then.
//!
//! Users who are not policed, root above all, can always log in; so can everybody where uvn is not set up at all. See
//! [`uvn_api::uvnd::policed`] for how that is decided, and why a purged uvn is not enough.

#[cfg(panic = "abort")]
compile_error!("a panic would end sshd: cargo build --profile plugin --package uvn-pam");

// A test program is not linked with PAM's functions.
#[cfg(not(test))]
mod pam;

use std::time::Duration;
use uvn_api::uvnd::message::Claim;
use uvn_api::uvnd::policed::{Attachment, Host};

/// How long `uvnd` may take, unless the module's line has `timeout_s`.
const PATIENCE: Duration = Duration::from_secs(10);

/// The module's options: the words behind its name in PAM's configuration.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// How long `uvnd` may take.
    patience: Duration,
    /// Texts about words that are not options. They are logged, and refuse nobody.
    unknown: Vec<String>,
}

impl Options {
    fn parse(words: impl IntoIterator<Item = String>) -> Options {
        let mut options = Options { patience: PATIENCE, unknown: Vec::new() };
        for word in words {
            match word.strip_prefix("timeout_s=").and_then(|number| number.parse().ok()) {
                Some(seconds @ 1..=60) => options.patience = Duration::from_secs(seconds),
                _ => options.unknown.push(format!("{word:?} is not timeout_s=1 to timeout_s=60: ignored")),
            }
        }
        options
    }
}

/// The outcome of opening a session.
#[derive(Debug, PartialEq, Eq)]
enum Opened {
    /// The session has a network, or needs none.
    Inside,
    /// The session opens without any network, for this reason.
    Without(String),
    /// The session is refused, for this reason.
    Refused(String),
}

/// A user's session; the process `pid` holds the lease.
struct Session<'a> {
    user: &'a str,
    uid: u32,
    pid: i32,
}

impl Session<'_> {
    fn open(&self, host: &Host, patience: Duration) -> Opened {
        let Err(refused) = host.attach(self.uid, self.claim(), patience) else { return Opened::Inside };
        let user = self.user;
        match refused.attachment {
            Attachment::Required => Opened::Refused(format!(
                "uvn: no network for {user} on this node, so no login: {refused}. Please tell the administrators."
            )),
            Attachment::Optional => Opened::Without(format!(
                "uvn: no network for {user} on this node, so all sockets are refused: {refused}. Please tell the \
                 administrators, and log in again when they have mended it."
            )),
        }
    }

    fn close(&self, host: &Host, patience: Duration) {
        host.detach(self.uid, self.claim(), patience);
    }

    fn claim(&self) -> Claim {
        Claim::Session { pid: self.pid }
    }
}

#[cfg(test)]
mod tests;
