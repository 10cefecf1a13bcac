//! The rig of the data plane's tests.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod capture;
pub mod cluster;
pub mod engine;
pub mod packet;
pub mod traffic;
