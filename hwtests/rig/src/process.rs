//! Running programs, and what they write.

use crate::error::RigError;
use crate::netns;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// The file of this program. Not its path: a build may have replaced the file since the start.
#[must_use]
pub fn own_program() -> String {
    format!("/proc/{}/exe", std::process::id())
}

/// A running program whose standard output is read. Dropping it ends the program.
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    /// The program's standard error, if it does not go to the terminal.
    errors: Option<File>,
}

impl Process {
    /// Starts a program. `name` is for messages.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, mut command: Command) -> Result<Process, RigError> {
        let running = netns::running();
        let mut child = command
            // It ends with this process, however that ends, and so ends what it runs on another node.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(RigError::io(format!("start {name}")))?;
        drop(running);
        let (sender, lines) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                let lines = BufReader::new(output).lines().map_while(Result::ok);
                lines.map(|line| sender.send(line)).take_while(Result::is_ok).count()
            });
        }
        Ok(Process { name: name.to_owned(), child, lines, errors: None })
    }

    /// Like [`Process::start`], but shows standard error only if the program fails: for programs that complain when
    /// they, or those they talk to, are ended.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_quietly(name: &str, mut command: Command) -> Result<Process, RigError> {
        let failed = RigError::io(format!("start {name}"));
        let memory = memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let errors = File::from(memory);
        command.stderr(errors.try_clone().map_err(&failed)?);
        let mut process = Process::start(name, command)?;
        process.errors = Some(errors);
        Ok(process)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains `text` and returns it.
    ///
    /// # Errors
    /// The program ended first, or took longer than `patience`.
    pub fn wait_for(&self, text: &str, patience: Duration) -> Result<String, RigError> {
        let end = Instant::now() + patience;
        let mut last = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => last = line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failed(format!("did not say {text:?} within {patience:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(
                        self.failed(format!("ended before it said {text:?}; its last line: {last:?}"))
                    );
                }
            }
        }
    }

    /// The lines that it has written since the last call.
    #[must_use]
    pub fn new_lines(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Waits for its end and returns the lines not yet read.
    ///
    /// # Errors
    /// It failed, or took longer than `patience` and was killed.
    pub fn finish(mut self, patience: Duration) -> Result<Vec<String>, RigError> {
        let end = Instant::now() + patience;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failed(format!("did not end within {patience:?}")));
                }
            }
        }
        let status = self.child.wait().map_err(RigError::io(&self.name))?;
        if status.success() { Ok(lines) } else { Err(self.failed(format!("{status}: {}", lines.join("\n")))) }
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends its standard input, and waits for it to end by itself; kills it after `patience`.
    pub fn end(mut self, patience: Duration) {
        drop(self.child.stdin.take());
        let end = Instant::now() + patience;
        while self.ended().is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn failed(&self, why: String) -> RigError {
        let mut errors = [0; 1 << 14];
        // Read at an offset, so that the position at which the program writes does not change.
        let read =
            self.errors.as_ref().and_then(|file| file.read_at(&mut errors, 0).ok()).unwrap_or_default();
        let why = format!("{why}\n{}", String::from_utf8_lossy(&errors[..read]));
        RigError::program(&self.name, why.trim_end())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_program_that_fails_is_quoted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; echo complained >&2; exit 3"]);
        let quiet = Process::start_quietly("sh", command).unwrap();
        let error = quiet.finish(Duration::from_secs(10)).unwrap_err().to_string();
        assert_eq!(error, "sh: exit status: 3: said\ncomplained");
    }
}
