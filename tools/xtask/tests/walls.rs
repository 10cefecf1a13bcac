//! The walls of ARCHITECTURE.md, held against the code: which crate may build on which, no circles between files, and
//! files and functions that a reader can hold in mind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each crate may build on, of ours. Those that stand on all of them (benchmarks, tests, xtask) are not here.
const WALLS: [(&str, &[&str]); 8] = [
    ("uvn-wire", &[]),
    ("uvn-api", &["uvn-wire"]),
    ("uvn-engine", &["uvn-wire", "uvn-api"]),
    ("uvn-dataplane", &["uvn-wire", "uvn-api", "uvn-engine"]),
    ("uvn-control", &["uvn-wire", "uvn-api", "uvn-engine", "uvn-dataplane"]),
    ("uvn-pam", &["uvn-api"]),
    ("uvn-spank", &["uvn-api"]),
    ("uvn-rig", &[]),
];

/// What sshd and slurmstepd load as root: how many crates at most.
const PLUGINS: [(&str, usize); 2] = [("uvn-pam", 20), ("uvn-spank", 35)];
/// Crates that need more than Rust, or do more than a plugin may.
const HEAVY: [&str; 8] = ["xsk-rs", "libxdp-sys", "libbpf-sys", "aya", "tokio", "clap", "nix", "mio"];

const FILE: usize = 500;
const FUNCTION: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Our crates: the name, the folder, and what it builds on outside of its tests.
fn crates() -> Vec<(String, PathBuf, BTreeSet<String>)> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]))
            .unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let folder = PathBuf::from(text(&package["manifest_path"])).parent().unwrap().to_path_buf();
            let needs = package["dependencies"].as_array().unwrap().iter();
            let needs = needs.filter(|need| need["kind"].is_null()).map(|need| text(&need["name"]));
            (text(&package["name"]), folder, needs.collect())
        })
        .collect()
}

#[test]
fn crates_build_one_way_only() {
    let crates = crates();
    for (name, may) in WALLS {
        let (.., needs) = crates.iter().find(|(known, ..)| known == name).unwrap();
        let ours = needs.iter().filter(|need| need.starts_with("uvn-"));
        let wrong: Vec<_> = ours.filter(|need| !may.contains(&need.as_str())).collect();
        assert!(wrong.is_empty(), "{name} may not build on {wrong:?}");
    }
}

#[test]
fn plugins_are_small() {
    for (name, most) in PLUGINS {
        let tree = cargo(&["tree", "--offline", "-p", name, "-e", "normal", "--prefix", "none"]);
        let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        let heavy: Vec<_> = HEAVY.iter().filter(|heavy| crates.contains(*heavy)).collect();
        assert!(crates.len() <= most && heavy.is_empty(), "{name}: {} crates, {heavy:?}", crates.len());
    }
}

/// The engine is tested without root, clang or kernel headers, so it calls nobody who needs them.
#[test]
fn the_engine_makes_no_system_call() {
    let (.., needs) = crates().into_iter().find(|(name, ..)| name == "uvn-engine").unwrap();
    let wrong: Vec<_> =
        needs.iter().filter(|need| HEAVY.contains(&need.as_str()) || *need == "libc").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Source files below a folder, without those that only tests use.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return files };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") && path.file_stem().unwrap() != "tests" {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A file's text as far as it is no test: tests come last.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

/// The path of the module that is a file.
fn module(folder: &Path, file: &Path) -> Vec<String> {
    let path = file.strip_prefix(folder).unwrap().with_extension("");
    let mut parts: Vec<String> =
        path.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| ["lib", "main", "mod"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Every path below `crate`, or by `super`, that the text of a module names, groups in braces taken apart.
fn named(own: &[String], text: &str) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    for rest in code.split("crate::").skip(1) {
        expand(rest, Vec::new(), &mut paths);
    }
    if let Some((_, parent)) = own.split_last() {
        for rest in code.split("use super::").skip(1) {
            expand(rest, parent.to_vec(), &mut paths);
        }
    }
    paths
}

/// Takes one path, or a group of them, from the beginning of a text; returns what follows.
fn expand<'a>(text: &'a str, before: Vec<String>, paths: &mut BTreeSet<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, before.clone(), paths).trim_start();
            match rest.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => rest = more,
                Some(more) => return more.trim_start().strip_prefix('}').unwrap(),
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let length = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    let mut path = before;
    path.push(name.to_owned());
    if let Some(rest) = rest.strip_prefix("::") {
        return expand(rest, path, paths);
    }
    paths.insert(path);
    rest
}

