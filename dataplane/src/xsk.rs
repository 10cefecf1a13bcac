//! AF_XDP: one NIC queue through a UMEM and four rings of its own (Documentation/networking/af_xdp.rst), by xsk-rs.
//!
//! Every frame is in one place: with the kernel (a ring), in one of two free lists, or with the owner of a [`Frame`].
//! The UMEM's first half serves only to receive, the other only to send: a NIC that does not send cannot stop receipt.
//! The XDP program that redirects to this socket is attached by others, who put [`Nic::fd`] in its map.

// The UMEM is memory shared with the kernel, and some socket options have no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use thiserror::Error;
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use crate::port::{Nic, State};

/// Bytes per UMEM frame: a page, which every driver takes.
const FRAME_SIZE: usize = 4096;

/// What a queue is opened with.
#[derive(Debug, Clone)]
pub struct XskConfig {
    /// The NIC's name.
    pub interface: String,
    /// Number of its queue.
    pub queue: u32,
    /// UMEM frames of 4 KiB, a power of two from 64 to 65536. One half receives, the other sends.
    pub frames: u32,
    /// Most frames one [`Nic::receive`] returns.
    pub batch: usize,
    /// Poll the NIC from this thread, for at most so many microseconds a call (SO_BUSY_POLL), not from its interrupt.
    pub busy_poll_us: Option<u32>,
}

/// Why a queue could not be opened.
#[derive(Debug, Error)]
pub enum XskError {
    /// The sizes are not powers of two in the range.
    #[error("{0} UMEM frames: it must be a power of two from 64 to 65536")]
    Frames(u32),
    /// The UMEM could not be made.
    #[error(
        "UMEM of {frames} frames for queue {queue} of `{interface}`: {source}; without CAP_IPC_LOCK it must fit \
             RLIMIT_MEMLOCK"
    )]
    Umem {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
        /// UMEM frames asked for.
        frames: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket could not be made or bound.
    #[error("AF_XDP socket on queue {queue} of `{interface}`: {source}; {}", hint(.source))]
    Socket {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another AF_XDP socket is bound to it: stop that process",
        Some(libc::ENETDOWN) => "set the NIC up first",
        Some(libc::ENODEV) => "there is no such NIC in this network namespace",
        Some(libc::EINVAL) => "the NIC may have fewer queues (ethtool -l)",
        Some(libc::EPERM) => "it needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF",
        _ => "it needs a kernel with CONFIG_XDP_SOCKETS",
    }
}

/// A UMEM frame that its holder owns. Neither Clone nor Copy; one that is dropped is lost until the queue is closed.
#[derive(Debug)]
pub struct Frame {
    desc: FrameDesc,
    /// [`XskQueue::id`] of the queue it belongs to.
    owner: u32,
}

/// One NIC queue.
pub struct XskQueue {
    /// Tells this queue's frames from another's.
    id: u32,
    umem: Umem,
    /// Where the UMEM is mapped.
    base: usize,
    length: usize,
    fill: FillQueue,
    completion: CompQueue,
    rx: RxQueue,
    tx: TxQueue,
    /// Slots of the TX ring.
    tx_slots: u32,
    /// Free frames to send with.
    pool: Vec<FrameDesc>,
    /// Free frames to receive with, not yet in the fill ring.
    refill: Vec<FrameDesc>,
    /// Frames to send, not yet in the TX ring.
    queued: Vec<FrameDesc>,
    /// Frames in the TX ring or sent, not yet completed.
    outstanding: usize,
    /// Descriptors out of a ring, before they become frames.
    scratch: Vec<FrameDesc>,
    /// Received descriptors that named no frame of the UMEM.
    invalid: u64,
    busy_poll: bool,
    zero_copy: bool,
    huge_pages: bool,
}

