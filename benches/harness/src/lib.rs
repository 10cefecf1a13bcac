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
//! What it runs on, beside [`uvn_rig`]:
//! - [`nodes`]: real nodes instead
//! - [`probe`]: those of our own

pub mod baseline;
pub mod chart;
pub mod contender;
pub mod crowd;
pub mod goals;
pub mod hpcc;
pub mod html;
pub mod machine;
pub mod metric;
pub mod mpi;
pub mod nodes;
pub mod noise;
pub mod plan;
pub mod probe;
pub mod report;
pub mod run;
pub mod table;
pub mod workload;
