//! Two runs compared: `--baseline FILE`.
//!
//! Two runs differ in more than the code: the machine was busier, warmer, another. So each change is given twice, as it
//! is and relative to the same run's reference contender (kernel VXLAN), which the machine slows down alike.

use crate::contender::REFERENCE;
use crate::metric::Better;
use crate::report::{Measurement, Report};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What became of an earlier run's measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The earlier report's file.
    pub file: String,
    /// What differs in machine, settings and offloads, as `settings.mtu: 1500, now 9000`.
    pub differences: Vec<String>,
    /// Of every measurement that both runs have, in the present run's order.
    pub changes: Vec<Change>,
    /// Measurements of the earlier run that this one has not.
    pub gone: Vec<String>,
    /// Measurements of this run that the earlier one has not.
    pub new: Vec<String>,
}

const NAME_WIDTH: usize = 46;
const CELL_WIDTH: usize = 19;

impl Baseline {
    /// Prints it, beside `report`'s contenders.
    pub fn print(&self, report: &Report) {
        println!("compared with {}: ratio of medians, + better, - worse, ~ the spreads overlap", self.file);
        println!("  in brackets relative to {}", reference(report).unwrap_or_default());
        self.differences.iter().for_each(|difference| println!("  not the same: {difference}"));
        let names: Vec<&str> = report.contenders.iter().map(|contender| contender.name.as_str()).collect();
        println!("{:<NAME_WIDTH$}{}", "", cells(names.iter().map(|name| (*name).to_owned())));
        for work in self.works() {
            let row = names.iter().map(|name| self.find(work, name).map_or_else(|| "-".into(), Change::text));
            println!("  {:<1$}{2}", work.label(), NAME_WIDTH - 2, cells(row));
        }
        if !(self.gone.is_empty() && self.new.is_empty()) {
            let (gone, new) = (self.gone.len(), self.new.len());
            println!("  measured only then: {gone}, only now: {new}; the page lists them");
        }
    }

    /// The first change of each work and quantity.
    #[must_use]
    pub fn works(&self) -> Vec<&Change> {
        let mut works: Vec<&Change> = Vec::new();
        for change in &self.changes {
            if !works.iter().any(|other| change.is_same_work(other)) {
                works.push(change);
            }
        }
        works
    }

    /// The change of the same work and quantity of another contender.
    #[must_use]
    pub fn find(&self, work: &Change, contender: &str) -> Option<&Change> {
        self.changes.iter().find(|change| change.contender == contender && change.is_same_work(work))
    }
}

fn cells(row: impl Iterator<Item = String>) -> String {
    row.map(|cell| format!("{cell:>CELL_WIDTH$}")).collect()
}

/// One measurement in both runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The measurement's.
    pub group: String,
    /// The measurement's.
    pub workload: String,
    /// The measurement's.
    pub unit: String,
    /// The measurement's.
    pub contender: String,
    /// The earlier median.
    pub earlier: f64,
    /// The present median.
    pub now: f64,
    /// `now / earlier`; None where the earlier median is zero.
    pub ratio: Option<f64>,
    /// The same of the medians' ratios to the reference contender; None for that contender itself.
    pub relative: Option<f64>,
    /// What that means.
    pub verdict: Verdict,
}

/// Whether a change is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All samples are better than all of the earlier run.
    Better,
    /// All samples are worse than all of the earlier run.
    Worse,
    /// The spreads overlap: perhaps nothing changed.
    Overlap,
}

impl Verdict {
    /// A sign for tables.
    #[must_use]
    pub const fn sign(self) -> &'static str {
        match self {
            Verdict::Better => "+",
            Verdict::Worse => "-",
            Verdict::Overlap => "~",
        }
    }

    fn of(now: &Measurement, earlier: &Measurement) -> Verdict {
        let (above, below) = (now.min > earlier.max, now.max < earlier.min);
        match (now.better, above, below) {
            (Better::Higher, true, _) | (Better::Lower, _, true) => Verdict::Better,
            (Better::Higher, _, true) | (Better::Lower, true, _) => Verdict::Worse,
            _ => Verdict::Overlap,
        }
    }
}

