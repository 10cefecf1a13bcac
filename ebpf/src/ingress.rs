//! The shortcut on receipt: it strips the outer headers and hands the inner frame to the endpoint. It runs after GRO,
//! so one frame here may have been fifty on the wire.

use crate::frame::{Frame, Inner};
use crate::maps::{ENGINE, IPV6_ZERO_CHECKSUM, NETWORKS, OWNERS, PORT, count, count_traffic, now};
use crate::outer::{self, Outer, ROOM_MAC};
use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
    TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{
    bpf_csum_level, bpf_redirect, bpf_skb_adjust_room, bpf_skb_pull_data, bpf_skb_store_bytes,
    bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use uvn_wire::arp;
use uvn_wire::checksum::update_u16;
use uvn_wire::ecn;
use uvn_wire::ethernet::{self, Ethernet, VLAN_ID, ethertype};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6, extension};
use uvn_wire::tcp;
use uvn_wire::udp;
use uvn_wire::vxlan::{OVER_IPV4, OVER_IPV6, UPPER};
use uvn_wire::xdp::{Address, Network, Verdict, mac_key};

/// Bytes of all headers that are looked at, at most: IPv6 outside and inside, and TCP.
const REACH: usize = OVER_IPV6 + ethernet::HEADER + ipv6::HEADER + tcp::HEADER;

/// How often more headers may be pulled into reach: Ethernet; IP; UDP and all up to the inner Ethernet header; IP;
/// transport.
const LAYERS: usize = 5;

/// The verdict on a frame of the NIC: on to the host's stack, to an endpoint, to the engine, or dropped.
#[inline(always)]
pub fn receive(ctx: &TcContext) -> i32 {
    // SAFETY: the kernel's own context.
    let skb = unsafe { &*ctx.skb.skb };
    let is_tagged = skb.vlan_present != 0;
    if is_of_vlan(skb) {
        count(Verdict::Pass);
        return TC_ACT_UNSPEC;
    }
    let frame = with_headers(ctx);
    let verdict = match Outer::of(frame) {
        Err(verdict) => verdict,
        Ok(_) if !outer::is_for_nic(frame) => Verdict::OtherHost,
        Ok(outer) => match Incoming::of(&outer, skb) {
            Some(incoming) => return incoming.hand_over(ctx, is_tagged),
            None => outer.admit().err().unwrap_or(Verdict::Redirected),
        },
    };
    count(verdict);
    match verdict {
        Verdict::Pass | Verdict::Fragment => TC_ACT_UNSPEC,
        Verdict::Redirected => {
            take_tag(ctx, is_tagged);
            // SAFETY: a helper without pointers.
            unsafe { bpf_redirect(ENGINE.load(), 0) as i32 }
        }
        _ => TC_ACT_SHOT,
    }
}

/// Removes a priority tag, if there is one. The tag is not in the frame's bytes, so this needs no memory.
#[inline(always)]
fn take_tag(ctx: &TcContext, is_tagged: bool) {
    if is_tagged {
        // SAFETY: the kernel's own context.
        unsafe { bpf_skb_vlan_pop(ctx.skb.skb) };
    }
}

/// The guard's verdict on a frame that XDP in generic mode has passed or has not seen.
#[inline(always)]
pub fn guard(ctx: &TcContext) -> i32 {
    // SAFETY: the kernel's own context.
    let is_of_vlan = is_of_vlan(unsafe { &*ctx.skb.skb });
    if is_of_vlan || matches!(Outer::of(with_headers(ctx)), Err(Verdict::Pass | Verdict::Fragment)) {
        return TC_ACT_UNSPEC;
    }
    count(Verdict::Unseen);
    TC_ACT_SHOT
}

/// Whether the frame has a tag of a VLAN, which the kernel has taken out of its bytes.
#[inline(always)]
fn is_of_vlan(skb: &__sk_buff) -> bool {
    skb.vlan_present != 0 && skb.vlan_tci & u32::from(VLAN_ID) != 0
}

/// The frame, with all headers that are looked at within reach. Some drivers leave headers in the skb's pages, so they
/// are pulled in layer by layer.
#[inline(always)]
fn with_headers(ctx: &TcContext) -> Frame {
    let mut frame = frame_of(ctx);
    for _ in 0..LAYERS {
        // SAFETY: the kernel's own context.
        let length = unsafe { (*ctx.skb.skb).len };
        let reach = frame.length();
        let wanted = if reach < REACH { headers(frame).min(length as usize) } else { 0 };
        if reach >= wanted {
            break;
        }
        // SAFETY: the kernel's own context; `frame` is made anew, also if this failed.
        let failed = unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted as u32) } != 0;
        frame = frame_of(ctx);
        if failed {
            break;
        }
    }
    frame
}

