//! What a contender uses when there is nothing to do.

use super::Workload;
use crate::contender::{Contender, Setup};
use crate::metric::{Label, Metric, Values};
use std::thread;
use std::time::Duration;
use uvn_rig::cpu::ProcessTime;
use uvn_rig::error::RigError;

/// No traffic.
#[derive(Debug, Clone, Copy)]
pub struct Idle;

impl Workload for Idle {
    fn name(&self) -> String {
        "no traffic".into()
    }

    fn group(&self) -> &'static str {
        "idle"
    }

    fn unfit(&self, contender: Contender) -> Option<&'static str> {
        contender
            .is_kernels_own()
            .then_some("it has no process; what the kernel uses cannot be told from other use")
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let pids = setup.pids();
        let used = || -> f64 { pids.iter().filter_map(|&pid| Some(ProcessTime::of(pid)?.own)).sum() };
        let nodes = setup.nodes() as f64;
        let before = used();
        thread::sleep(Duration::from_secs_f64(seconds));
        let cpu = (used() - before) / seconds.max(1e-3) / nodes;
        let memory: f64 = pids.iter().map(|&pid| resident(pid)).sum();
        let values = vec![(Metric::IDLE, 100.0 * cpu), (Metric::MEMORY, memory / nodes)];
        Ok(vec![(self.label(), values)])
    }
}

/// MiB of a process in memory, proc_pid_status(5): with the UMEM, which is its own.
fn resident(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
