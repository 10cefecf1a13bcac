//! Development commands: `cargo xtask --help`.
//!
//! - [`setup`]: the apt packages each command needs, and why
//! - [`ebpf`]: rebuilds the eBPF object, or checks the committed one
//! - [`shell`]: runs other programs
#![forbid(unsafe_code)]

mod ebpf;
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
    /// Rebuild ebpf/uvn-ebpf.o, the eBPF object that the engine embeds
    Ebpf {
        /// Change nothing: exit with 1 if the committed object is not what its source builds to
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let result = match Xtask::parse() {
        Xtask::Setup => setup::install(setup::ALL).map_err(Error::from),
        Xtask::Ebpf { check } => ebpf::run(check).map_err(Error::from),
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
    #[error(transparent)]
    Ebpf(#[from] ebpf::EbpfError),
}
