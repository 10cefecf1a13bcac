//! Runs another program with a time limit: uvnd has one loop, and every request waits for it.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `command` with `input` as its standard input, and returns its status and output.
///
/// # Errors
/// It cannot be started, or has not ended within `limit` and is killed (TimedOut).
pub fn output(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Output> {
    let end = Instant::now() + limit;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // A program that does not read its input reports the reason by its exit.
        thread::spawn(move || stdin.write_all(&input));
    }
    let left = || end.saturating_duration_since(Instant::now());
    let said = stdout.recv_timeout(left()).and_then(|stdout| Ok((stdout, stderr.recv_timeout(left())?)));
    match (said, ended(&mut child, end)?) {
        (Ok((stdout, stderr)), Some(status)) => Ok(Output { status, stdout, stderr }),
        _ => {
            let _already_ended = child.kill();
            // In a thread: a process that hangs in the kernel does not end when it is killed.
            thread::spawn(move || child.wait());
            let program = command.get_program().to_string_lossy();
            let text = format!("{program} did not end within {} s and was killed", limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

/// Reads a stream to its end, in a thread.
fn read(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut said = Vec::new();
        let _broken = stream.map(|mut stream| stream.read_to_end(&mut said));
        sender.send(said)
    });
    receiver
}

/// The exit status; None: the process has not ended by `end`.
fn ended(child: &mut Child, end: Instant) -> io::Result<Option<std::process::ExitStatus>> {
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
            status => return Ok(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::output;
    use std::io::ErrorKind;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_program_that_ends_is_heard() {
        let input = vec![b'x'; 1 << 20];
        let mut command = Command::new("sh");
        let said =
            output(command.args(["-c", "cat; echo y >&2; exit 3"]), &input, Duration::from_secs(60)).unwrap();
        assert_eq!((said.stdout, said.stderr, said.status.code()), (input, b"y\n".to_vec(), Some(3)));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        // It does not read, says nothing, or says that it has no more to say.
        for script in ["exec sleep 86400", "exec >&- 2>&-; exec sleep 86400"] {
            let mut command = Command::new("sh");
            let limit = Duration::from_millis(300);
            let error = output(command.args(["-c", script]), &[0; 1 << 20], limit).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{script}");
            assert!(error.to_string().starts_with("sh did not end"), "{error}");
        }
    }
}
