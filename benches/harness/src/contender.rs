//! What is compared: ways to get a user's packets from node to node, each on nodes of its own.

mod kernel;
mod ovs;
mod uvn;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ovs::Switch;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use uvn_rig::cores::Cores;
use uvn_rig::dataplane::Dataplane;
use uvn_rig::error::RigError;
use uvn_rig::place::{Host, Place};
use uvn_rig::rig::{NIC, Rig, USERS, overlay, underlay};

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// No encapsulation: between the nodes themselves.
    Raw,
    /// The kernel's VXLAN devices.
    Kernel,
    /// The same, but applications may use all cores of their node, the networking core too.
    KernelAllCores,
    /// The same as `Kernel`, with the wire's NAPI in threads on the networking cores, and cores kept awake.
    KernelTuned,
    /// A data plane per node in the gear of its choice, its worker on the networking core.
    Auto,
    /// The same; it may boost what gains from it: the wire's NAPI in threads, workers' cores awake.
    AutoBoosted,
    /// As `Auto`, but applications may use all cores of their node.
    AutoAllCores,
    /// A data plane per node that uses AF_XDP only, its worker on the networking core.
    Engine,
    /// The same, with the wire's NAPI in threads on the applications' cores: the worker has its core to itself.
    EngineNapi,
    /// The same, with the worker on the applications' core: no more cores than `Kernel`, and no wake-ups between cores.
    EngineShared,
    /// Open vSwitch's userspace datapath.
    OpenVswitch,
}

/// What carries the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Nothing,
    Kernel,
    /// uvn with this `path` and `workers.boost` in its configuration.
    Uvn(&'static str, &'static str),
    OpenVswitch,
}

/// On which cores.
#[derive(Clone, Copy)]
enum Placement {
    /// Applications on theirs, networking on its own.
    Apart,
    /// Applications on all.
    AllCores,
    /// Networking on the applications' cores.
    Shared,
}

/// Where a node's end of the wire is served.
#[derive(Clone, Copy)]
enum Napi {
    /// As a veth does: in the sender's context.
    Sender,
    /// By a thread on the networking core.
    NetworkingCore,
    /// By a thread on an application core.
    ApplicationCore,
}

impl Contender {
    /// All of them, in the order of tables.
    pub const ALL: [Contender; 11] = [
        Contender::Raw,
        Contender::Kernel,
        Contender::KernelAllCores,
        Contender::KernelTuned,
        Contender::Auto,
        Contender::AutoBoosted,
        Contender::AutoAllCores,
        Contender::Engine,
        Contender::EngineNapi,
        Contender::EngineShared,
        Contender::OpenVswitch,
    ];

