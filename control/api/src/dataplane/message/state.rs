//! The states of a NIC and its data plane, as values. A later version may have more of them than this build knows.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Whether a data plane carries its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum State {
    /// The data plane carries its networks.
    Running,
    /// The NIC is down.
    Down,
    /// The NIC does not exist.
    Absent,
    /// The data plane does not answer yet.
    #[default]
    Starting,
    /// An error keeps the data plane from carrying its networks; it tries again.
    Failed,
    /// A word of a later version; from uvn 0.1.0 also the error itself, instead of [`State::Failed`].
    Other(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Running => "running",
            State::Down => "down",
            State::Absent => "absent",
            State::Starting => "starting",
            State::Failed => "failed",
            State::Other(word) => word,
        })
    }
}

impl From<String> for State {
    fn from(word: String) -> State {
        match word.as_str() {
            "running" => State::Running,
            "down" => State::Down,
            "absent" => State::Absent,
            "starting" => State::Starting,
            "failed" => State::Failed,
            _ => State::Other(word),
        }
    }
}

impl From<State> for String {
    fn from(state: State) -> String {
        state.to_string()
    }
}

/// The gear that carries a NIC's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gear {
    /// Workers carry them, by AF_XDP sockets.
    Engine,
    /// tc programs carry them (VXLAN); the engine carries the frames that they leave.
    Shortcut,
    /// A gear that this build does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Gear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gear::Engine => "engine",
            Gear::Shortcut => "shortcut",
            Gear::Unknown => "unknown",
        })
    }
}

/// Where the XDP program runs (Documentation/networking/af_xdp.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// In the NIC's driver.
    Driver,
    /// In the kernel's receive path, for any NIC.
    Generic,
    /// A mode that this build does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XdpMode::Driver => "driver",
            XdpMode::Generic => "generic",
            XdpMode::Unknown => "unknown",
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Read<T> {
    Known(T),
    Unknown(IgnoredAny),
}

impl<T> Read<T> {
    fn known(self) -> Option<T> {
        match self {
            Read::Known(value) => Some(value),
            Read::Unknown(IgnoredAny) => None,
        }
    }
}

/// Reads a value; None: it is missing, or this build does not know it.
pub(crate) fn known<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Read<T>>::deserialize(from)?.and_then(Read::known))
}

/// Reads a list without the values that this build does not know.
pub(crate) fn all_known<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Read<T>>::deserialize(from)?.into_iter().filter_map(Read::known).collect())
}
