//! By io_uring (linux/io_uring.h): socket, connect and sendmsg without a system call of that name.
#![allow(unsafe_code, reason = "io_uring by hand")]

use super::socket::{self, check};
use super::{Aim, Attempt};
use socket2::{SockAddr, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) const SETUP_SQPOLL: u32 = 1 << 1;
const FEAT_SINGLE_MMAP: u32 = 1;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const OFF_SQES: i64 = 0x1000_0000;
const OP_SENDMSG: u8 = 9;
const OP_CONNECT: u8 = 16;
const OP_SOCKET: u8 = 45;

/// struct io_uring_params, its offsets as words.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, resv1, user_addr (2).
    sq_off: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1, user_addr (2).
    cq_off: [u32; 10],
}

/// struct io_uring_sqe, as far as we use it.
#[repr(C)]
#[derive(Default)]
struct Entry {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    rw_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

/// A ring of one entry at a time.
pub(super) struct Ring {
    fd: OwnedFd,
    ring: *mut u8,
    entries: *mut Entry,
    params: Params,
}

impl Ring {
    pub(super) fn new(flags: u32) -> io::Result<Ring> {
        let mut params = Params { flags, ..Params::default() };
        // SAFETY: the kernel reads and writes one Params.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, &raw mut params) } as i32;
        check(fd)?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if params.features & FEAT_SINGLE_MMAP == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let map = |offset| {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
            // SAFETY: a new mapping, where the kernel likes it; both areas of four entries fit a page.
            let area =
                unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd.as_raw_fd(), offset) };
            if area == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(area) }
        };
        let (ring, entries) = (map(0)?.cast(), map(OFF_SQES)?.cast());
        Ok(Ring { fd, ring, entries, params })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the offset is the kernel's, inside the mapping, which lasts as long as the process.
        unsafe { &*self.ring.add(offset as usize).cast::<AtomicU32>() }
    }

    /// Submits one request and returns its result.
    fn run(&self, entry: Entry) -> io::Result<i32> {
        let [_, tail, mask, _, _, _, array, ..] = self.params.sq_off;
        let slot = self.word(tail).load(Ordering::Relaxed) & self.word(mask).load(Ordering::Relaxed);
        // SAFETY: the slot is inside the mapping, and the kernel does not look at it before the tail moves.
        unsafe { self.entries.add(slot as usize).write(entry) };
        self.word(array + 4 * slot).store(slot, Ordering::Relaxed);
        self.word(tail).fetch_add(1, Ordering::Release);
        let flags = ENTER_GETEVENTS | if self.params.flags & SETUP_SQPOLL == 0 { 0 } else { ENTER_SQ_WAKEUP };
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<u8>());
        // SAFETY: numbers, and no signal mask.
        check(unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, flags, none, 0) } as i32)?;
        let [head, tail, mask, _, _, results, ..] = self.params.cq_off;
        while self.word(tail).load(Ordering::Acquire) == self.word(head).load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let slot = self.word(head).load(Ordering::Relaxed) & self.word(mask).load(Ordering::Relaxed);
        // struct io_uring_cqe: user data of 8 bytes, the result, flags.
        let result = self.word(results + 16 * slot + 8).load(Ordering::Relaxed).cast_signed();
        self.word(head).fetch_add(1, Ordering::Release);
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
    }

    fn socket(&self, kind: i32) -> io::Result<Socket> {
        let entry =
            Entry { opcode: OP_SOCKET, fd: libc::AF_INET, off: kind as u64, len: 0, ..Entry::default() };
        let fd = self.run(entry)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set_read_timeout(Some(socket::PATIENCE))?;
        Ok(socket)
    }

    pub(super) fn connect(&self, socket: &Socket, to: &SockAddr) -> io::Result<()> {
        let entry = Entry {
            opcode: OP_CONNECT,
            fd: socket.as_raw_fd(),
            off: to.len().into(),
            addr: to.as_ptr() as u64,
            ..Entry::default()
        };
        self.run(entry).map(drop)
    }
}

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let mut all = Vec::new();
    for (name, flags) in [("uring", 0), ("uring-polled", SETUP_SQPOLL)] {
        all.push(Attempt::new(format!("{name}-connect"), move |aim, what| {
            let ring = Ring::new(flags)?;
            let socket = ring.socket(libc::SOCK_STREAM)?;
            let _refused = socket.bind_device(Some(aim.vrf().as_bytes()));
            ring.connect(&socket, &victim().into())?;
            socket::talk(&socket, what)
        }));
        all.push(Attempt::new(format!("{name}-sendmsg"), move |aim, what| {
            let ring = Ring::new(flags)?;
            let socket = ring.socket(libc::SOCK_DGRAM)?;
            send_through(&ring, &socket, &aim.vrf(), victim(), what.as_bytes())?;
            socket::answer(&mut &socket)
        }));
    }
    all.push(Attempt::new("uring-connect-plain-socket", |aim, what| {
        let ring = Ring::new(0)?;
        let socket = socket::inet(Type::STREAM, victim())?;
        let _refused = socket.bind_device(Some(aim.vrf().as_bytes()));
        ring.connect(&socket, &victim().into())?;
        socket::talk(&socket, what)
    }));
    all
}

fn victim() -> SocketAddr {
    Aim::at(Ipv4Addr::LOCALHOST.into())
}

/// As [`socket::send_through`], for IPv4.
fn send_through(ring: &Ring, socket: &Socket, device: &str, to: SocketAddr, data: &[u8]) -> io::Result<()> {
    let none = libc::in_addr { s_addr: 0 };
    let index = socket::index(device)?.cast_signed();
    let info = libc::in_pktinfo { ipi_ifindex: index, ipi_spec_dst: none, ipi_addr: none };
    socket::with_message(to, data, libc::IPPROTO_IP, libc::IP_PKTINFO, info, |message| {
        let entry = Entry {
            opcode: OP_SENDMSG,
            fd: socket.as_raw_fd(),
            addr: std::ptr::from_ref(message) as u64,
            len: 1,
            ..Entry::default()
        };
        ring.run(entry).map(drop)
    })
}
