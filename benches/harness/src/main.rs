//! `cargo xtask bench` builds and runs this.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uvn_bench::baseline::Baseline;
use uvn_bench::nodes::Site;
use uvn_bench::plan::{self, Section};
use uvn_bench::report::{Report, Settings};
use uvn_bench::{baseline, goals, html, nodes, probe, run, table};
use uvn_rig::error::{RigError, written};
use uvn_rig::netns::exit_code;
use uvn_rig::{netns, ssh};

/// Measures ways to carry users' packets side by side. Needs root; leaves nothing behind.
#[derive(Parser)]
#[command(name = "uvn-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// At most five minutes: fewer workloads, shorter
    #[arg(long)]
    quick: bool,
    /// Only contenders whose name contains this; may be repeated
    #[arg(long, value_name = "NAME")]
    contender: Vec<String>,
    /// Only workloads whose section, group or name contains this; may be repeated
    #[arg(long, value_name = "NAME")]
    workload: Vec<String>,
    /// How often each contender takes its turn
    #[arg(long)]
    rounds: Option<usize>,
    /// How long traffic flows each time
    #[arg(long)]
    seconds: Option<f64>,
    /// The program uvn-dataplane; otherwise the one beside this program
    #[arg(long, value_name = "FILE")]
    dataplane: Option<PathBuf>,
    /// Where report.json goes; otherwise bench/ beside this program's folder
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// An earlier report.json to compare with
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    #[command(flatten)]
    site: nodes::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Show an earlier run again, and write its page beside it
    Report {
        /// Its report.json
        file: PathBuf,
        /// A still earlier one to compare with
        #[arg(long, value_name = "FILE")]
        baseline: Option<PathBuf>,
    },
    /// Run on a node
    #[command(hide = true, subcommand)]
    Probe(probe::Probe),
    /// Run a program on a node with an open connection
    #[command(hide = true)]
    Ssh(ssh::Words),
    /// Run a program and end it with standard input
    #[command(hide = true)]
    Guard {
        /// The program and its arguments
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let result = match arguments.command.take() {
        // Its parent reads what it writes.
        Some(Command::Probe(probe)) => probe::run(probe)
            .inspect_err(|error| println!("{error}"))
            .map_err(|error| RigError::program("probe", error)),
        Some(Command::Report { file, baseline }) => show(&file, baseline.as_deref()),
        Some(Command::Ssh(words)) => Err(RigError::program("ssh", words.become_ssh())),
        Some(Command::Guard { words }) => match ssh::guard(&words) {
            Ok(code) => return code,
            Err(error) => {
                // Who waits for the program reads what it writes.
                println!("{error}");
                return ExitCode::FAILURE;
            }
        },
        None => measure(&arguments),
    };
    exit_code(result)
}

fn measure(arguments: &Arguments) -> Result<(), RigError> {
    let own = std::env::current_exe().map_err(RigError::io("find this program"))?;
    let earlier = arguments.baseline.as_deref().map(Report::read).transpose()?;
    let mut sections = plan(arguments);
    let report = if arguments.site.nodes.is_empty() {
        netns::prepare()?;
        let program = arguments.dataplane.clone().unwrap_or_else(|| own.with_file_name("uvn-dataplane"));
        let mut report = Report::new(settings(&sections, arguments)?);
        announce(&sections, &report);
        run::sections(&mut sections, &program, &mut report)?;
        report
    } else {
        netns::catch_signals()?;
        sections.truncate(1);
        measure_site(&sections, arguments)?
    };
    let baseline = earlier.zip(arguments.baseline.as_deref());
    let baseline =
        baseline.map(|(earlier, file)| baseline::compare(&report, &earlier, &file.display().to_string()));
    print(&report, baseline.as_ref());
    let built = own.ancestors().nth(2).unwrap_or(&own).join("bench");
    let output = arguments.output.clone().unwrap_or(built);
    std::fs::create_dir_all(&output).map_err(written(&output))?;
    let path = output.join("report.json");
    let text = serde_json::to_string_pretty(&report).map_err(|error| written(&path)(error.into()))?;
    std::fs::write(&path, text + "\n").map_err(written(&path))?;
    println!("all samples: {}", path.display());
    write_page(&report, baseline.as_ref(), &path)
}

