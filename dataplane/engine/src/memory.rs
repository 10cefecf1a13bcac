//! Ports in memory, for tests and benchmarks: frames are owned as with AF_XDP, without root or a device.
//!
//! [`nic`] makes a NIC queue and the [`Wire`] that a test holds in the kernel's place: four rings (fill, rx, tx,
//! completion) pass frames between the two. [`endpoint`] makes an endpoint and the [`User`] behind it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::atomic::AtomicCell;

use crate::port::{Endpoint, Nic, Offloads, VnetHeader};
use crate::ring::{Consumer, Producer, ring};

/// Bytes of a frame: what is left of a 4096-byte UMEM frame after the 256 bytes that XDP keeps.
pub const FRAME_ROOM: usize = 3840;

/// Where the rings' cursors begin, so that they wrap early in every test.
const RING_START: u32 = u32::MAX - 2;

/// File descriptor in bad state (include/uapi/asm-generic/errno.h): a TAP's error once its device is deleted.
const EBADFD: i32 = 77;

type Buffer = [u8; FRAME_ROOM];

/// The frames, shared by both ends. A frame's buffer is here while a ring or the pool has it, else in its [`Frame`].
struct Umem {
    frames: Box<[AtomicCell<Option<Box<Buffer>>>]>,
    held: AtomicU64,
    lost: AtomicU64,
}

/// A frame that its holder owns. A dropped frame is lost, as with AF_XDP; [`Wire::held`] shows that.
pub struct Frame {
    address: u32,
    length: u32,
    buffer: Box<Buffer>,
}

/// A NIC queue in memory.
pub struct MemoryNic {
    umem: Arc<Umem>,
    /// Free frames to send with.
    pool: Vec<u32>,
    /// Free frames to receive with, which the next flush hands over.
    refill: Vec<u32>,
    fill: Producer,
    rx: Consumer,
    tx: Producer,
    completion: Consumer,
    batch: usize,
}

/// The kernel's side of a [`MemoryNic`].
pub struct Wire {
    umem: Arc<Umem>,
    fill: Consumer,
    rx: Producer,
    tx: Consumer,
    completion: Producer,
}

/// Makes a queue of `frames` frames that receives at most `batch` frames a call. One half of them (rounded up) only
/// receives, the other only sends, so that neither direction starves the other.
#[must_use]
pub fn nic(frames: u32, batch: usize) -> (MemoryNic, Wire) {
    let umem = Arc::new(Umem {
        frames: (0..frames).map(|_| AtomicCell::new(Some(Box::new([0; FRAME_ROOM])))).collect(),
        held: AtomicU64::new(0),
        lost: AtomicU64::new(0),
    });
    // Each ring has room for every frame: none of them is ever full.
    let (mut fill, fill_end) = ring(frames, RING_START);
    let (rx_end, rx) = ring(frames, RING_START);
    let (tx, tx_end) = ring(frames, RING_START);
    let (completion_end, completion) = ring(frames, RING_START);
    let (refill, pool): (Vec<u32>, _) = (0..frames).partition(|&address| receives(address, frames));
    let refill = refill.into_iter().filter(|&address| !fill.push(address.into())).collect();
    fill.submit();
    let wire =
        Wire { umem: umem.clone(), fill: fill_end, rx: rx_end, tx: tx_end, completion: completion_end };
    (MemoryNic { umem, pool, refill, fill, rx, tx, completion, batch }, wire)
}

fn receives(address: u32, frames: u32) -> bool {
    address < frames.div_ceil(2)
}

/// A ring's descriptor: a frame's number and length.
fn descriptor(address: u32, length: u32) -> u64 {
    u64::from(length) << 32 | u64::from(address)
}

impl Umem {
    /// Makes the caller the frame's owner. None: the frame has an owner, which is an error of the rings.
    fn take(&self, descriptor: u64) -> Option<Frame> {
        let (address, length) = (descriptor as u32, (descriptor >> 32) as u32);
        let buffer = self.frames.get(address as usize)?.take()?;
        Some(Frame { address, length, buffer })
    }

    /// Ends the ownership of a frame and returns its number.
    fn put(&self, frame: Frame) -> u32 {
        if let Some(slot) = self.frames.get(frame.address as usize) {
            slot.store(Some(frame.buffer));
        }
        frame.address
    }
}

impl MemoryNic {
    fn free(&mut self, address: u32) {
        let frames = self.umem.frames.len() as u32;
        let list = if receives(address, frames) { &mut self.refill } else { &mut self.pool };
        list.push(address);
    }

    fn held(&self, change: i64) {
        // Only this end writes it.
        self.umem.held.store(self.umem.held.load(Relaxed).wrapping_add_signed(change), Relaxed);
    }
}

impl Nic for MemoryNic {
    type Frame = Frame;

