//! Runs the NIC's receive processing (NAPI) in kernel threads on the workers' cores, which the shortcut does not need.
//! Needs Linux 6.8, which lists the threads.

#![allow(unsafe_code, reason = "the scheduling of other threads has no safe interface")]

use super::trial::Programs;
use crate::port::link::{self, Link};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_DUMP, Nla, NlasIterator, Parseable, ParseableParametrized,
    parse_u32,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use thiserror::Error;

/// Why a NIC cannot receive in threads.
#[derive(Debug, Error)]
pub enum NapiError {
    /// Somebody else has switched the threads on.
    #[error("{0} is 1 already: somebody has set it, so it stays")]
    SetByOthers(String),
    /// /sys shows another network namespace.
    #[error("{0} belongs to another network namespace")]
    Elsewhere(String),
    /// A file of /sys cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The threads cannot be listed.
    #[error("the kernel does not list the NIC's NAPI threads (Linux 6.8 and later do): {0}")]
    Unknown(io::Error),
    /// A thread cannot be moved to its core.
    #[error("NAPI thread {pid}: {source}")]
    Thread {
        /// Its thread ID.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The receive threads of one NIC. Dropping it switches them off.
#[derive(Debug)]
pub struct Napi {
    nic: String,
    index: u32,
    cores: Vec<usize>,
    threads: bool,
}

impl Napi {
    /// Checks that a NIC can receive in threads, without switching them on. They will run on these cores in turn.
    ///
    /// # Errors
    /// See [`NapiError`].
    pub fn open(link: &Link, cores: Vec<usize>) -> Result<Napi, NapiError> {
        check_namespace(link)?;
        let mut napi = Napi { nic: link.name.clone(), index: link.index, cores, threads: false };
        let threaded = read(&napi.switch())?;
        if threaded.trim() != "0" {
            // A killed data plane has left its threads on exactly these cores.
            let pids = napi.pids()?;
            let left =
                pids.iter().zip(napi.cores.iter().cycle()).all(|(pid, core)| affinity(*pid) == [*core]);
            if pids.is_empty() || napi.cores.is_empty() || !left {
                return Err(NapiError::SetByOthers(napi.switch()));
            }
            napi.set(false)?;
        }
        Ok(napi)
    }

    /// Whether the threads are in use.
    #[must_use]
    pub fn threads(&self) -> bool {
        self.threads
    }

    /// The time that programs have had on each of the threads' cores (proc_stat(5)).
    #[must_use]
    pub fn programs(&self) -> Vec<Programs> {
        /// USER_HZ (include/asm-generic/param.h).
        const TICKS: f64 = 100.0;
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let lines: HashMap<usize, &str> = stat
            .lines()
            .filter_map(|line| line.strip_prefix("cpu")?.split_once(' '))
            .filter_map(|(core, ticks)| Some((core.parse().ok()?, ticks)))
            .collect();
        let of = |core: &usize| {
            let ticks = lines.get(core).copied().unwrap_or_default();
            let mut ticks = ticks.split_whitespace().map(|ticks| ticks.parse().unwrap_or(0.0));
            let mut next = || ticks.next().unwrap_or(0.0) / TICKS;
            let (user, nice, system) = (next(), next(), next());
            Programs { user: user + nice, system }
        };
        self.cores.iter().map(of).collect()
    }

    fn switch(&self) -> String {
        format!("/sys/class/net/{}/threaded", self.nic)
    }

    /// Switches the threads on or off.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set(&mut self, threads: bool) -> Result<(), NapiError> {
        let path = self.switch();
        self.threads = threads;
        std::fs::write(&path, if threads { "1" } else { "0" })
            .map_err(|source| NapiError::File { path, source })?;
        if threads {
            for (pid, core) in self.pids()?.into_iter().zip(self.cores.iter().cycle()) {
                run_on(pid, *core).map_err(|source| NapiError::Thread { pid, source })?;
            }
        }
        Ok(())
    }

    fn pids(&self) -> Result<Vec<i32>, NapiError> {
        threads(self.index).map_err(NapiError::Unknown)
    }
}

impl Drop for Napi {
    fn drop(&mut self) {
        if self.threads
            && let Err(error) = self.set(false)
        {
            tracing::debug!(%error, "cannot end the NIC's receive threads");
        }
    }
}

/// Checks that /sys shows this network namespace.
pub(super) fn check_namespace(link: &Link) -> Result<(), NapiError> {
    let index = format!("/sys/class/net/{}/ifindex", link.name);
    if read(&index)?.trim() == link.index.to_string() { Ok(()) } else { Err(NapiError::Elsewhere(index)) }
}

fn read(path: &str) -> Result<String, NapiError> {
    std::fs::read_to_string(path).map_err(|source| NapiError::File { path: path.into(), source })
}

fn affinity(pid: i32) -> Vec<usize> {
    let Ok(set) = nix::sched::sched_getaffinity(Pid::from_raw(pid)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
}

/// Moves a thread to a core, with priority over programs: nice -20, or this process's own real-time class if it has
/// one.
fn run_on(pid: i32, core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(pid), &set)?;
    // SAFETY: neither call takes memory of ours but the parameter, which outlives it.
    let refused = unsafe {
        let mut parameter: libc::sched_param = std::mem::zeroed();
        match libc::sched_getscheduler(0) {
            class @ (libc::SCHED_FIFO | libc::SCHED_RR) => {
                libc::sched_getparam(0, &raw mut parameter) < 0
                    || libc::sched_setscheduler(pid, class, &raw const parameter) < 0
            }
            _ => libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), -20) < 0,
        }
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The thread IDs of a device's NAPI threads, in the order of its queues (Documentation/netlink/specs/netdev.yaml,
/// `napi-get`).
///
/// # Errors
/// The kernel's refusal, as before Linux 6.8.
pub fn threads(index: u32) -> io::Result<Vec<i32>> {
    let ask = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Netdev::family_name().into())],
    };
    let families = link::netlink_exchange(NETLINK_GENERIC, GenlMessage::from_payload(ask), 0)?;
    let family =
        families.iter().flat_map(|family| &family.payload.nlas).find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
    let family = family.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    let mut ask =
        GenlMessage::from_payload(Netdev(vec![DefaultNla::new(Netdev::IFINDEX, index.to_ne_bytes().into())]));
    ask.set_resolved_family_id(family);
    let answers = link::netlink_exchange(NETLINK_GENERIC, ask, NLM_F_DUMP)?;
    let mut threads: Vec<(u32, u32)> = answers
        .iter()
        .filter_map(|answer| Some((answer.payload.get(Netdev::ID)?, answer.payload.get(Netdev::PID)?)))
        .collect();
    threads.sort_unstable();
    Ok(threads.into_iter().map(|(_, pid)| pid.cast_signed()).collect())
}

/// A request or an answer of `napi-get` (include/uapi/linux/netdev.h).
#[derive(Debug, Clone)]
struct Netdev(Vec<DefaultNla>);

impl Netdev {
    /// NETDEV_CMD_NAPI_GET.
    const NAPI_GET: u8 = 11;
    /// NETDEV_A_NAPI_IFINDEX, _ID and _PID: each a u32.
    const IFINDEX: u16 = 1;
    const ID: u16 = 2;
    const PID: u16 = 4;

    fn get(&self, kind: u16) -> Option<u32> {
        let attribute = self.0.iter().find(|attribute| attribute.kind() == kind)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        parse_u32(&value).ok()
    }
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        Netdev::NAPI_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        NlasIterator::new(bytes)
            .map(|attribute| attribute.and_then(|attribute| DefaultNla::parse(&attribute)))
            .collect::<Result<_, _>>()
            .map(Netdev)
    }
}
