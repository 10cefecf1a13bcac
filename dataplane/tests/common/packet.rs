//! Raw Ethernet frames to and from a device (packet(7)).
#![allow(unsafe_code, reason = "nix has no way to make the address of a packet socket")]

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage};
use nix::sys::socket::{bind, recv, send, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use uvn_rig::test::NetNs;

/// A socket that sends and receives whole frames, Ethernet header included, on one device. It sees every frame that
/// the device receives (after XDP) or sends.
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens one on `device` of `netns`.
    pub fn new(netns: &NetNs, device: &str) -> PacketSocket {
        netns.run(|| {
            let index = nix::net::if_::if_nametoindex(device).expect("the device exists");
            let all = (libc::ETH_P_ALL as u16).to_be();
            let family = AddressFamily::Packet;
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).expect("root");
            let address = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: all,
                sll_ifindex: i32::try_from(index).expect("an ifindex"),
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: a whole sockaddr_ll, and its length.
            let address = unsafe { SockaddrStorage::from_raw((&raw const address).cast(), Some(length)) };
            bind(socket.as_raw_fd(), &address.expect("AF_PACKET")).expect("the device exists");
            PacketSocket { socket }
        })
    }

    /// How many bytes of frames may wait to be received.
    pub fn set_buffer(&self, bytes: usize) {
        setsockopt(&self.socket, RcvBufForce, &bytes).expect("root");
    }

    /// From now on frames are sent with a virtio-net header in front (PACKET_VNET_HDR).
    pub fn set_metadata(&self) {
        /// include/uapi/linux/if_packet.h
        const PACKET_VNET_HDR: libc::c_int = 15;
        self.option(PACKET_VNET_HDR);
    }

    fn option(&self, option: libc::c_int) {
        let on: libc::c_int = 1;
        // SAFETY: the option takes an int.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "packet option {option}");
    }

    /// Sends one frame of at least 14 bytes.
    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).expect("the device is up");
        assert_eq!(sent, frame.len());
    }

    /// Sends one frame if the device takes it.
    pub fn try_send(&self, frame: &[u8]) {
        let _refused = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
    }

    /// The next frame; None if none comes in time. With no time it only looks whether one is there.
    pub fn receive(&self, timeout: Duration) -> Option<Vec<u8>> {
        let flags = if timeout.is_zero() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        // In the kernel zero is forever.
        let timeout = TimeVal::microseconds(i64::try_from(timeout.as_micros()).expect("a timeout").max(1));
        setsockopt(&self.socket, ReceiveTimeout, &timeout).expect("a socket");
        let mut frame = vec![0; 65_600];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, flags) {
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => {}
                result => {
                    frame.truncate(result.expect("the device is up"));
                    return Some(frame);
                }
            }
        }
    }
}