    fn receive(&mut self, frames: &mut Vec<Frame>) -> usize {
        let before = frames.len();
        while frames.len() - before < self.batch
            && let Some(frame) = self.rx.pop().and_then(|descriptor| self.umem.take(descriptor))
        {
            frames.push(frame);
        }
        let count = frames.len() - before;
        self.held(count as i64);
        count
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        frame.buffer.get(..frame.length as usize).unwrap_or_default()
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        frame.buffer.get_mut(..frame.length as usize).unwrap_or_default()
    }

    fn room(&self) -> usize {
        self.pool.len()
    }

    fn release(&mut self, frame: Frame) {
        self.held(-1);
        let address = self.umem.put(frame);
        self.free(address);
    }

    fn reserve(&mut self) -> Option<Frame> {
        let frame = self.pool.pop().and_then(|address| self.umem.take(address.into()))?;
        self.held(1);
        Some(frame)
    }

    fn buffer<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        frame.buffer.as_mut_slice()
    }

    fn transmit(&mut self, frame: Frame, length: usize) {
        self.held(-1);
        let address = self.umem.put(frame);
        if !self.tx.push(descriptor(address, length.min(FRAME_ROOM) as u32)) {
            self.free(address);
        }
    }

    fn flush(&mut self) -> usize {
        self.tx.submit();
        while let Some(address) = self.completion.pop() {
            self.free(address as u32);
        }
        let fill = &mut self.fill;
        self.refill.retain(|&address| !fill.push(address.into()));
        self.fill.submit();
        self.tx.under_way() as usize
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn lost(&self) -> u64 {
        self.umem.lost.load(Relaxed)
    }
}

impl Wire {
    /// Lets a packet arrive. False, and counted as lost: no frame waits for one, or it is too long.
    pub fn deliver(&mut self, packet: &[u8]) -> bool {
        let frame = if packet.len() > FRAME_ROOM { None } else { self.fill.pop() };
        let Some(mut frame) = frame.and_then(|address| self.umem.take(address)) else {
            self.umem.lost.fetch_add(1, Relaxed);
            return false;
        };
        frame.buffer[..packet.len()].copy_from_slice(packet);
        let address = self.umem.put(frame);
        let fits = self.rx.push(descriptor(address, packet.len() as u32));
        self.rx.submit();
        fits
    }

    /// Takes the next packet that was transmitted and flushed, and completes its frame.
    pub fn sent(&mut self) -> Option<Vec<u8>> {
        let frame = self.tx.pop().and_then(|descriptor| self.umem.take(descriptor))?;
        let packet = frame.buffer[..frame.length as usize].to_vec();
        let address = self.umem.put(frame);
        let fits = self.completion.push(address.into());
        self.completion.submit();
        fits.then_some(packet)
    }

    /// The number of frames that a worker holds: received and not released, or reserved and neither sent nor released.
    /// If it is not zero between two rounds, frames leak.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.umem.held.load(Relaxed)
    }
}

/// An endpoint in memory.
pub struct MemoryEndpoint {
    state: Arc<Mutex<State>>,
}

/// The user's kernel behind a [`MemoryEndpoint`].
#[derive(Clone)]
pub struct User {
    state: Arc<Mutex<State>>,
}

struct State {
    outgoing: VecDeque<(VnetHeader, Vec<u8>)>,
    arrived: VecDeque<(VnetHeader, Vec<u8>)>,
    capacity: usize,
    offloads: Offloads,
    removed: bool,
}

/// Makes an endpoint that holds `capacity` frames until they are read, and takes the super-frames of `offloads`.
#[must_use]
pub fn endpoint(capacity: usize, offloads: Offloads) -> (MemoryEndpoint, User) {
    let state = Arc::new(Mutex::new(State {
        outgoing: VecDeque::new(),
        arrived: VecDeque::new(),
        capacity,
        offloads,
        removed: false,
    }));
    (MemoryEndpoint { state: state.clone() }, User { state })
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn present(state: &Mutex<State>) -> io::Result<MutexGuard<'_, State>> {
    let state = locked(state);
    if state.removed { Err(io::Error::from_raw_os_error(EBADFD)) } else { Ok(state) }
}

impl Endpoint for MemoryEndpoint {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        let Some((header, frame)) = present(&self.state)?.outgoing.pop_front() else { return Ok(None) };
        // Like a read from a TAP: what does not fit is cut off.
        let length = frame.len().min(buffer.len());
        buffer[..length].copy_from_slice(&frame[..length]);
        Ok(Some((header, length)))
    }

    fn send(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        let mut state = present(&self.state)?;
        if state.arrived.len() >= state.capacity {
            return Ok(false);
        }
        let mut frame = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        state.arrived.push_back((*header, frame));
        Ok(true)
    }

    fn offloads(&self) -> Offloads {
        locked(&self.state).offloads
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }
}

