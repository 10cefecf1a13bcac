//! What is compared: ways to get a user's packets from one node to the other, each on a rig of its own.

use crate::cores::Cores;
use crate::dataplane::Dataplane;
use crate::process::Place;
use crate::rig::{ADDRESSES, NIC, Rig, RigError, USERS, ip};
use crate::shell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No encapsulation: between the nodes themselves.
    Raw,
    /// The kernel's VXLAN devices; applications on their cores.
    Kernel,
    /// The same, but applications may use all cores of their node, the networking core too.
    KernelAllCores,
    /// The same as `Kernel`, with the wire's NAPI in threads on the networking cores.
    KernelTuned,
    /// A data plane per node, its worker on the networking core.
    Uvn,
    /// The same, with the wire's NAPI in threads on the applications' cores: the worker has its core to itself.
    UvnNapi,
    /// The same, with the worker on the applications' core: no more cores than `Kernel`, and no wake-ups between cores.
    UvnShared,
    /// The same as `Uvn`, among 198 further networks on each node.
    UvnCrowded,
}

/// Networks on a node of [`Kind::UvnCrowded`], besides the users'.
const CROWD: u32 = 198;

impl Kind {
    /// Its name, for tables and for names of namespaces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Raw => "raw",
            Kind::Kernel => "kernel VXLAN",
            Kind::KernelAllCores => "kernel, all cores",
            Kind::KernelTuned => "kernel tuned",
            Kind::Uvn => "uvn",
            Kind::UvnNapi => "uvn, NAPI threads",
            Kind::UvnShared => "uvn, shared cores",
            Kind::UvnCrowded => "uvn, 200 networks",
        }
    }

    /// What it is and which cores it has.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Kind::Raw => "no encapsulation, node to node; application cores only",
            Kind::Kernel => "a VXLAN device per user, GRO on; application cores only",
            Kind::KernelAllCores => "the same; applications may use the networking cores too",
            Kind::KernelTuned => {
                "the same as kernel VXLAN; the wire's NAPI in threads on the networking cores"
            }
            Kind::Uvn => "a data plane per node, its worker on the networking core",
            Kind::UvnNapi => "the same; the wire's NAPI in threads on the application cores",
            Kind::UvnShared => "the same as uvn, but with the worker on the application core",
            Kind::UvnCrowded => "the same as uvn, with 198 more networks on each node",
        }
    }

    const fn tag(self) -> &'static str {
        match self {
            Kind::Raw => "raw",
            Kind::Kernel => "kernel",
            Kind::KernelAllCores => "kernelall",
            Kind::KernelTuned => "tuned",
            Kind::Uvn => "uvn",
            Kind::UvnNapi => "uvnnapi",
            Kind::UvnShared => "uvnshared",
            Kind::UvnCrowded => "uvncrowd",
        }
    }
}

/// A contender, ready for traffic. Dropping it removes it.
pub struct Setup {
    /// Which it is.
    pub kind: Kind,
    /// The data planes of both nodes; none where the kernel does it. Before the rig: they stop first.
    pub dataplanes: Vec<Dataplane>,
    /// Its nodes and users.
    pub rig: Rig,
    cores: Cores,
}

impl Setup {
    /// Makes the rig and what carries the packets on it; `program` is `uvn-dataplane`.
    ///
    /// # Errors
    /// A step failed; what was made is removed.
    pub fn new(kind: Kind, cores: &Cores, program: &Path) -> Result<Setup, RigError> {
        let rig = Rig::new(kind.tag())?;
        let dataplanes = match kind {
            Kind::Raw => Vec::new(),
            Kind::Kernel | Kind::KernelAllCores | Kind::KernelTuned => {
                add_kernel_vxlan(&rig)?;
                Vec::new()
            }
            Kind::Uvn | Kind::UvnNapi => start_dataplanes(&rig, cores, program, 0)?,
            Kind::UvnShared => start_dataplanes(&rig, &cores.sharing(), program, 0)?,
            Kind::UvnCrowded => start_dataplanes(&rig, cores, program, CROWD)?,
        };
        match kind {
            Kind::KernelTuned => thread_napi(&rig, cores.net)?,
            Kind::UvnNapi => thread_napi(&rig, [cores.apps[0][0], cores.apps[1][0]])?,
            _ => {}
        }
        Ok(Setup { kind, dataplanes, rig, cores: cores.clone() })
    }

