//! The protocol of `uvnd`.
//!
//! - [`message`]: requests and answers
//! - [`client`]: a blocking client
//! - [`policed`]: the users who need a network, and what becomes of a login or job if `uvnd` does not answer
//! - [`status`], [`finding`]: the state of a node, and what is wrong with it
//! - [`older`]: answers as uvn 0.1.0 reads them

pub mod client;
pub mod message;
pub mod policed;

#[cfg(feature = "daemon")]
pub mod finding;
#[cfg(feature = "daemon")]
pub mod older;
#[cfg(feature = "daemon")]
pub mod status;
