//! The addresses of the nodes' names. Threads ask for them, so that a silent resolver does not hold up the daemon's
//! loop.
//!
//! A name keeps its last answer while it is listed, also over a restart of uvnd: nodes stay reachable when DNS is down.

use super::{Peers, PeersError, names, parse_hosts};
use crate::folder;
use crate::peers::PeerList;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uvn_api::dataplane::config::Cidr;

/// The pause before names without an answer are asked again.
pub const AGAIN: Duration = Duration::from_secs(10);
/// How long one pass over the names may take; names that it does not reach come first in the next one.
const PASS: Duration = Duration::from_secs(10);
/// Names that are asked at the same time.
const AT_ONCE: usize = 8;

/// A name and its addresses; empty: no answer.
type Answer = (String, Vec<IpAddr>);
type Resolver = Arc<dyn Fn(&str) -> Vec<IpAddr> + Send + Sync>;

/// The listed names, and their addresses as far as known.
pub struct Directory {
    /// Keeps `known` over a restart.
    file: PathBuf,
    resolver: Resolver,
    ranges: Vec<Cidr>,
    names: Vec<String>,
    known: BTreeMap<String, Vec<IpAddr>>,
    /// Names without an answer, in the order in which they are asked.
    open: VecDeque<String>,
    asking: Option<Receiver<Answer>>,
    again: Instant,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Directory { names, known, open, .. } = self;
        f.debug_struct("Directory").field("names", names).field("known", known).field("open", open).finish()
    }
}

impl Directory {
    /// Begins with the addresses that an earlier process saved in the file; a missing or broken file counts as empty.
    #[must_use]
    pub fn new(file: &Path) -> Directory {
        let text = fs::read_to_string(file).unwrap_or_default();
        Directory {
            file: file.into(),
            resolver: Arc::new(system),
            ranges: Vec::new(),
            names: Vec::new(),
            known: serde_json::from_str(&text).unwrap_or_default(),
            open: VecDeque::new(),
            asking: None,
            again: Instant::now(),
        }
    }

    /// Takes a new list, and starts to ask for its names.
    ///
    /// # Errors
    /// slurm.conf cannot be read, or a node list cannot be expanded: the former list then stays.
    pub fn follow(&mut self, list: &PeerList) -> Result<(), PeersError> {
        self.names = names(list)?;
        self.ranges.clone_from(&list.range);
        let listed: BTreeSet<&String> = self.names.iter().collect();
        self.known.retain(|name, _| listed.contains(name));
        self.open = self.names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned().collect();
        let now = Instant::now();
        (self.asking, self.again) = (None, now);
        self.turn(now);
        Ok(())
    }

    /// Takes the answers that have come; after a pause of [`AGAIN`], asks again for names without one. Does not wait.
    pub fn turn(&mut self, now: Instant) {
        loop {
            match self.asking.as_ref().map(Receiver::try_recv) {
                Some(Ok(answer)) => self.learn(answer),
                Some(Err(TryRecvError::Empty)) => return,
                Some(Err(TryRecvError::Disconnected)) => {
                    (self.asking, self.again) = (None, now + AGAIN);
                    self.complain();
                }
                None if now >= self.again && !self.open.is_empty() => {
                    self.look_in_hosts();
                    self.asking = Some(self.ask());
                }
                None => return,
            }
        }
    }

    /// Waits until every name has been asked, for at most `patience`.
    pub fn wait(&mut self, patience: Duration) {
        let end = Instant::now() + patience;
        while let Some(asking) = &self.asking {
            match asking.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(answer) => self.learn(answer),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    (self.asking, self.again) = (None, Instant::now() + AGAIN);
                }
            }
        }
    }

    /// The nodes, with the addresses known now.
    #[must_use]
    pub fn peers(&self) -> Peers {
        let literal = |name: &String| name.parse().ok().map(|address| vec![address]);
        let addresses = |name: &String| literal(name).or_else(|| self.known.get(name).cloned());
        let nodes: BTreeSet<Vec<IpAddr>> = self.names.iter().filter_map(addresses).collect();
        let mut unresolved: Vec<String> = self.open.iter().cloned().collect();
        unresolved.sort_unstable();
        Peers { ranges: self.ranges.clone(), nodes: nodes.into_iter().collect(), unresolved }
    }

    /// Saves the known addresses for the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self) -> std::io::Result<()> {
        folder::replace(&self.file, &serde_json::to_string(&self.known).unwrap_or_default())
    }

    /// Logs the names without an answer, at the end of a pass.
    fn complain(&self) {
        if !self.open.is_empty() {
            tracing::warn!(names = ?self.open, "cannot resolve these names of [peers]; uvnd asks again in 10 s");
        }
    }

    /// Takes addresses from /etc/hosts, without a thread.
    fn look_in_hosts(&mut self) {
        let hosts = parse_hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default());
        for name in self.open.clone() {
            if let Some(addresses) = hosts.get(&name.to_ascii_lowercase()) {
                self.learn((name, addresses.clone()));
            }
        }
    }

    fn learn(&mut self, (name, mut addresses): Answer) {
        // On a node, its own name often stands for a loopback address.
        addresses.retain(|address| !address.is_loopback());
        addresses.sort_unstable();
        addresses.dedup();
        self.open.retain(|open| *open != name);
        if addresses.is_empty() {
            // Behind the names that have not been asked yet.
            self.open.push_back(name);
        } else {
            self.known.insert(name, addresses);
        }
    }

    /// Asks in [`AT_ONCE`] threads. The channel closes when every name is asked, or [`PASS`] is over.
    fn ask(&self) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        let (names, end) = (Arc::new(Mutex::new(self.open.clone())), Instant::now() + PASS);
        for _ in 0..AT_ONCE.min(self.open.len()) {
            let (names, resolver, sender) = (Arc::clone(&names), Arc::clone(&self.resolver), sender.clone());
            std::thread::spawn(move || {
                let next = || names.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let (true, Some(name)) = (Instant::now() < end, next()) {
                    let addresses = resolver(&name);
                    if sender.send((name, addresses)).is_err() {
                        return;
                    }
                }
            });
        }
        receiver
    }
}

fn system(name: &str) -> Vec<IpAddr> {
    let found = (name, 0).to_socket_addrs();
    found.map_or_else(|_| Vec::new(), |addresses| addresses.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests;
