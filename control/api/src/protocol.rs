//! How a control protocol is packed: one JSON object per packet of a Unix SOCK_SEQPACKET socket.
//!
//! `{"version": 1, "schema": 1, "request": "ping"}` is answered by `{"version": 1, "schema": 1, "reply": "pong"}` or by
//! `{"version": 1, "schema": 1, "error": {"code": ..., "message": ...}}`. A connection has one request under way at a
//! time.
//!
//! `schema` numbers the messages that a side knows, so that each side works with the version before and the one after:
//!
//! - A request without it is from uvn 0.1.0 (schema 0), and is answered in the form of 0.1.0, without it.
//! - 0.1.0 refuses a request with it; [`Connection`] then asks again without it.
//! - An answer's unknown fields are ignored, and an unknown word of an enum is read as unknown.
//! - A request's unknown fields are a mistake and refused, unless its schema is higher than ours. A setting that must
//!   not be ignored is therefore a request of its own, which an older peer refuses.

mod additions;
mod connection;

pub use connection::{AskError, Connection};

use additions::Known;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::error::Error;
use std::fmt;

/// The only protocol version that this build speaks.
pub const VERSION: u32 = 1;
/// The schema of this build, for both protocols: it grows by one with each release that changes the messages.
pub const SCHEMA: u32 = 1;
/// The longest packet in either direction, bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind, for programs.
    pub code: Code,
    /// Its text, for people: the thing and the remedy.
    pub message: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The packet is not a request of this protocol.
    Malformed,
    /// The packet is of another protocol version.
    Version,
    /// A value is not allowed.
    Invalid,
    /// The thing exists already.
    Exists,
    /// The thing does not exist.
    NotFound,
    /// The kernel refused, or a worker does not answer.
    Failed,
    /// A kind that this build does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
    #[serde(default)]
    schema: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked<R> {
    version: u32,
    #[serde(default, skip_serializing_if = "is_unsaid")]
    schema: u32,
    request: R,
}

#[derive(Serialize, Deserialize)]
struct Answered<A> {
    version: u32,
    #[serde(default, skip_serializing_if = "is_unsaid")]
    schema: u32,
    // Not `default`: that would ask for A: Default.
    #[serde(skip_serializing_if = "Option::is_none", default = "none")]
    reply: Option<A>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

fn none<A>() -> Option<A> {
    None
}

fn is_unsaid(schema: &u32) -> bool {
    *schema == 0
}

/// The schema that a packet gives; 0: it gives none, as in uvn 0.1.0.
#[must_use]
pub fn schema_of(bytes: &[u8]) -> u32 {
    serde_json::from_slice(bytes).map_or(0, |Versioned { schema, .. }| schema)
}

/// Reads a request. Pure; it takes any bytes.
///
/// # Errors
/// [`Code::Malformed`] or [`Code::Version`].
pub fn parse_request<R: DeserializeOwned>(bytes: &[u8]) -> Result<R, Failure> {
    let schema = check_version(bytes)?;
    let asked: Result<Asked<R>, _> = if schema > SCHEMA {
        serde_json::from_slice::<Value>(bytes).and_then(|packet| Asked::deserialize(Known(packet)))
    } else {
        serde_json::from_slice(bytes)
    };
    asked.map(|asked| asked.request).map_err(malformed)
}

/// The packet of a request. Schema 0 is left out, for a peer of uvn 0.1.0.
///
/// # Errors
/// [`Code::Invalid`] if it is longer than [`MAX_BYTES`].
pub fn request_packet<R: Serialize>(request: &R, schema: u32) -> Result<Vec<u8>, Failure> {
    bounded(&Asked { version: VERSION, schema, request })
}

/// Reads an answer.
///
/// # Errors
/// The failure that the other side reports, or [`Code::Malformed`] or [`Code::Version`].
pub fn parse_answer<A: DeserializeOwned>(bytes: &[u8]) -> Result<A, Failure> {
    check_version(bytes)?;
    match serde_json::from_slice(bytes).map_err(malformed)? {
        Answered { reply: Some(reply), error: None, .. } => Ok(reply),
        Answered { error: Some(error), reply: None, .. } => Err(error),
        _ => Err(Failure::new(Code::Malformed, "an answer holds either `reply` or `error`")),
    }
}

/// Whether an answer is that of uvn 0.1.0 to a request with a schema.
fn refuses_schema(bytes: &[u8]) -> bool {
    let answer = serde_json::from_slice::<Answered<IgnoredAny>>(bytes);
    let Ok(Answered { schema: 0, reply: None, error: Some(failure), .. }) = answer else { return false };
    failure.code == Code::Malformed
}

/// The packet that answers a request; a reply that is too long becomes a failure that says so. Schema 0 is left out:
/// the request had none.
#[must_use]
pub fn answer_packet<A: Serialize>(answer: Result<A, Failure>, schema: u32) -> Vec<u8> {
    let answered = |reply: Option<A>, error| bounded(&Answered { version: VERSION, schema, reply, error });
    let packet = match answer {
        Ok(reply) => answered(Some(reply), None),
        Err(failure) => answered(None, Some(failure)),
    };
    packet.or_else(|failure| answered(None, Some(failure))).unwrap_or_default()
}

/// The room that is left in a packet, bytes.
#[derive(Debug, Clone)]
pub struct Room(usize);

impl Room {
    /// The room for the fields around the content, bytes.
    const AROUND: usize = 256;

    /// The room of a whole packet that already holds `content`.
    pub fn beside<T: Serialize>(content: &T) -> Room {
        Room((MAX_BYTES - Room::AROUND).saturating_sub(length(content)))
    }

    /// Whether an item, and a comma, still fits. If so, it takes that room.
    pub fn takes<T: Serialize>(&mut self, item: &T) -> bool {
        let left = self.0.checked_sub(length(item).saturating_add(1));
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

fn length<T: Serialize>(item: &T) -> usize {
    serde_json::to_vec(item).map_or(usize::MAX, |bytes| bytes.len())
}

/// The number of `items` that fit one packet.
pub fn fitting<T: Serialize>(items: impl IntoIterator<Item = T>) -> usize {
    let mut room = Room::beside(&"");
    items.into_iter().take_while(|item| room.takes(item)).count()
}

/// Checks the length and the protocol version of a packet. Returns its schema.
fn check_version(bytes: &[u8]) -> Result<u32, Failure> {
    if bytes.len() > MAX_BYTES {
        return Err(Failure::new(Code::Malformed, format!("more than {MAX_BYTES} bytes")));
    }
    let Versioned { version, schema } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version == VERSION {
        return Ok(schema);
    }
    let message = format!("protocol version {version} is not supported: this is version {VERSION}");
    Err(Failure::new(Code::Version, message))
}

fn malformed(error: serde_json::Error) -> Failure {
    Failure::new(Code::Malformed, error.to_string())
}

fn bounded<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    let bytes = serde_json::to_vec(value).map_err(malformed)?;
    if bytes.len() <= MAX_BYTES {
        return Ok(bytes);
    }
    Err(Failure::new(Code::Invalid, format!("{} bytes are more than one packet's {MAX_BYTES}", bytes.len())))
}
