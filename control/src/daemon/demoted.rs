//! NICs that `path = "auto"` has left to kernel VXLAN, and why. What a driver lacks is kept until the node boots or the
//! `[[underlay]]` changes: to try it again at each start of `uvnd` would make all endpoints anew, twice.

use crate::config::Underlay;
use crate::folder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Keeps what lasts over a restart of `uvnd`.
const KEPT: &str = "/run/uvn/kernel-nics.json";

/// By the NIC's name, why.
#[derive(Debug, Default)]
pub(super) struct Demoted {
    /// What the driver lacks.
    lasting: BTreeMap<String, Lasting>,
    /// What may be otherwise next time: a data plane that did not start.
    passing: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lasting {
    reason: String,
    /// The settings with which it was found.
    underlay: String,
}

impl Demoted {
    /// Begins with what an earlier uvnd has kept; a missing or broken file counts as empty.
    pub(super) fn load() -> Demoted {
        let text = fs::read_to_string(KEPT).unwrap_or_default();
        Demoted { lasting: serde_json::from_str(&text).unwrap_or_default(), passing: BTreeMap::new() }
    }

    /// Why a NIC is left to kernel VXLAN, and whether that is what its driver lacks; None: it is not.
    pub(super) fn reason(&self, nic: &str, underlay: &Underlay) -> Option<(&str, bool)> {
        let lasting = self.lasting.get(nic).filter(|lasting| lasting.underlay == settings(underlay));
        let lasting = lasting.map(|lasting| (lasting.reason.as_str(), true));
        lasting.or_else(|| self.passing.get(nic).map(|reason| (reason.as_str(), false)))
    }

    /// Leaves a NIC to kernel VXLAN.
    pub(super) fn insert(&mut self, nic: &str, underlay: &Underlay, Reason { text, lasts }: Reason) {
        if lasts {
            self.lasting.insert(nic.into(), Lasting { reason: text, underlay: settings(underlay) });
            self.save();
        } else {
            self.passing.insert(nic.into(), text);
        }
    }

    /// Gives all NICs another try, but for those whose lack lasts; or those as well.
    pub(super) fn forget(&mut self, all: bool) {
        self.passing.clear();
        if all {
            self.lasting.clear();
            self.save();
        }
    }

    fn save(&self) {
        let text = serde_json::to_string(&self.lasting).unwrap_or_default();
        if let Err(error) = folder::replace(Path::new(KEPT), &text) {
            tracing::warn!(%error, "cannot write {KEPT}: after a restart, uvnd tries the data planes again");
        }
    }
}

fn settings(underlay: &Underlay) -> String {
    format!("{underlay:?}")
}

/// Why a NIC is left to kernel VXLAN.
#[derive(Debug)]
pub(super) struct Reason {
    /// In words.
    pub text: String,
    /// Whether it is what the driver lacks.
    pub lasts: bool,
}

impl Reason {
    /// What may be otherwise next time.
    pub(super) fn passing(text: impl ToString) -> Reason {
        Reason { text: text.to_string(), lasts: false }
    }
}
