//! An endpoint through a veth pair: our end has an AF_XDP socket, the other end is the user's device.
//!
//! It passes single frames, no super-frames: slower than a TAP for bulk traffic, faster for single packets.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, RawFd};
use std::path::Path;

use thiserror::Error;

use crate::port::link::{self, LinkError};
use crate::port::redirect;
use crate::port::xsk::{Frame, XskConfig, XskError, XskQueue};
use uvn_engine::port::{Endpoint, Nic, Offloads, State, VnetHeader};

/// UMEM frames of an endpoint: 2 MiB, for 256 frames under way in each direction.
const FRAMES: u32 = 512;
/// Frames taken from the socket in one call.
const BATCH: usize = 64;

/// Why a veth endpoint could not be made.
#[derive(Debug, Error)]
pub enum VethError {
    /// A device could not be made or set.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The user's namespace cannot be entered.
    #[error("network namespace {path} of veth `{name}`: {source}")]
    Netns {
        /// The device.
        name: String,
        /// The namespace.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The AF_XDP socket could not be made.
    #[error(transparent)]
    Socket(#[from] XskError),
    /// The XDP program could not be attached.
    #[error("XDP on veth `{name}`: {source}; its MTU must not exceed about 3500 bytes")]
    Program {
        /// Our end.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Our end of a veth pair. Dropping it deletes the pair.
pub struct Veth {
    // In this order: the socket is closed before its device is deleted.
    queue: XskQueue,
    received: Vec<Frame>,
    /// Received frames in the order of arrival.
    waiting: VecDeque<Frame>,
    /// Whether the last call of `receive` found nothing.
    idle: bool,
    _pair: Pair,
}

impl Veth {
    /// Makes a veth pair with an MTU of `mtu` bytes: `name` in this network namespace, our end, which is up; and `user`
    /// in `netns` (or in this one), still down and without addresses.
    ///
    /// # Errors
    /// See [`VethError`]; the text names the remedy.
    pub fn create(name: &str, user: &str, netns: Option<&Path>, mtu: u32) -> Result<Veth, VethError> {
        let open = |path: &Path| std::fs::File::open(path).map_err(|source| failed(user, path, source));
        let target = netns.map(open).transpose()?;
        link::create_veth(name, user, target.as_ref().map(AsFd::as_fd))?;
        let pair = Pair { name: name.into() };
        let prepare = || {
            link::set_mtu(user, mtu)?;
            link::disable_tx_offloads(user)
        };
        match netns {
            Some(path) => link::in_netns(path, prepare).map_err(|source| failed(user, path, source))??,
            None => prepare()?,
        }
        // The host's own IPv6 must not send to the user. Without the file there is no IPv6.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        link::set_mtu(name, mtu)?;
        link::set_up(name, true)?;

        let config =
            XskConfig { interface: name.into(), queue: 0, frames: FRAMES, batch: BATCH, busy_poll_us: None };
        let queue = XskQueue::open(&config)?;
        let socket = queue.fd().ok_or_else(|| io::Error::other("the socket is gone"));
        socket
            .and_then(|socket| redirect::attach(name, socket))
            .map_err(|source| VethError::Program { name: name.into(), source })?;
        Ok(Veth {
            queue,
            received: Vec::with_capacity(BATCH),
            waiting: VecDeque::with_capacity(BATCH),
            idle: false,
            _pair: pair,
        })
    }
}

fn failed(name: &str, path: &Path, source: io::Error) -> VethError {
    VethError::Netns { name: name.into(), path: path.display().to_string(), source }
}

impl Endpoint for Veth {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        if self.waiting.is_empty() {
            // This also gives the frames of the last batch back to the kernel.
            self.queue.flush();
            self.queue.receive(&mut self.received);
            self.waiting.extend(self.received.drain(..));
        }
        let Some(frame) = self.waiting.pop_front() else {
            // Called twice in a row without a frame: the socket may be readable because of an error.
            if std::mem::replace(&mut self.idle, true) && self.queue.state() == State::Gone {
                return Err(io::Error::from_raw_os_error(libc::ENODEV));
            }
            return Ok(None);
        };
        self.idle = false;
        let bytes = self.queue.bytes(&frame);
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.queue.release(frame);
        Ok(Some((VnetHeader::default(), length)))
    }

    fn send(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        // This device can neither cut frames nor compute checksums.
        if header.gso_type != VnetHeader::GSO_NONE || header.flags & VnetHeader::NEEDS_CHECKSUM != 0 {
            return Ok(false);
        }
        if self.queue.room() == 0 {
            self.queue.flush();
        }
        let Some(mut frame) = self.queue.reserve() else { return Ok(false) };
        let buffer = self.queue.buffer(&mut frame);
        let mut length = 0;
        for part in parts {
            let Some(room) = buffer.get_mut(length..length + part.len()) else {
                self.queue.release(frame);
                return Ok(false);
            };
            room.copy_from_slice(part);
            length += part.len();
        }
        self.queue.transmit(frame, length);
        Ok(true)
    }

    fn flush(&mut self) {
        self.queue.flush();
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn fd(&self) -> Option<RawFd> {
        self.queue.fd()
    }
}

/// A veth pair, deleted with its owner.
struct Pair {
    name: String,
}

impl Drop for Pair {
    fn drop(&mut self) {
        match link::delete(&self.name) {
            // The pair may have been deleted with the namespace of the user's end.
            Ok(()) | Err(LinkError::NotFound(_)) => {}
            Err(error) => tracing::warn!(%error, "cannot delete a veth pair; it is left behind"),
        }
    }
}