impl XskQueue {
    /// Opens a queue: zero-copy if the driver has it, else by copy; on huge pages if enough are free.
    ///
    /// A process that has just died may still hold the queue: for a second it is tried again.
    ///
    /// # Errors
    /// See [`XskError`]; the text names the remedy.
    pub fn open(config: &XskConfig) -> Result<XskQueue, XskError> {
        let XskConfig { queue, frames, .. } = *config;
        let interface = || config.interface.clone();
        let half = frames / 2;
        let (Some(count), Ok(ring), Ok(frame_size)) =
            (NonZeroU32::new(frames), QueueSize::new(half), FrameSize::new(FRAME_SIZE as u32))
        else {
            return Err(XskError::Frames(frames));
        };
        if !(64..=65536).contains(&frames) {
            return Err(XskError::Frames(frames));
        }

        let failed = |source| XskError::Umem { interface: interface(), queue, frames, source };
        let mut builder = UmemConfig::builder();
        builder.frame_size(frame_size).fill_queue_size(ring).comp_queue_size(ring);
        let umem_config = builder.build().map_err(|error| failed(io::Error::other(error)))?;
        let length = frames as usize * FRAME_SIZE;
        let huge = enough_huge_pages(length).then(|| Umem::new(umem_config, count, true).ok()).flatten();
        let huge_pages = huge.is_some();
        let (umem, mut descs) = match huge {
            Some(made) => made,
            None => Umem::new(umem_config, count, false).map_err(|error| failed(os_error(&error)))?,
        };
        let base = expose(&umem, &mut descs);
        let (tx, rx, fill, completion) = bind(config, &umem, ring).map_err(|source| XskError::Socket {
            interface: interface(),
            queue,
            source,
        })?;

        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pool = descs.split_off(half as usize);
        let mut opened = XskQueue {
            id: NEXT.fetch_add(1, Relaxed),
            umem,
            base,
            length,
            fill,
            completion,
            rx,
            tx,
            tx_slots: half,
            pool,
            refill: descs,
            queued: Vec::with_capacity(half as usize),
            outstanding: 0,
            scratch: vec![FrameDesc::default(); config.batch.max(1)],
            invalid: 0,
            busy_poll: false,
            zero_copy: false,
            huge_pages,
        };
        opened.set_options(config).map_err(|source| XskError::Socket {
            interface: interface(),
            queue,
            source,
        })?;
        opened.flush();
        Ok(opened)
    }

    /// Frames go between NIC and UMEM without a copy.
    #[must_use]
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The UMEM is on huge pages.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Busy polling was asked for, and the kernel has it.
    #[must_use]
    pub fn busy_poll(&self) -> bool {
        self.busy_poll
    }

    fn socket(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    fn set_options(&mut self, config: &XskConfig) -> io::Result<()> {
        /// include/uapi/linux/if_xdp.h, kernel 6.17: how many frames one sendto sends in copy mode, instead of 32.
        const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
        /// include/uapi/asm-generic/socket.h, kernel 5.11.
        const SO_PREFER_BUSY_POLL: i32 = 69;
        const SO_BUSY_POLL_BUDGET: i32 = 70;

        let fd = self.socket();
        // SAFETY: the socket lives as long as `self`.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        nix::fcntl::fcntl(socket, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        self.zero_copy = is_zero_copy(fd)?;

        // In copy mode frames under way count against SO_SNDBUF, 208 KiB by default: make it the TX half of the UMEM.
        // Only root may; else the default stays. So with the next one: older kernels do not know it.
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, (self.length / 2) as u32);
        let _ = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, self.tx_slots);

