//! Endpoint devices: made here, or handed over as open TAP queues. Workers hold duplicates of the descriptors, so that
//! an endpoint outlives its workers.

use crate::port::link::{self, LinkError, Sending};
use crate::port::tap::{Tap, TapError};
use crate::port::veth::{Veth, VethError};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use uvn_api::dataplane::config::{Cidr, Device, DeviceKind};
use uvn_api::dataplane::message::{ENDPOINT_QUEUES, Place};
use uvn_engine::port::{Endpoint, Offloads, VnetHeader};
use uvn_wire::ethernet::Mac;
use uvn_wire::ipv6::MIN_MTU as IPV6_MIN_MTU;
use uvn_wire::vxlan::Vni;

/// Why an endpoint could not be made or taken over.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The TAP cannot be made or used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The veth pair cannot be made.
    #[error(transparent)]
    Veth(#[from] VethError),
    /// The device cannot be read or set.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The device's network namespace cannot be entered, or the device is gone from it.
    #[error("network namespace of `{name}`: {source}")]
    Netns {
        /// The device.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The settings of a device to make.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// Name, kind and namespace.
    pub device: &'a Device,
    /// Its network.
    pub vni: Vni,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU, bytes.
    pub mtu: usize,
    /// Its addresses.
    pub addresses: &'a [Cidr],
    /// Index of the underlay NIC.
    pub nic: u32,
    /// How many workers there are: a TAP has one queue for each, up to [`ENDPOINT_QUEUES`].
    pub workers: usize,
}

/// One network's endpoint.
pub struct EndpointSource {
    /// The device, if it was made here; None: it was handed over.
    made: Option<Device>,
    /// Whether it lacks its IPv6 addresses, because its MTU is below the least of IPv6.
    without_ipv6: bool,
    /// How often its MAC was restored.
    mended: u32,
    /// Frames that the device had dropped before it was used here.
    dropped: u64,
    parts: Parts,
}

enum Parts {
    Tap(Vec<Tap>),
    /// All workers share its one queue. This is the only lock of the data plane, and only contended with more than one
    /// worker.
    Veth(Arc<Mutex<Veth>>),
}

impl EndpointSource {
    /// Makes the device, or takes over a persistent TAP of that name, which a killed data plane has left.
    ///
    /// # Errors
    /// The kernel refuses; what had been made is undone.
    pub fn make(plan: &Plan<'_>) -> Result<EndpointSource, DeviceError> {
        let name = plan.device.name.as_str();
        let parts = match plan.device.kind {
            DeviceKind::Tap => {
                let taps = inside(plan.device, || {
                    let taps = open_tap(plan)?;
                    set_up(plan)?;
                    Ok::<_, DeviceError>(taps)
                })??;
                for tap in &taps {
                    tap.set_persistent(true)
                        .map_err(|source| DeviceError::Netns { name: name.into(), source })?;
                }
                Parts::Tap(taps)
            }
            DeviceKind::Veth => {
                // The name holds the NIC and the VNI, so an existing device is one that a killed data plane has left.
                let near = format!("v{}-{}", plan.nic, plan.vni);
                match link::delete(&near) {
                    Ok(()) | Err(LinkError::NotFound(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                let mtu = u32::try_from(plan.mtu).unwrap_or(u32::MAX);
                let veth = Veth::create(&near, name, plan.device.netns.as_deref(), mtu)?;
                inside(plan.device, || set_up(plan))??;
                Parts::Veth(Arc::new(Mutex::new(veth)))
            }
        };
        let without_ipv6 = lacks_ipv6(plan.mtu, plan.addresses);
        Ok(EndpointSource { without_ipv6, ..EndpointSource::new(Some(plan.device.clone()), parts) })
    }

    /// Takes over TAP queues that came with a request.
    ///
    /// # Errors
    /// One is no TAP queue.
    pub fn take(fds: Vec<OwnedFd>) -> Result<EndpointSource, DeviceError> {
        let taps = fds.into_iter().map(Tap::from_fd).collect::<Result<_, _>>()?;
        Ok(EndpointSource::new(None, Parts::Tap(taps)))
    }

    fn new(made: Option<Device>, parts: Parts) -> EndpointSource {
        let source = EndpointSource { made, without_ipv6: false, mended: 0, dropped: 0, parts };
        EndpointSource { dropped: source.sending().dropped, ..source }
    }

    /// An endpoint without queues.
    #[cfg(test)]
    pub(crate) fn none() -> EndpointSource {
        EndpointSource::new(None, Parts::Tap(Vec::new()))
    }

    /// The device's name, if it is a TAP in the caller's network namespace.
    #[must_use]
    pub fn device_here(&self) -> Option<String> {
        match &self.parts {
            Parts::Tap(taps) => taps.first()?.name_here(),
            Parts::Veth(_) => None,
        }
    }

    /// The name and namespace where its device is now; None: the namespace has no known path.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        if let Some(device) = self.device_here() {
            return Some(Place { device, netns: None });
        }
        let made = self.made.as_ref()?;
        let device = match &self.parts {
            // The TAP is in an unknown network namespace.
            Parts::Tap(_) if made.netns.is_none() => return None,
            Parts::Tap(taps) => taps.first()?.name().ok()?,
            Parts::Veth(_) => made.name.clone(),
        };
        Some(Place { device, netns: made.netns.clone() })
    }

    /// The device, if it was made here; None: it was handed over.
    #[must_use]
    pub fn made(&self) -> Option<&Device> {
        self.made.as_ref()
    }

    /// How many of so many workers read the endpoint: at least one.
    #[must_use]
    pub fn readers(&self, workers: usize) -> u32 {
        let queues = match &self.parts {
            Parts::Tap(taps) => taps.len(),
            Parts::Veth(_) => 1,
        };
        queues.min(workers).max(1) as u32
    }

    /// Each worker's side: every queue is read by one worker, and every worker can write.
    ///
    /// # Errors
    /// No more file descriptors, or the device is gone.
    pub fn endpoints(&self, workers: usize) -> Result<Vec<Box<dyn Endpoint>>, DeviceError> {
        match &self.parts {
            Parts::Tap(taps) => {
                // Queues without a worker are detached, so that the kernel gives them no flow.
                for (worker, tap) in taps.iter().enumerate() {
                    tap.set_attached(worker < workers).map_err(TapError::Driver)?;
                }
                (0..workers)
                    .map(|worker| -> Result<Box<dyn Endpoint>, DeviceError> {
                        let Some(tap) = taps.get(worker % taps.len().max(1)) else {
                            return Err(TapError::NotATap.into());
                        };
                        let fd = tap.as_fd().try_clone_to_owned().map_err(TapError::Driver)?;
                        let tap = Tap::from_fd(fd)?;
                        if worker < taps.len() { Ok(Box::new(tap)) } else { Ok(Box::new(WriteOnly(tap))) }
                    })
                    .collect()
            }
            Parts::Veth(veth) => Ok((0..workers)
                .map(|worker| -> Box<dyn Endpoint> {
                    let shared = Shared(veth.clone());
                    if worker == 0 { Box::new(shared) } else { Box::new(WriteOnly(shared)) }
                })
                .collect()),
        }
    }

    /// Sets the device's MTU after the NIC's; a device that was handed over is left to its owner. Below IPv6's least
    /// MTU the kernel removes the IPv6 addresses; from it on, they are added again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mtu(&mut self, mtu: usize, addresses: &[Cidr]) -> Result<(), DeviceError> {
        if self.made.is_none() {
            return Ok(());
        }
        let lacks = lacks_ipv6(mtu, addresses);
        let missing = if self.without_ipv6 && !lacks { addresses } else { &[] };
        self.there(|name| {
            link::set_mtu(name, u32::try_from(mtu).unwrap_or(u32::MAX))?;
            only_these_addresses(name);
            add_addresses(name, missing.iter().filter(|cidr| cidr.address.is_ipv6()))
        })??;
        self.without_ipv6 = lacks;
        Ok(())
    }

    /// Restores the MAC if another program has changed it, and returns the changed one. A device that was handed over
    /// is left to its owner.
    ///
    /// # Errors
    /// The device is gone, or the kernel refuses.
    pub fn mend(&mut self, mac: Mac) -> Result<Option<Mac>, DeviceError> {
        let Some(device) = &self.made else { return Ok(None) };
        let tap = match &self.parts {
            Parts::Tap(taps) => taps.first(),
            Parts::Veth(_) => None,
        };
        let found = match tap {
            Some(tap) => tap.mac().map_err(|source| gone(device, source))?,
            None => self.there(link::get)??.mac.unwrap_or(mac),
        };
        if found == mac {
            return Ok(None);
        }
        match tap {
            Some(tap) => tap.set_mac(mac).map_err(|source| gone(device, source))?,
            None => self.there(|name| link::set_mac(name, mac))??,
        }
        self.mended += 1;
        Ok(Some(found))
    }

    /// The device's drawbacks, for `show`.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let ipv6 = self.without_ipv6.then(|| {
            format!("the NIC's MTU is too small for IPv6, which needs {IPV6_MIN_MTU} on the endpoint: it has no IPv6 address")
        });
        let mended = (self.mended > 0).then(|| {
            format!("another program has changed the endpoint's MAC {} times; it was set back", self.mended)
        });
        ipv6.into_iter().chain(mended)
    }

    /// Whether the device is up, and how many frames of the user it has dropped since it is used here, because its
    /// queue was full.
    #[must_use]
    pub fn sending(&self) -> Sending {
        let now = self.there(link::sending).ok().and_then(Result::ok);
        let Sending { up, dropped } = now.unwrap_or(Sending { up: true, dropped: 0 });
        Sending { up, dropped: dropped.saturating_sub(self.dropped) }
    }

    /// Does `work` with the device's name, in its network namespace.
    fn there<T: Send>(&self, work: impl FnOnce(&str) -> T + Send) -> Result<T, DeviceError> {
        match (&self.parts, &self.made) {
            (Parts::Tap(taps), made) => {
                let tap = taps.first().ok_or(TapError::NotATap)?;
                tap.there(work).map_err(|source| match made {
                    Some(device) => gone(device, source),
                    None => TapError::Driver(source).into(),
                })
            }
            (Parts::Veth(_), Some(device)) => inside(device, || work(&device.name)),
            (Parts::Veth(_), None) => Err(TapError::NotATap.into()),
        }
    }

    /// Ends the endpoint. A device that was made here is deleted; one that was handed over stays.
    pub fn remove(self) {
        let (Some(device), Parts::Tap(taps)) = (&self.made, &self.parts) else { return };
        for tap in taps {
            if let Err(error) = tap.set_persistent(false) {
                tracing::debug!(device = device.name, %error, "the TAP is gone already");
            }
        }
    }
}

