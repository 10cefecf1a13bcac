//! MPI jobs: Open MPI over TCP between the measured user's endpoints, its daemons on the underlay.
//!
//! All nodes are this machine, with more ranks than cores, and Open MPI waits by polling. So ranks yield, and
//! [`Place::round_robin`](uvn_rig::place::Place) makes that hand the core on at once.

use crate::contender::Setup;
use crate::metric::{Label, Metric, Values, X, size};
use crate::workload::Workload;
use serde::Deserialize;
use std::fmt::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use uvn_rig::error::{RigError, written};
use uvn_rig::process::Process;
use uvn_rig::rig::underlay;
use uvn_rig::shell;

/// Our program: patterns as of the Intel MPI Benchmarks.
const SOURCE: &str = include_str!("../../mpi/patterns.c");
const PROGRAM: &str = "patterns";
const MPIRUN: &str = "mpirun";
/// How long sixteen ranks may take to start and to end on busy cores.
const START: Duration = Duration::from_secs(20);
/// How long mpirun may take to end a job whose time is over.
const STOP: Duration = Duration::from_secs(10);

/// What mpirun starts: the same number of ranks on each of the first nodes.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// From the first on.
    pub nodes: usize,
    /// On each node.
    pub ranks: usize,
}

impl Job {
    /// For tables.
    #[must_use]
    pub fn name(self) -> String {
        match self.ranks {
            1 => format!("{} nodes", self.nodes),
            ranks => format!("{} nodes x {ranks} ranks", self.nodes),
        }
    }

    /// Runs a program with its arguments as such a job, in the rig's directory, and returns what its ranks wrote.
    ///
    /// # Errors
    /// It failed, or did not end within `time` and what starting takes; the error holds what mpirun said.
    pub fn run(self, setup: &Setup, program: &[&str], time: Duration) -> Result<Vec<String>, RigError> {
        let directory = setup.rig.directory();
        let agent = write_agent(setup)?;
        let limit = START + time;
        let mut command = on_node(setup, 0, MPIRUN);
        command.args(["--allow-run-as-root", "--timeout", &limit.as_secs().to_string(), "--bind-to", "none"]);
        command.arg("-wdir").arg(directory).args(["--host", &self.hosts()]);
        let settings = [
            ("plm_rsh_agent", agent.to_string_lossy()),
            ("plm_rsh_no_tree_spawn", "1".into()),
            ("orte_tmpdir_base", directory.to_string_lossy()),
            // Shared memory too: as each node has a host name of its own, ranks of different nodes have none in common.
            ("btl", "tcp,vader,self".into()),
            ("btl_tcp_if_include", subnet(setup.place(0).address).into()),
            ("oob_tcp_if_include", subnet(underlay(0).0.into()).into()),
            ("mpi_yield_when_idle", "1".into()),
        ];
        for (name, value) in settings {
            command.args(["--mca", name, &value]);
        }
        command.args(program);
        let path = Path::new(program.first().unwrap_or(&MPIRUN));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Process::start_quietly(&format!("{name}, {}", self.name()), command)?.finish(limit + STOP)
    }

    /// mpirun's list of nodes, by underlay address, and of the ranks that each takes.
    fn hosts(self) -> String {
        let host = |node| format!("{}:{}", underlay(node).0, self.ranks);
        (0..self.nodes).map(host).collect::<Vec<_>>().join(",")
    }
}

/// A program that runs on a node, under the node's own host name: Open MPI tells nodes apart by it.
fn on_node(setup: &Setup, node: usize, program: &str) -> Command {
    let mut command = setup.place(node).command("unshare");
    let name = setup.rig.node(node);
    command.args(["--uts", "sh", "-c", r#"hostname "$0" && exec "$@""#, &name, program]);
    command
}

/// Writes what mpirun takes for ssh: its first argument is a node's underlay address, the others are a shell command.
fn write_agent(setup: &Setup) -> Result<PathBuf, RigError> {
    let path = setup.rig.directory().join("mpi-agent");
    let mut script = String::from("#!/bin/sh\nhost=$1\nshift\ncase $host in\n");
    for node in 0..setup.nodes() {
        let command = on_node(setup, node, "sh");
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let _infallible = writeln!(script, "{}) exec {} -c \"$*\" ;;", underlay(node).0, words.join(" "));
    }
    script += "esac\necho \"no node has the address $host\" >&2\nexit 1\n";
    std::fs::write(&path, script).map_err(written(&path))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).map_err(written(&path))?;
    Ok(path)
}

/// The subnet of an address, as mpirun takes it.
fn subnet(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => format!("{address}/64"),
    }
}

/// A pattern of `patterns.c` and its messages' lengths.
pub type Pattern = (&'static str, &'static [usize]);

/// The heading of the patterns on sixteen nodes.
pub const SIXTEEN_NODES: &str = "MPI, 16 nodes";

