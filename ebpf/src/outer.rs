//! The outer headers, and who may send to us.

use crate::frame::Frame;
use crate::maps::{LOCAL, MAC, NETWORKS, PORT, UNKNOWN, VTEP_PREFIXES, VTEPS};
use aya_ebpf::maps::lpm_trie::Key;
use core::mem::MaybeUninit;
use uvn_wire::arp::Arp;
use uvn_wire::ethernet::{self, Ethernet, Tag, ethertype};
use uvn_wire::ipv4::{self, Ipv4, protocol};
use uvn_wire::ipv6::{self, Ipv6, extension};
use uvn_wire::packet::Fragment;
use uvn_wire::udp::{self, Udp};
use uvn_wire::vxlan::{self, Vxlan};
use uvn_wire::xdp::{Address, Unknown, Verdict, mac_key};

/// Where bpf_skb_adjust_room puts or takes them: after the Ethernet header (enum bpf_adj_room_mode,
/// include/uapi/linux/bpf.h).
pub const ROOM_MAC: u32 = 1;

/// The outer headers of a frame that is ours.
pub struct Outer {
    /// All bytes within reach.
    pub frame: Frame,
    /// Source address.
    pub source: Address,
    /// DSCP and ECN.
    pub tos: u8,
    /// UDP length: header and payload.
    pub length: u16,
    /// UDP checksum.
    pub checksum: u16,
    /// Where the inner frame is, from the start of this one.
    pub inner: usize,
    /// The network.
    pub vni: u32,
    /// A reserved VXLAN bit is set.
    pub has_reserved_bits: bool,
    /// No IPv6 address looks like an IPv4 one to the maps.
    pub is_plain: bool,
}

impl Outer {
    /// The outer headers of a `frame` without its priority tag, if it had one. [`Verdict::Pass`] if it is not ours: a
    /// VLAN's, IPv6 with extension headers, not UDP to our address and port. Fragments are not, either; a first one that
    /// would be is [`Verdict::Fragment`].
    ///
    /// # Errors
    /// What becomes of it instead.
    #[inline(always)]
    pub fn of(frame: Frame) -> Result<Outer, Verdict> {
        let (source, tos, offset, is_plain, udp) = Outer::udp(frame)?;
        let (length, checksum) = (udp.length.get(), udp.checksum.get());
        if usize::from(length) < vxlan::UPPER {
            return Err(Verdict::BadLength);
        }
        let vxlan: &Vxlan = frame.header(offset).ok_or(Verdict::BadLength)?;
        if !vxlan.has_vni() {
            return Err(Verdict::BadFlags);
        }
        let (vni, has_reserved_bits) = (vxlan.vni().get(), vxlan.has_reserved_bits());
        let inner = offset + vxlan::HEADER;
        Ok(Outer { frame, source, tos, length, checksum, inner, vni, has_reserved_bits, is_plain })
    }

