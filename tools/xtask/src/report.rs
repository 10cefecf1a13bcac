//! Samples of a side-by-side run, as a table and as JSON.

use crate::contender::Kind;
use crate::cores::Cores;
use crate::workload::{Metric, Sample, Workload};
use serde_json::{Value, json};

/// Everything measured in one run.
#[derive(Default)]
pub struct Report {
    samples: Vec<(Workload, Kind, Sample)>,
}

impl Report {
    /// Adds one measurement.
    pub fn add(&mut self, workload: Workload, kind: Kind, sample: Sample) {
        self.samples.push((workload, kind, sample));
    }

    /// All values of one metric, in the order measured.
    fn values(&self, workload: Workload, kind: Kind, metric: Metric) -> Vec<f64> {
        self.samples
            .iter()
            .filter(|(w, k, _)| (*w, *k) == (workload, kind))
            .flat_map(|(_, _, sample)| sample)
            .filter(|(m, _)| *m == metric)
            .map(|(_, value)| *value)
            .collect()
    }

    /// The median of one metric; None when it was not measured.
    #[must_use]
    pub fn median(&self, workload: Workload, kind: Kind, metric: Metric) -> Option<f64> {
        median(self.values(workload, kind, metric))
    }

    fn contenders(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for (_, kind, _) in &self.samples {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    }

    fn workloads(&self) -> Vec<Workload> {
        let mut workloads = Vec::new();
        for (workload, _, _) in &self.samples {
            if !workloads.contains(workload) {
                workloads.push(*workload);
            }
        }
        workloads
    }

    /// Prints medians with their ratio to the baseline's, and below each the least and the greatest value.
    pub fn print(&self, baseline: Kind) {
        let contenders = self.contenders();
        let header: String = contenders.iter().map(|kind| format!("{:>18}", kind.name())).collect();
        println!("{:<32}{header}", format!("median (x {})", baseline.name()));
        for workload in self.workloads() {
            for &metric in workload.metrics() {
                self.print_row(&contenders, workload, metric, baseline);
            }
        }
    }

    fn print_row(&self, contenders: &[Kind], workload: Workload, metric: Metric, baseline: Kind) {
        let baseline = self.median(workload, baseline, metric);
        let (mut medians, mut spreads) = (String::new(), String::new());
        for &kind in contenders {
            let values = self.values(workload, kind, metric);
            let (least, greatest) =
                values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
            let cell = median(values).map_or_else(
                || ("-".into(), String::new()),
                |median| {
                    (format!("{}{}", short(median), ratio(metric, median, baseline)), spread(least, greatest))
                },
            );
            medians += &format!("{:>18}", cell.0);
            spreads += &format!("{:>18}", cell.1);
        }
        println!("{:<32}{medians}", format!("{}, {}", workload.name(), metric.unit()));
        println!("{:<32}{spreads}", "");
    }

    /// All samples, by workload, metric and contender.
    #[must_use]
    pub fn samples_json(&self) -> Value {
        let mut all = Vec::new();
        for workload in self.workloads() {
            for kind in self.contenders() {
                for metric in Metric::ALL {
                    let values = self.values(workload, kind, metric);
                    if let Some(median) = median(values.clone()) {
                        all.push(json!({
                            "workload": workload.name(),
                            "contender": kind.name(),
                            "metric": metric.unit(),
                            "median": median,
                            "samples": values,
                        }));
                    }
                }
            }
        }
        Value::Array(all)
    }
}

/// The middle value; the mean of the two middle ones of an even number.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len().is_multiple_of(2) { Some((values[middle - 1] + upper) / 2.0) } else { Some(upper) }
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn spread(least: f64, greatest: f64) -> String {
    format!("{}..{}", short(least), short(greatest))
}

/// Loss is compared by eye: a ratio of two small losses says nothing.
fn ratio(metric: Metric, value: f64, baseline: Option<f64>) -> String {
    match baseline {
        Some(baseline) if baseline > 0.0 && metric != Metric::Loss => format!(" ({:.2}x)", value / baseline),
        _ => String::new(),
    }
}

/// What must be known beside the numbers.
#[must_use]
pub fn machine(cores: &Cores) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "application_cores": cores.apps,
        "networking_cores": cores.net,
        "mtu": crate::rig::MTU,
        "load_at_start": load(),
    })
}

/// How many programs want to run, over the last minute.
#[must_use]
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn samples_are_told_apart_by_workload_contender_and_metric() {
        let mut report = Report::default();
        let bulk = Workload::Bulk { streams: 1 };
        for value in [1.0, 5.0, 3.0] {
            report.add(bulk, Kind::Raw, vec![(Metric::Gbps, value)]);
            report.add(bulk, Kind::Kernel, vec![(Metric::Gbps, 2.0 * value)]);
            report.add(Workload::Udp, Kind::Raw, vec![(Metric::Kpps, 100.0), (Metric::Loss, value)]);
        }
        assert_eq!(report.median(bulk, Kind::Raw, Metric::Gbps), Some(3.0));
        assert_eq!(report.median(bulk, Kind::Kernel, Metric::Gbps), Some(6.0));
        assert_eq!(report.median(Workload::Udp, Kind::Raw, Metric::Loss), Some(3.0));
        assert_eq!(report.median(Workload::Udp, Kind::Kernel, Metric::Loss), None);
        assert_eq!(report.samples_json().as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.5, 9.996, 12.34, 99.96, 123.4].map(short), ["0.50", "10.0", "12.3", "100", "123"]);
    }
}
