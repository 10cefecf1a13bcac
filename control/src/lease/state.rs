//! The file in which leases outlive `uvnd`: `/run/uvn/state.json`.
//!
//! It is replaced whole, so that a reader, also after a crash, finds the old state or the new one. It is gone after a
//! reboot, as the networks are.

use super::{Held, Lease, Leases};
use crate::network::Network;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use uvn_wire::vxlan::Vni;

/// The version of the file that this build reads and writes.
const VERSION: u32 = 1;

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file cannot be replaced; its previous content stays.
    #[error("cannot write {path}: {source}; the file keeps its previous content", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The file's content.
#[derive(Debug)]
pub struct Loaded {
    /// The leases: empty if there is no file, or a broken one.
    pub leases: Leases,
    /// Why the file is broken; None: it is not. A broken file has been renamed to end in `.broken`, and its networks,
    /// which the kernel still has, must be taken over by [`Leases::adopt`].
    pub broken: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    networks: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    uid: u32,
    vni: u32,
    slot: u32,
    off_subnet: bool,
    last_ms: u64,
    leaving: bool,
    leases: BTreeSet<Lease>,
}

/// Reads the file. Without one there are no leases.
///
/// # Errors
/// The kernel refuses to read it, or to move a broken one aside.
pub fn load(path: &Path, slots: u32) -> Result<Loaded, StateError> {
    let read = |source| StateError::Read { path: path.into(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Loaded { leases: Leases::new(slots), broken: None });
        }
        Err(error) => return Err(read(error)),
    };
    match parse(&bytes, slots) {
        Ok(leases) => Ok(Loaded { leases, broken: None }),
        Err(reason) => {
            let aside = beside(path, ".broken");
            fs::rename(path, &aside).map_err(read)?;
            let broken = format!("{} is broken: {reason}; moved to {}", path.display(), aside.display());
            Ok(Loaded { leases: Leases::new(slots), broken: Some(broken) })
        }
    }
}

/// Replaces the file.
///
/// # Errors
/// The kernel refuses, for want of room perhaps; the file keeps its previous content.
pub fn save(leases: &Leases, path: &Path) -> Result<(), StateError> {
    let new = beside(path, ".new");
    let replace = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&state(leases))?)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    replace().map_err(|source| {
        // Frees room for the next attempt, which overwrites the file if it cannot be removed.
        let _ = fs::remove_file(&new);
        StateError::Write { path: path.into(), source }
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn state(leases: &Leases) -> State {
    let record = |held: &Held| Record {
        uid: held.network.uid,
        vni: held.network.vni.get(),
        slot: held.network.slot,
        off_subnet: held.network.off_subnet,
        last_ms: u64::try_from(held.last.as_millis()).unwrap_or(u64::MAX),
        leaving: held.leaving,
        leases: held.leases.clone(),
    };
    State { version: VERSION, networks: leases.held.values().map(record).collect() }
}

fn parse(bytes: &[u8], slots: u32) -> Result<Leases, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // The version is read alone first: a file of another version may have other fields.
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("it has version {version}, and this uvnd reads version {VERSION}"));
    }
    let state: State = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut leases = Leases::new(slots);
    for record in state.networks {
        let Record { uid, vni, slot, off_subnet, last_ms, leaving, leases: held } = record;
        let vni = Vni::new(vni).ok_or_else(|| format!("VNI {vni} of UID {uid} has more than 24 bits"))?;
        let network = Network { uid, vni, slot, off_subnet };
        if !leases.adopt(network, Duration::from_millis(last_ms)) {
            return Err(format!("UID {uid}, VNI {vni} or lease number {slot} is there twice"));
        }
        if let Some(adopted) = leases.held.get_mut(&uid) {
            (adopted.leases, adopted.leaving) = (held, leaving);
        }
    }
    Ok(leases)
}
