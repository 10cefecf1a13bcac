//! Captures what one network sends and receives, in either gear, as a pcap file.
//!
//! No device shows both directions in both gears. The endpoint shows received frames. It also shows sent frames, unless
//! the shortcut carries the network: then the shortcut's program takes frames before a capture on the endpoint, and the
//! NIC shows them as VXLAN. Frames that the shortcut leaves to the engine are shown by the endpoint only.

#![allow(unsafe_code, reason = "nix has no way to make the address of a packet socket")]

use crate::port::link::in_netns;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, bind, recvfrom,
    setsockopt, socket,
};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use uvn_api::dataplane::client::{Client, ClientError};
use uvn_api::dataplane::message::{NetworkState, Place, Reply, Request, Summary};
use uvn_wire::ethernet::{self, Ethernet, ethertype};
use uvn_wire::icmp::v6::NEIGHBOUR_SOLICITATION;
use uvn_wire::ipv4::protocol;
use uvn_wire::packet::{self, Fragment, Packet};
use uvn_wire::udp::{self, Udp};
use uvn_wire::vxlan::{self, Vxlan};
use zerocopy::FromBytes;

/// Bytes of the longest frame: a super-frame with its outer headers, and some more.
const LONGEST: usize = 66_000;
/// How often the data plane is asked where the network is, and whether the shortcut carries it.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of each socket's receive buffer.
const BUFFER: usize = 64 << 20;

/// Why the capture ends.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The data plane cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The data plane has no such network.
    #[error("there is no network {0} on this NIC")]
    NoNetwork(u32),
    /// Its endpoint cannot be found.
    #[error(
        "the endpoint of network {0} is lost, or in a network namespace without a name here; use tcpdump there"
    )]
    NoEndpoint(u32),
    /// A device cannot be captured.
    #[error("{device}: {source} (a capture needs root)")]
    Device {
        /// Its name.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("cannot write the capture: {0}")]
    Write(#[from] io::Error),
}

/// Writes the frames that network `vni` sends and receives to `out`, until `out` is closed or the network is removed.
///
/// # Errors
/// See [`CaptureError`].
pub fn run(client: &Client, vni: u32, out: &mut impl Write) -> Result<(), CaptureError> {
    let home = client.process().ok().filter(|pid| *pid > 0).map(|pid| format!("/proc/{pid}/ns/net"));
    let home = PathBuf::from(home.unwrap_or_else(|| "/proc/self/ns/net".into()));
    let mut taps = Taps::open(client, vni, &home)?;
    header(out)?;
    let mut buffer = vec![0; LONGEST];
    let mut looked = Instant::now();
    loop {
        taps.wait();
        while let Some((length, is_outgoing)) = receive(&taps.endpoint, &mut buffer) {
            let frame = &buffer[..length];
            if !is_outgoing || !taps.shortcut || stays_with_engine(frame) {
                record(out, frame)?;
            }
        }
        while let Some((length, is_outgoing)) = receive(&taps.nic, &mut buffer) {
            let inner = inner(&buffer[..length], taps.port, vni);
            if let Some(inner) = inner.filter(|inner| is_outgoing && !stays_with_engine(inner))
                && taps.shortcut
            {
                record(out, inner)?;
            }
        }
        out.flush()?;
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            taps.follow(client, vni, &home)?;
        }
    }
}

/// Packet sockets on both devices.
struct Taps {
    endpoint: OwnedFd,
    place: Place,
    nic: OwnedFd,
    port: u16,
    /// Whether the shortcut carries the network.
    shortcut: bool,
}

impl Taps {
    fn open(client: &Client, vni: u32, home: &Path) -> Result<Taps, CaptureError> {
        let Reply::Show(summary) = client.ask(&Request::Show, &[])? else {
            return Err(ClientError::Mismatch.into());
        };
        let Summary { nic, port, .. } = *summary;
        let state = state(client, vni)?;
        let place = state.endpoint.ok_or(CaptureError::NoEndpoint(vni))?;
        Ok(Taps {
            endpoint: tap(&place.device, place.netns.as_deref().unwrap_or(home))?,
            nic: tap(&nic, home)?,
            place,
            port,
            shortcut: state.shortcut,
        })
    }

    /// Follows the network if it has moved or changed gears.
    fn follow(&mut self, client: &Client, vni: u32, home: &Path) -> Result<(), CaptureError> {
        let state = state(client, vni)?;
        if state.endpoint.as_ref() == Some(&self.place) {
            self.shortcut = state.shortcut;
        } else {
            *self = Taps::open(client, vni, home)?;
        }
        Ok(())
    }

    /// Waits for a frame, for at most [`LOOK`].
    fn wait(&self) {
        let mut fds =
            [&self.endpoint, &self.nic].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        // An error is a signal, or a device that is gone, which [`Taps::follow`] finds.
        let _ = poll(&mut fds, PollTimeout::from(u16::try_from(LOOK.as_millis()).unwrap_or(u16::MAX)));
    }
}

fn state(client: &Client, vni: u32) -> Result<NetworkState, CaptureError> {
    let Reply::Networks { networks, .. } = client.ask(&Request::Networks { from: vni }, &[])? else {
        return Err(ClientError::Mismatch.into());
    };
    let state = networks.into_iter().find(|network| network.vni == vni);
    state.ok_or(CaptureError::NoNetwork(vni))
}

