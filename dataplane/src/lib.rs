//! One NIC's VXLAN engine. A packet's way, file by file:
//!
//! - [`port`]: what a worker needs from a NIC queue and from an endpoint; in-memory doubles for tests
//! - [`counters`]: why a frame was dropped, and how often
//! - [`config`]: the TOML file
//! - [`memory`]: a NIC queue and an endpoint without a kernel, for tests and benchmarks
//! - [`ring`]: the descriptor rings of the in-memory NIC queue
//! - [`link`]: network devices by name: rtnetlink, ethtool, namespaces
#![deny(unsafe_code)]

pub mod config;
pub mod counters;
pub mod link;
pub mod memory;
pub mod port;
pub mod ring;

/// What `ring` shares between threads. Its model test compiles that file over loom's types instead.
mod sync {
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}
