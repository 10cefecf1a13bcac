//! What uvn must reach against the others of the same run.

use crate::chart::short;
use crate::crowd;
use crate::metric::{Better, median};
use crate::mpi;
use crate::report::{Measurement, Report};
use Bound::{AtLeast, AtMost};

// Contenders, by how their names begin.
const RAW: &str = "raw";
const KERNEL: &str = "kernel VXLAN";
const SWITCH: &str = "Open vSwitch";
/// uvn as it comes: it chooses the gear.
const AUTO: &str = "uvn auto";
const ENGINE: &str = "uvn engine";

/// No other contender: the quantity is a ratio itself, or must be small.
const NONE: &str = "";

/// All of them.
pub const GOALS: &[Goal] = &[
    goal(AUTO, "28 ping-pongs of 8 B, messages/s", |m| many(m, "8 B"), KERNEL, AtLeast(1.15)).least(1.05),
    goal(AUTO, "28 ping-pongs of 8 B, messages/s", |m| many(m, "8 B"), RAW, AtLeast(0.9)),
    goal(AUTO, "28 ping-pongs of 4 KiB, messages/s", |m| many(m, "4 KiB"), KERNEL, AtLeast(1.5)).least(1.3),
    goal(AUTO, "28 ping-pongs of 4 KiB, messages/s", |m| many(m, "4 KiB"), RAW, AtLeast(0.9)),
    goal(AUTO, "one ping-pong of 8 B, p50", |m| one(m, "us p50"), KERNEL, AtMost(0.9)).least(0.95),
    goal(AUTO, "one ping-pong of 8 B, p50", |m| one(m, "us p50"), RAW, AtMost(1.05)),
    goal(AUTO, "one ping-pong of 8 B, p99", |m| one(m, "us p99"), KERNEL, AtMost(1.0)),
    goal(AUTO, "bulk TCP, any direction and streams", bulk, KERNEL, AtLeast(1.3)).least(1.0),
    goal(AUTO, "bulk TCP, any direction and streams", bulk, RAW, AtLeast(0.9)),
    goal(AUTO, "processor time per GB", |m| m.unit == "CPU s/GB", KERNEL, AtMost(1.0)),
    goal(AUTO, "processor time per million messages", |m| m.unit == "CPU s/M msgs", KERNEL, AtMost(1.0)),
    goal(AUTO, "MPI on 16 nodes, time of any pattern and size", mpi, KERNEL, AtMost(1.0)).by_round(),
    goal(AUTO, "MPI on 16 nodes, time of any pattern and size", mpi, RAW, AtMost(1.1)).by_round(),
    goal(
        AUTO,
        "p99 beside another user's flood, to beside computing",
        |m| m.unit == "x p99 alone",
        NONE,
        AtMost(2.0),
    ),
    goal(AUTO, "p50 among many networks, to alone", |m| among(m, Better::Lower), NONE, AtMost(1.1)),
    goal(AUTO, "rates among many networks, to alone", |m| among(m, Better::Higher), NONE, AtLeast(0.91)),
    goal(AUTO, "idle, % of a core", |m| m.unit == "% of a core", NONE, AtMost(0.1)),
    goal(AUTO, "UDP 64 B, packets received", flood, SWITCH, AtLeast(3.0)),
    goal(AUTO, "bulk TCP, any direction and streams", bulk, SWITCH, AtLeast(3.0)),
    goal(ENGINE, "UDP 64 B, packets received", flood, KERNEL, AtLeast(2.0)),
    goal(ENGINE, "UDP 64 B, loss at the same rate", paced_loss, KERNEL, AtMost(1.0)),
    goal(ENGINE, "bulk TCP, any direction and streams", bulk, KERNEL, AtLeast(1.2)),
    goal(ENGINE, "UDP 64 B, packets received", flood, SWITCH, AtLeast(3.0)),
    goal(ENGINE, "bulk TCP, any direction and streams", bulk, SWITCH, AtLeast(3.0)),
];

