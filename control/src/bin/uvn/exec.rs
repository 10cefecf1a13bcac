//! `uvn exec`: this process becomes the user's.

use crate::user::User;
use nix::unistd::{Gid, Uid, getpid, initgroups, setgroups, setresgid, setresuid};
use std::error::Error;
use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use uvn_api::uvnd::client::Client;
use uvn_api::uvnd::message::{self, Claim};

/// The group of users that the database does not know: `nogroup`.
const NO_GROUP: u32 = 65534;

/// Holds the user's network with this process, and then becomes the command.
pub fn exec(user: &User, command: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let claim = Claim::Session { pid: getpid().as_raw() };
    Client::connect(message::socket())?.attach(user.uid, claim)?;
    let uid = Uid::from_raw(user.uid);
    let gid = user.entry.as_ref().map_or(Gid::from_raw(NO_GROUP), |entry| entry.gid);
    let mut command = Command::new(program);
    command.args(arguments);
    match &user.entry {
        Some(entry) => {
            initgroups(&CString::new(entry.name.as_str())?, gid)?;
            command.env("USER", &entry.name).env("LOGNAME", &entry.name).env("HOME", &entry.dir);
        }
        None => setgroups(&[gid])?,
    }
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let error = command.exec();
    Err(format!("{program}: {error}").into())
}
