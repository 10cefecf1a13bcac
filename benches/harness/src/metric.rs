//! Measured quantities, and how they are named and written.

use serde::{Deserialize, Serialize};

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better: a rate.
    Higher,
    /// Less is better: a time, a loss.
    Lower,
}

/// A measured quantity. Its unit tells it apart from the others of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Unit and kind, for tables.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
}

impl Metric {
    /// Gigabits of TCP payload per second.
    pub const GBPS: Metric = higher("Gb/s");
    /// Thousand datagrams that the sender tried to send per second.
    pub const OFFERED: Metric = higher("kpps offered");
    /// Thousand received datagrams per second.
    pub const KPPS: Metric = higher("kpps received");
    /// Per cent of sent datagrams that did not arrive.
    pub const LOSS: Metric = lower("% lost");
    /// Thousand messages per second, both directions together.
    pub const KMSGS: Metric = higher("k msgs/s");
    /// Median round trip, microseconds.
    pub const P50: Metric = lower("us p50");
    /// 99th percentile of the round trip, microseconds.
    pub const P99: Metric = lower("us p99");
    /// Microseconds, where there is no distribution.
    pub const US: Metric = lower("us");
    /// Million bytes per second, all senders together.
    pub const MBYTES: Metric = higher("MB/s");
    /// Thousand million floating point operations per second.
    pub const GFLOPS: Metric = higher("GFLOP/s");
    /// Processor seconds of the whole system per 10^9 bytes of payload.
    pub const CPU_PER_GB: Metric = lower("CPU s/GB");
    /// Processor seconds of the whole system per million messages.
    pub const CPU_PER_MILLION: Metric = lower("CPU s/M msgs");

    /// Thousand connections per second.
    pub const KCPS: Metric = higher("k connections/s");
    /// Per cent of the connections that failed.
    pub const FAILED: Metric = lower("% failed");
    /// Thousand datagrams of another user's flood received per second.
    pub const FLOOD: Metric = higher("kpps of the flood received");
    /// 99th percentile of the round trip while another user computes, and nobody else sends, microseconds.
    pub const P99_ALONE: Metric = lower("us p99 alone");
    /// The same while another user floods.
    pub const P99_FLOOD: Metric = lower("us p99 beside it");
    /// The latter over the former.
    pub const P99_RATIO: Metric = lower("x p99 alone");
    /// Median round trip while another user floods, microseconds.
    pub const P50_FLOOD: Metric = lower("us p50 beside it");
    /// Processor time per node without traffic, per cent of one core.
    pub const IDLE: Metric = lower("% of a core");
    /// Memory per node.
    pub const MEMORY: Metric = lower("MiB per node");

    /// Whether the ratio of two values says anything: that of two small losses does not, nor that of ratios.
    #[must_use]
    pub fn has_ratio(unit: &str) -> bool {
        !unit.starts_with(['%', 'x'])
    }
}

const fn higher(unit: &'static str) -> Metric {
    Metric { unit, better: Better::Higher }
}

const fn lower(unit: &'static str) -> Metric {
    Metric { unit, better: Better::Lower }
}

/// What was measured.
pub type Values = Vec<(Metric, f64)>;

/// What is measured, for tables.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The heading under which it stands, with what is comparable with it.
    pub group: &'static str,
    /// No two of a run have the same.
    pub name: String,
    /// Where it lies on a curve of its group; None: it stands alone.
    pub x: Option<X>,
}

/// Where a workload lies on its group's curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct X {
    /// What the axis shows, with its unit.
    pub axis: String,
    /// Where on it.
    pub value: f64,
}

/// The middle value; the mean of the two middle ones of an even number; None of none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len().is_multiple_of(2) { Some((values[middle - 1] + upper) / 2.0) } else { Some(upper) }
}

/// Bytes for people.
#[must_use]
pub fn size(bytes: usize) -> String {
    match bytes {
        b if b >= 1 << 20 && b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b.is_multiple_of(1 << 10) => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}