/// Real nodes do the first section's work, as far as it needs no rig.
fn measure_site(sections: &[Section], arguments: &Arguments) -> Result<Report, RigError> {
    let mut site = Site::open(&arguments.site)?;
    site.retain(|name| chosen(&arguments.contender, &[name]));
    let mut report = site.report(settings(sections, arguments)?)?;
    let machine = &report.machine;
    println!("kernel {}, {} cores, {}", machine.kernel, machine.cores, machine.cpu);
    let workloads = sections.iter().flat_map(|section| &section.workloads);
    site.measure(&workloads.map(AsRef::as_ref).collect::<Vec<_>>(), &mut report);
    Ok(report)
}

fn settings(sections: &[Section], arguments: &Arguments) -> Result<Settings, RigError> {
    let first = sections.first().ok_or_else(|| {
        RigError::program("--contender, --workload", "nothing to measure: no name contains that")
    })?;
    Ok(Settings {
        mtu: first.mtu,
        rounds: first.rounds,
        seconds: first.seconds,
        nodes: first.nodes,
        quick: arguments.quick,
    })
}

fn announce(sections: &[Section], report: &Report) {
    let minutes = sections.iter().map(Section::takes).sum::<f64>() / 60.0;
    let machine = &report.machine;
    println!(
        "kernel {}, {} cores, {}; about {minutes:.1} minutes",
        machine.kernel, machine.cores, machine.cpu
    );
    for section in sections {
        println!("  {:4.1} min  {}", section.takes() / 60.0, section.title);
    }
    if machine.load_at_start > 1.0 {
        println!("  load {}: other programs are running, which disturbs every figure", machine.load_at_start);
    }
}

/// Shows what is in a file.
fn show(file: &Path, earlier: Option<&Path>) -> Result<(), RigError> {
    let report = Report::read(file)?;
    let baseline = earlier.map(|file| -> Result<Baseline, RigError> {
        Ok(baseline::compare(&report, &Report::read(file)?, &file.display().to_string()))
    });
    let baseline = baseline.transpose()?;
    print(&report, baseline.as_ref());
    write_page(&report, baseline.as_ref(), file)
}

fn print(report: &Report, baseline: Option<&Baseline>) {
    for contender in &report.contenders {
        println!("  {:<18} {}", contender.name, contender.about);
        contender.ways().for_each(|way| println!("  {:<18} {way}", ""));
    }
    table::print(report, baseline::reference(report).unwrap_or_default());
    goals::print(report);
    if let Some(baseline) = baseline {
        baseline.print(report);
    }
}

/// Writes the page of a report.json beside it.
fn write_page(report: &Report, baseline: Option<&Baseline>, json: &Path) -> Result<(), RigError> {
    let path = json.with_extension("html");
    std::fs::write(&path, html::page(report, baseline)).map_err(written(&path))?;
    println!("with diagrams: {}", path.display());
    Ok(())
}

/// What is asked for: all that fits, less what the options leave out.
fn plan(arguments: &Arguments) -> Vec<Section> {
    let mut sections = if arguments.quick { plan::quick() } else { plan::full() };
    for section in &mut sections {
        if arguments.site.nodes.is_empty() {
            section.contenders.retain(|contender| chosen(&arguments.contender, &[contender.name()]));
            section.absent.retain(|(contender, _)| chosen(&arguments.contender, &[contender.name()]));
        }
        section
            .workloads
            .retain(|work| chosen(&arguments.workload, &[&section.title, work.group(), &work.name()]));
        section.rounds = arguments.rounds.unwrap_or(section.rounds);
        section.seconds = arguments.seconds.unwrap_or(section.seconds);
    }
    sections.retain(|section| !section.contenders.is_empty() && !section.workloads.is_empty());
    sections
}

/// Whether one of the names contains one of the wanted parts; all do when nothing is wanted.
fn chosen(wanted: &[String], names: &[&str]) -> bool {
    wanted.is_empty() || wanted.iter().any(|part| names.iter().any(|name| name.contains(part.as_str())))
}
