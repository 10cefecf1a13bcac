//! What holds when `uvnd` cannot start: policed users have no sockets, by the last configuration that was in force.
//!
//! The programs are pinned, and outlive a `uvnd` that ends or is killed, but not a reboot. So each start attaches them
//! first of all, before it reads what may be broken; and so does a unit of its own, before anybody can log in, since `uvnd`
//! waits for the network. The first `uvnd` that enforces a configuration arms that; one that observes, or `uvn purge`,
//! disarms it.

use crate::binding::policy::{policy, slurm_user};
use crate::binding::{self, Binding, BindingError, CalledBack, Policy};
use crate::config::{Config, default_policed};
use std::fs;
use std::io;
use std::path::Path;

pub use uvn_api::uvnd::policed::LAST;

/// Attaches the socket programs, unless some are, or uvn has never been in force here. Nobody has a network by that.
///
/// # Errors
/// The kernel's refusal.
pub fn hold() -> Result<(), BindingError> {
    let (last, pins) = (Path::new(LAST), Path::new(binding::PINS));
    if !last.exists() || Binding::pinned(pins).is_ok_and(|(attached, _)| attached) {
        return Ok(());
    }
    let policy = Config::load(last).map_or_else(
        |error| {
            tracing::error!(%error, "no configuration; the default UIDs are policed until uvnd has one");
            Policy { policed: default_policed(), ..Policy::default() }
        },
        |config| policy(&config, &CalledBack::default(), slurm_user(&config), false),
    );
    Binding::attach(&binding::cgroup_root()?, pins, &Policy { observe: false, ..policy }).map(drop)
}

/// Keeps a configuration that is in force for the next start.
///
/// # Errors
/// It cannot be read or written.
pub fn keep(file: &Path) -> io::Result<()> {
    let (last, text) = (Path::new(LAST), fs::read(file)?);
    if fs::read(last).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    let new = last.with_extension("new");
    last.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(&new, text)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, last)
}

/// Takes it away; there may be none.
///
/// # Errors
/// The kernel's refusal.
pub fn forget() -> io::Result<()> {
    match fs::remove_file(LAST) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
