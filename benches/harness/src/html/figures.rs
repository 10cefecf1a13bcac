//! The diagrams of the page, and the numbers behind them.

use crate::baseline::reference;
use crate::chart::{self, Axes, Bar, Curve, Mark, short};
use crate::metric::{Better, Metric};
use crate::report::{Measurement, Report};
use maud::{Markup, html};

/// What one diagram shows: the same quantity of the same work, of all contenders.
pub struct Panel<'a> {
    /// The heading.
    pub group: &'a str,
    workload: String,
    unit: &'a str,
    better: Better,
    axis: Option<&'a str>,
    measurements: Vec<&'a Measurement>,
}

impl<'a> Panel<'a> {
    /// The places on the axis; one if there is none.
    fn places(&self) -> usize {
        let mut places: Vec<f64> =
            self.measurements.iter().filter_map(|m| Some(m.x.as_ref()?.value)).collect();
        places.sort_unstable_by(f64::total_cmp);
        places.dedup();
        places.len().max(1)
    }

    fn of(&self, contender: &str) -> impl Iterator<Item = &'a Measurement> {
        self.measurements.iter().copied().filter(move |measurement| measurement.contender == contender)
    }

    /// The reference contender's median at the same place.
    fn reference(&self, report: &Report, place: &Measurement) -> Option<f64> {
        let name = reference(report).filter(|_| Metric::has_ratio(self.unit))?;
        let reference =
            self.measurements.iter().find(|m| m.contender == name && m.workload == place.workload)?;
        (reference.median > 0.0).then_some(reference.median)
    }

    fn title(&self) -> String {
        let alone = self.measurements.first().filter(|_| self.places() == 1);
        format!("{}, {}", alone.map_or(&self.workload, |one| &one.workload), self.unit)
    }

    fn direction(&self) -> &'static str {
        match self.better {
            Better::Higher => "more is better",
            Better::Lower => "less is better",
        }
    }
}

/// The report's diagrams, groups together and in them the units, in the order of their first measurements.
pub fn panels(report: &Report) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel> = Vec::new();
    for one in &report.measurements {
        let (axis, workload) = (one.x.as_ref().map(|x| x.axis.as_str()), stem(one));
        let key = (one.group.as_str(), one.unit.as_str(), axis);
        let same =
            |panel: &&mut Panel| (panel.group, panel.unit, panel.axis) == key && panel.workload == workload;
        match panels.iter_mut().find(same) {
            Some(panel) => panel.measurements.push(one),
            None => panels.push(Panel {
                group: key.0,
                workload,
                unit: key.1,
                better: one.better,
                axis,
                measurements: vec![one],
            }),
        }
    }
    let order: Vec<(&str, &str)> = panels.iter().map(|panel| (panel.group, panel.unit)).collect();
    panels.sort_by_key(|panel| {
        let group = order.iter().position(|(group, _)| *group == panel.group);
        (group, order.iter().position(|place| *place == (panel.group, panel.unit)))
    });
    panels
}

/// What the points of a curve have in common: their names without the part that says where they lie, `4 KiB` in
/// `TCP ping-pong of 4 KiB`.
fn stem(one: &Measurement) -> String {
    let name = one.workload.as_str();
    let Some(x) = &one.x else { return name.to_owned() };
    let place = chart::quantity(x.value, &x.axis);
    let is_apart = |at: &usize| {
        let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !letter(name[..*at].chars().next_back()) && !letter(name[*at + place.len()..].chars().next())
    };
    let Some(at) = name.rmatch_indices(&place).map(|(at, _)| at).find(is_apart) else {
        return name.to_owned();
    };
    let before = name[..at].trim_end_matches([' ', ',']).trim_end_matches(" of");
    // Its unit goes, too.
    let after = &name[at + place.len()..];
    let after = after.find([',', ':']).map_or("", |end| &after[end..]);
    if before.is_empty() {
        after.trim_start_matches([' ', ',', ':']).to_owned()
    } else {
        format!("{before}{after}")
    }
}

/// The diagrams of a panel: bars, or curves and those of the ratios.
pub fn draw(report: &Report, panel: &Panel, colours: &[usize]) -> Markup {
    match panel.axis {
        Some(axis) if panel.places() > 1 => html! {
            (figure(panel, "", growth(report, panel, colours, axis, None)))
            @if panel.measurements.iter().any(|one| panel.reference(report, one).is_some()) {
                (figure(panel, " ratio", growth(report, panel, colours, axis, reference(report))))
            }
        },
        _ => figure(panel, "", comparison(report, panel, colours)),
    }
}

fn figure(panel: &Panel, suffix: &str, drawing: Markup) -> Markup {
    html! {
        figure {
            figcaption { strong { (panel.title()) (suffix) } " " span.direction { (panel.direction()) } }
            (drawing)
        }
    }
}

