//! What the cgroup programs and their loader agree on: the mark of a socket, verdicts, and the keys, values and sizes
//! of the maps.

use crate::verdicts;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of the pinned maps: it must be raised when their keys, values or sizes change, so that `uvnd` does not
/// take over maps of another layout.
pub const LAYOUT: u32 = 4;
/// Numbers of networks on a node, of which 0 is no network's.
pub const NETWORK_ENTRIES: u32 = 16_384;
/// VRFs and endpoints, at most.
pub const DEVICE_ENTRIES: u32 = 65_536;
/// Users whose refusals are remembered, at most.
pub const REFUSED_ENTRIES: u32 = 1024;
/// Ranges of policed UIDs, at most.
pub const RANGE_ENTRIES: u32 = 64;
/// Prefixes of destinations that are not off-subnet, at most.
pub const DESTINATION_ENTRIES: u32 = 4096;
/// Programs that may listen on a `srun` port, at most.
pub const EXECUTABLE_ENTRIES: u32 = 64;

/// Entries for device files that policed users may not open, at most.
pub const DEVICE_FILE_ENTRIES: u32 = 16;

/// A port that users may not take.
pub const PORT_SERVICE: u8 = 1;
/// A TCP port at which Slurm's daemons call the user's `srun` back.
pub const PORT_SRUN: u8 = 1 << 1;
/// A UDP port of VXLAN.
pub const PORT_VXLAN: u8 = 1 << 2;

/// A destination inside an underlay subnet, or one that is local by nature: a user reaches it only through their
/// network.
pub const DESTINATION_NEAR: u8 = 1;
/// A host without uvn: every user may reach it from the NIC.
pub const DESTINATION_HOST: u8 = 2;

/// A program that may listen on a `srun` port: its TCP sockets join the network at bind or connect and not earlier,
/// since an unprivileged process cannot take them out again (net/core/sock.c, sock_bindtoindex_locked). A user who runs
/// their own code inside such a program (LD_PRELOAD, ptrace) gains little: a socket outside of every network can only
/// answer on a `srun` port, which only the cluster's nodes reach.
///
/// The numbers are those of the kernel's inode, which stat(2) does not always return (overlayfs, btrfs).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Executable {
    /// `i_ino`.
    pub inode: u64,
    /// `s_dev` of its file system: the lower 20 bits are the minor number (include/linux/kdev_t.h).
    pub device: u32,
    /// Fills up to the next word.
    pub padding: u32,
}

/// The way from a process to its executable: offsets in the kernel's structures, in bytes, from its BTF. All zero: the
/// kernel has no BTF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Way {
    /// `task_struct.mm`.
    pub mm: u32,
    /// `mm_struct.exe_file`.
    pub exe_file: u32,
    /// `file.f_inode`.
    pub f_inode: u32,
    /// `inode.i_ino`.
    pub i_ino: u32,
    /// `inode.i_sb`.
    pub i_sb: u32,
    /// `super_block.s_dev`.
    pub s_dev: u32,
}

/// Offsets in the kernel's structures of a Unix socket, in bytes, from its BTF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct UnixSocket {
    /// `sock.__sk_common.skc_net`: its network namespace.
    pub net: u32,
    /// `net.net_cookie`.
    pub net_cookie: u32,
    /// `sock.sk_socket`: the `struct socket`, which user space has a descriptor of.
    pub socket: u32,
    /// `socket.sk`: back to the `struct sock`.
    pub sock: u32,
    /// `socket.file`.
    pub file: u32,
    /// `file.f_cred`: the credentials of the process that made the socket.
    pub f_cred: u32,
    /// `cred.uid`: the real UID, in the initial user namespace.
    pub uid: u32,
    /// `unix_sock.addr`: null if the socket has no name.
    pub addr: u32,
    /// `unix_address.name.sun_path`: an abstract name begins with a zero.
    pub path: u32,
}

/// Offsets in the kernel's structures of a datagram socket, in bytes, from its BTF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Datagram {
    /// `socket.type`, such as SOCK_DGRAM.
    pub kind: u32,
    /// `socket.sk`.
    pub sock: u32,
    /// `sock.__sk_common.skc_family`.
    pub family: u32,
    /// The byte that holds the bit field `sock.sk_userlocks`.
    pub locks: u32,
    /// The bit in that byte that says that bind(2) chose the port.
    pub port_lock: u32,
}

/// A device file by its numbers. Major number 0 marks the end of the list.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DeviceFile {
    /// The driver's number.
    pub major: u32,
    /// The device's number, or [`DeviceFile::ANY`].
    pub minor: u32,
}

