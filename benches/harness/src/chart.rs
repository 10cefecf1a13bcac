//! Diagrams as SVG: [`bars`] where contenders are compared at one point, [`curves`] where something grows.
//!
//! Colours are the style sheet's: an element of class `c3` has the fourth contender's. Every mark carries its numbers as
//! a tooltip (`<title>`).

use crate::table;
use maud::{Markup, html};

/// Units of the drawing are CSS pixels at its natural size.
const WIDTH: f64 = 440.0;
/// Of a row of bars.
const ROW: f64 = 30.0;
/// Where the bars begin, and where they end; numbers stand to their right.
const BARS: (f64, f64) = (138.0, 340.0);
/// Of curves: left, right, top, bottom of the area in which they run.
const AREA: (f64, f64, f64, f64) = (56.0, 428.0, 10.0, 214.0);
/// What a label below a curve needs.
const LABEL: f64 = 48.0;
/// The longest name that fits in front of a bar.
const LONGEST: usize = 18;

/// A value with its spread.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// Where on the horizontal axis; unused by bars.
    pub x: f64,
    /// The median.
    pub median: f64,
    /// The least and the greatest sample.
    pub spread: (f64, f64),
    /// Every sample, and whether it was noisy.
    pub samples: Vec<(f64, bool)>,
    /// The tooltip.
    pub title: String,
}

impl Mark {
    /// Whether at least half of its samples were noisy.
    fn is_doubtful(&self) -> bool {
        !self.samples.is_empty()
            && 2 * self.samples.iter().filter(|(_, noisy)| *noisy).count() >= self.samples.len()
    }
}

/// One contender's bar.
pub struct Bar<'a> {
    /// Its name.
    pub name: &'a str,
    /// The index of its colour.
    pub colour: usize,
    /// Its value, or the reason why there is none.
    pub mark: Result<Mark, String>,
    /// What is written behind the bar.
    pub text: String,
}

/// One contender's curve.
pub struct Curve {
    /// The index of its colour.
    pub colour: usize,
    /// By rising `x`.
    pub marks: Vec<Mark>,
}

/// What the axes of [`curves`] mean.
pub struct Axes<'a> {
    /// What grows to the right.
    pub x: &'a str,
    /// What grows upwards.
    pub y: &'a str,
    /// Whether upwards is in powers; otherwise it begins at zero.
    pub log: bool,
    /// A line to compare with.
    pub line: Option<f64>,
}

/// Horizontal bars from zero, with whiskers from least to greatest and a dot per sample, hollow if it was noisy.
#[must_use]
pub fn bars(label: &str, rows: &[Bar]) -> Markup {
    let marks = || rows.iter().filter_map(|row| row.mark.as_ref().ok());
    let top = marks().flat_map(|mark| [mark.median, mark.spread.1]).fold(0.0, f64::max);
    let ticks = steps(top);
    let end = ticks.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let x = |value: f64| BARS.0 + (BARS.1 - BARS.0) * (value / end).clamp(0.0, 1.0);
    let bottom = 4.0 + ROW * rows.len() as f64;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", bottom + 20.0)) role="img" aria-label=(label) {
            @for tick in &ticks {
                line.grid x1=(n(x(*tick))) x2=(n(x(*tick))) y1="0" y2=(n(bottom)) {}
                text.tick x=(n(x(*tick))) y=(n(bottom + 14.0)) text-anchor="middle" { (short(*tick)) }
            }
            @for (index, row) in rows.iter().enumerate() {
                (bar(row, 4.0 + ROW * index as f64, &x))
            }
        }
    }
}

fn bar(row: &Bar, y: f64, x: &dyn Fn(f64) -> f64) -> Markup {
    let middle = y + ROW / 2.0 - 2.0;
    let name: String = if row.name.chars().count() > LONGEST {
        row.name.chars().take(LONGEST - 1).chain(['…']).collect()
    } else {
        row.name.to_owned()
    };
    html! {
        g class=(format!("c{}", row.colour)) {
            text.name x=(n(BARS.0 - 8.0)) y=(n(middle + 4.0)) text-anchor="end" { title { (row.name) } (name) }
            @match &row.mark {
                Ok(mark) => {
                    title { (mark.title) }
                    rect.bar x=(n(BARS.0)) y=(n(y + 3.0)) height=(n(ROW - 10.0)) width=(n(x(mark.median) - BARS.0)) rx="2" {}
                    path.whisker d=(format!("M{0} {2}V{3}M{1} {2}V{3}M{0} {4}H{1}",
                        n(x(mark.spread.0)), n(x(mark.spread.1)), n(middle - 5.0), n(middle + 5.0), n(middle))) {}
                    @for (value, noisy) in &mark.samples {
                        circle class=(if *noisy { "sample noisy" } else { "sample" }) cx=(n(x(*value))) cy=(n(middle)) r="2.5" {}
                    }
                    text.value x=(n(BARS.1 + 8.0)) y=(n(middle + 4.0)) { (row.text) }
                }
                Err(why) => text.none x=(n(BARS.0 + 4.0)) y=(n(middle + 4.0)) { title { (why) } "not measured" },
            }
        }
    }
}

