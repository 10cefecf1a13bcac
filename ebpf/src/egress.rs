//! The shortcut on send: it encapsulates a frame, or a super-frame as a whole, and hands it to the NIC, where the
//! kernel or the hardware cuts it.

use crate::frame::{Frame, Inner};
use crate::maps::{ENDPOINTS, HOPS, NETNS, NETWORKS, NIC, PORT, count, count_traffic, now};
use crate::outer::ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{
    bpf_get_hash_recalc, bpf_get_netns_cookie, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room,
    bpf_skb_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use core::mem::offset_of;
use uvn_wire::ethernet::{self, Ethernet};
use uvn_wire::vxlan::{OVER_IPV4, OVER_IPV6, UPPER};
use uvn_wire::xdp::{Hop, Verdict, mac_key};
use zerocopy::IntoBytes;

/// The position of the inner Ethernet header's length in the flags of bpf_skb_adjust_room
/// (BPF_ADJ_ROOM_ENCAP_L2_SHIFT).
const L2_SHIFT: u32 = 56;
const IP: usize = ethernet::HEADER;
/// Outer headers and the inner Ethernet header.
const LONGEST: usize = OVER_IPV6 + ethernet::HEADER;
/// Whole words in which a [`Hop`] holds the outer headers.
const WORDS: usize = (offset_of!(Hop, length) - offset_of!(Hop, headers)) / size_of::<u64>();

/// Room to build headers in.
#[map]
static SCRATCH: PerCpuArray<[u64; LONGEST.div_ceil(size_of::<u64>())]> = PerCpuArray::with_max_entries(1, 0);

/// The verdict on a frame of an endpoint: to the NIC, or on to the device and so to the engine.
#[inline(always)]
pub fn send(ctx: &TcContext) -> i32 {
    // SAFETY: the kernel's own context.
    let skb = unsafe { &*ctx.skb.skb };
    let Some(outgoing) = Outgoing::of(skb) else { return TC_ACT_UNSPEC };
    if is_elsewhere(ctx) {
        return TC_ACT_UNSPEC;
    }
    if outgoing.is_udp && outgoing.segment > 0 && !has_partial_sum(ctx, outgoing.headers - 2) {
        return TC_ACT_UNSPEC;
    }
    match outgoing.encapsulate(ctx) {
        Written::All => {
            outgoing.count();
            count(Verdict::Encapsulated);
            // SAFETY: a helper without pointers.
            unsafe { bpf_redirect(NIC.load(), 0) as i32 }
        }
        Written::Nothing => TC_ACT_UNSPEC,
        Written::Room => {
            count(Verdict::NoMemory);
            TC_ACT_SHOT
        }
    }
}

/// Whether the frame's socket is in another network namespace than the NIC: the endpoint has been moved there, where
/// the NIC's index is another device's, and the control thread does not know yet.
#[inline(always)]
fn is_elsewhere(ctx: &TcContext) -> bool {
    let (here, skb) = (NETNS.load(), ctx.skb.skb);
    // SAFETY: the kernel's own context.
    here != 0 && unsafe { !(*skb).__bindgen_anon_2.sk.is_null() && bpf_get_netns_cookie(skb.cast()) != here }
}

/// Whether the checksum at `offset` is left to the device (CHECKSUM_PARTIAL). If it is not, as with the endpoint's
/// checksum offload off, the kernel cannot cut the UDP super-frame once it has outer headers (__udp_gso_segment,
/// net/ipv4/udp_offload.c).
///
/// No helper tells that; but a replacement does not touch a sum that is yet to be computed (inet_proto_csum_replace4).
#[inline(always)]
fn has_partial_sum(ctx: &TcContext, offset: u32) -> bool {
    let skb = ctx.skb.skb;
    let sum = || ctx.load::<u16>(offset as usize).ok();
    let Some(before) = sum() else { return false };
    // SAFETY: the kernel's own context.
    let asked = unsafe { bpf_l4_csum_replace(skb, offset, 0, 1, 2) } == 0;
    if asked && sum() == Some(before) {
        return true;
    }
    // SAFETY: the kernel's own context; two bytes.
    unsafe { bpf_skb_store_bytes(skb, offset, (&raw const before).cast(), 2, 0) };
    false
}

/// How far encapsulation got.
enum Written {
    /// The kernel made no room, as in a frame that is encapsulated already or will be cut into IP fragments. The frame
    /// is unchanged.
    Nothing,
    /// There is room, but no headers are written into it.
    Room,
    All,
}

/// A frame that the engine would send to one VTEP.
struct Outgoing<'a> {
    vni: u32,
    /// The network's counter index.
    slot: u32,
    hop: &'a Hop,
    ethernet: Ethernet,
    tos: u8,
    /// Length of the whole frame, bytes.
    length: u32,
    /// Length of all headers, up to the transport's payload, bytes.
    headers: u32,
    /// Bytes of the transport's payload in each segment; 0: the frame is not cut.
    segment: u32,
    is_udp: bool,
}

