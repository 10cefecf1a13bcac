//! The nodes of a slurm.conf (slurm.conf(5)): `NodeName`, `NodeAddr`, `NodeHostname`, and `Include`.

use super::hostlist::{self, HostlistError};
use regex::Regex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use thiserror::Error;

/// How deep files may include each other.
const MAX_DEPTH: usize = 8;

/// Why the nodes of a slurm.conf cannot be listed.
#[derive(Debug, Error)]
pub enum SlurmError {
    /// A file cannot be read.
    #[error("{file}: {source}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A node list in it cannot be expanded.
    #[error("{file}: {source}", file = file.display())]
    Hostlist {
        /// The file.
        file: PathBuf,
        /// What is wrong with the list.
        source: HostlistError,
    },
    /// Files include each other too deep.
    #[error("{file}: files include each other more than {MAX_DEPTH} deep", file = .0.display())]
    TooDeep(PathBuf),
}

/// The address or name of each node: its `NodeAddr`, else its `NodeHostname`, else its `NodeName`.
pub(super) fn nodes(file: &Path) -> Result<Vec<String>, SlurmError> {
    let mut nodes = Vec::new();
    for (file, line) in read(file, 0)? {
        if let Some(list) = addresses(&line) {
            let names = hostlist::expand(list);
            nodes.extend(names.map_err(|source| SlurmError::Hostlist { file, source })?);
        }
    }
    Ok(nodes)
}

/// The `SlurmUser`, a name or a number; None: not set, or the file cannot be read.
pub(super) fn user(file: &Path) -> Option<String> {
    let is_it = |(key, _): &(&str, &str)| key.eq_ignore_ascii_case("SlurmUser");
    let lines = read(file, 0).ok()?;
    lines.iter().find_map(|(_, line)| pairs(line).find(is_it).map(|(_, user)| user.to_owned()))
}

/// The lines of a file and of those that it includes, each with its file.
fn read(file: &Path, depth: usize) -> Result<Vec<(PathBuf, String)>, SlurmError> {
    if depth > MAX_DEPTH {
        return Err(SlurmError::TooDeep(file.into()));
    }
    let text =
        std::fs::read_to_string(file).map_err(|source| SlurmError::Read { file: file.into(), source })?;
    let mut lines = Vec::new();
    for line in logical_lines(&text) {
        if let Some(name) = included(&line) {
            // Relative to the file; Path::join takes an absolute one as it is.
            let included = file.parent().unwrap_or(Path::new("/")).join(name);
            lines.extend(read(&included, depth + 1)?);
        } else {
            lines.push((file.into(), line));
        }
    }
    Ok(lines)
}

/// Lines without comments, joined where one ends in a backslash (src/common/parse_config.c, _get_next_line). `\#` does
/// not begin a comment.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for line in text.lines() {
        let line = without_comment(line).trim_end();
        let (line, continued) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        if let Some(last) = lines.last_mut() {
            last.push_str(line);
        }
        if !continued {
            lines.push(String::new());
        }
    }
    lines
}

fn without_comment(line: &str) -> &str {
    let mut escaped = false;
    for (index, character) in line.char_indices() {
        match character {
            '#' if !escaped => return line.get(..index).unwrap_or(line),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    line
}

/// The file that a line includes.
fn included(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.next().filter(|word| word.eq_ignore_ascii_case("include"))?;
    words.next()
}

/// A key and its value, as Slurm finds them (src/common/parse_config.c, keyvalue_pattern): blanks may stand round the
/// sign of equality and, in quotes, in the value.
static PAIR: LazyLock<Result<Regex, regex::Error>> = LazyLock::new(|| {
    Regex::new(
        r#"^[[:space:]]*([[:alnum:]_.]+)[[:space:]]*[-*+/]?=[[:space:]]*(?:"([^"]*)"|([^[:space:]]+))(?:[[:space:]]|$)"#,
    )
});

/// The pairs of a line, up to the first text that is not a pair.
fn pairs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let found = PAIR.as_ref().ok()?.captures(rest)?;
        let value = found.get(2).or_else(|| found.get(3))?;
        let pair = (found.get(1)?.as_str(), value.as_str());
        rest = rest.get(found.get(0)?.end()..)?;
        Some(pair)
    })
}

