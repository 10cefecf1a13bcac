//! The kernel's NIC queues and endpoints, for `uvn_engine::port`; and network devices.
//!
//! - [`xsk`]: a NIC queue through AF_XDP
//! - [`slow_path`]: a NIC queue through a TAP, where the shortcut has the NIC
//! - [`tap`]: an endpoint through a TAP
//! - [`veth`]: an endpoint through a veth pair and AF_XDP; [`redirect`]: its XDP program
//! - [`device`]: an endpoint's device, made or handed over
//! - [`link`]: network devices by name: rtnetlink, ethtool, namespaces

pub mod device;
pub mod link;
pub mod redirect;
pub mod slow_path;
pub mod tap;
pub mod veth;
pub mod xsk;
