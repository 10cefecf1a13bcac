//! Measured quantities.

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

    /// Whether the ratio of two values says anything: that of two small losses does not.
    #[must_use]
    pub fn has_ratio(unit: &str) -> bool {
        !unit.starts_with('%')
    }
}

const fn higher(unit: &'static str) -> Metric {
    Metric { unit, better: Better::Higher }
}

const fn lower(unit: &'static str) -> Metric {
    Metric { unit, better: Better::Lower }
}