/// A bar per contender, also for those without a value.
fn comparison(report: &Report, panel: &Panel, colours: &[usize]) -> Markup {
    let bars: Vec<Bar> = report
        .contenders
        .iter()
        .zip(colours)
        .filter_map(|(contender, &colour)| {
            let measured = panel.of(&contender.name).next();
            let why = || {
                report.missing.iter().find(|m| {
                    m.contender == contender.name
                        && m.workload.as_deref().is_none_or(|name| name == panel.workload)
                })
            };
            let mark = match measured {
                Some(one) => Ok(mark(report, panel, one)),
                None => Err(why()?.why.clone()),
            };
            let ratio = measured.and_then(|one| Some(one.median / panel.reference(report, one)?));
            let text = measured.map_or_else(String::new, |one| value(one.median, ratio));
            Some(Bar { name: &contender.name, colour, mark, text })
        })
        .collect();
    chart::bars(&panel.title(), &bars)
}

/// A curve per contender; of ratios where `reference` is given.
fn growth(report: &Report, panel: &Panel, colours: &[usize], axis: &str, reference: Option<&str>) -> Markup {
    let curve = |name: &str, colour: usize| {
        let mut marks: Vec<Mark> = panel
            .of(name)
            .filter_map(|one| {
                let mark = mark(report, panel, one);
                if reference.is_none() {
                    Some(mark)
                } else {
                    Some(divided(mark, panel.reference(report, one)?))
                }
            })
            .collect();
        marks.sort_by(|a, b| a.x.total_cmp(&b.x));
        Curve { colour, marks }
    };
    let curves: Vec<Curve> = report
        .contenders
        .iter()
        .zip(colours)
        .map(|(contender, &colour)| curve(&contender.name, colour))
        .filter(|curve| !curve.marks.is_empty())
        .collect();
    let label = reference.map_or_else(|| panel.unit.to_owned(), |name| format!("ratio to {name}"));
    let axes = Axes { x: axis, y: &label, log: true, line: reference.map(|_| 1.0) };
    chart::curves(&format!("{}: {label}", panel.title()), &axes, &curves)
}

fn mark(report: &Report, panel: &Panel, one: &Measurement) -> Mark {
    let ratio = panel.reference(report, one).map(|reference| one.median / reference);
    let mut title = format!(
        "{}, {}: {} {}, {} to {}, {} samples",
        one.contender,
        one.workload,
        value(one.median, ratio),
        one.unit,
        short(one.min),
        short(one.max),
        one.samples.len(),
    );
    for why in one.samples.iter().filter_map(|sample| sample.why.as_ref()) {
        title += &format!("\nnoisy: {why}");
    }
    Mark {
        x: one.x.as_ref().map_or(0.0, |x| x.value),
        median: one.median,
        spread: (one.min, one.max),
        samples: one.samples.iter().map(|sample| (sample.value, sample.noisy)).collect(),
        title,
    }
}

fn divided(mut mark: Mark, by: f64) -> Mark {
    mark.median /= by;
    mark.spread = (mark.spread.0 / by, mark.spread.1 / by);
    mark
}

fn value(median: f64, ratio: Option<f64>) -> String {
    let ratio = ratio.map(|ratio| format!(" ({ratio:.2}×)"));
    format!("{}{}", short(median), ratio.unwrap_or_default())
}

/// A row per work, with a cell per contender.
pub fn rows(report: &Report, panel: &Panel, contenders: &[&str]) -> Markup {
    let mut names = Vec::new();
    for one in &panel.measurements {
        if !names.contains(&one.workload.as_str()) {
            names.push(&one.workload);
        }
    }
    html! {
        @for name in names {
            tr {
                th { (name) ", " (panel.unit) }
                @for contender in contenders {
                    td.number { @for one in panel.of(contender).filter(|one| one.workload == name) { (cell(report, panel, one)) } }
                }
            }
        }
    }
}

fn cell(report: &Report, panel: &Panel, one: &Measurement) -> Markup {
    let ratio = panel.reference(report, one).map(|reference| one.median / reference);
    html! {
        (value(one.median, ratio))
        small {
            (short(one.min)) ".." (short(one.max))
            @if one.noisy() > 0 { ", " (one.noisy()) " of " (one.samples.len()) " noisy" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::X;

    #[test]
    fn points_of_a_curve_have_a_name_in_common() {
        let stem = |workload: &str, axis: &str, value: f64| {
            let x = Some(X { axis: axis.into(), value });
            stem(&Measurement {
                group: String::new(),
                workload: workload.into(),
                unit: String::new(),
                better: Better::Lower,
                x,
                contender: String::new(),
                samples: Vec::new(),
                median: 0.0,
                min: 0.0,
                max: 0.0,
            })
        };
        assert_eq!(stem("TCP ping-pong of 4 KiB", "bytes of a message", 4096.0), "TCP ping-pong");
        assert_eq!(stem("28 ping-pongs, 8 B, MTU 9000", "bytes", 8.0), "28 ping-pongs, MTU 9000");
        assert_eq!(stem("10 networks: one ping-pong", "networks", 10.0), "one ping-pong");
        assert_eq!(stem("1 ping-pong", "networks", 10.0), "1 ping-pong");
    }
}
