//! Notes: what impairs the data plane, though it works.

use super::Service;
use crate::underlay::rivals;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use uvn_api::dataplane::message::Note;
use uvn_engine::outer::overhead;
use uvn_wire::ipv6::MIN_MTU;

/// The most entries shown: a list of thousands would leave no room for the rest.
const SHOWN: usize = 8;

impl Service {
    /// The notes, for `show`.
    pub(super) fn notes(&self) -> Vec<Note> {
        let absent = self.absent.iter().map(|vtep| Note::VtepAbsent { vtep: *vtep });
        let rivals = self.rivals().into_iter().map(|device| Note::Rival { device });
        let gear = self.gear.iter().flat_map(|gear| gear.notes(&self.config.nic));
        absent.chain(rivals).chain(gear).chain(self.narrow_ways().take(SHOWN)).collect()
    }

    /// Follows a change of some device's addresses.
    pub(super) fn follow_addresses(&mut self) {
        let nobodys = |vtep: &IpAddr| is_nobodys(*vtep, &self.config.nic);
        let absent: Vec<IpAddr> = self.config.vtep.iter().copied().filter(nobodys).collect();
        let before = self.rivals();
        if let Some(nic) = &self.link {
            match rivals::on_link(nic.index, &self.config.vtep) {
                Ok(devices) => self.on_link = devices,
                Err(error) => tracing::error!(%error, "cannot look at the devices' addresses"),
            }
        }
        let nic = &self.config.nic;
        let absences = absent.iter().filter(|vtep| !self.absent.contains(vtep));
        let absences = absences.map(|vtep| Note::VtepAbsent { vtep: *vtep });
        let rivals = self.rivals().into_iter().filter(|device| !before.contains(device));
        for note in absences.chain(rivals.map(|device| Note::Rival { device })) {
            tracing::warn!(remedy = note.remedy(nic), "{}", note.what(nic));
        }
        self.absent = absent;
    }

    /// Devices that answer for the NIC, and are no endpoints of networks: the first [`SHOWN`].
    fn rivals(&self) -> Vec<String> {
        let mut rivals: Vec<String> =
            self.on_link.iter().filter(|device| rivals::answers_for_others(device)).cloned().collect();
        if !rivals.is_empty() {
            for (_, entry) in self.networks.iter() {
                let own = entry.source.device_here();
                rivals.retain(|device| Some(device) != own.as_ref());
            }
        }
        rivals.truncate(SHOWN);
        rivals
    }

    /// Notes about ways that are too narrow for IPv6, if a network has it.
    fn narrow_ways(&self) -> impl Iterator<Item = Note> {
        let is_ipv6 = |entry: &crate::networks::Entry| {
            entry.network.addresses.iter().any(|cidr| cidr.address.is_ipv6())
        };
        // Below that the endpoints have no IPv6, which is shown with each network.
        let has_ipv6 =
            self.endpoint_mtu() >= MIN_MTU && self.networks.iter().any(|(_, entry)| is_ipv6(entry));
        self.underlay.hops().filter_map(move |(vtep, hop)| {
            let least = MIN_MTU + overhead(vtep);
            (has_ipv6 && hop.mtu < least).then_some(Note::NarrowWay { vtep, mtu: hop.mtu, least })
        })
    }
}

/// Whether no device has an address, as seen from a NIC, which may be in a VRF.
fn is_nobodys(address: IpAddr, nic: &str) -> bool {
    let bind = |device: Option<&[u8]>| -> io::Result<()> {
        let to = SocketAddr::new(address, 0);
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        socket.bind_device(device)?;
        socket.bind(&to.into())
    };
    bind(None).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
        && bind(Some(nic.as_bytes())).is_err()
}
