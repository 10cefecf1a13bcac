//! What stands before the host's stack on a NIC: the XDP filter of the engine, or the tc programs of the in-kernel gear.
//!
//! VXLAN to one of our VTEP addresses is checked (`outer.rs`) and handed to the engine, or dropped and counted: a
//! tenant's frame never reaches the host's stack. All else passes as if we were not there. This steers and is not
//! trusted: the engine's worker checks every frame again.
//!
//! The in-kernel gear (`egress.rs`, `ingress.rs`) takes those frames of which it can prove in a few steps that the
//! engine would accept them, and does with them what the engine would. Everything else is left to the engine, which
//! judges and counts: so this gear drops nothing for what an inner frame holds.
//!
//! A VLAN tag that the NIC has already stripped is invisible here: switch `rx-vlan-offload` off where VLANs share
//! the NIC.
#![no_std]
#![no_main]

mod egress;
mod frame;
mod ingress;
mod outer;

use crate::frame::Frame;
use crate::outer::Outer;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruPerCpuHashMap, PerCpuArray, XskMap};
use aya_ebpf::programs::{TcContext, XdpContext};
use uvn_wire::ethernet::Tag;
use uvn_wire::vxlan;
use uvn_wire::xdp::{self, Address, Hop, Network, Owner, Traffic, Unknown, Verdict};

/// UDP port that is ours. The loader sets it.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(vxlan::PORT);

/// Destinations that are ours: VTEP addresses, joined multicast groups.
#[map]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(xdp::LOCAL_ENTRIES, 0);

/// The NIC's MAC, as [`xdp::mac_key`]; zero as long as nobody has said.
#[map]
static MAC: Array<[u32; 2]> = Array::with_max_entries(1, 0);

/// The underlay NIC, for frames of the in-kernel gear. The loader sets it.
#[unsafe(no_mangle)]
static NIC: Global<u32> = Global::new(0);

/// The cookie of the NIC's network namespace, as `bpf_get_netns_cookie` has it. 0: the kernel lends that to no tc program
/// (Linux 6.13 and later do). The loader sets it.
#[unsafe(no_mangle)]
static NETNS: Global<u64> = Global::new(0);

/// The engine's TAP, for frames that the in-kernel gear leaves over. The loader sets it.
#[unsafe(no_mangle)]
static ENGINE: Global<u32> = Global::new(0);

/// Whether a UDP checksum of zero is right over IPv6. The loader sets it.
#[unsafe(no_mangle)]
static IPV6_ZERO_CHECKSUM: Global<u8> = Global::new(0);

/// VNIs on this NIC.
#[map]
static NETWORKS: HashMap<u32, Network> = HashMap::with_max_entries(xdp::VNI_ENTRIES, 0);

/// The VNI of each endpoint device that the in-kernel gear serves.
#[map]
static ENDPOINTS: HashMap<u32, u32> = HashMap::with_max_entries(xdp::VNI_ENTRIES, BPF_F_NO_PREALLOC);

/// The allowed VTEP of each overlay address.
#[map]
static OWNERS: HashMap<Address, Owner> = HashMap::with_max_entries(xdp::OVERLAY_ENTRIES, BPF_F_NO_PREALLOC);

/// How to send, by destination MAC.
#[map]
static HOPS: HashMap<[u32; 2], Hop> = HashMap::with_max_entries(xdp::VTEP_ENTRIES, BPF_F_NO_PREALLOC);

/// Traffic of the in-kernel gear, by [`Network::slot`].
#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(xdp::TRAFFIC_ENTRIES, 0);

/// Allowed outer sources.
#[map]
static VTEPS: HashMap<Address, u8> = HashMap::with_max_entries(xdp::VTEP_ENTRIES, 0);

/// Allowed outer sources, by prefix.
#[map]
static VTEP_PREFIXES: LpmTrie<Address, u8> = LpmTrie::with_max_entries(xdp::PREFIX_ENTRIES, 0);

/// The AF_XDP socket of each queue.
#[map]
static XSKS: XskMap = XskMap::with_max_entries(xdp::QUEUE_ENTRIES, 0);

