//! Abstract Unix sockets: they have a name, but no file whose mode decides who may reach them. A policed user reaches
//! their own, and those of users who are not policed. The owner is the real UID that made the socket, as with IP
//! sockets. A name is valid in its network namespace only. Sockets with a path or without a name are left alone.
//!
//! A refusal is ECONNREFUSED, as if nobody listened: programs expect that, and then try the socket with a path, if
//! there is one (libxcb, `_xcb_open`).

use crate::maps::NETNS;
use crate::process::{current_uid, is_policed, read};
use crate::verdict::answer;
use aya_ebpf::Global;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use uvn_wire::cgroup::{UnixSocket, Verdict};

/// Offsets in the kernel's structures of a Unix socket. The loader sets them.
#[unsafe(no_mangle)]
pub static UNIX: Global<UnixSocket> = Global::new(UnixSocket {
    net: 0,
    net_cookie: 0,
    socket: 0,
    sock: 0,
    file: 0,
    f_cred: 0,
    uid: 0,
    addr: 0,
    path: 0,
});

/// include/uapi/asm-generic/errno.h
const ECONNREFUSED: i32 = 111;

/// `connect` of a stream or seqpacket socket. Arguments, each a `struct sock`: the caller's, the listener's, and the
/// one that will be accepted.
#[lsm(hook = "unix_stream_connect")]
pub fn uvn_unix_connect(ctx: LsmContext) -> i32 {
    let listener = ctx.arg(1);
    refusal(reach(UNIX.load(), listener))
}

/// A datagram, or `connect` of a datagram socket. Arguments, each a `struct socket`: the sender's and the receiver's.
#[lsm(hook = "unix_may_send")]
pub fn uvn_unix_send(ctx: LsmContext) -> i32 {
    let unix = UNIX.load();
    match read(ctx.arg(1), unix.sock) {
        Some(receiver) => refusal(reach(unix, receiver)),
        None => 0,
    }
}

/// Checks that the current process may reach a `struct sock`. The kernel holds the lock under which it would lose its
/// `struct socket` (net/unix/af_unix.c, unix_release_sock).
#[inline(always)]
fn reach(unix: UnixSocket, sock: u64) -> Result<(), Verdict> {
    let uid = current_uid();
    if !is_policed(uid) || !is_abstract(unix, sock) {
        return Ok(());
    }
    match owner(unix, sock) {
        Some(owner) if owner != uid && is_policed(owner) && is_ours(unix, sock) => {
            Err(Verdict::AbstractSocket)
        }
        // Sockets of the kernel itself have no file.
        _ => Ok(()),
    }
}

#[inline(always)]
fn is_abstract(unix: UnixSocket, sock: u64) -> bool {
    let Some(address) = read::<u64>(sock, unix.addr) else { return false };
    // A socket without an address has no name.
    read::<u8>(address, unix.path) == Some(0)
}

/// The real UID of the process that made it.
#[inline(always)]
fn owner(unix: UnixSocket, sock: u64) -> Option<u32> {
    let socket: u64 = read(sock, unix.socket)?;
    let file: u64 = read(socket, unix.file)?;
    let credentials: u64 = read(file, unix.f_cred)?;
    read(credentials, unix.uid)
}

/// Whether it is in the loader's network namespace.
#[inline(always)]
pub fn is_ours(unix: UnixSocket, sock: u64) -> bool {
    let Some(net) = read::<u64>(sock, unix.net) else { return false };
    read::<u64>(net, unix.net_cookie) == Some(NETNS.load())
}

#[inline(always)]
fn refusal(reached: Result<(), Verdict>) -> i32 {
    if answer(reached) == 1 { 0 } else { -ECONNREFUSED }
}