/// What sixteen nodes with a rank each exchange: goals of the data plane.
pub const ALL: &[Pattern] = &[
    ("pingpong", &[8, 4096, 65536]),
    ("pairs", &[8, 4096, 65536]),
    ("rate", &[8, 4096]),
    ("alltoall", &[8, 4096, 65536]),
    ("allreduce", &[8, 4096, 65536]),
    ("stencil2d", &[8, 4096, 65536]),
    ("stencil3d", &[8, 4096, 65536]),
];

/// What many ranks on each of two nodes exchange: the case that collapsed in the published data.
pub const PAIRS: &[Pattern] = &[("pairs", &[8, 4096]), ("rate", &[8]), ("alltoall", &[8, 4096])];

/// Patterns, all in one job: starting it takes longer than they do.
#[derive(Debug, Clone)]
pub struct Patterns {
    /// The heading in tables.
    pub group: &'static str,
    /// Where.
    pub job: Job,
    /// Which.
    pub patterns: &'static [Pattern],
    /// `patterns.c`, compiled.
    program: PathBuf,
}

impl Patterns {
    /// To be compiled before the first run.
    #[must_use]
    pub fn new(group: &'static str, job: Job, patterns: &'static [Pattern]) -> Patterns {
        Patterns { group, job, patterns, program: PathBuf::new() }
    }

    fn points(&self) -> usize {
        self.patterns.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

impl Workload for Patterns {
    fn name(&self) -> String {
        format!("MPI patterns, {}", self.job.name())
    }

    fn group(&self) -> &'static str {
        self.group
    }

    /// Seconds for each pattern and length; and what starting takes.
    fn takes(&self, seconds: f64) -> f64 {
        self.points() as f64 * (seconds + 0.1) + 2.0
    }

    fn prepare(&mut self, setups: &[Setup], _seconds: f64) -> Result<(), RigError> {
        let Some(setup) = setups.first() else { return Ok(()) };
        let (source, program) =
            (setup.rig.directory().join("patterns.c"), setup.rig.directory().join(PROGRAM));
        std::fs::write(&source, SOURCE).map_err(written(&source))?;
        shell::read(Command::new("mpicc").args(["-O2", "-o"]).arg(&program).arg(&source))?;
        self.program = program;
        Ok(())
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let mut words = vec![self.program.to_string_lossy().into_owned(), seconds.to_string()];
        for (pattern, bytes) in self.patterns {
            let bytes: Vec<String> = bytes.iter().map(usize::to_string).collect();
            words.push(format!("{pattern}:{}", bytes.join(",")));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let time = Duration::from_secs_f64(2.0 * self.takes(seconds));
        let lines = parse(&self.job.run(setup, &words, time)?)?;
        if lines.len() != self.points() {
            let why = format!("{} of {} patterns ended", lines.len(), self.points());
            return Err(RigError::program(PROGRAM, why));
        }
        Ok(lines.iter().map(|line| line.labelled(self.group, self.job)).collect())
    }
}

/// A line that `patterns.c` writes, and says there what it means.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Line {
    pattern: String,
    bytes: usize,
    us_p50: f64,
    us_p99: f64,
    mbytes_per_s: f64,
}

impl Line {
    fn labelled(&self, group: &'static str, job: Job) -> (Label, Values) {
        let messages = self.mbytes_per_s * 1e6 / self.bytes.max(1) as f64;
        let rate = match self.bytes {
            0..1024 => (Metric::KMSGS, messages / 1e3),
            _ => (Metric::MBYTES, self.mbytes_per_s),
        };
        let name = format!("{}, {}, {}", self.pattern, job.name(), size(self.bytes));
        let x = X { axis: "bytes of a message".to_owned(), value: self.bytes as f64 };
        let values = vec![(Metric::P50, self.us_p50), (Metric::P99, self.us_p99), rate];
        (Label { group, name, x: Some(x) }, values)
    }
}

fn parse(output: &[String]) -> Result<Vec<Line>, RigError> {
    let line = |line: &String| {
        serde_json::from_str(line).map_err(|error| RigError::program(PROGRAM, format!("{error} in {line:?}")))
    };
    output.iter().filter(|line| line.starts_with('{')).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_values() {
        let output = [
            "a warning".to_owned(),
            r#"{"pattern":"pairs","bytes":8,"ranks":16,"operations":4,"us_p50":9.5,"us_p99":20,"mbytes_per_s":1.6}"#
                .to_owned(),
        ];
        let lines = parse(&output).unwrap();
        let (label, values) = lines[0].labelled("MPI", Job { nodes: 16, ranks: 1 });
        assert_eq!(label.name, "pairs, 16 nodes, 8 B");
        assert_eq!(values, [(Metric::P50, 9.5), (Metric::P99, 20.0), (Metric::KMSGS, 200.0)]);
        assert!(parse(&["{\"pattern\":".to_owned()]).is_err());
    }

    #[test]
    fn every_node_gives_its_ranks() {
        assert_eq!(Job { nodes: 2, ranks: 8 }.hosts(), "10.0.0.1:8,10.0.0.2:8");
    }
}
