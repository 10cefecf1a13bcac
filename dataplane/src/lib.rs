//! One NIC's VXLAN engine. A packet's way, file by file:
//!
//! - [`port`]: what a worker needs from a NIC queue and from an endpoint; in-memory doubles for tests
//! - [`counters`]: why a frame was dropped, and how often
//! - [`config`]: the TOML file
//! - [`link`]: network devices by name: rtnetlink, ethtool, namespaces
#![deny(unsafe_code)]

pub mod config;
pub mod counters;
pub mod link;
pub mod port;
