//! AF_XDP: one NIC queue with its own UMEM and four rings (Documentation/networking/af_xdp.rst), by xsk-rs.
//!
//! Every frame is in one place: with the kernel (in a ring), in one of two free lists, or with the owner of a
//! [`Frame`]. The UMEM's first half only receives, the other half only sends, so that a NIC that does not send cannot
//! stop receipt. The caller attaches the XDP program that redirects to this socket, and puts [`Nic::fd`] into its map.

#![allow(
    unsafe_code,
    reason = "the UMEM is memory shared with the kernel, and some socket options have no safe interface"
)]

mod open;

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

pub use open::{XskConfig, XskError};
use uvn_engine::port::{Nic, State};

/// Bytes of a UMEM frame: a page, which every driver supports.
const FRAME_SIZE: usize = 4096;
/// The longest IP packet that one frame holds, bytes: the kernel keeps XDP_PACKET_HEADROOM (256 bytes) of a received
/// frame for itself (net/xdp/xsk_buff_pool.c), and the Ethernet header takes 14. A NIC with a larger MTU cannot be
/// used.
pub const MAX_MTU: usize = FRAME_SIZE - 256 - 14;

/// A UMEM frame that its holder owns. Neither Clone nor Copy; a dropped frame is lost until the queue is closed.
#[derive(Debug)]
pub struct Frame {
    desc: FrameDesc,
    /// [`XskQueue::id`] of the queue it belongs to.
    owner: u32,
}

/// One NIC queue.
pub struct XskQueue {
    /// Tells this queue's frames from those of another queue.
    id: u32,
    umem: Umem,
    /// The address at which the UMEM is mapped.
    base: usize,
    length: usize,
    fill: FillQueue,
    completion: CompQueue,
    rx: RxQueue,
    tx: TxQueue,
    /// Slots of the TX ring.
    tx_slots: u32,
    /// Free frames to send with.
    pool: Vec<FrameDesc>,
    /// Free frames to receive with, not yet in the fill ring.
    refill: Vec<FrameDesc>,
    /// Frames to send, not yet in the TX ring.
    queued: Vec<FrameDesc>,
    /// Frames in the TX ring or sent, not yet completed.
    outstanding: usize,
    /// Descriptors out of a ring, before they become frames.
    scratch: Vec<FrameDesc>,
    /// Received descriptors that named no frame of the UMEM.
    invalid: u64,
    busy_poll: bool,
    zero_copy: bool,
    huge_pages: bool,
}

impl XskQueue {
    /// Whether frames go between NIC and UMEM without a copy.
    #[must_use]
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Whether the UMEM is on huge pages.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Whether busy polling was configured, and the kernel supports it.
    #[must_use]
    pub fn busy_poll(&self) -> bool {
        self.busy_poll
    }

    fn socket(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    /// Puts a free frame into the list of its half.
    fn free(&mut self, desc: FrameDesc) {
        let list = if desc.addr() < self.length / 2 { &mut self.refill } else { &mut self.pool };
        list.push(desc);
    }

    /// Whether a descriptor from a ring names bytes within one frame.
    fn is_valid(&self, desc: &FrameDesc) -> bool {
        desc.addr() < self.length && desc.addr() % FRAME_SIZE + desc.lengths().data() <= FRAME_SIZE
    }

    fn complete(&mut self) {
        while self.outstanding > 0 {
            // SAFETY: the descriptors are overwritten by what this UMEM's completion ring holds.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            self.outstanding = self.outstanding.saturating_sub(count);
            for index in 0..count {
                let desc = self.scratch[index];
                if self.is_valid(&desc) {
                    self.free(desc);
                }
            }
            if count < self.scratch.len() {
                break;
            }
        }
    }

    fn produce(&mut self) {
        let room = self.tx.nb_free_exact() as usize;
        let count = room.min(self.queued.len());
        if count > 0 {
            // SAFETY: the frames are of this UMEM, and the owner gave them up in `transmit`.
            let produced = unsafe { self.tx.produce(&self.queued[..count]) };
            self.queued.drain(..produced);
            self.outstanding += produced;
        }
        let room = self.fill.nb_free_exact() as usize;
        let count = room.min(self.refill.len());
        if count > 0 {
            let first = self.refill.len() - count;
            // SAFETY: the frames are of this UMEM and free.
            let produced = unsafe { self.fill.produce(&self.refill[first..]) };
            self.refill.drain(first..first + produced);
        }
    }

    /// Makes the kernel send what is in the TX ring, as far as it can at once; the rest waits for the next flush.
    fn kick(&mut self) -> State {
        let mut waiting = self.waiting();
        while waiting > 0 && self.tx.needs_wakeup() {
            match send(self.socket(), &[], MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {}
                // More than one call sends (EAGAIN), the NIC's queue is full (EBUSY), no memory now (ENOBUFS).
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => {}
                Err(error) => return state_after(error),
            }
            let left = self.waiting();
            if left == waiting {
                break;
            }
            waiting = left;
            self.complete();
        }
        State::Up
    }

    /// The number of frames in the TX ring that the kernel has not taken.
    fn waiting(&mut self) -> u32 {
        self.tx_slots.saturating_sub(self.tx.nb_free_exact())
    }

    /// The first `length` bytes of a frame, from the descriptor's address on; none if the frame is another queue's.
    fn at(&self, frame: &Frame, length: usize) -> *mut [u8] {
        let length = if frame.owner == self.id { length } else { 0 };
        let start = std::ptr::with_exposed_provenance_mut::<u8>(self.base + frame.desc.addr());
        std::ptr::slice_from_raw_parts_mut(start, length)
    }
}

/// The state of a queue after a call on its socket failed.
fn state_after(error: Errno) -> State {
    match error {
        // The socket is no longer bound: the device was removed.
        Errno::ENXIO | Errno::ENODEV | Errno::EBADF => State::Gone,
        _ => State::Down,
    }
}

impl Nic for XskQueue {
    type Frame = Frame;

