//! A blocking rtnetlink socket: requests and dumps.

use super::NetlinkError;
use futures_util::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::AsyncSocket;
use rtnetlink::Handle;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// How long the kernel may take: a request waits for other programs' changes (the RTNL lock).
const PATIENCE: Duration = Duration::from_secs(60);

/// The kernel's refusal.
#[derive(Debug)]
pub struct Refusal {
    /// Its error number.
    pub source: io::Error,
    /// Its own words, if it has any (NLMSGERR_ATTR_MSG).
    pub words: Option<String>,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Refusal {
        Refusal { source, words: None }
    }
}

impl From<nix::Error> for Refusal {
    fn from(error: nix::Error) -> Refusal {
        io::Error::from(error).into()
    }
}

impl Refusal {
    /// Reads the kernel's error message.
    fn read(error: &ErrorMessage) -> Refusal {
        /// NLMSGERR_ATTR_MSG and the length of the request's header before it (include/uapi/linux/netlink.h).
        const MESSAGE: u16 = 1;
        const HEADER: usize = 16;

        let attributes = NlasIterator::new(error.header.get(HEADER..).unwrap_or_default());
        let words = attributes
            .flatten()
            .find(|attribute| attribute.kind() == MESSAGE)
            .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
        Refusal { source: error.to_io(), words }
    }
}

/// IPv4, and IPv6 if the kernel has it.
pub fn families() -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet].into_iter().chain(has_ipv6().then_some(AddressFamily::Inet6))
}

/// Whether the kernel has IPv6 (`ipv6.disable=1` takes it away).
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// A socket, and the runtime of the thread that waits for it.
pub struct Socket {
    runtime: Runtime,
    handle: Handle,
}

impl Socket {
    /// Opens one in the thread's network namespace.
    pub fn open() -> io::Result<Socket> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let guard = runtime.enter();
        // With strict checking the kernel filters dumps as asked; without it, it ignores the filter.
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        let socket = connection.socket_mut().socket_mut();
        // Refusals come with the kernel's own words, and without a copy of the request.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        runtime.spawn(connection);
        drop(guard);
        Ok(Socket { runtime, handle })
    }

    /// Makes a change and waits for the kernel's acknowledgement.
    pub fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.request(message, NLM_F_ACK | flags).map(drop)
    }

    /// A device by index; None: it is gone.
    pub fn link(&self, index: u32) -> Result<Option<LinkMessage>, NetlinkError> {
        let mut message = links();
        message.header.index = index;
        match self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(Refusal { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(Refusal { source, .. }) => Err(NetlinkError::Read { what: "a device", source }),
        }
    }

    /// All devices.
    pub fn links(&self) -> Result<Vec<LinkMessage>, NetlinkError> {
        self.dump("devices", RouteNetlinkMessage::GetLink(links()), as_link)
    }

    /// Addresses of all devices, or of one.
    pub fn addresses(&self, device: Option<u32>) -> Result<Vec<AddressMessage>, NetlinkError> {
        let mut addresses = Vec::new();
        for family in families() {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.header.index = device.unwrap_or(0);
            let request = RouteNetlinkMessage::GetAddress(message);
            addresses.extend(self.dump("addresses", request, |answer| match answer {
                RouteNetlinkMessage::NewAddress(address) => Some(address),
                _ => None,
            })?);
        }
        Ok(addresses)
    }

    /// Routes of a protocol (Unspec: any) that match the attributes, such as a table or a device.
    pub fn routes(
        &self,
        protocol: RouteProtocol,
        attributes: &[RouteAttribute],
    ) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut routes = Vec::new();
        for family in families() {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = protocol;
            message.attributes = attributes.to_vec();
            let answers =
                self.dump("routes", RouteNetlinkMessage::GetRoute(message), |answer| match answer {
                    RouteNetlinkMessage::NewRoute(route) => Some(route),
                    _ => None,
                });
            match answers {
                // The table does not exist yet.
                Err(NetlinkError::Read { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {}
                answers => routes.extend(answers?),
            }
        }
        Ok(routes)
    }

    /// All rules.
    pub fn rules(&self) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut rules = Vec::new();
        for family in families() {
            let mut message = RuleMessage::default();
            message.header.family = family;
            rules.extend(self.dump("routing rules", RouteNetlinkMessage::GetRule(message), |answer| {
                match answer {
                    RouteNetlinkMessage::NewRule(rule) => Some(rule),
                    _ => None,
                }
            })?);
        }
        Ok(rules)
    }

    /// Neighbours and forwarding entries of all devices, or of one.
    pub fn neighbours(&self, device: Option<u32>) -> Result<Vec<NeighbourMessage>, NetlinkError> {
        let mut neighbours = Vec::new();
        for family in families().chain([AddressFamily::Bridge]) {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            message.attributes.extend(device.map(NeighbourAttribute::IfIndex));
            let request = RouteNetlinkMessage::GetNeighbour(message);
            neighbours.extend(self.dump("neighbours", request, |answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
                _ => None,
            })?);
        }
        Ok(neighbours)
    }

    fn dump<T>(
        &self,
        what: &'static str,
        message: RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        match self.request(message, NLM_F_DUMP) {
            Ok(answers) => Ok(answers.into_iter().filter_map(pick).collect()),
            Err(Refusal { source, .. }) => Err(NetlinkError::Read { what, source }),
        }
    }

    /// Sends a request and returns its answers. A dump during which something changed is tried again, up to 8 times.
    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        const TRIES: u32 = 8;
        for _ in 0..TRIES {
            let answers = async { timeout(PATIENCE, self.try_request(message.clone(), flags)).await };
            let silent =
                |_| io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer over rtnetlink");
            if let Some(answers) = self.runtime.block_on(answers).map_err(silent)?? {
                return Ok(answers);
            }
        }
        let text = "the kernel's tables kept changing while they were read";
        Err(io::Error::new(io::ErrorKind::Interrupted, text).into())
    }

    /// None: the kernel marks the dump as inconsistent.
    async fn try_request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Refusal> {
        /// NLM_F_DUMP_INTR (include/uapi/linux/netlink.h).
        const INCONSISTENT: u16 = 0x10;

        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the rtnetlink socket is closed");
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        let mut stream = self.handle.clone().request(request).map_err(|_| closed())?;
        let mut answers = Vec::new();
        let mut is_consistent = true;
        while let Some(answer) = stream.next().await {
            is_consistent &= answer.header.flags & INCONSISTENT == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => answers.push(message),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code).into());
                }
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(Refusal::read(&error)),
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => {
                    return Ok(is_consistent.then_some(answers));
                }
                NetlinkPayload::Overrun(_) => return Ok(None),
                _ => {}
            }
        }
        // The stream ended before the kernel's last message.
        Err(closed().into())
    }
}

/// A request for devices, without their counters.
fn links() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn as_link(answer: RouteNetlinkMessage) -> Option<LinkMessage> {
    match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}
