//! Concurrent TCP ping-pongs, as MPI ranks would play them.

use super::{START, WARM_UP, Workload, busy, json, number, patience};
use crate::contender::Setup;
use crate::metric::{Label, Metric, Values, X, size};
use uvn_rig::error::RigError;
use uvn_rig::place::{Host, Place};
use uvn_rig::process::Process;

const PORT: u16 = 5301;
/// Payload bytes of small messages.
pub const SMALL: usize = 8;
/// Payload bytes of middling messages: three packets or so.
pub const PAGE: usize = 4096;

/// Ping-pongs between the first node and the second.
#[derive(Debug, Clone, Copy)]
pub struct PingPong {
    /// At once.
    pub connections: usize,
    /// Bytes of a message.
    pub bytes: usize,
    /// Whether the sockets poll before they sleep.
    pub busy_poll: bool,
}

impl Workload for PingPong {
    fn name(&self) -> String {
        let size = size(self.bytes);
        let polling = if self.busy_poll { ", busy polling" } else { "" };
        match self.connections {
            1 => format!("1 ping-pong, {size}{polling}"),
            many => format!("{many} ping-pongs, {size}{polling}"),
        }
    }

    fn group(&self) -> &'static str {
        if self.connections == 1 { "one ping-pong" } else { "many ranks" }
    }

    /// Sockets that poll keep their cores awake themselves.
    fn warm_up(&self) -> Option<f64> {
        (!self.busy_poll).then_some(WARM_UP)
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        Ok(vec![(self.label(), self.play(&setup.place(0), &setup.place(1), seconds)?)])
    }

    fn between(&self, client: &Place, server: &Place, seconds: f64) -> Option<Result<Values, RigError>> {
        Some(self.play(client, server, seconds))
    }
}

impl PingPong {
    fn play(&self, client: &Place, server: &Place, seconds: f64) -> Result<Values, RigError> {
        let PingPong { connections, bytes, busy_poll } = *self;
        let played = Game { bytes, connections, busy_poll }.play(client, server, seconds)?;
        let cpu = (Metric::CPU_PER_MILLION, played.cpu_per_message * 1e6);
        let rate = (Metric::KMSGS, played.rate / 1e3);
        Ok(match self.connections {
            1 => vec![(Metric::P50, played.p50), (Metric::P99, played.p99), cpu],
            _ => vec![rate, (Metric::P50, played.p50), (Metric::P99, played.p99), cpu],
        })
    }
}

/// One ping-pong with messages of a size: a point of a curve.
#[derive(Debug, Clone, Copy)]
pub struct Curve {
    /// Bytes of a message.
    pub bytes: usize,
}

impl Curve {
    /// From one byte to one MiB.
    pub const SIZES: [usize; 7] = [1, 8, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
    /// There are many points: each is given a quarter of the time.
    const SHARE: f64 = 0.25;

    fn play(&self, client: &Place, server: &Place, seconds: f64) -> Result<Values, RigError> {
        let played = Game::of(self.bytes).play(client, server, Curve::SHARE * seconds)?;
        let bandwidth = (Metric::GBPS, played.rate * self.bytes as f64 * 8.0 / 1e9);
        Ok(vec![(Metric::P50, played.p50), (Metric::P99, played.p99), bandwidth])
    }
}

impl Workload for Curve {
    fn name(&self) -> String {
        format!("TCP ping-pong of {}", size(self.bytes))
    }

    fn group(&self) -> &'static str {
        "ping-pong by message size"
    }

    fn x(&self) -> Option<X> {
        Some(X { axis: "bytes of a message".into(), value: self.bytes as f64 })
    }

    fn takes(&self, seconds: f64) -> f64 {
        Curve::SHARE * seconds + 0.1
    }

    fn warm_up(&self) -> Option<f64> {
        Some(WARM_UP / Curve::SHARE)
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        Ok(vec![(self.label(), self.play(&setup.place(0), &setup.place(1), seconds)?)])
    }

    fn between(&self, client: &Place, server: &Place, seconds: f64) -> Option<Result<Values, RigError>> {
        Some(self.play(client, server, seconds))
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

/// What is played.
#[derive(Debug, Clone, Copy)]
pub struct Game {
    /// Bytes of a message.
    pub bytes: usize,
    /// Ping-pongs at once.
    pub connections: usize,
    /// Whether the sockets poll before they sleep.
    pub busy_poll: bool,
}

impl Game {
    /// One ping-pong.
    #[must_use]
    pub const fn of(bytes: usize) -> Game {
        Game { bytes, connections: 1, busy_poll: false }
    }

    /// Plays from `client` with `server`.
    ///
    /// # Errors
    /// A probe failed.
    pub fn play(self, client: &Place, server: &Place, seconds: f64) -> Result<Played, RigError> {
        const PING: &str = "probe ping-pong";
        let port = PORT.to_string();
        let with = |mut arguments: Vec<&'static str>| {
            arguments.extend(self.busy_poll.then_some("--busy-poll"));
            arguments
        };
        let mut serve = server.probe(&with(vec!["pong"]));
        serve.arg(port);
        let pong = Process::start("probe pong", serve)?;
        pong.wait_for("ready", START)?;
        let mut ping = client.probe(&with(vec!["ping-pong"]));
        ping.arg(format!("{}:{PORT}", server.address));
        ping.args([self.connections.to_string(), self.bytes.to_string(), seconds.to_string()]);
        let before = busy(client, server)?;
        let played = json(PING, &Process::start(PING, ping)?.finish(patience(seconds))?)?;
        let number = |name| number(PING, &played, name);
        // The probe sees its own machine, and more closely: without its start.
        let cpu = match server.host {
            Host::Netns(_) => number("cpu_seconds")?,
            Host::Ssh(_) => busy(client, server)? - before,
        };
        let messages = number("messages")?.max(1.0);
        Ok(Played {
            rate: messages / number("seconds")?.max(1e-3),
            p50: number("p50_us")?,
            p99: number("p99_us")?,
            cpu_per_message: cpu / messages,
        })
    }
}
