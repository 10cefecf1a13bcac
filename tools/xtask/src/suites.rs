//! Runs the suites of `hwtests/tests` in guests. Each file is a suite and gets a guest of its own, so that no suite
//! finds what another has left behind. A suite whose name ends in `_systemd` gets a guest with systemd and logind.

use crate::cargo::cargo;
use crate::closing::{Closing, Closings, conclude, counted};
use crate::guest::kernel::Series;
use crate::guest::{self, GuestError, Machine};
use crate::progress::Output;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use uvn_rig::shell;

/// A built suite.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The name of its file, without `.rs`.
    pub name: String,
    /// Its test program.
    program: PathBuf,
    /// How many tests it has.
    tests: u64,
}

/// The arguments of `cargo xtask suite`.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// Suites to run: files of hwtests/tests without `.rs`; all if none is named
    names: Vec<String>,
    #[command(flatten)]
    machine: Machine,
    /// Arguments for the test programs: a test's name, --nocapture
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds and runs the chosen suites, and prints one closing line each. False: one failed.
///
/// # Errors
/// The suites cannot be built, or a named one does not exist.
pub fn choose(choice: &Choice) -> Result<bool, String> {
    let mut suites = build()?;
    if let Some(name) = choice.names.iter().find(|name| suites.iter().all(|suite| suite.name != **name)) {
        let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
        return Err(format!("no suite is called {name}: there are {}", names.join(", ")));
    }
    suites.retain(|suite| choice.names.is_empty() || choice.names.contains(&suite.name));
    let (machine, arguments) = (&choice.machine, &choice.arguments);
    let run_of = |suite| Run { suite, machine: machine.clone(), arguments: arguments.clone() };
    let closings = run(&suites.into_iter().map(run_of).collect::<Vec<_>>());
    Ok(conclude(&closings))
}

/// The suites with tests of each gear run on the newer kernel, which has them all; the others on the older one. These run
/// there as well, with the tests that begin so: isolation over kernel VXLAN, which `path = "auto"` takes there.
const NEWER: [&str; 6] = ["escapes", "kernel", "matrix", "mixed", "nics", "outsiders"];
const OLDER_TOO: [(&str, &[&str]); 3] =
    [("escapes", &["kernel::"]), ("kernel", &[]), ("matrix", &["kernel::"])];

/// The suites that take longest: they begin first, so that no guest is left running alone in the end.
const LONGEST: [&str; 6] = ["faults", "matrix", "escapes", "mixed", "slurm", "sshd_systemd"];

/// A suite in a guest.
struct Run {
    suite: Suite,
    machine: Machine,
    /// Arguments of the test program.
    arguments: Vec<String>,
}

/// All suites on the kernel where they say most; or everything on each kernel.
#[must_use]
pub fn all(suites: &[Suite], full: bool) -> Closings {
    let mut runs = Vec::new();
    if let Some(gone) = NEWER.iter().find(|name| suites.iter().all(|suite| suite.name != **name)) {
        return vec![("suites".into(), Err(format!("no suite is called {gone}: correct suites.rs")))];
    }
    for suite in suites {
        let is_newer = NEWER.contains(&suite.name.as_str());
        let too = OLDER_TOO.iter().find(|(name, _)| *name == suite.name);
        let begin = too.map_or(&[][..], |(_, begin)| begin);
        let on = |kernel, begin: &[&str]| {
            // Two guests on two cores: the longest suite takes a quarter of an hour on four.
            let machine = Machine { kernel, timeout: 35, ..Machine::default() };
            let arguments = begin.iter().map(|begin| (*begin).into()).collect();
            Run { suite: suite.clone(), machine, arguments }
        };
        if full || is_newer {
            runs.push(on(Series::V6_12, &[]));
        }
        if full || !is_newer {
            runs.push(on(Series::V6_1, &[]));
        } else if too.is_some() {
            runs.push(on(Series::V6_1, begin));
        }
    }
    let rank = |run: &Run| LONGEST.iter().position(|name| *name == run.suite.name).unwrap_or(LONGEST.len());
    runs.sort_by_key(rank);
    run(&runs)
}

