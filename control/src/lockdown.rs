//! The lock-down while `uvnd` does not run after a boot: policed users have no sockets. It follows the last
//! configuration that was in force.
//!
//! The pinned programs outlive a `uvnd` that ends or is killed, but not a reboot. So each start of `uvnd` attaches them
//! first, before it reads a configuration that may be broken. And since `uvnd` waits for the network, a unit of its own
//! (`uvn-lockdown`) attaches them before anybody can log in. The first `uvnd` that enforces a configuration arms this;
//! one that observes, or `uvn purge`, disarms it.

use crate::binding::policy::{policy, slurm_user};
use crate::binding::{self, Binding, BindingError, CalledBack, Policy};
use crate::config::{Config, Mode, default_policed};
use crate::lease::process;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

pub use uvn_api::uvnd::policed::LAST;

/// Attaches the socket programs, without any network, unless they are attached already or uvn has never enforced a
/// configuration here.
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

/// Policed users with processes, each with a PID; none if uvn observes, or has enforced here before.
#[must_use]
pub fn newcomers(config: &Config) -> BTreeMap<u32, i32> {
    if config.mode == Mode::Observe || Path::new(LAST).exists() {
        return BTreeMap::new();
    }
    process::users(|uid| config.is_policed(uid)).unwrap_or_else(|error| {
        tracing::error!(%error, "cannot list processes; users without a network are refused at once");
        BTreeMap::new()
    })
}

/// Saves the configuration in force as [`LAST`], for the next start.
///
/// # Errors
/// The file cannot be read, or the copy not written.
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

/// Deletes [`LAST`], if it exists.
///
/// # Errors
/// The kernel's refusal.
pub fn forget() -> io::Result<()> {
    match fs::remove_file(LAST) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
