//! The programs that keep every socket of a policed user in his network, whatever process holds it.
//!
//! They are attached to the root of the cgroup tree and act on the network namespace of the `uvnd` that loaded them;
//! a user's own namespaces are left alone. `sock_create` binds a socket to the user's VRF, marks it for the packet filter,
//! and notes in its storage whose it is, which no process can change; the address hooks check that it is still bound;
//! `egress` checks where each packet leaves, since some options of a single message bypass the former; `ingress` checks
//! that what comes out of a network, or answers it, is for a socket of that network.
#![no_std]
#![no_main]

mod disconnect;
mod rdma;
mod unix;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::bindings::{bpf_map_def, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_fullsock, bpf_sk_storage_get,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_uid_gid, bpf_probe_read_kernel};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext};
use aya_ebpf::{EbpfContext, Global};
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::{MaybeUninit, offset_of};
use uvn_wire::cgroup::{self, Device, Executable, Mark, Network, Owner, Range, Refused, Verdict, Way};
use uvn_wire::ethernet::ethertype;
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::tcp::Tcp;
use uvn_wire::udp::Udp;
use uvn_wire::xdp::Address;

/// The loader's network namespace. It sets this.
#[unsafe(no_mangle)]
static NETNS: Global<u64> = Global::new(0);

/// The namespace's tag in marks. The loader sets it.
#[unsafe(no_mangle)]
static TAG: Global<u32> = Global::new(0);

/// Not 0: the programs count what they would refuse, and refuse nothing. The loader sets it.
#[unsafe(no_mangle)]
static OBSERVE: Global<u32> = Global::new(0);

/// Whose slurmctld is. The loader sets it.
#[unsafe(no_mangle)]
static SLURM_USER: Global<u32> = Global::new(0);

/// The way from a process to its executable. The loader sets it.
#[unsafe(no_mangle)]
static WAY: Global<Way> = Global::new(Way { mm: 0, exe_file: 0, f_inode: 0, i_ino: 0, i_sb: 0, s_dev: 0 });

/// Policed UIDs. Belongs to the policy: each load of the programs has its own.
#[map]
static POLICED: Array<Range> = Array::with_max_entries(cgroup::RANGE_ENTRIES, 0);

/// The programs that Slurm's daemons call back. Belongs to the policy.
#[map]
static EXECUTABLES: HashMap<Executable, u8> = HashMap::with_max_entries(cgroup::EXECUTABLE_ENTRIES, 0);

/// What is special about a port. Belongs to the policy.
#[map]
static PORTS: Array<u8> = Array::with_max_entries(1 << 16, 0);

/// Destinations that are not off-subnet. Belongs to the policy, and does not change once the programs are attached.
#[map]
static DESTINATIONS: LpmTrie<Address, u8> = LpmTrie::with_max_entries(cgroup::DESTINATION_ENTRIES, 0);

/// Who was refused a socket for want of a network. Belongs to the policy.
#[map]
static REFUSED: LruHashMap<u32, Refused> = LruHashMap::with_max_entries(cgroup::REFUSED_ENTRIES, 0);

/// The number of each user's network. Pinned, as are the maps below: they outlive `uvnd`.
#[map]
static BOUND: HashMap<u32, u32> = HashMap::pinned(cgroup::NETWORK_ENTRIES, BPF_F_NO_PREALLOC);

/// Networks by their number.
#[map]
static NETWORKS: Array<Network> = Array::pinned(cgroup::NETWORK_ENTRIES, 0);

/// The VRF to which a VRF or endpoint belongs, by interface index.
#[map]
static DEVICES: HashMap<u32, u64> = HashMap::pinned(cgroup::DEVICE_ENTRIES, BPF_F_NO_PREALLOC);

/// Whose each socket is. `uvnd` makes it: the kernel wants to know the types of its values.
#[map]
static OWNERS: Owners = Owners(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_SK_STORAGE,
    key_size: size_of::<u32>() as u32,
    value_size: size_of::<Owner>() as u32,
    max_entries: 0,
    map_flags: BPF_F_NO_PREALLOC | BPF_F_CLONE,
    id: 0,
    pinning: PINNED_BY_NAME,
}));

