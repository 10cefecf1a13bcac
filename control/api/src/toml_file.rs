//! Configuration files that are read strictly: an error names the file, the line, the key and what is allowed.

use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

/// The type that a file's text is parsed into.
pub trait TomlFile: DeserializeOwned {
    /// The values that a key such as `network[2].addresses[0]` may have, in words. None: the error says all.
    fn allowed(key: &str) -> Option<&'static str>;

    /// Checks every rule that the types alone do not enforce.
    ///
    /// # Errors
    /// The first key that breaks one.
    fn check(&self) -> Result<(), Invalid>;
}

/// Why a file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: {source}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A line of the file is wrong.
    #[error("{file}:{line}: {broken}", file = file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Its line, counted from 1.
        line: usize,
        /// The problem with it.
        broken: Broken,
    },
}

/// The problem with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The value of a key is not allowed.
    Value(Invalid),
    /// The text is not TOML.
    Syntax(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Value(invalid) => invalid.fmt(f),
            Broken::Syntax(message) => f.write_str(message),
        }
    }
}

/// A value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Invalid {
    /// The key with its path, such as `network[2].addresses[0]`.
    pub key: String,
    /// The problem with its value.
    pub problem: String,
    /// The allowed values; see [`Invalid::explained`].
    pub allowed: Option<&'static str>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)?;
        match self.allowed {
            Some(allowed) => write!(f, "; allowed: {allowed}"),
            None => Ok(()),
        }
    }
}

impl Invalid {
    /// A value of `key` that is not allowed.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Invalid {
        Invalid { key: key.into(), problem: problem.into(), allowed: None }
    }

    /// The same, for a key in `table`.
    #[must_use]
    pub fn within(self, table: &str) -> Invalid {
        Invalid { key: format!("{table}.{}", self.key), ..self }
    }

    /// The same, with the allowed values of its key.
    #[must_use]
    pub fn explained(self, allowed: fn(&str) -> Option<&'static str>) -> Invalid {
        Invalid { allowed: allowed(&self.key), ..self }
    }
}

/// Reads and checks a file.
///
/// # Errors
/// [`ConfigError`], which names the file, the line, the key and what is allowed.
pub fn load<T: TomlFile>(file: &Path) -> Result<T, ConfigError> {
    let text =
        std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.into(), source })?;
    parse(&text).map_err(|(line, broken)| ConfigError::Line { file: file.into(), line, broken })
}

/// Parses and checks the text of a file.
///
/// # Errors
/// The line, counted from 1, and what is wrong with it.
pub fn parse<T: TomlFile>(text: &str) -> Result<T, (usize, Broken)> {
    let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    let start_of = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let table = DeTable::parse(text)
        .map_err(|error| (line_of(start_of(&error)), Broken::Syntax(error.message().into())))?;
    let parsed: T = toml::from_str(text).map_err(|error| {
        let start = start_of(&error);
        let broken = match path_at(table.get_ref(), start) {
            Some(key) => Broken::Value(Invalid::new(key, error.message()).explained(T::allowed)),
            None => Broken::Syntax(error.message().into()),
        };
        (line_of(start), broken)
    })?;
    parsed.check().map_err(|invalid| {
        let span = span_of(table.get_ref(), &invalid.key);
        (line_of(span.map_or(0, |span| span.start)), Broken::Value(invalid.explained(T::allowed)))
    })?;
    Ok(parsed)
}

/// Checks that a number lies in a range.
///
/// # Errors
/// The number is outside of it.
pub fn within(key: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), Invalid> {
    if range.contains(&value) { Ok(()) } else { Err(Invalid::new(key, value.to_string())) }
}

/// Checks that an address can be a host's own.
///
/// # Errors
/// The address is multicast, unspecified, loopback, broadcast or an IPv4-mapped IPv6 address.
pub fn unicast(key: &str, address: IpAddr) -> Result<(), Invalid> {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    // IPv4-mapped addresses never travel (RFC 4291 section 2.5.5.2): they would name an IPv4 VTEP twice.
    let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    if address.is_multicast() || address.is_unspecified() || address.is_loopback() || broadcast || mapped {
        return Err(Invalid::new(key, format!("{address} is not a unicast address")));
    }
    Ok(())
}

/// Checks that no entry of an array is listed twice.
///
/// # Errors
/// The second of two equal entries.
pub fn each_once<T: Eq + Hash + fmt::Display>(
    key: &str,
    values: impl Iterator<Item = T>,
) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for (index, value) in values.enumerate() {
        if let Some(value) = seen.replace(value) {
            return Err(Invalid::new(format!("{key}[{index}]"), format!("{value} is there twice")));
        }
    }
    Ok(())
}

/// Checks that a path is absolute, and short enough for a socket.
///
/// # Errors
/// The path is relative, or too long.
pub fn absolute(key: &str, path: &Path) -> Result<(), Invalid> {
    // struct sockaddr_un has 108 bytes for the path and its final zero.
    if path.is_absolute() && path.as_os_str().len() <= 107 {
        return Ok(());
    }
    Err(Invalid::new(key, format!("`{}`", path.display())))
}

/// Checks the name of a network device by the kernel's own rule (net/core/dev.c, dev_valid_name).
///
/// # Errors
/// The name is not allowed.
pub fn device_name(key: &str, name: &str) -> Result<(), Invalid> {
    let wrong = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    if (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(wrong) {
        return Ok(());
    }
    Err(Invalid::new(key, format!("`{name}`")))
}

/// The place of the value of `path` in the file; that of its nearest table if the key is missing.
fn span_of(root: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    let mut steps = path.split(['.', '[', ']']).filter(|step| !step.is_empty());
    let (name, mut value) = root.get_key_value(steps.next()?)?;
    let mut span = name.span();
    for step in steps {
        let next = match value.get_ref() {
            DeValue::Table(table) => table.get_key_value(step).map(|(name, value)| (name.span(), value)),
            DeValue::Array(array) => {
                step.parse().ok().and_then(|index: usize| array.get(index)).map(|value| (value.span(), value))
            }
            _ => None,
        };
        let Some((here, deeper)) = next else { break };
        (span, value) = (here, deeper);
    }
    Some(span)
}

/// The key whose name or value stands at byte `offset` of the file.
fn path_at(root: &DeTable<'_>, offset: usize) -> Option<String> {
    root.iter().find_map(|(name, value)| {
        let own = name.span().contains(&offset);
        path_in(value.get_ref(), value.span(), name.get_ref().to_string(), offset, own)
    })
}

fn path_in(
    value: &DeValue<'_>,
    span: Range<usize>,
    path: String,
    offset: usize,
    own: bool,
) -> Option<String> {
    let deeper = match value {
        DeValue::Table(table) => table.iter().find_map(|(name, value)| {
            let own = name.span().contains(&offset);
            path_in(value.get_ref(), value.span(), format!("{path}.{}", name.get_ref()), offset, own)
        }),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(index, value)| {
            path_in(value.get_ref(), value.span(), format!("{path}[{index}]"), offset, false)
        }),
        _ => None,
    };
    deeper.or_else(|| (own || span.contains(&offset)).then_some(path))
}
