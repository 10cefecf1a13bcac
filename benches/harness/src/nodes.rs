//! Real nodes in place of a rig: what a site has is measured, and nothing is configured.

use crate::machine::Machine;
use crate::metric::Values;
use crate::noise::Load;
use crate::report::{ContenderInfo, Report, Settings};
use crate::run::Progress;
use crate::workload::{Workload, json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;
use uvn_rig::error::RigError;
use uvn_rig::netns::Namespaces;
use uvn_rig::place::{Host, Place};
use uvn_rig::process::Process;
use uvn_rig::ssh::Node;
use uvn_rig::{shell, wire};

/// The nodes' own addresses.
const RAW: &str = "raw";
/// How long a look at a node may take.
const LOOK: Duration = Duration::from_secs(10);

/// The nodes, and the networks between them.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct Options {
    /// Measure between these nodes, as ssh takes them, instead of namespaces; the first two, or pairs of neighbours in turn
    #[arg(long, value_delimiter = ',', value_name = "NODE,...")]
    pub nodes: Vec<String>,
    /// A network that is there, and the address of each node in it; may be repeated. Without `raw=...` the nodes' names are looked up for that
    #[arg(long, value_name = "NAME=ADDRESS,...", requires = "nodes")]
    pub overlay: Vec<Overlay>,
    /// A command that has programs run in a network, such as 'uvn=uvn exec alice --'; may be repeated
    #[arg(long, value_name = "NAME=COMMAND", requires = "nodes")]
    pub inside: Vec<Inside>,
    /// ssh's options, instead of your own
    #[arg(long, value_name = "FILE", requires = "nodes")]
    pub ssh_config: Option<PathBuf>,
}

/// A network that all nodes are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    name: String,
    addresses: Vec<IpAddr>,
}

/// How programs come into a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    name: String,
    command: Vec<String>,
}

impl FromStr for Overlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Overlay, String> {
        let (name, addresses) = text.split_once('=').ok_or("it is not NAME=ADDRESS,...")?;
        let address = |text: &str| text.parse().map_err(|error| format!("{text:?}: {error}"));
        Ok(Overlay {
            name: name.to_owned(),
            addresses: addresses.split(',').map(address).collect::<Result<_, _>>()?,
        })
    }
}

impl FromStr for Inside {
    type Err = String;

    fn from_str(text: &str) -> Result<Inside, String> {
        let (name, command) = text.split_once('=').ok_or("it is not NAME=COMMAND")?;
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if command.is_empty() {
            Err("no command".into())
        } else {
            Ok(Inside { name: name.to_owned(), command })
        }
    }
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Where it runs.
    pub machine: Machine,
    /// The device by which the next node is reached.
    pub nic: String,
    /// Its MTU.
    pub mtu: u32,
    /// What ethtool says about it; null where there is none, or an old one.
    pub offloads: Value,
}

impl Look {
    /// At this node; `to` is the next one's address.
    #[must_use]
    pub fn here(to: IpAddr) -> Look {
        let mut route = Command::new("ip");
        let route = shell::read(route.args(["-json", "route", "get", &to.to_string()])).unwrap_or_default();
        let route: Value = serde_json::from_str(&route).unwrap_or_default();
        let nic = route[0]["dev"].as_str().unwrap_or("unknown").to_owned();
        let mtu = std::fs::read_to_string(format!("/sys/class/net/{nic}/mtu")).unwrap_or_default();
        let offloads = wire::offloads(None, &nic).unwrap_or_default();
        Look { machine: Machine::this(), mtu: mtu.trim().parse().unwrap_or(0), nic, offloads }
    }

    fn at(place: &Place, to: IpAddr) -> Result<Look, RigError> {
        const LOOK_AT: &str = "probe look";
        let look = Process::start(LOOK_AT, place.probe(&["look", &to.to_string()]))?.finish(LOOK)?;
        serde_json::from_value(json(LOOK_AT, &look)?).map_err(|error| RigError::program(LOOK_AT, error))
    }
}

/// A network to measure, by how its places are reached.
struct Contender {
    info: ContenderInfo,
    places: Vec<Place>,
}

/// A site that is ready. Dropping it removes what was brought to the nodes.
pub struct Site {
    contenders: Vec<Contender>,
    names: Vec<String>,
    _nodes: Vec<Node>,
    _sockets: Namespaces,
}

