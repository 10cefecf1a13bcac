//! Calls of both daemons: notifications to the service manager, and the limit of open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;

/// Notifies the service manager, if there is one. A failure is logged.
pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Raises the soft limit of open files to the hard one: the usual 1024 are too few for a descriptor per network and
/// worker, or per process that holds a network.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