/// A map of this kind is nowhere in aya but with BTF.
#[repr(transparent)]
struct Owners(UnsafeCell<bpf_map_def>);

// SAFETY: its address alone is used.
unsafe impl Sync for Owners {}

/// Sockets and packets by verdict.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Verdict::ALL.len() as u32, 0);

/// include/uapi/asm-generic/socket.h
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
/// aya_obj::maps::PinningType::ByName
const PINNED_BY_NAME: u32 = 1;
/// include/linux/udp.h, RFC 3828
const UDP_LITE: u32 = 136;
/// The interface index of `lo` in every network namespace (include/net/net_namespace.h, LOOPBACK_IFINDEX).
const LO: u32 = 1;

/// A new socket: into the user's network with it.
#[cgroup_sock(sock_create)]
pub fn uvn_create(ctx: SockContext) -> i32 {
    let Some(uid) = policed(&ctx) else { return 1 };
    let created = create(ctx.sock, uid);
    if created == Err(Verdict::NoNetwork) {
        note(uid);
    }
    answer(created)
}

/// A local address: still in his network?
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

/// A destination: still in his network? TCP fast open comes here, too.
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

/// A datagram with a destination or with ancillary data of its own: still in his network?
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

/// The current process's real UID, if it is policed in the socket's namespace.
#[inline(always)]
fn policed(ctx: &impl EbpfContext) -> Option<u32> {
    if !is_here(ctx) {
        return None;
    }
    let uid = current_uid();
    is_policed(uid).then_some(uid)
}

/// Whether the socket is in the loader's network namespace.
#[inline(always)]
fn is_here(ctx: &impl EbpfContext) -> bool {
    // SAFETY: any program that looks at sockets may ask.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == NETNS.load() }
}

/// The current process's real UID, in the initial user namespace.
#[inline(always)]
fn current_uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}

#[inline(always)]
fn is_policed(uid: u32) -> bool {
    for index in 0..cgroup::RANGE_ENTRIES {
        let Some(range) = POLICED.get(index) else { return false };
        if range.first > range.last {
            return false;
        }
        if (range.first..=range.last).contains(&uid) {
            return true;
        }
    }
    false
}

/// How often an element is looked up that another's has come in place of.
const LOOKS: u32 = 4;

/// The number of the user's network, and that as a whole.
#[inline(always)]
fn network_of(uid: u32) -> Result<(u32, Network), Verdict> {
    for _ in 0..LOOKS {
        let found = BOUND.get_ptr(uid).ok_or(Verdict::NoNetwork)?;
        // SAFETY: an element of the map, some user's.
        let number = unsafe { found.read_volatile() };
        let Some(place) = NETWORKS.get_ptr(number) else { continue };
        // SAFETY: an element of the array. The UID is read last: while it is his, so is what was read before.
        let (network, owner) = unsafe { (place.read_volatile(), (&raw const (*place).uid).read_volatile()) };
        if owner == uid {
            return Ok((number, network));
        }
    }
    Err(Verdict::NoNetwork)
}

/// The network with this number, if it is still this user's.
#[inline(always)]
fn network(owner: Owner) -> Option<&'static Network> {
    NETWORKS.get(owner.mark.number()).filter(|network| network.uid == owner.uid)
}

/// The VRF of a VRF or endpoint. 0 is nobody's.
#[inline(always)]
fn vrf_of(device: u32) -> Option<u32> {
    for _ in 0..LOOKS {
        // SAFETY: an element of the map, some device's, in one word.
        let found = Device(unsafe { DEVICES.get_ptr(device)?.read_volatile() });
        if found.index() == device {
            return Some(found.vrf());
        }
    }
    Some(0)
}

/// Whose a socket is; None: no policed user's.
#[inline(always)]
fn owner(socket: *mut bpf_sock) -> Option<&'static mut Owner> {
    // SAFETY: the verifier knows the socket, and that null is sorted out.
    unsafe {
        bpf_sk_storage_get(OWNERS.0.get().cast(), socket.cast(), core::ptr::null_mut(), 0)
            .cast::<Owner>()
            .as_mut()
    }
}