impl Site {
    /// Logs in everywhere.
    ///
    /// # Errors
    /// Too few nodes, an option that does not fit, or a node that cannot be used.
    pub fn open(options: &Options) -> Result<Site, RigError> {
        let names = options.nodes.clone();
        if names.len() < 2 {
            return Err(RigError::program("--nodes", "two or more are needed"));
        }
        let mut overlays = options.overlay.clone();
        if !overlays.iter().any(|overlay| overlay.name == RAW) {
            let addresses = names.iter().map(|name| look_up(name, options)).collect::<Result<_, _>>()?;
            overlays.insert(0, Overlay { name: RAW.into(), addresses });
        }
        for overlay in &overlays {
            if overlay.addresses.len() != names.len() {
                let why = format!("{} addresses for {} nodes", overlay.addresses.len(), names.len());
                return Err(RigError::program(&format!("--overlay {}", overlay.name), why));
            }
        }
        if let Some(lost) =
            options.inside.iter().find(|inside| !overlays.iter().any(|o| o.name == inside.name))
        {
            return Err(RigError::program("--inside", format!("no --overlay has the name {:?}", lost.name)));
        }
        let sockets = Namespaces::new("nodes")?;
        let open = |(index, name): (usize, &String)| {
            Node::open(name, options.ssh_config.as_deref(), sockets.directory().join(index.to_string()))
        };
        let nodes: Vec<Node> = names.iter().enumerate().map(open).collect::<Result<_, _>>()?;
        let contenders = overlays.iter().map(|overlay| contender(overlay, &options.inside, &nodes)).collect();
        Ok(Site { contenders, names, _nodes: nodes, _sockets: sockets })
    }

    /// Keeps only the contenders of which `wanted` is true.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.contenders.retain(|contender| wanted(&contender.info.name));
    }

    /// An empty report with all that must be known about the nodes.
    ///
    /// # Errors
    /// A node does not answer.
    pub fn report(&self, mut settings: Settings) -> Result<Report, RigError> {
        let first =
            self.contenders.first().ok_or_else(|| RigError::program("--contender", "none is left"))?;
        let count = first.places.len();
        let looks: Vec<Look> = (0..count)
            .map(|node| Look::at(&first.places[node], first.places[(node + 1) % count].address))
            .collect::<Result<_, _>>()?;
        settings.nodes = count;
        settings.mtu = looks.iter().map(|look| look.mtu).min().unwrap_or(0);
        let mut report = Report::new(settings);
        report.machine = looks[0].machine.clone();
        let by_name = self.names.iter().zip(&looks);
        report.offloads =
            by_name.clone().map(|(name, look)| (name.clone(), serde_json::json!(look))).collect();
        for (name, look) in by_name.skip(1) {
            let (own, other) = (&report.machine, &look.machine);
            if (&own.kernel, &own.cpu, own.cores) != (&other.kernel, &other.cpu, other.cores) {
                let what = format!(
                    "{name} is another machine: {}, {}, {} cores",
                    other.kernel, other.cpu, other.cores
                );
                eprintln!("{what}");
            }
        }
        report.contenders = self.contenders.iter().map(|contender| contender.info.clone()).collect();
        Ok(report)
    }

    /// Has every contender do all work in each round, and adds to the report what was measured and what could not be.
    /// Each round begins with another contender, and is between the next pair of neighbours.
    pub fn measure(&self, workloads: &[&dyn Workload], report: &mut Report) {
        let Settings { rounds, seconds, .. } = report.settings;
        let takes = |workload: &dyn Workload| {
            workload.takes(seconds) + workload.warm_up().map_or(0.0, |seconds| workload.takes(seconds))
        };
        let round: f64 = workloads.iter().map(|&workload| takes(workload)).sum();
        let mut progress = Progress::new(self.contenders.len() as f64 * rounds as f64 * round);
        for round in 0..rounds {
            for &workload in workloads {
                for turn in 0..self.contenders.len() {
                    let contender = &self.contenders[(turn + round) % self.contenders.len()];
                    let name = &contender.info.name;
                    progress.show(&format!("round {} of {rounds}: {}, {name}", round + 1, workload.name()));
                    contender.measure(workload, round, report);
                    progress.done(takes(workload));
                }
            }
        }
        progress.clear();
    }
}

impl Contender {
    fn measure(&self, workload: &dyn Workload, round: usize, report: &mut Report) {
        let name = &self.info.name;
        if report.has_missed(name, &workload.name()) {
            return;
        }
        let count = self.places.len();
        let (client, server) = (&self.places[round % count], &self.places[(round + 1) % count]);
        // Which of them follows the traffic is not known here. It also lets cores sleep that the one before kept awake.
        if let Some(seconds) = workload.warm_up() {
            // What is wrong will be told when it is measured.
            let _unmeasured = workload.between(client, server, seconds);
        }
        match disturbed(client, server, || workload.between(client, server, report.settings.seconds)) {
            Ok((Some(values), disturbance)) => {
                let label = workload.label();
                for (metric, value) in values {
                    report.add(&label, name, metric, value, disturbance.clone());
                }
            }
            Ok((None, _)) => report.miss(name, Some(workload.name()), "it needs nodes of the bench's own"),
            Err(error) => report.miss(name, Some(workload.name()), error),
        }
    }
}

