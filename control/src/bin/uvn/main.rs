//! `uvn`: asks `uvnd`, and checks the node.

mod change;
mod exec;
mod show;
mod user;

use clap::{Args, Parser, Subcommand};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use user::User;

/// One network per user: who has one, who gets one, and whether all is as it should be.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gives a user a network on this node, until the session, job or administrator lets it go.
    Attach {
        /// UID or name.
        user: User,
        #[command(flatten)]
        holder: Holder,
        #[command(flatten)]
        output: Output,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Lets go of a user's network. The last one's end, and the linger time, end it.
    Detach {
        /// UID or name.
        user: User,
        #[command(flatten)]
        holder: Holder,
        /// Whoever holds it; it ends at once, and the user's processes lose their network.
        #[arg(long, conflicts_with_all = ["session", "job", "pid"])]
        all: bool,
        #[command(flatten)]
        output: Output,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists the networks on this node; yours only, unless you are root.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Tells how this node is doing: NICs, data paths, counters, warnings.
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// Compares this node with what it promises, and tries it out as a user. Exit code 1 if anything is wrong.
    Check {
        /// The configuration of uvnd.
        #[arg(long, default_value = uvn_control::config::FILE)]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Runs a command as a user, inside his network.
    Exec {
        /// UID or name.
        user: User,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// What pam_exec ran before there was pam_uvn.so. Root gets in, to correct the line.
    #[command(hide = true)]
    Pam {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _former: Vec<String>,
    },
    /// Has uvnd read its configuration again. A bad one is refused, and the old one kept.
    Reload {
        #[command(flatten)]
        output: Output,
        /// Even if users who have a network lose an endpoint by it.
        #[arg(long)]
        force: bool,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Takes all of uvn off this node: uvnd, data planes, networks, rules, settings, socket programs.
    Purge {
        #[command(flatten)]
        output: Output,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Who holds the network; nobody given: the administrator.
#[derive(Args)]
struct Holder {
    /// A session: its process. The network is held until it ends.
    #[arg(long, value_name = "PID", conflicts_with_all = ["job", "pid"])]
    session: Option<i32>,
    /// A job, or a step of one.
    #[arg(long, value_name = "ID", requires = "pid")]
    job: Option<String>,
    /// The job's process. The network is held until it ends.
    #[arg(long, requires = "job")]
    pid: Option<i32>,
}

#[derive(Args, Clone, Copy)]
struct Output {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Attach { user, holder, output, dry_run } => {
            change::attach(user.uid, holder.claim(), dry_run, output.json)
        }
        Command::Detach { user, holder, all, output, dry_run } => {
            change::detach(user.uid, (!all).then(|| holder.claim()), dry_run, output.json)
        }
        Command::List { output } => show::list(output.json),
        Command::Status { output } => show::status(output.json),
        Command::Check { config, output } => show::check(&config, output.json),
        Command::Exec { user, command } => exec::exec(&user, &command),
        Command::Pam { .. } => return former_pam(),
        Command::Reload { output, force, dry_run } => change::reload(dry_run, force, output.json),
        Command::Purge { output, dry_run } => change::purge(dry_run, output.json),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("uvn: {error}");
            ExitCode::from(exit_code(&*error))
        }
    }
}

/// Refuses everybody but root. A user who pretends to be root here has no sockets all the same.
fn former_pam() -> ExitCode {
    if std::env::var_os("PAM_USER").is_some_and(|name| name == "root") {
        return ExitCode::SUCCESS;
    }
    println!(
        "uvn: PAM runs `uvn pam`, which is no more. Please tell the administrators: pam_uvn.so takes its place."
    );
    ExitCode::FAILURE
}

/// The exit code: 2 for a mistake of this program's user, 1 for other errors.
fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    use uvn_api::protocol::Code;
    use uvn_api::toml_file::ConfigError;
    use uvn_api::uvnd::client::ClientError;
    let usage = match error.downcast_ref() {
        Some(ClientError::Refused(failure)) => failure.code == Code::Invalid,
        _ => error.is::<ConfigError>(),
    };
    if usage { 2 } else { 1 }
}
