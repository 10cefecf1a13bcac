//! NICs that `path = "auto"` has left to kernel VXLAN, and why. What a driver lacks is kept until the node boots or the
//! configuration changes: to try it again at each start of `uvnd` would make all endpoints anew, twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Keeps what lasts over a restart of `uvnd`.
const KEPT: &str = "/run/uvn/kernel-nics.json";

/// By the NIC's name, why.
#[derive(Debug, Default)]
pub(super) struct Demoted {
    /// What the driver lacks.
    lasting: BTreeMap<String, String>,
    /// What may be otherwise next time: a data plane that did not start.
    passing: BTreeMap<String, String>,
}

impl Demoted {
    /// Begins with what an earlier uvnd has kept; a missing or broken file counts as empty.
    pub(super) fn load() -> Demoted {
        let text = fs::read_to_string(KEPT).unwrap_or_default();
        Demoted { lasting: serde_json::from_str(&text).unwrap_or_default(), passing: BTreeMap::new() }
    }

    /// Why a NIC is left to kernel VXLAN; None: it is not.
    pub(super) fn reason(&self, nic: &str) -> Option<&String> {
        self.lasting.get(nic).or_else(|| self.passing.get(nic))
    }

    /// Leaves a NIC to kernel VXLAN.
    pub(super) fn insert(&mut self, nic: &str, Reason { text, lasts }: Reason) {
        let reasons = if lasts { &mut self.lasting } else { &mut self.passing };
        reasons.insert(nic.into(), text);
        self.save();
    }

    /// Gives all NICs another try, but for those whose lack lasts and that `stays` names.
    pub(super) fn forget(&mut self, stays: impl Fn(&str) -> bool) {
        self.passing.clear();
        self.lasting.retain(|nic, _| stays(nic));
        self.save();
    }

    fn save(&self) {
        let text = serde_json::to_string(&self.lasting).unwrap_or_default();
        let new = Path::new(KEPT).with_extension("new");
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, KEPT)) {
            tracing::warn!(%error, "cannot write {KEPT}: after a restart, uvnd tries the data planes again");
        }
    }
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