        if let Some(time) = config.busy_poll_us {
            self.busy_poll = set_option(fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)
                .and_then(|()| set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, time))
                .and_then(|()| set_option(fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, config.batch as u32))
                .is_ok();
        }
        Ok(())
    }

    /// A free frame goes to the list of its half.
    fn free(&mut self, desc: FrameDesc) {
        let list = if desc.addr() < self.length / 2 { &mut self.refill } else { &mut self.pool };
        list.push(desc);
    }

    /// Whether a descriptor from a ring names bytes within one frame.
    fn is_valid(&self, desc: &FrameDesc) -> bool {
        desc.addr() < self.length && desc.addr() % FRAME_SIZE + desc.lengths().data() <= FRAME_SIZE
    }

    fn complete(&mut self) {
        while self.outstanding > 0 {
            // SAFETY: the descriptors are overwritten by what this UMEM's completion ring holds.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            self.outstanding = self.outstanding.saturating_sub(count);
            for index in 0..count {
                let desc = self.scratch[index];
                if self.is_valid(&desc) {
                    self.free(desc);
                }
            }
            if count < self.scratch.len() {
                break;
            }
        }
    }

    fn produce(&mut self) {
        let room = self.tx.nb_free_exact() as usize;
        let count = room.min(self.queued.len());
        if count > 0 {
            // SAFETY: the frames are of this UMEM, and the owner gave them up in `transmit`.
            let produced = unsafe { self.tx.produce(&self.queued[..count]) };
            self.queued.drain(..produced);
            self.outstanding += produced;
        }
        let room = self.fill.nb_free_exact() as usize;
        let count = room.min(self.refill.len());
        if count > 0 {
            let first = self.refill.len() - count;
            // SAFETY: the frames are of this UMEM and free.
            let produced = unsafe { self.fill.produce(&self.refill[first..]) };
            self.refill.drain(first..first + produced);
        }
    }

    /// Makes the kernel take what is in the TX ring, as far as it does so at once; the rest is for the next flush.
    fn kick(&mut self) -> State {
        let mut waiting = self.waiting();
        while waiting > 0 && self.tx.needs_wakeup() {
            match send(self.socket(), &[], MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {}
                // More than one call sends (EAGAIN), the NIC's queue is full (EBUSY), no memory now (ENOBUFS).
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => {}
                Err(error) => return State::from(error),
            }
            let left = self.waiting();
            if left == waiting {
                break;
            }
            waiting = left;
            self.complete();
        }
        State::Up
    }

    /// Frames in the TX ring that the kernel has not taken.
    fn waiting(&mut self) -> u32 {
        self.tx_slots.saturating_sub(self.tx.nb_free_exact())
    }

    /// The bytes from `offset` of the frame, to the end of what it holds or of its room.
    fn at(&self, frame: &Frame, length: usize) -> *mut [u8] {
        let length = if frame.owner == self.id { length } else { 0 };
        let start = std::ptr::with_exposed_provenance_mut::<u8>(self.base + frame.desc.addr());
        std::ptr::slice_from_raw_parts_mut(start, length)
    }
}

impl From<Errno> for State {
    fn from(error: Errno) -> State {
        match error {
            // Bound no more: the device was removed.
            Errno::ENXIO | Errno::ENODEV | Errno::EBADF => State::Gone,
            _ => State::Down,
        }
    }
}

impl Nic for XskQueue {
    type Frame = Frame;

    fn receive(&mut self, frames: &mut Vec<Frame>) -> usize {
        // SAFETY: the descriptors are overwritten by what this UMEM's RX ring holds.
        let count = unsafe { self.rx.consume(&mut self.scratch) };
        let before = frames.len();
        for index in 0..count {
            let desc = self.scratch[index];
            if self.is_valid(&desc) {
                frames.push(Frame { desc, owner: self.id });
            } else {
                self.invalid += 1;
            }
        }
        frames.len() - before
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: the range is in the UMEM (`is_valid`), which lives as long as `self`, and no one else has the frame:
        // frames are neither cloned nor made twice.
        unsafe { &*self.at(frame, frame.desc.lengths().data()) }
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        // SAFETY: as in `bytes`, and both are borrowed exclusively.
        unsafe { &mut *self.at(frame, frame.desc.lengths().data()) }
    }

    fn release(&mut self, frame: Frame) {
        if frame.owner == self.id {
            self.free(frame.desc);
        }
    }

    fn reserve(&mut self) -> Option<Frame> {
        self.pool.pop().map(|desc| Frame { desc, owner: self.id })
    }

    fn room(&self) -> usize {
        self.pool.len()
    }

