//! Membership in groups, as the user database has it.

#![allow(unsafe_code, reason = "getpwuid_r, getgrnam_r and getgrouplist have no safe interface in std")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;

/// Buffer for an entry of the user database with its strings, bytes: the largest LDAP groups have some 100,000 members.
const ENTRY: usize = 4 << 20;
/// The most groups of one user (limits.h, NGROUPS_MAX).
const GROUPS: usize = 1 << 16;

/// Whether a user is in one of these groups. If the database does not know the user or group, or does not answer, the
/// user is in none.
#[must_use]
pub fn is_member(uid: u32, groups: &[String]) -> bool {
    let wanted: Vec<u32> = groups.iter().filter_map(|name| gid(name)).collect();
    !wanted.is_empty() && of_user(uid).is_ok_and(|member| member.iter().any(|gid| wanted.contains(gid)))
}

/// The GID of a group; None: the database does not know it, or does not answer.
#[must_use]
pub fn gid(name: &str) -> Option<u32> {
    find(name).ok().flatten()
}

/// The GID of a group; None: the database does not know it.
///
/// # Errors
/// The database cannot be asked.
pub fn find(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let (mut entry, mut found) = (MaybeUninit::uninit(), std::ptr::null_mut());
    let mut buffer: Vec<c_char> = vec![0; ENTRY];
    // SAFETY: the name ends in NUL; the entry and the buffer, with its length, are ours until this function returns.
    let result = unsafe {
        libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found)
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: if it was found, the entry is filled in.
    Ok((!found.is_null()).then(|| unsafe { entry.assume_init_ref() }.gr_gid))
}

/// All GIDs of a user; none if the user has no entry in the user database.
///
/// # Errors
/// The database cannot be asked.
pub fn of_user(uid: u32) -> io::Result<Vec<u32>> {
    let (mut entry, mut found) = (MaybeUninit::uninit(), std::ptr::null_mut());
    let mut buffer: Vec<c_char> = vec![0; ENTRY];
    // SAFETY: as above.
    let result = unsafe {
        libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found)
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    if found.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: the entry is filled in; its name is a string in the buffer, which is still there.
    let (name, group): (&CStr, u32) = unsafe {
        let entry: &libc::passwd = entry.assume_init_ref();
        (CStr::from_ptr(entry.pw_name), entry.pw_gid)
    };
    let mut groups = vec![0; GROUPS];
    let mut count = GROUPS as c_int;
    // SAFETY: the name ends in NUL, and the array has room for as many as `count` says.
    let result = unsafe { libc::getgrouplist(name.as_ptr(), group, groups.as_mut_ptr(), &raw mut count) };
    groups.truncate(usize::try_from(count).unwrap_or(0));
    if result < 0 { Err(io::Error::other("more groups than the kernel has room for")) } else { Ok(groups) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_database_tells_who_is_a_member() {
        let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        assert_eq!(gid("root"), Some(0));
        assert!(is_member(0, &groups(&["no-such-group", "root"])));
        assert!(!is_member(0, &groups(&["no-such-group", "in\0valid"])) && !is_member(0, &[]));
        assert!(!is_member(4_000_000_000, &groups(&["root"])), "no such user");
        assert_eq!(of_user(4_000_000_000).ok(), Some(Vec::new()));
    }
}