/// A ratio to reach.
pub struct Goal {
    /// The contender that must reach it.
    pub who: &'static str,
    /// The work and the quantity.
    pub what: &'static str,
    /// Which measurements it is about. If there are several, the worst counts.
    selects: fn(&Measurement) -> bool,
    /// The contender to compare with; empty: none, and the quantity itself counts.
    against: &'static str,
    /// How much of that.
    pub bound: Bound,
    /// What is good enough for a release.
    least: Option<f64>,
    /// It is about so many places that chance alone puts some medians beyond it: missed only where every round says so.
    by_round: bool,
}

/// A limit of a ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// For what is better high.
    AtLeast(f64),
    /// For what is better low.
    AtMost(f64),
}

/// What became of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is reached.
    Met,
    /// Not it, but what is good enough for a release.
    Nearly,
    /// Medians are beyond it, but nowhere all rounds: neither shown.
    Even,
    /// None of these.
    Missed,
}

/// A goal in a run.
pub struct Outcome {
    /// The goal.
    pub goal: &'static Goal,
    /// The worst ratio; None where one of the two was not measured.
    pub ratio: Option<f64>,
    /// The medians behind it.
    medians: Option<(f64, f64)>,
    /// The work where it was worst, if the goal is about several.
    pub place: Option<String>,
    /// What the rounds say of a goal that goes by them.
    rounds: Option<Rounds>,
}

/// Where a goal is missed in every round. Each round's ratio is that of values measured one after the other. If there were
/// no difference, a round would be on either side: with nine rounds, all are on the bad one by chance in one place of 512.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rounds {
    /// The least number of rounds that a place has.
    pub rounds: usize,
    /// How many places there are.
    pub places: usize,
    /// Those where every round is beyond the goal, with the median of the rounds' ratios.
    pub beyond: Vec<String>,
}

const fn goal(
    who: &'static str,
    what: &'static str,
    selects: fn(&Measurement) -> bool,
    against: &'static str,
    bound: Bound,
) -> Goal {
    Goal { who, what, selects, against, bound, least: None, by_round: false }
}

fn many(measurement: &Measurement, size: &str) -> bool {
    measurement.unit == "k msgs/s" && measurement.workload == format!("28 ping-pongs, {size}")
}

fn one(measurement: &Measurement, unit: &str) -> bool {
    measurement.unit == unit && measurement.workload == "1 ping-pong, 8 B"
}

fn bulk(measurement: &Measurement) -> bool {
    measurement.unit == "Gb/s" && measurement.group == "bulk"
}

fn flood(measurement: &Measurement) -> bool {
    measurement.unit == "kpps received" && measurement.group == "UDP"
}

fn paced_loss(measurement: &Measurement) -> bool {
    let at_full_speed = measurement.workload.ends_with("at full speed");
    measurement.unit == "% lost" && measurement.group == "UDP" && !at_full_speed
}

fn among(measurement: &Measurement, better: Better) -> bool {
    measurement.unit == crowd::UNIT && measurement.better == better
}

fn mpi(measurement: &Measurement) -> bool {
    measurement.unit == "us p50" && measurement.group == mpi::SIXTEEN_NODES
}

impl Goal {
    const fn least(mut self, ratio: f64) -> Goal {
        self.least = Some(ratio);
        self
    }

    const fn by_round(mut self) -> Goal {
        self.by_round = true;
        self
    }

    /// The limits, as `≥ 1.15 (1.05) × raw`.
    #[must_use]
    pub fn limits(&self) -> String {
        let sign = if matches!(self.bound, AtLeast(_)) { '≥' } else { '≤' };
        let (AtLeast(limit) | AtMost(limit)) = self.bound;
        let least = self.least.map(|least| format!(" ({least})"));
        let against = if self.against == NONE { String::new() } else { format!(" × {}", self.against) };
        format!("{sign} {limit}{}{against}", least.unwrap_or_default())
    }

