//! What a run ran on.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::process::Command;
use uvn_rig::shell;

/// Programs whose version matters, and how they tell it.
const PROGRAMS: [(&str, &str); 4] =
    [("iperf3", "--version"), ("ethtool", "--version"), ("ip", "-V"), ("ovs-vswitchd", "--version")];

/// What must be known beside the numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Cores that the run might use.
    pub cores: usize,
    /// Programs that want to run, over the minute before the run.
    pub load_at_start: f64,
    /// Of programs, by name.
    pub versions: BTreeMap<String, String>,
}

impl Machine {
    /// The one that this runs on.
    #[must_use]
    pub fn this() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let load = read("/proc/loadavg");
        let version = |(program, argument): (&str, &str)| {
            let text = shell::read(Command::new(program).arg(argument)).ok()?;
            Some((program.to_owned(), text.lines().next()?.trim().to_owned()))
        };
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).count(),
            load_at_start: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            versions: PROGRAMS.into_iter().filter_map(version).collect(),
        }
    }
}
