//! Errors of the rig.

use crate::shell::ShellError;
use std::io;
use std::path::Path;

/// A rig could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// A command failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A file or process could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An offload of a wire cannot be switched as needed.
    #[error("{device}: {feature} cannot be switched {wanted}; figures from such a wire mean nothing")]
    Offload {
        /// The end of the wire.
        device: String,
        /// ethtool's name of it.
        feature: &'static str,
        /// `on` or `off`.
        wanted: &'static str,
    },
    /// A program on the rig did not do what it should.
    #[error("{what}: {why}")]
    Program {
        /// The program.
        what: String,
        /// What it did instead.
        why: String,
    },
    /// The process is not root, so it cannot make network namespaces.
    #[error("cannot make network namespaces: run this as root")]
    NotRoot,
}

impl RigError {
    /// Makes an error for `map_err`: `what` was tried, such as "write FILE".
    pub fn io(what: impl Into<String>) -> impl Fn(io::Error) -> RigError {
        let what = what.into();
        move |source| RigError::Io { what: what.clone(), source }
    }

    /// Makes an error about a program that did not do what it should.
    #[must_use]
    pub fn program(what: &str, why: impl ToString) -> RigError {
        RigError::Program { what: what.to_owned(), why: why.to_string() }
    }
}

/// Makes an error for `map_err` about a file that was to be written.
pub fn written(path: &Path) -> impl Fn(io::Error) -> RigError {
    RigError::io(format!("write {}", path.display()))
}
