//! Processor time, from `/proc`.

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// Processor time of the whole system since it started, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SystemTime {
    /// Spent on anything: programs, the kernel, interrupts.
    pub busy: f64,
    /// Spent on nothing.
    pub idle: f64,
    /// Taken by other virtual machines.
    pub stolen: f64,
}

impl SystemTime {
    /// Now.
    #[must_use]
    pub fn now() -> SystemTime {
        SystemTime::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal. What guests use is in user and nice.
    fn parse(text: &str) -> SystemTime {
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let sum = |fields: &[usize]| fields.iter().filter_map(|&i| ticks.get(i)).sum::<f64>() / tick_rate();
        SystemTime { busy: sum(&[0, 1, 2, 5, 6]), idle: sum(&[3, 4]), stolen: sum(&[7]) }
    }

    /// What has passed since `earlier`.
    #[must_use]
    pub fn since(self, earlier: SystemTime) -> SystemTime {
        SystemTime {
            busy: self.busy - earlier.busy,
            idle: self.idle - earlier.idle,
            stolen: self.stolen - earlier.stolen,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(self) -> f64 {
        self.busy + self.idle + self.stolen
    }
}

/// Processor time of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessTime {
    /// Its parent.
    pub parent: i32,
    /// Seconds of its own, all threads.
    pub own: f64,
    /// Seconds of the children that it has waited for.
    pub children: f64,
}

impl ProcessTime {
    /// Up to now; None when there is no such process.
    #[must_use]
    pub fn of(pid: i32) -> Option<ProcessTime> {
        ProcessTime::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// proc_pid_stat(5): after the name in parentheses come state, parent, and as 12th to 15th field utime, stime,
    /// cutime and cstime.
    fn parse(text: &str) -> Option<ProcessTime> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        Some(ProcessTime {
            parent: fields.get(1)?.parse().ok()?,
            own: (ticks(11)? + ticks(12)?) / tick_rate(),
            children: (ticks(13)? + ticks(14)?) / tick_rate(),
        })
    }
}

fn tick_rate() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_counts_interrupts_as_busy_and_io_as_idle() {
        let time = SystemTime::parse("cpu  100 200 300 400 500 600 700 800 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        let rate = tick_rate();
        assert_eq!(time, SystemTime { busy: 1900.0 / rate, idle: 900.0 / rate, stolen: 800.0 / rate });
        assert_eq!(time.total(), 3600.0 / rate);
    }

    #[test]
    fn a_process_may_have_parentheses_in_its_name() {
        let time = ProcessTime::parse("7 (a) b) S 3 7 7 0 -1 0 0 0 0 0 10 20 30 40 20 0 1 0").unwrap();
        let rate = tick_rate();
        assert_eq!(time, ProcessTime { parent: 3, own: 30.0 / rate, children: 70.0 / rate });
        assert_eq!(ProcessTime::parse(""), None);
    }
}
