//! Programs on real nodes, by ssh.
//!
//! Each node gets a copy of this program in a folder of its own, over one connection that all later programs share. The
//! session that made the folder removes it when its standard input ends: when this process closes it or crashes, or the
//! network fails. In the same way each program there has a [`guard`], which ends it with its standard input.

use crate::error::RigError;
use crate::process::{Process, own_program};
use crate::shell;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

/// How long a login may take.
const LOGIN: Duration = Duration::from_secs(30);
/// How long the end of a connection may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// The name of this program in a node's folder.
const PROGRAM: &str = "uvn-bench";
/// A script that makes a folder, writes its name, and removes it when standard input ends.
const KEEP: &str = r#"umask 022
folder=$(mktemp -d "${TMPDIR:-/tmp}/uvn-bench.XXXXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM PIPE
chmod 755 "$folder" && echo "$folder" && cat > /dev/null"#;

/// An open connection to a node. Dropping it removes what was made on the node.
pub struct Node {
    login: Login,
    keeper: Option<Process>,
}

/// How to run programs on a node whose connection is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The destination as ssh takes it: `host` or `user@host`.
    destination: String,
    /// The file of ssh's options; None: the user's own.
    config: Option<PathBuf>,
    /// The connection's socket.
    socket: PathBuf,
    /// The node's folder.
    folder: String,
    /// The command that every program is an argument of, such as `uvn exec alice --`.
    inside: Vec<String>,
}

impl Node {
    /// Logs in and copies this program there. `socket` is a path for the connection.
    ///
    /// # Errors
    /// ssh failed, or the node has no room in its temporary folder.
    pub fn open(destination: &str, config: Option<&Path>, socket: PathBuf) -> Result<Node, RigError> {
        let config = config.map(Path::to_owned);
        let login = Login {
            destination: destination.to_owned(),
            config,
            socket,
            folder: String::new(),
            inside: Vec::new(),
        };
        let mut keep = login.ssh();
        keep.args(["-o", "ControlMaster=yes", "-o", "ControlPersist=no", destination, "--"]);
        keep.arg(quote(["exec", "sh", "-c", KEEP]));
        let keeper = Process::start(&format!("ssh {destination}"), keep)?;
        let folder = keeper.wait_for(&format!("/{PROGRAM}."), LOGIN)?;
        let node = Node { login: Login { folder, ..login }, keeper: Some(keeper) };
        node.copy_program()?;
        Ok(node)
    }

    fn copy_program(&self) -> Result<(), RigError> {
        let own = File::open(own_program()).map_err(RigError::io("open this program"))?;
        let path = self.login.program();
        let script = r#"cat > "$0" && chmod 755 "$0""#;
        let mut copy = self.login.ssh();
        copy.args([&self.login.destination, "--"]).arg(quote(["exec", "sh", "-c", script, &path]));
        shell::read(copy.stdin(own))?;
        Ok(())
    }

    /// How to run programs there; `inside` is a command that gets each program as its argument, empty for none.
    #[must_use]
    pub fn login(&self, inside: &[String]) -> Login {
        Login { inside: inside.to_vec(), ..self.login.clone() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.end(FAREWELL);
        }
    }
}

impl Login {
    /// The path of this program's copy on the node.
    #[must_use]
    pub fn program(&self) -> String {
        format!("{}/{PROGRAM}", self.folder)
    }

    /// A command that will run there; arguments may be added. Its process here is ssh.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        // ssh joins its arguments with blanks for a shell on the node. So this program quotes them first.
        let mut command = Command::new(own_program());
        command.arg("ssh").arg("--socket").arg(&self.socket);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command
            .args([&self.destination, "--", &self.program(), "guard", "--"])
            .args(&self.inside)
            .arg(program);
        command
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        if let Some(config) = &self.config {
            ssh.arg("-F").arg(config);
        }
        ssh.args(["-T", "-o", "BatchMode=yes", "-S"]).arg(&self.socket);
        ssh
    }
}

/// Becomes ssh, and runs these words there over an open connection.
#[derive(Debug, clap::Args)]
pub struct Words {
    /// The connection
    #[arg(long)]
    socket: PathBuf,
    /// ssh's options
    #[arg(long)]
    config: Option<PathBuf>,
    /// As ssh takes it
    destination: String,
    /// A program and its arguments
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

impl Words {
    /// Returns only if ssh cannot be run.
    #[must_use]
    pub fn become_ssh(self) -> io::Error {
        let Words { socket, config, destination, words } = self;
        let login = Login { destination, config, socket, folder: String::new(), inside: Vec::new() };
        let words = quote(words.iter().map(String::as_str));
        login.ssh().args(["-o", "ControlMaster=no", &login.destination, "--", &words]).exec()
    }
}

/// Runs a program, and ends it with all that it has started when standard input ends.
///
/// # Errors
/// It cannot be started.
pub fn guard(words: &[String]) -> io::Result<ExitCode> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    let group = Pid::from_raw(child.id() as i32);
    thread::spawn(move || {
        let _until_its_end = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _already_gone = killpg(group, Signal::SIGKILL);
    });
    let status = child.wait()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Quotes words for a POSIX shell, so that it takes them unchanged.
fn quote<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = words.into_iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gives_back_what_was_quoted() {
        let words = ["a b", "it's", "$HOME;`id`", "", "\\\"\n*"];
        let script = format!("printf '<%s>' {}", quote(words));
        let output = shell::read(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(output, words.map(|word| format!("<{word}>")).concat());
    }

    #[test]
    fn programs_run_inside_the_command_that_was_given() {
        let login = Login {
            destination: "b".into(),
            config: None,
            socket: "/tmp/s".into(),
            folder: "/tmp/uvn-bench.1".into(),
            inside: ["uvn", "exec", "alice", "--"].map(String::from).to_vec(),
        };
        let command = login.command("iperf3");
        let arguments: Vec<&str> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        assert_eq!(
            arguments.join(" "),
            "ssh --socket /tmp/s b -- /tmp/uvn-bench.1/uvn-bench guard -- uvn exec alice -- iperf3"
        );
    }
}
