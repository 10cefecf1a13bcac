//! Layouts of the headers that uvn reads and writes. No I/O, no allocation, no unsafe code: the eBPF programs use them
//! too.
//!
//! - [`ethernet`]: MAC addresses, the Ethernet header (IEEE 802.3)
//! - [`arp`]: ARP for IPv4 (RFC 826)
//! - [`ipv4`], [`ipv6`]: network headers (RFC 791, RFC 8200)
//! - [`ecn`]: congestion marks on tunnelled packets (RFC 6040)
//! - [`tcp`], [`udp`]: transport headers (RFC 9293, RFC 768)
//! - [`icmp`]: "too big" and neighbour discovery (RFC 792, RFC 4443, RFC 4861)
//! - [`vxlan`]: VNIs, the VXLAN header (RFC 7348 section 5)
//! - [`xdp`], [`cgroup`]: what the XDP and the cgroup programs and their loaders agree on
//! - [`checksum`]: the Internet checksum (RFC 1071, RFC 1624)
//! - [`packet`]: the one parser of inner frames, and the flow hash in the outer source port
#![no_std]
#![forbid(unsafe_code)]

pub mod arp;
pub mod cgroup;
pub mod checksum;
pub mod ecn;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod packet;
pub mod tcp;
pub mod udp;
pub mod verdict;
pub mod vxlan;
pub mod xdp;
