//! An endpoint through a TAP (Documentation/networking/tuntap.rst), which passes whole super-frames with a virtio-net
//! header.

#![allow(unsafe_code, reason = "the TUN ioctls have no safe interface")]

use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::uio::{readv, writev};
use thiserror::Error;
use uvn_wire::ethernet::Mac;
use zerocopy::IntoBytes;

use crate::port::link;
use uvn_engine::port::{Endpoint, MAX_PARTS, Offloads, VnetHeader};

/// Flags of every TAP: Ethernet frames, without TUN's own header, each behind a virtio-net header.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a TAP could not be made or taken over.
#[derive(Debug, Error)]
pub enum TapError {
    /// The TUN driver is missing, or may not be used.
    #[error("/dev/net/tun: {0}; it needs the tun module and CAP_NET_ADMIN")]
    Driver(#[source] io::Error),
    /// The kernel refused the device.
    #[error("TAP `{name}`: {source}{}", busy(.source))]
    Create {
        /// Its name.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A descriptor that was handed over is not such a TAP.
    #[error("the descriptor handed over is not a TAP with IFF_NO_PI and IFF_VNET_HDR")]
    NotATap,
    /// The device refuses a setting that an endpoint needs.
    #[error("TAP `{name}`: cannot set {what}: {source}")]
    Setting {
        /// Its name.
        name: String,
        /// The setting.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn busy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "; another process has it open",
        Some(libc::EINVAL) => "; a device of this name exists and is not a TAP of this kind",
        _ => "",
    }
}

/// One queue of a TAP.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    offloads: Offloads,
}

impl Tap {
    /// Makes a TAP in the calling thread's network namespace, or opens a persistent one. Returns a `Tap` for each
    /// queue.
    ///
    /// # Errors
    /// See [`TapError`]; the text names the remedy.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Tap>, TapError> {
        Tap::open_all(name, queues, None)
    }

    /// Like [`Tap::open`], with the MAC set before the TAP has a second queue: udev replaces a random MAC of the kernel
    /// (MACAddressPolicy=persistent).
    ///
    /// # Errors
    /// As for [`Tap::open`].
    pub fn open_as(name: &str, queues: usize, mac: Mac) -> Result<Vec<Tap>, TapError> {
        Tap::open_all(name, queues, Some(mac))
    }

    fn open_all(name: &str, queues: usize, mac: Option<Mac>) -> Result<Vec<Tap>, TapError> {
        let failed = |source| TapError::Create { name: name.into(), source };
        let mut flags = FLAGS;
        if queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        // `name` may be a pattern such as `tap%d`: the first request returns the kernel's choice.
        let mut request = link::request(name).map_err(failed)?;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let mut taps = Vec::with_capacity(queues);
        for _ in 0..queues {
            let fd: OwnedFd = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .map_err(TapError::Driver)?
                .into();
            // SAFETY: TUNSETIFF reads and writes one ifreq.
            unsafe { ioctl(&fd, libc::TUNSETIFF, &mut request) }.map_err(failed)?;
            if let Some(mac) = mac
                && taps.is_empty()
            {
                set_mac(&fd, mac).map_err(failed)?;
            }
            if taps.is_empty() {
                // Nothing waits in one: what its ring does not take is lost. For a TAP of several queues `mq` makes
                // 256.
                let name = link::name_of(&request);
                if let Err(error) = link::without_qdisc(&name) {
                    tracing::warn!(%error, "the kernel makes queueing disciplines for it: 6 MiB if it has several queues");
                }
            }
            // Without an owner, any user may attach a queue (drivers/net/tun.c, tun_not_capable).
            let owner = nix::unistd::geteuid().as_raw();
            // SAFETY: TUNSETOWNER takes a number.
            unsafe { ioctl_value(&fd, libc::TUNSETOWNER, owner.into()) }.map_err(failed)?;
            taps.push(Tap::set_up(fd, &link::name_of(&request))?);
        }
        Ok(taps)
    }

