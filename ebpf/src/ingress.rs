//! The in-kernel gear, receiving: the XDP program strips the outer headers and notes the network in the frame's
//! metadata; the NIC's GRO joins what is left; the tc program hands the result to the endpoint.
//!
//! On the way between the two a frame is nobody's: the host's stack takes no frame sent to an endpoint's MAC.

use crate::frame::{Frame, Inner};
use crate::{IPV6_ZERO_CHECKSUM, NETWORKS, OWNERS, Outer, PORT, count, count_traffic};
use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_meta};
use aya_ebpf::programs::{TcContext, XdpContext};
use uvn_wire::checksum::update_u16;
use uvn_wire::ethernet::{self, ethertype};
use uvn_wire::ipv4::{self, Ipv4};
use uvn_wire::ipv6::{self, Ipv6};
use uvn_wire::udp;
use uvn_wire::vxlan::{self, Vxlan};
use uvn_wire::xdp::{Address, Network, Verdict, mac_key};

/// UDP and VXLAN headers.
const UPPER: usize = udp::HEADER + vxlan::HEADER;
const STRIP_IPV4: usize = ethernet::HEADER + ipv4::HEADER + UPPER;
const STRIP_IPV6: usize = ethernet::HEADER + ipv6::HEADER + UPPER;

const ECN_MASK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const CE: u8 = 3;

/// Leaves the inner frame of a frame for this network, with the VNI as its metadata. None if it is the engine's.
///
/// Its source address belongs to the sending VTEP, so that VTEP is an allowed one.
#[inline(always)]
pub fn strip(ctx: &XdpContext, frame: Frame, outer: &Outer, vxlan: &Vxlan, network: &Network) -> Option<()> {
    if network.endpoint == 0 || vxlan.has_reserved_bits() {
        return None;
    }
    let vni = vxlan.vni().get();
    let strip = outer.strip(frame)?;
    let length = frame.length() - strip;
    let inner = Inner::of(frame, strip, length, PORT.load())?;
    // SAFETY: nobody writes to an entry in place: the loader replaces it.
    let owner = unsafe { OWNERS.get(inner.source) }?;
    let source = mac_key(inner.ethernet.source);
    if mac_key(inner.ethernet.destination) != network.mac
        || source == network.mac
        || source != outer.endpoint_mac(strip)
        || *owner != outer.source
    {
        return None;
    }
    let mark_ce = match (outer.tos & ECN_MASK, inner.tos & ECN_MASK) {
        (CE, NOT_ECT) => return None,
        (CE, inner) => inner != CE,
        // To be changed into ECT(1), which nobody sends.
        (ECT_1, inner) if inner != ECT_1 && inner != NOT_ECT && inner != CE => return None,
        _ => false,
    };
    let ethertype = inner.ethernet.ethertype.get();
    let tos = inner.tos;
    if mark_ce && !set_ce(frame, strip + ethernet::HEADER, ethertype, tos) {
        return None;
    }
    // SAFETY: the kernel's own context. A driver without metadata refuses here, before anything was cut.
    if unsafe { bpf_xdp_adjust_meta(ctx.ctx, -(size_of::<u32>() as i32)) } != 0 {
        return None;
    }
    let start = ctx.metadata();
    if start + size_of::<u32>() > ctx.data() {
        return None;
    }
    // SAFETY: the metadata was just found to hold these four bytes, which are aligned to four.
    unsafe { (start as *mut u32).write(vni) };
    // SAFETY: the kernel's own context; it moves the metadata along.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, strip as i32) } != 0 {
        return None;
    }
    count_traffic(vni, |traffic| {
        traffic.rx_frames += 1;
        traffic.rx_bytes += length as u64;
    });
    Some(())
}

impl Outer {
    /// Length of all outer headers, if they are the plainest: no IPv4 options, sums that need no payload, lengths that
    /// fill the frame exactly.
    #[inline(always)]
    fn strip(&self, frame: Frame) -> Option<usize> {
        if !self.plain {
            return None;
        }
        let strip = self.vxlan + vxlan::HEADER;
        let ip = match strip {
            STRIP_IPV4 => {
                let ip: &Ipv4 = frame.header(ethernet::HEADER)?;
                if !is_valid(frame) {
                    return None;
                }
                usize::from(ip.total_length.get())
            }
            STRIP_IPV6 => {
                let ip: &Ipv6 = frame.header(ethernet::HEADER)?;
                ipv6::HEADER + usize::from(ip.payload_length.get())
            }
            _ => return None,
        };
        let exact = ethernet::HEADER + ip == frame.length()
            && usize::from(self.length) + (self.vxlan - udp::HEADER) == frame.length();
        (exact && self.checksum == 0 && (strip == STRIP_IPV4 || IPV6_ZERO_CHECKSUM.load() != 0))
            .then_some(strip)
    }

    /// The MAC of the sending VTEP's endpoints ([`ethernet::Mac::of`]), as a key.
    #[inline(always)]
    fn endpoint_mac(&self, strip: usize) -> [u32; 2] {
        let Address([.., low]) = self.source;
        let kind = if strip == STRIP_IPV4 { 0x75 } else { 0x76 };
        let [a, b, c, d] = low.to_ne_bytes();
        [u32::from_ne_bytes([0x02, kind, a, b]), u32::from_ne_bytes([c, d, 0, 0])]
    }
}

/// Whether the sum of an outer IPv4 header without options is right (RFC 1071).
#[inline(always)]
fn is_valid(frame: Frame) -> bool {
    let Some(words) = frame.header::<[[u8; 4]; 5]>(ethernet::HEADER) else { return false };
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

/// Sets an inner packet's ECN field to CE (RFC 6040 section 4.2).
#[inline(always)]
fn set_ce(frame: Frame, offset: usize, ethertype: u16, tos: u8) -> bool {
    if ethertype == ethertype::IPV4 {
        let Some(ip) = frame.header::<Ipv4>(offset) else { return false };
        let mut new = *ip;
        new.tos = tos | CE;
        let word = |tos| u16::from_be_bytes([ipv4::VERSION_IHL, tos]);
        new.checksum = update_u16(ip.checksum.get(), word(tos), word(tos | CE)).into();
        frame.set(offset, new)
    } else {
        let Some(ip) = frame.header::<Ipv6>(offset) else { return false };
        let mut new = *ip;
        new.set_traffic_class(tos | CE);
        frame.set(offset, new)
    }
}

/// Hands a stripped frame to its endpoint; leaves all others alone.
#[inline(always)]
pub fn hand_over(ctx: &TcContext) -> i32 {
    // SAFETY: the kernel's own context.
    let (start, end) = unsafe { ((*ctx.skb.skb).data_meta as usize, (*ctx.skb.skb).data as usize) };
    if start + size_of::<u32>() > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the metadata was just found to hold these four bytes, which are aligned to four.
    let vni = unsafe { (start as *const u32).read() };
    // SAFETY: nobody writes to an entry in place: the loader replaces it.
    match unsafe { NETWORKS.get(vni) } {
        Some(network) if network.endpoint != 0 => {
            // SAFETY: a helper without pointers.
            unsafe { bpf_redirect(network.endpoint, u64::from(BPF_F_INGRESS)) as i32 }
        }
        _ => {
            count(Verdict::Revoked);
            TC_ACT_SHOT
        }
    }
}
