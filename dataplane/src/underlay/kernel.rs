//! The questions to the kernel.

use super::route::{self, Neighbour, Route};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// The questions to the kernel. In tests, something else answers them.
pub trait Kernel {
    /// As [`route::look_up`].
    ///
    /// # Errors
    /// The kernel's refusal.
    fn look_up(&mut self, address: IpAddr, index: u32) -> io::Result<Option<Route>>;
    /// As [`route::neighbours`].
    ///
    /// # Errors
    /// The kernel's refusal.
    fn neighbours(&mut self, index: u32) -> io::Result<Vec<(IpAddr, Neighbour)>>;
    /// As [`route::probe`].
    ///
    /// # Errors
    /// The kernel's refusal.
    fn probe(&mut self, address: IpAddr, index: u32) -> io::Result<()>;
    /// As [`route::tables`].
    ///
    /// # Errors
    /// The kernel's refusal.
    fn tables(&mut self, index: u32) -> io::Result<Option<BTreeSet<u32>>>;
}

/// The kernel itself.
#[derive(Debug, Default)]
pub struct Netlink;

impl Kernel for Netlink {
    fn look_up(&mut self, address: IpAddr, index: u32) -> io::Result<Option<Route>> {
        route::look_up(address, index)
    }

    fn neighbours(&mut self, index: u32) -> io::Result<Vec<(IpAddr, Neighbour)>> {
        route::neighbours(index)
    }

    fn probe(&mut self, address: IpAddr, index: u32) -> io::Result<()> {
        route::probe(address, index)
    }

    fn tables(&mut self, index: u32) -> io::Result<Option<BTreeSet<u32>>> {
        route::tables(index)
    }
}
