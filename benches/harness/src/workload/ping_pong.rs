//! Concurrent TCP ping-pongs, as MPI ranks would play them.

use super::{Label, START, Values, Workload, json, number, patience, size};
use crate::contender::Setup;
use crate::error::RigError;
use crate::metric::Metric;
use crate::process::{Place, Process};

const PORT: u16 = 5301;
/// Payload bytes of small messages.
pub const SMALL: usize = 8;

/// Ping-pongs between the first node and the second.
#[derive(Debug, Clone, Copy)]
pub struct PingPong {
    /// At once.
    pub connections: usize,
    /// Bytes of a message.
    pub bytes: usize,
}

impl Workload for PingPong {
    fn name(&self) -> String {
        let times = if self.connections == 1 { "1 ping-pong" } else { "ping-pongs" };
        match self.connections {
            1 => format!("{times}, {}", size(self.bytes)),
            many => format!("{many} {times}, {}", size(self.bytes)),
        }
    }

    fn group(&self) -> &'static str {
        if self.connections == 1 { "one ping-pong" } else { "many ranks" }
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let played = play(&setup.place(0), &setup.place(1), self.connections, self.bytes, seconds)?;
        let cpu = (Metric::CPU_PER_MILLION, played.cpu_per_message * 1e6);
        let rate = (Metric::KMSGS, played.rate / 1e3);
        let values = match self.connections {
            1 => vec![(Metric::P50, played.p50), (Metric::P99, played.p99), cpu],
            _ => vec![rate, (Metric::P50, played.p50), (Metric::P99, played.p99), cpu],
        };
        Ok(vec![(self.label(), values)])
    }
}

/// The outcome of ping-pongs.
#[derive(Debug, Clone, Copy)]
pub struct Played {
    /// Messages per second, both directions together.
    pub rate: f64,
    /// Median round trip, microseconds.
    pub p50: f64,
    /// 99th percentile of the round trip, microseconds.
    pub p99: f64,
    /// Processor seconds of the whole system per message.
    pub cpu_per_message: f64,
}

/// Plays from `client` with `server`.
///
/// # Errors
/// A probe failed.
pub fn play(
    client: &Place,
    server: &Place,
    connections: usize,
    bytes: usize,
    seconds: f64,
) -> Result<Played, RigError> {
    const PING: &str = "probe ping-pong";
    let pong = Process::start("probe pong", server.probe(&["pong", &PORT.to_string()]))?;
    pong.wait_for("ready", START)?;
    let to = format!("{}:{PORT}", server.address);
    let arguments = ["ping-pong", &to, &connections.to_string(), &bytes.to_string(), &seconds.to_string()];
    let played = json(PING, &Process::start(PING, client.probe(&arguments))?.finish(patience(seconds))?)?;
    let number = |name| number(PING, &played, name);
    let messages = number("messages")?.max(1.0);
    Ok(Played {
        rate: messages / number("seconds")?.max(1e-3),
        p50: number("p50_us")?,
        p99: number("p99_us")?,
        cpu_per_message: number("cpu_seconds")? / messages,
    })
}
