//! The outer headers, and the check of the VTEP that sent them.

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

/// The mode in which bpf_skb_adjust_room makes or removes room behind the Ethernet header (enum bpf_adj_room_mode,
/// include/uapi/linux/bpf.h).
pub const ROOM_MAC: u32 = 1;

/// The outer headers of a VXLAN frame to this node.
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
    /// The offset of the inner frame, bytes.
    pub inner: usize,
    /// The network.
    pub vni: u32,
    /// Whether a reserved VXLAN bit is set.
    pub has_reserved_bits: bool,
    /// Whether neither address is an IPv4-mapped IPv6 one, which the maps would take for IPv4.
    pub is_plain: bool,
}

impl Outer {
    /// Parses the outer headers of a `frame` from which a priority tag has been removed. [`Verdict::Pass`]: the frame
    /// is not uvn's, since it is a VLAN's, IPv6 with extension headers, a fragment, or not UDP to this node's VTEP
    /// address and port.
    /// [`Verdict::Fragment`]: it is the first fragment of a packet to them.
    ///
    /// # Errors
    /// The verdict on a frame that is not taken.
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
                // Only allowed VTEPs may fill the map.
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

    /// Whether the inner frame is meant for this node: unicast, or an ARP request for its address. Other broadcast and
    /// multicast goes to every node, and must not make a network on each.
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
            // If the map is full, the VNI is noted with a later frame.
            None => drop(UNKNOWN.insert(self.vni, Unknown { source: self.source, count: 1 }, 0)),
        }
    }
}

/// Whether a frame is addressed to this NIC, by the kernel's rule (eth_type_trans). Its addresses must be in front.
#[inline(always)]
pub fn is_for_nic(frame: Frame) -> bool {
    let Some(Ethernet { destination, .. }) = frame.header(0) else { return false };
    // While the NIC's MAC is unknown, every destination counts as its own.
    destination.is_multicast() || MAC.get(0).is_none_or(|mac| *mac == [0; 2] || *mac == mac_key(*destination))
}

/// Whether an allowed prefix contains an address. The key is written word by word: the prefix's length moves the
/// address off the eight-byte alignment that the verifier wants on the stack.
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