impl DeviceFile {
    /// Every device of the driver.
    pub const ANY: u32 = u32::MAX;
    /// The end of the list.
    pub const NONE: DeviceFile = DeviceFile { major: 0, minor: 0 };
}

/// The mark (SO_MARK) of a policed socket, for the packet filter. The kernel copies it to accepted sockets. A
/// privileged program can change it, but then the socket's packets are dropped: see [`Owner`].
///
/// ```text
/// 0111 | tag of the network namespace: 12 bits | number of the network: 16 bits      bound to the network's VRF
/// 0110 | ...                                                                         not bound yet
/// 0100 | ...                                       of a packet: what answers the network from beyond its subnets
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mark(pub u32);

impl Mark {
    /// The bits that tell whether a mark is uvn's, and its kind.
    pub const KIND: u32 = 0xf000_0000;
    const BOUND: u32 = 0x7000_0000;
    const UNBOUND: u32 = 0x6000_0000;
    /// The kind of the packets that answer a network.
    pub const ANSWER: u32 = 0x4000_0000;

    /// The mark of a socket that is bound to its network.
    #[must_use]
    #[inline]
    pub const fn bound(tag: u32, number: u32) -> Mark {
        Mark(Mark::BOUND | (tag & 0xfff) << 16 | number & 0xffff)
    }

    /// The mark of a socket that will be bound to its network later.
    #[must_use]
    #[inline]
    pub const fn unbound(tag: u32, number: u32) -> Mark {
        Mark(Mark::UNBOUND | (tag & 0xfff) << 16 | number & 0xffff)
    }

    /// Whether it marks a socket that the programs with this tag police.
    #[must_use]
    #[inline]
    pub const fn is_ours(self, tag: u32) -> bool {
        // The two kinds differ in one bit.
        self.0 & 0xefff_0000 == Mark::UNBOUND | (tag & 0xfff) << 16
    }

    /// Whether it marks a packet that answers a network in the namespace with this tag.
    #[must_use]
    #[inline]
    pub const fn is_answer(self, tag: u32) -> bool {
        self.0 & 0xffff_0000 == Mark::ANSWER | (tag & 0xfff) << 16
    }

    /// Whether it marks a socket that is not bound yet.
    #[must_use]
    #[inline]
    pub const fn is_unbound(self) -> bool {
        self.0 & Mark::KIND == Mark::UNBOUND
    }

    /// The number of the network.
    #[must_use]
    #[inline]
    pub const fn number(self) -> u32 {
        self.0 & 0xffff
    }
}

/// The tag of a network namespace in a mark, 12 bits: enough to tell a few apart, as in tests where one kernel is
/// several nodes.
#[must_use]
pub const fn tag(netns_cookie: u64) -> u32 {
    // Fibonacci hashing: cookies are small numbers in a row.
    (netns_cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u32
}

/// A range of UIDs. A first UID above the last one marks the end of the ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Range {
    /// The first UID.
    pub first: u32,
    /// The last UID.
    pub last: u32,
}

/// A network, in an array by its number. All zero: there is none.
///
/// Each look-up by number must compare the UID: an element that a look-up in a hash map has found may be another key's
/// as soon as it is replaced (kernel/bpf/memalloc.c reuses elements at once), and a socket may be older than the
/// network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct Network {
    /// The VRF's name, which SO_BINDTODEVICE wants, NUL-terminated.
    pub name: [u8; 16],
    /// The user's UID.
    pub uid: u32,
    /// The interface index of its VRF.
    pub vrf: u32,
    /// Not 0: the network may reach beyond the underlay's subnets.
    pub off_subnet: u32,
    /// Fills up to the next word.
    pub padding: u32,
}

impl Network {
    /// No network.
    pub const NONE: Network = Network { name: [0; 16], uid: 0, vrf: 0, off_subnet: 0, padding: 0 };
}

/// The value in the map of devices. It is one word, so that it is read at once, and holds its key, as [`Network`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(pub u64);

impl Device {
    /// A VRF or endpoint, and the VRF to which it belongs, by interface index.
    #[must_use]
    #[inline]
    pub const fn new(index: u32, vrf: u32) -> Device {
        Device((vrf as u64) << 32 | index as u64)
    }

