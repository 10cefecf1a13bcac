//! The start, the discovery and the end of a data plane.

use super::process::{self, Process};
use super::{Feed, FeedError, PATIENCE, PAUSE, RUN, START, State};
use mio::Interest;
use mio::unix::SourceFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde::Serialize;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uvn_api::dataplane::client::{Client, ClientError};
use uvn_api::dataplane::config::{Config, Encapsulation, Path as Gear, Peers, Workers};
use uvn_api::dataplane::message::{Reply, Request};
use uvn_api::toml_file;

impl Feed {
    pub(super) fn path(&self, extension: &str) -> PathBuf {
        Path::new(RUN).join(format!("{}.{extension}", self.nic.name))
    }

    pub(super) fn down(&self, message: &str) -> FeedError {
        FeedError::Down { nic: self.nic.name.clone(), message: message.into() }
    }

    /// Finds a running data plane, or starts one.
    pub(super) fn begin(&mut self, now: Instant) {
        let found = Client::connect_for(&self.path("sock"), PATIENCE).ok();
        self.state = State::Starting { process: None, client: None, since: now };
        let result = match found {
            Some(client) => self.send_ping(client),
            None => self.launch(),
        };
        if let Err(error) = result {
            self.fail(error.to_string());
        }
    }

    fn launch(&mut self) -> Result<(), FeedError> {
        // It is being restarted by hand: another start now would end the one that is coming up.
        if process::has_job(&self.nic.name) {
            self.state = State::Down(Instant::now() + PAUSE.0);
            return Ok(());
        }
        // It may have come up in the meantime.
        if let Ok(client) = Client::connect_for(&self.path("sock"), PATIENCE) {
            return self.send_ping(client);
        }
        // Not earlier: the file that a running data plane has read is compared with the wanted configuration.
        self.write_config()?;
        let started = Process::start(&self.nic.name, &self.path("toml"), &self.path("log"))?;
        if let State::Starting { process, .. } = &mut self.state {
            *process = Some(started);
        }
        Ok(())
    }

    /// Asks over a new connection whether the data plane answers, without waiting.
    fn send_ping(&mut self, new: Client) -> Result<(), FeedError> {
        let (registry, token) = &self.source;
        let fd = new.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&fd), *token, Interest::READABLE)
            .map_err(|source| FeedError::Launch { nic: self.nic.name.clone(), source })?;
        if let Err(error) = new.send(&Request::Ping, &[]) {
            tracing::debug!(nic = self.nic.name, %error, "the data plane has gone again");
        } else if let State::Starting { client, .. } = &mut self.state {
            *client = Some(new);
        }
        Ok(())
    }

    /// Checks whether a starting data plane answers.
    pub(super) fn greet(&mut self, now: Instant) {
        let socket = self.path("sock");
        let State::Starting { process, client, since } = &mut self.state else { return };
        if let Some(reason) = process.as_mut().and_then(Process::ended) {
            return self.fail(reason);
        }
        if now.saturating_duration_since(*since) > START {
            if let Some(pid) = client.as_ref().and_then(|client| client.process().ok()) {
                process::signal(pid, Signal::SIGKILL);
            }
            return self.fail("it does not answer".into());
        }
        match client.take() {
            None => {
                let is_ours = process.is_some();
                let result = match Client::connect_for(&socket, PATIENCE) {
                    Ok(new) => self.send_ping(new),
                    // It was found, not started here, and has ended.
                    Err(_) if !is_ours => self.launch(),
                    Err(_) => Ok(()),
                };
                if let Err(error) = result {
                    self.fail(error.to_string());
                }
            }
            Some(waiting) if is_quiet(waiting.as_fd()) => *client = Some(waiting),
            Some(answering) => match (answering.receive(), answering.process()) {
                (Ok(Reply::Pong), Ok(pid)) => {
                    let process = process.take();
                    self.state = State::Up { process, client: answering, pid, since: now };
                    self.take_over();
                }
                (Err(ClientError::Older), _) => {
                    if let Ok(older) = answering.older()
                        && let Err(error) = self.send_ping(older)
                    {
                        self.fail(error.to_string());
                    }
                }
                // It has ended: its exit, or another try, tells more.
                _ => {}
            },
        }
    }

    /// Takes over a data plane that answers: its configuration and networks may not be the wanted ones.
    fn take_over(&mut self) {
        let file = self.path("toml");
        match (Config::load(&file), self.config()) {
            (Ok(has), Ok(wanted)) if has.peers == wanted.peers && is_alike(&has, &wanted) => {}
            (Ok(has), Ok(wanted)) if is_alike(&has, &wanted) => self.allow(&has.peers),
            (_, Err(error)) => return self.lose(&error.to_string()),
            _ => {
                tracing::info!(nic = self.nic.name, "the data plane has another configuration: started anew");
                self.halt();
                self.state = State::Down(Instant::now());
                return;
            }
        }
        self.fault = None;
        self.pending.extend(self.wanted.keys());
        self.compare(Instant::now());
        tracing::info!(nic = self.nic.name, "the data plane answers");
    }

    /// Ends a data plane that could not start. The next try follows after a pause.
    fn fail(&mut self, reason: String) {
        let before = std::mem::replace(&mut self.state, State::Down(Instant::now() + self.pause));
        if let State::Starting { process: Some(process), .. } = before {
            process.abandon(&self.nic.name);
        }
        self.pause = (self.pause * 2).min(PAUSE.1);
        if self.fault.as_ref() != Some(&reason) {
            tracing::error!(nic = self.nic.name, reason, "the data plane does not start; trying again");
        }
        self.fault = Some(reason);
    }

    /// Gives up a data plane that has ended or is useless: it is killed, and started again later.
    pub(super) fn lose(&mut self, reason: &str) {
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
        tracing::error!(nic = self.nic.name, reason, "the data plane is lost; its users are cut off");
        if let State::Up { process, client, pid, .. } = std::mem::replace(&mut self.state, State::Down(until))
        {
            if !has_hung_up(client.as_fd()) {
                process::signal(pid, Signal::SIGKILL);
            }
            self.ending.extend(process);
        }
        self.carried.clear();
        self.restarts += 1;
        self.fault = Some(reason.into());
    }

    /// Ends the data plane in order, or kills it.
    pub(super) fn halt(&mut self) {
        let before = std::mem::replace(&mut self.state, State::Down(Instant::now()));
        self.carried.clear();
        process::stop_unit(&self.nic.name);
        let process = match before {
            State::Down(_) => None,
            State::Starting { process, client, .. } => {
                if let Some(pid) = client.and_then(|client| client.process().ok()) {
                    process::signal(pid, Signal::SIGKILL);
                }
                process
            }
            State::Up { process, client, pid, .. } => {
                if let Err(error) = finish(&client, pid) {
                    tracing::error!(nic = self.nic.name, %error, "the data plane does not end");
                }
                process
            }
        };
        // It has ended, or is about to: this reaps it.
        if let Some(process) = process {
            process.abandon(&self.nic.name);
        }
    }

    /// The text of its configuration file.
    fn text(&self) -> String {
        #[derive(Serialize)]
        struct File<'a> {
            nic: &'a str,
            vtep: Vec<IpAddr>,
            path: Gear,
            socket: PathBuf,
            encapsulation: Encapsulation,
            workers: &'a Workers,
            peers: &'a Peers,
        }
        let file = File {
            nic: &self.nic.name,
            vtep: self.nic.vteps().into_iter().take(1).collect(),
            path: self.nic.gear,
            socket: self.path("sock"),
            encapsulation: self.nic.encapsulation,
            workers: &self.nic.workers,
            peers: &self.others.allowed,
        };
        // TOML can express everything in it.
        format!("# Written by uvnd.\n{}", toml::to_string(&file).unwrap_or_default())
    }

    pub(super) fn config(&self) -> Result<Config, FeedError> {
        toml_file::parse(&self.text()).map_err(|(_, broken)| self.down(&broken.to_string()))
    }

    /// Writes the configuration file, whole or not at all.
    pub(super) fn write_config(&self) -> Result<(), FeedError> {
        self.config()?;
        let (path, new) = (self.path("toml"), self.path("toml.new"));
        let write = || {
            fs::create_dir_all(RUN)?;
            fs::write(&new, self.text())?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| FeedError::Write { path: path.clone(), source })
    }
}

