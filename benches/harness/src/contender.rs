//! What is compared: ways to get a user's packets from node to node, each on nodes of its own.

mod kernel;
mod uvn;

use crate::cores::Cores;
use crate::dataplane::Dataplane;
use crate::error::RigError;
use crate::process::Place;
use crate::rig::{NIC, Rig, USERS, overlay, underlay};
use std::net::IpAddr;
use std::path::Path;

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// No encapsulation: between the nodes themselves.
    Raw,
    /// The kernel's VXLAN devices.
    Kernel,
    /// The same, but applications may use all cores of their node, the networking core too.
    KernelAllCores,
    /// The same as `Kernel`, with the wire's NAPI in threads on the networking cores.
    KernelTuned,
    /// A data plane per node that uses AF_XDP, its worker on the networking core.
    Engine,
    /// The same, with the wire's NAPI in threads on the applications' cores: the worker has its core to itself.
    EngineNapi,
    /// The same, with the worker on the applications' core: no more cores than `Kernel`, and no wake-ups between cores.
    EngineShared,
}

impl Contender {
    /// All of them, in the order of tables.
    pub const ALL: [Contender; 7] = [
        Contender::Raw,
        Contender::Kernel,
        Contender::KernelAllCores,
        Contender::KernelTuned,
        Contender::Engine,
        Contender::EngineNapi,
        Contender::EngineShared,
    ];

    /// Its name, for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Contender::Raw => "raw",
            Contender::Kernel => "kernel VXLAN",
            Contender::KernelAllCores => "kernel, all cores",
            Contender::KernelTuned => "kernel tuned",
            Contender::Engine => "uvn engine",
            Contender::EngineNapi => "engine, NAPI thr.",
            Contender::EngineShared => "engine, shared",
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
                "the same as kernel VXLAN; the wire's NAPI in threads on the networking cores"
            }
            Contender::Engine => "uvn, AF_XDP: a data plane per node, its worker on the networking core",
            Contender::EngineNapi => "the same; the wire's NAPI in threads on the application cores",
            Contender::EngineShared => "the same as uvn engine, but with the worker on the application core",
        }
    }

    /// For names of namespaces: no dash in it.
    const fn tag(self) -> &'static str {
        match self {
            Contender::Raw => "raw",
            Contender::Kernel => "kernel",
            Contender::KernelAllCores => "kernelall",
            Contender::KernelTuned => "tuned",
            Contender::Engine => "engine",
            Contender::EngineNapi => "enginenapi",
            Contender::EngineShared => "engineshared",
        }
    }
}

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
    /// The data planes, one per node; none where the kernel does it. Before the rig: they stop first.
    pub dataplanes: Vec<Dataplane>,
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
        let mut cores = Cores::of_this_machine(ground.nodes);
        match contender {
            Contender::KernelAllCores => cores = cores.iter().map(Cores::all).collect(),
            Contender::EngineShared => cores = cores.iter().map(Cores::sharing).collect(),
            _ => {}
        }
        let mut setup = Setup {
            contender,
            dataplanes: Vec::new(),
            networks: ground.networks,
            rig,
            cores,
            round_robin: ground.round_robin,
        };
        match contender {
            Contender::Raw => {}
            Contender::Kernel | Contender::KernelAllCores | Contender::KernelTuned => {
                kernel::add_devices(&setup.rig, ground.networks)?;
            }
            Contender::Engine | Contender::EngineNapi | Contender::EngineShared => {
                setup.dataplanes = uvn::start(&setup.rig, &setup.cores, ground)?;
            }
        }
        match contender {
            Contender::KernelTuned => {
                kernel::thread_napi(&setup.rig, ground.round_robin, |node| setup.cores[node].net)?
            }
            Contender::EngineNapi => {
                kernel::thread_napi(&setup.rig, ground.round_robin, |node| setup.cores[node].apps[0])?
            }
            _ => {}
        }
        Ok(setup)
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
            netns: self.rig.node(node),
            cores,
            address: IpAddr::V4(address),
            round_robin: self.round_robin,
        }
    }

    /// The name of the measured user's endpoint device, the same on every node.
    #[must_use]
    pub fn device(&self) -> String {
        match self.contender {
            Contender::Raw => NIC.to_owned(),
            Contender::Kernel | Contender::KernelAllCores | Contender::KernelTuned => {
                kernel::device(USERS[0])
            }
            Contender::Engine | Contender::EngineNapi | Contender::EngineShared => uvn::device(USERS[0]),
        }
    }

    /// How its data planes drive the NIC, in one line; None where there are none.
    ///
    /// # Errors
    /// A data plane does not answer.
    pub fn gear(&self) -> Result<Option<String>, RigError> {
        self.dataplanes.first().map(Dataplane::summary).transpose()
    }
}

/// The VNI of a network, counted from 0: the users' UIDs, then others.
const fn vni(network: usize) -> u32 {
    if network < USERS.len() { USERS[network] } else { 100_000 + network as u32 }
}
