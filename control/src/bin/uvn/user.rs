//! A user as named on the command line.

use std::str::FromStr;

/// A user, who need not be in the user database.
#[derive(Debug, Clone)]
pub struct User {
    /// The UID.
    pub uid: u32,
    /// The user's entry in the user database, if there is one.
    pub entry: Option<nix::unistd::User>,
}

impl FromStr for User {
    type Err = String;

    /// Takes a UID, known or not, or a name.
    fn from_str(text: &str) -> Result<User, String> {
        if let Ok(uid) = text.parse::<u32>() {
            if uid == u32::MAX {
                return Err("4294967295 is no UID".into());
            }
            let entry = nix::unistd::User::from_uid(uid.into()).unwrap_or(None);
            return Ok(User { uid, entry });
        }
        match nix::unistd::User::from_name(text) {
            Ok(Some(entry)) => Ok(User { uid: entry.uid.as_raw(), entry: Some(entry) }),
            Ok(None) => Err("no user has this name".into()),
            Err(errno) => Err(format!("the user database cannot be asked: {errno}")),
        }
    }
}