/// Opens a TAP with a queue for each worker. Runs in the device's namespace.
fn open_tap(plan: &Plan<'_>) -> Result<Vec<Tap>, DeviceError> {
    let queues = plan.workers.min(ENDPOINT_QUEUES);
    let name = plan.device.name.as_str();
    let error = match Tap::open_as(name, queues, plan.mac) {
        Ok(taps) => return Ok(taps),
        Err(error) => error,
    };
    // An existing TAP with one queue cannot get several, nor the other way round. It is ours if it has our MAC.
    let is_shape =
        matches!(&error, TapError::Create { source, .. } if source.raw_os_error() == Some(libc::EINVAL));
    if is_shape && link::get(name).is_ok_and(|link| link.mac == Some(plan.mac)) {
        tracing::warn!(device = name, "the number of workers has changed; the TAP is made anew");
        link::delete(name)?;
        return Ok(Tap::open_as(name, queues, plan.mac)?);
    }
    Err(error.into())
}

/// Sets MAC, MTU and addresses, and sets the device up. Runs in the device's namespace.
fn set_up(plan: &Plan<'_>) -> Result<(), DeviceError> {
    let name = plan.device.name.as_str();
    link::set_mac(name, plan.mac)?;
    link::set_mtu(name, u32::try_from(plan.mtu).unwrap_or(u32::MAX))?;
    only_these_addresses(name);
    link::set_up(name, true)?;
    let lacks = lacks_ipv6(plan.mtu, plan.addresses);
    if lacks {
        tracing::warn!(
            vni = %plan.vni, device = name, mtu = plan.mtu,
            "the NIC's MTU is too small for IPv6, which needs {IPV6_MIN_MTU} on the endpoint: it gets no IPv6 address"
        );
    }
    Ok(add_addresses(name, plan.addresses.iter().filter(|cidr| cidr.address.is_ipv4() || !lacks))?)
}