#[inline(always)]
fn is_port(port: u32, kind: u8) -> bool {
    PORTS.get(port).is_some_and(|kinds| kinds & kind != 0)
}

/// What an address is, if it is not off-subnet. Word by word: a prefix's length puts the address off the eight bytes by
/// which the verifier wants the stack aligned.
#[inline(always)]
fn special(Address([a, b, c, d]): Address) -> Option<u8> {
    let mut key = MaybeUninit::<Key<Address>>::uninit();
    for (index, word) in [u128::BITS, a, b, c, d].into_iter().enumerate() {
        // SAFETY: a key is five words: the length and the address.
        unsafe { key.as_mut_ptr().cast::<u32>().add(index).write_volatile(word) };
    }
    // SAFETY: all five words are written.
    DESTINATIONS.get(unsafe { key.assume_init_ref() }).copied()
}

#[inline(always)]
fn create(socket: *mut bpf_sock, uid: u32) -> Result<(), Verdict> {
    let (number, network) = network_of(uid)?;
    if observes() {
        count(Verdict::Bound);
        return Ok(());
    }
    // SAFETY: the verifier knows the context's fields, and which of them may be written.
    let mark = unsafe {
        match (*socket).protocol {
            // net/ipv4/af_inet.c puts the protocol in place of 0 before it asks us.
            TCP if is_called_back() => Mark::unbound(TAG.load(), number),
            TCP | UDP | UDP_LITE | ICMP | ICMPV6 => {
                (*socket).bound_dev_if = network.vrf;
                Mark::bound(TAG.load(), number)
            }
            _ => return Err(Verdict::Protocol),
        }
    };
    let mut owner = Owner { mark, uid, asked: 0 };
    // SAFETY: here the context is the socket; the kernel reads as much as a value of the map is long.
    let noted = unsafe {
        (*socket).mark = mark.0;
        let owner = (&raw mut owner).cast();
        bpf_sk_storage_get(
            OWNERS.0.get().cast(),
            socket.cast(),
            owner,
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    if noted.is_null() {
        return Err(Verdict::NoMemory);
    }
    count(Verdict::Bound);
    Ok(())
}

const TCP: u32 = protocol::TCP as u32;
/// include/linux/net.h
const STREAM: u32 = 1;
/// include/net/tcp_states.h
const LISTEN: u32 = 10;
const UDP: u32 = protocol::UDP as u32;
const ICMP: u32 = protocol::ICMP as u32;
const ICMPV6: u32 = protocol::ICMPV6 as u32;

/// Whether the process runs a program that Slurm's daemons call back.
#[inline(always)]
fn is_called_back() -> bool {
    let way = WAY.load();
    // Known when the program is loaded: without a way, nothing that reads the kernel's memory is part of it.
    way.mm != 0 && executable(way).is_some_and(|executable| EXECUTABLES.get_ptr(executable).is_some())
}

#[inline(always)]
fn executable(way: Way) -> Option<Executable> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let mm: u64 = read(task, way.mm)?;
    let file: u64 = read(mm, way.exe_file)?;
    let inode: u64 = read(file, way.f_inode)?;
    let file_system: u64 = read(inode, way.i_sb)?;
    Some(Executable { inode: read(inode, way.i_ino)?, device: read(file_system, way.s_dev)?, padding: 0 })
}

/// What stands at an offset from a kernel address. What is not there is an error of the helper, not a fault.
#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper takes any address.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

#[inline(always)]
fn bind(ctx: *mut bpf_sock_addr, uid: u32) -> Result<(), Verdict> {
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

/// What listens on a `srun` port is outside of every network: of those who are, Slurm's daemons alone may call it. Of any
/// protocol with connections, as MPTCP.
#[inline(always)]
fn call_back(ctx: &SockAddrContext, destination: Address) -> Result<(), Verdict> {
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
fn send(ctx: *mut bpf_sock_addr, uid: u32, destination: Address) -> Result<(), Verdict> {
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
        // No user made it: a file system's own, in the process that happens to read, or inherited.
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

/// Whether the socket is somebody's, and not bound yet.
#[inline(always)]
fn is_outside(socket: *mut bpf_sock, owner: Option<&Owner>) -> bool {
    // SAFETY: the verifier knows a socket's fields.
    let device = unsafe { (*socket).bound_dev_if };
    device == 0 && owner.is_some_and(|owner| owner.mark.is_unbound())
}

/// Lets the socket go on if it is in `network`, and puts it there if it is ours and in none: at first use, or after
/// connect to AF_UNSPEC (net/ipv4/udp.c, __udp_disconnect).
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

/// The packet's socket and whose it is, if it is a policed user's. An answer to a connection request has its listener.
#[inline(always)]
fn owned(ctx: &SkBuffContext) -> Result<Option<(*mut bpf_sock, Owner)>, Verdict> {
    // SAFETY: the verifier knows the context's fields, and sees that null is sorted out.
    let socket = unsafe {
        let any = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if any.is_null() {
            return Ok(None);
        }
        bpf_sk_fullsock(any)
    };
    if socket.is_null() {
        return Ok(None);
    }
    // SAFETY: a full socket, not null.
    let mark = Mark(unsafe { (*socket).mark });
    match owner(socket) {
        Some(owner) if owner.mark == mark => Ok(Some((socket, *owner))),
        // The packet filter goes by the mark.
        Some(_) => Err(Verdict::Mark),
        // The kernel's own, which answers for one that is closed (net/ipv4/ip_output.c, ip_send_unicast_reply).
        None if mark.is_ours(TAG.load()) => {
            let uid = NETWORKS.get(mark.number()).ok_or(Verdict::Outside)?.uid;
            Ok(Some((socket, Owner { mark, uid, asked: 0 })))
        }
        None => Ok(None),
    }
}

#[inline(always)]
fn leave(ctx: &SkBuffContext, socket: *mut bpf_sock, owner: Owner) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the fields of both.
    let (device, ethertype, kind) =
        unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).protocol, (*socket).protocol) };
    let through = vrf_of(device);
    if owner.mark.is_unbound() {
        return match through {
            None if is_answering(socket) || is_resetting(ctx, socket, ethertype)? => Ok(()),
            _ => Err(Verdict::Outside),
        };
    }
    let network = network(owner).ok_or(Verdict::Outside)?;
    if through.is_some_and(|vrf| vrf != network.vrf) {
        return Err(Verdict::OtherNetwork);
    }
    // Inside the network only UDP has more to be asked.
    if through.is_some() && kind != UDP {
        return Ok(());
    }
    let packet = Packet::of(ctx, u16::from_be(ethertype as u16)).ok_or(Verdict::Options)?;
    if kind == UDP {
        // Behind an extension header could be any port.
        if u32::from(packet.protocol) != UDP {
            return Err(Verdict::Options);
        }
        let port = load(ctx, packet.length + offset_of!(Udp, destination_port))?;
        if is_port(u32::from(u16::from_be(port)), cgroup::PORT_VXLAN) {
            return Err(Verdict::Vxlan);
        }
    }
    if through.is_some() {
        return Ok(());
    }
    // A message may have a mark of its own, by which the packet filter chooses whom the answers go to.
    // SAFETY: the verifier knows the context's fields.
    if unsafe { (*ctx.skb.skb).mark } != owner.mark.0 {
        return Err(Verdict::Mark);
    }
    packet.leave_network(socket, network, device, kind)?;
    note_question(socket, kind);
    Ok(())
}