/// VNIs in which an allowed VTEP sent to this node though they are not on this NIC; the control thread polls and empties it.
#[map]
static UNKNOWN: LruPerCpuHashMap<u32, Unknown> = LruPerCpuHashMap::with_max_entries(xdp::UNKNOWN_ENTRIES, 0);

/// Frames by verdict.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::ALL.len() as u32, 0);

/// Engine gear: every frame of the NIC, before the kernel's stack.
#[xdp]
pub fn uvn_xdp(ctx: XdpContext) -> u32 {
    let tagged = Frame::of_xdp(&ctx);
    let frame = tagged.untagged();
    let is_tagged = frame.length() != tagged.length();
    let verdict = match Outer::of(frame) {
        Err(verdict) => verdict,
        Ok(_) if !outer::is_for_nic(tagged) => Verdict::OtherHost,
        Ok(outer) => match outer.admit() {
            Err(verdict) => verdict,
            Ok(()) if is_tagged && !take_tag(&ctx) => Verdict::BadHeader,
            // The flags are the verdict where the map has no socket.
            Ok(()) => match XSKS.redirect(ctx.rx_queue_index(), u64::from(XDP_DROP)) {
                Ok(_) => Verdict::Redirected,
                Err(_) => Verdict::NoSocket,
            },
        },
    };
    count(verdict);
    match verdict {
        Verdict::Pass | Verdict::Fragment => XDP_PASS,
        Verdict::Redirected => XDP_REDIRECT,
        _ => XDP_DROP,
    }
}

/// Takes a tag out of the frame: its addresses move up, and the engine need not know of tags.
#[inline(always)]
fn take_tag(ctx: &XdpContext) -> bool {
    let Some(addresses) = Frame::of_xdp(ctx).header::<[u8; Tag::OFFSET]>(0).copied() else { return false };
    // SAFETY: the kernel's own context; no reference into the frame is used from here on.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, size_of::<Tag>() as i32) } != 0 {
        return false;
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + Tag::OFFSET > end {
        return false;
    }
    // SAFETY: the frame was just found to have as many bytes, which nobody else looks at meanwhile.
    unsafe { *(start as *mut [u8; Tag::OFFSET]) = addresses };
    true
}

/// In-kernel gear: every frame of the NIC, after GRO and before the kernel's stack.
#[classifier]
pub fn uvn_ingress(ctx: TcContext) -> i32 {
    ingress::receive(&ctx)
}

/// Engine gear with XDP in generic mode, which does not see a frame that its sender's tc program has redirected over a veth
/// wire (netif_receive_generic_xdp, net/core/dev.c): it must not reach the host's stack.
#[classifier]
pub fn uvn_guard(ctx: TcContext) -> i32 {
    ingress::guard(&ctx)
}

/// In-kernel gear: what the engine sends, by its TAP.
#[classifier]
pub fn uvn_slow_path(_: TcContext) -> i32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(NIC.load(), 0) as i32 }
}

/// In-kernel gear: every frame that the kernel's stack sends to an endpoint.
#[classifier]
pub fn uvn_egress(ctx: TcContext) -> i32 {
    egress::send(&ctx)
}

/// A field of a map's element as it is now. The loader replaces elements and writes to none in place, but the kernel may
/// use one that is taken out for another key at once: what was read counts if the key, read last, is still the same.
#[inline(always)]
pub fn now<T: Copy>(field: &T) -> T {
    // SAFETY: a reference.
    unsafe { core::ptr::from_ref(field).read_volatile() }
}

/// Counts a frame.
#[inline(always)]
pub fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: the slot of this CPU; our programs run in its softirq only, or with softirqs off: one at a time.
        unsafe { *counter += 1 };
    }
}

/// Lets `add` count for a network.
#[inline(always)]
pub fn count_traffic(slot: u32, add: impl FnOnce(&mut Traffic)) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(slot) {
        // SAFETY: as for `count`.
        add(unsafe { &mut *traffic });
    }
}

/// What the kernel asks before it lends GPL-only functions.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never linked: the program has no way to panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
