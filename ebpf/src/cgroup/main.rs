//! The programs that keep every socket of a policed user in their network, whatever process holds it.
//!
//! They are attached to the root of the cgroup tree, and act in the network namespace of the `uvnd` that loaded them; a
//! user's own namespaces are left alone. `sock_create` binds a socket to the user's VRF, marks it for the packet
//! filter, and stores its owner, which no process can change. The address hooks check that it is still bound. `egress`
//! checks by which device each packet leaves, since some options of a single message bypass the address hooks.
//! `ingress` checks that a packet which comes out of a network, or answers it, is for a socket of that network.
//!
//! - [`maps`]: what the programs know, and how it is looked up
//! - [`process`]: the current process's user and program
//! - [`socket`]: checks when a socket is made, bound, connected, or sends
//! - [`packet`]: checks on packets that leave by a device or arrive at a socket
//! - [`unix`], [`disconnect`], [`rdma`]: abstract Unix sockets, sockets that forget their device, RDMA devices
//! - [`verdict`]: answers and counters
#![no_std]
#![no_main]

mod disconnect;
mod maps;
mod packet;
mod process;
mod rdma;
mod socket;
mod unix;
mod verdict;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext};
use packet::{arrive, leave, owned, stayed};
use process::policed;
use socket::{address4, address6, bind, call_back, create, name_this_host, send};
use uvn_wire::cgroup::Verdict;
use verdict::{answer, note};

/// A new socket: binds it to the user's network, or refuses it.
#[cgroup_sock(sock_create)]
pub fn uvn_create(ctx: SockContext) -> i32 {
    let Some(uid) = policed(&ctx) else { return 1 };
    let created = create(ctx.sock, uid);
    if created == Err(Verdict::NoNetwork) {
        note(uid);
    }
    answer(created)
}

/// bind(2): checks the port, and that the socket is still in the user's network.
#[cgroup_sock_addr(bind4)]
pub fn uvn_bind4(ctx: SockAddrContext) -> i32 {
    let Some(uid) = policed(&ctx) else { return 1 };
    answer(bind(ctx.sock_addr, uid))
}

/// As [`uvn_bind4`].
#[cgroup_sock_addr(bind6)]
pub fn uvn_bind6(ctx: SockAddrContext) -> i32 {
    let Some(uid) = policed(&ctx) else { return 1 };
    answer(bind(ctx.sock_addr, uid))
}

/// connect(2), and TCP fast open: checks that the socket is still in the user's network.
#[cgroup_sock_addr(connect4)]
pub fn uvn_connect4(ctx: SockAddrContext) -> i32 {
    match policed(&ctx) {
        Some(uid) => {
            name_this_host(ctx.sock_addr);
            answer(send(ctx.sock_addr, uid, address4(ctx.sock_addr)))
        }
        None => answer(call_back(&ctx, address4(ctx.sock_addr))),
    }
}

/// As [`uvn_connect4`].
#[cgroup_sock_addr(connect6)]
pub fn uvn_connect6(ctx: SockAddrContext) -> i32 {
    match policed(&ctx) {
        Some(uid) => answer(send(ctx.sock_addr, uid, address6(ctx.sock_addr))),
        None => answer(call_back(&ctx, address6(ctx.sock_addr))),
    }
}

/// A datagram with a destination or ancillary data: checks that the socket is still in the user's network.
#[cgroup_sock_addr(sendmsg4)]
pub fn uvn_sendmsg4(ctx: SockAddrContext) -> i32 {
    let Some(uid) = policed(&ctx) else { return 1 };
    name_this_host(ctx.sock_addr);
    answer(send(ctx.sock_addr, uid, address4(ctx.sock_addr)))
}

/// As [`uvn_sendmsg4`].
#[cgroup_sock_addr(sendmsg6)]
pub fn uvn_sendmsg6(ctx: SockAddrContext) -> i32 {
    let Some(uid) = policed(&ctx) else { return 1 };
    answer(send(ctx.sock_addr, uid, address6(ctx.sock_addr)))
}

/// A packet about to leave through a device, before it is cut into fragments.
#[cgroup_skb(egress)]
pub fn uvn_egress(ctx: SkBuffContext) -> i32 {
    match owned(&ctx) {
        Ok(Some((socket, owner))) => answer(leave(&ctx, socket, owner)),
        Ok(None) => 1,
        Err(verdict) => answer(Err(verdict)),
    }
}

/// A packet for a socket.
#[cgroup_skb(ingress)]
pub fn uvn_ingress(ctx: SkBuffContext) -> i32 {
    if let Err(verdict) = stayed(&ctx) {
        return answer(Err(verdict));
    }
    match owned(&ctx) {
        Ok(Some((socket, owner))) => answer(arrive(&ctx, socket, owner)),
        Ok(None) => 1,
        Err(verdict) => answer(Err(verdict)),
    }
}

/// The licence, without which the kernel offers no GPL-only functions.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never linked: the programs have no way to panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
