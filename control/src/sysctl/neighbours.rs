//! Room in the kernel's tables of neighbours, of which the whole machine has one for IPv4 and one for IPv6: each user has an
//! entry for each node that he speaks to, and for a few seconds for each address that he tries. The kernel's own limit of
//! 1,024 is one user's scan away, and then nobody on the node finds a neighbour any more.

use std::fs;
use std::thread;

/// Below /proc/sys. Only the first network namespace has them (neigh_sysctl_register, net/core/neighbour.c).
const FOLDERS: [&str; 2] = ["net/ipv4/neigh/default", "net/ipv6/neigh/default"];
/// What an entry takes of the kernel's memory at most, bytes (struct neighbour, a MAC's header beside it, the slab's share).
const ENTRY: u64 = 512;
/// As many entries as fit in this share of the memory, and a thousand users' for a thousand nodes at most.
const SHARE: u64 = 32;
const FEWEST: u32 = 16_384;
const MOST: u32 = 1 << 20;

/// The settings, and what they are to be at least: above the first limit the kernel tidies up every five seconds, above the
/// other it refuses. `gc_thresh1` stays: below it the kernel keeps what nobody uses.
pub(super) fn wanted() -> Vec<(String, u32)> {
    let limit = limit(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let of_folder = |folder| {
        [("gc_thresh3", limit), ("gc_thresh2", limit / 2)]
            .map(|(name, limit)| (format!("{folder}/{name}"), limit))
    };
    FOLDERS.into_iter().flat_map(of_folder).collect()
}

/// How many entries a table may have. A power of two, which a few pages more or less do not change.
fn limit(meminfo: &str) -> u32 {
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let entries = u32::try_from(kib.unwrap_or(0) * 1024 / SHARE / ENTRY).unwrap_or(MOST);
    let power = 1 << entries.max(1).ilog2();
    power.clamp(FEWEST, MOST)
}

/// Reads or writes a setting where it is: in the first network namespace, if it is one of these and this one has none.
pub(super) fn there<T: Send>(setting: &str, work: impl FnOnce() -> T + Send) -> T {
    let is_one = FOLDERS.iter().any(|folder| setting.starts_with(folder));
    if !is_one || super::path(setting).exists() {
        return work();
    }
    // Of a thread of its own, which ends then.
    let enter = || {
        let first = fs::File::open("/proc/1/ns/net")?;
        nix::sched::setns(first, nix::sched::CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
    };
    let enter_and_work = || {
        if let Err(error) = enter() {
            tracing::debug!(%error, "the first network namespace is out of reach");
        }
        work()
    };
    thread::scope(|scope| {
        scope.spawn(enter_and_work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_goes_by_the_memory() {
        let of = |kib: u64| limit(&format!("MemTotal:       {kib} kB\nMemFree: 5 kB\n"));
        assert_eq!(of(2_000_000), 65_536);
        assert_eq!(of(2_090_000), 65_536, "a little more");
        assert_eq!(of(4_000_000), 131_072);
        assert_eq!(of(256 << 20), 1 << 20);
        assert_eq!(of(u64::MAX >> 11), 1 << 20);
        assert_eq!(of(300_000), 16_384);
        assert_eq!(limit(""), 16_384);
    }

    #[test]
    fn other_settings_are_read_here() {
        assert_eq!(there("net/ipv4/ip_forward", thread::current).id(), thread::current().id());
    }
}