/// A socket that gets every frame that a device sends and receives (packet(7)).
fn tap(device: &str, netns: &Path) -> Result<OwnedFd, CaptureError> {
    let failed = |source| CaptureError::Device { device: device.into(), source };
    let open = || -> io::Result<OwnedFd> {
        let index = nix::net::if_::if_nametoindex(device)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol, the socket receives nothing until it is bound.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>)?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        // SAFETY: plain integers; all zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let length = Some(size_of_val(&address) as libc::socklen_t);
        // SAFETY: a whole sockaddr_ll, and its length.
        let address = unsafe { SockaddrStorage::from_raw((&raw const address).cast(), length) };
        bind(socket.as_raw_fd(), &address.ok_or(Errno::EINVAL)?)?;
        Ok(socket)
    };
    in_netns(netns, open).and_then(|socket| socket).map_err(failed)
}

/// The length of the next frame, and whether the device sends it; None: there is none now.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, bool)> {
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), buffer) {
            Ok((length, from)) => {
                let kind = from.map_or(libc::PACKET_HOST, |from| from.pkttype());
                return Some((length, kind == libc::PACKET_OUTGOING));
            }
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether the shortcut never takes a frame: the endpoint shows it, so what the engine sends for it must not be shown
/// again.
fn stays_with_engine(frame: &[u8]) -> bool {
    let Ok((ethernet, _)) = Ethernet::ref_from_prefix(frame) else { return true };
    if ethernet.destination.is_multicast() {
        return true;
    }
    match packet::parse(frame) {
        Ok(Packet::Ip(ip)) => {
            ip.protocol == protocol::ICMPV6
                && ip.fragment == Fragment::None
                && ip.transport.first() == Some(&NEIGHBOUR_SOLICITATION)
        }
        _ => true,
    }
}

/// The inner frame of a VXLAN frame of this network.
fn inner(frame: &[u8], port: u16, vni: u32) -> Option<&[u8]> {
    let (ethernet, _) = Ethernet::ref_from_prefix(frame).ok()?;
    // A super-frame may be longer than its outer headers can tell, so their lengths are not read.
    let udp = match ethernet.ethertype.get() {
        ethertype::IPV4 => ethernet::HEADER + uvn_wire::ipv4::HEADER,
        ethertype::IPV6 => ethernet::HEADER + uvn_wire::ipv6::HEADER,
        _ => return None,
    };
    let next = if ethernet.ethertype.get() == ethertype::IPV4 { 23 } else { 20 };
    let (header, _) = Udp::ref_from_prefix(frame.get(udp..)?).ok()?;
    let (vxlan, inner) = Vxlan::ref_from_prefix(frame.get(udp + udp::HEADER..)?).ok()?;
    let is_ours = frame.get(next) == Some(&protocol::UDP)
        && header.destination_port.get() == port
        && vxlan.has_vni()
        && vxlan.vni().get() == vni;
    const { assert!(vxlan::HEADER == size_of::<Vxlan>()) };
    is_ours.then_some(inner)
}

/// The beginning of a pcap file (draft-ietf-opsawg-pcap).
fn header(out: &mut impl Write) -> io::Result<()> {
    /// LINKTYPE_ETHERNET.
    const ETHERNET: u32 = 1;
    // Magic number, version 2.4, two unused words, the longest frame.
    let words = [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, LONGEST as u32, ETHERNET];
    out.write_all(&words.map(u32::to_le_bytes).concat())?;
    out.flush()
}

fn record(out: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let words = [now.as_secs() as u32, now.subsec_micros(), length, length];
    out.write_all(&words.map(u32::to_le_bytes).concat())?;
    out.write_all(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvn_wire::ethernet::Mac;

    #[test]
    fn other_frames_are_no_frames_of_the_network() {
        let mut frame = vec![0_u8; 60 + 40];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[23] = protocol::UDP;
        frame[36..38].copy_from_slice(&4789_u16.to_be_bytes());
        frame[42] = 8;
        frame[46..49].copy_from_slice(&[0, 0x04, 0xd2]);
        assert_eq!(inner(&frame, 4789, 1234).map(<[u8]>::len), Some(50));
        assert!(inner(&frame, 4789, 1235).is_none() && inner(&frame, 4790, 1234).is_none());
        frame[23] = protocol::TCP;
        assert!(inner(&frame, 4789, 1234).is_none());
        for length in 0..50 {
            assert!(inner(&frame[..length], 4789, 1234).is_none());
        }
    }

    #[test]
    fn what_only_the_engine_carries_is_told_apart() {
        let frame = |to: Mac, kind: [u8; 2]| [&to.0[..], &[2; 6], &kind, &[0; 60]].concat();
        assert!(stays_with_engine(&frame(Mac::BROADCAST, [8, 6])));
        assert!(stays_with_engine(&frame(Mac([2; 6]), [8, 6])));
        let mut udp = frame(Mac([2; 6]), [8, 0]);
        udp[14] = 0x45;
        udp[17] = 40;
        udp[23] = protocol::UDP;
        assert!(!stays_with_engine(&udp));
    }
}
