use super::page;
use crate::baseline;
use crate::metric::{Better, X};
use crate::report::{ContenderInfo, Measurement, Missing, Report, Sample, Settings};
use std::collections::BTreeMap;

const ODD: &str = "Open <b>vSwitch</b> & \"co\"";

fn measurement(workload: &str, unit: &str, contender: &str, at: Option<f64>, values: &[f64]) -> Measurement {
    let sample =
        |value: &f64| Sample { value: *value, noisy: *value > 6.0, why: Some("a <cron> job".into()) };
    Measurement {
        group: "bulk & more".into(),
        workload: workload.into(),
        unit: unit.into(),
        better: Better::Higher,
        x: at.map(|value| X { axis: "message bytes".into(), value }),
        contender: contender.into(),
        samples: values.iter().map(sample).collect(),
        median: values[values.len() / 2],
        min: values[0],
        max: values[values.len() - 1],
    }
}

fn report() -> Report {
    let mut report = Report::new(Settings { mtu: 1500, rounds: 3, seconds: 1.0, nodes: 2, quick: true });
    for name in ["raw", "kernel VXLAN", ODD] {
        let gear = (name == ODD).then(|| "in-kernel: <why>".to_owned());
        report.contenders.push(ContenderInfo {
            name: name.into(),
            about: "about & so on".into(),
            gear,
            measures: BTreeMap::default(),
        });
        for (workload, at) in [("TCP, 8 B", 8.0), ("TCP, 4 KiB", 4096.0), ("TCP, 1 MiB", 1_048_576.0)] {
            report.measurements.push(measurement(workload, "us p50", name, Some(at), &[4.125, 5.125, 7.125]));
        }
    }
    report.measurements.push(measurement("one way", "Gb/s", "raw", None, &[8.0, 9.75, 10.0]));
    report.measurements.push(measurement("lost", "% lost", ODD, None, &[0.0, 0.0, 0.0]));
    let workload = Some("one way".to_owned());
    report.missing.push(Missing { contender: ODD.into(), workload, why: "no <core> left".into() });
    report
}

/// The page's diagrams, each parsed.
fn drawings(page: &str) -> Vec<roxmltree::Document<'_>> {
    let parts = page.split("<svg").skip(1).map(|rest| rest.split_once("</svg>").unwrap().0);
    let begin = |part: &str| part.as_ptr() as usize - page.as_ptr() as usize - "<svg".len();
    parts
        .map(|part| &page[begin(part)..begin(part) + part.len() + "<svg</svg>".len()])
        .map(|svg| roxmltree::Document::parse(svg).unwrap())
        .collect()
}

#[test]
fn every_measurement_is_drawn_in_well_formed_svg() {
    let page = page(&report(), None);
    let drawings = drawings(&page);
    let titles: Vec<&str> = drawings
        .iter()
        .flat_map(|svg| {
            svg.descendants().filter(|node| node.has_tag_name("title")).filter_map(|node| node.text())
        })
        .collect();
    for one in &report().measurements {
        let begin = format!("{}, {}: ", one.contender, one.workload);
        assert!(titles.iter().any(|title| title.starts_with(&begin)), "{begin} in {titles:?}");
    }
    assert!(titles.contains(&"no <core> left"), "{titles:?}");
    let labels: Vec<&str> =
        drawings.iter().filter_map(|svg| svg.root_element().attribute("aria-label")).collect();
    assert_eq!(
        labels,
        ["TCP, us p50: us p50", "TCP, us p50: ratio to kernel VXLAN", "one way, Gb/s", "lost, % lost",]
    );
    let curves =
        |svg: &roxmltree::Document| svg.descendants().filter(|node| node.has_tag_name("polyline")).count();
    assert_eq!(drawings.iter().map(curves).sum::<usize>(), 6);
}

#[test]
fn all_numbers_are_in_the_tables_and_noise_is_told() {
    let page = page(&report(), None);
    assert!(page.contains("9.75<small>8..10, 3 of 3 noisy</small>"), "{page}");
    assert!(page.contains("5.12 (1.00×)<small>4.12..7.12, 1 of 3 noisy</small>"));
    assert!(page.contains("no &lt;core&gt; left"));
    assert!(page.contains("in-kernel: &lt;why&gt;"));
}

#[test]
fn names_are_text() {
    let report = report();
    let baseline = baseline::compare(&report, &report, "<earlier>.json");
    let page = page(&report, Some(&baseline));
    assert!(page.contains("Open &lt;b&gt;vSwitch&lt;/b&gt; &amp; &quot;co&quot;"));
    assert!(page.contains("Compared with &lt;earlier&gt;.json"));
    assert!(!page.contains("<b>") && !page.contains("<cron>") && !page.contains("<earlier>"));
}

#[test]
fn nothing_is_fetched() {
    let page = page(&report(), None);
    assert!(!page.contains("http") && !page.contains("src=") && !page.contains("url("), "{page}");
}
