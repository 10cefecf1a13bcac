//! The parts that the daemons, their clients and the plugins share. Nothing here touches a network device.
//!
//! sshd and slurmstepd load the first half as root, so it stays small:
//!
//! - [`seqpacket`], [`protocol`]: how a control protocol is packed
//! - [`uvnd`]: the protocol of `uvnd`, and the policy that a login or a job reads
//! - [`groups`]: membership, as the user database has it
//!
//! The other half has the feature `daemon`:
//!
//! - [`dataplane`]: the protocol and the configuration of the data plane
//! - [`server`]: the listening end of either protocol
//! - [`toml_file`]: how a configuration file is read
//! - [`daemon`]: calls of a daemon to the service manager and the kernel

pub mod groups;
pub mod protocol;
pub mod seqpacket;
pub mod uvnd;

#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod dataplane;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
pub mod toml_file;
