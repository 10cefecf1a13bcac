//! Runs a program, hands its output to a watcher, and ends it when the watcher takes it for hung.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The two streams of a program, in pieces as they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A watcher of a running program.
pub trait Watch {
    /// Takes a piece of its output.
    fn take(&mut self, stream: Stream, bytes: &[u8]);

    /// Why the program is taken for hung; None: it is not. Asked once a second.
    fn overdue(&self) -> Option<String>;
}

/// A running program. Dropping it ends it.
pub struct Running {
    child: Child,
    output: Receiver<(Stream, Vec<u8>)>,
}

impl Running {
    /// Starts a program, without standard input.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(mut command: Command) -> io::Result<Running> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (sender, output) = mpsc::channel();
        let streams: [(Stream, Option<Box<dyn Read + Send>>); 2] = [
            (Stream::Out, child.stdout.take().map(|pipe| Box::new(pipe) as _)),
            (Stream::Err, child.stderr.take().map(|pipe| Box::new(pipe) as _)),
        ];
        for (stream, pipe) in streams {
            let (sender, Some(mut pipe)) = (sender.clone(), pipe) else { continue };
            thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    if sender.send((stream, buffer[..length].to_vec())).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Running { child, output })
    }

    /// Its process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Hands its output to `watch` until it ends, and returns its exit status.
    ///
    /// # Errors
    /// Why `watch` takes it for hung.
    pub fn watch(&mut self, watch: &mut impl Watch) -> Result<io::Result<ExitStatus>, String> {
        loop {
            match self.output.recv_timeout(Duration::from_secs(1)) {
                Ok((stream, bytes)) => watch.take(stream, &bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(self.child.wait()),
            }
            if let Some(why) = watch.overdue() {
                return Err(why);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}
