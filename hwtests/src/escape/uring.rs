//! By io_uring (linux/io_uring.h): socket, connect and sendmsg without a system call of that name.
#![allow(unsafe_code, reason = "io_uring by hand")]

use super::socket::{self, check, into_vrf, victim};
use super::{Aim, Attempt};
use socket2::{SockAddr, Socket, Type};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) const SETUP_SQPOLL: u32 = 1 << 1;
const FEAT_SINGLE_MMAP: u32 = 1;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
/// Linux 5.11
const ENTER_EXT_ARG: u32 = 1 << 3;
const OFF_SQES: i64 = 0x1000_0000;
const OP_SENDMSG: u8 = 9;
const OP_CONNECT: u8 = 16;
const OP_SEND: u8 = 26;
const OP_RECV: u8 = 27;
const OP_SOCKET: u8 = 45;
const OP_COMMAND: u8 = 46;
const OP_SEND_ZC: u8 = 47;
const OP_SENDMSG_ZC: u8 = 48;
/// A table's entry instead of a descriptor; not before a worker has taken it.
const FIXED: u8 = 1;
const ASYNC: u8 = 1 << 4;
const REGISTER_FILES: u32 = 2;
const REGISTER_PERSONALITY: u32 = 9;
/// Of OP_COMMAND, since Linux 6.7.
const SOCKET_SETSOCKOPT: u64 = 3;

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
    buffer: u16,
    personality: u16,
    /// Where a new descriptor goes in the table; with OP_SEND_ZC, how long the address at `off` is; with OP_COMMAND, the value.
    file: u32,
    more: u64,
    rest: u64,
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
        let wakes = if self.params.flags & SETUP_SQPOLL == 0 { 0 } else { ENTER_SQ_WAKEUP };
        let flags = ENTER_GETEVENTS | ENTER_EXT_ARG | wakes;
        // struct __kernel_timespec, struct io_uring_getevents_arg: no signal mask, and how long to wait.
        let patience = [socket::PATIENCE.as_secs(), socket::PATIENCE.subsec_nanos().into()];
        let waiting = [0, 0, patience.as_ptr() as u64];
        let (fd, length) = (self.fd.as_raw_fd(), size_of_val(&waiting));
        // SAFETY: numbers, and an argument as long as said, which points to a time.
        check(unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, flags, waiting.as_ptr(), length) }
            as i32)?;
        let [head, tail, mask, _, _, results, ..] = self.params.cq_off;
        if self.word(tail).load(Ordering::Acquire) == self.word(head).load(Ordering::Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let slot = self.word(head).load(Ordering::Relaxed) & self.word(mask).load(Ordering::Relaxed);
        // struct io_uring_cqe: user data of 8 bytes, the result, flags.
        let result = self.word(results + 16 * slot + 8).load(Ordering::Relaxed).cast_signed();
        self.word(head).fetch_add(1, Ordering::Release);
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
    }

    fn register(&self, what: u32, argument: *const i32, count: u32) -> io::Result<i32> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel reads `count` numbers.
        let result = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, argument, count) } as i32;
        check(result).map(|()| result)
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
        self.run(Entry { fd: socket.as_raw_fd(), ..connecting(to) }).map(drop)
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
            into_vrf(aim, &socket);
            ring.connect(&socket, &victim().into())?;
            socket::talk(&socket, what)
        }));
        all.push(Attempt::new(format!("{name}-sendmsg"), move |aim, what| {
            let ring = Ring::new(flags)?;
            let socket = ring.socket(libc::SOCK_DGRAM)?;
            let entry = Entry { opcode: OP_SENDMSG, ..Entry::default() };
            send_through(&ring, &socket, &aim.vrf(), what.as_bytes(), entry)?;
            socket::answer(&mut &socket)
        }));
    }
    all.extend(sending());
    all.extend(connections());
    all.push(Attempt::new("uring-connect-plain-socket", |aim, what| {
        let ring = Ring::new(0)?;
        let socket = socket::inet(Type::STREAM, victim())?;
        into_vrf(aim, &socket);
        ring.connect(&socket, &victim().into())?;
        socket::talk(&socket, what)
    }));
    all
}

