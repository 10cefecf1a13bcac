//! Collects evidence of a guest that hangs, before it is ended: the state of its CPUs from qemu, of its processes and
//! networks from the guest's own examiner (`examine.sh`), and the stacks that the guest's kernel writes on its console
//! (SysRq).

use crate::processes;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long qemu's monitor may take: it answers at once, unless qemu itself hangs.
const MONITOR: Duration = Duration::from_secs(5);
/// How long the guest's examiner may take: it starts some hundred programs, 50 ms each in an emulated guest.
const GUEST: Duration = Duration::from_secs(60);
/// How long the kernel may take to write the stacks of all tasks to a serial line.
const CONSOLE: Duration = Duration::from_secs(20);
/// After so long without a new line, the kernel has written everything.
const QUIET: Duration = Duration::from_secs(1);
/// SysRq (Documentation/admin-guide/sysrq.rst): print everything to the console; then backtraces of active CPUs,
/// blocked tasks, all tasks.
const SYSRQ: [&str; 4] = ["9", "l", "w", "t"];

/// The two sockets by which a guest is examined. qemu connects to both when it starts.
pub struct Examiner {
    folder: PathBuf,
    monitor: UnixListener,
    guest: UnixListener,
}

/// The evidence.
#[derive(Debug)]
pub struct Evidence {
    /// The file with the evidence.
    pub path: PathBuf,
    /// The file's text.
    pub text: String,
}

