//! Connection rate: connect, one byte each way, close.

use super::{START, WARM_UP, Workload, json, number, patience};
use crate::contender::Setup;
use crate::metric::{Label, Metric, Values};
use uvn_rig::error::RigError;
use uvn_rig::place::Place;
use uvn_rig::process::Process;

const PORT: u16 = 5303;
/// Clients at once.
const CLIENTS: usize = 4;

/// Connections one after the other, by four clients at once.
#[derive(Debug, Clone, Copy)]
pub struct Connections;

impl Workload for Connections {
    fn name(&self) -> String {
        format!("TCP connections, {CLIENTS} clients")
    }

    fn group(&self) -> &'static str {
        "connections"
    }

    fn warm_up(&self) -> Option<f64> {
        Some(WARM_UP)
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        Ok(vec![(self.label(), connect(&setup.place(0), &setup.place(1), seconds)?)])
    }

    fn between(&self, client: &Place, server: &Place, seconds: f64) -> Option<Result<Values, RigError>> {
        Some(connect(client, server, seconds))
    }
}

fn connect(client: &Place, server: &Place, seconds: f64) -> Result<Values, RigError> {
    const CONNECT: &str = "probe connect";
    let accept = server.probe(&["accept", &PORT.to_string(), &CLIENTS.to_string()]);
    let accepting = Process::start("probe accept", accept)?;
    accepting.wait_for("ready", START)?;
    let to = format!("{}:{PORT}", server.address);
    let connect = client.probe(&["connect", &to, &CLIENTS.to_string(), &seconds.to_string()]);
    let made = json(CONNECT, &Process::start(CONNECT, connect)?.finish(patience(seconds))?)?;
    let number = |name| number(CONNECT, &made, name);
    let (connections, failed) = (number("connections")?, number("failed")?);
    Ok(vec![
        (Metric::KCPS, connections / number("seconds")?.max(1e-3) / 1e3),
        (Metric::FAILED, 100.0 * failed / (connections + failed).max(1.0)),
        (Metric::P99, number("p99_us")?),
    ])
}
