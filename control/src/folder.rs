//! Folders that root alone can change, because their content decides who is isolated.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether a path is a folder, not a symbolic link, that root alone can change.
///
/// # Errors
/// The path does not exist.
pub fn is_roots(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0)
}

/// Makes a folder, or checks that root alone can change the existing one.
///
/// # Errors
/// Users other than root can change it, or it cannot be made.
pub fn own(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if is_roots(path)? {
        return Ok(());
    }
    let remedy = "users other than root can change it, or it is a link: `chown root`, `chmod go-w`";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {remedy}", path.display())))
}

/// Writes a file whole or not at all: whoever reads it meanwhile reads the former one.
///
/// # Errors
/// It cannot be written.
pub fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::own;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn a_folder_that_others_can_change_is_refused() {
        let root = std::env::temp_dir().join(format!("uvn-folder-{}", std::process::id()));
        let folder = root.join("folder");
        own(&folder).unwrap();
        own(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o775)).unwrap();
        let refused = own(&folder).unwrap_err().to_string();
        assert!(refused.ends_with("`chown root`, `chmod go-w`"), "{refused}");
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        chown(&folder, Some(1234), None).unwrap();
        assert!(own(&folder).is_err());
        chown(&folder, Some(0), None).unwrap();
        own(&folder).unwrap();
        symlink(&folder, root.join("link")).unwrap();
        assert!(own(&root.join("link")).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