    /// Source address, TOS, where the UDP payload is, [`Outer::is_plain`], UDP header.
    #[inline(always)]
    fn udp<'a>(frame: Frame) -> Result<(Address, u8, usize, bool, &'a Udp), Verdict> {
        let ethernet: &Ethernet = frame.header(0).ok_or(Verdict::Pass)?;
        let (source, destination, tos, offset, is_plain, fragment) = match ethernet.ethertype.get() {
            ethertype::IPV4 => {
                let ip: &Ipv4 = frame.header(ethernet::HEADER).ok_or(Verdict::Pass)?;
                let (length, fragment) = (ip.header_length(), Fragment::of_ipv4(ip));
                if ip.version() != 4 || length < ipv4::HEADER || ip.protocol != protocol::UDP {
                    return Err(Verdict::Pass);
                }
                let (source, destination) = (Address::ipv4(ip.source), Address::ipv4(ip.destination));
                (source, destination, ip.tos, ethernet::HEADER + length, true, fragment)
            }
            ethertype::IPV6 => {
                let ip: &Ipv6 = frame.header(ethernet::HEADER).ok_or(Verdict::Pass)?;
                let (mut next, mut offset) = (ip.next_header, ethernet::HEADER + ipv6::HEADER);
                let mut fragment = Fragment::None;
                if next == extension::FRAGMENT {
                    let header: &ipv6::Fragment = frame.header(offset).ok_or(Verdict::Pass)?;
                    (next, fragment) = (header.next_header, Fragment::of_ipv6(header));
                    offset += ipv6::Fragment::LENGTH;
                }
                if ip.version() != 6 || next != protocol::UDP {
                    return Err(Verdict::Pass);
                }
                let (source, destination) = (Address::ipv6(ip.source), Address::ipv6(ip.destination));
                let is_plain = !source.is_mapped() && !destination.is_mapped();
                (source, destination, ip.traffic_class(), offset, is_plain, fragment)
            }
            _ if frame.header::<Tag>(Tag::OFFSET).is_some_and(Tag::is_priority) => {
                return Err(Verdict::BadHeader);
            }
            _ => return Err(Verdict::Pass),
        };
        if fragment == Fragment::Later {
            return Err(Verdict::Pass);
        }
        let udp: &Udp = frame.header(offset).ok_or(Verdict::Pass)?;
        if udp.destination_port.get() != PORT.load() || LOCAL.get_ptr(destination).is_none() {
            return Err(Verdict::Pass);
        }
        if fragment == Fragment::First {
            return Err(Verdict::Fragment);
        }
        if ethernet.ethertype.get() == ethertype::IPV4 && offset != ethernet::HEADER + ipv4::HEADER {
            return Err(Verdict::BadHeader);
        }
        Ok((source, tos, offset + udp::HEADER, is_plain, udp))
    }

    /// Whether the engine may have the frame.
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline(always)]
    pub fn admit(&self) -> Result<(), Verdict> {
        match (NETWORKS.get_ptr(self.vni).is_some(), self.is_from_vtep()) {
            (true, true) => Ok(()),
            (true, false) => Err(Verdict::UnknownVtep),
            (false, known_vtep) => {
                // Who may not send to us must not fill the map.
                if known_vtep && self.is_meant_for_us() {
                    self.note_unknown();
                }
                Err(Verdict::UnknownVni)
            }
        }
    }

    #[inline(always)]
    fn is_from_vtep(&self) -> bool {
        VTEPS.get_ptr(self.source).is_some() || is_in_prefix(self.source)
    }

    /// Whether the inner frame was sent to this node: unicast, or an ARP request for its address. Broadcast and
    /// multicast go to every node, and call for no network on all of them.
    #[inline(always)]
    fn is_meant_for_us(&self) -> bool {
        let Some(ethernet) = self.frame.header::<Ethernet>(self.inner) else { return false };
        if !ethernet.destination.is_multicast() {
            return true;
        }
        ethernet.ethertype.get() == ethertype::ARP
            && self
                .frame
                .header::<Arp>(self.inner + ethernet::HEADER)
                .is_some_and(|arp| LOCAL.get_ptr(Address::ipv4(arp.target_ip)).is_some())
    }

    #[inline(always)]
    fn note_unknown(&self) {
        match UNKNOWN.get_ptr_mut(self.vni) {
            // SAFETY: the value of this CPU, which runs one of our programs at a time.
            Some(unknown) => unsafe { (*unknown).count += 1 },
            // Full means only that it is not noted: the control thread hears of it at the next frame.
            None => drop(UNKNOWN.insert(self.vni, Unknown { source: self.source, count: 1 }, 0)),
        }
    }
}

/// Whether a frame with its addresses in front was sent to this NIC, as the kernel sees it (eth_type_trans).
#[inline(always)]
pub fn is_for_nic(frame: Frame) -> bool {
    let Some(Ethernet { destination, .. }) = frame.header(0) else { return false };
    // As long as the NIC's MAC is unknown, nobody else's is known either.
    destination.is_multicast() || MAC.get(0).is_none_or(|mac| *mac == [0; 2] || *mac == mac_key(*destination))
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
