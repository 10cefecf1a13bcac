//! Sockets made as a user: the device that they are bound to, and whether they reach each other.

use crate::network::Node;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};
use nix::unistd::{Uid, setresuid};
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;
use uvn_api::uvnd::finding::{Finding, Id};

/// How long a connection may take: on the node itself it takes no time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Acts as a user. The real UID counts (bpf-helpers(7), bpf_get_current_uid_gid), and this process has one thread.
pub(super) fn as_user<T, E: From<Errno>>(uid: u32, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let root = Uid::from_raw(0);
    setresuid(Uid::from_raw(uid), root, root)?;
    let result = act();
    setresuid(root, root, root)?;
    result
}

/// The device that a new socket of a user is bound to; empty: none.
pub(super) fn device_of_socket(uid: u32, family: AddressFamily) -> nix::Result<String> {
    let made = as_user(uid, || socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None))?;
    let device = getsockopt(&made, sockopt::BindToDevice)?;
    Ok(device.to_string_lossy().trim_end_matches('\0').into())
}

/// A finding if a user's sockets do not reach each other on this node: a packet filter other than uvn's drops their
/// packets.
pub(super) fn unreached(uid: u32, node: &Node) -> Option<Finding> {
    let own = node.nics.iter().filter(|nic| nic.up).flat_map(|nic| nic.vteps());
    let mut addresses = std::iter::once(IpAddr::V4(Ipv4Addr::LOCALHOST)).chain(own);
    let (address, error) = addresses.find_map(|address| Some((address, connect(uid, address).err()?)))?;
    let what = format!("user {uid} does not reach an own socket at {address}: {error}");
    let remedy = "another packet filter of the node drops it: have it accept `iifname \"uvn*\"` at input";
    Some(Finding::fault(Id::Reach, what, remedy))
}

fn connect(uid: u32, address: IpAddr) -> io::Result<()> {
    as_user(uid, || {
        let listener = TcpListener::bind((address, 0))?;
        TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE).map(drop)
    })
}
