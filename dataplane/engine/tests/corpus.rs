//! Replays the fuzz corpora: what a fuzzer once found stays found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a target fails by panicking")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 10, "{target}: only {inputs} inputs");
}

#[test]
fn parse() {
    replay("parse", targets::parse);
}

#[test]
fn decap() {
    replay("decap", targets::decap);
}

#[test]
fn encap() {
    replay("encap", targets::encap);
}

#[test]
fn gso() {
    replay("gso", targets::gso);
}

#[test]
fn gro() {
    replay("gro", targets::gro);
}

#[test]
fn message() {
    replay("message", targets::message);
}
