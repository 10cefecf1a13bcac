//! The XDP filter in front of the engine.
//!
//! VXLAN to one of our VTEP addresses is checked and redirected to the AF_XDP socket of its queue, or dropped and
//! counted: a tenant's frame never reaches the host's stack. All else passes as if we were not there. It steers and
//! is not trusted: the worker checks every frame again.
//!
//! A VLAN tag that the NIC has already stripped is invisible here: switch `rx-vlan-offload` off where VLANs share
//! the NIC.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{HashMap, LruPerCpuHashMap, PerCpuArray, XskMap};
use aya_ebpf::{Global, programs::XdpContext};
use uvn_wire::arp::Arp;
use uvn_wire::ethernet::{self, Ethernet, ethertype};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::udp::{self, Udp};
use uvn_wire::vxlan::{self, Vxlan};
use uvn_wire::xdp::{self, Address, Unknown, Verdict};
use zerocopy::{FromBytes, Immutable, Unaligned};

/// UDP port that is ours. The loader sets it.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(vxlan::PORT);

/// Destinations that are ours: VTEP addresses, joined multicast groups.
#[map]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(xdp::LOCAL_ENTRIES, 0);

/// VNIs on this NIC.
#[map]
static VNIS: HashMap<u32, u8> = HashMap::with_max_entries(xdp::VNI_ENTRIES, 0);

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

/// The entry point: every frame of the NIC, before the kernel's stack.
#[xdp]
pub fn uvn_xdp(ctx: XdpContext) -> u32 {
    let verdict = match Outer::of(&ctx) {
        None => Verdict::Pass,
        Some(outer) => match outer.verify(&ctx) {
            Err(verdict) => verdict,
            // The flags are the verdict where the map has no socket.
            Ok(()) => match XSKS.redirect(ctx.rx_queue_index(), u64::from(XDP_DROP)) {
                Ok(_) => Verdict::Redirected,
                Err(_) => Verdict::NoSocket,
            },
        },
    };
    count(verdict);
    match verdict {
        Verdict::Pass => XDP_PASS,
        Verdict::Redirected => XDP_REDIRECT,
        Verdict::BadLength
        | Verdict::BadFlags
        | Verdict::UnknownVni
        | Verdict::UnknownVtep
        | Verdict::NoSocket => XDP_DROP,
    }
}

/// The outer headers of a frame that is ours.
struct Outer {
    source: Address,
    /// UDP length: header and payload.
    length: u16,
    /// Where the VXLAN header is, from the start of the frame.
    vxlan: usize,
}

impl Outer {
    /// None if the frame is not ours: VLAN-tagged, a fragment, IPv6 with extension headers, not UDP to our address
    /// and port.
    #[inline(always)]
    fn of(ctx: &XdpContext) -> Option<Outer> {
        let (source, destination, offset) = match header::<Ethernet>(ctx, 0)?.ethertype.get() {
            ethertype::IPV4 => {
                let ip: &Ipv4 = header(ctx, ethernet::HEADER)?;
                let length = ip.header_length();
                if ip.version() != 4
                    || length < ipv4::HEADER
                    || ip.protocol != protocol::UDP
                    || ip.is_fragment()
                {
                    return None;
                }
                (Address::ipv4(ip.source), Address::ipv4(ip.destination), ethernet::HEADER + length)
            }
            ethertype::IPV6 => {
                let ip: &Ipv6 = header(ctx, ethernet::HEADER)?;
                if ip.version() != 6 || ip.next_header != protocol::UDP {
                    return None;
                }
                (Address::ipv6(ip.source), Address::ipv6(ip.destination), ethernet::HEADER + ipv6::HEADER)
            }
            _ => return None,
        };
        let udp: &Udp = header(ctx, offset)?;
        if udp.destination_port.get() != PORT.load() {
            return None;
        }
        LOCAL.get_ptr(destination)?;
        Some(Outer { source, length: udp.length.get(), vxlan: offset + udp::HEADER })
    }

    /// Whether the engine may have the frame; if not, why it is dropped.
    #[inline(always)]
    fn verify(&self, ctx: &XdpContext) -> Result<(), Verdict> {
        if usize::from(self.length) < udp::HEADER + vxlan::HEADER {
            return Err(Verdict::BadLength);
        }
        let vxlan: &Vxlan = header(ctx, self.vxlan).ok_or(Verdict::BadLength)?;
        if !vxlan.has_vni() {
            return Err(Verdict::BadFlags);
        }
        let vni = vxlan.vni().get();
        let known_vni = VNIS.get_ptr(vni).is_some();
        let known_vtep = self.is_from_vtep();
        match (known_vni, known_vtep) {
            (true, true) => Ok(()),
            (true, false) => Err(Verdict::UnknownVtep),
            (false, true) => {
                if self.is_meant_for_us(ctx) {
                    self.note_unknown(vni);
                }
                Err(Verdict::UnknownVni)
            }
            // Not noted: who may not send to us must not fill the map.
            (false, false) => Err(Verdict::UnknownVni),
        }
    }

    #[inline(always)]
    fn is_from_vtep(&self) -> bool {
        VTEPS.get_ptr(self.source).is_some() || VTEP_PREFIXES.get(Key::new(u128::BITS, self.source)).is_some()
    }

    /// Whether the inner frame was sent to this node: unicast, or an ARP request for its address. Broadcast and
    /// multicast go to every node, and call for no network on all of them.
    #[inline(always)]
    fn is_meant_for_us(&self, ctx: &XdpContext) -> bool {
        let inner = self.vxlan + vxlan::HEADER;
        let Some(frame) = header::<Ethernet>(ctx, inner) else { return false };
        if !frame.destination.is_multicast() {
            return true;
        }
        frame.ethertype.get() == ethertype::ARP
            && header::<Arp>(ctx, inner + ethernet::HEADER)
                .is_some_and(|arp| LOCAL.get_ptr(Address::ipv4(arp.target_ip)).is_some())
    }

    #[inline(always)]
    fn note_unknown(&self, vni: u32) {
        match UNKNOWN.get_ptr_mut(vni) {
            // SAFETY: the value of this CPU, which runs one XDP program at a time.
            Some(unknown) => unsafe { (*unknown).count += 1 },
            // Full means only that it is not noted: the control thread hears of it at the next frame.
            None => drop(UNKNOWN.insert(vni, Unknown { source: self.source, count: 1 }, 0)),
        }
    }
}

/// The header at `offset`; None if the frame ends before it does.
#[inline(always)]
fn header<T: FromBytes + Immutable + Unaligned>(ctx: &XdpContext, offset: usize) -> Option<&T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the frame's bytes from `start` were just found to hold a T, which needs no alignment and takes any
    // bytes; the frame outlives this run of the program and nothing writes to it.
    Some(unsafe { &*(start as *const T) })
}

#[inline(always)]
fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: the slot of this CPU, which runs one XDP program at a time.
        unsafe { *counter += 1 };
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