/// Builds the suites and the programs that they run, with the same features as the tests of the whole workspace: with
/// other features, every crate would be built once more.
///
/// # Errors
/// cargo failed.
pub fn build() -> Result<Vec<Suite>, String> {
    let text = |error: shell::ShellError| error.to_string();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../hwtests/tests");
    let files = std::fs::read_dir(folder).map_err(|error| format!("{folder}: {error}"))?;
    let names =
        files.flatten().filter_map(|file| file.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned));
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--workspace",
        "--bins",
        "--lib",
        "--message-format=json-render-diagnostics",
    ]);
    names.for_each(|name| {
        build.args(["--test", &name]);
    });
    let messages = shell::read(&mut build).map_err(text)?;
    let mut suites = Vec::new();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let target = &message["target"];
        let ours = target["src_path"].as_str().is_some_and(|path| path.contains("/hwtests/tests/"));
        let (Some(program), true) = (message["executable"].as_str(), ours) else { continue };
        let list = shell::read(Command::new(program).args(["--list", "--include-ignored"])).map_err(text)?;
        let tests = list.lines().filter(|line| line.ends_with(": test")).count() as u64;
        let name = target["name"].as_str().unwrap_or_default().to_owned();
        suites.push(Suite { name, program: program.into(), tests });
    }
    suites.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(suites)
}

/// Runs them, at least two at once, since they often wait. Returns their closing lines in the given order.
fn run(runs: &[Run]) -> Closings {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..(cores / 2).max(2).min(runs.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(index) else { return };
                    let name = format!("{} on {}", run.suite.name, run.machine.kernel.name());
                    let closing = run_one(run, &name);
                    if let Ok(mut done) = done.lock() {
                        done.push((index, name, closing));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, ..)| *index);
    done.into_iter().map(|(_, name, closing)| (name, closing)).collect()
}

fn run_one(run: &Run, name: &str) -> Closing {
    let Run { suite, machine, arguments } = run;
    let mut machine = machine.clone();
    machine.systemd |= suite.name.ends_with("_systemd");
    // One test at a time: they share the kernel, and its two cores.
    let mut command: Vec<String> = vec![suite.program.display().to_string()];
    command.extend(["--include-ignored", "--test-threads=1"].map(String::from));
    command.extend_from_slice(arguments);
    let (start, mut again) = (Instant::now(), "");
    let mut output = Output::new(format!("{name}: "));
    let code = loop {
        match guest::run(&machine, &command, &mut output) {
            // Tried once more; the closing line says so.
            Err(error @ GuestError::Emulation(..)) if again.is_empty() => {
                println!("{name}: AGAIN: {error}");
                again = " (AGAIN: in a first guest qemu's emulation failed, see above)";
                output = Output::new(format!("{name}: "));
            }
            Err(GuestError::Hung(why, evidence)) => {
                println!("{name}: {why}; the evidence:\n{}", evidence.text);
                return Err(format!("{why}; evidence: {}", evidence.path.display()));
            }
            result => break result.map_err(|error| error.to_string())?,
        }
    };
    let text = output.text;
    let [passed, failed, ignored, _, left_out] =
        text.lines().find_map(counted).ok_or_else(|| format!("no result; exit code {code}"))?;
    let skipped = text.lines().filter(|line| line.contains("SKIP: ")).count();
    let seconds = start.elapsed().as_secs();
    let mut line = format!("{passed} passed, {failed} failed, {ignored} ignored in {seconds} s{again}");
    if skipped > 0 {
        line += &format!(" (SKIP: {skipped} of them, for the reason above)");
    }
    if code != 0 {
        return Err(format!("{line}; exit code {code}"));
    }
    if passed == 0 || passed + left_out != suite.tests {
        return Err(format!("{line}, but it has {} tests", suite.tests));
    }
    // Tests that the newest kernel cannot run are run nowhere.
    if skipped > 0 && machine.kernel == Series::V6_12 {
        return Err(line);
    }
    Ok(format!("ok: {line}"))
}
