//! The folders on the BPF file system: `state-LAYOUT/` with the maps, `links-GENERATION/` with the attached programs.

use super::{BindingError, bpf, file};
use crate::folder;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, FileType, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use uvn_wire::cgroup;

/// Attempts at making a folder in whose place others keep making theirs.
const TRIES: u32 = 8;

/// The folder of the maps, for this build's map layout.
#[must_use]
pub fn state(pins: &Path) -> PathBuf {
    pins.join(format!("state-{}", cgroup::LAYOUT))
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
    // u32::MAX is left out, so that a next generation exists.
    let generation = |folder: &PathBuf| {
        let number: u32 = folder.file_name()?.to_str()?.strip_prefix("links-")?.parse().ok()?;
        (number < u32::MAX).then_some(number)
    };
    Ok(list(pins)?.iter().filter_map(generation).max().unwrap_or(0))
}

/// Makes `pins` and `folder` below it, owned by root with mode 0700. What others have put in their place is removed,
/// since the owner of a folder can remove the programs' pins.
///
/// # Errors
/// They cannot be made.
pub fn create(pins: &Path, folder: &Path) -> Result<(), BindingError> {
    own(pins)?;
    own(folder)
}

fn own(folder: &Path) -> Result<(), BindingError> {
    for _ in 0..TRIES {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map_err(file(folder)),
        }
        if is_roots(folder)? {
            return fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(file(folder));
        }
        tracing::error!("{}: users other than root could change it; it is made anew", folder.display());
        remove(folder)?;
    }
    verify(folder)
}

/// Checks that root alone can change a folder.
///
/// # Errors
/// Others can change it, or it does not exist.
pub fn verify(folder: &Path) -> Result<(), BindingError> {
    if is_roots(folder)? { Ok(()) } else { Err(BindingError::Foreign(folder.into())) }
}

fn is_roots(path: &Path) -> Result<bool, BindingError> {
    folder::is_roots(path).map_err(file(path))
}

/// Removes everything below `pins` but `keep`.
///
/// # Errors
/// The first one met, having gone on.
pub fn keep_only(pins: &Path, keep: &[PathBuf]) -> Result<(), BindingError> {
    let others = list(pins)?.into_iter().filter(|path| !keep.contains(path));
    others.map(|path| remove(&path)).fold(Ok(()), Result::and)
}

/// Removes a pin, or a folder with all below it, and detaches the programs pinned there. Not there is fine.
///
/// The kernel detaches a program some time after its pin has gone (`bpf_free_inode` waits for RCU, `bpf_link_put` for a
/// work queue), so that a program that is replaced would refuse for a while what the new one lets through.
///
/// # Errors
/// The first one met, having gone on.
pub fn remove(path: &Path) -> Result<(), BindingError> {
    // Of a symbolic link, only the link is removed.
    let kind = fs::symlink_metadata(path).map(|metadata| metadata.file_type());
    if !kind.as_ref().is_ok_and(FileType::is_dir) {
        // In a folder of somebody else's, the name may become that of any link.
        let is_ours = path.parent().is_some_and(|folder| is_roots(folder).unwrap_or(false));
        let link = (is_ours && kind.is_ok_and(|kind| kind.is_file())).then(|| bpf::pinned(path));
        unless_missing(fs::remove_file(path)).map_err(file(path))?;
        // Maps have nothing to detach, and links of BPF LSM cannot; those go with their last reference.
        if let Some(Ok(link)) = link {
            let _ = bpf::detach(link.as_fd());
        }
        return Ok(());
    }
    let below = list(path)?.iter().map(|path| remove(path)).fold(Ok(()), Result::and);
    below.and(unless_missing(fs::remove_dir(path)).map_err(file(path)))
}

/// The pins in a folder; none if it does not exist.
///
/// # Errors
/// It cannot be read.
pub fn inodes(folder: &Path) -> Result<BTreeMap<PathBuf, u64>, BindingError> {
    let inode = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).map_err(file(&path))?;
        Ok((path, metadata.ino()))
    };
    list(folder)?.into_iter().map(inode).collect()
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
