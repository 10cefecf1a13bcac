//! One NIC's VXLAN engine. A packet's way, file by file:
//!
//! - [`port`]: what a worker needs from a NIC queue and from an endpoint
//! - [`worker`]: one NIC queue's loop; `worker/ingress.rs` and `worker/egress.rs` are its two directions
//! - [`rotation`]: whose turn it is, in either direction: users share a worker alike
//! - [`endpoints`]: its side of the endpoints: ready, broken, to be flushed
//! - [`encap`]: the checks on a frame that an endpoint sends, and its destination
//! - [`gso`]: a super-frame of an endpoint, cut into frames
//! - [`outer`]: the headers around them
//! - [`decap`]: the checks on a frame that the NIC received
//! - [`gro`]: joins received frames into super-frames for an endpoint
//! - [`answer`]: ARP replies, neighbour advertisements, "too big"
//! - [`tables`]: what the checks look up; swapped whole
//! - [`counters`]: why a frame was dropped, and how often
//!
//! What a worker runs on:
//!
//! - [`thread`]: its thread: core, spinning, sleeping, commands
//! - [`xsk`]: a NIC queue through AF_XDP
//! - [`slow_path`]: a NIC queue through a TAP, where the in-kernel gear has the NIC
//! - [`tap`]: an endpoint through a TAP
//! - [`xdp`]: loads and feeds the XDP program that stands before the workers
//! - [`shortcut`]: loads and feeds the in-kernel gear, which carries what needs no decision past the workers
//! - [`veth`]: an endpoint through a veth pair and AF_XDP
//! - [`redirect`]: the XDP program of a veth endpoint
//! - [`memory`], [`ring`]: ports without a kernel, for tests and benchmarks
//!
//! Around the workers:
//!
//! - [`config`], [`toml_file`]: the TOML file, and how it is read
//! - [`message`]: the control protocol; [`uvn_api`]: how one is packed
//! - [`control`], [`client`]: the two ends of the control socket
//! - [`service`]: the thread that owns them all: set-up, changes, life cycle
//! - [`capture`]: what a network sends and receives, for a human
//! - [`daemon`]: the service manager and the limit of open files, for `uvnd` too
//! - [`networks`]: the networks, what was learned in them, and their tables
//! - [`device`]: endpoint devices, made or handed over
//! - [`queues`], [`cores`]: the XDP program and the workers of a NIC, and the cores they run on
//! - [`traffic`]: what is done about the traffic, where that pays: threads for the NIC, cores awake
//! - [`waiting`]: the networks that the in-kernel gear is still to take over
//! - [`underlay`], [`route`]: next hops, from the kernel's routes and neighbours
//! - [`link`]: network devices by name: rtnetlink, ethtool, namespaces; [`bpf`]: whether programs are where they were put
//! - [`rivals`]: devices that answer for the NIC

pub mod answer;
pub mod bpf;
pub mod capture;
pub mod client;
pub mod config;
pub mod control;
pub mod cores;
pub mod counters;
pub mod daemon;
pub mod decap;
pub mod device;
pub mod encap;
pub mod endpoints;
pub mod fragments;
pub mod gro;
pub mod gso;
pub mod link;
pub mod memory;
pub mod message;
pub mod networks;
pub mod outer;
pub mod port;
pub mod queues;
pub mod redirect;
pub mod ring;
pub mod rivals;
pub mod rotation;
pub mod route;
pub mod service;
pub mod shortcut;
pub mod slow_path;
pub mod tables;
pub mod tap;
pub mod thread;
pub mod toml_file;
pub mod traffic;
pub mod underlay;
pub mod veth;
pub mod waiting;
pub mod worker;
pub mod xdp;
pub mod xsk;

/// What `ring` shares between threads. Its model test compiles that file over loom's types instead.
mod sync {
    pub use std::sync::Arc;
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}
