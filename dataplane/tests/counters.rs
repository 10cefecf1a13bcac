//! Every counter of something lost stands in COUNTERS.md, with what it means and what to do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use std::collections::BTreeSet;
use uvn_engine::counters::Drop;
use uvn_wire::{cgroup, xdp};

#[test]
fn the_tables_name_every_drop() {
    let tables = include_str!("../COUNTERS.md").lines().filter(|line| line.starts_with("| `"));
    let named: BTreeSet<&str> = tables
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let engine = Drop::ALL.into_iter().filter(|drop| drop.is_drop()).map(Drop::name);
    let frames = xdp::Verdict::ALL.into_iter().filter(|verdict| verdict.is_drop()).map(xdp::Verdict::name);
    let sockets =
        cgroup::Verdict::ALL.into_iter().filter(|verdict| verdict.is_drop()).map(cgroup::Verdict::name);
    let drops: BTreeSet<&str> = engine.chain(frames).chain(sockets).chain(["tx_endpoint_full"]).collect();
    let missing: Vec<_> = drops.difference(&named).collect();
    let gone: Vec<_> = named.difference(&drops).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not in the table: {missing:?}; only in the table: {gone:?}"
    );
}