/// Runs `work`, and says what disturbed it on either node.
fn disturbed(
    client: &Place,
    server: &Place,
    work: impl FnOnce() -> Option<Result<Values, RigError>>,
) -> Result<(Option<Values>, Option<String>), RigError> {
    let before = Load::at([client, server])?;
    let Some(values) = work() else { return Ok((None, None)) };
    let values = values?;
    let after = Load::at([client, server])?;
    let part = |node: usize, name: &str| {
        after[node].disturbance_since(&before[node]).map(|what| format!("{name}: {what}"))
    };
    let parts: Vec<String> = [part(0, "client"), part(1, "server")].into_iter().flatten().collect();
    Ok((Some(values), (!parts.is_empty()).then(|| parts.join("; "))))
}

fn contender(overlay: &Overlay, insides: &[Inside], nodes: &[Node]) -> Contender {
    let inside = insides.iter().find(|inside| inside.name == overlay.name);
    let command = inside.map(|inside| inside.command.as_slice()).unwrap_or_default();
    let place = |(node, address): (&Node, &IpAddr)| Place {
        host: Host::Ssh(node.login(command)),
        cores: String::new(),
        address: *address,
        round_robin: false,
    };
    let addresses: Vec<String> = overlay.addresses.iter().map(IpAddr::to_string).collect();
    let mut about = format!("between {}", addresses.join(", "));
    if overlay.name == RAW {
        about = format!("no encapsulation: {about}");
    }
    if !command.is_empty() {
        about += &format!(", by `{}`", command.join(" "));
    }
    Contender {
        info: ContenderInfo { name: overlay.name.clone(), about, gear: None, measures: BTreeMap::default() },
        places: nodes.iter().zip(&overlay.addresses).map(place).collect(),
    }
}

/// The address of a node's name, as ssh understands it.
fn look_up(destination: &str, options: &Options) -> Result<IpAddr, RigError> {
    let mut ssh = Command::new("ssh");
    if let Some(config) = &options.ssh_config {
        ssh.arg("-F").arg(config);
    }
    let text = shell::read(ssh.args(["-G", destination]))?;
    let host = text.lines().find_map(|line| line.strip_prefix("hostname ")).unwrap_or(destination);
    let failed = |why: &dyn std::fmt::Display| {
        RigError::program(
            destination,
            format!("{host}: {why}; give the nodes' addresses as --overlay {RAW}=..."),
        )
    };
    let mut addresses = (host, 0).to_socket_addrs().map_err(|error| failed(&error))?;
    addresses.next().map(|address| address.ip()).ok_or_else(|| failed(&"no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_given_by_name() {
        let overlay: Overlay = "kernel VXLAN=10.1.0.1,fd00::2".parse().unwrap();
        assert_eq!(overlay.name, "kernel VXLAN");
        assert_eq!(overlay.addresses, ["10.1.0.1".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert!("10.1.0.1".parse::<Overlay>().is_err());
        assert!("a=node7".parse::<Overlay>().unwrap_err().contains("node7"));
        let inside: Inside = "uvn=uvn exec alice --".parse().unwrap();
        assert_eq!(inside.command, ["uvn", "exec", "alice", "--"]);
        assert!("uvn= ".parse::<Inside>().is_err());
    }

    #[test]
    fn options_that_do_not_fit_are_refused_before_any_login() {
        let options = |overlays: &[&str], inside: &[&str]| Options {
            nodes: vec!["192.0.2.1".into(), "192.0.2.2".into()],
            overlay: overlays.iter().map(|text| text.parse().unwrap()).collect(),
            inside: inside.iter().map(|text| text.parse().unwrap()).collect(),
            ssh_config: None,
        };
        let refusal = |options: &Options| Site::open(options).err().map(|error| error.to_string()).unwrap();
        assert_eq!(refusal(&Options::default()), "--nodes: two or more are needed");
        let raw = "raw=192.0.2.1,192.0.2.2";
        assert_eq!(refusal(&options(&[raw, "uvn=10.0.0.1"], &[])), "--overlay uvn: 1 addresses for 2 nodes");
        assert_eq!(refusal(&options(&[raw], &["uvn=ip vrf"])), "--inside: no --overlay has the name \"uvn\"");
    }
}
