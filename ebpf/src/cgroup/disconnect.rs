//! Keeps datagram sockets from losing their device. connect(2) to AF_UNSPEC takes the device from a socket, but leaves
//! it a port that was chosen by bind(2) (net/ipv4/udp.c, `__udp_disconnect`). Without a device the socket would be in
//! the way of every network: the kernel prefers a socket with an address over others' without one, keeps others from
//! the port, and lets the socket's owner name any device then. So it is refused, unless the kernel chose the port: then
//! the socket loses that, too.

use crate::process::{current_uid, is_policed, read};
use crate::unix::{UNIX, is_ours};
use crate::verdict::answer;
use aya_ebpf::Global;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use uvn_wire::cgroup::{Datagram, Verdict};

/// Offsets in the kernel's structures of a datagram socket. The loader sets them.
#[unsafe(no_mangle)]
static DATAGRAM: Global<Datagram> =
    Global::new(Datagram { kind: 0, sock: 0, family: 0, locks: 0, port_lock: 0 });

/// include/linux/net.h, include/linux/socket.h
const SOCK_DGRAM: u16 = 2;
const AF_UNSPEC: u16 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// include/uapi/asm-generic/errno-base.h
const EPERM: i32 = 1;

/// `connect`. Arguments: the `struct socket`, and the kernel's copy of the address.
#[lsm(hook = "socket_connect")]
pub fn uvn_disconnect(ctx: LsmContext) -> i32 {
    let (socket, address): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    if read(address, 0) != Some(AF_UNSPEC)
        || !is_policed(current_uid())
        || !is_placed(DATAGRAM.load(), socket)
    {
        return 0;
    }
    if answer(Err(Verdict::Device)) == 1 { 0 } else { -EPERM }
}

/// Whether it is a datagram socket of IP, in the loader's network namespace, with a port from bind(2).
#[inline(always)]
fn is_placed(datagram: Datagram, socket: u64) -> bool {
    let Some(sock) = read::<u64>(socket, datagram.sock) else { return false };
    let locks = read::<u8>(sock, datagram.locks).unwrap_or(0);
    read(socket, datagram.kind) == Some(SOCK_DGRAM)
        && matches!(read(sock, datagram.family), Some(AF_INET | AF_INET6))
        && u32::from(locks) & datagram.port_lock != 0
        && is_ours(UNIX.load(), sock)
}
