//! What `uvnd` and those that ask it agree on. It is loaded into sshd and slurmstepd, as root: it stays small.
//!
//! - [`seqpacket`], [`protocol`]: how a control protocol is packed; the data plane's, too
//! - [`message`]: what is said between `uvnd` and `uvn`, PAM, SPANK
//! - [`client`]: who asks
//! - [`groups`]: membership, as the user database has it
//! - [`host`]: what a login or a job asks, and what it comes to where `uvnd` does not answer

pub mod client;
pub mod groups;
pub mod host;
pub mod message;
pub mod protocol;
pub mod seqpacket;
