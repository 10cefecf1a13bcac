//! Bulk TCP by iperf3.

use super::{START, WARM_UP, Workload, busy, json, number, patience};
use crate::contender::Setup;
use crate::metric::{Label, Metric, Values};
use uvn_rig::error::RigError;
use uvn_rig::place::Place;
use uvn_rig::process::Process;

const PORT: &str = "5201";

/// Which way the payload flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first node to the second.
    Forth,
    /// From the second to the first.
    Back,
    /// Both at once; the sum is measured.
    Both,
}

/// So many TCP streams at once.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// In each direction.
    pub streams: usize,
    /// Which way.
    pub direction: Direction,
}

impl Workload for Bulk {
    fn name(&self) -> String {
        let streams = if self.streams == 1 { "1 stream".into() } else { format!("{} streams", self.streams) };
        let direction = match self.direction {
            Direction::Forth => "",
            Direction::Back => ", back",
            Direction::Both => ", both ways",
        };
        format!("TCP, {streams}{direction}")
    }

    fn group(&self) -> &'static str {
        "bulk"
    }

    fn takes(&self, seconds: f64) -> f64 {
        seconds.ceil() + 0.2
    }

    fn warm_up(&self) -> Option<f64> {
        Some(WARM_UP)
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        Ok(vec![(self.label(), self.send(&setup.place(0), &setup.place(1), seconds)?)])
    }

    fn between(&self, client: &Place, server: &Place, seconds: f64) -> Option<Result<Values, RigError>> {
        Some(self.send(client, server, seconds))
    }
}

impl Bulk {
    fn send(&self, client: &Place, server: &Place, seconds: f64) -> Result<Values, RigError> {
        let mut serve = server.command("iperf3");
        serve.args(["--server", "--one-off", "--forceflush", "--port", PORT]);
        let serving = Process::start_quietly("iperf3 --server", serve)?;
        serving.wait_for("Server listening", START)?;
        let mut send = client.command("iperf3");
        send.args(["--client", &server.address.to_string(), "--port", PORT, "--json"]);
        send.args(["--connect-timeout", "3000", "--parallel", &self.streams.to_string()]);
        // iperf3 knows whole seconds only, and takes zero for "for ever".
        send.args(["--time", &seconds.ceil().to_string()]);
        match self.direction {
            Direction::Forth => {}
            Direction::Back => {
                send.arg("--reverse");
            }
            Direction::Both => {
                send.arg("--bidir");
            }
        }
        let before = busy(client, server)?;
        let report = Process::start_quietly("iperf3 --client", send)?.finish(patience(seconds))?;
        let cpu = busy(client, server)? - before;
        let end = &json("iperf3 --client", &report)?["end"];
        let sum = |name: &str| -> Result<(f64, f64), RigError> {
            let sum = &end[name];
            Ok((number(name, sum, "bits_per_second")?, number(name, sum, "bytes")?))
        };
        let (mut rate, mut bytes) = sum("sum_received")?;
        if self.direction == Direction::Both {
            let back = sum("sum_received_bidir_reverse")?;
            (rate, bytes) = (rate + back.0, bytes + back.1);
        }
        let cpu = (Metric::CPU_PER_GB, cpu / (bytes / 1e9).max(1e-6));
        Ok(vec![(Metric::GBPS, rate / 1e9), cpu])
    }
}
