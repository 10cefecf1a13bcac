//! Boosts a NIC's traffic while that pays ([`trial`]). Where messages wait for each other, cores stay awake
//! ([`awake`]). Where there are many packets, the NIC also receives in threads ([`napi`]): only in the shortcut gear,
//! which does not need the workers' cores.

pub mod awake;
pub mod napi;
pub mod trial;

use crate::port::link::Link;
use awake::Awake;
use napi::{Napi, NapiError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use trial::{Load, Trial};
use uvn_api::dataplane::message::Boost;

/// The boosts of one NIC. Dropping it ends them.
#[derive(Debug)]
pub struct Booster {
    nic: String,
    /// The files of the NIC's counters, in the order of [`Load`]'s fields.
    counters: [File; 4],
    trial: Trial,
    napi: Option<Napi>,
    awake: Awake,
    due: Instant,
}

impl Booster {
    /// Opens a NIC's counters; nothing is boosted yet. Threads will run on these cores in turn; None: no threads.
    ///
    /// # Errors
    /// Its counters cannot be read.
    pub fn open(link: &Link, cores: Option<Vec<usize>>) -> Result<Booster, NapiError> {
        let counter = |name: &str| {
            let path = format!("/sys/class/net/{}/statistics/{name}", link.name);
            File::open(&path).map_err(|source| NapiError::File { path, source })
        };
        napi::check_namespace(link)?;
        let counters =
            [counter("rx_packets")?, counter("rx_bytes")?, counter("tx_packets")?, counter("tx_bytes")?];
        let napi = cores.and_then(|cores| {
            Napi::open(link, cores)
                .inspect_err(|error| tracing::info!(%error, "the NIC cannot receive in threads"))
                .ok()
        });
        let (nic, trial, awake) = (link.name.clone(), Trial::default(), Awake::default());
        Ok(Booster { nic, counters, trial, napi, awake, due: Instant::now() })
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
            self.awake.is_held().then_some(Boost::Awake)
        }
    }

    /// Reads the NIC's load, and switches the boost if the trial says so.
    pub fn follow(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        let was_trying = self.trial.is_trying();
        let load = self.load();
        let napi = self.napi.as_ref();
        let boost = self.trial.step(now, load, || napi.map(Napi::programs));
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.due = now + self.trial.again(time.saturating_sub(now.elapsed()));
        if boost != self.boost() {
            self.awake.hold(boost.is_some());
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

    fn load(&self) -> Load {
        let [rx_packets, rx_bytes, tx_packets, tx_bytes] = self.counters.each_ref().map(|file| {
            let mut text = [0; 24];
            let length = file.read_at(&mut text, 0).unwrap_or(0);
            let text = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
            // If the NIC has gone, its load is 0.
            text.trim().parse().unwrap_or(0)
        });
        Load { rx_packets, rx_bytes, tx_packets, tx_bytes }
    }
}
