//! `cargo xtask test`: everything that must hold before a change goes in. CI runs this and nothing else.

use crate::cargo::{cargo, target_directory};
use crate::closing::{Closing, Closings, conclude, counted};
use crate::progress::Output;
use crate::running::Running;
use crate::{demo, ebpf, processes, setup, suites};
use std::process::Command;
use std::thread;
use std::time::Instant;
use uvn_rig::error::RigError;
use uvn_rig::shell;

/// Runs everything, also after a failure, and prints one closing line per runner. False: one failed. `full`: all suites on
/// all kernels.
#[must_use]
pub fn test(full: bool) -> bool {
    let mut closings = Closings::new();
    // Packages that tests need are fetched while lints run, which need only what builds.
    let set_up = thread::spawn(|| setup::install(setup::ALL).map_err(|error| error.to_string()));
    closings.push(timed("format", format));
    closings.push(timed("clippy", clippy));
    closings.push(timed("documentation", documentation));
    let set_up = timed("set-up", || match set_up.join() {
        Ok(installed) => installed.map(|()| "ok: every package is there".into()),
        Err(_) => Err("it panicked".into()),
    });
    let is_set_up = set_up.1.is_ok();
    closings.push(set_up);
    if is_set_up {
        closings.push(timed("tests", tests));
        closings.push(timed("ebpf", object));
        match suites::build() {
            Ok(suites) => {
                closings.push(timed("demo", demo));
                closings.push(timed("hangs", hangs));
                println!("== suites");
                closings.extend(suites::all(&suites, full));
            }
            Err(error) => closings.push(("suites".into(), Err(error))),
        }
    }
    conclude(&closings)
}

fn timed(name: &str, run: impl FnOnce() -> Closing) -> (String, Closing) {
    println!("== {name}");
    let start = Instant::now();
    let closing = run();
    (name.to_owned(), closing.map(|line| format!("{line} ({} s)", start.elapsed().as_secs())))
}

/// Runs cargo, with output to the terminal.
fn run(cargo: &mut Command) -> Result<(), String> {
    shell::run(cargo).map_err(|error| error.to_string())
}

/// Fails, with the remedy, if rustup has not installed this component.
fn need(component: &str) -> Result<(), String> {
    let name = if component == "fmt" { "rustfmt" } else { component };
    let remedy = format!("this Rust has no {name}; `rustup component add {name}` brings it");
    shell::read(cargo().args([component, "--version"])).map(drop).map_err(|_| remedy)
}

/// The manifest of a workspace of this repository.
fn manifest(workspace: &str) -> String {
    format!("{}/../../{workspace}Cargo.toml", env!("CARGO_MANIFEST_DIR"))
}

fn format() -> Closing {
    need("fmt")?;
    for workspace in ["", "ebpf/", "dataplane/engine/fuzz/"] {
        let mut check = cargo();
        check.args(["fmt", "--all", "--check", "--manifest-path", &manifest(workspace)]);
        run(&mut check)?;
    }
    Ok("ok: as rustfmt writes it".into())
}

fn clippy() -> Closing {
    need("clippy")?;
    let target = target_directory().map_err(|error| error.to_string())?;
    // The eBPF programs are linted as programs of this machine, and have no tests; the fuzz targets without libFuzzer,
    // which is C++.
    let workspaces = [
        ("", &["--all-targets"][..]),
        ("ebpf/", &["--bins"]),
        ("dataplane/engine/fuzz/", &["--bins", "--no-default-features"]),
    ];
    for (workspace, arguments) in workspaces {
        let mut check = cargo();
        check.args(["clippy", "--workspace", "--quiet", "--manifest-path", &manifest(workspace)]);
        check.args(arguments).arg("--target-dir").arg(&target).args(["--", "--deny", "warnings"]);
        run(&mut check)?;
    }
    Ok("ok: no warnings".into())
}

/// Checks the links in the documentation, of private items too.
fn documentation() -> Closing {
    let mut document = cargo();
    document.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    run(document.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links"))?;
    Ok("ok: no warnings".into())
}

/// Unit, integration, property and corpus tests, and the examples in the documentation.
fn tests() -> Closing {
    // Built first, since a compiler may write nothing for a long time.
    run(&mut cargo_test(&["--workspace", "--no-run"]))?;
    follow(cargo_test(&["--workspace", "--no-fail-fast"]))
}

/// Checks that guests that hang on purpose are examined and ended.
fn hangs() -> Closing {
    follow(cargo_test(&["--workspace", "--bin", "xtask", "--", "--ignored", "--test-threads=1"]))
}

fn cargo_test(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.arg("test").args(arguments);
    command
}

/// Runs test programs, and counts their tests. If one hangs, all are ended.
fn follow(command: Command) -> Closing {
    let mut running = Running::start(command).map_err(|error| format!("cannot run cargo: {error}"))?;
    let mut output = Output::new(String::new());
    let result = running.watch(&mut output);
    let (mut counts, mut runs) = ([0; 5], 0);
    for result in output.text.lines().filter_map(counted) {
        runs += 1;
        counts.iter_mut().zip(result).for_each(|(sum, count)| *sum += count);
    }
    let [passed, failed, ignored, ..] = counts;
    let line = format!("{passed} passed, {failed} failed, {ignored} ignored in {runs} programs");
    match result {
        Ok(Ok(status)) if status.success() => Ok(format!("ok: {line}")),
        Ok(Ok(status)) => Err(format!("{line}; cargo: {status}")),
        Ok(Err(error)) => Err(format!("{line}; cargo: {error}")),
        Err(why) => {
            println!("{why}; the evidence:\n{}", processes::describe(running.id()));
            processes::end(running.id());
            Err(format!("{line}; {why}: see the evidence above"))
        }
    }
}

fn object() -> Closing {
    ebpf::run(true).map_err(|error| error.to_string())?;
    Ok("ok: the committed eBPF object is what its source builds to".into())
}

/// Runs the demo without its figures, on the program that the tests have just built.
fn demo() -> Closing {
    let text = |error: RigError| error.to_string();
    let program = target_directory().map_err(text)?.join("debug/uvn-dataplane");
    if demo::isolation(&program).map_err(text)? {
        Ok("ok: own network reached everywhere, others nowhere, every forged packet dropped and counted"
            .into())
    } else {
        Err("not as expected: see WRONG above".into())
    }
}
