//! The engine's NIC queue in the shortcut gear: a TAP. A tc program hands it the frames that it leaves to the engine;
//! another tc program sends what is written to it out of the NIC. No AF_XDP, and no memory shared with the kernel.

use crate::port::link::{self, LinkError};
use crate::port::tap::{Tap, TapError};
use std::io::IoSlice;
use std::os::fd::RawFd;
use thiserror::Error;
use uvn_engine::port::{Endpoint, Nic, VnetHeader};
use uvn_wire::ethernet;

/// The longest IP packet that one frame holds, bytes: enough for the jumbo frames of any switch.
pub const MAX_MTU: usize = 9216;
/// Frames of a queue. The shortcut leaves few frames to the engine.
const FRAMES: usize = 512;

type Buffer = [u8; MAX_MTU + ethernet::HEADER];

/// Why the TAP could not be made.
#[derive(Debug, Error)]
pub enum SlowPathError {
    /// The TAP cannot be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Its device cannot be set.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A frame that its holder owns.
pub struct Frame {
    buffer: Box<Buffer>,
    length: usize,
}

/// One queue of the TAP.
pub struct SlowPath {
    tap: Tap,
    free: Vec<Box<Buffer>>,
    queued: Vec<Frame>,
    batch: usize,
    lost: u64,
}

/// The name of the TAP for the NIC with this index. The TAP is deleted with its last descriptor.
#[must_use]
pub fn device(nic: u32) -> String {
    format!("slow-{nic}")
}

impl SlowPath {
    /// Makes the TAP for the NIC with index `nic`, in this network namespace, and opens its queues.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(nic: u32, queues: usize, batch: usize) -> Result<Vec<SlowPath>, SlowPathError> {
        let name = device(nic);
        let taps = Tap::open(&name, queues)?;
        // The host's own IPv6 must not send here. Without the file there is no IPv6.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        link::set_mtu(&name, MAX_MTU as u32)?;
        link::set_up(&name, true)?;
        taps.into_iter()
            .map(|tap| {
                // Frames come as on the wire: cut, and with their checksums.
                tap.take_plain_frames()?;
                let free = (0..FRAMES).map(|_| Box::new([0; size_of::<Buffer>()])).collect();
                Ok(SlowPath { tap, free, queued: Vec::new(), batch, lost: 0 })
            })
            .collect()
    }
}

impl Nic for SlowPath {
    type Frame = Frame;

    fn receive(&mut self, frames: &mut Vec<Frame>) -> usize {
        let before = frames.len();
        while frames.len() - before < self.batch {
            let Some(mut buffer) = self.free.pop() else { break };
            match self.tap.receive(&mut buffer[..]) {
                Ok(Some((_, length))) => frames.push(Frame { buffer, length }),
                Ok(None) | Err(_) => {
                    self.free.push(buffer);
                    break;
                }
            }
        }
        frames.len() - before
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        frame.buffer.get(..frame.length).unwrap_or_default()
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        frame.buffer.get_mut(..frame.length).unwrap_or_default()
    }

    fn release(&mut self, frame: Frame) {
        self.free.push(frame.buffer);
    }

    fn reserve(&mut self) -> Option<Frame> {
        Some(Frame { buffer: self.free.pop()?, length: 0 })
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn buffer<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        &mut frame.buffer[..]
    }

    fn transmit(&mut self, mut frame: Frame, length: usize) {
        frame.length = length;
        self.queued.push(frame);
    }

    fn flush(&mut self) -> usize {
        for frame in self.queued.drain(..) {
            let bytes = frame.buffer.get(..frame.length).unwrap_or_default();
            let sent = self.tap.send(&VnetHeader::default(), &[IoSlice::new(bytes)]);
            self.lost += u64::from(!sent.unwrap_or(false));
            self.free.push(frame.buffer);
        }
        0
    }

    fn fd(&self) -> Option<RawFd> {
        self.tap.fd()
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}