/// Keeps the kernel from adding an IPv6 link-local address: the overlay has the underlay's addresses only.
fn only_these_addresses(name: &str) {
    // IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h). No such file: no IPv6.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
}

fn add_addresses<'a>(name: &str, addresses: impl Iterator<Item = &'a Cidr>) -> Result<(), LinkError> {
    for cidr in addresses {
        match link::add_address(name, cidr.address, cidr.prefix) {
            Err(LinkError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Whether one of the addresses is IPv6, and the MTU too small for it.
fn lacks_ipv6(mtu: usize, addresses: &[Cidr]) -> bool {
    mtu < IPV6_MIN_MTU && addresses.iter().any(|cidr| cidr.address.is_ipv6())
}

fn gone(device: &Device, source: io::Error) -> DeviceError {
    DeviceError::Netns { name: device.name.clone(), source }
}

/// Does `work` in the device's network namespace.
fn inside<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> Result<T, DeviceError> {
    match &device.netns {
        Some(netns) => link::in_netns(netns, work).map_err(|source| DeviceError::Netns {
            name: format!("{} in {}", device.name, netns.display()),
            source,
        }),
        None => Ok(work()),
    }
}

/// An endpoint for a worker that only writes: another worker reads it.
struct WriteOnly<E>(E);

impl<E: Endpoint> Endpoint for WriteOnly<E> {
    fn receive(&mut self, _buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        Ok(None)
    }

    fn send(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        self.0.send(header, parts)
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }
}

/// A veth pair that several workers share.
struct Shared(Arc<Mutex<Veth>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Veth> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoint for Shared {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, usize)>> {
        self.lock().receive(buffer)
    }

    fn send(&mut self, header: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        self.lock().send(header, parts)
    }

    fn flush(&mut self) {
        self.lock().flush();
    }

    fn offloads(&self) -> Offloads {
        self.lock().offloads()
    }

    fn fd(&self) -> Option<RawFd> {
        self.lock().fd()
    }
}
