//! Development commands: `cargo xtask --help`.
//!
//! - [`attack`]: forged packets, none of which may reach a user
//! - [`cargo`]: the cargo that runs us, and what it builds
//! - [`demo`]: shows the whole of it
//! - [`ebpf`]: rebuilds the eBPF object, or checks the committed one
//! - [`guest`]: runs a command on another kernel
//! - [`matrix`]: who reaches whom
//! - [`processes`]: what processes wait for
//! - [`progress`]: which test runs, and whether it has hung
//! - [`probe`]: the programs that run inside a rig
//! - [`rig`]: the demo's two nodes
//! - [`running`]: a program whose output is followed while it runs
//! - [`setup`]: the apt packages each command needs, and why
//! - [`suites`]: the control side's tests, in guests
//! - [`mod@test`]: everything that must hold before a change goes in
#![forbid(unsafe_code)]

mod attack;
mod cargo;
mod closing;
mod demo;
mod ebpf;
mod guest;
mod matrix;
mod probe;
mod processes;
mod progress;
mod rig;
mod running;
mod setup;
mod suites;
mod test;

use clap::Parser;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use uvn_rig::error::RigError;
use uvn_rig::netns;
use uvn_rig::netns::exit_code;

/// Builds, shows, tests and measures uvn. Each command installs what it needs first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Install the apt packages that the other commands need; only those missing
    Setup,
    /// Rebuild the objects of ebpf/, which the engine and uvnd embed
    Ebpf {
        /// Change nothing: exit with 1 if the committed object is not what its source builds to
        #[arg(long)]
        check: bool,
    },
    /// Show two nodes and two users: who reaches whom, speed, an attack. Needs root; leaves nothing behind
    Demo,
    /// Check format, lints, tests, the eBPF object and the demo's isolation. Needs root; CI runs this
    Test {
        /// Run every suite on every kernel; before a release
        #[arg(long)]
        full: bool,
    },
    /// Run suites of hwtests/tests in guests
    Suite(suites::Choice),
    /// Measure raw, kernel VXLAN, uvn and others side by side: --quick, --help and more. Needs root; leaves nothing behind
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of uvn-bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command as root in a guest with a Debian kernel, on a throw-away view of this machine's files
    Guest {
        #[command(flatten)]
        machine: guest::Machine,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a probe inside a rig's namespaces
    #[command(hide = true, subcommand)]
    Probe(probe::Probe),
}

fn main() -> ExitCode {
    let result = match Xtask::parse() {
        Xtask::Setup => setup::install(setup::ALL).map_err(Error::from),
        Xtask::Ebpf { check } => ebpf::run(check).map_err(Error::from),
        Xtask::Demo => show(),
        Xtask::Test { full } => check(full),
        Xtask::Suite(choice) => suite(&choice),
        Xtask::Bench { arguments } => measure(&arguments),
        Xtask::Guest { machine, command } => match boot(&machine, &command) {
            Ok(code) => return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
            Err(error) => Err(error),
        },
        Xtask::Probe(probe) => probe::run(probe).map_err(Error::from),
    };
    exit_code(result)
}

fn show() -> Result<(), Error> {
    setup::install(&[setup::BUILD, setup::BENCH])?;
    if demo::demo()? { Ok(()) } else { Err(Error::Unexpected) }
}

fn check(full: bool) -> Result<(), Error> {
    setup::install(&[setup::BUILD])?;
    netns::prepare()?;
    if test::test(full) { Ok(()) } else { Err(Error::Test) }
}

/// Builds what is measured and what measures, and becomes the latter.
fn measure(arguments: &[OsString]) -> Result<(), Error> {
    // An earlier run's report and a site's own nodes need nothing of ours but the program.
    let is_elsewhere = |word: &OsString| word == "report" || word.to_string_lossy().starts_with("--nodes");
    let packages: &[&str] = if arguments.iter().any(is_elsewhere) {
        &["uvn-bench"]
    } else {
        setup::install(&[setup::BUILD, setup::BENCH])?;
        &["uvn-dataplane", "uvn-bench"]
    };
    let program = cargo::build_release(packages)?.join("uvn-bench");
    Err(Error::Bench(Command::new(program).args(arguments).exec()))
}

fn boot(machine: &guest::Machine, command: &[String]) -> Result<i32, Error> {
    setup::install(&[setup::GUEST])?;
    Ok(guest::show(machine, command)?)
}

fn suite(choice: &suites::Choice) -> Result<(), Error> {
    setup::install(&[setup::BUILD, setup::GUEST, setup::SUITES])?;
    if suites::choose(choice).map_err(Error::Suites)? { Ok(()) } else { Err(Error::Test) }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    #[error(transparent)]
    Ebpf(#[from] ebpf::EbpfError),
    #[error(transparent)]
    Rig(#[from] RigError),
    #[error(transparent)]
    Guest(#[from] guest::GuestError),
    #[error("{0}")]
    Suites(String),
    #[error("the demo is not as expected: see WRONG above")]
    Unexpected,
    #[error("not everything passed: see FAILED above")]
    Test,
    #[error("cannot run uvn-bench: {0}")]
    Bench(std::io::Error),
    #[error("probe: {0}")]
    Probe(#[from] std::io::Error),
}