impl Examiner {
    /// Listens in a run's folder.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn new(folder: &Path) -> io::Result<Examiner> {
        let listen = |name: &str| UnixListener::bind(short(&File::open(folder)?, name));
        Ok(Examiner { folder: folder.to_owned(), monitor: listen("monitor")?, guest: listen("examine")? })
    }

    /// qemu's arguments. The guest's port is the third of its serial bus, and qemu must run in the folder: a socket's
    /// path has 108 bytes at most.
    pub fn arguments(&self, qemu: &mut Command) {
        qemu.current_dir(&self.folder);
        qemu.args(["-chardev", "socket,id=monitor,path=monitor", "-mon", "chardev=monitor,mode=control"]);
        qemu.args(["-chardev", "socket,id=examine,path=examine"]);
        qemu.args(["-device", "virtserialport,chardev=examine,nr=3"]);
    }

    /// Examines the guest of the process `qemu`, and writes what is found to `path`.
    #[must_use]
    pub fn examine(&self, qemu: u32, path: PathBuf) -> Evidence {
        let mut text = String::new();
        let mut part = |title: &str, found: io::Result<String>| {
            let found = found.unwrap_or_else(|error| format!("nothing: {error}"));
            text += &format!("##### {title}\n{}\n", found.trim_end());
        };
        part("qemu, as the host sees it", Ok(processes::describe(qemu)));
        let mut monitor = self.monitor();
        for command in ["info status", "info registers -a", "info registers -a"] {
            let answer = match &mut monitor {
                Ok(monitor) => monitor.ask(command),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            part(&format!("qemu's monitor: {command}"), answer);
            sleep(Duration::from_millis(500));
        }
        // If qemu does not answer, the guest does not, either.
        let patience = if monitor.is_ok() { GUEST } else { MONITOR };
        part("the guest's processes and networks", self.ask_guest(patience));
        let before = self.console().len();
        let told = monitor.and_then(|mut monitor| {
            SYSRQ.iter().try_for_each(|key| {
                sleep(Duration::from_millis(300));
                monitor.ask(&format!("sendkey alt-sysrq-{key}")).map(drop)
            })
        });
        part("SysRq", told.map(|()| self.console_since(before)));
        part("the whole console before that", Ok(self.console()[..before].to_owned()));
        if let Err(error) = std::fs::write(&path, &text) {
            eprintln!("cannot keep the evidence: {}: {error}", path.display());
        }
        Evidence { path, text }
    }

    fn monitor(&self) -> io::Result<Monitor> {
        let stream = accept(&self.monitor)?;
        stream.set_read_timeout(Some(MONITOR))?;
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.execute(&json!({"execute": "qmp_capabilities"}))?;
        Ok(monitor)
    }

    fn ask_guest(&self, patience: Duration) -> io::Result<String> {
        let mut stream = accept(&self.guest)?;
        stream.write_all(b"examine\n")?;
        let (end, mut said, mut piece) = (Instant::now() + patience, Vec::new(), [0; 4096]);
        while !said.ends_with(b"=== end\n") {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                said.extend_from_slice(b"(no end within the time that it has)\n");
                break;
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => said.extend(piece[..length].iter().filter(|byte| **byte != b'\r')),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The text behind the first `start` bytes, once nothing more is written.
    fn console_since(&self, start: usize) -> String {
        let end = Instant::now() + CONSOLE;
        let mut length = 0;
        loop {
            sleep(QUIET);
            let console = self.console();
            if console.len() == length || Instant::now() > end {
                return console.get(start..).unwrap_or_default().to_owned();
            }
            length = console.len();
        }
    }
}

/// qemu's machine protocol (docs/interop/qmp-spec.rst), through which the commands for people work, too.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn ask(&mut self, command: &str) -> io::Result<String> {
        let request = json!({"execute": "human-monitor-command", "arguments": {"command-line": command}});
        Ok(self.execute(&request)?.as_str().unwrap_or_default().to_owned())
    }

    fn execute(&mut self, request: &Value) -> io::Result<Value> {
        writeln!(self.0.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
            // The greeting and events have no such field.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }
}

/// The connection that qemu has made at its start.
fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A path for a socket in a folder, short enough whatever the length of the folder's own path.
fn short(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use crate::guest::{self, GuestError, Machine};
    use crate::running::{Stream, Watch};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::time::{Duration, Instant};

    /// Takes the command for hung once it has said that it begins.
    struct Impatient {
        said: Vec<u8>,
        /// Stops the whole of qemu then.
        stop: bool,
        end: Instant,
    }

    impl Watch for Impatient {
        fn take(&mut self, _: Stream, bytes: &[u8]) {
            self.said.extend_from_slice(bytes);
        }

        fn overdue(&self) -> Option<String> {
            assert!(Instant::now() < self.end, "{}", String::from_utf8_lossy(&self.said));
            self.said.ends_with(b"begun\n").then(|| {
                if self.stop {
                    kill(Pid::from_raw(qemu().cast_signed()), Signal::SIGSTOP).unwrap();
                }
                "impatience".to_owned()
            })
        }
    }

    /// Our child whose guest has the word that only [`hang`] gives one.
    fn qemu() -> u32 {
        let text = crate::processes::describe(std::process::id());
        let line = text.lines().find(|line| line.starts_with("--- ") && line.contains("-m 1023 "));
        line.and_then(|line| line[4..].split_once(':')?.0.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    fn hang(stop: bool) -> String {
        let machine = Machine { memory: if stop { 1023 } else { 1024 }, ..Machine::default() };
        let command = ["sh", "-c", "ip netns add hung; echo begun; exec sleep 86400"].map(String::from);
        let mut watch = Impatient { said: Vec::new(), stop, end: Instant::now() + Duration::from_secs(300) };
        match guest::run(&machine, &command, &mut watch) {
            Err(GuestError::Hung(why, evidence)) => {
                assert_eq!(why, "impatience");
                assert_eq!(std::fs::read_to_string(&evidence.path).unwrap(), evidence.text);
                std::fs::remove_file(&evidence.path).unwrap();
                evidence.text
            }
            result => panic!("{result:?}"),
        }
    }

    #[test]
    #[ignore = "boots a guest: cargo xtask test"]
    fn a_hang_leaves_evidence() {
        let text = hang(false);
        let expected = [
            "VM status: running",
            "RIP=",
            ": sleep 86400",
            "waits in hrtimer_nanosleep",
            "ip -brief address",
            "=== end\n",
            // By the kernel, of each CPU and of each task.
            "sysrq: Show backtrace of all active CPUs",
            "task:sleep ",
        ];
        for words in expected {
            assert!(text.contains(words), "no {words:?} in\n{text}");
        }
    }

    #[test]
    #[ignore = "boots a guest: cargo xtask test"]
    fn a_machine_that_stands_still_leaves_evidence() {
        let text = hang(true);
        for words in ["qemu-system-x86: T, waits in", "qemu's monitor: info status\nnothing: "] {
            assert!(text.contains(words), "no {words:?} in\n{text}");
        }
    }
}
