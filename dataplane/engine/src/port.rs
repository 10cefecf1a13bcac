//! The two ends of a worker as traits, so that the same worker runs over AF_XDP and TAP, or in memory.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One queue of the underlay NIC. Frames are move-only: each is with the kernel, in the pool, or with one owner.
pub trait Nic {
    /// A buffer that this queue owns. Neither `Clone` nor `Copy`.
    type Frame;

    /// Appends the frames that have arrived, at most one batch, and returns their number.
    fn receive(&mut self, frames: &mut Vec<Self::Frame>) -> usize;

    /// The bytes of a received frame.
    fn bytes<'a>(&'a self, frame: &'a Self::Frame) -> &'a [u8];

    /// The bytes of a received frame, to change them in place.
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Self::Frame) -> &'a mut [u8];

    /// Gives a frame back: a received one after use, or a reserved one that is not sent.
    fn release(&mut self, frame: Self::Frame);

    /// A free frame to build a packet in; None: all are in use.
    fn reserve(&mut self) -> Option<Self::Frame>;

    /// The number of frames that `reserve` can return now.
    fn room(&self) -> usize;

    /// All bytes that a reserved frame can hold.
    fn buffer<'a>(&'a mut self, frame: &'a mut Self::Frame) -> &'a mut [u8];

    /// Queues the first `length` bytes of a reserved frame. They leave at the next `flush`.
    fn transmit(&mut self, frame: Self::Frame, length: usize);

    /// Hands queued frames to the kernel, takes back sent ones and refills the receive side.
    ///
    /// Returns the number of frames that the kernel has not sent yet: until it is zero, the worker must not sleep. Zero
    /// while the NIC is down or gone.
    fn flush(&mut self) -> usize;

    /// A descriptor that is readable when a frame has arrived; None for a queue in memory.
    fn fd(&self) -> Option<RawFd>;

    /// Frames that the NIC or kernel has lost on this queue since it was opened (of AF_XDP: XDP_STATISTICS).
    fn lost(&self) -> u64 {
        0
    }

    /// The state of the NIC. Makes a system call, so it is for once a second, not once a packet.
    fn state(&self) -> State {
        State::Up
    }
}

/// Whether a NIC queue can carry frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It can.
    Up,
    /// The NIC is set down. Frames queued meanwhile leave once it is up again.
    Down,
    /// The NIC was removed, or the kernel took the queue back: the queue must be opened again.
    Gone,
}

/// One user's device, as the engine sees it.
pub trait Endpoint: Send {
    /// Copies the next frame that the kernel wants to send into `buffer`, and returns its metadata and length. None:
    /// there is no frame now.
    ///
    /// # Errors
    /// The device is gone or broken; the worker detaches it.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>>;

    /// Hands one frame, in parts, to the kernel; it may leave only at the next `flush`. False: the endpoint is full or
    /// set down, or refuses this frame.
    ///
    /// # Errors
    /// The device is gone or broken; the worker detaches it.
    fn send(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool>;

    /// Sends what `send` may have queued. Must be called after each batch.
    fn flush(&mut self) {}

    /// The super-frames that `send` takes.
    fn offloads(&self) -> Offloads;

    /// A descriptor that is readable when the kernel has a frame to send; None for an endpoint in memory.
    fn fd(&self) -> Option<RawFd>;
}

/// The super-frames that an endpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Joined TCP segments, over IPv4 and IPv6.
    pub tcp: bool,
    /// Joined UDP datagrams (Linux 6.2 and later).
    pub udp: bool,
}

/// `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), in host byte order as TAP uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CHECKSUM`] or zero.
    pub flags: u8,
    /// One of the `GSO_*` values, possibly with [`VnetHeader::GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers of a super-frame, bytes. A hint, never trusted.
    pub header_length: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// The offset at which the checksum begins to sum.
    pub checksum_start: u16,
    /// The offset of the checksum field, from `checksum_start`.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// Its length on the TAP, bytes.
    pub const LENGTH: usize = 10;
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum field holds the pseudo-header sum only.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// VIRTIO_NET_HDR_GSO_NONE.
    pub const GSO_NONE: u8 = 0;
    /// VIRTIO_NET_HDR_GSO_TCPV4.
    pub const GSO_TCPV4: u8 = 1;
    /// VIRTIO_NET_HDR_GSO_TCPV6.
    pub const GSO_TCPV6: u8 = 4;
    /// VIRTIO_NET_HDR_GSO_UDP_L4.
    pub const GSO_UDP: u8 = 5;
    /// VIRTIO_NET_HDR_GSO_ECN: the first segment alone carries CWR.
    pub const GSO_ECN: u8 = 0x80;
}

/// Parts of one frame in [`Endpoint::send`], at most; a frame with more is refused.
pub const MAX_PARTS: usize = 65;

/// The longest frame that an endpoint hands over, bytes: a 64 KiB IP packet and its Ethernet header.
pub const MAX_FRAME: usize = 65_535 + uvn_wire::ethernet::HEADER;
