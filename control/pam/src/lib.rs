//! The PAM module of uvn: a session's processes are inside their user's network, or there is no session.
//!
//! When a session opens, it asks `uvnd` for a lease on the user's network, held by the process that opens the session.
//! It runs no program and reads no environment: what users set there (pam_env, sshd's AcceptEnv, su) decides nothing. It
//! gives up after `timeout_s`, and then, or when `uvnd` refuses, says why: to the user through PAM's conversation, and to
//! syslog, because cron has no conversation. Whether that refuses the session is `attachment` of uvn.toml.
//!
//! Users who are not policed, root above all, are always let in; so is everybody where uvn is not set up at all. See
//! [`uvn_api::uvnd::policed`] for how that is decided, and why a purged uvn is not enough.

#[cfg(panic = "abort")]
compile_error!("a panic would end sshd: cargo build --profile plugin --package uvn-pam");

// Nothing in a test program has PAM's functions.
#[cfg(not(test))]
mod pam;

use std::time::Duration;
use uvn_api::uvnd::message::Claim;
use uvn_api::uvnd::policed::{Attachment, Host};

/// How long `uvnd` may take, unless the module's line says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the module's line may say after its name.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// How long `uvnd` may take.
    patience: Duration,
    /// Words that are none of its options. They are told, and keep nobody out.
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

/// What comes of a session that opens.
#[derive(Debug, PartialEq, Eq)]
enum Opened {
    /// It has a network, or needs none.
    Inside,
    /// It goes on without any network: these words say why.
    Without(String),
    /// It does not open: these words say why.
    Refused(String),
}

/// A user's session, by its process.
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
