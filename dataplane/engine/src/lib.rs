//! What a worker does with frames. No system call, no unsafe code: it runs, and is tested, anywhere.
//!
//! A packet's way, file by file:
//!
//! - [`port`]: what a worker needs from a NIC queue and from an endpoint
//! - [`worker`]: one NIC queue's loop; `worker/ingress.rs` and `worker/egress.rs` are its two directions
//! - [`rotation`]: whose turn it is, in either direction: users share a worker alike
//! - [`endpoints`]: its side of the endpoints: ready, broken, to be flushed
//! - [`encap`]: the checks on a frame that an endpoint sends, and its destination
//! - [`gso`]: a super-frame of an endpoint, cut into frames
//! - [`outer`]: the headers around them
//! - [`decap`]: the checks on a frame that the NIC received
//! - [`fragments`]: fragments of one datagram keep together, and to their order
//! - [`gro`]: joins received frames into super-frames for an endpoint
//! - [`answer`]: ARP replies, neighbour advertisements, "too big"
//! - [`tables`]: what the checks look up; swapped whole
//! - [`counters`]: why a frame was dropped, and how often
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

/// What `ring` shares between threads. Its model test compiles that file over loom's types instead.
mod sync {
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}
