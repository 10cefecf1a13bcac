//! Checks whether this node does what it promises. Looks at the live state itself, and does not rely on `uvnd`'s
//! reports.

mod accounts;
mod earlier;
mod host;
mod trial;
mod unix;

use crate::binding::{self, Binding, Devices};
use crate::config::{Config, Mode};
use crate::daemon::{STATE, devices, items};
use crate::feed::{self, Others};
use crate::firewall;
use crate::lease::{Leases, state};
use crate::netlink::Netlink;
use crate::network::{DataPath, Network, Node};
use crate::pam::{self, Way};
use crate::peers::{self, Directory, Peers};
use crate::plan;
use crate::sysctl;
use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::unistd::geteuid;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use trial::device_of_socket;
use uvn_api::dataplane::message::{Note, State};
use uvn_api::uvnd::client::{Client, ClientError};
use uvn_api::uvnd::finding::{Finding, Id, LOG};
use uvn_api::uvnd::message;
use uvn_api::uvnd::status::{Carrier, Status};

/// How long `uvnd` may take to answer: root is served first, and nothing holds up its loop for so long.
const ANSWER: Duration = Duration::from_secs(20);
/// How long to wait for the addresses of nodes.
const NAMES: Duration = Duration::from_secs(10);
/// The pause before a second look at what may only have been in the middle of a change.
const SETTLE: Duration = Duration::from_millis(700);

const RESTART: &str = "restart uvnd: `systemctl restart uvnd`; users' networks live on";

/// Checks this node. A state that exists only during a change is no finding.
///
/// # Errors
/// The configuration is wrong, or the state cannot be read without root.
pub fn check(file: &Path) -> Result<Vec<Finding>, Box<dyn Error>> {
    if !geteuid().is_root() {
        return Err("only root can check".into());
    }
    let config = Config::load(file)?;
    let mut directory = Directory::new(Path::new(peers::KNOWN));
    // uvnd's warnings say why it cannot be followed.
    let _told_by_uvnd = directory.follow(&config.peers);
    directory.wait(NAMES);
    let mut findings = look(&config, &directory.peers())?;
    if !findings.is_empty() {
        std::thread::sleep(SETTLE);
        let again = look(&config, &directory.peers())?;
        findings.retain(|finding| again.contains(finding));
    }
    let netlink = Netlink::open()?;
    let node = netlink.node(&config)?;
    findings.extend(host::warnings(&config, &node, &netlink.rivals(&node)?));
    findings.extend(accounts::findings(&config));
    findings.extend(logins());
    let observes = config.mode == Mode::Observe || findings.iter().any(|finding| finding.id == Id::Observes);
    if !observes {
        findings.extend(earlier::findings(&config));
    }
    Ok(findings)
}

/// Findings about PAM's configuration.
fn logins() -> Vec<Finding> {
    const LINE: &str = "session required /usr/lib/uvn/pam_uvn.so";

    let helper = |line: pam::Line| {
        let (file, number) = (line.file.display(), line.number);
        let what =
            format!("{file}:{number}: pam_exec runs `uvn pam`, which is no more: only root can log in");
        Finding::fault(Id::PamHelper, what, format!("replace the line by `{LINE}`"))
    };
    let lines = pam::lines().into_iter().filter(|line| line.way == Way::Helper);
    let mut findings: Vec<Finding> = lines.map(helper).collect();
    let without = pam::without_module();
    if !without.is_empty() {
        let what = format!("no network for users by {}: PAM does not run pam_uvn.so", without.join(", "));
        findings.push(Finding::warning(Id::PamAbsent, what, format!("`{LINE}` in the files of /etc/pam.d")));
    }
    findings
}

/// The state that `uvnd` should keep.
struct Promise<'a> {
    config: &'a Config,
    node: Node,
    peers: &'a Peers,
    networks: Vec<Network>,
}

fn look(config: &Config, peers: &Peers) -> Result<Vec<Finding>, Box<dyn Error>> {
    let mut findings = Vec::new();
    let netlink = Netlink::open()?;
    let mut node = netlink.node(config)?;
    let mut observes = config.mode == Mode::Observe;
    match ask() {
        Ok(status) => {
            observes |= status.observes;
            for nic in &mut node.nics {
                // uvnd knows the outcome of `auto`.
                if let Some(state) = status.nics.iter().find(|state| state.name == nic.name) {
                    nic.path = match state.carrier {
                        Carrier::Kernel => DataPath::Kernel,
                        Carrier::DataPlane | Carrier::Unknown => DataPath::Engine,
                    };
                }
            }
            check_status(&status, &mut findings);
        }
        Err(error) => findings.push(Finding::fault(
            Id::Uvnd,
            error,
            "networks work on, but nothing is attached or mended",
        )),
    }
    if let Some(in_use) = netlink.pool_in_use(config)? {
        findings.push(Finding::fault(Id::Pool, &in_use, "until then that is cut off"));
    }
    let leases = state::load(Path::new(STATE), config.nat.slots())?.leases;
    let networks = networks(&leases);
    let promise = Promise { config, node, peers, networks };
    promise.check_kernel(&netlink, &mut findings)?;
    promise.check_settings(&mut findings);
    promise.check_peers(&mut findings);
    promise.check_binding(&mut findings);
    if !observes {
        promise.check_sockets(&mut findings);
        findings.extend(unix::trial(config, &findings));
    }
    Ok(findings)
}

