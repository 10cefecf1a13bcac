//! Opening a queue: the UMEM, the socket and its options.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{BorrowedFd, RawFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use thiserror::Error;
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::{FRAME_SIZE, XskQueue};
use uvn_engine::port::Nic;

/// The settings of a queue.
#[derive(Debug, Clone)]
pub struct XskConfig {
    /// The NIC's name.
    pub interface: String,
    /// Number of its queue.
    pub queue: u32,
    /// UMEM frames of 4 KiB, a power of two from 64 to 65536. One half receives, the other sends.
    pub frames: u32,
    /// Frames that one [`Nic::receive`] returns, at most.
    pub batch: usize,
    /// Poll the NIC from this thread instead of its interrupt, for at most so many microseconds a call (SO_BUSY_POLL).
    /// None: no busy polling.
    pub busy_poll_us: Option<u32>,
}

/// Why a queue could not be opened.
#[derive(Debug, Error)]
pub enum XskError {
    /// The number of UMEM frames is not a power of two in the range.
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

impl XskQueue {
    /// Opens a queue: zero-copy if the driver has it, else by copy; on huge pages if enough are free.
    ///
    /// A process that has just ended may still hold the queue, so a busy queue is tried again for a second.
    ///
    /// # Errors
    /// See [`XskError`]; the text names the remedy.
    pub fn open(config: &XskConfig) -> Result<XskQueue, XskError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        let frames = NonZeroU32::new(config.frames)
            .filter(|frames| frames.is_power_of_two() && (64..=65536).contains(&frames.get()))
            .ok_or(XskError::Frames(config.frames))?;
        let umem_failed = |source| XskError::Umem {
            interface: config.interface.clone(),
            queue: config.queue,
            frames: config.frames,
            source,
        };
        let socket_failed =
            |source| XskError::Socket { interface: config.interface.clone(), queue: config.queue, source };
        let half = config.frames / 2;
        let ring = QueueSize::new(half).map_err(|_| XskError::Frames(config.frames))?;
        let (umem, mut descs, huge_pages) = make_umem(frames, ring).map_err(umem_failed)?;
        let base = expose(&umem, &mut descs);
        let (tx, rx, fill, completion) = bind(config, &umem, ring).map_err(socket_failed)?;

        let pool = descs.split_off(half as usize);
        let mut opened = XskQueue {
            id: NEXT.fetch_add(1, Relaxed),
            umem,
            base,
            length: config.frames as usize * FRAME_SIZE,
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
        opened.set_options(config).map_err(socket_failed)?;
        opened.flush();
        Ok(opened)
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

        // In copy mode frames under way count against SO_SNDBUF, 208 KiB by default: it is set to the TX half of the
        // UMEM. Only root may, else the default stays. The next option is unknown to older kernels.
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
}

/// Makes a UMEM: returns it, its frames, and whether it is on huge pages.
fn make_umem(frames: NonZeroU32, ring: QueueSize) -> io::Result<(Umem, Vec<FrameDesc>, bool)> {
    let mut builder = UmemConfig::builder();
    builder.frame_size(FrameSize::new(FRAME_SIZE as u32).map_err(io::Error::other)?);
    let config = builder.fill_queue_size(ring).comp_queue_size(ring).build().map_err(io::Error::other)?;
    if enough_huge_pages(frames.get() as usize * FRAME_SIZE)
        && let Ok((umem, descs)) = Umem::new(config, frames, true)
    {
        return Ok((umem, descs, true));
    }
    let (umem, descs) = Umem::new(config, frames, false).map_err(|error| os_error(&error))?;
    Ok((umem, descs, false))
}

/// Exposes the addresses of all frames, and returns where the UMEM begins.
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

/// Whether `length` is a multiple of the default huge page, as unmapping needs, and enough huge pages are free.
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
