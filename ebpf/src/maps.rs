//! The constants that the loader sets, the maps that it fills, and the counters that it reads.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruPerCpuHashMap, PerCpuArray, XskMap};
use uvn_wire::vxlan;
use uvn_wire::xdp::{self, Address, Hop, Network, Owner, Traffic, Unknown, Verdict};

/// The UDP port of VXLAN. The loader sets it.
#[unsafe(no_mangle)]
pub static PORT: Global<u16> = Global::new(vxlan::PORT);

/// The outer destinations to take: VTEP addresses of this node, joined multicast groups.
#[map]
pub static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(xdp::LOCAL_ENTRIES, 0);

/// The NIC's MAC, as [`xdp::mac_key`]; zero: not known yet.
#[map]
pub static MAC: Array<[u32; 2]> = Array::with_max_entries(1, 0);

/// The underlay NIC's interface index, for frames of the shortcut. The loader sets it.
#[unsafe(no_mangle)]
pub static NIC: Global<u32> = Global::new(0);

/// The cookie of the NIC's network namespace, as `bpf_get_netns_cookie` returns it. 0: the kernel does not offer that
/// helper to tc programs (Linux 6.13 and later do). The loader sets it.
#[unsafe(no_mangle)]
pub static NETNS: Global<u64> = Global::new(0);

/// The interface index of the engine's TAP, for frames that the shortcut leaves to it. The loader sets it.
#[unsafe(no_mangle)]
pub static ENGINE: Global<u32> = Global::new(0);

/// Not 0: a UDP checksum of zero is accepted over IPv6. The loader sets it.
#[unsafe(no_mangle)]
pub static IPV6_ZERO_CHECKSUM: Global<u8> = Global::new(0);

/// VNIs on this NIC.
#[map]
pub static NETWORKS: HashMap<u32, Network> = HashMap::with_max_entries(xdp::VNI_ENTRIES, 0);

/// The VNI of each endpoint device that the shortcut serves.
#[map]
pub static ENDPOINTS: HashMap<u32, u32> = HashMap::with_max_entries(xdp::VNI_ENTRIES, BPF_F_NO_PREALLOC);

/// The allowed VTEP of each overlay address.
#[map]
pub static OWNERS: HashMap<Address, Owner> =
    HashMap::with_max_entries(xdp::OVERLAY_ENTRIES, BPF_F_NO_PREALLOC);

/// How to send to a VTEP, by the inner destination MAC.
#[map]
pub static HOPS: HashMap<[u32; 2], Hop> = HashMap::with_max_entries(xdp::VTEP_ENTRIES, BPF_F_NO_PREALLOC);

/// Traffic of the shortcut, by [`Network::slot`].
#[map]
pub static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(xdp::TRAFFIC_ENTRIES, 0);

/// Allowed outer sources.
#[map]
pub static VTEPS: HashMap<Address, u8> = HashMap::with_max_entries(xdp::VTEP_ENTRIES, 0);

/// Allowed outer sources, by prefix.
#[map]
pub static VTEP_PREFIXES: LpmTrie<Address, u8> = LpmTrie::with_max_entries(xdp::PREFIX_ENTRIES, 0);

/// The AF_XDP socket of each queue.
#[map]
pub static XSKS: XskMap = XskMap::with_max_entries(xdp::QUEUE_ENTRIES, 0);

/// VNIs that are not on this NIC, but in which an allowed VTEP sent to this node. The control thread reads and empties
/// it.
#[map]
pub static UNKNOWN: LruPerCpuHashMap<u32, Unknown> =
    LruPerCpuHashMap::with_max_entries(xdp::UNKNOWN_ENTRIES, 0);

/// Frames by verdict.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::ALL.len() as u32, 0);

/// The current value of a field of a map's element. The loader replaces elements and does not change them in place, but
/// the kernel may reuse a removed element for another key at once: what was read is valid if the key, read last, is
/// still the same.
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

/// Calls `add` with a network's counters.
#[inline(always)]
pub fn count_traffic(slot: u32, add: impl FnOnce(&mut Traffic)) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(slot) {
        // SAFETY: as for `count`.
        add(unsafe { &mut *traffic });
    }
}
