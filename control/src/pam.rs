//! PAM's configuration: lines that name uvn, and services that let users in without it.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders of PAM's configuration; of two files with the same name, that in the first folder counts (pam.d(5)).
const FOLDERS: [&str; 2] = ["/etc/pam.d", "/usr/lib/pam.d"];
/// Services that start users' processes, as distributions name them.
const ENTRIES: [&str; 16] = [
    "sshd",
    "login",
    "remote",
    "su",
    "su-l",
    "sudo",
    "sudo-i",
    "cron",
    "crond",
    "atd",
    "systemd-user",
    "gdm-password",
    "lightdm",
    "sddm",
    "xrdp-sesman",
    "cockpit",
];
/// How deep files may include each other (PAM_SUBSTACK_MAX_LEVEL of Linux-PAM is 16).
const DEPTH: u8 = 16;

/// The ways in which a line calls uvn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the module, `pam_uvn.so`.
    Module,
    /// By pam_exec with `uvn pam`, which no longer exists: the line fails.
    Helper,
}

/// A line of PAM's configuration that calls uvn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The file.
    pub file: PathBuf,
    /// The line's number, from 1.
    pub number: usize,
    /// The way in which it calls uvn.
    pub way: Way,
}

/// Every such line on this node. Files that cannot be read are skipped.
#[must_use]
pub fn lines() -> Vec<Line> {
    FOLDERS.iter().flat_map(|folder| lines_in(Path::new(folder))).collect()
}

fn lines_in(folder: &Path) -> Vec<Line> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let Ok(text) = fs::read(&file) else { continue };
        let text = String::from_utf8_lossy(&text);
        let ways = (1..).zip(text.lines()).filter_map(|(number, line)| Some((number, way(line)?)));
        lines.extend(ways.map(|(number, way)| Line { file: file.clone(), number, way }));
    }
    lines
}

/// Services of this node whose sessions do not run the module: users who come in through them get no network.
#[must_use]
pub fn without_module() -> Vec<&'static str> {
    let folders = FOLDERS.map(Path::new);
    ENTRIES.into_iter().filter(|service| runs_module(&folders, service, DEPTH) == Some(false)).collect()
}

/// Whether the sessions of a service run the module; None: the service has no file.
fn runs_module(folders: &[&Path], service: &str, depth: u8) -> Option<bool> {
    let text = folders.iter().find_map(|folder| fs::read(folder.join(service)).ok())?;
    let text = String::from_utf8_lossy(&text).replace("\\\n", " ");
    let runs = |line: &str| {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let included = match words[..] {
            ["@include", file] => file,
            ["session" | "-session", "include" | "substack", file, ..] => file,
            ["session" | "-session", ..] => return way(line) == Some(Way::Module),
            _ => return false,
        };
        depth > 0 && runs_module(folders, included, depth - 1) == Some(true)
    };
    Some(text.lines().any(runs))
}

fn way(line: &str) -> Option<Way> {
    let words: Vec<&str> = line.split('#').next()?.split_whitespace().collect();
    let names = |word: &str, file: &str| Path::new(word).file_name().is_some_and(|name| name == file);
    if words.iter().any(|word| names(word, "pam_uvn.so")) {
        return Some(Way::Module);
    }
    let helper = |pair: &[&str]| matches!(pair, [program, "pam"] if names(program, "uvn"));
    let executes = words.iter().any(|word| names(word, "pam_exec.so"));
    (executes && words.windows(2).any(helper)).then_some(Way::Helper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_force_tells_its_way() {
        for (line, way) in [
            ("session required /usr/lib/uvn/pam_uvn.so", Some(Way::Module)),
            ("session [success=ok default=die] pam_uvn.so timeout_s=5 # uvn", Some(Way::Module)),
            ("session required pam_exec.so seteuid stdout /usr/bin/uvn pam", Some(Way::Helper)),
            ("session required pam_exec.so uvn pam --config /x", Some(Way::Helper)),
            ("# session required pam_uvn.so", None),
            ("session required pam_exec.so /usr/bin/other pam", None),
            ("session required pam_unix.so", None),
            ("", None),
        ] {
            assert_eq!(super::way(line), way, "{line}");
        }
    }

    #[test]
    fn a_service_runs_the_module_by_what_it_includes() {
        let root = std::env::temp_dir().join(format!("uvn-pam-services-{}", std::process::id()));
        let (site, vendor) = (root.join("site"), root.join("vendor"));
        let write = |folder: &Path, name: &str, text: &str| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(name), text).unwrap();
        };
        write(
            &site,
            "common-session",
            "session required pam_unix.so\nsession [default=bad] \\\n  pam_uvn.so\n",
        );
        write(&site, "sshd", "auth required pam_unix.so\n@include common-session\n");
        write(&site, "login", "session\tsubstack  common-session # all\n");
        write(
            &site,
            "su",
            "account include common-session\nauth required pam_uvn.so\n# session required pam_uvn.so\n",
        );
        write(&site, "loop", "@include loop\n");
        write(&vendor, "su", "session required pam_uvn.so\n");
        write(&vendor, "cron", "-session required /usr/lib/uvn/pam_uvn.so timeout_s=3\n");
        let folders = [site.as_path(), vendor.as_path()];
        let runs = |service| runs_module(&folders, service, DEPTH);
        assert_eq!(["sshd", "login", "cron"].map(runs), [Some(true); 3]);
        assert_eq!(
            ["su", "loop"].map(runs),
            [Some(false); 2],
            "only a session's line counts, and the site's file"
        );
        assert_eq!(runs("atd"), None);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn files_are_named_with_the_line() {
        let folder = std::env::temp_dir().join(format!("uvn-pam-lines-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("su"), "auth sufficient pam_rootok.so\n\nsession required pam_uvn.so\n")
            .unwrap();
        fs::write(folder.join("binary"), [0xff, b'\n']).unwrap();
        let line = Line { file: folder.join("su"), number: 3, way: Way::Module };
        assert_eq!(lines_in(&folder), [line]);
        fs::remove_dir_all(&folder).unwrap();
        assert!(lines_in(&folder).is_empty());
    }
}
