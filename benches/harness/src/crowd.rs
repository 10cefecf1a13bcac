//! What many networks on a node cost: the same traffic on one network, alone and among others.

use crate::metric::{Label, Metric, X};
use crate::report::{Measurement, Report};

/// Networks on each node; traffic is on the first.
pub const NETWORKS: [usize; 4] = [1, 10, 200, 1000];

const GROUP: &str = "many networks";
const RELATIVE: &str = "many networks, relative to one";
/// Of that group.
pub const UNIT: &str = "x one network";
/// Quantities whose ratio to that of one network is worth a line.
const RELATED: [&str; 3] = ["Gb/s", "us p50", "k msgs/s"];

/// The label of what is measured on nodes with so many networks.
#[must_use]
pub fn label(label: &Label, networks: usize) -> Label {
    labelled(GROUP, &label.name, networks)
}

fn labelled(group: &'static str, workload: &str, networks: usize) -> Label {
    let x = X { axis: "networks on each node".to_owned(), value: networks as f64 };
    Label { group, name: name(workload, networks), x: Some(x) }
}

/// The name of a workload on nodes with so many networks.
#[must_use]
pub fn name(workload: &str, networks: usize) -> String {
    format!("{workload}, {networks} network{}", if networks == 1 { "" } else { "s" })
}

/// Adds the ratio of what was measured among other networks to the same alone, round by round.
pub fn relate(report: &mut Report) {
    let ours = |m: &&Measurement| m.group == GROUP && RELATED.contains(&m.unit.as_str());
    let several: Vec<Measurement> = report.measurements.iter().filter(ours).cloned().collect();
    for measured in several {
        let Some((workload, _)) = measured.workload.rsplit_once(", ") else { continue };
        let networks = measured.x.as_ref().map_or(1.0, |x| x.value) as usize;
        let alone = report.find(&name(workload, 1), &measured.unit, &measured.contender);
        let Some(alone) = alone.filter(|_| networks > 1).cloned() else { continue };
        let label = labelled(RELATIVE, &format!("{workload}, {}", measured.unit), networks);
        let metric = Metric { unit: UNIT, better: measured.better };
        for (among, alone) in measured.samples.into_iter().zip(alone.samples) {
            if alone.value > 0.0 {
                let why = among.why.or(alone.why);
                report.add(&label, &measured.contender, metric, among.value / alone.value, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Settings;
    use crate::workload::Workload;
    use crate::workload::udp::Flood;

    #[test]
    fn rounds_are_related_one_by_one() {
        let mut report = Report::new(Settings::default());
        for (networks, values) in [(1, [4.0, 0.0, 8.0]), (200, [6.0, 1.0, 4.0])] {
            let label = label(&Flood.label(), networks);
            for value in values {
                report.add(&label, "raw", Metric::GBPS, value, Some("others".into()).filter(|_| value > 7.0));
                report.add(&label, "raw", Metric::LOSS, value, None);
            }
        }
        relate(&mut report);
        assert_eq!(report.measurements.len(), 5);
        let name = name(&format!("{}, Gb/s", Flood.name()), 200);
        let related = report.find(&name, UNIT, "raw").unwrap();
        let values: Vec<(f64, bool)> = related.samples.iter().map(|s| (s.value, s.noisy)).collect();
        assert_eq!(values, [(1.5, false), (0.5, true)]);
        assert_eq!(related.x.as_ref().unwrap().value, 200.0);
    }
}