impl User {
    /// Queues a frame for the endpoint to receive.
    pub fn send(&self, header: VnetHeader, frame: &[u8]) {
        locked(&self.state).outgoing.push_back((header, frame.to_vec()));
    }

    /// Takes the oldest frame that arrived from the endpoint.
    #[must_use]
    pub fn received(&self) -> Option<(VnetHeader, Vec<u8>)> {
        locked(&self.state).arrived.pop_front()
    }

    /// Deletes the device: from now on the endpoint fails with EBADFD.
    pub fn remove(&self) {
        locked(&self.state).removed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Deliver(u8),
        Receive,
        Release,
        Reserve,
        Transmit(u8),
        Flush,
        Sent,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            any::<u8>().prop_map(Step::Deliver),
            Just(Step::Receive),
            Just(Step::Release),
            Just(Step::Reserve),
            any::<u8>().prop_map(Step::Transmit),
            Just(Step::Flush),
            Just(Step::Sent),
        ];
        proptest::collection::vec(step, 0..200)
    }

    /// Every frame's number in the pool or a ring, by emptying them all.
    fn census(mut nic: MemoryNic, mut wire: Wire) -> Vec<u32> {
        nic.tx.submit();
        let mut found = std::mem::take(&mut nic.pool);
        found.append(&mut nic.refill);
        for ring in [&mut wire.fill, &mut nic.rx, &mut wire.tx, &mut nic.completion] {
            found.extend(std::iter::from_fn(|| ring.pop().map(|descriptor| descriptor as u32)));
        }
        found
    }

    proptest! {
        /// Every frame is in exactly one place, and packets arrive unchanged and in order, whatever is done.
        #[test]
        fn frames_are_conserved(steps in steps(), frames in 1u32..9, batch in 1usize..4) {
            let (mut nic, mut wire) = nic(frames, batch);
            let (mut received, mut reserved) = (Vec::new(), Vec::new());
            let (mut arriving, mut queued, mut leaving) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
            for step in steps {
                match step {
                    Step::Deliver(byte) => {
                        let lost = nic.lost();
                        if wire.deliver(&vec![byte; usize::from(byte)]) {
                            arriving.push_back(byte);
                        } else {
                            prop_assert_eq!(nic.lost(), lost + 1);
                        }
                    }
                    Step::Receive => {
                        let before = received.len();
                        let count = nic.receive(&mut received);
                        prop_assert_eq!(count, batch.min(arriving.len()));
                        for frame in &received[before..] {
                            let byte = arriving.pop_front().unwrap();
                            prop_assert_eq!(nic.bytes(frame), vec![byte; usize::from(byte)]);
                        }
                    }
                    Step::Release => received.pop().or_else(|| reserved.pop()).into_iter()
                        .for_each(|frame| nic.release(frame)),
                    Step::Reserve => reserved.extend(nic.reserve()),
                    Step::Transmit(byte) => if let Some(mut frame) = reserved.pop() {
                        nic.buffer(&mut frame)[..usize::from(byte)].fill(byte);
                        nic.transmit(frame, byte.into());
                        queued.push_back(byte);
                    },
                    Step::Flush => {
                        leaving.append(&mut queued);
                        prop_assert_eq!(nic.flush(), leaving.len());
                    }
                    Step::Sent => {
                        let expected = leaving.pop_front().map(|byte| vec![byte; usize::from(byte)]);
                        prop_assert_eq!(wire.sent(), expected);
                    }
                }
                prop_assert_eq!(wire.held() as usize, received.len() + reserved.len());
            }
            let mut all: Vec<u32> = received.iter().chain(&reserved).map(|frame| frame.address).collect();
            all.extend(census(nic, wire));
            all.sort_unstable();
            prop_assert_eq!(all, (0..frames).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_endpoint_fills_up_and_goes() {
        let (mut endpoint, user) = endpoint(1, Offloads::default());
        let header = VnetHeader { gso_size: 7, ..VnetHeader::default() };
        let parts = [IoSlice::new(b"inner "), IoSlice::new(b"frame")];
        assert!(endpoint.send(&header, &parts).unwrap());
        assert!(!endpoint.send(&header, &parts).unwrap());
        assert_eq!(user.received(), Some((header, b"inner frame".to_vec())));
        assert!(endpoint.send(&header, &parts).unwrap());

        user.send(header, b"reply");
        let mut buffer = [0; 3];
        assert_eq!(endpoint.receive(&mut buffer).unwrap(), Some((header, 3)));
        assert_eq!(&buffer, b"rep");
        assert_eq!(endpoint.receive(&mut buffer).unwrap(), None);
        user.remove();
        assert!(endpoint.receive(&mut buffer).is_err());
        assert!(endpoint.send(&header, &parts).is_err());
    }
}
