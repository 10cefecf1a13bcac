//! Traffic between nodes, and what is measured of it.

pub mod bulk;
pub mod connections;
pub mod fairness;
pub mod idle;
pub mod ping_pong;
pub mod udp;
pub mod variant;

use crate::contender::{Contender, Setup};
use crate::metric::{Label, Values, X};
use crate::noise::Load;
use serde_json::Value;
use std::time::Duration;
use uvn_rig::cpu::SystemTime;
use uvn_rig::error::RigError;
use uvn_rig::place::{Host, Place};

/// Seconds in which a data plane that follows the traffic has found out what that gains from: it looks twice a second, and
/// tries for one and a half or three. All others carry the same with and without.
const WARM_UP: f64 = 4.0;

/// One kind of traffic.
pub trait Workload {
    /// Its name, for tables; no two of a run have the same.
    fn name(&self) -> String;

    /// The heading under which it stands, with what is comparable with it.
    fn group(&self) -> &'static str;

    /// Where it lies on a curve of its group; None: it stands alone.
    fn x(&self) -> Option<X> {
        None
    }

    /// About how many seconds a run takes whose traffic flows for `seconds`.
    fn takes(&self, seconds: f64) -> f64 {
        seconds + 0.1
    }

    /// For how many seconds it runs beforehand, unmeasured, where the data plane follows the traffic. None: it gains
    /// nothing from that.
    fn warm_up(&self) -> Option<f64> {
        None
    }

    /// Why it makes no sense on a contender; None where it does.
    fn unfit(&self, _contender: Contender) -> Option<&'static str> {
        None
    }

    /// Takes what it needs to know of the contenders before the first round, such as the rate at which all are compared.
    ///
    /// # Errors
    /// A program failed.
    fn prepare(&mut self, _setups: &[Setup], _seconds: f64) -> Result<(), RigError> {
        Ok(())
    }

    /// The same between two places, wherever they are. None: it needs more than that.
    fn between(&self, _client: &Place, _server: &Place, _seconds: f64) -> Option<Result<Values, RigError>> {
        None
    }

    /// Has traffic flow for about `seconds`.
    ///
    /// # Errors
    /// A program failed or did not end in time.
    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError>;

    /// The label of a run that measures one thing.
    fn label(&self) -> Label {
        Label { group: self.group(), name: self.name(), x: self.x() }
    }
}

/// Processor seconds that the machines of these places have spent since they started.
fn busy(client: &Place, server: &Place) -> Result<f64, RigError> {
    match (&client.host, &server.host) {
        (Host::Netns(_), Host::Netns(_)) => Ok(SystemTime::now().busy),
        _ => Ok(Load::at([client, server])?.map(|load| load.system.busy).iter().sum()),
    }
}

/// How long a server may take to start.
const START: Duration = Duration::from_secs(5);

/// How long a program may take whose traffic flows for `seconds`.
fn patience(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds + 20.0)
}

pub(crate) fn json(program: &str, lines: &[String]) -> Result<Value, RigError> {
    let text = lines.join("\n");
    serde_json::from_str(&text).map_err(|error| RigError::program(program, format!("{error} in {text:?}")))
}

fn number(program: &str, object: &Value, name: &str) -> Result<f64, RigError> {
    object[name].as_f64().ok_or_else(|| RigError::program(program, format!("no number {name:?} in {object}")))
}
