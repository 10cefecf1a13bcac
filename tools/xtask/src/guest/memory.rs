//! Files that a guest has in memory from the start: programs that tests start again and again, and their libraries. A
//! file of the host takes a dozen round trips to qemu for each start, each of which may wait for a core: on a busy
//! machine that was most of a test's time, and at worst stalled a guest for minutes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use uvn_rig::shell;

/// The programs; those that the machine does not have are left out.
const PROGRAMS: [&str; 30] = [
    "cat", "chmod", "chown", "cp", "env", "ethtool", "getent", "grep", "head", "hostname", "id", "ip",
    "kill", "ln", "ls", "mkdir", "mount", "nft", "nsenter", "ping", "ps", "rm", "sh", "sleep", "ss",
    "sysctl", "tail", "true", "umount", "unshare",
];
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The paths of the programs, and of the libraries that they and `command` load. Each is the file itself, not a link.
#[must_use]
pub fn files(command: &str) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        let paths = FOLDERS.iter().map(|folder| Path::new(folder).join(program));
        let Some(path) = paths.into_iter().find_map(|path| path.canonicalize().ok()) else { continue };
        files.extend(libraries(&path));
        files.insert(path);
    }
    files.extend(libraries(Path::new(command)));
    files
}

/// The loader's list of libraries; empty for what it does not load: a script, a static program, a word that is not a
/// path.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = shell::read(Command::new("ldd").arg(program)).unwrap_or_default();
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    words.filter_map(|word| Path::new(word).canonicalize().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::files;
    use std::path::Path;

    #[test]
    fn programs_come_with_their_libraries() {
        let own = std::env::current_exe().unwrap();
        let files = files(&own.to_string_lossy());
        assert!(files.contains(&Path::new("/bin/sh").canonicalize().unwrap()), "{files:?}");
        assert!(files.iter().any(|file| file.to_string_lossy().contains("/libc.so")), "{files:?}");
        assert!(!files.contains(&own) && files.iter().all(|file| file.is_file()), "{files:?}");
    }
}
