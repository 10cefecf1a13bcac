//! What the programs know: the loader's constants, the policy, networks and sockets' owners; and its look-up.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_def, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use uvn_wire::cgroup::{self, Device, Executable, Network, Owner, Range, Refused, Verdict, Way};
use uvn_wire::xdp::Address;

/// aya_obj::maps::PinningType::ByName
const PINNED_BY_NAME: u32 = 1;

/// The cookie of the loader's network namespace. The loader sets it.
#[unsafe(no_mangle)]
pub(crate) static NETNS: Global<u64> = Global::new(0);

/// The namespace's tag in marks. The loader sets it.
#[unsafe(no_mangle)]
pub(crate) static TAG: Global<u32> = Global::new(0);

/// Not 0: the programs count what they would refuse, and refuse nothing. The loader sets it.
#[unsafe(no_mangle)]
pub(crate) static OBSERVE: Global<u32> = Global::new(0);

/// The UID that slurmctld runs as. The loader sets it.
#[unsafe(no_mangle)]
pub(crate) static SLURM_USER: Global<u32> = Global::new(0);

/// The way from a process to its executable. The loader sets it.
#[unsafe(no_mangle)]
pub(crate) static WAY: Global<Way> =
    Global::new(Way { mm: 0, exe_file: 0, f_inode: 0, i_ino: 0, i_sb: 0, s_dev: 0 });

/// Policed UIDs. Belongs to the policy: each load of the programs has its own.
#[map]
pub(crate) static POLICED: Array<Range> = Array::with_max_entries(cgroup::RANGE_ENTRIES, 0);

/// The programs that Slurm's daemons call back. Belongs to the policy.
#[map]
pub(crate) static EXECUTABLES: HashMap<Executable, u8> =
    HashMap::with_max_entries(cgroup::EXECUTABLE_ENTRIES, 0);

/// The kinds of each port, by number. Belongs to the policy.
#[map]
pub(crate) static PORTS: Array<u8> = Array::with_max_entries(1 << 16, 0);

/// Destinations that are not off-subnet. Belongs to the policy, and does not change once the programs are attached.
#[map]
pub(crate) static DESTINATIONS: LpmTrie<Address, u8> =
    LpmTrie::with_max_entries(cgroup::DESTINATION_ENTRIES, 0);

/// Users who were refused a socket for want of a network, by UID. Belongs to the policy.
#[map]
pub(crate) static REFUSED: LruHashMap<u32, Refused> =
    LruHashMap::with_max_entries(cgroup::REFUSED_ENTRIES, 0);

/// The number of each user's network, by UID. This map and those below are pinned, and outlive `uvnd`.
#[map]
pub(crate) static BOUND: HashMap<u32, u32> = HashMap::pinned(cgroup::NETWORK_ENTRIES, BPF_F_NO_PREALLOC);

/// Networks by their number.
#[map]
pub(crate) static NETWORKS: Array<Network> = Array::pinned(cgroup::NETWORK_ENTRIES, 0);

/// The VRF to which a VRF or endpoint belongs, by interface index.
#[map]
pub(crate) static DEVICES: HashMap<u32, u64> = HashMap::pinned(cgroup::DEVICE_ENTRIES, BPF_F_NO_PREALLOC);

/// The owner of each socket. `uvnd` makes the map, since the kernel needs the BTF types of its values.
#[map]
static OWNERS: Owners = Owners(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_SK_STORAGE,
    key_size: size_of::<u32>() as u32,
    value_size: size_of::<Owner>() as u32,
    max_entries: 0,
    map_flags: BPF_F_NO_PREALLOC | BPF_F_CLONE,
    id: 0,
    pinning: PINNED_BY_NAME,
}));

/// aya has maps of this kind only with BTF.
#[repr(transparent)]
struct Owners(UnsafeCell<bpf_map_def>);

// SAFETY: its address alone is used.
unsafe impl Sync for Owners {}

/// Sockets and packets by verdict.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Verdict::ALL.len() as u32, 0);

/// How often a look-up is repeated that found another key's element.
const LOOKS: u32 = 4;

/// The user's network and its number.
#[inline(always)]
pub(crate) fn network_of(uid: u32) -> Result<(u32, Network), Verdict> {
    for _ in 0..LOOKS {
        let found = BOUND.get_ptr(uid).ok_or(Verdict::NoNetwork)?;
        // SAFETY: an element of the map, some user's.
        let number = unsafe { found.read_volatile() };
        let Some(place) = NETWORKS.get_ptr(number) else { continue };
        // SAFETY: an element of the array. The UID is read last: if it is the user's, all that was read before is, too.
        let (network, owner) = unsafe { (place.read_volatile(), (&raw const (*place).uid).read_volatile()) };
        if owner == uid {
            return Ok((number, network));
        }
    }
    Err(Verdict::NoNetwork)
}

/// The network of a socket's owner; None: its number is another user's by now.
#[inline(always)]
pub(crate) fn network(owner: Owner) -> Option<&'static Network> {
    NETWORKS.get(owner.mark.number()).filter(|network| network.uid == owner.uid)
}

/// The VRF of a VRF or endpoint, by interface index; None: another device. 0 is no VRF.
#[inline(always)]
pub(crate) fn vrf_of(device: u32) -> Option<u32> {
    for _ in 0..LOOKS {
        // SAFETY: an element of the map, some device's, in one word.
        let found = Device(unsafe { DEVICES.get_ptr(device)?.read_volatile() });
        if found.index() == device {
            return Some(found.vrf());
        }
    }
    Some(0)
}

/// The owner of a socket; None: it is no policed user's.
#[inline(always)]
pub(crate) fn owner(socket: *mut bpf_sock) -> Option<&'static mut Owner> {
    // SAFETY: the verifier knows the socket, and that null is sorted out.
    unsafe {
        bpf_sk_storage_get(OWNERS.0.get().cast(), socket.cast(), core::ptr::null_mut(), 0)
            .cast::<Owner>()
            .as_mut()
    }
}

/// Stores the owner of a new socket. False: the kernel has no memory for that.
#[inline(always)]
pub(crate) fn note_owner(socket: *mut bpf_sock, owner: &mut Owner) -> bool {
    let (owner, flags) = (core::ptr::from_mut(owner).cast(), u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    // SAFETY: the verifier knows the socket; the kernel reads as much as a value of the map is long.
    let noted = unsafe { bpf_sk_storage_get(OWNERS.0.get().cast(), socket.cast(), owner, flags) };
    !noted.is_null()
}

#[inline(always)]
pub(crate) fn is_port(port: u32, kind: u8) -> bool {
    PORTS.get(port).is_some_and(|kinds| kinds & kind != 0)
}

/// The kind of a destination; None: it is off-subnet. The key is written word by word: the prefix's length moves the
/// address off the eight-byte alignment that the verifier wants on the stack.
#[inline(always)]
pub(crate) fn special(Address([a, b, c, d]): Address) -> Option<u8> {
    let mut key = MaybeUninit::<Key<Address>>::uninit();
    for (index, word) in [u128::BITS, a, b, c, d].into_iter().enumerate() {
        // SAFETY: a key is five words: the length and the address.
        unsafe { key.as_mut_ptr().cast::<u32>().add(index).write_volatile(word) };
    }
    // SAFETY: all five words are written.
    DESTINATIONS.get(unsafe { key.assume_init_ref() }).copied()
}