/// Which file takes something from which, within a crate. A module is a part of those above it: it may take from them.
fn imports(folder: &Path) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let files: Vec<(Vec<String>, String)> =
        sources(folder).iter().map(|file| (module(folder, file), code(file))).collect();
    let modules: BTreeSet<&Vec<String>> = files.iter().map(|(module, _)| module).collect();
    let file_of = |path: &Vec<String>| {
        (1..=path.len()).rev().map(|length| path[..length].to_vec()).find(|path| modules.contains(path))
    };
    files
        .iter()
        .map(|(own, text)| {
            let taken =
                named(own, text).iter().filter_map(file_of).filter(|other| !own.starts_with(other)).collect();
            (own.clone(), taken)
        })
        .collect()
}

/// A way from a file back to itself.
fn circle(imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Option<Vec<Vec<String>>> {
    for start in imports.keys() {
        let (mut way, mut seen) = (vec![vec![start.clone()]], BTreeSet::new());
        while let Some(path) = way.pop() {
            for next in &imports[path.last().unwrap()] {
                if next == start {
                    return Some(path);
                }
                if seen.insert(next.clone()) {
                    way.push([path.clone(), vec![next.clone()]].concat());
                }
            }
        }
    }
    None
}

#[test]
fn no_circles_between_files() {
    let mut circles = Vec::new();
    for (name, folder, _) in crates() {
        if let Some(circle) = circle(&imports(&folder.join("src"))) {
            let circle: Vec<String> = circle.iter().map(|path| path.join("::")).collect();
            circles.push(format!("{name}: {}", circle.join(" -> ")));
        }
    }
    assert!(
        circles.is_empty(),
        "each takes from the next, and the last from the first:\n{}",
        circles.join("\n")
    );
}

#[test]
fn groups_in_braces_are_taken_apart() {
    let text = "use crate::a::{self, b::{C, d}, E};\nuse crate::f;\nuse super::z::W;\n// crate::not\nlet x = crate::g::h();";
    let paths: Vec<String> =
        named(&["x".into(), "y".into()], text).iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["a::E", "a::b::C", "a::b::d", "a::self", "f", "g::h", "x::z::W"]);
    let way = |from: &str, to: &str| (vec![from.to_owned()], BTreeSet::from([vec![to.to_owned()]]));
    assert_eq!(
        circle(&BTreeMap::from([way("a", "b"), way("b", "c"), way("c", "b")])).map(|way| way.len()),
        Some(2)
    );
    assert_eq!(circle(&BTreeMap::from([way("a", "b"), (vec!["b".to_owned()], BTreeSet::new())])), None);
}

#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    let ebpf = ("ebpf".to_owned(), root().join("ebpf"), BTreeSet::new());
    // The attempts to escape are lists of tests.
    let code_of = |name: &str| name != "uvn-hwtests";
    for (_, folder, _) in crates().into_iter().filter(|(name, ..)| code_of(name)).chain([ebpf]) {
        for file in sources(&folder.join("src")) {
            let name = file.strip_prefix(root()).unwrap().display().to_string();
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if lines > FILE {
                long.push(format!("{name}: {lines} lines"));
            }
            long.extend(long_functions(&code(&file)).map(|found| format!("{name}: {found}")));
        }
    }
    assert!(long.is_empty(), "files over {FILE} lines, functions over {FUNCTION}:\n{}", long.join("\n"));
}

/// Functions that are too long; rustfmt puts the last brace of one below its first letter.
fn long_functions(code: &str) -> impl Iterator<Item = String> {
    let lines: Vec<&str> = code.lines().collect();
    let starts = lines.iter().enumerate().filter(|(_, line)| {
        let words = line.split("fn ").next().unwrap_or_default().trim();
        let qualified = ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "extern", "\"C\"", "async"];
        line.contains("fn ") && words.split_whitespace().all(|word| qualified.contains(&word))
    });
    let found: Vec<String> = starts
        .filter_map(|(start, line)| {
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let length = lines[start..].iter().position(|line| **line == end)? + 1;
            (length > FUNCTION && !line.ends_with(';')).then(|| format!("{}: {length} lines", line.trim()))
        })
        .collect();
    found.into_iter()
}
