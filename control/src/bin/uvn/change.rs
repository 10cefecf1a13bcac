//! Commands that change something.

use crate::Holder;
use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use uvn_api::protocol::SCHEMA;
use uvn_api::uvnd::client::{Client, ClientError};
use uvn_api::uvnd::message::{self, Claim, Outcome, Release, Request};
use uvn_api::uvnd::status::Reply;
use uvn_control::purge;

type Done = Result<ExitCode, Box<dyn Error>>;

impl Holder {
    /// The claim of this holder. Clap ensures that a job has its process.
    pub fn claim(self) -> Claim {
        match (self.session, self.job, self.pid) {
            (Some(pid), ..) => Claim::Session { pid },
            (None, Some(job), Some(pid)) => Claim::Job { job, pid },
            _ => Claim::Manual,
        }
    }
}

pub fn attach(uid: u32, claim: Claim, dry_run: bool, as_json: bool) -> Done {
    let reply = Client::connect(message::socket())?.ask(&Request::Attach { uid, claim, dry_run })?;
    let Reply::Attached { outcome, steps } = reply else { return Err(ClientError::Mismatch.into()) };
    let text = match outcome {
        Outcome::NotPoliced => format!("user {uid} is not policed: no network needed"),
        Outcome::Known => format!("user {uid} has a network already"),
        Outcome::Made if dry_run => format!("user {uid} would get a network"),
        Outcome::Made => format!("user {uid} has a network now"),
        Outcome::Unknown => format!("user {uid} is attached, in a way that this uvn does not know"),
    };
    print(as_json, json!({ "uid": uid, "outcome": outcome, "steps": steps }), &text, shown(&steps, dry_run))
}

pub fn detach(uid: u32, claim: Option<Claim>, dry_run: bool, as_json: bool) -> Done {
    let what = claim.map_or(Release::All, Release::Claim);
    let reply = Client::connect(message::socket())?.ask(&Request::Detach { uid, what, dry_run })?;
    let Reply::Detached { leases, steps } = reply else { return Err(ClientError::Mismatch.into()) };
    let text = format!("user {uid}: {leases} leases remain");
    print(as_json, json!({ "uid": uid, "leases": leases, "steps": steps }), &text, shown(&steps, dry_run))
}

pub fn reload(dry_run: bool, force: bool, as_json: bool) -> Done {
    let reply = Client::connect(message::socket())?.ask(&Request::Reload { dry_run, force })?;
    let Reply::Steps { steps, count } = reply else { return Err(ClientError::Mismatch.into()) };
    let text = if dry_run { format!("{count} steps") } else { format!("reloaded: {count} steps") };
    print(as_json, json!({ "steps": steps, "count": count }), &text, &steps)
}

pub fn purge(dry_run: bool, as_json: bool) -> Done {
    if !dry_run && !nix::unistd::geteuid().is_root() {
        return Err("only root can purge".into());
    }
    let purged = purge::purge(dry_run);
    let text = match (dry_run, purged.errors.len()) {
        (true, _) => "nothing was changed".into(),
        (false, 0) => "uvn is off this node".into(),
        (false, count) => format!("{count} things could not be taken away: mend that and purge again"),
    };
    for error in &purged.errors {
        eprintln!("uvn: {error}");
    }
    for warning in &purged.warnings {
        eprintln!("uvn: warning: {warning}");
    }
    let whole = json!({ "steps": purged.steps, "errors": purged.errors, "warnings": purged.warnings });
    print(as_json, whole, &text, &purged.steps)?;
    Ok(ExitCode::from(u8::from(!purged.errors.is_empty())))
}

/// The steps to show: those of a dry run. Steps that were taken are of no interest to people.
fn shown(steps: &[String], dry_run: bool) -> &[String] {
    if dry_run { steps } else { &[] }
}

fn print(as_json: bool, mut whole: serde_json::Value, text: &str, steps: &[String]) -> Done {
    let mut out = std::io::stdout().lock();
    if as_json {
        whole["schema"] = json!(SCHEMA);
        writeln!(out, "{whole}")?;
    } else {
        for step in steps {
            writeln!(out, "{step}")?;
        }
        writeln!(out, "{text}")?;
    }
    Ok(ExitCode::SUCCESS)
}