fn ask() -> Result<Status, ClientError> {
    Client::within(message::socket(), ANSWER)?.status()
}

fn networks(leases: &Leases) -> Vec<Network> {
    leases.iter().filter(|(_, held)| !held.leaving).map(|(_, held)| held.network.clone()).collect()
}

fn check_status(status: &Status, findings: &mut Vec<Finding>) {
    findings.extend(status.findings.iter().cloned());
    for nic in &status.nics {
        if !nic.up {
            findings.push(Finding::fault(
                Id::NicDown,
                format!("{} is down", nic.name),
                "`ip link set up` it",
            ));
        }
        let Some(data_plane) = &nic.data_plane else { continue };
        // Rivals are left to [`host::warnings`], which knows better which devices are endpoints.
        let notes = data_plane.notes.iter().filter(|note| !matches!(note, Note::Rival { .. }));
        findings.extend(notes.map(|note| host::noted(&nic.name, note)));
        if !matches!(data_plane.state, State::Running | State::Down) {
            let why = data_plane.fault.clone().unwrap_or_else(|| data_plane.state.to_string());
            let what = format!("the data plane of {}: {why}", nic.name);
            findings.push(Finding::fault(Id::DataPlane, what, LOG));
        }
        if data_plane.networks != status.networks {
            let (has, all) = (data_plane.networks, status.networks);
            let text = format!("the data plane of {} has {has} networks, not {all}", nic.name);
            findings.push(Finding::fault(Id::DataPlaneNetworks, text, LOG));
        }
    }
}