    fn buffer<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        let room = FRAME_SIZE - frame.desc.addr() % FRAME_SIZE;
        // SAFETY: as in `bytes_mut`; the range ends with the frame.
        unsafe { &mut *self.at(frame, room) }
    }

    fn transmit(&mut self, mut frame: Frame, length: usize) {
        if frame.owner != self.id {
            return;
        }
        // SAFETY: the frame is of this UMEM and ours alone.
        unsafe { self.umem.data_mut(&mut frame.desc) }.cursor().set_pos(length);
        self.queued.push(frame.desc);
    }

    fn flush(&mut self) -> usize {
        self.complete();
        self.produce();
        let state = self.kick();
        if self.busy_poll || self.fill.needs_wakeup() {
            // Nothing is read: it runs the driver's receive side. What is wrong with the NIC, `state` tells.
            let _ = recv(self.socket(), &mut [], MsgFlags::MSG_DONTWAIT);
        }
        match state {
            State::Up => self.outstanding + self.queued.len(),
            // They wait in the ring until it is up; nothing is gained by waiting with them.
            State::Down | State::Gone => 0,
        }
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.socket())
    }

    fn lost(&self) -> u64 {
        let lost =
            self.rx.fd().xdp_statistics().map_or(0, |counted| counted.rx_dropped() + counted.rx_ring_full());
        lost + self.invalid
    }

    fn state(&self) -> State {
        match send(self.socket(), &[], MsgFlags::MSG_DONTWAIT) {
            Err(error @ (Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV | Errno::EBADF)) => {
                State::from(error)
            }
            _ => State::Up,
        }
    }
}

/// Takes every frame's address out of the UMEM's own types, and returns where the UMEM begins.
fn expose(umem: &Umem, descs: &mut [FrameDesc]) -> usize {
    let mut base = 0;
    for desc in descs {
        let address = desc.addr();
        // SAFETY: nobody uses the frames yet.
        let mut data = unsafe { umem.data_mut(desc) };
        data.cursor().set_pos(FRAME_SIZE);
        base = data.contents_mut().as_mut_ptr().expose_provenance() - address;
        data.cursor().set_pos(0);
    }
    base
}

type Rings = (TxQueue, RxQueue, FillQueue, CompQueue);

fn bind(config: &XskConfig, umem: &Umem, ring: QueueSize) -> io::Result<Rings> {
    const RETRY_FOR: Duration = Duration::from_secs(1);
    const RETRY_EVERY: Duration = Duration::from_millis(50);

    let interface = Interface::from_str(&config.interface)?;
    let socket_config = SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .build();
    let start = Instant::now();
    loop {
        // SAFETY: the UMEM is not shared with another socket.
        match unsafe { Socket::new(socket_config, umem, &interface, config.queue) } {
            Ok((tx, rx, Some((fill, completion)))) => return Ok((tx, rx, fill, completion)),
            Ok((_, _, None)) => return Err(io::Error::other("the UMEM is shared")),
            Err(error) => {
                let error = os_error(&error);
                if error.raw_os_error() != Some(libc::EBUSY) || start.elapsed() > RETRY_FOR {
                    return Err(error);
                }
            }
        }
        sleep(RETRY_EVERY);
    }
}

/// The errno behind an error of xsk-rs.
fn os_error(error: &dyn std::error::Error) -> io::Error {
    let errno = error.source().and_then(|source| source.downcast_ref::<io::Error>()?.raw_os_error());
    errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// Whether the default huge pages divide `length`, which unmapping needs, and enough of them are free.
fn enough_huge_pages(length: usize) -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return false };
    let field = |name: &str| -> Option<usize> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    match (field("Hugepagesize:"), field("HugePages_Free:")) {
        (Some(kib @ 1..), Some(free)) => length.is_multiple_of(kib << 10) && free >= length / (kib << 10),
        _ => false,
    }
}

fn is_zero_copy(socket: RawFd) -> io::Result<bool> {
    let mut options = 0u32;
    let mut length = size_of_val(&options) as libc::socklen_t;
    // SAFETY: XDP_OPTIONS writes one struct xdp_options, a u32, and its length.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            std::ptr::from_mut(&mut options).cast(),
            &mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(options & libc::XDP_OPTIONS_ZEROCOPY != 0) }
}

fn set_option(socket: RawFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one integer of the given length.
    let result = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
