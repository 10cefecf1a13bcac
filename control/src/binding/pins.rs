//! What lies on the BPF file system: `state-LAYOUT/` with the maps, `links-GENERATION/` with the attached programs.

use super::{BindingError, file};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use uvn_wire::cgroup;

/// The folder of the maps, made if need be.
///
/// # Errors
/// It cannot be made.
pub fn state(pins: &Path) -> Result<PathBuf, BindingError> {
    let folder = pins.join(format!("state-{}", cgroup::LAYOUT));
    create(&folder)?;
    Ok(folder)
}

/// The folder of a generation of programs.
#[must_use]
pub fn links(pins: &Path, generation: u32) -> PathBuf {
    pins.join(format!("links-{generation}"))
}

/// The newest generation there is; 0 if there is none. A crash may have left it incomplete, and older ones with it.
///
/// # Errors
/// The pins cannot be listed.
pub fn generation(pins: &Path) -> Result<u32, BindingError> {
    let generation = |folder: &PathBuf| folder.file_name()?.to_str()?.strip_prefix("links-")?.parse().ok();
    Ok(list(pins)?.iter().filter_map(generation).max().unwrap_or(0))
}

/// Makes a folder. It is there: fine.
///
/// # Errors
/// It cannot be made.
pub fn create(folder: &Path) -> Result<(), BindingError> {
    fs::create_dir_all(folder).map_err(file(folder))
}

/// Removes what else is below `pins`.
///
/// # Errors
/// The first one met, having gone on.
pub fn keep_only(pins: &Path, keep: &[PathBuf]) -> Result<(), BindingError> {
    let others = list(pins)?.into_iter().filter(|path| !keep.contains(path));
    others.map(|path| remove(&path)).fold(Ok(()), Result::and)
}

/// Removes a pin, or a folder with all below it. Not there is fine.
///
/// # Errors
/// The first one met, having gone on.
pub fn remove(path: &Path) -> Result<(), BindingError> {
    if !path.is_dir() {
        return unless_missing(fs::remove_file(path)).map_err(file(path));
    }
    let below = list(path)?.iter().map(|path| remove(path)).fold(Ok(()), Result::and);
    below.and(unless_missing(fs::remove_dir(path)).map_err(file(path)))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, BindingError> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            entries.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()).map_err(file(folder))
        }
    }
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
