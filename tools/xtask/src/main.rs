//! Development commands: `cargo xtask --help`.
//!
//! - [`setup`]: the apt packages each command needs, and why
//! - [`shell`]: runs other programs
#![forbid(unsafe_code)]

mod setup;
mod shell;

use clap::Parser;
use std::process::ExitCode;

/// Builds, shows, tests and measures uvn. Each command installs what it needs first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Install the apt packages that the other commands need; only those missing
    Setup,
}

fn main() -> ExitCode {
    let result = match Xtask::parse() {
        Xtask::Setup => setup::install(setup::ALL).map_err(Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
}