/// Has a datagram socket that anybody may send to answered.
#[inline(always)]
fn note_question(socket: *mut bpf_sock, kind: u32) {
    if kind != TCP
        && let Some(owner) = owner(socket)
        && owner.asked == 0
    {
        owner.asked = 1;
    }
}

/// Whether a socket outside of every network listens, or has accepted, on a `srun` port.
#[inline(always)]
fn is_answering(socket: *mut bpf_sock) -> bool {
    // SAFETY: the verifier knows a socket's fields.
    let (device, protocol, port) =
        unsafe { ((*socket).bound_dev_if, (*socket).protocol, (*socket).src_port) };
    device == 0 && protocol == TCP && is_port(port, cgroup::PORT_SRUN)
}

/// Whether it did until now: its last packet, a reset, goes out when it has given up its port (net/ipv4/tcp.c, tcp_close and
/// tcp_disconnect after tcp_set_state). Only the packet still has that.
#[inline(always)]
fn is_resetting(ctx: &SkBuffContext, socket: *mut bpf_sock, ethertype: u32) -> Result<bool, Verdict> {
    // SAFETY: the verifier knows a socket's fields.
    let (device, kind, protocol, port) =
        unsafe { ((*socket).bound_dev_if, (*socket).type_, (*socket).protocol, (*socket).src_port) };
    if device != 0 || kind != STREAM || protocol != TCP || port != 0 {
        return Ok(false);
    }
    let packet = Packet::of(ctx, u16::from_be(ethertype as u16)).ok_or(Verdict::Options)?;
    let port = load(ctx, packet.length + offset_of!(Tcp, source_port))?;
    Ok(u32::from(packet.protocol) == TCP && is_port(u32::from(u16::from_be(port)), cgroup::PORT_SRUN))
}

