//! The allowed VTEPs: the nodes that may send to this one, and the owners of overlay addresses.

use crate::dataplane::config::{Cidr, Peers};
use crate::dataplane::ranges::Ranges;
use hashbrown::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use uvn_wire::ethernet::Mac;

/// The allowed VTEPs, indexed: to look one up costs the same however many there are.
#[derive(Debug, Default)]
pub struct Vteps {
    /// Single VTEPs, and whether their overlay addresses of the other family are left open: those of ranges that hold one
    /// address.
    exact: HashMap<IpAddr, bool>,
    /// The other ranges.
    ranges: Vec<Cidr>,
    indexed: Ranges,
    /// Overlay address -> VTEP.
    owners: HashMap<IpAddr, IpAddr>,
    /// Last four bytes of the single IPv6 VTEPs, as their MACs carry them.
    low: HashMap<[u8; 4], Ipv6Addr>,
}

/// Why a list of VTEPs is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two VTEPs claim one overlay address.
    #[error("VTEPs {0} and {1} both claim the overlay address {2}: list it under one of them")]
    Overlay(IpAddr, IpAddr, IpAddr),
    /// Two IPv6 VTEPs would have the same MAC.
    #[error(
        "VTEPs {0} and {1} share their last four bytes, so their endpoints would share a MAC: renumber one"
    )]
    Mac(IpAddr, IpAddr),
    /// An IPv6 range does not leave the MAC enough bits.
    #[error("range {0} is too wide: an IPv6 range must be /96 or longer; list the VTEPs one by one instead")]
    Wide(Cidr),
}

impl Vteps {
    /// Checks the list and indexes it.
    ///
    /// # Errors
    /// A [`Conflict`], which names both sides.
    pub fn new(peers: &Peers) -> Result<Vteps, Conflict> {
        let mut vteps = Vteps::default();
        for vtep in &peers.vtep {
            vteps.exact.insert(vtep.address, false);
            vteps.claim_mac(vtep.address)?;
            let own = [vtep.address];
            let overlay = if vtep.overlay.is_empty() { &own[..] } else { &vtep.overlay[..] };
            for &address in overlay {
                match vteps.owners.insert(address, vtep.address) {
                    Some(other) if other != vtep.address => {
                        return Err(Conflict::Overlay(other, vtep.address, address));
                    }
                    _ => {}
                }
            }
        }
        for range in &peers.range {
            let Cidr { address, prefix } = *range;
            if address.is_ipv6() && prefix < 96 {
                return Err(Conflict::Wide(*range));
            }
            if prefix == if address.is_ipv4() { 32 } else { 128 } {
                vteps.exact.entry(address).or_insert(true);
                vteps.owners.entry(address).or_insert(address);
                // As with wider ranges, the first one has a MAC that two could have.
                if let IpAddr::V6(address) = address {
                    let [.., a, b, c, d] = address.octets();
                    vteps.low.entry([a, b, c, d]).or_insert(address);
                }
            } else {
                vteps.ranges.push(*range);
            }
        }
        vteps.indexed = Ranges::new(&vteps.ranges);
        Ok(vteps)
    }

    fn claim_mac(&mut self, vtep: IpAddr) -> Result<(), Conflict> {
        let IpAddr::V6(address) = vtep else { return Ok(()) };
        let [.., a, b, c, d] = address.octets();
        match self.low.insert([a, b, c, d], address) {
            Some(other) if other != address => Err(Conflict::Mac(other.into(), vtep)),
            _ => Ok(()),
        }
    }

    /// Whether a frame may come from this outer source.
    #[must_use]
    pub fn allows(&self, vtep: IpAddr) -> bool {
        self.exact.contains_key(&vtep) || self.indexed.contains(vtep)
    }

    /// The allowed VTEP from which a deterministic MAC was made.
    #[must_use]
    pub fn of_mac(&self, mac: Mac) -> Option<IpAddr> {
        if let Some(address) = mac.ipv4() {
            return Some(IpAddr::V4(address)).filter(|vtep| self.allows(*vtep));
        }
        let low = mac.ipv6_low()?;
        self.low.get(&low).copied().or_else(|| self.indexed.of_low(low)).map(IpAddr::V6)
    }

    /// The VTEP that has an overlay address: as listed, or the address itself if a range allows it.
    #[must_use]
    pub fn of_overlay(&self, address: IpAddr) -> Option<IpAddr> {
        if let Some(vtep) = self.owners.get(&address) {
            return Some(*vtep);
        }
        Some(address).filter(|vtep| self.indexed.contains(*vtep))
    }

    /// The overlay addresses of single VTEPs, and these.
    pub fn overlay(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        self.owners.iter().map(|(overlay, vtep)| (*overlay, *vtep))
    }

    /// Whether an on-subnet inner source may come from `vtep`. An address without a known owner is bound to its VTEP by
    /// the MAC alone: an IPv4 range says nothing about IPv6 addresses.
    #[must_use]
    pub fn may_send(&self, vtep: IpAddr, source: IpAddr) -> bool {
        match self.of_overlay(source) {
            Some(owner) => owner == vtep,
            None => source.is_ipv4() != vtep.is_ipv4() && self.exact.get(&vtep) != Some(&false),
        }
    }

    /// The single VTEPs and the wider ranges, as the XDP program needs them.
    pub fn listed(&self) -> (impl Iterator<Item = IpAddr> + '_, &[Cidr]) {
        (self.exact.keys().copied(), &self.ranges)
    }
}