/// The node list of a line that begins with `NodeName=`; None: another line, or that of the defaults.
fn addresses(line: &str) -> Option<&str> {
    let (key, name) = pairs(line).next()?;
    if !key.eq_ignore_ascii_case("NodeName") || name.eq_ignore_ascii_case("DEFAULT") {
        return None;
    }
    let value =
        |wanted: &str| pairs(line).find(|(key, _)| key.eq_ignore_ascii_case(wanted)).map(|(_, value)| value);
    Some(value("NodeAddr").or_else(|| value("NodeHostname")).unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("uvn-slurm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn nodes_of_a_slurm_conf_and_what_it_includes() {
        let folder = folder("nodes");
        let conf = "ClusterName=c # NodeName=no\nNodeName=DEFAULT CPUs=4\n\
                    nodename=node[1-2] NodeAddr=10.0.0.[1-2] \\\n  CPUs=2\nNodeName=a NodeHostname=b\n\
                    INCLUDE more.conf\nPartitionName=p Nodes=ALL\n";
        std::fs::write(folder.join("slurm.conf"), conf).unwrap();
        std::fs::write(
            folder.join("more.conf"),
            "NodeName=node[07,09]\tState=UNKNOWN\nslurmuser = \"slurm\"\n",
        )
        .unwrap();
        let (found, user) = (nodes(&folder.join("slurm.conf")), user(&folder.join("slurm.conf")));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found.unwrap(), ["10.0.0.1", "10.0.0.2", "b", "node07", "node09"]);
        assert_eq!(user.as_deref(), Some("slurm"));
    }

    /// Each spelling that Slurm's pattern takes, and what it makes of it.
    #[test]
    fn pairs_are_found_as_slurm_finds_them() {
        let blanks = ["", " ", "\t", " \t "];
        for (before, after) in blanks.iter().flat_map(|before| blanks.map(|after| (before, after))) {
            for (written, value) in
                [("n[1-2]", "n[1-2]"), ("\"n[1-2]\"", "n[1-2]"), ("\"a b\"", "a b"), ("\"\"", "")]
            {
                let line = format!("{after}NodeName{before}={after}{written} CPUs{before}={after}4");
                let found: Vec<_> = pairs(&line).collect();
                assert_eq!(found, [("NodeName", value), ("CPUs", "4")], "{line:?}");
                assert_eq!(addresses(&line), Some(value), "{line:?}");
            }
        }
        // Quotes that do not end with the value are part of it.
        assert_eq!(addresses("NodeName=\"a\"b"), Some("\"a\"b"));
        assert_eq!(addresses("NodeName=a NodeAddr+=10.0.0.1"), Some("10.0.0.1"));
        for none in ["NodeName", "NodeName=", "=n1", "NodeName==", "Node-Name=n1", "NodeName = default", ""] {
            assert_ne!(addresses(none), Some("n1"), "{none:?}");
        }
        assert_eq!(logical_lines("a \\# b # c\n")[0], "a \\# b");
    }

    /// The first pair of any line, beside Slurm's own pattern in the C library's POSIX expressions, which is what Slurm
    /// takes.
    #[test]
    fn any_line_gives_what_slurms_own_pattern_gives() {
        const SED: &str = r#"s/^[[:space:]]*([[:alnum:]_.]+)[[:space:]]*([-*+/]?)=[[:space:]]*(("([^"]*)")|([^[:space:]]+))([[:space:]]|$).*/<\1><\5\6>/;t;s/.*//"#;
        const WORDS: [&str; 14] =
            ["N", "no.de_1", "=", "=", "\"", "\"", " ", "\t", "[1-2]", "+", "-", "*", "/", "#\\"];

        let mut random = 1u32;
        let mut word = || {
            // Marsaglia's xorshift.
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            WORDS[random as usize % WORDS.len()]
        };
        let lines: Vec<String> =
            (0..20_000).map(|length| (0..length % 12).map(|_| word()).collect()).collect();
        let folder = folder("pattern");
        let file = folder.join("lines");
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        let sed = std::process::Command::new("sed")
            .args(["-E", SED])
            .arg(&file)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let expected = String::from_utf8(sed.stdout).unwrap();
        assert_eq!(expected.lines().count(), lines.len());
        let found = |line: &str| {
            pairs(line).next().map(|(key, value)| format!("<{key}><{value}>")).unwrap_or_default()
        };
        for (line, expected) in lines.iter().zip(expected.lines()) {
            assert_eq!(found(line), expected, "{line:?}");
        }
        assert!(expected.lines().filter(|line| !line.is_empty()).count() > 500);
    }

    #[test]
    fn errors_name_the_file() {
        let folder = folder("errors");
        let own = folder.join("slurm.conf");
        std::fs::write(&own, "Include slurm.conf").unwrap();
        let circle = nodes(&own).unwrap_err().to_string();
        std::fs::write(&own, "NodeName=n[1-").unwrap();
        let list = nodes(&own).unwrap_err().to_string();
        std::fs::write(&own, "Include gone.conf").unwrap();
        let gone = nodes(&own).unwrap_err().to_string();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(circle.contains("slurm.conf: files include each other"), "{circle}");
        assert!(list.contains("slurm.conf: \"n[1-\" is not a node list"), "{list}");
        assert!(gone.contains("gone.conf: No such file"), "{gone}");
    }
}
