//! Checks on packets that leave by a device or arrive at a socket.

use crate::maps::{NETWORKS, TAG, is_port, network, owner, special, vrf_of};
use crate::socket::{STREAM, TCP, UDP};
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::SkBuffContext;
use core::mem::offset_of;
use uvn_wire::cgroup::{self, Mark, Network, Owner, Verdict};
use uvn_wire::ethernet::ethertype;
use uvn_wire::ipv4::{self, Ipv4};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::tcp::Tcp;
use uvn_wire::udp::Udp;
use uvn_wire::xdp::Address;

/// include/net/tcp_states.h
const LISTEN: u32 = 10;
/// The interface index of `lo` in every network namespace (include/net/net_namespace.h, LOOPBACK_IFINDEX).
const LO: u32 = 1;

/// The packet's socket and its owner; None: it is no policed user's. The answer to a connection request has the
/// listener as its socket.
#[inline(always)]
pub(crate) fn owned(ctx: &SkBuffContext) -> Result<Option<(*mut bpf_sock, Owner)>, Verdict> {
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
        // The packet filter decides by the mark, so a wrong one is refused.
        Some(_) => Err(Verdict::Mark),
        // The kernel's own socket, which answers for a closed one (net/ipv4/ip_output.c, ip_send_unicast_reply).
        None if mark.is_ours(TAG.load()) => {
            let uid = NETWORKS.get(mark.number()).ok_or(Verdict::Outside)?.uid;
            Ok(Some((socket, Owner { mark, uid, asked: 0 })))
        }
        None => Ok(None),
    }
}

#[inline(always)]
pub(crate) fn leave(ctx: &SkBuffContext, socket: *mut bpf_sock, owner: Owner) -> Result<(), Verdict> {
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
    // Inside the network only UDP is checked further.
    if through.is_some() && kind != UDP {
        return Ok(());
    }
    let packet = Packet::of(ctx, u16::from_be(ethertype as u16)).ok_or(Verdict::Options)?;
    if kind == UDP {
        // Behind an extension header, the port cannot be checked.
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
    // A message may have its own mark, by which the packet filter would choose the network that gets the answers.
    // SAFETY: the verifier knows the context's fields.
    if unsafe { (*ctx.skb.skb).mark } != owner.mark.0 {
        return Err(Verdict::Mark);
    }
    packet.leave_network(socket, network, device, kind)?;
    note_question(socket, kind);
    Ok(())
}

/// Notes that an unconnected datagram socket has sent, so that answers may reach it.
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

/// Whether it did until now, and sends a reset: that leaves after the socket has given up its port (net/ipv4/tcp.c,
/// tcp_close and tcp_disconnect after tcp_set_state), so the port is read from the packet.
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

/// Checks that a packet with the mark of a socket of this node comes out of that socket's network. The kernel delivers
/// a copy of broadcast and multicast to this node that belongs to no socket and bypasses `egress`
/// (net/ipv4/ip_output.c, ip_mc_output), but still has the mark. Answers from off-subnet have the mark of the network
/// that asked.
#[inline(always)]
pub(crate) fn stayed(ctx: &SkBuffContext) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the context's fields.
    let (sender, device) = unsafe { (Mark((*ctx.skb.skb).mark), (*ctx.skb.skb).ifindex) };
    if !sender.is_ours(TAG.load()) && !sender.is_answer(TAG.load()) {
        return Ok(());
    }
    let network = NETWORKS.get(sender.number()).ok_or(Verdict::OtherNetwork)?;
    match vrf_of(device) {
        Some(vrf) if vrf == network.vrf => Ok(()),
        // The sender is a listener outside of every network.
        None if sender.is_unbound() => Ok(()),
        _ => Err(Verdict::OtherNetwork),
    }
}

#[inline(always)]
pub(crate) fn arrive(ctx: &SkBuffContext, socket: *mut bpf_sock, owner: Owner) -> Result<(), Verdict> {
    // SAFETY: the verifier knows the fields of both.
    let (from, mark, device) =
        unsafe { ((*ctx.skb.skb).ifindex, Mark((*ctx.skb.skb).mark), (*socket).bound_dev_if) };
    if owner.mark.is_unbound() {
        // Slurm's daemons are in no network, so a packet that comes out of one is a user's.
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

/// Whether a socket can have sent the packet that is answered. The tracker makes a flow for any packet with the
/// network's mark, before `egress` refuses a wrong mark: such a flow must not lead to a socket that listens.
#[inline(always)]
fn has_asked(socket: *mut bpf_sock, owner: Owner) -> bool {
    // SAFETY: the verifier knows a socket's fields.
    let (protocol, state, peer) = unsafe { ((*socket).protocol, (*socket).state, (*socket).dst_port) };
    match protocol {
        TCP => state != LISTEN,
        _ => peer != 0 || owner.asked != 0,
    }
}

/// The fields of a packet's network header that are checked.
struct Packet {
    destination: Address,
    /// The protocol of what follows the header.
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

    /// Checks that the packet may leave by a device that belongs to no network.
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
        // With a source route or an IPv6 routing header, the final destination is another one.
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
