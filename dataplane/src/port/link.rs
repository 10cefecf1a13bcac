//! Network devices by name: rtnetlink requests, settings by ethtool, network namespaces.

mod ethtool;
mod netns;

pub use ethtool::{disable_tx_offloads, joins_frames, queues};
pub(crate) use ethtool::{name_of, request};
pub use netns::cookie as netns_cookie;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use thiserror::Error;
use uvn_wire::ethernet::Mac;

/// Why a device could not be read or changed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No device in this network namespace has this name.
    #[error("no network device named `{0}` in this network namespace")]
    NotFound(String),
    /// The kernel refused to read or change the device.
    #[error("network device `{name}`: cannot {action}: {source}")]
    Refused {
        /// The device.
        name: String,
        /// The action that failed, behind "cannot".
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// One device, as rtnetlink describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; None: its address is not six bytes long.
    pub mac: Option<Mac>,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// Receive queues that it was made with, used or not.
    pub rx_queues: u32,
    /// ARPHRD_* type: 1 is Ethernet, 32 InfiniBand.
    pub arphrd: u16,
    /// The kind of a virtual device; None: it is not one.
    pub kind: Option<InfoKind>,
}

/// Sends one rtnetlink request in the calling thread's network namespace and returns what the kernel answers.
///
/// `flags` are added to NLM_F_REQUEST and NLM_F_ACK: NLM_F_DUMP for a list, NLM_F_CREATE and so on for a change.
/// A dump that the kernel marks as inconsistent (something changed meanwhile) is tried again, up to 5 times in all.
/// Messages that the parser does not understand are logged and left out.
///
/// # Errors
/// The kernel's refusal with its errno, or a failure of the socket.
pub fn netlink_request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    netlink_exchange(NETLINK_ROUTE, message, flags)
}

/// [`netlink_request`] for any netlink protocol.
///
/// # Errors
/// As there.
pub fn netlink_exchange<M>(protocol: isize, message: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug,
{
    const DUMP_TRIES: u32 = 5;
    /// How long the kernel may take: a request waits for other programs' changes (the RTNL lock).
    const PATIENCE: TimeVal = TimeVal::new(60, 0);

    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;

    for sequence in 1..=DUMP_TRIES {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message.clone()));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket.send(&bytes, 0)?;

        if let Some(answers) = read_answers(&socket, sequence)? {
            return Ok(answers);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's tables kept changing while they were read"))
}

/// The messages that answer request `sequence`; None: the dump was inconsistent.
fn read_answers<M>(socket: &Socket, sequence: u32) -> io::Result<Option<Vec<M>>>
where
    M: NetlinkDeserializable + fmt::Debug,
{
    /// NLM_F_DUMP_INTR (include/uapi/linux/netlink.h).
    const INCONSISTENT: u16 = 0x10;

    let mut answers = Vec::new();
    let mut consistent = true;
    // The kernel never fills more than 32 KiB of a dump at a time (net/netlink/af_netlink.c, netlink_dump).
    let mut buffer: Vec<u8> = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let mut rest = buffer.as_slice();
        while let Some((length, this)) = split_message(rest) {
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            let answer = match NetlinkMessage::<M>::deserialize(this) {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::warn!(%error, "cannot parse a netlink message; it is left out");
                    continue;
                }
            };
            if answer.header.sequence_number != sequence {
                continue;
            }
            consistent &= answer.header.flags & INCONSISTENT == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => answers.push(message),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(consistent.then_some(answers)),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(Some(answers)),
                _ => {}
            }
        }
    }
}

/// The first message's length and bytes; None: there is none, or its length is impossible.
pub(crate) fn split_message(bytes: &[u8]) -> Option<(usize, &[u8])> {
    const HEADER: usize = 16;
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length < HEADER { None } else { Some((length, bytes.get(..length)?)) }
}

/// Looks a device up by name.
///
/// # Errors
/// [`LinkError::NotFound`], or the kernel's refusal.
pub fn get(name: &str) -> Result<Link, LinkError> {
    look_up(name).map(Link::from)
}

/// Looks a device up by its index.
///
/// # Errors
/// [`LinkError::NotFound`], or the kernel's refusal.
pub fn at(index: u32) -> Result<Link, LinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    found(&format!("index {index}"), message).map(Link::from)
}

fn look_up(name: &str) -> Result<LinkMessage, LinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    found(name, message)
}

/// What the kernel says of the device that a message describes.
fn found(name: &str, message: LinkMessage) -> Result<LinkMessage, LinkError> {
    let answers = ask(name, "look it up", RouteNetlinkMessage::GetLink(message), 0)?;
    let link = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    link.ok_or_else(|| LinkError::NotFound(name.into()))
}

/// A device's state and its count of frames that it did not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    /// Whether it is up.
    pub up: bool,
    /// Frames dropped instead of sent, since the device was made.
    pub dropped: u64,
}

/// Reads a device's [`Sending`].
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn sending(name: &str) -> Result<Sending, LinkError> {
    let link = look_up(name)?;
    let up = link.header.flags.contains(LinkFlags::Up);
    let sending = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(Sending { up, dropped: stats.tx_dropped }),
        _ => None,
    });
    sending.ok_or_else(|| LinkError::NotFound(name.into()))
}

