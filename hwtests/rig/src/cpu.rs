//! Processor time, from `/proc`.

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// Processor time of the whole system since it started, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SystemTime {
    /// Time in programs, the kernel and interrupts.
    pub busy: f64,
    /// Idle time, including waits for disks.
    pub idle: f64,
    /// Time taken by other virtual machines.
    pub stolen: f64,
}

impl SystemTime {
    /// The time until now.
    #[must_use]
    pub fn now() -> SystemTime {
        SystemTime::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// Parses proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal. Time of guests is in user and nice.
    fn parse(text: &str) -> SystemTime {
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let sum = |fields: &[usize]| fields.iter().filter_map(|&i| ticks.get(i)).sum::<f64>() / tick_rate();
        SystemTime { busy: sum(&[0, 1, 2, 5, 6]), idle: sum(&[3, 4]), stolen: sum(&[7]) }
    }

    /// The time since `earlier`.
    #[must_use]
    pub fn since(self, earlier: SystemTime) -> SystemTime {
        SystemTime {
            busy: self.busy - earlier.busy,
            idle: self.idle - earlier.idle,
            stolen: self.stolen - earlier.stolen,
        }
    }

    /// The sum of all three.
    #[must_use]
    pub fn total(self) -> f64 {
        self.busy + self.idle + self.stolen
    }
}

/// Processor time of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessTime {
    /// The process ID of its parent.
    pub parent: i32,
    /// Seconds of all its threads.
    pub own: f64,
    /// Seconds of the children that it has waited for.
    pub children: f64,
}

impl ProcessTime {
    /// The time until now; None: the process does not exist.
    #[must_use]
    pub fn of(pid: i32) -> Option<ProcessTime> {
        ProcessTime::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses proc_pid_stat(5): behind the name in parentheses come state, parent, and as 12th to 15th field utime,
    /// stime, cutime and cstime.
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