    /// Its name, for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Contender::Raw => "raw",
            Contender::Kernel => "kernel VXLAN",
            Contender::KernelAllCores => "kernel, all cores",
            Contender::KernelTuned => "kernel tuned",
            Contender::Auto => "uvn auto",
            Contender::AutoBoosted => "uvn boosted",
            Contender::AutoAllCores => "uvn, all cores",
            Contender::Engine => "uvn engine",
            Contender::EngineNapi => "engine, NAPI thr.",
            Contender::EngineShared => "engine, shared",
            Contender::OpenVswitch => "Open vSwitch",
        }
    }

    /// What it is and which cores it has.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Contender::Raw => "no encapsulation, node to node; application cores only",
            Contender::Kernel => "a VXLAN device per user, GRO on; application cores only",
            Contender::KernelAllCores => "the same; applications may use the networking cores too",
            Contender::KernelTuned => {
                "as kernel VXLAN; the wire's NAPI in threads on the networking cores, and no core sleeps"
            }
            Contender::Auto => {
                "uvn as it comes, in the gear of its choice, its worker on the networking core"
            }
            Contender::AutoBoosted => {
                "the same with workers.boost = \"awake\": while the traffic gains from it, the wire's NAPI in threads on the networking cores, and these awake"
            }
            Contender::AutoAllCores => "as uvn auto; applications may use the networking cores too",
            Contender::Engine => "uvn by AF_XDP alone, its worker on the networking core",
            Contender::EngineNapi => "the same; the wire's NAPI in threads on the application cores",
            Contender::EngineShared => "as uvn engine, but with the worker on the application core",
            Contender::OpenVswitch => {
                "userspace datapath with a VXLAN port per user, its polling thread on the networking core"
            }
        }
    }

    /// For names of namespaces: no dash in it.
    const fn tag(self) -> &'static str {
        match self {
            Contender::Raw => "raw",
            Contender::Kernel => "kernel",
            Contender::KernelAllCores => "kernelall",
            Contender::KernelTuned => "tuned",
            Contender::Auto => "auto",
            Contender::AutoBoosted => "autoboost",
            Contender::AutoAllCores => "autoall",
            Contender::Engine => "engine",
            Contender::EngineNapi => "enginenapi",
            Contender::EngineShared => "engineshared",
            Contender::OpenVswitch => "ovs",
        }
    }

    const fn carrier(self) -> Carrier {
        match self {
            Contender::Raw => Carrier::Nothing,
            Contender::Kernel | Contender::KernelAllCores | Contender::KernelTuned => Carrier::Kernel,
            Contender::Auto | Contender::AutoAllCores => Carrier::Uvn("auto", "none"),
            Contender::AutoBoosted => Carrier::Uvn("auto", "awake"),
            Contender::Engine | Contender::EngineNapi | Contender::EngineShared => {
                Carrier::Uvn("engine", "none")
            }
            Contender::OpenVswitch => Carrier::OpenVswitch,
        }
    }

    const fn placement(self) -> Placement {
        match self {
            Contender::KernelAllCores | Contender::AutoAllCores => Placement::AllCores,
            Contender::EngineShared => Placement::Shared,
            _ => Placement::Apart,
        }
    }

    const fn napi(self) -> Napi {
        match self {
            Contender::KernelTuned => Napi::NetworkingCore,
            Contender::EngineNapi => Napi::ApplicationCore,
            _ => Napi::Sender,
        }
    }

    /// Whether no program of its own carries the packets.
    #[must_use]
    pub fn is_kernels_own(self) -> bool {
        matches!(self.carrier(), Carrier::Nothing | Carrier::Kernel)
    }
}

/// The contender that the others are compared with.
pub const REFERENCE: Contender = Contender::Kernel;

/// What a contender is set up on.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// How many nodes.
    pub nodes: usize,
    /// Bytes of an IP packet on the wire.
    pub mtu: u32,
    /// Networks on each node; the first two are the [`USERS`]' and carry the traffic.
    pub networks: usize,
    /// Everything runs in turns: [`Place::round_robin`].
    pub round_robin: bool,
    /// The program `uvn-dataplane`.
    pub program: &'a Path,
}

/// A contender, ready for traffic. Dropping it removes it.
pub struct Setup {
    /// Which it is.
    pub contender: Contender,
    /// uvn's, one per node; none where something else carries the packets. Before the rig: they stop first.
    pub dataplanes: Vec<Dataplane>,
    /// Open vSwitch's, one per node.
    switches: Vec<Switch>,
    /// Networks on each node.
    pub networks: usize,
    /// Its nodes.
    pub rig: Rig,
    cores: Vec<Cores>,
    round_robin: bool,
}

impl Setup {
    /// Makes the rig and what carries the packets on it.
    ///
    /// # Errors
    /// A step failed; what was made is removed.
    pub fn new(contender: Contender, ground: &Ground) -> Result<Setup, RigError> {
        let rig = Rig::new(&format!("{}{}", contender.tag(), ground.networks), ground.nodes, ground.mtu)?;
        let cores =
            Cores::of_this_machine(ground.nodes).into_iter().map(|cores| match contender.placement() {
                Placement::Apart => cores,
                Placement::AllCores => cores.all(),
                Placement::Shared => cores.sharing(),
            });
        let cores: Vec<Cores> = cores.collect();
        let Ground { networks, round_robin, .. } = *ground;
        let (dataplanes, switches) = (Vec::new(), Vec::new());
        let mut setup = Setup { contender, dataplanes, switches, networks, rig, cores, round_robin };
        let (rig, cores) = (&setup.rig, &setup.cores);
        match contender.carrier() {
            Carrier::Nothing => {}
            Carrier::Kernel => kernel::add_devices(rig, networks)?,
            Carrier::Uvn(path, boost) => setup.dataplanes = uvn::start(rig, cores, ground, (path, boost))?,
            Carrier::OpenVswitch => {
                let start = |node: usize| Switch::start(rig, node, &cores[node], networks);
                setup.switches = (0..ground.nodes).map(start).collect::<Result<_, _>>()?;
            }
        }
        match contender.napi() {
            Napi::Sender => {}
            Napi::NetworkingCore => {
                kernel::thread_napi(&setup.rig, round_robin, |node| setup.cores[node].net)?
            }
            Napi::ApplicationCore => {
                kernel::thread_napi(&setup.rig, round_robin, |node| setup.cores[node].apps[0])?
            }
        }
        Ok(setup)
    }

