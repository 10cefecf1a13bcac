//! Counters. Only the worker that owns a counter writes it, so counting is a plain load and store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use uvn_api::dataplane::message::Counts;
use uvn_wire::verdicts;

verdicts! {
    /// Why a frame went no further. One counter each, per worker and per network.
    pub enum Drop {
        /// Received: not UDP to our VTEP address and port, which the XDP program should have passed to the kernel.
        NotOurs = "rx_not_ours" drops,
        /// Received: to our VTEP address, and to the MAC of another host.
        OtherHost = "rx_other_host" drops,
        /// Received: the outer IPv4 header has options, which no VXLAN sender writes.
        OuterOptions = "rx_outer_options" drops,
        /// Received: a length field contradicts the bytes there are.
        RxLength = "rx_bad_length" drops,
        /// Received: the outer IPv4 header's or UDP's checksum is wrong, or UDP's is missing over IPv6.
        OuterChecksum = "rx_outer_checksum" drops,
        /// Received: the I flag is missing, or a reserved bit is set and `strict_flags` is on.
        Flags = "rx_bad_flags" drops,
        /// Received: no network with this VNI on this NIC.
        UnknownVni = "rx_unknown_vni" drops,
        /// Received: the outer source is not an allowed VTEP.
        UnknownVtep = "rx_unknown_vtep" drops,
        /// Received: the inner source MAC does not belong to the sending VTEP.
        RxSourceMac = "rx_inner_source_mac" drops,
        /// Received: the inner on-subnet source address does not belong to the sending VTEP.
        RxSourceIp = "rx_inner_source_ip" drops,
        /// Received: the inner frame is not untagged IPv4, IPv6 or ARP.
        RxProtocol = "rx_inner_protocol" drops,
        /// Received: the inner frame is itself sent to the VXLAN port.
        RxNested = "rx_nested_vxlan" drops,
        /// Received: the inner destination MAC is not this endpoint's.
        NotForEndpoint = "rx_not_for_endpoint" drops,
        /// Received: the outer header is marked CE, the inner is not ECN-capable (RFC 6040 section 4.2).
        Ecn = "rx_ecn" drops,
        /// Received: fragments of a datagram that does not become whole, or that comes twice.
        RxFragment = "rx_fragment" drops,
        /// Received: the endpoint's queue is full or the kernel refused the frame.
        EndpointFull = "rx_endpoint_full" drops,
        /// Sent: the frame's lengths or offload metadata contradict each other.
        TxLength = "tx_bad_length" drops,
        /// Sent: the source MAC is not the endpoint's.
        TxSourceMac = "tx_source_mac" drops,
        /// Sent: the source address is not one of the endpoint's.
        TxSourceIp = "tx_source_ip" drops,
        /// Sent: not untagged IPv4, IPv6 or ARP.
        TxProtocol = "tx_protocol" drops,
        /// Sent: to the VXLAN port.
        TxNested = "tx_nested_vxlan" drops,
        /// Sent: does not fit the underlay's MTU; answered with ICMP or ICMPv6 "too big" where it is IP.
        TooBig = "tx_too_big" drops,
        /// Sent: no VTEP is known for the destination MAC.
        NoDestination = "tx_no_destination" drops,
        /// Sent: the kernel has no route to the VTEP, or its neighbour does not answer.
        NoNextHop = "tx_no_next_hop" drops,
        /// Sent: broadcast, multicast or unknown, beyond the network's flood rate.
        FloodLimit = "tx_flood_limit" drops,
        /// Sent: fragments of a datagram of which the endpoint's queue, or a limit, has dropped others.
        TxFragment = "tx_fragment" drops,
        /// Sent: no free frame in the NIC's queue.
        NicFull = "tx_nic_full" drops,
    }
}

/// The counters of one worker, or of one worker and network.
#[derive(Debug)]
pub struct Counters {
    /// Inner frames handed to endpoints (each received segment counts).
    pub rx_frames: Count,
    /// Their bytes, inner Ethernet header included.
    pub rx_bytes: Count,
    /// Inner frames sent (each segment counts).
    pub tx_frames: Count,
    /// Their bytes, inner Ethernet header included.
    pub tx_bytes: Count,
    drops: [Count; Drop::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            rx_frames: Count::default(),
            rx_bytes: Count::default(),
            tx_frames: Count::default(),
            tx_bytes: Count::default(),
            drops: std::array::from_fn(|_| Count::default()),
        }
    }
}

impl Counters {
    /// Counts `frames` dropped for one reason.
    pub fn dropped(&self, reason: Drop, frames: u64) {
        self.drops[reason as usize].add(frames);
    }

    /// The number of frames dropped for this reason.
    #[must_use]
    pub fn drops(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Adds these counters to `counts`.
    pub fn add_to(&self, counts: &mut Counts) {
        counts.rx_frames += self.rx_frames.get();
        counts.rx_bytes += self.rx_bytes.get();
        counts.tx_frames += self.tx_frames.get();
        counts.tx_bytes += self.tx_bytes.get();
        for reason in Drop::ALL {
            let count = self.drops(reason);
            if count > 0 {
                *counts.drops.entry(reason.name().into()).or_default() += count;
            }
        }
    }
}

/// A counter with a single writer. Readers may see an old value, but never a torn one.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to the counter. Only the owning worker may call it.
    pub fn add(&self, value: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(value), Relaxed);
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
