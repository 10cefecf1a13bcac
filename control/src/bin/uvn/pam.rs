//! `uvn pam`: a session opens or closes, says pam_exec (pam_exec(8)).
//!
//! Nobody who is not policed may be kept from logging in, least of all root, whatever is broken here.

use crate::user::User;
use nix::unistd::getppid;
use std::path::Path;
use std::process::ExitCode;
use uvn_control::client::{Client, ClientError};
use uvn_control::config::{Attachment, Config, default_policed};
use uvn_control::message::{self, Claim, Outcome, Release, Request};

/// What is printed goes to the user if pam_exec has the option `stdout`.
pub fn pam(config: &Path) -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let (kind, name) = (variable("PAM_TYPE"), variable("PAM_USER"));
    if name == "root" {
        return ExitCode::SUCCESS;
    }
    let config = Config::load(config);
    let attachment = config.as_ref().map_or(Attachment::Required, |config| config.attachment);
    match session(&kind, &name, config.ok().as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("uvn: no network for {name} on this node: {reason}. Please tell the administrators.");
            match attachment {
                Attachment::Required => ExitCode::FAILURE,
                Attachment::Optional => ExitCode::SUCCESS,
            }
        }
    }
}

fn session(kind: &str, name: &str, config: Option<&Config>) -> Result<(), String> {
    // A name, never a number: PAM_USER is one.
    let user = match nix::unistd::User::from_name(name) {
        Ok(Some(entry)) => User { uid: entry.uid.as_raw(), entry: Some(entry) },
        Ok(None) => return Err("no such user".into()),
        Err(errno) => return Err(format!("the user database cannot be asked: {errno}")),
    };
    if user.uid == 0 || config.is_some_and(|config| !config.is_policed(user.uid)) {
        return Ok(());
    }
    // pam_exec's own process: the one that opened the session, and closes it.
    let claim = Claim::Session { pid: getppid().as_raw() };
    let asked = Client::connect(message::socket()).and_then(|client| match kind {
        "open_session" => client.attach(user.uid, claim),
        "close_session" => {
            let what = Release::Claim(claim);
            client.ask(&Request::Detach { uid: user.uid, what, dry_run: false }).map(|_| Outcome::Known)
        }
        _ => Ok(Outcome::Known),
    });
    match asked {
        Ok(_) => Ok(()),
        // Without a file and without uvnd, the defaults tell who is policed.
        Err(ClientError::Connect { .. }) if config.is_none() && !policed_by_default(user.uid) => Ok(()),
        // uvnd sees for itself that the process has ended. A user's own systemd closes its session as the user, who may
        // not ask for it.
        Err(_) if kind == "close_session" => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn policed_by_default(uid: u32) -> bool {
    default_policed().iter().any(|range| range.contains(&uid))
}
