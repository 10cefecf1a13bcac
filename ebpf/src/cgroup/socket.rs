//! Checks when a socket is made, bound, connected, or sends.

use crate::maps::{SLURM_USER, TAG, is_port, network_of, note_owner, owner, special, vrf_of};
use crate::process::{current_uid, is_called_back, is_here, observes};
use crate::verdict::count;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;
use uvn_wire::cgroup::{self, Mark, Network, Owner, Verdict};
use uvn_wire::ipv4::protocol;
use uvn_wire::xdp::Address;

/// include/uapi/asm-generic/socket.h
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
/// include/linux/net.h
pub(crate) const STREAM: u32 = 1;
pub(crate) const TCP: u32 = protocol::TCP as u32;
pub(crate) const UDP: u32 = protocol::UDP as u32;
/// include/linux/udp.h, RFC 3828
pub(crate) const UDP_LITE: u32 = 136;
pub(crate) const ICMP: u32 = protocol::ICMP as u32;
pub(crate) const ICMPV6: u32 = protocol::ICMPV6 as u32;

#[inline(always)]
pub(crate) fn create(socket: *mut bpf_sock, uid: u32) -> Result<(), Verdict> {
    let (number, network) = network_of(uid)?;
    if observes() {
        count(Verdict::Bound);
        return Ok(());
    }
    // SAFETY: the verifier knows the context's fields, and which of them may be written.
    let mark = unsafe {
        match (*socket).protocol {
            // net/ipv4/af_inet.c replaces protocol 0 before it runs this program.
            TCP if is_called_back() => Mark::unbound(TAG.load(), number),
            TCP | UDP | UDP_LITE | ICMP | ICMPV6 => {
                (*socket).bound_dev_if = network.vrf;
                Mark::bound(TAG.load(), number)
            }
            _ => return Err(Verdict::Protocol),
        }
    };
    // SAFETY: the verifier knows the context's fields.
    unsafe { (*socket).mark = mark.0 };
    if !note_owner(socket, &mut Owner { mark, uid, asked: 0 }) {
        return Err(Verdict::NoMemory);
    }
    count(Verdict::Bound);
    Ok(())
}

#[inline(always)]
pub(crate) fn bind(ctx: *mut bpf_sock_addr, uid: u32) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the context's fields; the socket is there.
    let (port, protocol, socket) = unsafe { ((*ctx).user_port, (*ctx).protocol, (*ctx).__bindgen_anon_1.sk) };
    let port = u32::from(u16::from_be(port as u16));
    if is_port(port, cgroup::PORT_SERVICE) {
        return Err(Verdict::ServicePort);
    }
    if observes() {
        return Ok(());
    }
    let (number, network) = network_of(uid)?;
    let owner = owner(socket);
    if is_port(port, cgroup::PORT_SRUN) && protocol == TCP {
        return if is_outside(socket, owner.as_deref()) { Ok(()) } else { Err(Verdict::SrunPort) };
    }
    keep(ctx, socket, number, &network, owner)
}

/// Checks a connect of a process that is not policed: a listener on a `srun` port is outside of every network, and only
/// root and SlurmUser may call it. By any protocol with connections, such as MPTCP.
#[inline(always)]
pub(crate) fn call_back(ctx: &SockAddrContext, destination: Address) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the context's fields.
    let (port, kind) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).type_) };
    let uid = current_uid();
    if uid != 0
        && uid != SLURM_USER.load()
        && kind == STREAM
        && is_port(u32::from(u16::from_be(port as u16)), cgroup::PORT_SRUN)
        && is_here(ctx)
        && special(destination).is_some()
    {
        return Err(Verdict::SrunPort);
    }
    Ok(())
}

