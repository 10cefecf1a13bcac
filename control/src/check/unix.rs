//! Tries whether users reach each other's abstract Unix sockets.

use super::RESTART;
use super::trial::as_user;
use crate::binding;
use crate::config::Config;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use uvn_api::uvnd::finding::{Finding, Id};

/// Tries it with the first two policed users, unless `findings` already say that they do.
pub(super) fn trial(config: &Config, findings: &[Finding]) -> Option<Finding> {
    if !binding::can_police_unix() || findings.iter().any(|finding| finding.id == Id::Abstract) {
        return None;
    }
    let mut policed = config.policed_ranges().into_iter().flatten();
    let (owner, other) = (policed.next()?, policed.next()?);
    let what = match reaches(owner, other) {
        Ok(false) => return None,
        Ok(true) => format!("user {other} reaches an abstract Unix socket of user {owner}"),
        Err(error) => format!("user {other} tried an abstract Unix socket of user {owner}: {error}"),
    };
    Some(Finding::fault(Id::Abstract, what, RESTART))
}

fn reaches(owner: u32, other: u32) -> io::Result<bool> {
    let address = SocketAddr::from_abstract_name(format!("uvn-check-{}", std::process::id()))?;
    let _held = as_user(owner, || UnixDatagram::bind_addr(&address))?;
    match as_user(other, || UnixDatagram::unbound()?.send_to_addr(b"x", &address)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}
