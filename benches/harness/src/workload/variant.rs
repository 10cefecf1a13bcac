//! A workload on other ground than usual.

use super::Workload;
use crate::contender::{Contender, Setup};
use crate::metric::{Label, Values, X};
use uvn_rig::error::RigError;

/// The same workload under another heading, so that its figures are not taken for those of the usual ground.
pub struct Variant {
    /// The heading, which also ends its name.
    pub ground: &'static str,
    /// What runs.
    pub workload: Box<dyn Workload>,
}

impl Workload for Variant {
    fn name(&self) -> String {
        format!("{}, {}", self.workload.name(), self.ground)
    }

    fn group(&self) -> &'static str {
        self.ground
    }

    fn x(&self) -> Option<X> {
        self.workload.x()
    }

    fn takes(&self, seconds: f64) -> f64 {
        self.workload.takes(seconds)
    }

    fn warm_up(&self) -> Option<f64> {
        self.workload.warm_up()
    }

    fn unfit(&self, contender: Contender) -> Option<&'static str> {
        self.workload.unfit(contender)
    }

    fn prepare(&mut self, setups: &[Setup], seconds: f64) -> Result<(), RigError> {
        self.workload.prepare(setups, seconds)
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let measured = self.workload.run(setup, seconds)?;
        let relabel = |label: Label| Label {
            group: self.ground,
            name: format!("{}, {}", label.name, self.ground),
            x: label.x,
        };
        Ok(measured.into_iter().map(|(label, values)| (relabel(label), values)).collect())
    }
}