#[inline(always)]
pub(crate) fn send(ctx: *mut bpf_sock_addr, uid: u32, destination: Address) -> Result<(), Verdict> {
    if observes() {
        return Ok(());
    }
    let (number, network) = network_of(uid)?;
    // SAFETY: the verifier knows the context's fields; the socket is there.
    let socket = unsafe { (*ctx).__bindgen_anon_1.sk };
    // SAFETY: likewise.
    let (device, port) = unsafe { ((*socket).bound_dev_if, (*socket).src_port) };
    let owner = owner(socket);
    if device == 0 && owner.is_none() {
        // The socket is not the user's own: a file system's, used in the process that reads a file, or an inherited
        // one.
        return match special(destination) {
            Some(cgroup::DESTINATION_HOST) => Ok(()),
            _ => Err(Verdict::Device),
        };
    }
    if is_outside(socket, owner.as_deref()) && is_port(port, cgroup::PORT_SRUN) {
        return Err(Verdict::Released);
    }
    keep(ctx, socket, number, &network, owner)
}

/// Whether the socket is a policed user's, and not bound yet.
#[inline(always)]
fn is_outside(socket: *mut bpf_sock, owner: Option<&Owner>) -> bool {
    // SAFETY: the verifier knows a socket's fields.
    let device = unsafe { (*socket).bound_dev_if };
    device == 0 && owner.is_some_and(|owner| owner.mark.is_unbound())
}

/// Accepts the socket if it is in `network`, and binds it there if it is the user's and in none: at its first use, or
/// after connect to AF_UNSPEC (net/ipv4/udp.c, __udp_disconnect).
#[inline(always)]
fn keep(
    ctx: *mut bpf_sock_addr,
    socket: *mut bpf_sock,
    number: u32,
    network: &Network,
    owner: Option<&mut Owner>,
) -> Result<(), Verdict> {
    // SAFETY: the verifier knows a socket's fields.
    let device = unsafe { (*socket).bound_dev_if };
    let owner = owner.filter(|owner| owner.uid == network.uid && owner.mark.number() == number);
    if device == 0 {
        if owner.is_none() {
            return Err(Verdict::Device);
        }
        set_option(ctx, SO_BINDTODEVICE, network.name.as_ptr().cast(), network.name.len())?;
    } else if device != network.vrf && vrf_of(device) != Some(network.vrf) {
        return Err(Verdict::Device);
    }
    if let Some(owner) = owner
        && owner.mark.is_unbound()
    {
        let bound = Mark::bound(TAG.load(), number);
        set_option(ctx, SO_MARK, (&raw const bound.0).cast(), size_of::<u32>())?;
        owner.mark = bound;
    }
    Ok(())
}

#[inline(always)]
fn set_option(
    ctx: *mut bpf_sock_addr,
    name: i32,
    value: *const c_void,
    length: usize,
) -> Result<(), Verdict> {
    // SAFETY: the kernel reads `length` bytes of the value.
    match unsafe { bpf_setsockopt(ctx.cast(), SOL_SOCKET, name, value.cast_mut(), length as i32) } {
        0 => Ok(()),
        _ => Err(Verdict::Device),
    }
}

/// Replaces the destination 0.0.0.0, which means this host, by the socket's own address or loopback: the kernel would
/// look up 0.0.0.0 outside of the VRF (net/ipv4/route.c, ip_route_output_key_hash_rcu).
#[inline(always)]
pub(crate) fn name_this_host(ctx: *mut bpf_sock_addr) {
    const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);

    // SAFETY: the verifier knows the context's fields; the socket is there.
    unsafe {
        if (*ctx).user_ip4 == 0 {
            let own = (*(*ctx).__bindgen_anon_1.sk).src_ip4;
            (*ctx).user_ip4 = if own == 0 { LOOPBACK } else { own };
        }
    }
}

#[inline(always)]
pub(crate) fn address4(ctx: *mut bpf_sock_addr) -> Address {
    // SAFETY: the verifier knows the context's fields.
    Address::mapped(unsafe { (*ctx).user_ip4 })
}

#[inline(always)]
pub(crate) fn address6(ctx: *mut bpf_sock_addr) -> Address {
    // SAFETY: the verifier knows the context's fields, each read by itself: volatile, or LLVM reads a copy of all.
    Address(unsafe {
        [
            (&raw const (*ctx).user_ip6[0]).read_volatile(),
            (&raw const (*ctx).user_ip6[1]).read_volatile(),
            (&raw const (*ctx).user_ip6[2]).read_volatile(),
            (&raw const (*ctx).user_ip6[3]).read_volatile(),
        ]
    })
}
