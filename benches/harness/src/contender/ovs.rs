//! Open vSwitch's userspace datapath with VXLAN ports: what a site would take for a userspace VXLAN today.

use super::vni;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use uvn_rig::cores::Cores;
use uvn_rig::error::RigError;
use uvn_rig::netns::ip;
use uvn_rig::place::{Host, Place};
use uvn_rig::process::Process;
use uvn_rig::rig::{NIC, Rig, overlay, underlay};
use uvn_rig::shell;

/// Where Debian puts the layout of the configuration database.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Bytes of the outer headers over IPv4.
const OVERHEAD: u32 = 50;
/// How long a daemon may take to answer.
const START: Duration = Duration::from_secs(10);

/// The name of a network's endpoint: its bridge's internal port.
pub fn device(vni: u32) -> String {
    format!("ovs{vni}")
}

/// One node's switch: a database and a daemon of its own, in the node's namespace. Dropping it ends them.
pub struct Switch {
    daemon: Process,
    database: Process,
    socket: PathBuf,
    log: PathBuf,
    /// How it drives the NIC.
    kind: &'static str,
}

impl Switch {
    /// Starts it on a node, with a bridge per network.
    ///
    /// # Errors
    /// Open vSwitch is not there, does not answer, or takes the NIC in no way.
    pub fn start(rig: &Rig, node: usize, cores: &Cores, networks: usize) -> Result<Switch, RigError> {
        let directory = rig.directory().join(format!("ovs{}", node + 1));
        let file = |name: &str| directory.join(name);
        let failed = |source| RigError::Io { what: format!("write in {}", directory.display()), source };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let (socket, log, configuration) = (file("db.sock"), file("log"), file("conf.db"));
        shell::read(Command::new("ovsdb-tool").arg("create").arg(&configuration).arg(SCHEMA))?;
        // The polling thread pins itself. The main thread, which serves the endpoints, may go where there is room.
        let address = IpAddr::V4(underlay(node).0);
        let cores_list = cores.all().apps_list();
        let place =
            Place { host: Host::Netns(rig.node(node)), cores: cores_list, address, round_robin: false };
        let start = |program: &str, arguments: &[String]| -> Result<Process, RigError> {
            let mut command = place.command(program);
            command.args(arguments).env("OVS_RUNDIR", &directory).env("OVS_LOGDIR", &directory);
            let log = File::options().create(true).append(true).open(&log).map_err(failed)?;
            Process::start(program, {
                command.stderr(log);
                command
            })
        };
        let database = start(
            "ovsdb-server",
            &[format!("--remote=punix:{}", socket.display()), configuration.display().to_string()],
        )?;
        await_file(&socket)?;
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1_u128 << cores.net);
        vsctl(&socket, &["--no-wait", "init"])?;
        vsctl(&socket, &["--no-wait", "set", "Open_vSwitch", ".", &mask])?;
        let daemon = start("ovs-vswitchd", &[format!("unix:{}", socket.display())])?;
        let mut switch = Switch { daemon, database, socket, log, kind: "" };
        switch.attach_nic(rig, node)?;
        (0..networks).try_for_each(|network| switch.add_network(rig, node, network))?;
        Ok(switch)
    }

    /// Puts the NIC under the switch, by AF_XDP or else by AF_PACKET, and its address on the bridge.
    fn attach_nic(&mut self, rig: &Rig, node: usize) -> Result<(), RigError> {
        self.ctl(&["add-br", "phy", "--", "set", "bridge", "phy", "datapath_type=netdev"])?;
        let mut whys = Vec::new();
        for kind in ["afxdp", "system"] {
            self.ctl(&["add-port", "phy", NIC, "--", "set", "interface", NIC, &format!("type={kind}")])?;
            let number = self.ctl(&["get", "interface", NIC, "ofport"])?;
            if number.trim().parse::<u32>().is_ok_and(|port| port > 0) {
                self.kind = kind;
                break;
            }
            whys.push(format!("{kind}: {}", self.ctl(&["get", "interface", NIC, "error"])?.trim()));
            self.ctl(&["del-port", "phy", NIC])?;
        }
        if self.kind.is_empty() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let warnings: Vec<&str> = log.lines().filter(|line| line.contains("afxdp")).collect();
            return Err(RigError::program("ovs-vswitchd", [whys.join("; "), warnings.join("\n")].join("\n")));
        }
        let (netns, (v4, v6)) = (rig.node(node), underlay(node));
        ip(&["-n", &netns, "addr", "flush", "dev", NIC])?;
        ip(&["-n", &netns, "addr", "add", &format!("{v4}/24"), "dev", "phy"])?;
        ip(&["-n", &netns, "addr", "add", &format!("{v6}/64"), "dev", "phy", "nodad"])?;
        ip(&["-n", &netns, "link", "set", "phy", "mtu", &rig.mtu().to_string(), "up"])
    }

    fn add_network(&self, rig: &Rig, node: usize, network: usize) -> Result<(), RigError> {
        let (vni, netns) = (vni(network), rig.node(node));
        let device = device(vni);
        self.ctl(&["add-br", &device, "--", "set", "bridge", &device, "datapath_type=netdev"])?;
        for peer in (0..rig.nodes()).filter(|peer| *peer != node) {
            let port = format!("vx{vni}.{peer}");
            let remote = format!("options:remote_ip={}", underlay(peer).0);
            let key = format!("options:key={vni}");
            let set = ["set", "interface", &port, "type=vxlan", &remote, &key];
            self.ctl(&[&["add-port", &device, &port, "--"], &set[..]].concat())?;
        }
        let (v4, v6) = overlay(node, network);
        ip(&["-n", &netns, "link", "set", &device, "mtu", &(rig.mtu() - OVERHEAD).to_string()])?;
        ip(&["-n", &netns, "addr", "add", &format!("{v4}/24"), "dev", &device])?;
        ip(&["-n", &netns, "addr", "add", &format!("{v6}/64"), "dev", &device, "nodad"])?;
        ip(&["-n", &netns, "link", "set", &device, "up"])
    }

    fn ctl(&self, arguments: &[&str]) -> Result<String, RigError> {
        vsctl(&self.socket, arguments)
    }

    /// The process whose thread polls without end.
    pub fn poller(&self) -> i32 {
        self.daemon.pid() as i32
    }

    /// Its processes.
    pub fn pids(&self) -> [i32; 2] {
        [self.daemon.pid() as i32, self.database.pid() as i32]
    }

    /// How it drives the NIC, in one line.
    pub fn summary(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mode = match self.kind {
            // "...|em1: native XDP mode will be in use."
            "afxdp" => log
                .lines()
                .find_map(|line| line.split_once(": ")?.1.strip_suffix(" will be in use."))
                .map_or_else(|| "AF_XDP".to_owned(), |mode| format!("AF_XDP in {mode}")),
            _ => "AF_PACKET".to_owned(),
        };
        format!("userspace datapath, {mode}, one polling thread")
    }
}

fn vsctl(socket: &Path, arguments: &[&str]) -> Result<String, RigError> {
    let database = format!("--db=unix:{}", socket.display());
    let timeout = format!("--timeout={}", START.as_secs());
    Ok(shell::read(Command::new("ovs-vsctl").args([&database, &timeout]).args(arguments))?)
}

fn await_file(file: &Path) -> Result<(), RigError> {
    let end = Instant::now() + START;
    while !file.exists() {
        if Instant::now() > end {
            return Err(RigError::program("ovsdb-server", format!("made no socket within {START:?}")));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
