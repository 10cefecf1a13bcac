//! The side-by-side measurement: ways to carry users' packets take turns on the same work, in one run.
//!
//! What is measured:
//! - [`contender`]: the ways, each ready on nodes of its own
//! - [`workload`]: traffic, and what is measured of it
//! - [`mpi`]: MPI jobs, and patterns of communication
//! - [`hpcc`]: an application's proxy
//! - [`crowd`]: many networks on a node
//! - [`metric`]: measured quantities
//! - [`plan`]: which contenders do which work, how often and how long
//! - [`run`]: the turns
//!
//! What comes of it:
//! - [`report`]: all samples and what must be known beside them: `report.json`
//! - [`table`]: the same for the terminal
//! - [`html`]: the same as a page, `report.html`
//! - [`chart`]: its diagrams
//! - [`goals`]: what uvn must reach
//! - [`baseline`]: the same beside an earlier run's
//! - [`noise`]: whether something else disturbed a sample
//! - [`machine`]: what it ran on
//!
//! What it runs on:
//! - [`netns`]: network namespaces that never stay behind
//! - [`rig`]: nodes as network namespaces, and the wire between them
//! - [`wire`]: the offloads of that wire
//! - [`cores`]: which core runs what
//! - [`nodes`]: real nodes instead
//! - [`ssh`]: programs on them
//! - [`dataplane`]: a running `uvn-dataplane`
//! - [`process`]: programs on a node
//! - [`probe`]: those of our own
//! - [`cpu`]: processor time
//! - [`shell`]: runs other programs
//! - [`error`]: why something failed

pub mod baseline;
pub mod chart;
pub mod contender;
pub mod cores;
pub mod cpu;
pub mod crowd;
pub mod dataplane;
pub mod error;
pub mod goals;
pub mod hpcc;
pub mod html;
pub mod machine;
pub mod metric;
pub mod mpi;
pub mod netns;
pub mod nodes;
pub mod noise;
pub mod plan;
pub mod probe;
pub mod process;
pub mod report;
pub mod rig;
pub mod run;
pub mod shell;
pub mod ssh;
pub mod table;
pub mod wire;
pub mod workload;