/// The frame as it is now: read through the kernel's own pointer, since a pull changes the data pointers.
#[inline(always)]
fn frame_of(ctx: &TcContext) -> Frame {
    // SAFETY: the kernel's own context.
    Frame::of_skb(unsafe { &*ctx.skb.skb })
}

/// The number of bytes of the headers that are looked at, as far as those within reach tell. No byte of payload: a
/// frame with payload among its headers is not joined to others in its receiver's queue (skb_try_coalesce,
/// net/core/skbuff.c).
#[inline(always)]
fn headers(frame: Frame) -> usize {
    let Some(ethernet) = frame.header::<Ethernet>(0) else { return ethernet::HEADER };
    let outer = match ethernet.ethertype.get() {
        ethertype::IPV4 => match frame.header::<Ipv4>(ethernet::HEADER) {
            Some(ip) if ip.protocol != protocol::UDP => return 0,
            Some(ip) if ip.header_length() != ipv4::HEADER => return REACH,
            Some(_) => OVER_IPV4,
            None => return ethernet::HEADER + ipv4::HEADER,
        },
        ethertype::IPV6 => match frame.header::<Ipv6>(ethernet::HEADER) {
            // Perhaps a first fragment, and its UDP header.
            Some(ip) if ip.next_header == extension::FRAGMENT => {
                return ethernet::HEADER + ipv6::HEADER + ipv6::Fragment::LENGTH + udp::HEADER;
            }
            Some(ip) if ip.next_header != protocol::UDP => return 0,
            Some(_) => OVER_IPV6,
            None => return ethernet::HEADER + ipv6::HEADER,
        },
        _ => return 0,
    };
    let ip = outer + ethernet::HEADER;
    let Some(ethernet) = frame.header::<Ethernet>(outer) else { return ip };
    let (header, protocol) = match ethernet.ethertype.get() {
        ethertype::IPV4 => (ipv4::HEADER, frame.header::<Ipv4>(ip).map(|ip| ip.protocol)),
        ethertype::IPV6 => (ipv6::HEADER, frame.header::<Ipv6>(ip).map(|ip| ip.next_header)),
        _ => return ip + arp::HEADER,
    };
    let transport = match protocol {
        Some(protocol::TCP) => tcp::HEADER,
        Some(extension::FRAGMENT) => ipv6::Fragment::LENGTH + udp::HEADER,
        Some(_) => udp::HEADER,
        None => 0,
    };
    ip + header + transport
}

/// A frame that the engine would hand to its endpoint.
struct Incoming {
    /// The network's counter index.
    slot: u32,
    endpoint: u32,
    /// Length of the outer headers.
    outer: usize,
    ethernet: Ethernet,
    /// Whether the inner packet is IPv4, not IPv6.
    ipv4: bool,
    /// The inner TOS, if the ECN field must be set to CE.
    mark: Option<u8>,
    frames: u32,
    bytes: u64,
}

impl Incoming {
    /// None: the frame is left to the engine. The source address must belong to the sending VTEP, so the VTEP is
    /// allowed.
    #[inline(always)]
    fn of(outer: &Outer, skb: &__sk_buff) -> Option<Incoming> {
        // SAFETY: an element of the map; see `now`.
        let network: &Network = unsafe { NETWORKS.get(outer.vni) }?;
        let (endpoint, mac, slot) = (now(&network.endpoint), now(&network.mac), now(&network.slot));
        if now(&network.vni) != outer.vni
            || endpoint == 0
            || outer.has_reserved_bits
            || !outer.is_plain
            || !outer.fills(skb.len as usize)
        {
            return None;
        }
        let length = skb.len as usize - outer.inner;
        let inner = Inner::of(outer.frame, outer.inner, length, PORT.load())?;
        // The kernel cuts a UDP super-frame for a socket that takes none, and would look for the outer headers, which
        // it remembers (skb->encapsulation) and no program can make it forget.
        if (inner.is_udp || inner.is_fragment) && skb.gso_size > 0 {
            return None;
        }
        // SAFETY: as above.
        let owner = unsafe { OWNERS.get(inner.source) }?;
        let vtep = now(&owner.vtep);
        let source = mac_key(inner.ethernet.source);
        if now(&owner.overlay) != inner.source
            || vtep != outer.source
            || mac_key(inner.ethernet.destination) != mac
            || source == mac
            || source != outer.endpoint_mac()
        {
            return None;
        }
        let mark = match ecn::decap(outer.tos, inner.tos) {
            ecn::Decap::Keep => None,
            ecn::Decap::Set(ecn::CE) => Some(inner.tos),
            ecn::Decap::Set(_) | ecn::Decap::Drop => return None,
        };
        let ipv4 = inner.ethernet.ethertype.get() == ethertype::IPV4;
        let frames = skb.gso_segs.max(1);
        Some(Incoming {
            slot,
            endpoint,
            outer: outer.inner,
            ethernet: *inner.ethernet,
            ipv4,
            mark,
            frames,
            bytes: length as u64 + u64::from(frames - 1) * inner.headers as u64,
        })
    }

