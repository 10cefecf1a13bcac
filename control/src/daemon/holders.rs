//! The processes that hold networks: each has a pidfd, which is readable once the process has ended.

use crate::lease::Process;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The watched processes and their pidfds.
pub struct Holders {
    registry: Registry,
    /// The process with PID n has token `first` + n.
    first: usize,
    watched: BTreeMap<Process, OwnedFd>,
}

impl Holders {
    /// Watches no process yet. Uses tokens from `first` on.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn new(registry: &Registry, first: Token) -> io::Result<Holders> {
        Ok(Holders { registry: registry.try_clone()?, first: first.0, watched: BTreeMap::new() })
    }

    /// Watches a process, unless it is watched already.
    ///
    /// # Errors
    /// The process has ended (ESRCH), or no descriptor is free.
    pub fn watch(&mut self, process: Process) -> io::Result<()> {
        if self.watched.contains_key(&process) {
            return Ok(());
        }
        let fd = process.open()?;
        let number = usize::try_from(process.pid).map_err(io::Error::other)?;
        let token = Token(self.first.saturating_add(number));
        self.registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        self.watched.insert(process, fd);
        Ok(())
    }

    /// The ended processes of a token that mio reported. They are no longer watched.
    pub fn ended(&mut self, token: Token) -> BTreeSet<Process> {
        let of_token = |process: &&Process| {
            usize::try_from(process.pid).is_ok_and(|pid| token.0.checked_sub(pid) == Some(self.first))
        };
        let ended: BTreeSet<Process> =
            self.watched.keys().filter(of_token).filter(|process| !process.is_alive()).copied().collect();
        self.watched.retain(|process, _| !ended.contains(process));
        ended
    }

    /// Watches exactly these processes. Returns those that have ended already.
    pub fn follow(&mut self, holders: &BTreeSet<Process>) -> BTreeSet<Process> {
        self.watched.retain(|process, _| holders.contains(process));
        let mut ended = BTreeSet::new();
        for &process in holders {
            match self.watch(process) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    ended.insert(process);
                }
                // Out of descriptors: tried again at the next call.
                Err(error) => tracing::warn!(process.pid, %error, "cannot watch a process; uvnd tries again"),
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn the_end_of_a_process_is_told_once() {
        let mut poll = Poll::new().unwrap();
        let mut holders = Holders::new(poll.registry(), Token(100)).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id().try_into().unwrap()).unwrap();
        let only = BTreeSet::from([process]);
        assert!(holders.follow(&only).is_empty() && holders.follow(&only).is_empty());
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert!(events.is_empty());
        child.kill().unwrap();
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        let tokens: Vec<Token> = events.iter().map(mio::event::Event::token).collect();
        assert_eq!(tokens, [Token(100 + child.id() as usize)]);
        assert_eq!(holders.ended(tokens[0]), only);
        assert!(holders.ended(tokens[0]).is_empty());
        child.wait().unwrap();
        assert_eq!(holders.follow(&only), only, "gone before it could be watched");
    }
}
