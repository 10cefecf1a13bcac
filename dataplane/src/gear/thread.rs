//! A worker's thread: pinned to its core, woken by its NIC queue, its endpoints and the control thread.
//!
//! While there is work, the thread never sleeps. Then it spins for a while, because sleeping and waking cost more than
//! most waits, and yields to others on its core. Then it sleeps in poll until something happens, so that an idle node
//! uses no CPU.

use crossbeam::channel::{Receiver, Sender, unbounded};
use hashbrown::HashMap;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uvn_engine::port::Nic;
use uvn_engine::tables::Tables;
use uvn_engine::worker::{Command, Event, Status, Worker};

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Number of the NIC queue.
    pub queue: usize,
    /// Core to run on; None: the scheduler chooses.
    pub core: Option<usize>,
    /// How long to spin without work before sleeping.
    pub spin: Duration,
    /// Second 0 of [`uvn_engine::tables::Learned::seen`]; the same for all workers.
    pub started: Instant,
}

/// A running worker.
pub struct Handle {
    /// What other threads may read while it runs.
    pub status: Arc<Status>,
    commands: Sender<Command>,
    waker: Waker,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Sends a command and wakes the worker.
    pub fn send(&self, command: Command) {
        // Neither fails while the thread lives. The heartbeat shows if it has ended.
        let _ = self.commands.send(command);
        let _ = self.waker.wake();
    }

    /// Whether it has ended by itself: only after an error, which it has logged.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Wakes it without a command: its heartbeat must then advance.
    pub fn wake(&self) {
        let _ = self.waker.wake();
    }

    /// Ends it: queued frames are flushed, its queue and endpoints are dropped. False: it has panicked.
    #[must_use]
    pub fn stop(self) -> bool {
        self.send(Command::Stop);
        self.thread.join().is_ok()
    }
}

/// Sends events to the control thread: a channel, and what wakes its reader.
#[derive(Clone)]
pub struct Notifier {
    /// The channel: bounded, so that a flood of events costs no memory.
    pub events: Sender<Event>,
    /// Wakes the control thread.
    pub waker: Arc<Waker>,
}

const NIC: Token = Token(0);
const COMMANDS: Token = Token(1);
/// The endpoint of slot n has token `ENDPOINTS` + n.
const ENDPOINTS: usize = 2;

/// Starts a worker on a NIC queue.
///
/// # Errors
/// No thread or no poll could be made.
pub fn spawn<N: Nic + Send + 'static>(
    nic: N,
    settings: Settings,
    tables: Arc<Tables>,
    notifier: Notifier,
) -> io::Result<Handle>
where
    N::Frame: Send,
{
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), COMMANDS)?;
    let nic_fd = nic.fd();
    let (commands, receiver) = unbounded();
    let worker = Worker::new(nic, settings.queue, tables, notifier.events, settings.started);
    let status = worker.status();
    let thread = Thread {
        worker,
        poll,
        nic: nic_fd,
        commands: receiver,
        fds: HashMap::new(),
        notifier: notifier.waker,
    };
    let thread = std::thread::Builder::new().name(format!("worker-{}", settings.queue)).spawn(move || {
        if let Some(id) = settings.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            tracing::warn!(core = id, queue = settings.queue, "cannot pin the worker; it runs on any core");
        }
        thread.run(settings.spin);
    })?;
    Ok(Handle { status, commands, waker, thread })
}

struct Thread<N: Nic> {
    worker: Worker<N>,
    poll: Poll,
    /// The queue's descriptor, polled only while the thread sleeps: otherwise each batch would wake epoll for nothing,
    /// since every turn looks at the ring anyway.
    nic: Option<RawFd>,
    commands: Receiver<Command>,
    /// The endpoints' descriptors, by slot.
    fds: HashMap<u32, RawFd>,
    notifier: Arc<Waker>,
}

impl<N: Nic> Thread<N> {
    fn run(mut self, spin: Duration) {
        let mut events = Events::with_capacity(256);
        let mut busy = Instant::now();
        let mut timeout = Some(Duration::ZERO);
        loop {
            if let Err(error) = self.wait(&mut events, timeout) {
                tracing::error!(%error, "poll failed; the worker ends");
                return;
            }
            for event in &events {
                if let Some(slot) = event.token().0.checked_sub(ENDPOINTS) {
                    self.worker.set_ready(slot as u32);
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                if !self.obey(command) {
                    return;
                }
            }
            let now = Instant::now();
            let worked = self.worker.turn(now);
            if self.worker.take_told() {
                let _ = self.notifier.wake();
            }
            timeout = Some(Duration::ZERO);
            if worked {
                busy = now;
            } else if now.saturating_duration_since(busy) < spin {
                // Yields: on a shared core, the other side of the conversation may be waiting for the core.
                std::thread::yield_now();
            } else {
                timeout = self.worker.due();
            }
        }
    }

    /// Collects events; sleeps until there is one, for at most `timeout`.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let asleep = self.nic.filter(|_| timeout != Some(Duration::ZERO));
        if let Some(fd) = asleep {
            // Frames that have already arrived count as an event.
            self.poll.registry().register(&mut SourceFd(&fd), NIC, Interest::READABLE)?;
        }
        let result = self.poll.poll(events, timeout);
        if let Some(fd) = asleep {
            self.poll.registry().deregister(&mut SourceFd(&fd))?;
        }
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    /// Executes a command. False: the worker must end.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Tables(tables) => self.worker.set_tables(tables),
            Command::Attach { slot, endpoint } => {
                self.forget(slot);
                if let Some(fd) = endpoint.fd() {
                    let token = Token(ENDPOINTS + slot as usize);
                    match self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE) {
                        Ok(()) => drop(self.fds.insert(slot, fd)),
                        Err(error) => {
                            tracing::error!(slot, %error, "cannot poll the endpoint; nothing is sent from it")
                        }
                    }
                }
                self.worker.attach(slot, endpoint);
            }
            Command::Detach { slot } => {
                self.forget(slot);
                self.worker.detach(slot);
            }
            Command::Report(reply) => {
                let _ = reply.send(self.worker.report());
            }
            Command::Stop => {
                self.worker.drain();
                return false;
            }
        }
        true
    }

    /// Stops polling an endpoint, before it is closed and its descriptor is used for another file.
    fn forget(&mut self, slot: u32) {
        if let Some(fd) = self.fds.remove(&slot) {
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
    }
}
