//! Boosts a NIC's traffic while that pays ([`trial`]), as far as `workers.boost` allows it. Where messages wait for each
//! other, the workers' cores stay awake ([`awake`]). Where there are many packets, the NIC also receives in threads
//! ([`napi`]): only in the shortcut gear, which does not need those cores.

pub mod awake;
pub mod napi;
pub mod trial;

use crate::port::link::Link;
use awake::Awake;
use napi::Napi;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use trial::{Load, Trial};
use uvn_api::dataplane::config::Boosting;
use uvn_api::dataplane::message::Boost;

/// The boosts of one NIC. Dropping it ends them.
#[derive(Debug)]
pub struct Booster {
    nic: String,
    trial: Trial,
    napi: Option<Napi>,
    /// None: not allowed, or not possible.
    awake: Option<Awake>,
    due: Instant,
}

impl Booster {
    /// What may be boosted on these cores; None: nothing. Nothing is yet.
    #[must_use]
    pub fn open(
        link: &Link,
        boosting: Boosting,
        cores: &[Option<usize>],
        in_threads: bool,
    ) -> Option<Booster> {
        let cores: Vec<usize> = cores.iter().copied().flatten().collect();
        awake::lift_what_is_left();
        // Also takes back the threads that a killed data plane has left.
        let napi = Napi::open(link, cores.clone());
        if boosting == Boosting::None || cores.is_empty() {
            return None;
        }
        let napi = napi.inspect_err(|error| tracing::info!(%error, "the NIC cannot receive in threads"));
        let napi = napi.ok().filter(|_| in_threads);
        let awake = (boosting == Boosting::Awake).then(|| Awake::of(cores));
        if napi.is_none() && awake.is_none() {
            return None;
        }
        let (nic, trial) = (link.name.clone(), Trial::new(awake.is_some()));
        Some(Booster { nic, trial, napi, awake, due: Instant::now() })
    }

    /// When [`Booster::follow`] must be called next.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The boost in force; None: none.
    #[must_use]
    pub fn boost(&self) -> Option<Boost> {
        if self.napi.as_ref().is_some_and(Napi::threads) {
            Some(Boost::Threads)
        } else {
            self.is_awake().then_some(Boost::Awake)
        }
    }

    /// The boost in force, in words behind the gear's reason.
    #[must_use]
    pub fn about(&self) -> &'static str {
        match (self.boost(), self.is_awake()) {
            (None, _) => "",
            (Some(Boost::Threads), false) => "; boosted: the NIC receives in threads on the workers' cores",
            (Some(Boost::Threads), true) => {
                "; boosted: the NIC receives in threads on the workers' cores, which stay awake"
            }
            (Some(Boost::Awake), _) => "; boosted: the workers' cores stay awake",
        }
    }

    fn is_awake(&self) -> bool {
        self.awake.as_ref().is_some_and(Awake::is_held)
    }

    /// Takes what the data plane has carried so far, and switches the boost if the trial says so. `load` is called only
    /// when it is due.
    pub fn follow(&mut self, now: Instant, load: impl FnOnce() -> Load) {
        if now < self.due {
            return;
        }
        let was_trying = self.trial.is_trying();
        let napi = self.napi.as_ref();
        let (real, time) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let time =
            (time + now.saturating_duration_since(real)).saturating_sub(real.saturating_duration_since(now));
        let boost = self.trial.step(now, time, load(), || napi.map(Napi::programs));
        self.due = now + self.trial.again(time);
        if boost != self.boost() {
            match (&mut self.awake, boost) {
                (Some(awake), None) => awake.lift(),
                (Some(awake), Some(_)) => {
                    if let Err(error) = awake.hold() {
                        tracing::warn!(%error, "cannot keep the workers' cores awake");
                        self.awake = None;
                        self.trial.may_not_be_awake();
                    }
                }
                (None, _) => {}
            }
            if let Some(napi) = &mut self.napi
                && let Err(error) = napi.set(boost == Some(Boost::Threads))
            {
                tracing::warn!(%error, "cannot switch the NIC's receive threads; the boost by threads is off");
                self.napi = None;
            }
        }
        if was_trying && !self.trial.is_trying() {
            tracing::info!(nic = self.nic, ?boost, "tried whether a boost pays");
        }
    }
}