/// Whether a packet with the mark of a socket of this node comes out of that one's network. Of broadcast and multicast
/// the kernel delivers a copy to this node that belongs to no socket, past `egress` (net/ipv4/ip_output.c,
/// ip_mc_output); the mark is on it still. What answers from off-subnet has the mark of what it answers, too.
#[inline(always)]
fn stayed(ctx: &SkBuffContext) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the context's fields.
    let (sender, device) = unsafe { (Mark((*ctx.skb.skb).mark), (*ctx.skb.skb).ifindex) };
    if !sender.is_ours(TAG.load()) && !sender.is_answer(TAG.load()) {
        return Ok(());
    }
    let network = NETWORKS.get(sender.number()).ok_or(Verdict::OtherNetwork)?;
    match vrf_of(device) {
        Some(vrf) if vrf == network.vrf => Ok(()),
        // The answer of a listener outside of every network.
        None if sender.is_unbound() => Ok(()),
        _ => Err(Verdict::OtherNetwork),
    }
}

#[inline(always)]
fn arrive(ctx: &SkBuffContext, socket: *mut bpf_sock, owner: Owner) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the fields of both.
    let (from, mark, device) =
        unsafe { ((*ctx.skb.skb).ifindex, Mark((*ctx.skb.skb).mark), (*socket).bound_dev_if) };
    if owner.mark.is_unbound() {
        // Slurm's daemons are in no network: what comes out of one is a user's.
        return match vrf_of(from) {
            None if is_answering(socket) => Ok(()),
            _ => Err(Verdict::Unwanted),
        };
    }
    let network = network(owner).ok_or(Verdict::Unwanted)?;
    if mark.is_answer(TAG.load()) && !has_asked(socket, owner) {
        return Err(Verdict::Unwanted);
    }
    if device != 0 && (device == network.vrf || vrf_of(device) == Some(network.vrf)) {
        Ok(())
    } else {
        Err(Verdict::Unwanted)
    }
}

/// Whether a socket can have sent what is answered. The tracker has a flow as soon as a packet with the network's mark
/// comes to it, and `egress` refuses a wrong mark only then: nothing that listens is reached by way of such a flow.
#[inline(always)]
fn has_asked(socket: *mut bpf_sock, owner: Owner) -> bool {
    // SAFETY: the verifier knows a socket's fields.
    let (protocol, state, peer) = unsafe { ((*socket).protocol, (*socket).state, (*socket).dst_port) };
    match protocol {
        TCP => state != LISTEN,
        _ => peer != 0 || owner.asked != 0,
    }
}

/// What counts of a packet's network header.
struct Packet {
    destination: Address,
    /// What follows the header.
    protocol: u8,
    /// Header length, IPv4 options included.
    length: usize,
    /// Whether IPv4 options are there.
    options: bool,
}

