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

/// Networks of users on this node: list, give, release and check them.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Give a user a network on this node. It stays until its session, job or the administrator releases it.
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
    /// Release a user's network. It is removed once its last holder is gone and `linger_s` has passed.
    Detach {
        /// UID or name.
        user: User,
        #[command(flatten)]
        holder: Holder,
        /// Release all holders. The network is removed at once, and the user's processes lose it.
        #[arg(long, conflicts_with_all = ["session", "job", "pid"])]
        all: bool,
        #[command(flatten)]
        output: Output,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the networks on this node: your own, or as root all.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show the state of this node: NICs, carriers, gears, counters, findings.
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// Compare this node with its configuration, and try it as a user. Exit code 1 if there is a finding.
    Check {
        /// The configuration of uvnd.
        #[arg(long, default_value = uvn_control::config::FILE)]
        config: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Run a command as a user, inside the user's network.
    Exec {
        /// UID or name.
        user: User,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// The former program for pam_exec, replaced by pam_uvn.so. It lets root in, to correct the PAM line.
    #[command(hide = true)]
    Pam {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _former: Vec<String>,
    },
    /// Make uvnd read its configuration again. A wrong one is refused, and the old one stays in force.
    Reload {
        #[command(flatten)]
        output: Output,
        /// Do so even if users lose an endpoint, and look again at what drivers have lacked.
        #[arg(long)]
        force: bool,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove all of uvn from this node: uvnd, data planes, networks, rules, settings, socket programs.
    Purge {
        #[command(flatten)]
        output: Output,
        /// Print the steps, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// The holder of the network; without any of these: the administrator.
#[derive(Args)]
struct Holder {
    /// The process of a session. It holds the network until it ends.
    #[arg(long, value_name = "PID", conflicts_with_all = ["job", "pid"])]
    session: Option<i32>,
    /// The name of a job or of a step.
    #[arg(long, value_name = "ID", requires = "pid")]
    job: Option<String>,
    /// The process of the job. It holds the network until it ends.
    #[arg(long, requires = "job")]
    pid: Option<i32>,
}

#[derive(Args, Clone, Copy)]
struct Output {
    /// Print JSON.
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