/// Datagrams without a copy, by a worker, and after the ring has named the device.
fn sending() -> Vec<Attempt> {
    vec![
        Attempt::new("uring-sendmsg-zc", |aim, what| {
            let (ring, socket) = (Ring::new(0)?, socket::inet(Type::DGRAM, victim())?);
            let entry = Entry { opcode: OP_SENDMSG_ZC, ..Entry::default() };
            send_through(&ring, &socket, &aim.vrf(), what.as_bytes(), entry)?;
            socket::answer(&mut &socket)
        }),
        Attempt::new("uring-worker-sendmsg", |aim, what| {
            let (ring, socket) = (Ring::new(0)?, socket::inet(Type::DGRAM, victim())?);
            let entry = Entry { opcode: OP_SENDMSG, flags: ASYNC, ..Entry::default() };
            send_through(&ring, &socket, &aim.vrf(), what.as_bytes(), entry)?;
            socket::answer(&mut &socket)
        }),
        Attempt::new("uring-send-zc", |aim, what| {
            let (ring, socket) = (Ring::new(0)?, socket::inet(Type::DGRAM, victim())?);
            into_vrf(aim, &socket);
            let to = SockAddr::from(victim());
            ring.run(Entry {
                opcode: OP_SEND_ZC,
                fd: socket.as_raw_fd(),
                off: to.as_ptr() as u64,
                addr: what.as_ptr() as u64,
                len: what.len() as u32,
                file: to.len(),
                ..Entry::default()
            })?;
            socket::answer(&mut &socket)
        }),
        Attempt::new("uring-bindtodevice", |aim, what| {
            let (ring, socket) = (Ring::new(0)?, socket::inet(Type::DGRAM, victim())?);
            socket::disconnect(&socket)?;
            let device = aim.vrf();
            ring.run(Entry {
                opcode: OP_COMMAND,
                fd: socket.as_raw_fd(),
                off: SOCKET_SETSOCKOPT,
                addr: libc::SOL_SOCKET as u64 | (libc::SO_BINDTODEVICE as u64) << 32,
                file: device.len() as u32,
                more: device.as_ptr() as u64,
                ..Entry::default()
            })?;
            socket::ask_datagram(&socket, victim(), what)
        }),
    ]
}

/// Connections by a worker, with the credentials of before, and of sockets that are no descriptors of the process.
fn connections() -> Vec<Attempt> {
    vec![
        Attempt::new("uring-worker-connect", |aim, what| {
            let (ring, socket) = (Ring::new(0)?, socket::inet(Type::STREAM, victim())?);
            into_vrf(aim, &socket);
            let entry = Entry { fd: socket.as_raw_fd(), flags: ASYNC, ..connecting(&victim().into()) };
            ring.run(entry)?;
            socket::talk(&socket, what)
        }),
        Attempt::new("uring-personality-connect", |aim, what| {
            let ring = Ring::new(0)?;
            let personality = ring.register(REGISTER_PERSONALITY, std::ptr::null(), 0)? as u16;
            super::process::as_subuid()?;
            let kind = libc::SOCK_STREAM as u64;
            let entry =
                Entry { opcode: OP_SOCKET, fd: libc::AF_INET, off: kind, personality, ..Entry::default() };
            // SAFETY: the descriptor is new and nobody else's.
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(ring.run(entry)?) });
            socket.set_read_timeout(Some(socket::PATIENCE))?;
            into_vrf(aim, &socket);
            let to = SockAddr::from(victim());
            ring.run(Entry { fd: socket.as_raw_fd(), personality, ..connecting(&to) })?;
            socket::talk(&socket, what)
        }),
        Attempt::new("uring-direct-connect", |aim, what| {
            let ring = Ring::new(0)?;
            ring.register(REGISTER_FILES, [-1].as_ptr(), 1)?;
            let kind = libc::SOCK_STREAM as u64;
            // Into the first place, which counts from 1 here.
            ring.run(Entry { opcode: OP_SOCKET, fd: libc::AF_INET, off: kind, file: 1, ..Entry::default() })?;
            let to = SockAddr::from(Aim::at(aim.host.into()));
            ring.run(Entry { flags: FIXED, ..connecting(&to) })?;
            let talk = |opcode, at: *const u8, length: usize| {
                ring.run(Entry {
                    opcode,
                    flags: FIXED,
                    addr: at as u64,
                    len: length as u32,
                    ..Entry::default()
                })
            };
            talk(OP_SEND, what.as_ptr(), what.len())?;
            let answer = [0_u8; 512];
            let length = talk(OP_RECV, answer.as_ptr(), answer.len())? as usize;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        }),
    ]
}

/// Without the socket.
fn connecting(to: &SockAddr) -> Entry {
    Entry { opcode: OP_CONNECT, off: to.len().into(), addr: to.as_ptr() as u64, ..Entry::default() }
}

/// As [`socket::send_through`], for IPv4.
fn send_through(ring: &Ring, socket: &Socket, device: &str, data: &[u8], entry: Entry) -> io::Result<()> {
    let none = libc::in_addr { s_addr: 0 };
    let index = socket::index(device)?.cast_signed();
    let info = libc::in_pktinfo { ipi_ifindex: index, ipi_spec_dst: none, ipi_addr: none };
    socket::with_message(victim(), data, libc::IPPROTO_IP, libc::IP_PKTINFO, info, |message| {
        let addr = std::ptr::from_ref(message) as u64;
        ring.run(Entry { fd: socket.as_raw_fd(), addr, len: 1, ..entry }).map(drop)
    })
}
