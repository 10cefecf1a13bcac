//! Keeps the workers' cores out of deep sleep, by the latency that the kernel may take to wake each of them up
//! (Documentation/ABI/testing/sysfs-devices-power, `pm_qos_resume_latency_us`). Other cores sleep as they like. A core
//! takes 1 to 100 us and more to wake up, which delays each message of a ping-pong.
//!
//! The kernel does not count who has set the limit, so data planes do: each has a lock on a file per core while it keeps
//! that core awake. The last one lifts the limit. A killed one loses its locks, and the next data plane lifts its limits.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The microseconds that a core may take to wake up. The kernel's default, no limit, is 0.
const LATENCY: &str = "10";
const NO_LIMIT: &str = "0";
/// Where the locks are: `awake-` and the core's number.
const LOCKS: &str = "/run/uvn";
const LOCK: &str = "awake-";

/// The limits of some cores. Dropping it lifts them.
#[derive(Debug)]
pub struct Awake {
    cores: Vec<usize>,
    /// The cores that are kept awake.
    held: Vec<(usize, Flock<File>)>,
}

impl Awake {
    /// Sets no limit yet.
    #[must_use]
    pub fn of(cores: Vec<usize>) -> Awake {
        Awake { cores, held: Vec::new() }
    }

    /// Whether cores are kept awake.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Keeps the cores awake from now on. A core that somebody else has given a limit keeps that.
    ///
    /// # Errors
    /// None of them can be kept awake.
    pub fn hold(&mut self) -> io::Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let mut why = io::Error::other("others have limited the latency of each core");
        for &core in &self.cores {
            match hold(core) {
                Ok(Some(lock)) => self.held.push((core, lock)),
                Ok(None) => {}
                Err(error) => why = error,
            }
        }
        if self.held.is_empty() { Err(why) } else { Ok(()) }
    }

    /// Lets them sleep again.
    pub fn lift(&mut self) {
        for (core, lock) in self.held.drain(..) {
            drop(lock);
            if let Err(error) = lift(core) {
                tracing::warn!(core, %error, "cannot let a core sleep: write 0 to its pm_qos_resume_latency_us");
            }
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.lift();
    }
}

/// Lifts the limits that killed data planes have left, on whatever cores.
pub fn lift_what_is_left() {
    let files = fs::read_dir(LOCKS).into_iter().flatten().flatten();
    let cores = files.filter_map(|file| file.file_name().to_str()?.strip_prefix(LOCK)?.parse().ok());
    for core in cores {
        if let Err(error) = lift(core) {
            tracing::warn!(core, %error, "cannot let a core sleep: write 0 to its pm_qos_resume_latency_us");
        }
    }
}

/// Keeps a core awake, until the lock is dropped and the core's limit lifted; None: somebody else has given it a limit.
fn hold(core: usize) -> io::Result<Option<Flock<File>>> {
    fs::create_dir_all(LOCKS)?;
    let file = File::options().create(true).truncate(false).write(true).open(lock_file(core))?;
    // Another data plane has it alone for microseconds.
    let mut lock = Flock::lock(file, FlockArg::LockShared).map_err(|(_, errno)| errno)?;
    let limit = read(core)?;
    let ours = lock.metadata()?.len() > 0;
    if !ours && limit != NO_LIMIT {
        return Ok(None);
    }
    // First: whoever finds this in the file lifts the limit.
    lock.write_all(LATENCY.as_bytes())?;
    fs::write(path(core), LATENCY)?;
    Ok(Some(lock))
}

/// Lifts a core's limit if a data plane has set it and none keeps the core awake any more.
fn lift(core: usize) -> io::Result<()> {
    let file = File::options().write(true).open(lock_file(core))?;
    let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(()) };
    if lock.metadata()?.len() > 0 {
        if read(core)? == LATENCY {
            fs::write(path(core), NO_LIMIT)?;
        }
        lock.set_len(0)?;
    }
    Ok(())
}

fn lock_file(core: usize) -> PathBuf {
    Path::new(LOCKS).join(format!("{LOCK}{core}"))
}

/// A core's file; the kernel has none without power management.
fn path(core: usize) -> String {
    format!("/sys/devices/system/cpu/cpu{core}/power/pm_qos_resume_latency_us")
}

fn read(core: usize) -> io::Result<String> {
    fs::read_to_string(path(core)).map(|text| text.trim().to_owned())
}