impl Change {
    /// Whether it is about the same work and quantity, perhaps of another contender.
    #[must_use]
    pub fn is_same_work(&self, other: &Change) -> bool {
        (&self.group, &self.workload, &self.unit) == (&other.group, &other.workload, &other.unit)
    }

    /// The work and the quantity.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}, {}", self.workload, self.unit)
    }

    /// As `1.04x ~ (1.01x)`.
    #[must_use]
    pub fn text(&self) -> String {
        let ratio = self.ratio.map_or_else(|| "?".into(), |ratio| format!("{ratio:.2}x"));
        let relative = self.relative.map(|ratio| format!(" ({ratio:.2}x)"));
        format!("{ratio} {}{}", self.verdict.sign(), relative.unwrap_or_default())
    }
}

/// The contender that others are compared with: kernel VXLAN; in a run without it, the first.
#[must_use]
pub fn reference(report: &Report) -> Option<&str> {
    let names = || report.contenders.iter().map(|contender| contender.name.as_str());
    names().find(|name| *name == REFERENCE.name()).or_else(|| names().next())
}

/// Compares a run with an earlier one that was read from `file`.
#[must_use]
pub fn compare(now: &Report, earlier: &Report, file: &str) -> Baseline {
    let of = |measurement: &Measurement| {
        earlier.measurements.iter().find(|other| is_same(measurement, other, &measurement.contender))
    };
    let changes = now.measurements.iter().filter_map(|measurement| {
        let before = of(measurement)?;
        let ratio = quotient(measurement.median, before.median);
        let relative = || {
            let reference = reference(now).filter(|name| *name != measurement.contender)?;
            quotient(to_reference(now, measurement, reference)?, to_reference(earlier, before, reference)?)
        };
        Some(Change {
            group: measurement.group.clone(),
            workload: measurement.workload.clone(),
            unit: measurement.unit.clone(),
            contender: measurement.contender.clone(),
            earlier: before.median,
            now: measurement.median,
            ratio,
            relative: relative(),
            verdict: Verdict::of(measurement, before),
        })
    });
    let without = |these: &Report, those: &Report| {
        let is_there = |one: &Measurement| those.measurements.iter().any(|m| is_same(one, m, &one.contender));
        these.measurements.iter().filter(|one| !is_there(one)).map(label).collect()
    };
    Baseline {
        file: file.to_owned(),
        differences: differences(now, earlier),
        changes: changes.collect(),
        gone: without(earlier, now),
        new: without(now, earlier),
    }
}

/// Whether `other` is the same measurement as `one`, but of `contender`.
fn is_same(one: &Measurement, other: &Measurement, contender: &str) -> bool {
    (&other.workload, &other.unit) == (&one.workload, &one.unit) && other.contender == contender
}

fn to_reference(report: &Report, measurement: &Measurement, reference: &str) -> Option<f64> {
    let reference = report.measurements.iter().find(|other| is_same(measurement, other, reference))?;
    quotient(measurement.median, reference.median)
}

fn quotient(value: f64, by: f64) -> Option<f64> {
    (by > 0.0).then(|| value / by)
}

fn label(measurement: &Measurement) -> String {
    format!("{}: {}, {}", measurement.contender, measurement.workload, measurement.unit)
}

/// What is not the same in both, by its path in report.json. The load at the start never is.
fn differences(now: &Report, earlier: &Report) -> Vec<String> {
    let flat = |report: &Report| {
        let mut values = BTreeMap::new();
        for (name, value) in [
            ("machine", serde_json::to_value(&report.machine)),
            ("settings", serde_json::to_value(&report.settings)),
            ("offloads", serde_json::to_value(&report.offloads)),
        ] {
            flatten(name, &value.unwrap_or_default(), &mut values);
        }
        for contender in &report.contenders {
            let path = format!("contenders.{}", contender.name);
            flatten(&path, &serde_json::to_value(contender).unwrap_or_default(), &mut values);
        }
        values.retain(|path, _| path != "machine.load_at_start");
        values
    };
    let (now, earlier) = (flat(now), flat(earlier));
    let paths: std::collections::BTreeSet<&String> = now.keys().chain(earlier.keys()).collect();
    let text = |value: Option<&String>| value.map_or("not recorded", String::as_str).to_owned();
    paths
        .into_iter()
        .filter(|path| now.get(*path) != earlier.get(*path))
        .map(|path| format!("{path}: {}, now {}", text(earlier.get(path)), text(now.get(path))))
        .collect()
}