    /// Before its turn: wakes up what [`Setup::rest`] put to sleep. While what is returned is kept, so are the cores of
    /// this machine awake (Documentation/power/pm_qos_interface.rst), where that is among the contender's means.
    #[must_use]
    pub fn wake(&self) -> Option<File> {
        self.signal_pollers(Signal::SIGCONT);
        (self.contender == Contender::KernelTuned).then(keep_awake)?.ok()
    }

    /// After its turn. A thread that polls without end would slow down everybody else's; cores that do not sleep yet
    /// would speed it up.
    pub fn rest(&self) {
        /// A data plane looks twice a second; the first look may find traffic that has just ended.
        const SLEEP: Duration = Duration::from_secs(3);
        self.signal_pollers(Signal::SIGSTOP);
        let end = Instant::now() + SLEEP;
        while Instant::now() < end && self.measures().next().is_some() {
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal_pollers(&self, signal: Signal) {
        for pid in self.switches.iter().map(Switch::poller) {
            let _gone = kill(Pid::from_raw(pid), signal);
        }
    }

    /// The processes that carry its packets.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.dataplanes
            .iter()
            .map(Dataplane::pid)
            .chain(self.switches.iter().flat_map(Switch::pids))
            .collect()
    }

    /// How many nodes it has.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.rig.nodes()
    }

    /// Where the measured user's programs run on a node, counted from 0, and are reached.
    #[must_use]
    pub fn place(&self, node: usize) -> Place {
        self.place_of(node, 0)
    }

    /// The same of the user who disturbs him. Without encapsulation there are no users: the node itself.
    #[must_use]
    pub fn other_place(&self, node: usize) -> Place {
        self.place_of(node, 1)
    }

    fn place_of(&self, node: usize, user: usize) -> Place {
        let address = match self.contender {
            Contender::Raw => underlay(node).0,
            _ => overlay(node, user).0,
        };
        let cores = self.cores[node].apps_list();
        Place {
            host: Host::Netns(self.rig.node(node)),
            cores,
            address: IpAddr::V4(address),
            round_robin: self.round_robin,
        }
    }

    /// The name of the measured user's endpoint device, the same on every node.
    #[must_use]
    pub fn device(&self) -> String {
        match self.contender.carrier() {
            Carrier::Nothing => NIC.to_owned(),
            Carrier::Kernel => kernel::device(USERS[0]),
            Carrier::Uvn(..) => uvn::device(USERS[0]),
            Carrier::OpenVswitch => ovs::device(USERS[0]),
        }
    }

    /// What its data planes do about the traffic now, in their own words.
    pub fn measures(&self) -> impl Iterator<Item = String> {
        self.dataplanes.iter().filter_map(Dataplane::measure)
    }

    /// How its programs drive the NIC, in one line; None where there are none.
    ///
    /// # Errors
    /// A program does not answer.
    pub fn gear(&self) -> Result<Option<String>, RigError> {
        match self.dataplanes.first() {
            Some(dataplane) => dataplane.summary().map(Some),
            None if self.contender == Contender::KernelTuned => Ok(Some(match keep_awake() {
                Ok(_) => "no core asleep in its turns".to_owned(),
                Err(error) => format!("cores may sleep in its turns: {AWAKE}: {error}"),
            })),
            None => Ok(self.switches.first().map(Switch::summary)),
        }
    }
}

const AWAKE: &str = "/dev/cpu_dma_latency";

fn keep_awake() -> io::Result<File> {
    let mut request = File::options().write(true).open(AWAKE)?;
    // Microseconds that a core may take to wake up.
    request.write_all(&0_i32.to_ne_bytes())?;
    Ok(request)
}

/// The VNI of a network, counted from 0: the users' UIDs, then others.
const fn vni(network: usize) -> u32 {
    if network < USERS.len() { USERS[network] } else { 100_000 + network as u32 }
}
