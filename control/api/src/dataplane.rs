//! The protocol and the configuration of the data plane.
//!
//! - [`config`]: one NIC's data plane, as its file and `add_network` describe it
//! - [`ranges`]: ranges of VTEPs, indexed
//! - [`vteps`]: the allowed VTEPs of a configuration, indexed
//! - [`message`]: requests and answers
//! - [`client`]: a blocking client

pub mod client;
pub mod config;
pub mod message;
pub mod ranges;
pub mod vteps;