impl<'a> Outgoing<'a> {
    /// None: the frame is left to the engine.
    #[inline(always)]
    fn of(skb: &__sk_buff) -> Option<Outgoing<'a>> {
        // SAFETY: an element of the map; see `now`. This one has no key: the network says which endpoint it has.
        let vni = now(unsafe { ENDPOINTS.get(skb.ifindex)? });
        // SAFETY: an element of the map.
        let network = unsafe { NETWORKS.get(vni)? };
        let inner = Inner::of(Frame::of_skb(skb), 0, skb.len as usize, PORT.load())?;
        let ethertype = inner.ethernet.ethertype.get();
        let (endpoint, mac, slot) = (now(&network.endpoint), now(&network.mac), now(&network.slot));
        let is_own = network.addresses.iter().any(|own| now(own) == inner.source);
        if now(&network.vni) != vni
            || endpoint != skb.ifindex
            || !is_own
            || skb.vlan_present != 0
            || skb.protocol != u32::from(ethertype.to_be())
            || mac_key(inner.ethernet.source) != mac
            || inner.is_fragment && skb.gso_size > 0
        {
            return None;
        }
        // SAFETY: an element of the map; its key is looked at when the headers are written.
        let hop = unsafe { HOPS.get(mac_key(inner.ethernet.destination))? };
        let headers = inner.headers as u32;
        let largest = if skb.gso_size > 0 { headers + skb.gso_size } else { skb.len };
        if largest > now(&hop.largest) {
            return None;
        }
        let (ethernet, tos, length, segment) = (*inner.ethernet, inner.tos, skb.len, skb.gso_size);
        let is_udp = inner.is_udp;
        Some(Outgoing { vni, slot, hop, ethernet, tos, length, headers, segment, is_udp })
    }

    /// Counts the frame's segments as the engine does. The skb need not hold their number.
    #[inline(always)]
    fn count(&self) {
        let payload = self.length - self.headers;
        let segments = if self.segment == 0 { 1 } else { payload.div_ceil(self.segment).max(1) };
        count_traffic(self.slot, |traffic| {
            traffic.tx_frames += u64::from(segments);
            traffic.tx_bytes += u64::from(self.length) + u64::from(segments - 1) * u64::from(self.headers);
        });
    }

    /// Makes room and writes the headers.
    #[inline(always)]
    fn encapsulate(&self, ctx: &TcContext) -> Written {
        // Not on the stack, where the verifier wants words aligned.
        let Some(headers) = SCRATCH.get_ptr_mut(0) else { return Written::Nothing };
        // SAFETY: this CPU's, and softirqs are off: nobody else uses it meanwhile.
        let words = unsafe { &mut *headers };
        let from = (&raw const self.hop.headers).cast::<u64>();
        for (index, word) in words.iter_mut().take(WORDS).enumerate() {
            // SAFETY: the hop has as many; the kernel aligns elements as words, and the key before them is one.
            *word = unsafe { from.add(index).read_volatile() };
        }
        let (length, ip_sum, dscp) = (now(&self.hop.length), now(&self.hop.ip_sum), now(&self.hop.dscp));
        if now(&self.hop.mac) != mac_key(self.ethernet.destination) {
            return Written::Nothing;
        }
        let (headers, _) = words.as_mut_bytes().split_at_mut(LONGEST);
        // SAFETY: the kernel's own context.
        let hash = unsafe { bpf_get_hash_recalc(ctx.skb.skb) };
        // The upper half is as random as the lower one; dynamic ports (RFC 7348 section 5).
        let source_port = 0xc000 | (hash ^ hash >> 16) as u16 & 0x3fff;
        let tos = self.tos & 3 | if dscp == Hop::INHERIT { self.tos & 0xfc } else { dscp as u8 };
        if length as usize == OVER_IPV4 {
            let length = (self.length + (OVER_IPV4 - IP) as u32) as u16;
            headers[IP + 1] = tos;
            headers[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
            let sum = ip_sum + u32::from(tos) + u32::from(length);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            headers[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
            self.write::<OVER_IPV4>(ctx, headers, source_port, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
        } else {
            headers[IP] = 0x60 | tos >> 4;
            headers[IP + 1] = tos << 4;
            let length = (self.length + UPPER as u32) as u16;
            headers[IP + 4..IP + 6].copy_from_slice(&length.to_be_bytes());
            self.write::<OVER_IPV6>(ctx, headers, source_port, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
        }
    }

    /// Completes headers of `OUTER` bytes, makes room and writes them.
    #[inline(always)]
    fn write<const OUTER: usize>(
        &self,
        ctx: &TcContext,
        headers: &mut [u8],
        source_port: u16,
        encap: u32,
    ) -> Written {
        let upper = OUTER - UPPER;
        headers[upper..upper + 2].copy_from_slice(&source_port.to_be_bytes());
        let length = (self.length + UPPER as u32) as u16;
        headers[upper + 4..upper + 6].copy_from_slice(&length.to_be_bytes());
        headers[OUTER - 4..OUTER].copy_from_slice(&(self.vni << 8).to_be_bytes());
        let inner = self.ethernet.as_bytes();
        headers[OUTER..OUTER + ethernet::HEADER].copy_from_slice(inner);
        let flags = u64::from(
            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | encap,
        ) | (ethernet::HEADER as u64) << L2_SHIFT;
        // SAFETY: the kernel's own context.
        let room = unsafe { bpf_skb_adjust_room(ctx.skb.skb, OUTER as i32, ROOM_MAC, flags) };
        if room != 0 {
            return Written::Nothing;
        }
        let (bytes, length) = (headers.as_ptr().cast(), (OUTER + ethernet::HEADER) as u32);
        // SAFETY: the kernel's own context; `headers` holds as many bytes.
        match unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, bytes, length, 0) } {
            0 => Written::All,
            _ => Written::Room,
        }
    }
}