/// Every device of this network namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn list() -> io::Result<Vec<Link>> {
    let answers = netlink_request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link.into()),
        _ => None,
    });
    Ok(links.collect())
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            rx_queues: 1,
            arphrd: message.header.link_layer_type.into(),
            kind: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::NumRxQueues(queues) => link.rx_queues = queues,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// Sets a device's MAC. A TAP and a veth accept that while they are up.
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn set_mac(name: &str, mac: Mac) -> Result<(), LinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    ask(name, "set its MAC", RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

/// Sets a device's MTU in bytes, without the Ethernet header.
///
/// # Errors
/// No such device, or the kernel's refusal: out of the device's range.
pub fn set_mtu(name: &str, mtu: u32) -> Result<(), LinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    ask(name, "set its MTU", RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

/// Has a device send without a queueing discipline. Its own are made when it is set up.
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn without_qdisc(name: &str) -> Result<(), LinkError> {
    const NONE: &str = "noqueue";

    let link = look_up(name)?;
    let has_none =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Qdisc(kind) if kind == NONE);
    if link.attributes.iter().any(has_none) {
        return Ok(());
    }
    let index = i32::try_from(link.header.index).unwrap_or(i32::MAX);
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind(NONE.into()));
    let change = RouteNetlinkMessage::NewQueueDiscipline(message);
    ask(name, "take its queueing discipline away", change, NLM_F_CREATE | NLM_F_REPLACE).map(drop)
}

/// Sets a device up or down.
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn set_up(name: &str, up: bool) -> Result<(), LinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    let action = if up { "set it up" } else { "set it down" };
    ask(name, action, RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

/// Attaches an XDP program to a device in driver mode, until the device is deleted.
///
/// # Errors
/// The kernel's refusal. EBUSY: the device has another program.
pub fn attach_xdp(name: &str, program: BorrowedFd<'_>) -> io::Result<()> {
    /// XDP_FLAGS_UPDATE_IF_NOEXIST and XDP_FLAGS_DRV_MODE (include/uapi/linux/if_link.h).
    const FLAGS: u32 = 1 | 4;

    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    let program = LinkXdp::Fd(program.as_raw_fd());
    message.attributes.push(LinkAttribute::Xdp(vec![program, LinkXdp::Flags(FLAGS)]));
    netlink_request(RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

/// Deletes a device, and with a veth its other end.
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn delete(name: &str) -> Result<(), LinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    ask(name, "delete it", RouteNetlinkMessage::DelLink(message), 0).map(drop)
}

/// Adds an address and the route to its subnet. An IPv6 address is usable at once: there is no duplicate detection.
///
/// # Errors
/// No such device, or the kernel's refusal (EEXIST: the device has the address).
pub fn add_address(name: &str, address: IpAddr, prefix: u8) -> Result<(), LinkError> {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
    };
    message.header.prefix_len = prefix;
    message.header.index = get(name)?.index;
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Local(address));
    if address.is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    ask(name, "add an address", RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Makes a veth pair: `name` in this network namespace, `peer` in `peer_netns`, or also in this one.
///
/// # Errors
/// The kernel's refusal (EEXIST: one of the names is taken).
pub fn create_veth(name: &str, peer: &str, peer_netns: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
    let mut far = LinkMessage::default();
    far.attributes.push(LinkAttribute::IfName(peer.into()));
    if let Some(netns) = peer_netns {
        far.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    }
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
    ]));
    ask(name, "make it as a veth", RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Makes a VXLAN device that takes no frame (an empty VNI filter), so that the kernel's GRO joins VXLAN to this port.
///
/// # Errors
/// The kernel's refusal (EEXIST: a device has the name, or the port; EOPNOTSUPP: older than Linux 5.18).
pub fn create_deaf_vxlan(name: &str, port: u16) -> Result<(), LinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(vec![
            InfoVxlan::CollectMetadata(true),
            InfoVxlan::Vnifilter(true),
            InfoVxlan::Port(port),
        ])),
    ]));
    ask(name, "make it as a VXLAN device", RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    set_up(name, true)
}

fn ask(
    name: &str,
    action: &'static str,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
    netlink_request(message, flags).map_err(|source| refused(name, action, source))
}

fn refused(name: &str, action: &'static str, source: io::Error) -> LinkError {
    match source.raw_os_error() {
        Some(libc::ENODEV) => LinkError::NotFound(name.into()),
        _ => LinkError::Refused { name: name.into(), action, source },
    }
}

/// Runs `work` in another network namespace (`/run/netns/NAME`, `/proc/PID/ns/net`) and returns its result.
///
/// It runs on a thread of its own, so that the caller's namespace never changes. Sockets and TAPs that it opens belong
/// to the other namespace.
///
/// # Errors
/// The namespace cannot be opened or entered (CAP_SYS_ADMIN).
pub fn in_netns<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    in_open_netns(File::open(netns)?.as_fd(), work)
}

/// Like [`in_netns`], with an open namespace.
///
/// # Errors
/// The namespace cannot be entered (CAP_SYS_ADMIN).
pub fn in_open_netns<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let run = || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, run)?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
