//! Whether a user's groups let the user reach beyond the underlay's subnets.

use super::{Group, OffSubnet, Verdict};
use std::io;
use uvn_api::groups;

impl OffSubnet {
    /// Whether all users may, or none; None: groups decide.
    #[must_use]
    pub fn of_all(&self) -> Option<bool> {
        let by_groups = !self.allow_groups.is_empty() || !self.deny_groups.is_empty();
        (!by_groups).then_some(self.default == Verdict::Allow)
    }

    /// Asks the user database, for as long as that takes, whether a user may; None: it cannot tell.
    #[must_use]
    pub fn ask(&self, uid: u32) -> Option<bool> {
        self.look_up(uid)
            .inspect_err(|error| tracing::debug!(uid, %error, "cannot look up the user's groups"))
            .ok()
    }

    fn look_up(&self, uid: u32) -> io::Result<bool> {
        let member = groups::of_user(uid)?;
        // One that the database does not know may be any: perhaps it knows it later.
        let denied = self.deny_groups.iter().map(|group| find(group)?.ok_or(io::ErrorKind::NotFound.into()));
        Ok(self.verdict(&member, &denied.collect::<io::Result<Vec<u32>>>()?))
    }

    /// Whether a member of these groups may.
    fn verdict(&self, member: &[u32], denied: &[u32]) -> bool {
        let of = |gid: &u32| member.contains(gid);
        if denied.iter().any(of) {
            return false;
        }
        let allowed = |group: &Group| gid(group).is_some_and(|gid| of(&gid));
        self.default == Verdict::Allow || self.allow_groups.iter().any(allowed)
    }
}

impl Group {
    /// Whether the user database has the group; a number needs no entry.
    #[must_use]
    pub fn exists(&self) -> bool {
        gid(self).is_some()
    }
}

fn gid(group: &Group) -> Option<u32> {
    find(group).ok().flatten()
}

fn find(group: &Group) -> io::Result<Option<u32>> {
    match group {
        Group::Number(gid) => Ok(Some(*gid)),
        Group::Name(name) => groups::find(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_group_wins_and_an_allowed_one_beats_the_default() {
        let policy = OffSubnet {
            default: Verdict::Deny,
            allow_groups: vec![Group::Number(7), Group::Name("root".into())],
            deny_groups: Vec::new(),
        };
        assert!(policy.verdict(&[1, 7], &[]) && policy.verdict(&[0], &[]));
        assert!(!policy.verdict(&[1], &[]) && !policy.verdict(&[1, 7], &[1]) && !policy.verdict(&[], &[]));
        let policy = OffSubnet { default: Verdict::Allow, ..policy };
        assert!(policy.verdict(&[1], &[2]) && !policy.verdict(&[1], &[1]));
    }

    #[test]
    fn an_unknown_denied_group_refuses() {
        let policy =
            OffSubnet { deny_groups: vec![Group::Name("no-such-group".into())], ..OffSubnet::default() };
        assert_eq!((policy.of_all(), policy.ask(0)), (None, None));
        // The user database has root in group 0.
        let policy = OffSubnet { deny_groups: vec![Group::Number(0)], ..OffSubnet::default() };
        assert_eq!([0, 4_000_000_000].map(|uid| policy.ask(uid)), [Some(false), Some(true)]);
        assert_eq!(OffSubnet::default().of_all(), Some(true));
    }
}