    fn verdict(&self, ratio: f64) -> Verdict {
        let holds = |limit: f64| match self.bound {
            AtLeast(_) => ratio >= limit,
            AtMost(_) => ratio <= limit,
        };
        let (AtLeast(limit) | AtMost(limit)) = self.bound;
        match (holds(limit), self.least.is_some_and(holds)) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::Nearly,
            (false, false) => Verdict::Missed,
        }
    }

    fn is_worse(&self, one: f64, other: f64) -> bool {
        match self.bound {
            AtLeast(_) => one < other,
            AtMost(_) => one > other,
        }
    }

    fn outcome(&'static self, report: &Report) -> Outcome {
        let mut outcome = Outcome { goal: self, ratio: None, medians: None, place: None, rounds: None };
        // On a site's nodes it is `uvn`, as the site runs it.
        let is_who = |name: &str| name.starts_with(self.who) || (self.who == AUTO && name == "uvn");
        let own = |one: &&Measurement| is_who(&one.contender) && (self.selects)(one);
        let against = report.contenders.iter().find(|contender| contender.name.starts_with(self.against));
        let several = report.measurements.iter().filter(own).count() > 1;
        for own in report.measurements.iter().filter(own) {
            let other = against.and_then(|contender| report.find(&own.workload, &own.unit, &contender.name));
            if let Some(other) = other.filter(|_| self.by_round) {
                outcome.rounds.get_or_insert_default().add(self, own, other);
            }
            let other = if self.against == NONE { Some(1.0) } else { other.map(|other| other.median) };
            let Some(other) = other else { continue };
            let ratio = quotient(own.median, other);
            if outcome.ratio.is_none_or(|worst| self.is_worse(ratio, worst)) {
                outcome.ratio = Some(ratio);
                outcome.medians = Some((own.median, other)).filter(|_| self.against != NONE);
                outcome.place = several.then(|| format!("{}, {}", own.workload, own.unit));
            }
        }
        outcome
    }
}

impl Rounds {
    fn add(&mut self, goal: &Goal, own: &Measurement, other: &Measurement) {
        let pairs = own.samples.iter().zip(&other.samples);
        let ratios: Vec<f64> = pairs.map(|(own, other)| quotient(own.value, other.value)).collect();
        self.rounds = if self.places == 0 { ratios.len() } else { self.rounds.min(ratios.len()) };
        self.places += 1;
        if ratios.iter().all(|&ratio| goal.verdict(ratio) == Verdict::Missed) {
            let ratio = median(ratios).unwrap_or_default();
            self.beyond.push(format!("{} {ratio:.2}", own.workload));
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let Rounds { rounds, places, beyond } = self;
        let (count, which) = (beyond.len(), beyond.join(", "));
        let colon = if count == 0 { "" } else { ": " };
        format!("beyond the goal in each of {rounds} rounds: {count} of {places}{colon}{which}")
    }
}

/// That of two zeros, such as losses, is 1.
fn quotient(own: f64, other: f64) -> f64 {
    match (own > 0.0, other > 0.0) {
        (false, false) => 1.0,
        (true, false) => f64::INFINITY,
        _ => own / other,
    }
}

impl Verdict {
    /// For people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Nearly => "nearly",
            Verdict::Even => "even",
            Verdict::Missed => "missed",
        }
    }
}

impl Outcome {
    /// Whether the goal is reached; None where it was not measured.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        let verdict = self.goal.verdict(self.ratio?);
        let shown = self.rounds.as_ref().is_none_or(|rounds| !rounds.beyond.is_empty());
        Some(if verdict == Verdict::Missed && !shown { Verdict::Even } else { verdict })
    }

    /// Where it was worst, and what the rounds say.
    #[must_use]
    pub fn places(&self) -> String {
        let rounds = self.rounds.as_ref().map(Rounds::text);
        self.place.iter().cloned().chain(rounds).collect::<Vec<_>>().join("; ")
    }

    /// The medians behind the ratio, as `7.91 : 9.2`.
    #[must_use]
    pub fn medians(&self) -> String {
        let text = |(own, other): (f64, f64)| format!("{} : {}", short(own), short(other));
        self.medians.map(text).unwrap_or_default()
    }
}

/// What became of every goal.
#[must_use]
pub fn outcomes(report: &Report) -> Vec<Outcome> {
    GOALS.iter().map(|goal| goal.outcome(report)).collect()
}

