//! All samples of a run, and what must be known beside them: `report.json`.

use crate::machine::Machine;
use crate::metric::{Better, Label, Metric, X, median};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use uvn_rig::error::RigError;

/// Of the file's layout.
pub const VERSION: u32 = 1;

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`] of who wrote it.
    pub version: u32,
    /// Where it ran.
    pub machine: Machine,
    /// How it was asked to.
    pub settings: Settings,
    /// What ethtool says about a node's NIC.
    pub offloads: serde_json::Value,
    /// Who took part.
    pub contenders: Vec<ContenderInfo>,
    /// What was not measured.
    pub missing: Vec<Missing>,
    /// What was.
    pub measurements: Vec<Measurement>,
}

/// How a run was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes of an IP packet on the wire, where a group does not say otherwise.
    pub mtu: u32,
    /// How often each contender had its turn, where the time allowed it.
    pub rounds: usize,
    /// How long traffic flowed each time.
    pub seconds: f64,
    /// How many nodes, where a group does not say otherwise.
    pub nodes: usize,
    /// The short run.
    pub quick: bool,
}

/// Who took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContenderInfo {
    /// For tables.
    pub name: String,
    /// What it is and which cores it has.
    pub about: String,
    /// How it drives the NIC, and why so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gear: Option<String>,
    /// What it did about the traffic, in its own word, and the workloads in which it did so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, Vec<String>>,
}

impl ContenderInfo {
    /// How it worked, in lines.
    pub fn ways(&self) -> impl Iterator<Item = String> {
        let measures =
            self.measures.iter().map(|(measure, workloads)| format!("{measure}: {}", workloads.join("; ")));
        self.gear.clone().into_iter().chain(measures)
    }
}

/// What was not measured, or not to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Of whom.
    pub contender: String,
    /// What; None: nothing was.
    pub workload: Option<String>,
    /// The exact reason.
    pub why: String,
}

/// One metric of one workload on one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Heading.
    pub group: String,
    /// Name of the workload.
    pub workload: String,
    /// Of the metric; tells it apart from the workload's others.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// Where on the group's curve.
    pub x: Option<X>,
    /// Whose.
    pub contender: String,
    /// In the order measured.
    pub samples: Vec<Sample>,
    /// Of the samples, the noisy ones too; so are the next two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the measurement's unit.
    pub value: f64,
    /// Something else disturbed it.
    pub noisy: bool,
    /// What.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Report {
    /// The report in a file.
    ///
    /// # Errors
    /// It cannot be read, or is none of this version.
    pub fn read(path: &Path) -> Result<Report, RigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(RigError::io(format!("read {name}")))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| RigError::program(&name, error))?;
        if json["version"] != VERSION {
            let why = format!("its version is {}, this program knows {VERSION}", json["version"]);
            return Err(RigError::program(&name, why));
        }
        serde_json::from_value(json).map_err(|error| RigError::program(&name, error))
    }

    /// Without any sample yet.
    #[must_use]
    pub fn new(settings: Settings) -> Report {
        Report {
            version: VERSION,
            machine: Machine::this(),
            settings,
            offloads: serde_json::Value::Null,
            contenders: Vec::new(),
            missing: Vec::new(),
            measurements: Vec::new(),
        }
    }

    /// Adds one value; `disturbance` says why it is noisy.
    pub fn add(
        &mut self,
        label: &Label,
        contender: &str,
        metric: Metric,
        value: f64,
        disturbance: Option<String>,
    ) {
        let sample = Sample { value, noisy: disturbance.is_some(), why: disturbance };
        let same = |m: &&mut Measurement| {
            m.workload == label.name && m.unit == metric.unit && m.contender == contender
        };
        if let Some(measurement) = self.measurements.iter_mut().find(same) {
            measurement.add(sample);
            return;
        }
        let mut measurement = Measurement {
            group: label.group.to_owned(),
            workload: label.name.clone(),
            unit: metric.unit.to_owned(),
            better: metric.better,
            x: label.x.clone(),
            contender: contender.to_owned(),
            samples: Vec::new(),
            median: 0.0,
            min: 0.0,
            max: 0.0,
        };
        measurement.add(sample);
        self.measurements.push(measurement);
    }

    /// One measurement; None when it was not made.
    #[must_use]
    pub fn find(&self, workload: &str, unit: &str, contender: &str) -> Option<&Measurement> {
        let same = |m: &&Measurement| m.workload == workload && m.unit == unit && m.contender == contender;
        self.measurements.iter().find(same)
    }

    /// Whether a contender failed a workload.
    #[must_use]
    pub fn has_missed(&self, contender: &str, workload: &str) -> bool {
        let is_it = |one: &Missing| one.contender == contender && one.workload.as_deref() == Some(workload);
        self.missing.iter().any(is_it)
    }

    /// Notes what a contender did about the traffic of a workload.
    pub fn note_measure(&mut self, contender: &str, measure: &str, workload: &str) {
        let named = self.contenders.iter_mut().find(|info| info.name == contender);
        let Some(workloads) = named.map(|info| info.measures.entry(measure.to_owned()).or_default()) else {
            return;
        };
        if !workloads.iter().any(|name| name == workload) {
            workloads.push(workload.to_owned());
        }
    }

    /// Notes why something was not measured, once.
    pub fn miss(&mut self, contender: &str, workload: Option<String>, why: impl ToString) {
        let missing = Missing { contender: contender.to_owned(), workload, why: why.to_string() };
        if !self.missing.contains(&missing) {
            self.missing.push(missing);
        }
    }
}

impl Measurement {
    fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
        let values = || self.samples.iter().map(|sample| sample.value);
        (self.min, self.max) =
            values().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        self.median = median(values().collect()).unwrap_or_default();
    }

    /// How many samples something disturbed.
    #[must_use]
    pub fn noisy(&self) -> usize {
        self.samples.iter().filter(|sample| sample.noisy).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;
    use crate::workload::bulk::{Bulk, Direction};
    use crate::workload::udp::Flood;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn samples_are_told_apart_by_workload_contender_and_metric() {
        let mut report = Report::new(Settings::default());
        let bulk = Bulk { streams: 1, direction: Direction::Forth }.label();
        let noise = || Some("others".to_owned());
        for value in [1.0, 5.0, 3.0] {
            report.add(&bulk, "raw", Metric::GBPS, value, None);
            report.add(&bulk, "kernel", Metric::GBPS, 2.0 * value, noise().filter(|_| value > 4.0));
            report.add(&Flood.label(), "raw", Metric::LOSS, value, None);
        }
        let raw = report.find("TCP, 1 stream", "Gb/s", "raw").unwrap();
        assert_eq!((raw.median, raw.min, raw.max, raw.noisy()), (3.0, 1.0, 5.0, 0));
        let kernel = report.find("TCP, 1 stream", "Gb/s", "kernel").unwrap();
        assert_eq!((kernel.median, kernel.noisy()), (6.0, 1));
        assert_eq!(report.measurements.len(), 3);
        assert!(report.find("TCP, 1 stream", "% lost", "raw").is_none());
    }

    #[test]
    fn a_report_survives_json() {
        let mut report = Report::new(Settings { mtu: 1500, ..Settings::default() });
        report.add(&Flood.label(), "raw", Metric::LOSS, 0.5, Some("others".into()));
        report.miss("raw", None, "gone");
        report.miss("raw", None, "gone");
        assert_eq!(report.missing.len(), 1);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
