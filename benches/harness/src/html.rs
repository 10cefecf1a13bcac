//! `report.html`: the report as one page that needs nothing else, for screens wide and narrow, light and dark, and for
//! paper.

mod figures;
#[cfg(test)]
mod tests;

use crate::baseline::{self, Baseline, Change, reference};
use crate::chart::{self, short};
use crate::goals::{self, Outcome, Verdict};
use crate::report::{ContenderInfo, Report};
use crate::table::contenders_of;
use figures::Panel;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::BTreeMap;

const STYLE: &str = include_str!("html/style.css");
/// Paper shows what is folded on a screen.
const UNFOLD_FOR_PRINT: &str = "addEventListener('beforeprint',()=>document.querySelectorAll('details')\
    .forEach(d=>d.open=true))";
/// Colours by family: the baseline, the kernel's, ours, others'. The first colour of each and how many it has.
const FAMILIES: [(&str, usize, usize); 4] =
    [("raw", 0, 1), ("kernel", 1, 4), ("uvn", 5, 5), ("engine", 5, 5)];
const OTHERS: (usize, usize) = (10, 4);

/// The whole page.
#[must_use]
pub fn page(report: &Report, baseline: Option<&Baseline>) -> String {
    let colours = colours(report);
    let panels = figures::panels(report);
    let mut groups: Vec<&str> = panels.iter().map(|panel| panel.group).collect();
    groups.dedup();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "uvn, measured side by side" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { "uvn, measured side by side" } (facts(report)) }
                main {
                    section { h2 { "What was compared" } (contenders(report, &colours)) }
                    section { h2 { "Against the goals" } (goals(report)) }
                    section { h2 { "How to read this" } (reading(report)) }
                    @if !report.missing.is_empty() { section { h2 { "What is missing" } (missing(report)) } }
                    @if let Some(baseline) = baseline {
                        section { h2 { "Compared with " (baseline.file) } (compared(report, baseline)) }
                    }
                    @for group in groups {
                        section {
                            h2 { (group) }
                            (legend(report, group, &colours))
                            div.figures {
                                @for panel in panels.iter().filter(|panel| panel.group == group) {
                                    (figures::draw(report, panel, &colours))
                                }
                            }
                            details { summary { "All figures" } (table(report, &panels, group)) }
                        }
                    }
                    section { h2 { "Machine and settings" } (surroundings(report)) }
                }
                script { (PreEscaped(UNFOLD_FOR_PRINT)) }
            }
        }
    }
    .into_string()
}

/// The colour of each contender, by the report's order.
fn colours(report: &Report) -> Vec<usize> {
    let mut taken = [0; OTHERS.0 + 1];
    let next = |contender: &ContenderInfo| {
        let family = FAMILIES.iter().find(|(name, ..)| contender.name.starts_with(name));
        let (first, count) = family.map_or(OTHERS, |(_, first, count)| (*first, *count));
        taken[first] += 1;
        first + (taken[first] - 1) % count
    };
    report.contenders.iter().map(next).collect()
}

/// One line that says on what and how.
fn facts(report: &Report) -> Markup {
    let settings = &report.settings;
    let cores = &report.machine.cores;
    html! {
        p.facts {
            "Linux " (report.machine.kernel) ", " (report.machine.cpu) ", " (cores) " cores; " (settings.nodes) " nodes, MTU "
            (settings.mtu) "; " (settings.rounds) " rounds of " (short(settings.seconds)) " s each"
            @if settings.quick { " (quick)" }
        }
    }
}

fn contenders(report: &Report, colours: &[usize]) -> Markup {
    html! {
        dl.contenders {
            @for (contender, colour) in report.contenders.iter().zip(colours) {
                dt { (swatch(*colour)) (contender.name) }
                dd {
                    (contender.about)
                    @for way in contender.ways() { p.gear { (way) } }
                }
            }
        }
    }
}

fn swatch(colour: usize) -> Markup {
    html! {
        svg.swatch viewBox="0 0 28 12" aria-hidden="true" {
            g class=(format!("c{colour}")) { path.curve d="M0 6H28" {} (chart::marker(colour, 14.0, 6.0, false)) }
        }
    }
}

fn legend(report: &Report, group: &str, colours: &[usize]) -> Markup {
    let names = contenders_of(report, group);
    let all = report.contenders.iter().zip(colours);
    let shown = all.filter(|(contender, _)| names.contains(&contender.name.as_str()));
    html! {
        p.legend {
            @for (contender, colour) in shown {
                span { (swatch(*colour)) (contender.name) " " }
            }
        }
    }
}

fn goals(report: &Report) -> Markup {
    let outcomes = goals::outcomes(report);
    let count = |verdict| outcomes.iter().filter(|outcome| outcome.verdict() == Some(verdict)).count();
    html! {
        p {
            strong { (count(Verdict::Met)) " met, " (count(Verdict::Nearly)) " nearly, " (count(Verdict::Even)) " even, " (count(Verdict::Missed)) " missed" }
            " of " (outcomes.len()) " goals; this run did not measure the rest. Each is a ratio of medians. "
            "Nearly: what the number in brackets asks is reached. Even, where a goal is about many patterns: some medians are "
            "beyond it, as chance has it, but none in every round."
        }
        @if outcomes.iter().any(|outcome| outcome.ratio.is_some()) {
            div.scroll {
                table {
                    thead { tr { th { "" } th { "" } th.number { "measured" } th { "goal" } th.number { "medians" } th { "at its worst" } } }
                    tbody { @for outcome in outcomes.iter().filter(|outcome| outcome.ratio.is_some()) { (goal(outcome)) } }
                }
            }
        }
        @let rest = outcomes.iter().filter(|outcome| outcome.ratio.is_none()).map(|outcome| &outcome.goal);
        (list("Not measured", &rest.map(|goal| format!("{}: {}, {}", goal.who, goal.what, goal.limits())).collect::<Vec<_>>()))
    }
}

