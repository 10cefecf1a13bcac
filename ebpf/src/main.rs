//! The XDP filter in front of the engine, and the in-kernel gear.
//!
//! VXLAN to one of our VTEP addresses is checked and redirected to the AF_XDP socket of its queue, or dropped and
//! counted: a tenant's frame never reaches the host's stack. All else passes as if we were not there. It steers and
//! is not trusted: the worker checks every frame again.
//!
//! The in-kernel gear (`egress.rs`, `ingress.rs`) takes those frames of which it can prove in a few steps that the
//! engine would accept them, and does with them what the engine would. Everything else is left to the engine, which
//! judges and counts: so this gear drops nothing for what a frame holds.
//!
//! A VLAN tag that the NIC has already stripped is invisible here: switch `rx-vlan-offload` off where VLANs share
//! the NIC.
#![no_std]
#![no_main]

mod egress;
mod frame;
mod ingress;

use crate::frame::Frame;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{HashMap, LruPerCpuHashMap, PerCpuArray, PerCpuHashMap, XskMap};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_ebpf::{Global, bindings::BPF_F_NO_PREALLOC};
use core::mem::MaybeUninit;
use uvn_wire::arp::Arp;
use uvn_wire::ethernet::{self, Ethernet, ethertype};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::udp::{self, Udp};
use uvn_wire::vxlan::{self, Vxlan};
use uvn_wire::xdp::{self, Address, Hop, Network, Own, Traffic, Unknown, Verdict};

/// UDP port that is ours. The loader sets it.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(vxlan::PORT);

/// Destinations that are ours: VTEP addresses, joined multicast groups.
#[map]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(xdp::LOCAL_ENTRIES, 0);

/// The underlay NIC, for frames of the in-kernel gear. The loader sets it.
#[unsafe(no_mangle)]
static NIC: Global<u32> = Global::new(0);

/// Whether a UDP checksum of zero is right over IPv6. The loader sets it.
#[unsafe(no_mangle)]
static IPV6_ZERO_CHECKSUM: Global<u8> = Global::new(0);

/// VNIs on this NIC.
#[map]
static NETWORKS: HashMap<u32, Network> = HashMap::with_max_entries(xdp::VNI_ENTRIES, 0);

/// The VNI of each endpoint device that the in-kernel gear serves.
#[map]
static ENDPOINTS: HashMap<u32, u32> = HashMap::with_max_entries(xdp::VNI_ENTRIES, BPF_F_NO_PREALLOC);

/// The overlay addresses of those endpoints.
#[map]
static ADDRESSES: HashMap<Own, u8> = HashMap::with_max_entries(xdp::OVERLAY_ENTRIES, BPF_F_NO_PREALLOC);

/// The allowed VTEP of each overlay address.
#[map]
static OWNERS: HashMap<Address, Address> = HashMap::with_max_entries(xdp::OVERLAY_ENTRIES, BPF_F_NO_PREALLOC);

/// How to send, by destination MAC.
#[map]
static HOPS: HashMap<[u32; 2], Hop> = HashMap::with_max_entries(xdp::VTEP_ENTRIES, BPF_F_NO_PREALLOC);

/// Traffic of the in-kernel gear by VNI.
#[map]
static TRAFFIC: PerCpuHashMap<u32, Traffic> =
    PerCpuHashMap::with_max_entries(xdp::VNI_ENTRIES, BPF_F_NO_PREALLOC);

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

/// Every frame of the NIC, before the kernel's stack.
#[xdp]
pub fn uvn_xdp(ctx: XdpContext) -> u32 {
    let verdict = judge(&ctx);
    count(verdict);
    match verdict {
        Verdict::Pass | Verdict::Stripped => XDP_PASS,
        Verdict::Redirected => XDP_REDIRECT,
        Verdict::BadLength
        | Verdict::BadFlags
        | Verdict::UnknownVni
        | Verdict::UnknownVtep
        | Verdict::NoSocket
        | Verdict::Revoked
        | Verdict::Encapsulated
        | Verdict::NoMemory => XDP_DROP,
    }
}

#[inline(always)]
fn judge(ctx: &XdpContext) -> Verdict {
    let frame = Frame::of_xdp(ctx);
    let Some(outer) = Outer::of(frame) else { return Verdict::Pass };
    let vxlan = match outer.vxlan(frame) {
        Ok(vxlan) => vxlan,
        Err(verdict) => return verdict,
    };
    // SAFETY: nobody writes to an entry in place: the loader replaces it.
    let network = unsafe { NETWORKS.get(vxlan.vni().get()) };
    if let Some(network) = network
        && ingress::strip(ctx, frame, &outer, vxlan, network).is_some()
    {
        return Verdict::Stripped;
    }
    match (network, outer.is_from_vtep()) {
        // The flags are the verdict where the map has no socket.
        (Some(_), true) => match XSKS.redirect(ctx.rx_queue_index(), u64::from(XDP_DROP)) {
            Ok(_) => Verdict::Redirected,
            Err(_) => Verdict::NoSocket,
        },
        (Some(_), false) => Verdict::UnknownVtep,
        (None, known_vtep) => {
            // Who may not send to us must not fill the map.
            if known_vtep && outer.is_meant_for_us(frame) {
                outer.note_unknown(vxlan.vni().get());
            }
            Verdict::UnknownVni
        }
    }
}