    /// Takes over a queue of a TAP that another process opened.
    ///
    /// # Errors
    /// It is not a TAP, or a TAP without a virtio-net header, or its device is gone.
    pub fn from_fd(fd: OwnedFd) -> Result<Tap, TapError> {
        let request = interface(&fd).map_err(|_| TapError::NotATap)?;
        // SAFETY: TUNGETIFF filled in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        if libc::c_int::from(flags) & FLAGS != FLAGS {
            return Err(TapError::NotATap);
        }
        let name = link::name_of(&request);
        let failed = |source: Errno| TapError::Setting {
            name: name.clone(),
            what: "non-blocking mode",
            source: source.into(),
        };
        let mode = fcntl(&fd, FcntlArg::F_GETFL).map_err(failed)?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(mode) | OFlag::O_NONBLOCK)).map_err(failed)?;
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
        Tap::set_up(fd, &name)
    }

    fn set_up(fd: OwnedFd, name: &str) -> Result<Tap, TapError> {
        const TCP: libc::c_uint =
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

        let failed = |what| move |source| TapError::Setting { name: name.into(), what, source };
        let mut length = VnetHeader::LENGTH as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        unsafe { ioctl(&fd, libc::TUNSETVNETHDRSZ, &mut length) }.map_err(failed("the virtio-net header"))?;
        // Before Linux 6.2 there is no segmentation of UDP, and the kernel refuses the whole request.
        let udp = set_offloads(&fd, TCP | UDP).is_ok();
        if !udp {
            set_offloads(&fd, TCP).map_err(failed("offloads"))?;
        }
        Ok(Tap { fd, offloads: Offloads { tcp: true, udp } })
    }

    /// Refuses super-frames and unfinished checksums: the kernel cuts and completes frames before it hands them over.
    ///
    /// # Errors
    /// The device is gone.
    pub fn take_plain_frames(&self) -> Result<(), TapError> {
        set_offloads(&self.fd, 0).map_err(|source| TapError::Setting {
            name: self.name().unwrap_or_default(),
            what: "offloads",
            source,
        })
    }

    /// The current name of its device.
    ///
    /// # Errors
    /// EBADFD: the device is gone.
    pub fn name(&self) -> io::Result<String> {
        Ok(link::name_of(&interface(&self.fd)?))
    }

    /// Its device's index, in the namespace where the device is now.
    ///
    /// # Errors
    /// The device is gone, or its namespace cannot be entered (CAP_SYS_ADMIN).
    pub fn index(&self) -> io::Result<u32> {
        self.there(nix::net::if_::if_nametoindex)?.map_err(io::Error::from)
    }

    /// Does `work` with its device's current name, in the namespace where the device is now.
    ///
    /// # Errors
    /// The device is gone, or its namespace cannot be entered (CAP_SYS_ADMIN).
    pub fn there<T: Send>(&self, work: impl FnOnce(&str) -> T + Send) -> io::Result<T> {
        match self.name_here() {
            Some(name) => Ok(work(&name)),
            None => {
                let name = self.name()?;
                link::in_open_netns(self.netns()?.as_fd(), || work(&name))
            }
        }
    }

    /// Its device's name, if the device is in the caller's network namespace.
    #[must_use]
    pub fn name_here(&self) -> Option<String> {
        let theirs = nix::sys::stat::fstat(self.netns().ok()?).ok()?;
        let ours = nix::sys::stat::stat("/proc/thread-self/ns/net").ok()?;
        let same = (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino);
        self.name().ok().filter(|_| same)
    }

    /// The current MAC of its device.
    ///
    /// # Errors
    /// The device is gone.
    pub fn mac(&self) -> io::Result<Mac> {
        let mut request = link::request("")?;
        // SAFETY: SIOCGIFHWADDR writes one ifreq, of which the address is the active member then.
        let address = unsafe {
            ioctl(&self.fd, libc::SIOCGIFHWADDR, &mut request)?;
            request.ifr_ifru.ifru_hwaddr
        };
        let mut mac = Mac([0; 6]);
        mac.0.iter_mut().zip(address.sa_data).for_each(|(to, from)| *to = from as u8);
        Ok(mac)
    }

    /// Sets its device's MAC.
    ///
    /// # Errors
    /// The device is gone, or the kernel's refusal.
    pub fn set_mac(&self, mac: Mac) -> io::Result<()> {
        set_mac(&self.fd, mac)
    }

    /// The network namespace where its device is now.
    fn netns(&self) -> io::Result<OwnedFd> {
        // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor.
        let netns = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETDEVNETNS) };
        if netns < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(netns) })
    }

    /// Sets whether the kernel uses this queue of a TAP with several.
    ///
    /// # Errors
    /// The device is gone.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut request = link::request("")?;
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: TUNSETQUEUE reads one ifreq.
        match unsafe { ioctl(&self.fd, libc::TUNSETQUEUE, &mut request) } {
            // The queue is in that state already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Sets whether the device outlives its last descriptor.
    ///
    /// # Errors
    /// The device is gone.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes a number.
        unsafe { ioctl_value(&self.fd, libc::TUNSETPERSIST, persistent.into()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Endpoint for Tap {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        /// Frames that the kernel cannot describe in a header (EINVAL) are skipped, up to so many in one call.
        const TRIES: usize = 8;

        let mut header = VnetHeader::default();
        let mut result = Err(Errno::EINVAL);
        for _ in 0..TRIES {
            result = readv(&self.fd, &mut [IoSliceMut::new(header.as_mut_bytes()), IoSliceMut::new(buffer)]);
            if !matches!(result, Err(Errno::EINTR | Errno::EINVAL)) {
                break;
            }
        }
        match result {
            Ok(length) => Ok(length.checked_sub(VnetHeader::LENGTH).map(|length| (header, length))),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        let mut vector = [IoSlice::new(&[]); 1 + MAX_PARTS];
        let Some(vector) = vector.get_mut(..=parts.len()) else { return Ok(false) };
        for (to, from) in vector.iter_mut().zip([IoSlice::new(header.as_bytes())].iter().chain(parts)) {
            *to = *from;
        }
        loop {
            return match writev(&self.fd, vector) {
                Ok(_) => Ok(true),
                Err(Errno::EINTR) => continue,
                // The device is gone.
                Err(error @ (Errno::EBADFD | Errno::EBADF)) => Err(error.into()),
                // Full (EAGAIN, ENOBUFS), no memory, set down (EIO), or a frame that the kernel refuses (EINVAL).
                Err(_) => Ok(false),
            };
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.fd.as_raw_fd())
    }
}

/// A descriptor's device and flags; an error if it is not of the TUN driver.
fn interface(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    /// The TUN driver's character device (Documentation/admin-guide/devices.txt).
    const TUN: (u64, u64) = (10, 200);

    let device = nix::sys::stat::fstat(fd)?.st_rdev;
    if (nix::sys::stat::major(device), nix::sys::stat::minor(device)) != TUN {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let mut request = link::request("")?;
    // SAFETY: TUNGETIFF writes one ifreq.
    unsafe { ioctl(fd, libc::TUNGETIFF, &mut request) }?;
    Ok(request)
}

/// Sets the MAC of a queue's device, whatever its name and namespace.
fn set_mac(fd: &OwnedFd, mac: Mac) -> io::Result<()> {
    let mut request = link::request("")?;
    // SAFETY: plain integers; all zero is a valid sockaddr.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    address.sa_data.iter_mut().zip(mac.0).for_each(|(to, from)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: SIOCSIFHWADDR reads one ifreq.
    unsafe { ioctl(fd, libc::SIOCSIFHWADDR, &mut request) }
}

fn set_offloads(fd: &OwnedFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number.
    unsafe { ioctl_value(fd, libc::TUNSETOFFLOAD, offloads.into()) }
}

/// # Safety
/// `request` takes a pointer to a `T`.
unsafe fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument's type, and it outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// # Safety
/// `request` takes a number, not a pointer.
unsafe fn ioctl_value(fd: &OwnedFd, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument's kind.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