    fn receive(&mut self, frames: &mut Vec<Frame>) -> usize {
        // SAFETY: the descriptors are overwritten by what this UMEM's RX ring holds.
        let count = unsafe { self.rx.consume(&mut self.scratch) };
        let before = frames.len();
        for index in 0..count {
            let desc = self.scratch[index];
            if self.is_valid(&desc) {
                frames.push(Frame { desc, owner: self.id });
            } else {
                self.invalid += 1;
            }
        }
        frames.len() - before
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: the range is in the UMEM (`is_valid`), which lives as long as `self`, and no one else has the frame:
        // frames are neither cloned nor made twice.
        unsafe { &*self.at(frame, frame.desc.lengths().data()) }
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        // SAFETY: as in `bytes`, and both are borrowed exclusively.
        unsafe { &mut *self.at(frame, frame.desc.lengths().data()) }
    }

    fn release(&mut self, frame: Frame) {
        if frame.owner == self.id {
            self.free(frame.desc);
        }
    }

    fn reserve(&mut self) -> Option<Frame> {
        self.pool.pop().map(|desc| Frame { desc, owner: self.id })
    }

    fn room(&self) -> usize {
        self.pool.len()
    }

    fn buffer<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        let room = FRAME_SIZE - frame.desc.addr() % FRAME_SIZE;
        // SAFETY: as in `bytes_mut`; the range ends with the frame.
        unsafe { &mut *self.at(frame, room) }
    }

    fn transmit(&mut self, mut frame: Frame, length: usize) {
        if frame.owner != self.id {
            return;
        }
        // SAFETY: the frame is of this UMEM and ours alone.
        unsafe { self.umem.data_mut(&mut frame.desc) }.cursor().set_pos(length);
        self.queued.push(frame.desc);
    }

    fn flush(&mut self) -> usize {
        self.complete();
        self.produce();
        let state = self.kick();
        if self.busy_poll || self.fill.needs_wakeup() {
            // Reads nothing, but runs the driver's receive side. Errors of the NIC are in `state`.
            let _ = recv(self.socket(), &mut [], MsgFlags::MSG_DONTWAIT);
        }
        match state {
            State::Up => self.outstanding + self.queued.len(),
            // The frames wait in the ring until the NIC is up; the worker need not wait for them.
            State::Down | State::Gone => 0,
        }
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.socket())
    }

    fn lost(&self) -> u64 {
        let lost =
            self.rx.fd().xdp_statistics().map_or(0, |counted| counted.rx_dropped() + counted.rx_ring_full());
        lost + self.invalid
    }

    fn state(&self) -> State {
        match send(self.socket(), &[], MsgFlags::MSG_DONTWAIT) {
            Err(error @ (Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV | Errno::EBADF)) => {
                state_after(error)
            }
            _ => State::Up,
        }
    }
}
