//! A report as a table for the terminal.

use crate::metric::Metric;
use crate::report::{Measurement, Report};

const NAME_WIDTH: usize = 58;
const CELL_WIDTH: usize = 18;

/// Prints medians with their ratio to the `reference` contender's, and below each the least and the greatest value.
pub fn print(report: &Report, reference: &str) {
    let (mut group, mut contenders) = ("", Vec::new());
    for row in rows(report) {
        if row.group != group {
            group = &row.group;
            contenders = contenders_of(report, group);
            let header: String = contenders.iter().map(|name| format!("{name:>CELL_WIDTH$}")).collect();
            println!("{:<NAME_WIDTH$}{header}", format!("{group}: median (x {reference})"));
        }
        print_row(report, &contenders, row, reference);
    }
    print_remarks(report);
}

/// Those who took part in a group.
#[must_use]
pub fn contenders_of<'a>(report: &'a Report, group: &str) -> Vec<&'a str> {
    let took_part =
        |name: &&str| report.measurements.iter().any(|m| m.group == group && m.contender == *name);
    report.contenders.iter().map(|contender| contender.name.as_str()).filter(took_part).collect()
}

/// The first measurement of each workload and metric, in the order measured.
fn rows(report: &Report) -> Vec<&Measurement> {
    let mut rows: Vec<&Measurement> = Vec::new();
    for measurement in &report.measurements {
        if !rows.iter().any(|row| row.workload == measurement.workload && row.unit == measurement.unit) {
            rows.push(measurement);
        }
    }
    rows
}

fn print_row(report: &Report, contenders: &[&str], row: &Measurement, reference: &str) {
    let find = |contender: &str| report.find(&row.workload, &row.unit, contender);
    let reference = find(reference).map(|measurement| measurement.median);
    let (mut medians, mut spreads) = (String::new(), String::new());
    for contender in contenders {
        let (median, spread) = find(contender).map_or_else(
            || ("-".to_owned(), String::new()),
            |m| {
                let mark = if m.noisy() > 0 { "!" } else { " " };
                let ratio = ratio(&m.unit, m.median, reference);
                let spread = format!("{}..{} ", short(m.min), short(m.max));
                (format!("{}{ratio}{mark}", short(m.median)), spread)
            },
        );
        medians += &format!("{median:>CELL_WIDTH$}");
        spreads += &format!("{spread:>CELL_WIDTH$}");
    }
    println!("  {:<1$}{medians}", format!("{}, {}", row.workload, row.unit), NAME_WIDTH - 2);
    // A curve's spread is in the file.
    if row.x.is_none() {
        println!("{:<NAME_WIDTH$}{spreads}", "");
    }
}

fn print_remarks(report: &Report) {
    let (noisy, all) =
        report.measurements.iter().fold((0, 0), |(noisy, all), m| (noisy + m.noisy(), all + m.samples.len()));
    if noisy > 0 {
        println!("! {noisy} of {all} samples were disturbed; report.json says by what");
    }
    for missing in &report.missing {
        let workload = missing.workload.as_deref().unwrap_or("all");
        println!("not measured: {}, {workload}: {}", missing.contender, missing.why);
    }
}

/// Three significant digits.
#[must_use]
pub fn short(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn ratio(unit: &str, value: f64, reference: Option<f64>) -> String {
    match reference {
        Some(reference) if reference > 0.0 && Metric::has_ratio(unit) => {
            format!(" ({:.2}x)", value / reference)
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([0.5, 9.996, 12.34, 99.96, 123.4].map(short), ["0.50", "10.0", "12.3", "100", "123"]);
    }

    #[test]
    fn losses_have_no_ratio() {
        assert_eq!(ratio("Gb/s", 3.0, Some(2.0)), " (1.50x)");
        assert_eq!(ratio("Gb/s", 3.0, None), "");
        assert_eq!(ratio("% lost", 3.0, Some(2.0)), "");
    }
}
