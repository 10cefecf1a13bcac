//! `uvnd`: the daemon of a node.

use clap::Parser;
use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use uvn_control::daemon::Daemon;
use uvn_control::lockdown;

/// One network per user on this node. Logs to stderr, by RUST_LOG (default: info).
///
/// SIGHUP: reads the configuration again. SIGTERM: ends, and leaves the networks as they are.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.")]
struct Arguments {
    /// The TOML file that says what to do.
    #[arg(long, default_value = uvn_control::config::FILE)]
    config: PathBuf,
    /// Only keep policed users from sockets until uvnd is up, if it has enforced its configuration before; and end.
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
                eprintln!("uvnd: users are in the open network until uvnd is up: {error}");
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
