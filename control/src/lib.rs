//! The control side of uvn: which user has a network on this node, and how the kernel and the data plane are told.
//!
//! Facts and decisions, without I/O:
//! - [`config`] reads `/etc/uvn/uvn.toml`
//! - [`peers`]: the nodes that run uvn, from names and node lists
//! - [`network`]: a node's underlay NICs, a user's network, and their names and numbers
//! - [`lease`]: who holds which user's network, and until when
//! - [`plan`]: what the kernel should hold for a network, and the steps from what it holds
//!
//! [`uvn_api`] has the messages between `uvnd`, `uvn`, PAM and SPANK.
//!
//! The kernel and the data plane:
//! - [`netlink`]: links, addresses, routes, rules
//! - [`firewall`]: the nftables table
//! - [`sysctl`]: kernel settings, with a record of their former values
//! - [`binding`]: the cgroup programs that keep every socket in its user's network
//! - [`feed`]: the `uvn-dataplane` of each NIC
//! - [`folder`]: folders that belong to root alone
//! - [`limited`]: other programs, with a limit on their time
//! - [`pam`]: PAM's configuration: lines that name uvn, and services that let users in without it
//!
//! The daemon:
//! - [`daemon`]: attach, detach, reconcile
//! - [`demand`]: networks made because a peer sent to them
//! - [`lockdown`]: what holds while it cannot start
//! - [`relay`]: services that listen on loopback only, such as the resolver
//! - [`check`]: tells whether this node does what it promises
//! - [`purge`]: removes all of uvn from the node

pub mod binding;
pub mod check;
pub mod config;
pub mod daemon;
pub mod demand;
pub mod feed;
pub mod firewall;
mod folder;
pub mod lease;
mod limited;
pub mod lockdown;
pub mod netfilter;
pub mod netlink;
pub mod network;
pub mod pam;
pub mod peers;
pub mod plan;
pub mod purge;
pub mod rdma;
pub mod relay;
pub mod sysctl;