fn goal(outcome: &Outcome) -> Markup {
    html! {
        tr {
            th { (outcome.goal.who) ": " (outcome.goal.what) }
            @let verdict = outcome.verdict().map_or("", Verdict::word);
            td class=(verdict) { (verdict) }
            td.number { @if let Some(ratio) = outcome.ratio { strong { (short(ratio)) } } }
            td.limit { (outcome.goal.limits()) }
            td.number { (outcome.medians()) }
            td { (outcome.places()) }
        }
    }
}

fn reading(report: &Report) -> Markup {
    html! {
        ul {
            li {
                "Only ratios within one run mean anything. The contenders took turns on the same work, in each of "
                (report.settings.rounds) " rounds another one first, so that whatever else disturbed the machine disturbed them alike."
            }
            li {
                "Bars and markers are medians, whiskers reach from the least to the greatest sample, dots are the samples. "
                "Hollow ones are noisy: meanwhile other programs or virtual machines had more than a little of the cores. They count like the others."
            }
            li { "Numbers in brackets, and the curves of ratios, are relative to " (reference(report).unwrap_or("the first contender")) ". Point at a mark for its numbers." }
        }
    }
}

fn missing(report: &Report) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { th { "contender" } th { "work" } th { "why" } } }
                tbody {
                    @for one in &report.missing { tr { td { (one.contender) } td { (one.workload.as_deref().unwrap_or("all")) } td { (one.why) } } }
                }
            }
        }
    }
}

/// Every measurement of a group: a row per work and quantity, a column per contender.
fn table(report: &Report, panels: &[Panel], group: &str) -> Markup {
    let names = contenders_of(report, group);
    html! {
        div.scroll {
            table {
                (head(&names))
                tbody { @for panel in panels.iter().filter(|panel| panel.group == group) { (figures::rows(report, panel, &names)) } }
            }
        }
    }
}

fn compared(report: &Report, baseline: &Baseline) -> Markup {
    html! {
        @if baseline.differences.is_empty() {
            p { "Machine, settings and offloads are the same." }
        } @else {
            p { strong { "Not the same:" } }
            ul { @for difference in &baseline.differences { li { (difference) } } }
        }
        p {
            "Ratio of this run's median to the earlier one's. + better and - worse: no sample of one run is within the spread of "
            "the other; ~ the spreads overlap. In brackets the change of the ratio to " (reference(report).unwrap_or("the first contender"))
            ", which a slower or faster machine leaves as it is."
        }
        @let clear: Vec<&Change> = baseline.changes.iter().filter(|change| change.verdict != baseline::Verdict::Overlap).collect();
        p { strong { (clear.len()) " of " (baseline.changes.len()) } " figures differ beyond their spreads." }
        ul { @for change in clear { li { (change.label()) ", " (change.contender) ": " (changed(change)) } } }
        details {
            summary { "All changes" }
            div.scroll {
                table {
                    (head(&report.contenders.iter().map(|contender| contender.name.as_str()).collect::<Vec<_>>()))
                    tbody {
                        @for work in baseline.works() {
                            tr {
                                th { (work.label()) }
                                @for contender in &report.contenders {
                                    td.number { @if let Some(change) = baseline.find(work, &contender.name) { (changed(change)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
        (list("Measured then only", &baseline.gone))
        (list("Measured now only", &baseline.new))
    }
}

fn changed(change: &Change) -> Markup {
    html! {
        span class=(format!("{:?}", change.verdict)) title=(format!("{} before, {} now", short(change.earlier), short(change.now))) { (change.text()) }
    }
}

/// A column per contender.
fn head(contenders: &[&str]) -> Markup {
    html! { thead { tr { th { "" } @for name in contenders { th.number { (name) } } } } }
}

fn list(title: &str, items: &[String]) -> Markup {
    html! {
        @if !items.is_empty() {
            details { summary { (title) ": " (items.len()) } ul { @for item in items { li { (item) } } } }
        }
    }
}

/// All that must be known beside the numbers, as report.json has it.
fn surroundings(report: &Report) -> Markup {
    let mut values = BTreeMap::new();
    for (name, value) in [
        ("machine", serde_json::to_value(&report.machine)),
        ("settings", serde_json::to_value(&report.settings)),
    ] {
        baseline::flatten(name, &value.unwrap_or_default(), &mut values);
    }
    let mut offloads = BTreeMap::new();
    baseline::flatten("", &serde_json::to_value(&report.offloads).unwrap_or_default(), &mut offloads);
    html! {
        (pairs(&values))
        details { summary { "Offloads" } (pairs(&offloads)) }
    }
}

fn pairs(values: &BTreeMap<String, String>) -> Markup {
    html! {
        dl.pairs { @for (name, value) in values { dt { (name.trim_start_matches('.')) } dd { (value) } } }
    }
}
