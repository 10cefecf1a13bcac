//! Traffic between the two nodes' endpoints, and what is measured of it.

use crate::process::{Place, Process};
use crate::rig::{ADDRESSES, RigError};
use std::time::Duration;

const BULK_PORT: &str = "5201";
const PONG_PORT: u16 = 5301;
const SINK_PORT: u16 = 5302;
/// How long a server may take to start.
const START: Duration = Duration::from_secs(5);
/// Payload bytes of small messages.
pub const SMALL: usize = 8;

/// One kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// iperf3 with so many TCP streams.
    Bulk {
        /// At once.
        streams: usize,
    },
    /// 64-byte UDP datagrams as fast as they can be sent.
    Udp,
    /// Concurrent TCP ping-pongs.
    PingPong {
        /// At once.
        connections: usize,
        /// Bytes of a message.
        bytes: usize,
    },
}

/// What one measurement says: `(metric, value)`.
pub type Sample = Vec<(Metric, f64)>;

/// A measured quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Gigabits of TCP payload per second.
    Gbps,
    /// Thousand received datagrams per second.
    Kpps,
    /// Per cent of sent datagrams that did not arrive.
    Loss,
    /// Median round trip, microseconds.
    P50,
    /// 99th percentile of the round trip, microseconds.
    P99,
    /// Thousand messages per second, both directions together.
    Kmsgs,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 6] =
        [Metric::Gbps, Metric::Kpps, Metric::Loss, Metric::Kmsgs, Metric::P50, Metric::P99];

    /// Its unit, for tables.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Metric::Gbps => "Gb/s",
            Metric::Kpps => "kpps received",
            Metric::Loss => "% lost",
            Metric::P50 => "us p50",
            Metric::P99 => "us p99",
            Metric::Kmsgs => "k msgs/s",
        }
    }
}

impl Workload {
    /// Its name, for tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Workload::Bulk { streams: 1 } => "bulk TCP, 1 stream".into(),
            Workload::Bulk { streams } => format!("bulk TCP, {streams} streams"),
            Workload::Udp => "UDP, 64 B".into(),
            Workload::PingPong { connections: 1, bytes } => format!("1 ping-pong, {bytes} B"),
            Workload::PingPong { connections, bytes } => format!("{connections} ping-pongs, {bytes} B"),
        }
    }

    /// The metrics worth a line in a table.
    #[must_use]
    pub const fn metrics(self) -> &'static [Metric] {
        match self {
            Workload::Bulk { .. } => &[Metric::Gbps],
            Workload::Udp => &[Metric::Kpps, Metric::Loss],
            Workload::PingPong { connections: 1, .. } => &[Metric::P50, Metric::P99],
            Workload::PingPong { .. } => &[Metric::Kmsgs, Metric::P99],
        }
    }

    /// Runs it from `client`, an endpoint on the first node, to `server`, one on the second.
    ///
    /// # Errors
    /// A program failed or did not end in time.
    pub fn run(self, client: &Place, server: &Place, seconds: f64) -> Result<Sample, RigError> {
        match self {
            Workload::Bulk { streams } => bulk(client, server, streams, seconds),
            Workload::Udp => udp(client, server, seconds),
            Workload::PingPong { connections, bytes } => {
                ping_pong(client, server, connections, bytes, seconds)
            }
        }
    }
}

fn bulk(client: &Place, server: &Place, streams: usize, seconds: f64) -> Result<Sample, RigError> {
    let mut serve = server.command("iperf3");
    serve.args(["--server", "--one-off", "--forceflush", "--port", BULK_PORT]);
    let serving = Process::start("iperf3 --server", serve)?;
    serving.wait_for("Server listening", START)?;
    let mut send = client.command("iperf3");
    send.args(["--client", ADDRESSES[1].0, "--port", BULK_PORT, "--json", "--connect-timeout", "3000"]);
    // iperf3 knows whole seconds only, and takes zero for "for ever".
    let time = seconds.ceil().to_string();
    send.args(["--time", &time, "--parallel", &streams.to_string()]);
    let report = Process::start("iperf3 --client", send)?.finish(patience(seconds))?.join("\n");
    let report = json("iperf3 --client", &report)?;
    let rate = number("iperf3 --client", &report["end"]["sum_received"], "bits_per_second")?;
    Ok(vec![(Metric::Gbps, rate / 1e9)])
}

fn udp(client: &Place, server: &Place, seconds: f64) -> Result<Sample, RigError> {
    let sink = Process::start("probe sink", server.probe(&["sink", &SINK_PORT.to_string()]))?;
    sink.wait_for("ready", START)?;
    let to = format!("{}:{SINK_PORT}", ADDRESSES[1].0);
    let threads = client.cores.split(',').count().min(4).to_string();
    let flood = client.probe(&["flood", &to, &threads, &seconds.to_string()]);
    let sent = Process::start("probe flood", flood)?.finish(patience(seconds))?.join("");
    let received = sink.finish(patience(0.0))?.join("");
    let (sent, received) = (json("probe flood", &sent)?, json("probe sink", &received)?);
    let sent = number("probe flood", &sent, "sent")?;
    let count = number("probe sink", &received, "received")?;
    let time = number("probe sink", &received, "seconds")?.max(1e-3);
    Ok(vec![(Metric::Kpps, count / time / 1e3), (Metric::Loss, 100.0 * (1.0 - count / sent.max(1.0)))])
}

fn ping_pong(
    client: &Place,
    server: &Place,
    connections: usize,
    bytes: usize,
    seconds: f64,
) -> Result<Sample, RigError> {
    let pong = Process::start("probe pong", server.probe(&["pong", &PONG_PORT.to_string()]))?;
    pong.wait_for("ready", START)?;
    let to = format!("{}:{PONG_PORT}", ADDRESSES[1].0);
    let arguments = ["ping-pong", &to, &connections.to_string(), &bytes.to_string(), &seconds.to_string()];
    let played =
        Process::start("probe ping-pong", client.probe(&arguments))?.finish(patience(seconds))?.join("");
    let played = json("probe ping-pong", &played)?;
    let number = |name| number("probe ping-pong", &played, name);
    let rate = number("messages")? / number("seconds")?.max(1e-3) / 1e3;
    Ok(vec![(Metric::Kmsgs, rate), (Metric::P50, number("p50_us")?), (Metric::P99, number("p99_us")?)])
}

fn patience(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds + 20.0)
}

fn json(program: &str, text: &str) -> Result<serde_json::Value, RigError> {
    serde_json::from_str(text)
        .map_err(|error| RigError::Program { what: program.into(), why: format!("{error} in {text:?}") })
}

fn number(program: &str, object: &serde_json::Value, name: &str) -> Result<f64, RigError> {
    object[name].as_f64().ok_or_else(|| RigError::Program {
        what: program.into(),
        why: format!("no number {name:?} in {object}"),
    })
}
