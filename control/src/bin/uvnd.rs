//! `uvnd`, the daemon of a node: its command line.

use clap::Parser;
use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use uvn_control::daemon::Daemon;
use uvn_control::lockdown;

/// Gives each user of this node a network of their own. Logs to stderr, at the level of RUST_LOG (default: info).
///
/// SIGHUP reads the configuration again. SIGTERM ends uvnd; the networks stay and work on.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.")]
struct Arguments {
    /// The configuration, a TOML file.
    #[arg(long, default_value = uvn_control::config::FILE)]
    config: PathBuf,
    /// Refuse policed users sockets until uvnd is up, and exit; only if uvnd has enforced a configuration before.
    #[arg(long)]
    lock_down: bool,
}

fn main() -> ExitCode {
    let Arguments { config, lock_down } = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if lock_down {
        return match lockdown::hold() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("uvnd: users are not isolated until uvnd is up: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match Daemon::start(&config).and_then(Daemon::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uvnd: {error}");
            let source: Option<&dyn Error> = error.source();
            tracing::debug!(?source, "ended");
            ExitCode::from(if error.is_configured() { 2 } else { 1 })
        }
    }
}