/// Curves with markers (hollow where most samples were noisy) and whiskers. To the right in powers where `x` grows
/// eightfold or more.
#[must_use]
pub fn curves(label: &str, axes: &Axes, curves: &[Curve]) -> Markup {
    let marks = || curves.iter().flat_map(|curve| &curve.marks);
    let mut places: Vec<f64> = marks().map(|mark| mark.x).collect();
    places.sort_unstable_by(f64::total_cmp);
    places.dedup();
    let horizontal = Scale::of_places(&places);
    let values: Vec<f64> =
        marks().flat_map(|mark| [mark.median, mark.spread.0, mark.spread.1]).chain(axes.line).collect();
    let (vertical, ticks) = if axes.log && values.iter().all(|value| *value > 0.0) {
        powers(&values)
    } else {
        let ticks = steps(values.iter().copied().fold(0.0, f64::max));
        (Scale { low: 0.0, high: ticks.last().copied().unwrap_or(1.0), log: false }, ticks)
    };
    let (left, right, top, bottom) = AREA;
    let at = |x: f64| left + 10.0 + (right - left - 20.0) * horizontal.part(x);
    let up = |y: f64| bottom - (bottom - top) * vertical.part(y);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} 252")) role="img" aria-label=(label) {
            @for tick in &ticks {
                line.grid x1=(n(left)) x2=(n(right)) y1=(n(up(*tick))) y2=(n(up(*tick))) {}
                text.tick x=(n(left - 6.0)) y=(n(up(*tick) + 4.0)) text-anchor="end" { (short(*tick)) }
            }
            @for place in thin(&places, &at) {
                line.mark x1=(n(at(place))) x2=(n(at(place))) y1=(n(bottom)) y2=(n(bottom + 4.0)) {}
                text.tick x=(n(at(place))) y=(n(bottom + 16.0)) text-anchor="middle" { (quantity(place, axes.x)) }
            }
            text.axis x=(n((left + right) / 2.0)) y=(n(bottom + 33.0)) text-anchor="middle" { (axes.x) }
            text.axis transform=(format!("translate(12 {}) rotate(-90)", n((top + bottom) / 2.0))) text-anchor="middle" { (axes.y) }
            @if let Some(line) = axes.line {
                line.reference x1=(n(left)) x2=(n(right)) y1=(n(up(line))) y2=(n(up(line))) {}
            }
            @for curve in curves { (one_curve(curve, &at, &up)) }
        }
    }
}

fn one_curve(curve: &Curve, at: &dyn Fn(f64) -> f64, up: &dyn Fn(f64) -> f64) -> Markup {
    let line: Vec<String> =
        curve.marks.iter().map(|mark| format!("{},{}", n(at(mark.x)), n(up(mark.median)))).collect();
    html! {
        g class=(format!("c{}", curve.colour)) {
            polyline.curve points=(line.join(" ")) {}
            @for mark in &curve.marks {
                g {
                    title { (mark.title) }
                    path.thin d=(format!("M{0} {1}V{2}", n(at(mark.x)), n(up(mark.spread.0)), n(up(mark.spread.1)))) {}
                    (marker(curve.colour, at(mark.x), up(mark.median), mark.is_doubtful()))
                }
            }
        }
    }
}

/// A contender's marker: its shape tells it apart where its colour cannot.
#[must_use]
pub fn marker(colour: usize, x: f64, y: f64, hollow: bool) -> Markup {
    let path = match colour % 4 {
        0 => format!("M{} {}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", n(x - 4.0), n(y)),
        1 => format!("M{} {}h7v7h-7z", n(x - 3.5), n(y - 3.5)),
        2 => format!("M{} {}l4.5 8h-9z", n(x), n(y - 5.0)),
        _ => format!("M{} {}l5 5l-5 5l-5 -5z", n(x), n(y - 5.0)),
    };
    html! { path class=(if hollow { "marker noisy" } else { "marker" }) d=(path) {} }
}

/// From values to a part of the drawing.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    fn of_places(places: &[f64]) -> Scale {
        let (low, high) = (places.first().copied().unwrap_or(0.0), places.last().copied().unwrap_or(1.0));
        Scale { low, high, log: low > 0.0 && high >= 8.0 * low }
    }

    /// 0 at the lower end, 1 at the upper.
    fn part(&self, value: f64) -> f64 {
        let (low, high, value) = if self.log {
            (self.low.ln(), self.high.ln(), value.max(f64::MIN_POSITIVE).ln())
        } else {
            (self.low, self.high, value)
        };
        if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
    }
}

/// A scale in powers and its ticks: 1, 2, 5 of each ten; more where those would be few, the tens alone where many.
fn powers(values: &[f64]) -> (Scale, Vec<f64>) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if !(low.is_finite() && high > 0.0) {
        return (Scale { low: 1.0, high: 10.0, log: true }, vec![1.0, 10.0]);
    }
    let mut ticks = enclosing(low, high, &[1.0, 2.0, 5.0]);
    if ticks.len() <= 4 {
        ticks = enclosing(low, high, &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    }
    let scale = Scale { low: ticks[0], high: ticks[ticks.len() - 1], log: true };
    if ticks.len() > 9 {
        ticks.retain(|tick| (tick.log10() - tick.log10().round()).abs() < 1e-9);
    }
    (scale, ticks)
}

