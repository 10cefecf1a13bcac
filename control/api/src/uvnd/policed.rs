//! The question of a login or a job to its node, and the decision if `uvnd` does not answer.
//!
//! Users who are not policed, root above all, get in, whatever is broken: nobody is asked about them. Policed users
//! have a network or are refused, unless uvn is not set up here at all ([`Host::is_set_up`]). That depends on root's
//! files alone, and all of them must be missing. A `uvnd` that is down, hangs, cannot read its configuration or was
//! never started is a reason to refuse. So is a purged uvn as long as `uvn.toml` exists, which says that uvn is wanted.

use crate::groups::is_member;
use crate::uvnd::client::{Client, ClientError};
use crate::uvnd::message::{self, Claim, Outcome, Release, Request};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The configuration of `uvnd`.
pub const FILE: &str = "/etc/uvn/uvn.toml";
/// The configuration that was last in force.
pub const LAST: &str = "/var/lib/uvn/uvn.toml";
/// The folder in which the socket programs are pinned.
pub const PINS: &str = "/sys/fs/bpf/uvn";
/// The largest UID: the next one, 2^32 - 1, means "none" to the kernel.
pub const MAX_UID: u32 = u32::MAX - 1;

/// The keys of `uvn.toml` that decide who needs a network. All other keys may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Policy {
    /// UIDs whose sockets are bound to their network, and refused without one.
    #[serde(default = "default_policed", deserialize_with = "ranges")]
    pub policed: Vec<RangeInclusive<u32>>,
    /// UIDs among them that are not policed.
    #[serde(default, deserialize_with = "ranges")]
    pub exempt: Vec<RangeInclusive<u32>>,
    /// Whether a login is refused if its network cannot be made.
    #[serde(default)]
    pub attachment: Attachment,
    /// Whether users are refused anything.
    #[serde(default)]
    pub mode: Mode,
    /// Groups of administrators. They get in without a network, too, so that they can repair what is broken.
    #[serde(default = "default_admins")]
    pub admins: Vec<String>,
}

/// Whether sockets are bound and refused, or only counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Sockets are in the user's network, or refused.
    #[default]
    Enforce,
    /// Sockets stay as they are: networks are made, and what would be refused is counted and logged.
    Observe,
}

/// Whether a login is refused if its network cannot be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// The login is refused.
    #[default]
    Required,
    /// The login goes on without any network: the user's sockets are refused all the same.
    Optional,
}

/// The UIDs that are policed if the file does not name any.
#[must_use]
pub fn default_policed() -> Vec<RangeInclusive<u32>> {
    // The UIDs between are system and dynamic users (systemd.io/UIDS-GIDS). From 65536 on there are also the
    // subordinate UIDs of users' containers, which must not be a way out.
    vec![1000..=60000, 65536..=MAX_UID]
}

/// The groups of administrators if the file does not name any; those that exist count.
#[must_use]
pub fn default_admins() -> Vec<String> {
    ["wheel", "sudo"].map(String::from).into()
}

/// Whether a UID is in `policed` and not in `exempt`.
#[must_use]
pub fn is_policed(uid: u32, policed: &[RangeInclusive<u32>], exempt: &[RangeInclusive<u32>]) -> bool {
    let within = |ranges: &[RangeInclusive<u32>]| ranges.iter().any(|range| range.contains(&uid));
    within(policed) && !within(exempt)
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            policed: default_policed(),
            exempt: Vec::new(),
            attachment: Attachment::default(),
            mode: Mode::default(),
            admins: default_admins(),
        }
    }
}

impl Policy {
    /// The policy in a file; None: the file cannot be read.
    fn load(file: &Path) -> Option<Policy> {
        toml::from_str(&std::fs::read_to_string(file).ok()?).ok()
    }

    fn polices(&self, uid: u32) -> bool {
        is_policed(uid, &self.policed, &self.exempt)
    }
}

/// Why a user has no network.
#[derive(Debug)]
pub struct Refused {
    /// The reason.
    pub reason: ClientError,
    /// Whether the login is refused for it.
    pub attachment: Attachment,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// The places of uvn's files on this node.
#[derive(Debug, Clone)]
pub struct Host {
    /// The socket of `uvnd`.
    pub socket: PathBuf,
    /// See [`FILE`].
    pub file: PathBuf,
    /// See [`LAST`].
    pub last: PathBuf,
    /// See [`PINS`].
    pub pins: PathBuf,
}

impl Default for Host {
    fn default() -> Host {
        Host { socket: message::socket().into(), file: FILE.into(), last: LAST.into(), pins: PINS.into() }
    }
}

impl Host {
    /// Makes sure that a user is not policed, or has a network, which `claim` then holds.
    ///
    /// # Errors
    /// The user needs a network and has none.
    pub fn attach(&self, uid: u32, claim: Claim, patience: Duration) -> Result<Outcome, Refused> {
        // Checked first, so that no fault of uvnd keeps out users who need no network.
        let known = self.policy();
        let polices = |policy: &Policy| policy.polices(uid);
        if uid == 0 || known.as_ref().is_some_and(|policy| !polices(policy)) || !self.is_set_up() {
            return Ok(Outcome::NotPoliced);
        }
        // No file says who is policed: uvnd may know, and if it does not answer, the defaults hold.
        let policy = known.unwrap_or_default();
        match Client::within(&self.socket, patience).and_then(|client| client.attach(uid, claim)) {
            // `uvnd` logs the reason.
            Err(_) if !policy.polices(uid) || policy.mode == Mode::Observe => Ok(Outcome::NotPoliced),
            Err(reason) if is_member(uid, &policy.admins) => {
                Err(Refused { reason, attachment: Attachment::Optional })
            }
            asked => asked.map_err(|reason| Refused { reason, attachment: policy.attachment }),
        }
    }

    /// Ends a claim. A missing answer does no harm: `uvnd` notices by itself when the claim's process ends.
    pub fn detach(&self, uid: u32, claim: Claim, patience: Duration) {
        if uid == 0 || self.policy().is_some_and(|policy| !policy.polices(uid)) {
            return;
        }
        let request = Request::Detach { uid, what: Release::Claim(claim), dry_run: false };
        let _no_harm =
            Client::within(&self.socket, patience).and_then(|client| client.ask::<IgnoredAny>(&request));
    }

    fn policy(&self) -> Option<Policy> {
        Policy::load(&self.file).or_else(|| Policy::load(&self.last))
    }

    /// Whether any file says that uvn is wanted here, or in force. A file that cannot be examined counts as present.
    fn is_set_up(&self) -> bool {
        [&self.socket, &self.file, &self.last, &self.pins]
            .into_iter()
            .any(|path| !path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
    }
}

/// A range as it is written in TOML: `"1000-60000"`, `"1000"` or `1000`.
struct Span<T>(RangeInclusive<T>);

impl<T: FromStr + PartialOrd + Copy> FromStr for Span<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Span(first..=last)),
            _ => Err(format!("{text:?} is not a range")),
        }
    }
}

impl<'de, T: FromStr + PartialOrd + Copy> Deserialize<'de> for Span<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "not a range")]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads one range of numbers in that notation.
///
/// # Errors
/// The value is no range.
pub fn range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RangeInclusive<u32>, D::Error> {
    Span::deserialize(deserializer).map(|Span(range)| range)
}

/// Reads a list of ranges.
///
/// # Errors
/// An entry is no range.
pub fn ranges<'de, D, T>(deserializer: D) -> Result<Vec<RangeInclusive<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + PartialOrd + Copy,
{
    Ok(Vec::deserialize(deserializer)?.into_iter().map(|Span(range)| range).collect())
}
