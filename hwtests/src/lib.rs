//! Tests of uvn on real kernels and NICs: nodes, users and probes.
//!
//! The suites in `tests/` need root and a kernel with VRF: `cargo xtask suite NAME` builds one and runs it in a guest
//! (with systemd and logind if its name ends in `_systemd`). All nodes share one kernel: a [`Node`] is a network, mount
//! and UTS namespace of its own with an uvnd of its own.
//!
//! - [`cluster`]: nodes, the switch between them, and hosts without uvn
//! - [`node`]: uvnd, `uvn`, servers and probes on one node
//! - [`reach`]: who answers whom, over TCP and UDP
//! - [`path`]: tests for each data path, and which one a node has
//! - [`sockets`]: whose sockets are where
//! - [`escape`]: what a user may try to get out of his network
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test's rig fails by panicking"
)]

pub mod cluster;
pub mod escape;
pub mod node;
pub mod path;
pub mod reach;
pub mod sockets;

pub use cluster::{Cluster, Layout};
pub use node::{Daemon, Node, Server};
pub use uvn_rig::namespace::Namespace;
