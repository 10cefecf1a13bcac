//! UDP packet rate and loss.

use super::{START, WARM_UP, Workload, json, number, patience};
use crate::contender::REFERENCE;
use crate::contender::Setup;
use crate::metric::{Label, Metric, Values, median};
use uvn_rig::error::RigError;
use uvn_rig::place::Place;
use uvn_rig::process::Process;

const PORT: u16 = 5302;

/// 64-byte datagrams from one sender as fast as it can.
#[derive(Debug, Clone, Copy)]
pub struct Flood;

impl Workload for Flood {
    fn name(&self) -> String {
        "UDP 64 B at full speed".into()
    }

    fn group(&self) -> &'static str {
        "UDP"
    }

    fn takes(&self, seconds: f64) -> f64 {
        seconds + 0.2
    }

    fn warm_up(&self) -> Option<f64> {
        Some(WARM_UP)
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        Ok(vec![(self.label(), flood(&setup.place(0), &setup.place(1), seconds)?)])
    }

    fn between(&self, client: &Place, server: &Place, seconds: f64) -> Option<Result<Values, RigError>> {
        Some(flood(client, server, seconds))
    }
}

fn flood(client: &Place, server: &Place, seconds: f64) -> Result<Values, RigError> {
    let counts = send(client, server, None, seconds)?;
    Ok(vec![(Metric::KPPS, counts.received_rate / 1e3), (Metric::LOSS, counts.lost)])
}

/// 64-byte datagrams at a rate that is the same for all: nine tenths of what the kernel's VXLAN receives at full speed.
#[derive(Debug, Clone, Default)]
pub struct Paced {
    rate: Option<f64>,
}

/// What is offered, of the kernel's rate.
const PART: f64 = 0.9;

impl Workload for Paced {
    fn name(&self) -> String {
        format!("UDP 64 B at {:.0} % of kernel VXLAN's rate", 100.0 * PART)
    }

    fn group(&self) -> &'static str {
        "UDP"
    }

    fn takes(&self, seconds: f64) -> f64 {
        seconds + 0.2
    }

    /// Measures the kernel's rate.
    fn prepare(&mut self, setups: &[Setup], seconds: f64) -> Result<(), RigError> {
        const TRIES: usize = 3;
        let missing =
            || RigError::program("kernel VXLAN", "is not measured, and its rate is what all are offered");
        let kernel = setups.iter().find(|setup| setup.contender == REFERENCE).ok_or_else(missing)?;
        let full = || Ok(send(&kernel.place(0), &kernel.place(1), None, seconds)?.received_rate);
        let rates = (0..TRIES).map(|_| full()).collect::<Result<_, RigError>>()?;
        self.rate = median(rates).map(|rate| rate * PART);
        Ok(())
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let unknown = || RigError::program("probe flood", "the rate to offer is not known");
        let rate = self.rate.ok_or_else(unknown)?;
        let counts = send(&setup.place(0), &setup.place(1), Some(rate), seconds)?;
        let values = vec![(Metric::OFFERED, counts.offered_rate / 1e3), (Metric::LOSS, counts.lost)];
        Ok(vec![(self.label(), values)])
    }
}

/// The outcome of sending datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Datagrams per second that the sender tried to send.
    pub offered_rate: f64,
    /// Datagrams received per second.
    pub received_rate: f64,
    /// Per cent of those sent that did not arrive.
    pub lost: f64,
}

/// Sends from `client` to `server`, at `rate` datagrams per second or as fast as possible.
///
/// # Errors
/// A probe failed.
pub fn send(client: &Place, server: &Place, rate: Option<f64>, seconds: f64) -> Result<Counts, RigError> {
    let sink = Process::start("probe sink", server.probe(&["sink", &PORT.to_string()]))?;
    sink.wait_for("ready", START)?;
    let to = format!("{}:{PORT}", server.address);
    let (time, rate) = (seconds.to_string(), rate.map(|rate| rate.to_string()));
    let mut arguments = vec!["flood", &to, &time];
    arguments.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
    let sent = Process::start("probe flood", client.probe(&arguments))?.finish(patience(seconds))?;
    let received = sink.finish(patience(0.0))?;
    let (sent, received) = (json("probe flood", &sent)?, json("probe sink", &received)?);
    let duration = number("probe flood", &sent, "seconds")?.max(1e-3);
    let sent = number("probe flood", &sent, "sent")?.max(1.0);
    let count = number("probe sink", &received, "received")?;
    let time = number("probe sink", &received, "seconds")?.max(1e-3);
    Ok(Counts {
        offered_rate: sent / duration,
        received_rate: count / time,
        lost: 100.0 * (1.0 - count / sent),
    })
}