    /// The name of a user's endpoint device.
    #[must_use]
    pub fn device(&self, user: u32) -> String {
        match self.kind {
            Kind::Raw => NIC.to_owned(),
            Kind::Kernel | Kind::KernelAllCores | Kind::KernelTuned => format!("vx{user}"),
            Kind::Uvn | Kind::UvnNapi | Kind::UvnShared | Kind::UvnCrowded => format!("u{user}"),
        }
    }

    /// Where a user's programs run on a node. Without encapsulation there are no users: the node itself.
    #[must_use]
    pub fn place(&self, node: usize, user: u32) -> Place {
        let netns = match self.kind {
            Kind::Raw => self.rig.node(node),
            _ => self.rig.user(node, user),
        };
        let cores = match self.kind {
            Kind::KernelAllCores => self.cores.node_list(node),
            _ => self.cores.apps_list(node),
        };
        Place { netns, cores }
    }
}

fn start_dataplanes(
    rig: &Rig,
    cores: &Cores,
    program: &Path,
    further: u32,
) -> Result<Vec<Dataplane>, RigError> {
    let mut dataplanes: Vec<Dataplane> =
        (0..2).map(|node| Dataplane::start(program, rig, node, cores, further)).collect::<Result<_, _>>()?;
    dataplanes.iter_mut().try_for_each(Dataplane::wait)?;
    Ok(dataplanes)
}

/// A VXLAN device per user and node, made on the wire and moved to the user's namespace.
/// Without outer UDP checksum, as the data plane: the same bytes on the wire.
fn add_kernel_vxlan(rig: &Rig) -> Result<(), RigError> {
    for user in USERS {
        let (vni, device) = (user.to_string(), format!("vx{user}"));
        for (node, (v4, v6)) in ADDRESSES.iter().enumerate() {
            let (netns, peer) = (rig.node(node), ADDRESSES[1 - node].0);
            let endpoint = rig.user(node, user);
            let vxlan = ["id", &vni, "dev", NIC, "local", v4, "remote", peer, "dstport", "4789", "noudpcsum"];
            ip(&[&["-n", &netns, "link", "add", &device, "type", "vxlan"], &vxlan[..]].concat())?;
            ip(&["-n", &netns, "link", "set", &device, "netns", &endpoint])?;
            ip(&["-n", &endpoint, "addr", "add", &format!("{v4}/24"), "dev", &device])?;
            ip(&["-n", &endpoint, "addr", "add", &format!("{v6}/64"), "dev", &device, "nodad"])?;
            ip(&["-n", &endpoint, "link", "set", &device, "up"])?;
        }
    }
    Ok(())
}

/// Moves the receive processing of each end of the wire into a kernel thread, pinned to a core of its node as a real
/// NIC's interrupt is. On a veth it otherwise runs inside the *sender's* transmit call.
fn thread_napi(rig: &Rig, cores: [usize; 2]) -> Result<(), RigError> {
    for (node, core) in cores.iter().enumerate() {
        let before = napi_threads();
        let switch = format!("echo 1 > /sys/class/net/{NIC}/threaded");
        shell::read(Command::new("ip").args(["netns", "exec", &rig.node(node), "sh", "-c", &switch]))?;
        let threads: Vec<i32> = napi_threads().difference(&before).copied().collect();
        if threads.is_empty() {
            let why = "no napi/ kernel thread appeared after switching to threaded NAPI".into();
            return Err(RigError::Program { what: rig.node(node), why });
        }
        for thread in threads {
            shell::read(Command::new("taskset").args(["-p", "-c", &core.to_string(), &thread.to_string()]))?;
            // Other programs on its core must not keep the wire waiting.
            shell::read(Command::new("renice").args(["-n", "-20", "-p", &thread.to_string()]))?;
        }
    }
    Ok(())
}

/// The kernel's NAPI threads of all devices named as the wire.
fn napi_threads() -> BTreeSet<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with(&format!("napi/{NIC}-")))
        })
        .collect()
}
