//! What both daemons tell the service manager, and ask the kernel for.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;

/// Tells the service manager, if there is one.
pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Raises the limit of open files as far as it goes: the usual 1024 are few for a descriptor per network and worker,
/// or per process that holds a network.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
