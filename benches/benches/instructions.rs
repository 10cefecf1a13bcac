//! Instructions of the hot path's functions, counted by callgrind: `cargo bench -p uvn-benches --bench instructions`, and
//! `-- encap` for those whose name has that in it.
//!
//! Seconds differ from run to run on a shared machine; these hardly do (hash tables are seeded anew in each run).
//!
//! The program runs itself under valgrind. There, callgrind counts while [`counted`] runs, and writes down what it has
//! at each [`end_of_work`].
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark stops where it cannot go on")]

use std::hint::black_box;
use std::process::{Command, Stdio};
use uvn_benches::work::{self, Amount, Bench, Work};

/// Runs of each work that are counted.
const RUNS: u32 = 100;
/// The first argument of the program under valgrind.
const COUNTED: &str = "--counted";
const COUNTS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/callgrind.out");

/// Works in their order, each printed in one line.
struct List {
    filter: String,
    runs: u32,
}

impl Bench for List {
    fn measure<W: Work>(&mut self, group: &str, name: &str, amount: Amount, mut work: W) {
        let name = format!("{group}/{name}");
        if !name.contains(&self.filter) {
            return;
        }
        // The first run makes room for those that follow.
        work.prepare();
        assert!(work.run(), "{name} does not do what it is to");
        for _ in 0..self.runs {
            work.prepare();
            assert!(counted(&mut work), "{name} does not do what it is to");
        }
        end_of_work();
        match amount {
            Amount::Frames(frames) => println!("{name} {frames} each"),
            Amount::Bytes(bytes) => println!("{name} {bytes} per-byte"),
        }
    }
}

#[inline(never)]
fn counted(work: &mut impl Work) -> bool {
    black_box(work).run()
}

#[inline(never)]
fn end_of_work() {
    black_box(());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    match arguments.first().map(String::as_str) {
        Some(COUNTED) => work::all(&mut List { filter, runs: RUNS }),
        Some("--test") => work::all(&mut List { filter, runs: 1 }),
        _ => print(&filter),
    }
}

fn print(filter: &str) {
    let _none_yet = std::fs::remove_file(COUNTS);
    let listed = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--combine-dumps=yes", "--toggle-collect=*counted*"])
        .args(["--dump-before=*end_of_work*", &format!("--callgrind-out-file={COUNTS}")])
        .arg(std::env::current_exe().unwrap())
        .args([COUNTED, filter])
        .stderr(Stdio::inherit())
        .output()
        .expect("it needs valgrind: `cargo xtask setup` installs it");
    assert!(listed.status.success(), "valgrind: {}", listed.status);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let counts = std::fs::read_to_string(COUNTS).unwrap();
    // One part for each work, and at the end another one.
    let totals = counts.lines().filter_map(|line| line.strip_prefix("totals: ")?.parse::<f64>().ok());
    println!("| work | instructions | |\n| --- | --- | --- |");
    for (work, total) in listed.lines().zip(totals) {
        let mut words = work.split(' ');
        let (name, count, unit) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let each = total / f64::from(RUNS) / count.parse::<f64>().unwrap();
        println!("| {name} | {each:.1} | {unit} |");
    }
}
