//! The turns. Contenders alternate, so that whatever else disturbs the machine disturbs them alike; only ratios within
//! one run mean anything.

use crate::contender::{Ground, Setup};
use crate::crowd;
use crate::noise::Watch;
use crate::plan::{Section, warm_up};
use crate::report::{ContenderInfo, Report};
use crate::workload::Workload;
use crate::workload::ping_pong::{Game, SMALL};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Instant;
use uvn_rig::error::RigError;
use uvn_rig::netns;
use uvn_rig::rig::NIC;
use uvn_rig::wire;

/// Runs all sections, and adds to the report what they measured and what they could not.
///
/// # Errors
/// The machine cannot tell about the wire. A contender that fails is only noted in the report.
pub fn sections(sections: &mut [Section], program: &Path, report: &mut Report) -> Result<(), RigError> {
    let mut progress = Progress::new(sections.iter().map(Section::takes).sum());
    for section in sections {
        let setups = set_up(section, program, report, &mut progress);
        for setup in &setups {
            introduce(setup, report)?;
        }
        interleave(section, &setups, report, &mut progress);
        progress.show("removing");
    }
    crowd::relate(report);
    progress.clear();
    Ok(())
}

/// Sets up all contenders of a section, and notes who cannot be.
fn set_up(section: &Section, program: &Path, report: &mut Report, progress: &mut Progress) -> Vec<Setup> {
    let mut setups = Vec::new();
    let Section { nodes, mtu, round_robin, .. } = *section;
    for (contender, why) in &section.absent {
        for workload in &section.workloads {
            report.miss(contender.name(), Some(workload.name()), why);
        }
    }
    for &contender in &section.contenders {
        for &networks in &section.networks {
            progress.show(&format!("{}: setting up {}", section.title, contender.name()));
            let ground = Ground { nodes, mtu, networks, round_robin, program };
            match Setup::new(contender, &ground).and_then(|setup| greet(&setup).map(|()| setup)) {
                Ok(setup) => {
                    setup.rest();
                    setups.push(setup);
                }
                Err(error) => section.workloads.iter().for_each(|workload| {
                    report.miss(contender.name(), Some(section.name_of(&**workload, networks)), &error);
                }),
            }
        }
    }
    setups
}

/// Has every other node answer the first: neighbours are known from then on.
fn greet(setup: &Setup) -> Result<(), RigError> {
    const TRIES: usize = 3;
    for node in 1..setup.nodes() {
        let greet = || Game::of(SMALL).play(&setup.place(0), &setup.place(node), 0.0);
        // The first frames may be dropped while a neighbour is being resolved.
        let mut answer = greet();
        for _ in 1..TRIES {
            answer = answer.or_else(|_| greet());
        }
        answer.map_err(|error| {
            RigError::program(&format!("node {}", node + 1), format!("no answer from it: {error}"))
        })?;
    }
    Ok(())
}

/// Notes who takes part.
fn introduce(setup: &Setup, report: &mut Report) -> Result<(), RigError> {
    if report.offloads.is_null() {
        report.offloads = wire::offloads(Some(&setup.rig.node(0)), NIC)?;
    }
    let name = setup.contender.name();
    if !report.contenders.iter().any(|contender| contender.name == name) {
        let about = setup.contender.about().to_owned();
        let gear = setup.gear().unwrap_or_else(|error| Some(format!("it does not tell how: {error}")));
        report.contenders.push(ContenderInfo {
            name: name.to_owned(),
            about,
            gear,
            measures: BTreeMap::default(),
        });
    }
    Ok(())
}

/// Runs every workload on every contender in each round; each round begins with another contender. Who fails a
/// workload is not asked for it again.
fn interleave(section: &mut Section, setups: &[Setup], report: &mut Report, progress: &mut Progress) {
    let (rounds, seconds) = (section.rounds, section.seconds);
    for index in 0..section.workloads.len() {
        if let Err(error) = section.workloads[index].prepare(setups, seconds) {
            for setup in setups {
                let name = section.name_of(&*section.workloads[index], setup.networks);
                report.miss(setup.contender.name(), Some(name), &error);
            }
        }
    }
    for round in 0..rounds {
        for workload in &section.workloads {
            for turn in 0..setups.len() {
                let setup = &setups[(turn + round) % setups.len()];
                let (contender, name) =
                    (setup.contender.name(), section.name_of(&**workload, setup.networks));
                progress.show(&format!("round {} of {rounds}: {name}, {contender}", round + 1));
                measure(section, &**workload, setup, report);
                progress.done(section.turn(&**workload, setup.contender));
            }
        }
    }
}

fn measure(section: &Section, workload: &dyn Workload, setup: &Setup, report: &mut Report) {
    let (contender, name) = (setup.contender.name(), section.name_of(workload, setup.networks));
    if let Some(why) = workload.unfit(setup.contender) {
        report.miss(contender, Some(name), why);
        return;
    }
    if report.has_missed(contender, &name) {
        return;
    }
    let awake = setup.wake();
    if let Some(seconds) = warm_up(setup.contender, workload) {
        // What is wrong will be told when it is measured.
        let _unmeasured = workload.run(setup, seconds);
    }
    let watch = Watch::start();
    let outcome = workload.run(setup, section.seconds);
    setup.measures().for_each(|measure| report.note_measure(contender, &measure, &name));
    drop(awake);
    setup.rest();
    match outcome {
        Ok(measured) => {
            let disturbance = watch.disturbance();
            for (label, values) in measured {
                let label = if section.is_crowd() { crowd::label(&label, setup.networks) } else { label };
                for (metric, value) in values {
                    report.add(&label, contender, metric, value, disturbance.clone());
                }
            }
        }
        Err(error) => report.miss(contender, Some(name), error),
    }
}

/// A line that tells how far a run is: rewritten on a terminal, and otherwise written when a round or section begins.
pub struct Progress {
    begin: Instant,
    total: f64,
    done: f64,
    terminal: bool,
    last: String,
}

impl Progress {
    /// Of work that takes about `total` seconds.
    #[must_use]
    pub fn new(total: f64) -> Progress {
        let terminal = std::io::stdout().is_terminal();
        Progress { begin: Instant::now(), total, done: 0.0, terminal, last: String::new() }
    }

    /// So many seconds of it are done.
    pub fn done(&mut self, seconds: f64) {
        self.done += seconds;
    }

    /// Says what is being done.
    pub fn show(&mut self, what: &str) {
        let _unless_stopping = netns::running();
        let percent = 100.0 * (self.done / self.total.max(0.1)).min(1.0);
        let line = format!("[{percent:3.0} %, {:4} s] {what}", self.begin.elapsed().as_secs());
        if self.terminal {
            print!("\r\x1b[K{line}");
            let _best_effort = std::io::stdout().flush();
        } else {
            let heading = what.split(':').next().unwrap_or_default();
            if heading != self.last {
                println!("{line}");
                self.last = heading.to_owned();
            }
        }
    }

    /// It is over.
    pub fn clear(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
        println!("took {} s", self.begin.elapsed().as_secs());
    }
}
