//! One NIC's data plane: the kernel's side of it. What a worker does with a frame is `uvn_engine`.
//!
//! - [`service`]: the thread that owns all of it: set-up, requests, life cycle
//! - [`networks`]: the networks, what was learned in them, and their tables
//! - [`gear`]: how the NIC's frames are carried: its programs and workers
//! - [`port`]: NIC queues and endpoints, and the devices behind them
//! - [`underlay`]: next hops, from the kernel's routes and neighbours
//! - [`capture`]: what a network sends and receives, for a human
//! - [`bpf`]: bpf(2), as far as no library offers it

pub mod bpf;
pub mod capture;
pub mod gear;
pub mod networks;
pub mod port;
pub mod service;
pub mod underlay;
