//! A Slurm cluster: slurmctld on the on-subnet host without uvn, slurmd on every node, users logged in anywhere.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use uvn_hwtests::Cluster;
use uvn_hwtests::node::{add_user, program};
use uvn_rig::namespace::{Namespace, text};

/// Where srun listens. The first is where the attempts of `uvn_hwtests::escape` listen.
pub const SRUN_PORTS: &str = "60001-60100";
/// slurmd's scopes are below this one (slurm's cgroup_v2.c).
const SLICE: &str = "/sys/fs/cgroup/system.slice";

/// A running cluster. Dropping it ends munged; the rest goes with its hosts.
pub struct Slurm {
    munged: Child,
}

impl Slurm {
    /// Starts it, and waits until every node is idle.
    pub fn start(cluster: &Cluster, proctrack: &str, users: &[u32]) -> Slurm {
        users.iter().copied().for_each(add_user);
        prepare_cgroups();
        configure(cluster, proctrack);
        let slurm = Slurm { munged: munged() };
        slurm.plugin("required");
        daemon(&cluster.storage, "slurmctld");
        for node in &cluster.nodes {
            daemon(node, "slurmd");
        }
        slurm.wait_idle(cluster);
        slurm
    }

    /// What the next steps do without the plugin's consent: `required` or `optional`.
    pub fn plugin(&self, kind: &str) {
        let file = program("libspank_uvn.so");
        fs::write("/etc/slurm/plugstack.conf", format!("{kind} {}\n", file.display())).unwrap();
    }

    /// Waits until every node is idle.
    pub fn wait_idle(&self, cluster: &Cluster) {
        cluster.storage.wait("idle nodes", Duration::from_secs(180), || {
            let states = cluster.storage.try_sh("sinfo --noheader --Node --format=%T");
            let states = text(&states.stdout);
            states.lines().count() == cluster.nodes.len() && states.lines().all(|state| state == "idle")
        });
    }

    /// Runs a shell script as a user in his home.
    pub fn try_run(&self, node: &Namespace, uid: u32, script: &str) -> Output {
        self.command(node, uid, script).output().unwrap()
    }

    /// Runs a shell script as a user in his home, and returns its lines; panics when it fails.
    pub fn run(&self, node: &Namespace, uid: u32, script: &str) -> Vec<String> {
        let output = self.try_run(node, uid, script);
        let (lines, said) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{} as {uid}: {script}: {}\n{lines}{said}",
            node.name(),
            output.status
        );
        lines.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// A shell script as a user in his home.
    pub fn command(&self, node: &Namespace, uid: u32, script: &str) -> Command {
        let mut command = node.command_as(uid, "sh");
        command
            .args(["-c", &format!("cd; {script}")])
            .env("HOME", format!("/home/u{uid}"))
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _already_ended = self.munged.kill();
        let _status = self.munged.wait();
        if std::thread::panicking() {
            for log in ["slurmctld-storage", "slurmd-n1", "slurmd-n2"] {
                let log = log_file(log);
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}\n{}", log.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}

fn log_file(name: &str) -> PathBuf {
    format!("/tmp/{name}.log").into()
}

/// Without systemd nobody enables the controllers that slurmd looks for.
fn prepare_cgroups() {
    fs::create_dir_all(SLICE).unwrap();
    for folder in ["/sys/fs/cgroup", SLICE] {
        fs::write(Path::new(folder).join("cgroup.subtree_control"), "+cpu +cpuset +memory").unwrap();
    }
}

fn configure(cluster: &Cluster, proctrack: &str) {
    let (controller, _) = cluster.storage_address();
    let mut config = format!(
        "ClusterName=uvn\nSlurmctldHost=storage({controller})\nAuthType=auth/munge\nSlurmUser=root\n\
         ProctrackType=proctrack/{proctrack}\nTaskPlugin=task/none\nPrologFlags=contain\nReturnToService=2\n\
         SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nSchedulerType=sched/builtin\n\
         SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0\nMailProg=/bin/true\n\
         SlurmdParameters=config_overrides\nSrunPortRange={SRUN_PORTS}\n\
         SlurmctldPidFile=/run/node/slurmctld.pid\nSlurmdPidFile=/run/node/slurmd.pid\n\
         StateSaveLocation=/run/node/slurmctld\nSlurmdSpoolDir=/run/node/slurmd\n\
         PartitionName=all Nodes=ALL Default=YES\n"
    );
    for node in &cluster.nodes {
        let (name, address) = (node.name(), node.nics()[0].v4);
        let _infallible = writeln!(config, "NodeName={name} NodeAddr={address} CPUs=2 State=UNKNOWN");
    }
    fs::write("/etc/slurm/slurm.conf", config).unwrap();
    fs::write("/etc/slurm/cgroup.conf", "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n").unwrap();
}

/// One for all hosts: its socket is a file.
fn munged() -> Child {
    let user = nix::unistd::User::from_name("munge").unwrap().expect("Debian's package munge makes it");
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/munge").unwrap();
    chown("/run/munge", Some(uid), Some(gid)).unwrap();
    let log = File::create(log_file("munged")).unwrap();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    command
        .args(["munged", "--foreground"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command.spawn().unwrap()
}

fn daemon(host: &Namespace, name: &str) {
    let log = File::create(log_file(&format!("{name}-{}", host.name()))).unwrap();
    // PMIx makes folders in /tmp whose names are the same on every node.
    let mut command = host.command("unshare");
    let script = format!("mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp && exec {name} -D");
    command
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    drop(command.spawn().unwrap());
}
