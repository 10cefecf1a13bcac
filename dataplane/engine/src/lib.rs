//! What a worker does with frames. No system call and no unsafe code, so it runs and can be tested anywhere.
//!
//! The files, in the order of a packet's way:
//!
//! - [`port`]: what a worker needs from a NIC queue and from an endpoint
//! - [`worker`]: one NIC queue's loop; `worker/ingress.rs` and `worker/egress.rs` are its two directions
//! - [`rotation`]: whose turn it is, in either direction: users get equal shares of a worker
//! - [`endpoints`]: a worker's endpoints: ready, broken, to be flushed
//! - [`encap`]: the checks on a frame that an endpoint sends, and its destination
//! - [`gso`]: a super-frame of an endpoint, cut into frames
//! - [`outer`]: the headers around them
//! - [`decap`]: the checks on a frame that the NIC received
//! - [`fragments`]: holds fragments until their datagram is whole
//! - [`gro`]: joins received frames into super-frames for an endpoint
//! - [`answer`]: ARP replies, neighbour advertisements, "too big"
//! - [`tables`]: what the checks look up; replaced as a whole
//! - [`counters`]: frames carried, and frames dropped by reason
//!
//! [`memory`] and [`ring`] are ports without a kernel, for tests and benchmarks.

#![forbid(unsafe_code)]

pub mod answer;
pub mod counters;
pub mod decap;
pub mod encap;
pub mod endpoints;
pub mod fragments;
pub mod gro;
pub mod gso;
pub mod memory;
pub mod outer;
pub mod port;
pub mod ring;
pub mod rotation;
pub mod tables;
pub mod worker;

/// The types that `ring` shares between threads. Its model test compiles that file over loom's types instead.
mod sync {
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}