/// Prints what became of every goal that was measured.
pub fn print(report: &Report) {
    let outcomes = outcomes(report);
    let measured = || outcomes.iter().filter_map(|outcome| Some((outcome, outcome.ratio?)));
    println!("goals: {} of {} measured", measured().count(), outcomes.len());
    for (outcome, ratio) in measured() {
        let Goal { who, what, .. } = outcome.goal;
        let (word, limits) = (outcome.verdict().map_or("", Verdict::word), outcome.goal.limits());
        let place =
            outcome.place.as_ref().map(|_| format!("; worst: {}", outcome.places())).unwrap_or_default();
        println!("  {word:<6}  {who}, {what}: {ratio:.2}, goal {limits}{place}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Label;
    use crate::metric::Metric;
    use crate::report::{ContenderInfo, Settings};
    use crate::workload::Workload;
    use crate::workload::bulk::{Bulk, Direction};
    use std::collections::BTreeMap;

    #[test]
    fn the_worst_direction_decides() {
        let mut report = Report::new(Settings::default());
        for name in [KERNEL, AUTO] {
            report.contenders.push(ContenderInfo {
                name: name.into(),
                about: String::new(),
                gear: None,
                measures: BTreeMap::default(),
            });
        }
        for (direction, kernel, own) in [(Direction::Forth, 4.0, 8.0), (Direction::Back, 4.0, 5.0)] {
            let bulk = Bulk { streams: 1, direction };
            report.add(&bulk.label(), KERNEL, Metric::GBPS, kernel, None);
            report.add(&bulk.label(), AUTO, Metric::GBPS, own, None);
        }
        let outcomes = outcomes(&report);
        let measured: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.ratio.is_some()).collect();
        assert_eq!(measured.len(), 1);
        assert_eq!(measured[0].ratio, Some(1.25));
        assert_eq!(measured[0].verdict(), Some(Verdict::Nearly));
        assert_eq!(measured[0].place.as_deref(), Some("TCP, 1 stream, back, Gb/s"));
        assert_eq!(measured[0].medians(), "5 : 4");
        assert_eq!(measured[0].goal.limits(), "≥ 1.3 (1) × kernel VXLAN");
    }

    #[test]
    fn a_pattern_is_slower_if_every_round_says_so() {
        let judged = |own: [f64; 3]| {
            let mut report = Report::new(Settings::default());
            for name in [KERNEL, AUTO] {
                let about = String::new();
                report.contenders.push(ContenderInfo {
                    name: name.into(),
                    about,
                    gear: None,
                    measures: BTreeMap::new(),
                });
            }
            // The machine is slower in the second round, for both.
            for (own, kernel) in own.into_iter().zip([10.0, 20.0, 11.0]) {
                for (pattern, own) in [("pairs", own), ("rate", kernel)] {
                    let label = Label { group: mpi::SIXTEEN_NODES, name: pattern.into(), x: None };
                    report.add(&label, KERNEL, Metric::P50, kernel, None);
                    report.add(&label, AUTO, Metric::P50, own, None);
                }
            }
            let outcome = outcomes(&report).into_iter().find(|outcome| outcome.ratio.is_some()).unwrap();
            (outcome.verdict().unwrap(), outcome.places())
        };
        let places = |rest| format!("pairs, us p50; beyond the goal in each of 3 rounds: {rest}");
        assert_eq!(judged([11.0, 22.0, 12.1]), (Verdict::Missed, places("1 of 2: pairs 1.10")));
        assert_eq!(judged([12.0, 19.0, 12.0]), (Verdict::Even, places("0 of 2")));
        // Slower in one round of three: the median is not.
        assert_eq!(judged([10.0, 19.0, 10.5]).0, Verdict::Met);
    }

    #[test]
    fn limits_hold_in_their_direction() {
        let latency = goal(AUTO, "", |_| true, KERNEL, AtMost(0.9)).least(0.95);
        assert_eq!(
            [0.9, 0.93, 0.96].map(|ratio| latency.verdict(ratio)),
            [Verdict::Met, Verdict::Nearly, Verdict::Missed]
        );
        assert_eq!([quotient(0.0, 0.0), quotient(1.0, 0.0), quotient(1.0, 2.0)], [1.0, f64::INFINITY, 0.5]);
        assert!(latency.is_worse(1.0, 0.9));
        assert!(goal(AUTO, "", |_| true, RAW, AtLeast(0.9)).is_worse(0.8, 0.9));
    }
}