impl Packet {
    #[inline(always)]
    fn of(ctx: &SkBuffContext, ethertype: u16) -> Option<Packet> {
        // Field by field: a header is not aligned, and the stack takes aligned accesses only.
        match ethertype {
            ethertype::IPV4 => {
                // RFC 791 section 3.1: the low half is the header's length in words.
                let length = usize::from(load::<u8>(ctx, 0).ok()? & 0xf) * 4;
                Some(Packet {
                    destination: Address::mapped(load(ctx, offset_of!(Ipv4, destination)).ok()?),
                    protocol: load(ctx, offset_of!(Ipv4, protocol)).ok()?,
                    length,
                    options: length != ipv4::HEADER,
                })
            }
            ethertype::IPV6 => Some(Packet {
                destination: Address(load(ctx, offset_of!(Ipv6, destination)).ok()?),
                protocol: load(ctx, offset_of!(Ipv6, next_header)).ok()?,
                length: ipv6::HEADER,
                options: false,
            }),
            _ => None,
        }
    }

    /// Whether the packet may leave through a device that belongs to no network.
    #[inline(always)]
    fn leave_network(
        &self,
        socket: *mut bpf_sock,
        network: &Network,
        device: u32,
        kind: u32,
    ) -> Result<(), Verdict> {
        // SAFETY: the verifier knows a socket's fields.
        let bound = unsafe { (*socket).bound_dev_if };
        if network.vrf == 0 || vrf_of(bound) != Some(network.vrf) {
            return Err(Verdict::Outside);
        }
        if device == LO {
            return Err(Verdict::Near);
        }
        // A source route or an IPv6 routing header has another destination in the end.
        if self.options || u32::from(self.protocol) != kind {
            return Err(Verdict::Options);
        }
        match special(self.destination) {
            Some(cgroup::DESTINATION_HOST) => Ok(()),
            Some(_) => Err(Verdict::Near),
            None if network.off_subnet != 0 => Ok(()),
            None => Err(Verdict::OffSubnet),
        }
    }
}

#[inline(always)]
fn load<T>(ctx: &SkBuffContext, offset: usize) -> Result<T, Verdict> {
    ctx.load(offset).map_err(|_| Verdict::Options)
}

/// 0.0.0.0 is this host: the socket's own address, or loopback. The kernel would take the way there outside of the VRF
/// (net/ipv4/route.c, ip_route_output_key_hash_rcu).
#[inline(always)]
fn name_this_host(ctx: *mut bpf_sock_addr) {
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
fn address4(ctx: *mut bpf_sock_addr) -> Address {
    // SAFETY: the verifier knows the context's fields.
    Address::mapped(unsafe { (*ctx).user_ip4 })
}

#[inline(always)]
fn address6(ctx: *mut bpf_sock_addr) -> Address {
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

/// Whether sockets are left as they are.
#[inline(always)]
fn observes() -> bool {
    OBSERVE.load() != 0
}

/// Remembers who was refused a socket, for the log: best effort.
#[inline(always)]
fn note(uid: u32) {
    let program = bpf_get_current_comm().unwrap_or_default();
    match REFUSED.get_ptr_mut(&uid) {
        // SAFETY: some user's element; a count that goes to another is a small lie in a log.
        Some(refused) => unsafe {
            (*refused).count += 1;
            (*refused).program = program;
        },
        None => drop(REFUSED.insert(&uid, &Refused { count: 1, program }, 0)),
    }
}

/// 1: go on. 0: EPERM, or drop.
#[inline(always)]
fn answer(result: Result<(), Verdict>) -> i32 {
    match result {
        Ok(()) => 1,
        Err(verdict) => {
            count(verdict);
            i32::from(observes())
        }
    }
}

#[inline(always)]
fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: the slot of this CPU; an increment lost to an interrupt is a small lie in a statistic.
        unsafe { *counter += 1 };
    }
}

/// What the kernel asks before it lends GPL-only functions.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never linked: the programs have no way to panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
