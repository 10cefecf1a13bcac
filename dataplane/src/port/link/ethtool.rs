//! Settings of devices by ethtool, and ioctl requests that name a device.

#![allow(unsafe_code, reason = "ethtool has no safe interface")]

use super::{LinkError, get, refused};
use std::io;
use std::os::fd::AsRawFd;

/// The number of receive queues that a device uses (ETHTOOL_GCHANNELS), at least 1; all that it has if the driver does
/// not tell.
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn queues(name: &str) -> Result<u32, LinkError> {
    /// `struct ethtool_channels`.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        max: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    /// ETHTOOL_GCHANNELS.
    const GET_CHANNELS: u32 = 0x3c;

    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    // SAFETY: ETHTOOL_GCHANNELS writes one struct ethtool_channels, which `Channels` is.
    match unsafe { ethtool(name, &mut channels) } {
        Ok(()) => Ok((channels.combined + channels.rx).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(get(name)?.rx_queues.max(1)),
        Err(error) => Err(refused(name, "read its queue count", error)),
    }
}

/// Whether GRO is on for a device, so that the kernel joins the frames that it receives (ETHTOOL_GGRO).
///
/// # Errors
/// No such device, or the kernel's refusal.
pub fn joins_frames(name: &str) -> Result<bool, LinkError> {
    const GET_GRO: u32 = 0x2b;

    // `struct ethtool_value`: command and value.
    let mut value = [GET_GRO, 0u32];
    // SAFETY: the command writes one struct ethtool_value, which two u32 are.
    unsafe { ethtool(name, &mut value) }.map_err(|error| refused(name, "read its GRO setting", error))?;
    Ok(value[1] != 0)
}

/// Turns transmit checksums and TSO off, so that a device sends finished frames: no super-frames.
///
/// For the user's end of a veth whose other end is AF_XDP: XDP loses the mark that a checksum is yet to be computed.
///
/// # Errors
/// No such device, or the driver's refusal.
pub fn disable_tx_offloads(name: &str) -> Result<(), LinkError> {
    /// ETHTOOL_STXCSUM and ETHTOOL_STSO. Without checksumming the kernel also takes back UDP segmentation.
    const SET_TX_CHECKSUM: u32 = 0x17;
    const SET_TSO: u32 = 0x1f;

    for command in [SET_TSO, SET_TX_CHECKSUM] {
        // `struct ethtool_value`: command and value.
        let mut value = [command, 0u32];
        // SAFETY: both commands read one struct ethtool_value, which two u32 are.
        unsafe { ethtool(name, &mut value) }
            .map_err(|error| refused(name, "turn its offloads off", error))?;
    }
    Ok(())
}

/// SIOCETHTOOL with the command's own structure.
///
/// # Safety
/// `T` begins with the command and is the structure that this command reads and writes.
unsafe fn ethtool<T>(name: &str, command: &mut T) -> io::Result<()> {
    let mut request = self::request(name)?;
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();

    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: the request names a device and points at a structure that outlives the call; the caller vouches for its
    // type.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An empty ioctl request for a device; an error if no device can have the name.
pub(crate) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: plain integers and a union of them; all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device name has at most 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// The name that the kernel put in a request.
pub(crate) fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