    /// Strips the outer headers: the outer Ethernet header stays, and is overwritten with the inner one.
    #[inline(always)]
    fn hand_over(&self, ctx: &TcContext, is_tagged: bool) -> i32 {
        take_tag(ctx, is_tagged);
        let family = if self.ipv4 { BPF_F_ADJ_ROOM_DECAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_DECAP_L3_IPV6 };
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | family);
        let skb = ctx.skb.skb;
        let ethernet = (&raw const self.ethernet).cast();
        let marked = self.mark.is_none_or(|tos| set_ce(ctx, self.outer + ethernet::HEADER, tos, self.ipv4));
        // SAFETY: the kernel's own context; what is written is a whole Ethernet header.
        let stripped = marked
            && unsafe { bpf_skb_adjust_room(skb, -(self.outer as i32), ROOM_MAC, flags) } == 0
            // NIC and GRO count verified checksums from the outside in: the outer one is removed with its header, as in
            // udp_rcv (net/ipv4/udp.c). If the inner one was not counted, the receiver's kernel verifies it.
            && unsafe { bpf_csum_level(skb, u64::from(BPF_CSUM_LEVEL_DEC)) } == 0
            && unsafe { bpf_skb_store_bytes(skb, 0, ethernet, ethernet::HEADER as u32, 0) } == 0;
        if !stripped {
            count(Verdict::NoMemory);
            return TC_ACT_SHOT;
        }
        count(Verdict::Stripped);
        count_traffic(self.slot, |traffic| {
            traffic.rx_frames += u64::from(self.frames);
            traffic.rx_bytes += self.bytes;
        });
        // SAFETY: a helper without pointers.
        unsafe { bpf_redirect(self.endpoint, u64::from(BPF_F_INGRESS)) as i32 }
    }
}

impl Outer {
    /// Whether the checksums of plain outer headers need no payload, and their lengths fit the frame exactly.
    #[inline(always)]
    fn fills(&self, length: usize) -> bool {
        let ip = match self.inner {
            OVER_IPV4 => match self.frame.header::<Ipv4>(ethernet::HEADER) {
                Some(ip) if is_valid(self.frame) => usize::from(ip.total_length.get()),
                _ => return false,
            },
            OVER_IPV6 if IPV6_ZERO_CHECKSUM.load() != 0 => {
                match self.frame.header::<Ipv6>(ethernet::HEADER) {
                    Some(ip) => ipv6::HEADER + usize::from(ip.payload_length.get()),
                    None => return false,
                }
            }
            _ => return false,
        };
        self.checksum == 0
            && ethernet::HEADER + ip == length
            && self.inner - UPPER + usize::from(self.length) == length
    }

    /// The MAC of the sending VTEP's endpoints ([`ethernet::Mac::of`]), as a key.
    #[inline(always)]
    fn endpoint_mac(&self) -> [u32; 2] {
        let Address([.., low]) = self.source;
        let kind = if self.inner == OVER_IPV4 { 0x75 } else { 0x76 };
        let [a, b, c, d] = low.to_ne_bytes();
        [u32::from_ne_bytes([0x02, kind, a, b]), u32::from_ne_bytes([c, d, 0, 0])]
    }
}

/// Whether the checksum of an outer IPv4 header without options is right (RFC 1071).
#[inline(always)]
fn is_valid(frame: Frame) -> bool {
    let Some(words) = frame.header::<[[u8; 4]; 5]>(ethernet::HEADER) else { return false };
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

/// Sets the ECN field of the IP header at `offset` to CE. False: the kernel has no memory for that.
#[inline(always)]
fn set_ce(ctx: &TcContext, offset: usize, tos: u8, ipv4: bool) -> bool {
    let store = |offset: usize, bytes: [u8; 2]| {
        // SAFETY: the kernel's own context; two bytes.
        let result = unsafe {
            let (bytes, flags) = (bytes.as_ptr().cast(), u64::from(BPF_F_RECOMPUTE_CSUM));
            bpf_skb_store_bytes(ctx.skb.skb, offset as u32, bytes, 2, flags)
        };
        result == 0
    };
    let frame = frame_of(ctx);
    let Some(old) = frame.header::<[u8; 2]>(offset) else { return false };
    if !ipv4 {
        return store(offset, [old[0], old[1] | ecn::CE << 4]);
    }
    let Some(ip) = frame.header::<Ipv4>(offset) else { return false };
    let new = [old[0], tos | ecn::CE];
    let sum = update_u16(ip.checksum.get(), u16::from_be_bytes(*old), u16::from_be_bytes(new));
    store(offset, new) && store(offset + 10, sum.to_be_bytes())
}
