//! Lines of PAM's configuration that name uvn.

use std::fs;
use std::path::{Path, PathBuf};

/// Where they may be.
const FOLDERS: [&str; 2] = ["/etc/pam.d", "/usr/lib/pam.d"];

/// Which of uvn's ways a line takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The module.
    Module,
    /// pam_exec with `uvn pam`, which is no more: the line fails.
    Helper,
}

/// A line that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The file.
    pub file: PathBuf,
    /// Counted from 1.
    pub number: usize,
    /// What it does.
    pub way: Way,
}

/// Every such line on this node. What cannot be read has none.
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