    /// The device's interface index.
    #[must_use]
    #[inline]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// The interface index of the VRF to which it belongs.
    #[must_use]
    #[inline]
    pub const fn vrf(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The storage of a policed socket, which only the programs can change. Accepted sockets get a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// The mark that the socket must have.
    pub mark: Mark,
    /// The UID of the user who made it.
    pub uid: u32,
    /// Not 0: the socket has sent beyond the underlay's subnets without being connected, so answers may reach it.
    pub asked: u64,
}

/// The sockets that a user was refused for want of a network, or would be if uvn did not observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Refused {
    /// The number of sockets.
    pub count: u64,
    /// The name of the last program that asked for one, NUL-terminated.
    pub program: [u8; 16],
}

verdicts! {
    /// What the programs did with a socket or a packet. The value is its counter's index. Packets that pass are not
    /// counted.
    pub enum Verdict {
        /// A policed user's socket was put into their network.
        Bound = "bound" passes,
        /// Socket refused: the user has no network here.
        NoNetwork = "no_network" drops,
        /// Socket refused: a protocol other than TCP, UDP, UDP-Lite, ICMP, which cannot be kept in a network.
        Protocol = "protocol" drops,
        /// Bind, connect or send refused: the socket is outside of the user's network.
        Device = "device" drops,
        /// Bind refused: a service port.
        ServicePort = "service_port" drops,
        /// Connect or send refused: the socket is outside of every network, to listen on a `srun` port.
        Released = "released" drops,
        /// Packet dropped: its socket's network is gone, or the socket left it.
        Outside = "outside" drops,
        /// Packet dropped: leaving through another user's network.
        OtherNetwork = "other_network" drops,
        /// Packet dropped: UDP to a VXLAN port.
        Vxlan = "vxlan" drops,
        /// Packet dropped: leaving the network for a destination inside an underlay subnet.
        Near = "near" drops,
        /// Packet dropped: the user may not leave the underlay's subnets.
        OffSubnet = "off_subnet" drops,
        /// Packet dropped: leaving the network with source routing or other header options.
        Options = "options" drops,
        /// Packet dropped: it is for a socket outside of every network, or answers a socket that has not asked.
        Unwanted = "unwanted" drops,
        /// Packet dropped: a privileged program has changed its mark, or its socket's.
        Mark = "mark" drops,
        /// Socket refused: the kernel had no memory for its [`Owner`].
        NoMemory = "no_memory" drops,
        /// Bind refused: a `srun` port, and the program is none that Slurm's daemons call back. Connect refused: a
        /// `srun` port, and the process is not root's or SlurmUser's.
        SrunPort = "srun_port" drops,
        /// Connect or send refused: another user's abstract Unix socket.
        AbstractSocket = "abstract_socket" drops,
        /// Open refused: an RDMA device.
        Rdma = "rdma" drops,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_kind_namespace_and_network() {
        let (bound, unbound) = (Mark::bound(0xabc, 16_383), Mark::unbound(0xabc, 16_383));
        assert_eq!(bound.0, 0x7abc_3fff);
        assert_eq!(unbound.0, 0x6abc_3fff);
        for mark in [bound, unbound] {
            assert!(mark.is_ours(0xabc));
            assert!(!mark.is_ours(0xabd));
            assert_eq!(mark.number(), 16_383);
        }
        assert!(unbound.is_unbound() && !bound.is_unbound());
        let answer = Mark(Mark::ANSWER | 0x0abc_3fff);
        assert!(answer.is_answer(0xabc) && !answer.is_answer(0xabd) && !bound.is_answer(0xabc));
        for foreign in [0, 0x4abc_3fff, 0x8abc_3fff, 0xfabc_3fff, 0x0abc_3fff] {
            assert!(!Mark(foreign).is_ours(0xabc), "{foreign:#x}");
        }
    }

    #[test]
    fn values_are_as_long_as_the_maps_say() {
        assert_eq!(size_of::<Network>(), 32);
        assert_eq!(size_of::<Owner>(), 16);
        assert_eq!(size_of::<Refused>(), 24);
        assert_eq!(size_of::<Executable>(), 16);
        assert_eq!(size_of::<DeviceFile>(), 8);
        let device = Device::new(u32::MAX - 1, 7);
        assert_eq!((device.index(), device.vrf()), (u32::MAX - 1, 7));
    }

    #[test]
    fn namespaces_in_a_row_have_different_tags() {
        let tags = [4097, 4098, 4099, 8193, 1, 2].map(tag);
        for (index, one) in tags.iter().enumerate() {
            assert!(*one <= 0xfff);
            assert!(!tags.iter().skip(index + 1).any(|other| other == one), "{one:#x}");
        }
    }
}