/// Two or more of these digits times powers of ten, from the last one at or below `low` to the first at or above `high`.
fn enclosing(low: f64, high: f64, digits: &[f64]) -> Vec<f64> {
    let tens = low.log10().floor() as i32..=high.log10().floor() as i32 + 1;
    let mut ticks: Vec<f64> =
        tens.flat_map(|ten| digits.iter().map(move |digit| digit * 10_f64.powi(ten))).collect();
    let end = ticks.iter().position(|tick| *tick >= high).unwrap_or(ticks.len() - 1);
    let begin = ticks.iter().rposition(|tick| *tick <= low).unwrap_or(0);
    ticks.truncate(end.max(begin + 1) + 1);
    ticks.split_off(begin)
}

/// Four to six ticks from zero to `top` or a little above.
fn steps(top: f64) -> Vec<f64> {
    if !(top.is_finite() && top > 0.0) {
        return vec![0.0, 1.0];
    }
    let ten = 10_f64.powf((top / 5.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * ten).into_iter().find(|step| top / step <= 5.0);
    let step = step.unwrap_or(10.0 * ten);
    (0..=(top / step).ceil() as usize).map(|count| count as f64 * step).collect()
}

/// Those whose labels do not run into one another, from the last one on; `at` says where they are.
fn thin(places: &[f64], at: &dyn Fn(f64) -> f64) -> Vec<f64> {
    let mut kept: Vec<f64> = Vec::new();
    for &place in places.iter().rev() {
        if kept.last().is_none_or(|last| at(*last) - at(place) >= LABEL) {
            kept.push(place);
        }
    }
    kept
}

/// A value on the horizontal axis; bytes in binary units.
#[must_use]
pub fn quantity(value: f64, axis: &str) -> String {
    const KIB: f64 = 1024.0;
    match value {
        v if axis.contains("bytes") && v >= KIB * KIB => format!("{} MiB", short_plain(v / KIB / KIB, 100.0)),
        v if axis.contains("bytes") && v >= KIB => format!("{} KiB", short_plain(v / KIB, 100.0)),
        v => short_plain(v, 100.0),
    }
}

fn short_plain(value: f64, parts: f64) -> String {
    format!("{}", (value * parts).round() / parts)
}

/// About three digits, without zeros behind.
#[must_use]
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 && v.is_finite() => format!("{} M", short(value / 1e6)),
        v if v > 0.0 && v < 0.0995 => short_plain(value, 10_f64.powi(1 - v.log10().floor() as i32)),
        v if v < 99.95 => table::short(value).trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => table::short(value),
    }
}

/// A length in the drawing.
fn n(length: f64) -> String {
    short_plain(length, 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_enclose_the_values() {
        assert_eq!(steps(11.5), [0.0, 2.5, 5.0, 7.5, 10.0, 12.5]);
        assert_eq!(steps(0.0), [0.0, 1.0]);
        assert_eq!(steps(f64::NAN), [0.0, 1.0]);
        let (scale, ticks) = powers(&[16.0, 160.0]);
        assert_eq!((scale.low, scale.high), (10.0, 200.0));
        assert_eq!(ticks, [10.0, 20.0, 50.0, 100.0, 200.0]);
        let (scale, ticks) = powers(&[0.011, 900_000.0]);
        assert!(scale.low <= 0.011 && scale.high >= 900_000.0);
        assert!(ticks.len() <= 9, "{ticks:?}");
        let (scale, ticks) = powers(&[0.82, 1.1]);
        assert!(scale.low <= 0.82 && scale.high >= 1.1 && ticks.len() >= 4, "{ticks:?}");
        assert!(powers(&[3.0]).1.len() >= 2);
        let (scale, _) = powers(&[]);
        assert!(scale.low < scale.high);
    }

    #[test]
    fn values_are_written_short() {
        assert_eq!(
            [0.0, 0.000_123, 0.5, 9.996, 12.34, 123.4, 2.5e6].map(short),
            ["0", "0.00012", "0.5", "10", "12.3", "123", "2.5 M"]
        );
        assert_eq!(short(f64::INFINITY), "inf");
        assert_eq!([1.0, 1024.0, 1_048_576.0].map(|v| quantity(v, "message bytes")), ["1", "1 KiB", "1 MiB"]);
        assert_eq!(quantity(2048.0, "networks"), "2048");
    }

    #[test]
    fn labels_keep_their_distance() {
        let at = |place: f64| 10.0 * place;
        let places: Vec<f64> = (0..21).map(f64::from).collect();
        assert_eq!(thin(&places, &at), [20.0, 15.0, 10.0, 5.0, 0.0]);
        assert_eq!(thin(&[1.0, 6.0], &at), [6.0, 1.0]);
        assert!(thin(&[], &at).is_empty());
    }
}
