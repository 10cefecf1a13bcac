//! Netlink messages to the packet filter (include/uapi/linux/netfilter/nfnetlink.h), for what nft(8) cannot do.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;
use uvn_wire::cgroup::Mark;

/// NLMSG_ERROR (include/uapi/linux/netlink.h), also the acknowledgement.
const ERROR: u16 = 2;
/// NLM_F_REQUEST | NLM_F_ACK.
const FLAGS: u16 = 1 | 4;
/// How long the kernel may take to answer.
const PATIENCE: TimeVal = TimeVal::new(10, 0);
/// struct nlmsghdr and struct nfgenmsg.
const HEADERS: usize = 16 + 4;

/// IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const FORGET: u16 = 1 << 8 | 2;
/// CTA_MARK and CTA_MARK_MASK.
const MARK: (u16, u16) = (8, 21);

/// Deletes the flows of a network's number from the connection tracker, so that a new network does not inherit them.
///
/// # Errors
/// The kernel refuses.
pub fn forget_flows(number: u32) -> io::Result<()> {
    let (mark, mask) = (Mark::bound(0, number).0, Mark::KIND | 0xffff);
    let attributes = [(MARK.0, &mark.to_be_bytes()[..]), (MARK.1, &mask.to_be_bytes()[..])];
    open(&message(FORGET, 0, &attributes)).map(drop)
}

/// Sends a request and waits for the kernel's acknowledgement. Returns the socket.
///
/// # Errors
/// The kernel refuses, or does not answer in 10 s.
pub fn open(request: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send(request, 0)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
    let mut answer = vec![0; 4096];
    // Messages that the request asks for may come before the acknowledgement.
    let code = loop {
        let length = socket.recv(&mut &mut answer[..], 0)?;
        let packet = answer.get(..length).unwrap_or_default();
        if let Some((_, body)) = messages(packet).find(|(kind, _)| *kind == ERROR) {
            break number(body, 0).ok_or(io::ErrorKind::InvalidData)?;
        }
    };
    match code {
        0 => Ok(socket),
        code => Err(io::Error::from_raw_os_error(code.cast_signed().saturating_neg())),
    }
}

/// Builds a message: headers, then attributes.
#[must_use]
pub fn message(kind: u16, group: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADERS];
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    // Family AF_UNSPEC and version 0 are zero already.
    for (at, bytes) in [
        (0, &length.to_ne_bytes()[..]),
        (4, &kind.to_ne_bytes()[..]),
        (6, &FLAGS.to_ne_bytes()[..]),
        (HEADERS - 2, &group.to_be_bytes()[..]),
    ] {
        if let Some(place) = message.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    message
}

/// The type and the body (without struct nlmsghdr) of each message in a datagram.
pub fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(rest, 0)?).ok()?;
        let kind = u16::from_ne_bytes(bytes(rest, 4)?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The first attribute of a kind in a message's body.
#[must_use]
pub fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(HEADERS - 16..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes(rest, 0)?));
        let kind = u16::from_ne_bytes(bytes(rest, 2)?);
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// `N` bytes at an offset; None: `from` is too short.
#[must_use]
pub fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn number(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}
