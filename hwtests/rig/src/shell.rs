//! Runs other programs; errors name the command.

use std::io;
use std::process::{Command, ExitStatus};

/// A program that could not be started or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// It could not be started.
    #[error("cannot run `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("`{command}` failed: {status}\n{stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its standard error; empty if that went to the terminal.
        stderr: String,
    },
}

/// Runs a command to its end, with output to the terminal.
///
/// # Errors
/// The program cannot be started or fails.
pub fn run(command: &mut Command) -> Result<(), ShellError> {
    let status = command.status().map_err(|source| ShellError::Start { command: line(command), source })?;
    if status.success() {
        Ok(())
    } else {
        Err(ShellError::Failed { command: line(command), status, stderr: String::new() })
    }
}

/// Runs a command to its end, and returns its standard output.
///
/// # Errors
/// The program cannot be started or fails.
pub fn read(command: &mut Command) -> Result<String, ShellError> {
    let output = command.output().map_err(|source| ShellError::Start { command: line(command), source })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ShellError::Failed { command: line(command), status: output.status, stderr })
    }
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