/// Whether two configurations differ only by peers, which a data plane is told while it runs, and by what other NICs
/// there are.
fn is_alike(has: &Config, wanted: &Config) -> bool {
    let workers = Workers { share: wanted.workers.share, ..has.workers.clone() };
    Config { peers: wanted.peers.clone(), workers, ..has.clone() } == *wanted
}

/// The NICs whose data planes `uvnd` has left behind, running or not.
#[must_use]
pub fn left() -> Vec<String> {
    let files = fs::read_dir(RUN).into_iter().flatten().flatten().map(|entry| entry.path());
    let configs = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    configs.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
}

/// The peers that a NIC's data plane was last told; None: it was told none.
#[must_use]
pub fn was_told(nic: &str) -> Option<Peers> {
    Config::load(&Path::new(RUN).join(format!("{nic}.toml"))).ok().map(|config| config.peers)
}

/// Ends the data plane of a NIC without a [`Feed`], after `uvnd` has ended.
///
/// # Errors
/// The data plane does not end.
pub fn end(nic: &str) -> io::Result<()> {
    process::stop_unit(nic);
    let socket = Path::new(RUN).join(format!("{nic}.sock"));
    let Ok(client) = Client::connect_for(&socket, PATIENCE) else { return Ok(()) };
    finish(&client, client.process()?)
}

/// Ends the process at the other end of a connection in order, or kills it.
fn finish(client: &Client, pid: i32) -> io::Result<()> {
    const END: Duration = Duration::from_secs(5);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if has_hung_up(client.as_fd()) {
            return Ok(());
        }
        process::signal(pid, signal);
        let end = Instant::now() + END;
        while !has_hung_up(client.as_fd()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if has_hung_up(client.as_fd()) { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// Whether a socket has nothing to read, and its other side has not closed it.
pub(super) fn is_quiet(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0) | Err(nix::Error::EINTR))
}

/// Whether the other side of a socket has closed it.
fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let polled = poll(&mut polled, PollTimeout::ZERO).map(|_| polled[0].revents());
    matches!(polled, Ok(Some(events)) if events.contains(PollFlags::POLLHUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_nics_and_peers_are_no_reason_for_a_restart() {
        let config = |lines: &str| -> Config {
            toml::from_str(&format!("nic = \"em1\"\nvtep = [\"10.0.0.1\"]\n{lines}")).unwrap()
        };
        let has = config("workers.frames = 4096");
        assert!(is_alike(&has, &config("workers = { frames = 4096, share = { index = 1, of = 2 } }")));
        assert!(is_alike(&has, &config("workers.frames = 4096\npeers.range = [\"10.0.0.0/16\"]")));
        assert!(!is_alike(&has, &config("")));
        assert!(!is_alike(&has, &config("workers.frames = 4096\nencapsulation.ttl = 7")));
    }
}
