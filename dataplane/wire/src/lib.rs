//! Layouts of the headers that uvn reads and writes. No I/O, no allocation, no unsafe: the eBPF programs use it too.
//!
//! - [`ethernet`]: MAC addresses, the Ethernet header (IEEE 802.3)
//! - [`vxlan`]: VNIs, the VXLAN header (RFC 7348 section 5)
#![no_std]
#![forbid(unsafe_code)]

pub mod ethernet;
pub mod vxlan;