/// Every leaf of a JSON value by its path; a list of plain values is one leaf.
pub(crate) fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| flatten(&format!("{path}.{name}"), value, into));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(&format!("{path}.{i}"), item, into));
        }
        Value::String(text) => {
            into.insert(path.to_owned(), text.clone());
        }
        plain => {
            into.insert(path.to_owned(), plain.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::report::{ContenderInfo, Settings};
    use crate::workload::Workload;
    use crate::workload::bulk::{Bulk, Direction};
    use crate::workload::udp::Flood;

    /// Bulk TCP of two contenders, each with these samples.
    fn report(raw: [f64; 3], kernel: [f64; 3]) -> Report {
        let mut report = Report::new(Settings { mtu: 1500, ..Settings::default() });
        let bulk = Bulk { streams: 1, direction: Direction::Forth };
        for (name, samples) in [("raw", raw), (REFERENCE.name(), kernel)] {
            report.contenders.push(ContenderInfo {
                name: name.into(),
                about: String::new(),
                gear: None,
                measures: BTreeMap::default(),
            });
            samples.into_iter().for_each(|value| report.add(&bulk.label(), name, Metric::GBPS, value, None));
        }
        report
    }

    #[test]
    fn a_change_within_the_spreads_is_none() {
        let earlier = report([8.0, 9.0, 10.0], [4.0, 5.0, 6.0]);
        let now = report([10.5, 11.0, 12.0], [5.9, 6.0, 7.0]);
        let changes = compare(&now, &earlier, "earlier").changes;
        assert_eq!([changes[0].verdict, changes[1].verdict], [Verdict::Better, Verdict::Overlap]);
        assert_eq!(changes[0].ratio, Some(11.0 / 9.0));
        assert_eq!(changes[0].relative, Some((11.0 / 6.0) / (9.0 / 5.0)));
        assert_eq!(changes[1].relative, None);
        let back = compare(&earlier, &now, "now").changes;
        assert_eq!(back[0].verdict, Verdict::Worse);
        assert_eq!(back[0].text(), "0.82x - (0.98x)");
    }

    #[test]
    fn less_is_better_where_it_is() {
        let [mut earlier, mut now] = [(); 2].map(|()| report([1.0; 3], [1.0; 3]));
        earlier.add(&Flood.label(), "raw", Metric::LOSS, 2.0, None);
        now.add(&Flood.label(), "raw", Metric::LOSS, 1.0, None);
        let change = |now: &Report, earlier: &Report| compare(now, earlier, "").changes[2].verdict;
        assert_eq!([change(&now, &earlier), change(&earlier, &now)], [Verdict::Better, Verdict::Worse]);
    }

    #[test]
    fn what_differs_and_what_is_missing_is_named() {
        let mut earlier = report([1.0; 3], [1.0; 3]);
        let mut now = earlier.clone();
        (now.settings.mtu, now.machine.load_at_start) = (9000, 3.0);
        earlier.machine.versions.insert("qq".into(), "1".into());
        now.machine.versions.remove("qq");
        earlier.add(&Flood.label(), "raw", Metric::LOSS, 2.0, None);
        let baseline = compare(&now, &earlier, "");
        assert_eq!(
            baseline.differences,
            ["machine.versions.qq: 1, now not recorded", "settings.mtu: 1500, now 9000"]
        );
        assert_eq!(baseline.gone.len(), 1);
        assert!(baseline.gone[0].starts_with("raw: UDP"), "{:?}", baseline.gone);
        assert!(baseline.new.is_empty());
    }
}
