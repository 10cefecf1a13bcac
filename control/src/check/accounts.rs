//! Accounts that are not policed though they can log in or have processes; and groups of the configuration that do not
//! exist.

use crate::config::{Config, Group, default_admins};
use crate::lease::process;
use crate::limited;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;
use uvn_api::groups::gid;
use uvn_api::uvnd::finding::{Finding, Id, few};

/// How long the user database may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Programs in the place of a shell that let nobody in.
const NO_SHELLS: [&str; 5] = ["nologin", "false", "sync", "shutdown", "halt"];
/// UIDs of systemd's dynamic users, and `nobody` (systemd.io/UIDS-GIDS).
const NO_PEOPLE: [std::ops::RangeInclusive<u32>; 2] = [61184..=65519, 65534..=65534];

/// Findings about accounts and groups that the configuration does not fit.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let database = limited::output(Command::new("getent").arg("passwd"), b"", PATIENCE);
    let database = database.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let (database, silent) = match database {
        Ok(database) => (database, None),
        Err(error) => (String::new(), Some(Finding::warning(Id::Unpoliced, error, "mend the user database"))),
    };
    let limits = fs::read_to_string("/etc/login.defs").unwrap_or_default();
    let running = process::users(|_| true).unwrap_or_default().into_keys();
    let free = unpoliced(config, &database, uid_min(&limits), running);
    silent.into_iter().chain(free).chain(groups(config.clone())).collect()
}

/// [`unknown_groups`], within the time that the user database has.
fn groups(config: Config) -> Option<Finding> {
    let (told, answer) = channel();
    std::thread::spawn(move || told.send(unknown_groups(&config)));
    answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let what = format!("the user database has not told of groups within {} s", PATIENCE.as_secs());
        Some(Finding::fault(Id::Database, what, "mend LDAP, sssd or nsswitch.conf"))
    })
}

/// The first UID of people, by the text of login.defs(5).
fn uid_min(limits: &str) -> u32 {
    let value = |line: &str| line.strip_prefix("UID_MIN")?.trim().parse().ok();
    limits.lines().find_map(value).unwrap_or(1000)
}

/// The users who could use every port: accounts with a shell, and people who have processes.
fn unpoliced(
    config: &Config,
    database: &str,
    uid_min: u32,
    running: impl IntoIterator<Item = u32>,
) -> Option<Finding> {
    let is_free = |uid: u32| {
        uid != 0 && !config.is_policed(uid) && !config.exempt.iter().any(|range| range.contains(&uid))
    };
    let is_somebody = |uid: u32| uid >= uid_min && !NO_PEOPLE.iter().any(|range| range.contains(&uid));
    let running = running.into_iter().filter(|uid| is_somebody(*uid)).map(|uid| (uid, uid.to_string()));
    let mut free: BTreeMap<u32, String> = running.chain(database.lines().filter_map(with_shell)).collect();
    free.retain(|uid, _| is_free(*uid));
    let free: Vec<String> = free.iter().map(|(uid, name)| format!("{name} ({uid})")).collect();
    (!free.is_empty()).then(|| {
        let what = format!(
            "not policed, though they can log in: {}: they are in no network, and use every port",
            few(&free)
        );
        Finding::warning(Id::Unpoliced, what, "add them to `policed`; or to `exempt`, if that is meant")
    })
}

/// UID and name of an account that can log in, from a line of passwd(5); None: it cannot.
fn with_shell(line: &str) -> Option<(u32, String)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, _, _, _, shell] = fields[..] else { return None };
    let program = shell.rsplit('/').next().filter(|program| !program.is_empty());
    // An empty field is /bin/sh.
    let lets_in = program.is_none_or(|program| !NO_SHELLS.contains(&program));
    lets_in.then(|| Some((uid.parse().ok()?, name.to_owned())))?
}

/// Groups that do not exist. Each counts as if nobody were in it; a denied one, as if everybody were.
fn unknown_groups(config: &Config) -> Option<Finding> {
    let unknown = |groups: &[Group]| -> Vec<String> {
        groups.iter().filter(|group| !group.exists()).map(Group::to_string).collect()
    };
    let denied = unknown(&config.off_subnet.deny_groups);
    let admins = config.admins.iter().filter(|_| config.admins != default_admins());
    let admins = admins.filter(|name| gid(name).is_none()).cloned().collect();
    let all = [unknown(&config.off_subnet.allow_groups), denied.clone(), admins].concat();
    (!all.is_empty()).then(|| {
        let follows = if denied.is_empty() {
            ""
        } else {
            "; who comes now reaches nothing off-subnet until `deny_groups` exist"
        };
        let what = format!("no such group: {}{follows}", few(&all));
        Finding::fault(Id::Group, what, "correct [off_subnet] or `admins`, or mend the user database")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvn_api::toml_file;

    const DATABASE: &str = "root:x:0:0::/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nold:x:600:600::/home/old:/bin/sh\n\
        blank:x:601:601::/:\nsync:x:4:65534::/bin:/bin/sync\nalice:x:1234:1234::/home/alice:/bin/bash\n\
        home:x:60500:60500::/home/home:/bin/zsh\nnobody:x:65534:65534::/:/usr/sbin/nologin\nbroken\n";

    fn config(more: &str) -> Config {
        let text = format!(
            "{more}\n[[underlay]]\nsubnets = [\"10.0.0.0/24\"]\n[peers]\nrange = [\"10.0.0.0/24\"]\n"
        );
        toml_file::parse(&text).unwrap_or_else(|(line, broken)| panic!("{line}: {broken}"))
    }

    #[test]
    fn accounts_that_can_log_in_unpoliced_are_named() {
        let found = unpoliced(&config(""), DATABASE, 1000, [0, 33, 1234, 60600, 61200, 65534]);
        let what = found.map(|finding| finding.what).unwrap_or_default();
        let names = what.split(": ").nth(1).unwrap_or_default();
        assert_eq!(names, "old (600), blank (601), home (60500), 60600 (60600)");
        assert_eq!(unpoliced(&config("policed = [\"1-65533\"]"), DATABASE, 1000, []), None);
        assert_eq!(unpoliced(&config("exempt = [600, 601, 60500]"), DATABASE, 1000, []), None);
        let many: String = (1..=9).map(|uid| format!("a{uid}:x:{uid}:1::/:/bin/sh\n")).collect();
        let found = unpoliced(&config(""), &many, 1000, []).map(|finding| finding.what).unwrap_or_default();
        assert!(found.contains("a5 (5) and 4 more"), "{found}");
    }

    #[test]
    fn a_group_that_does_not_exist_is_named() {
        let groups = "[off_subnet]\nallow_groups = [\"root\", 7]\ndeny_groups = [\"no-such-group\"]";
        let text = format!(
            "[[underlay]]\nsubnets = [\"10.0.0.0/24\"]\n[peers]\nrange = [\"10.0.0.0/24\"]\n{groups}\n"
        );
        let config: Config =
            toml_file::parse(&text).unwrap_or_else(|(line, broken)| panic!("{line}: {broken}"));
        let found = unknown_groups(&config).map(|finding| finding.what).unwrap_or_default();
        assert!(found.starts_with("no such group: no-such-group"), "{found}");
    }

    #[test]
    fn the_first_uid_of_people_is_read() {
        assert_eq!(uid_min("# UID_MIN 5\nUID_MIN\t\t  500\nUID_MAX 60000\n"), 500);
        assert_eq!(uid_min(""), 1000);
    }
}
