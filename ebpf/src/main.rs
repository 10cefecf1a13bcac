//! The programs between a NIC and the host's stack: the XDP filter of the engine, or the tc programs of the shortcut.
//!
//! VXLAN to one of this node's VTEP addresses is checked (`outer.rs`) and handed to the engine, or dropped and counted:
//! a tenant's frame never reaches the host's stack. All other frames pass unchanged. These checks only steer, and are
//! not trusted: the engine's worker checks every frame again.
//!
//! The shortcut (`egress.rs`, `ingress.rs`) takes the frames that the engine provably would accept, by a few checks,
//! and does with them what the engine would do. It leaves all others to the engine, which judges and counts them: so
//! this gear drops no frame for its inner frame.
//!
//! A VLAN tag that the NIC has already stripped is invisible to XDP: switch `rx-vlan-offload` off where VLANs share the
//! NIC.
#![no_std]
#![no_main]

mod egress;
mod frame;
mod ingress;
mod maps;
mod outer;

use crate::frame::Frame;
use crate::maps::{NIC, XSKS, count};
use crate::outer::Outer;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use uvn_wire::ethernet::Tag;
use uvn_wire::xdp::Verdict;

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
            // The flags are the verdict if the map has no socket.
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

/// Removes the tag from the frame by moving the addresses up, so that the engine need not know of tags. False: it
/// failed.
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

/// Shortcut gear: every frame of the NIC, after GRO and before the kernel's stack.
#[classifier]
pub fn uvn_ingress(ctx: TcContext) -> i32 {
    ingress::receive(&ctx)
}

/// Engine gear with XDP in generic mode, which does not see a frame that its sender's tc program has redirected over a
/// veth wire (netif_receive_generic_xdp, net/core/dev.c): such a frame must not reach the host's stack.
#[classifier]
pub fn uvn_guard(ctx: TcContext) -> i32 {
    ingress::guard(&ctx)
}

/// Shortcut gear: every frame that the engine sends, by its TAP.
#[classifier]
pub fn uvn_slow_path(_: TcContext) -> i32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(NIC.load(), 0) as i32 }
}

/// Shortcut gear: every frame that the kernel's stack sends to an endpoint.
#[classifier]
pub fn uvn_egress(ctx: TcContext) -> i32 {
    egress::send(&ctx)
}

/// The licence, without which the kernel offers no GPL-only functions.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never linked: the program has no way to panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
