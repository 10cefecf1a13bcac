//! The device for GRO: a VXLAN device that takes no frame, and makes the kernel's GRO join VXLAN frames to its port.

use crate::port::link::{self, Link, LinkError};
use netlink_packet_route::link::InfoKind;

/// The prefix of its name; the NIC's index follows.
const GRO: &str = "gro-";

/// The device for GRO of one NIC.
pub struct Joining {
    nic: u32,
    port: u16,
    /// Its interface index; None: it could not be made.
    device: Option<u32>,
}

impl Joining {
    /// Makes the device. Without it the shortcut works, but more slowly.
    pub fn open(nic: u32, port: u16) -> Joining {
        clear(nic);
        let mut joining = Joining { nic, port, device: None };
        joining.make();
        joining
    }

    fn make(&mut self) {
        let (device, port) = (device(self.nic), self.port);
        match link::create_deaf_vxlan(&device, port).and_then(|()| link::get(&device)) {
            Ok(link) => self.device = Some(link.index),
            Err(error) => {
                // It may have been made, but not set up.
                let _ = link::delete(&device);
                self.device = None;
                let follows = "GRO joins no frames, unless another VXLAN device has the port";
                tracing::warn!(%error, device, port, "cannot make the device for GRO; {follows}");
            }
        }
    }

    /// Makes the device again if another program has deleted it, renamed it or set it down.
    pub fn mend(&mut self) {
        let Some(index) = self.device else { return };
        let (device, found) = (device(self.nic), ours(index));
        if found.as_ref().is_some_and(|link| link.name == device && link.up) {
            return;
        }
        tracing::warn!(
            device,
            "another program deleted, renamed or set down the device for GRO; it is made anew"
        );
        if let Some(link) = found {
            remove(&link.name);
        }
        self.make();
    }

    /// Whether the device was made.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.device.is_some()
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        // By its index, since another program may have renamed it.
        if let Some(link) = self.device.and_then(ours) {
            remove(&link.name);
        }
    }
}

/// The device with this index; None: it is gone, or the index belongs to a device that is not VXLAN.
fn ours(index: u32) -> Option<Link> {
    link::at(index).ok().filter(|link| link.kind == Some(InfoKind::Vxlan))
}

fn remove(device: &str) {
    if let Err(error) = link::delete(device) {
        tracing::debug!(%error, "the device for GRO is gone already");
    }
}

fn device(nic: u32) -> String {
    format!("{GRO}{nic}")
}

/// Deletes the device for GRO that a killed data plane of the NIC with index `nic` has left: it would keep the port
/// from others, in either gear.
pub fn clear(nic: u32) {
    match link::delete(&device(nic)) {
        Ok(()) | Err(LinkError::NotFound(_)) => {}
        Err(error) => {
            tracing::warn!(%error, "cannot delete the device for GRO that a former data plane left")
        }
    }
}

/// The index of the NIC that a device for GRO was made for, by the device's name; None: another name. While a data
/// plane uses it, that NIC's [`crate::port::slow_path::device`] exists, too.
#[must_use]
pub fn nic_of_gro(device: &str) -> Option<u32> {
    let digits = device.strip_prefix(GRO)?;
    digits.parse().ok().filter(|nic: &u32| nic.to_string() == digits)
}