/// Every frame that the NIC's driver passes to the kernel's stack, after GRO.
#[classifier]
pub fn uvn_ingress(ctx: TcContext) -> i32 {
    ingress::hand_over(&ctx)
}

/// Every frame that the kernel's stack sends to an endpoint.
#[classifier]
pub fn uvn_egress(ctx: TcContext) -> i32 {
    egress::send(&ctx)
}

/// The outer headers of a frame that is ours.
pub struct Outer {
    source: Address,
    /// DSCP and ECN.
    tos: u8,
    /// UDP length: header and payload.
    length: u16,
    /// UDP checksum.
    checksum: u16,
    /// Where the VXLAN header is, from the start of the frame.
    vxlan: usize,
    /// Neither IPv4 options, nor IPv6 addresses that look like IPv4 ones.
    plain: bool,
}

impl Outer {
    /// None if the frame is not ours: VLAN-tagged, a fragment, IPv6 with extension headers, not UDP to our address
    /// and port.
    #[inline(always)]
    fn of(frame: Frame) -> Option<Outer> {
        let (source, destination, tos, offset, plain) = match frame.header::<Ethernet>(0)?.ethertype.get() {
            ethertype::IPV4 => {
                let ip: &Ipv4 = frame.header(ethernet::HEADER)?;
                let length = ip.header_length();
                if ip.version() != 4
                    || length < ipv4::HEADER
                    || ip.protocol != protocol::UDP
                    || ip.is_fragment()
                {
                    return None;
                }
                let (source, destination) = (Address::ipv4(ip.source), Address::ipv4(ip.destination));
                (source, destination, ip.tos, ethernet::HEADER + length, length == ipv4::HEADER)
            }
            ethertype::IPV6 => {
                let ip: &Ipv6 = frame.header(ethernet::HEADER)?;
                if ip.version() != 6 || ip.next_header != protocol::UDP {
                    return None;
                }
                let offset = ethernet::HEADER + ipv6::HEADER;
                let (source, destination) = (Address::ipv6(ip.source), Address::ipv6(ip.destination));
                let plain = !source.is_mapped() && !destination.is_mapped();
                (source, destination, ip.traffic_class(), offset, plain)
            }
            _ => return None,
        };
        let udp: &Udp = frame.header(offset)?;
        if udp.destination_port.get() != PORT.load() {
            return None;
        }
        LOCAL.get_ptr(destination)?;
        let (length, checksum) = (udp.length.get(), udp.checksum.get());
        Some(Outer { source, tos, length, checksum, vxlan: offset + udp::HEADER, plain })
    }

    /// The VXLAN header; if it is none, why the frame is dropped.
    #[inline(always)]
    fn vxlan<'a>(&self, frame: Frame) -> Result<&'a Vxlan, Verdict> {
        if usize::from(self.length) < udp::HEADER + vxlan::HEADER {
            return Err(Verdict::BadLength);
        }
        let vxlan: &Vxlan = frame.header(self.vxlan).ok_or(Verdict::BadLength)?;
        if vxlan.has_vni() { Ok(vxlan) } else { Err(Verdict::BadFlags) }
    }

    #[inline(always)]
    fn is_from_vtep(&self) -> bool {
        VTEPS.get_ptr(self.source).is_some() || is_in_prefix(self.source)
    }

    /// Whether the inner frame was sent to this node: unicast, or an ARP request for its address. Broadcast and
    /// multicast go to every node, and call for no network on all of them.
    #[inline(always)]
    fn is_meant_for_us(&self, frame: Frame) -> bool {
        let inner = self.vxlan + vxlan::HEADER;
        let Some(ethernet) = frame.header::<Ethernet>(inner) else { return false };
        if !ethernet.destination.is_multicast() {
            return true;
        }
        ethernet.ethertype.get() == ethertype::ARP
            && frame
                .header::<Arp>(inner + ethernet::HEADER)
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

/// Word by word: a prefix's length puts the address off the eight bytes by which the verifier wants the stack aligned.
#[inline(always)]
fn is_in_prefix(Address([a, b, c, d]): Address) -> bool {
    let mut key = MaybeUninit::<Key<Address>>::uninit();
    for (index, word) in [u128::BITS, a, b, c, d].into_iter().enumerate() {
        // SAFETY: a key is five words: the length and the address.
        unsafe { key.as_mut_ptr().cast::<u32>().add(index).write_volatile(word) };
    }
    // SAFETY: all five words are written.
    VTEP_PREFIXES.get(unsafe { key.assume_init_ref() }).is_some()
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
pub fn count_traffic(vni: u32, add: impl FnOnce(&mut Traffic)) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(vni) {
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
