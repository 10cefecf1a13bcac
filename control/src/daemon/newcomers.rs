//! From observing to enforcing on a node where users have processes: all of them get networks first, and nobody is
//! refused sockets until then.

use super::networks::Networks;
use crate::config::Mode;
use crate::lease::{Held, process};
use uvn_api::uvnd::finding::Id;
use uvn_api::uvnd::message::Claim;

impl Networks {
    /// Whether nobody is refused sockets: by the configuration, or because newcomers still wait for networks.
    pub(super) fn observes(&self) -> bool {
        self.config.mode == Mode::Observe || !self.newcomers.is_empty()
    }

    /// Gives the next one a network, held by a process of theirs as by a session; after the last one, users without a network are
    /// refused.
    pub(super) fn receive_newcomer(&mut self) {
        let Some((uid, pid)) = self.newcomers.pop_first() else { return };
        let is_kept = self.leases.get(uid).is_some_and(Held::is_kept);
        if !is_kept
            && let Some(pid) = process::still_of(uid, pid)
            && let Err(error) = self.attach(uid, &Claim::Session { pid }, false)
        {
            tracing::error!(uid, pid, %error, "no network for this user's processes: sockets will be refused");
        }
        if self.newcomers.is_empty() {
            self.enforce();
        }
    }

    /// Puts the policy in force, and saves the configuration for the next boot.
    pub(super) fn enforce(&mut self) {
        match self.binding.set_policy(&self.policy()) {
            Ok(()) => {
                tracing::info!("users without a network are refused sockets from now on")
            }
            Err(error) => self.warn(Id::Programs, error),
        }
        self.keep_config();
    }
}