impl Promise<'_> {
    /// Checks devices, addresses, routes and rules.
    fn check_kernel(&self, netlink: &Netlink, findings: &mut Vec<Finding>) -> Result<(), Box<dyn Error>> {
        let mut wanted = plan::node(&self.node);
        for network in &self.networks {
            wanted.extend(items(&self.node, self.peers, network));
        }
        for step in plan::diff(&wanted, &netlink.observe()?) {
            findings.push(Finding::fault(Id::Kernel, format!("the kernel lacks a step: {step}"), LOG));
        }
        Ok(())
    }

    /// Checks kernel settings and the packet filter.
    fn check_settings(&self, findings: &mut Vec<Finding>) {
        for wrong in sysctl::check(&self.node) {
            findings.push(Finding::fault(
                Id::Setting,
                wrong,
                "something else sets it: mend that, then `uvn reload`",
            ));
        }
        let opened = sysctl::opened(&self.node, Path::new(sysctl::RECORD));
        let limit = sysctl::flows_of_one();
        match firewall::is_applied(&firewall::ruleset(self.config, &self.node, self.peers, &opened, limit)) {
            Ok(true) => {}
            Ok(false) => findings.push(Finding::fault(
                Id::Firewall,
                "the nftables table of uvn differs from what uvnd has written",
                "`uvn reload`",
            )),
            Err(error) => findings.push(Finding::fault(Id::Firewall, error, "`uvn reload`")),
        }
    }

    /// Checks the nodes whose frames each data plane accepts, and those that kernel VXLAN sends to.
    fn check_peers(&self, findings: &mut Vec<Finding>) {
        for nic in self.node.nics.iter().filter(|nic| nic.path == DataPath::Kernel && nic.up) {
            let group = self.config.underlays.get(usize::from(nic.slot)).and_then(|underlay| underlay.group);
            if group.is_none() && self.peers.nodes.is_empty() {
                let what =
                    format!("{} is kernel VXLAN's, which knows of no other node: users reach none", nic.name);
                let remedy =
                    "list the nodes in [peers] (`nodes`, `slurm`), or set a `group` of the [[underlay]]";
                findings.push(Finding::fault(Id::Alone, what, remedy));
            }
        }
        for nic in self.node.nics.iter().filter(|nic| nic.path == DataPath::Engine && nic.up) {
            let shall = Others::new(&self.node, nic, self.peers).allowed;
            if feed::was_told(&nic.name).is_none_or(|told| told != shall) {
                let text =
                    format!("the data plane of {} takes frames of other nodes than [peers] lists", nic.name);
                findings.push(Finding::fault(Id::DataPlanePeers, text, LOG));
            }
        }
    }

    /// Checks the socket programs and the networks that they hold.
    fn check_binding(&self, findings: &mut Vec<Finding>) {
        if let Some(open) = binding::open_file_system(Path::new(binding::PINS)) {
            findings.push(Finding::fault(
                Id::Pins,
                format!(
                    "{}: users can make files there, in place of uvn's before uvnd starts",
                    open.display()
                ),
                "mount the BPF file system with mode=700",
            ));
        }
        let (attached, bound) = match Binding::pinned(Path::new(binding::PINS)) {
            Ok(pinned) => pinned,
            Err(error) => return findings.push(Finding::fault(Id::Programs, error, RESTART)),
        };
        if !attached {
            findings.push(Finding::fault(
                Id::Programs,
                "a socket program is not attached: users may leave their networks",
                RESTART,
            ));
        }
        let wanted: BTreeSet<u32> = self.networks.iter().map(|network| network.uid).collect();
        for uid in bound.keys().filter(|uid| !wanted.contains(uid)) {
            findings.push(Finding::fault(
                Id::Bound,
                format!("sockets of user {uid} are bound, though he has no network"),
                LOG,
            ));
        }
        for network in &self.networks {
            let (has, shall): (Option<&Devices>, _) = (bound.get(&network.uid), devices(&self.node, network));
            if has != shall.as_ref() {
                let text = format!("sockets of user {} are bound to {has:?}, not {shall:?}", network.uid);
                findings.push(Finding::fault(Id::Bound, text, LOG));
            }
        }
    }

    /// Checks what happens to sockets that users make.
    fn check_sockets(&self, findings: &mut Vec<Finding>) {
        for network in &self.networks {
            let uid = network.uid;
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                match device_of_socket(uid, family) {
                    Ok(device) if device == network.vrf() => {}
                    Err(Errno::EAFNOSUPPORT) if family == AddressFamily::Inet6 => {}
                    Ok(device) => {
                        findings.push(Finding::fault(
                            Id::Sockets,
                            format!("a socket of user {uid} is bound to {device:?}"),
                            RESTART,
                        ));
                    }
                    Err(error) => {
                        findings.push(Finding::fault(
                            Id::Sockets,
                            format!("user {uid} cannot make a socket: {error}"),
                            LOG,
                        ));
                    }
                }
            }
        }
        // One user stands for all: other packet filters match users' devices by the beginning of their names.
        if findings.is_empty() {
            findings
                .extend(self.networks.first().and_then(|network| trial::unreached(network.uid, &self.node)));
        }
        let held: BTreeSet<u32> = self.networks.iter().map(|network| network.uid).collect();
        let stranger = self.config.policed_ranges().into_iter().flatten().find(|uid| !held.contains(uid));
        if let Some(uid) = stranger {
            match device_of_socket(uid, AddressFamily::Inet) {
                Err(Errno::EPERM) => {}
                other => {
                    let text = format!("user {uid} has no network, and may make a socket: {other:?}");
                    findings.push(Finding::fault(Id::Sockets, text, RESTART));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvn_api::uvnd::status::{DataPlane, NicState};

    fn status(notes: Vec<Note>) -> Status {
        let data_plane = DataPlane { state: State::Running, notes, ..DataPlane::default() };
        let nic = NicState {
            name: "em1".into(),
            up: true,
            mtu: 1500,
            addresses: Vec::new(),
            vteps: Vec::new(),
            port: 4789,
            carrier: Carrier::DataPlane,
            reason: String::new(),
            data_plane: Some(data_plane),
        };
        Status { nics: vec![nic], ..Status::default() }
    }

    #[test]
    fn what_a_data_plane_notes_is_a_warning_with_a_remedy() {
        let vtep = [10, 0, 0, 1].into();
        let notes = [
            (Note::Unseen { frames: 8 }, "tc_unseen", "`path`"),
            (Note::GroOff, "GRO", "ethtool -K em1 gro on"),
            (Note::NotJoined, "join", "port"),
            (Note::NarrowWay { vtep, mtu: 1300, least: 1330 }, "1300", "1330"),
            (Note::VtepAbsent { vtep }, "10.0.0.1", "ip address add"),
        ];
        for (note, what, remedy) in notes {
            let mut findings = Vec::new();
            check_status(&status(vec![note.clone()]), &mut findings);
            let [finding] = &findings[..] else { panic!("{note:?}: {findings:?}") };
            assert!(finding.warning, "{finding}");
            assert!(finding.what.contains(what) && finding.remedy.contains(remedy), "{finding}");
        }
        let mut findings = Vec::new();
        check_status(&status(vec![Note::Rival { device: "em2".into() }]), &mut findings);
        assert_eq!(findings, [], "said once");
    }
}
