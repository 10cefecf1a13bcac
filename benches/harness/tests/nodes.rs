//! `uvn-bench --nodes`: namespaces with an sshd each stand for real nodes. Needs root, openssh-server and iperf3.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};
use uvn_bench::report::Report;
use uvn_rig::netns;
use uvn_rig::place::{Host, Place};
use uvn_rig::process::Process;
use uvn_rig::rig::{Rig, underlay};
use uvn_rig::shell;

/// For what a busy machine may delay: a login by ssh, a program that ends.
const PATIENCE: Duration = Duration::from_secs(120);
/// The addresses of the network that the site has besides.
const OVERLAY: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// Two nodes with sshd and a kernel VXLAN. Dropping it removes them.
struct Nodes {
    sshds: Vec<Process>,
    rig: Rig,
}

impl Nodes {
    fn new(tag: &str) -> Nodes {
        assert!(nix::unistd::geteuid().is_root(), "this makes network namespaces: run it as root");
        static SIGNALS: Once = Once::new();
        SIGNALS.call_once(|| netns::catch_signals().unwrap());
        let rig = Rig::new(tag, 2, 1500).unwrap();
        // sshd's own folder for unprivileged children; it is not on every machine that never ran one.
        fs::create_dir_all("/run/sshd").unwrap();
        let file = |name: &str| rig.directory().join(name);
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            shell::read(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file(key))).unwrap();
        }
        fs::write(
            file("ssh"),
            format!(
                "User root\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nStrictHostKeyChecking no\nLogLevel ERROR\n",
                file("user").display(),
                file("known").display(),
            ),
        )
        .unwrap();
        fs::create_dir(file("remote")).unwrap();
        fs::create_dir(file("temporary")).unwrap();
        let mut nodes = Nodes { sshds: Vec::new(), rig };
        for (node, address) in OVERLAY.iter().enumerate() {
            nodes.add_overlay(node, address);
            nodes.start_sshd(node);
        }
        nodes
    }

    fn add_overlay(&self, node: usize, address: &str) {
        let [local, remote] = [node, 1 - node].map(|node| underlay(node).0.to_string());
        let ip = |words: &str| {
            let words = words.split(' ').map(str::to_owned);
            shell::read(Command::new("ip").arg("-n").arg(self.rig.node(node)).args(words)).unwrap()
        };
        ip(&format!("link add vx7 type vxlan id 7 dev em1 local {local} remote {remote} dstport 4789"));
        ip(&format!("addr add {address}/24 dev vx7"));
        ip("link set vx7 up");
    }

    fn start_sshd(&mut self, node: usize) {
        let address = underlay(node).0;
        let file = |name: &str| self.rig.directory().join(name);
        let config = file(&format!("sshd{node}"));
        let keys = (file("host"), file("user.pub"));
        fs::write(
            &config,
            format!(
                "ListenAddress {address}\nSetEnv TMPDIR={}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
                 PasswordAuthentication no\nPermitRootLogin prohibit-password\n",
                file("remote").display(),
                keys.0.display(),
                keys.1.display(),
            ),
        )
        .unwrap();
        let place = Place {
            host: Host::Netns(self.rig.node(node)),
            cores: "0-1023".into(),
            address: address.into(),
            round_robin: false,
        };
        let mut sshd = place.command("/usr/sbin/sshd");
        sshd.arg("-D").arg("-f").arg(config);
        self.sshds.push(Process::start("sshd", sshd).unwrap());
        let mut listeners = Command::new("ss");
        listeners.args(["--net", &self.rig.node(node), "-Hltn", "sport = :22"]);
        let listens = || !shell::read(&mut listeners).unwrap().is_empty();
        wait_until(listens, || format!("sshd does not listen on {address}"));
    }

    /// The bench, started on the first node.
    fn bench(&self, more: &[&str]) -> Command {
        let [a, b] = [0, 1].map(|node| underlay(node).0);
        let mut bench = Command::new("ip");
        bench.args(["netns", "exec", &self.rig.node(0), env!("CARGO_BIN_EXE_uvn-bench")]);
        bench.args(["--quick", "--nodes", &format!("{a},{b}"), "--ssh-config"]).arg(self.file("ssh"));
        bench.args(["--overlay", &format!("kernel VXLAN={}", OVERLAY.join(","))]);
        bench.args(["--inside", "kernel VXLAN=env UVN=1", "--output"]).arg(self.file("output"));
        bench.args(more).env("TMPDIR", self.file("temporary"));
        bench
    }

    /// What a run has on the nodes: folders, and programs started from there.
    fn traces(&self) -> Vec<String> {
        let remote = self.file("remote");
        let names = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let mut traces: Vec<String> = names(&remote).iter().map(|path| path.display().to_string()).collect();
        for process in names(Path::new("/proc")) {
            let words = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            if words.contains(&*remote.to_string_lossy()) {
                traces.push(words.replace('\0', " "));
            }
        }
        traces
    }

    /// Nothing is left on the nodes.
    fn wait_until_clean(&self) {
        wait_until(|| self.traces().is_empty(), || format!("left on the nodes: {:?}", self.traces()));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.rig.directory().join(name)
    }
}

