//! The rig of tests, benchmarks and the demo.
//!
//! - [`netns`]: network namespaces, removed at the end in every case
//! - [`rig`]: nodes as network namespaces, and the wire between them
//! - [`mod@test`]: network namespaces of a test program
//! - [`namespace`]: a host's worth of namespaces, for nodes that share a kernel
//! - [`wire`]: the offloads of that wire
//! - [`cores`]: the cores of each node
//! - [`ssh`]: programs on real nodes
//! - [`dataplane`]: a running `uvn-dataplane`
//! - [`place`]: where a program runs: a node, and cores of it
//! - [`process`]: running programs
//! - [`cpu`]: processor time
//! - [`shell`]: runs other programs
//! - [`error`]: why something failed

pub mod cores;
pub mod cpu;
pub mod dataplane;
pub mod error;
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test's rig fails by panicking"
)]
pub mod namespace;
pub mod netns;
pub mod place;
pub mod process;
pub mod rig;
pub mod shell;
pub mod ssh;
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test's rig fails by panicking"
)]
pub mod test;
pub mod wire;