fn wait_until(mut condition: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "after {PATIENCE:?}: {}", otherwise());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_site_is_measured_and_nothing_stays() {
    let nodes = Nodes::new("site");
    let workloads = ["TCP, 1 stream", "1 ping-pong, 8 B", "UDP"].map(|name| ["--workload", name]);
    let more = [&["--rounds", "2", "--seconds", "0.2"], workloads.as_flattened()].concat();
    let output = nodes.bench(&more).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let report = Report::read(&nodes.file("output/report.json")).unwrap();
    let names: Vec<&str> = report.contenders.iter().map(|contender| contender.name.as_str()).collect();
    assert_eq!(names, ["raw", "kernel VXLAN"]);
    assert!(report.contenders[1].about.contains("env UVN=1"));
    let units = ["Gb/s", "CPU s/GB"].map(|unit| ("TCP, 1 stream", unit));
    for (workload, unit) in
        units.into_iter().chain(["us p50", "CPU s/M msgs"].map(|unit| ("1 ping-pong, 8 B", unit)))
    {
        for name in &names {
            let one =
                report.find(workload, unit, name).unwrap_or_else(|| panic!("{workload}, {unit}: {text}"));
            assert_eq!(one.samples.len(), 2);
            assert!(one.min > 0.0, "{one:?}");
        }
    }
    let unfit: Vec<&str> = report.missing.iter().map(|missing| missing.why.as_str()).collect();
    assert!(unfit.iter().all(|why| *why == "it needs nodes of the bench's own"), "{unfit:?}");
    assert_eq!((report.settings.mtu, report.settings.nodes), (1500, 2));
    let node = &report.offloads[underlay(1).0.to_string()];
    assert_eq!(node["nic"], "em1");
    assert_eq!(node["offloads"]["tcp-segmentation-offload"]["active"], false);
    assert!(fs::read_to_string(nodes.file("output/report.html")).unwrap().contains("kernel VXLAN"));
    nodes.wait_until_clean();
    assert_eq!(fs::read_dir(nodes.file("temporary")).unwrap().count(), 0);
}

#[test]
fn killed_it_leaves_nothing_on_the_nodes() {
    let nodes = Nodes::new("killed");
    let more = ["--rounds", "1", "--seconds", "60", "--workload", "1 ping-pong, 8 B"];
    let mut bench: Child = nodes.bench(&more).stdout(Stdio::null()).spawn().unwrap();
    let plays = || {
        nodes.traces().iter().any(|words| words.contains("guard -- ") && words.contains("probe ping-pong"))
    };
    wait_until(plays, || format!("no ping-pong is played: {:?}", nodes.traces()));
    bench.kill().unwrap();
    bench.wait().unwrap();
    nodes.wait_until_clean();
}
