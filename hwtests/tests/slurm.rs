//! Jobs of a real Slurm are inside their users' networks: Debian's slurmctld, slurmd and munge, and Open MPI.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod slurm_cluster;

use slurm_cluster::{SRUN_PORTS, Slurm};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;
use uvn_hwtests::escape;
use uvn_hwtests::node::probe;
use uvn_hwtests::reach::parse;
use uvn_hwtests::sockets::sockets;
use uvn_hwtests::{Cluster, Daemon, Node, Server};
use uvn_rig::namespace::text;

/// Two policed users.
const ALICE: u32 = 1234;
const BOB: u32 = 5678;
/// One who is not.
const SERVICE: u32 = 990;
/// Where Alice's job serves.
const PORT: u16 = 7000;

/// Nodes with Slurm and uvn. Daemons first: they end before their nodes.
struct Site {
    daemons: Vec<Daemon>,
    slurm: Slurm,
    cluster: Cluster,
}

impl Site {
    fn new(proctrack: &str, path: &str) -> Site {
        let cluster = Cluster::two();
        let slurm = Slurm::start(&cluster, proctrack, &[ALICE, BOB, SERVICE]);
        let (v4, v6) = cluster.storage_address();
        // srun's user reaches slurmctld, which runs no uvn, as a listed host.
        let more = format!("relay = []\nhosts = [\"{v4}\", \"{v6}\"]\nsrun_ports = [\"{SRUN_PORTS}\"]");
        let config = cluster.config(path, &more);
        let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
        Site { daemons, slurm, cluster }
    }

    /// Starts a job on n2 that serves, and waits until it does.
    fn serve(&self, uid: u32, port: u16) -> Job {
        let probe = probe();
        let script = format!("exec srun -w n2 -n1 {} serve u{uid}@n2 tcp:0.0.0.0:{port}", probe.display());
        let mut command = self.slurm.command(self.cluster.pair()[0], uid, &script);
        let mut srun = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(srun.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Job { srun }
    }

    /// What the users' processes leave behind goes with the last lease.
    fn conclude(mut self) {
        for node in self.cluster.pair() {
            let list = || node.uvn(&["list", "--json"]);
            node.wait("end of the networks", Duration::from_secs(60), || networks(&list()).is_empty());
            let left = node.sh("ip -brief link; ip -4 rule; ip -6 rule; ip -4 route show table all");
            assert!(!left.contains("uvn1234") && !left.contains("uvn5678"), "{}: {left}", node.name());
            node.uvn(&["check"]);
        }
        self.daemons.iter_mut().for_each(Daemon::assert_alive);
    }
}

/// A job in the foreground. Dropping it interrupts it, as Ctrl-C does.
struct Job {
    srun: Child,
}

impl Drop for Job {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.srun.id().cast_signed());
        let _already_ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _status = self.srun.wait();
    }
}

fn networks(list: &str) -> Vec<serde_json::Value> {
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    list.as_array().or_else(|| list["networks"].as_array()).cloned().unwrap_or_default()
}

/// Asserts that every socket of the user is in his network, and returns how many that are. Except where srun and Slurm's
/// daemons talk: slurmstepd connects to it as root with the user's effective UID.
fn inside(node: &Node, uid: u32) -> usize {
    let (first, last) = SRUN_PORTS.split_once('-').unwrap();
    let srun = first.parse::<u16>().unwrap()..=last.parse().unwrap();
    let (released, bound): (Vec<_>, Vec<_>) =
        sockets(node, uid).into_iter().partition(|socket| socket.device.is_none());
    for socket in released {
        let ports = [Some(socket.port), socket.peer_port];
        assert!(ports.iter().flatten().any(|port| srun.contains(port)), "{}: {socket:?}", node.name());
    }
    for socket in &bound {
        assert_eq!(socket.device.as_deref(), Some(&*format!("uvn{uid}")), "{}: {socket:?}", node.name());
    }
    bound.len()
}

/// An MPI program that stays until it has been looked at.
const MPI: &str = r#"
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank, ranks, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d of %d: %d\n", rank, ranks, sum);
    fflush(stdout);
    for (int i = 0; i < 1200 && access("looked", F_OK) != 0; i++)
        usleep(100000);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    return MPI_Finalize();
}
"#;

/// TCP between the nodes, and nothing that is slow to try under emulation.
const MPI_ENVIRONMENT: &str = "OMPI_MCA_btl=tcp,self OMPI_MCA_pml=ob1 OMPI_MCA_btl_tcp_if_include=10.0.0.0/24 OMPI_MCA_mtl=^ofi,psm,psm2";

fn mpi_runs_inside(site: &Site) {
    let [n1, n2] = site.cluster.pair();
    std::fs::write(format!("/home/u{ALICE}/mpi.c"), MPI).unwrap();
    let script =
        format!("#!/bin/sh\nexport {MPI_ENVIRONMENT}\nmpirun --bind-to none --map-by node -np 2 ./mpi\n");
    std::fs::write(format!("/home/u{ALICE}/job.sh"), script + "echo end $?\n").unwrap();
    site.slurm.run(n1, ALICE, "mpicc -o mpi mpi.c && sbatch -N2 --ntasks-per-node=1 -o job.out job.sh");
    let output = || std::fs::read_to_string(format!("/home/u{ALICE}/job.out")).unwrap_or_default();
    n1.wait("ranks", Duration::from_secs(120), || output().lines().count() >= 2 || output().contains("end"));
    let count = [n1, n2].map(|node| inside(node, ALICE));
    std::fs::write(format!("/home/u{ALICE}/looked"), "").unwrap();
    n1.wait("end of the batch job", Duration::from_secs(120), || output().contains("end"));
    let mut lines: Vec<String> = output().lines().map(String::from).collect();
    lines.sort();
    assert_eq!(lines, ["end 0", "rank 0 of 2: 1", "rank 1 of 2: 1"]);
    // Between the ranks, and from orted to mpirun.
    assert!(count.iter().all(|&count| count >= 2), "{count:?}");
    // PMIx: the ranks talk to slurmstepd.
    let mut lines = site.slurm.run(n1, ALICE, &format!("{MPI_ENVIRONMENT} srun --mpi=pmix -N2 ./mpi"));
    lines.sort();
    assert_eq!(lines, ["rank 0 of 2: 1", "rank 1 of 2: 1"]);
}

fn jobs_are_apart(site: &Site) {
    let [n1, n2] = site.cluster.pair();
    let job = site.serve(ALICE, PORT);
    assert!(inside(n2, ALICE) >= 1);
    // Held by the job, on the node where nobody logged in.
    let list = n2.uvn(&["list", "--json"]);
    let [network] = &networks(&list)[..] else { panic!("one network: {list}") };
    assert_eq!(network["uid"], ALICE);
    assert!(network["leases"].to_string().contains(".extern"), "{list}");
    let server = format!("tcp:{}:{PORT}", n2.nics()[0].v4);
    let local = format!("tcp:127.0.0.1:{PORT}");
    let alice = n1.reach(ALICE, "alice", &[server.clone(), local.clone()]);
    assert_eq!(alice[&server], Ok(format!("u{ALICE}@n2")));
    assert!(alice[&local].is_err());
    assert!(n1.try_reach(BOB, "bob", std::slice::from_ref(&server))[&server].is_err());
    // Bob's own job beside it, on the same port.
    let reach = format!("srun -w n2 {} reach --patience=4 bob {server} {local}", probe().display());
    let bob = site.slurm.run(n1, BOB, &reach);
    assert!(bob.len() == 2 && bob.iter().all(|line| line.contains(" ! ")), "{bob:?}");
    drop(job);
}

/// What an ordinary user may try ([`escape`]) does not work from a job either.
fn jobs_do_not_escape(site: &Site) {
    let [n1, n2] = site.cluster.pair();
    let sockets: Vec<String> = [("0.0.0.0", escape::PORT), ("[::]", escape::PORT6)]
        .iter()
        .flat_map(|(address, port)| ["tcp", "udp"].map(|protocol| format!("{protocol}:{address}:{port}")))
        .collect();
    n2.uvn(&["attach", &ALICE.to_string()]);
    let mut servers: Vec<Server> = [n1, n2].map(|node| node.serve(ALICE, "alice", &sockets)).into();
    // On the subnet, and not listed.
    servers.push(Server::start(&site.cluster.outside, 0, "router", &sockets));
    let ([here, here6], [there, there6]) = (n2.addresses(), n1.addresses());
    let aim = format!(
        "--who job --uid {BOB} --victim {ALICE} --vni {ALICE} --here {here} --here6 {here6} --there {there} \
         --there6 {there6} --host 10.0.0.254 --host6 fd00:10::fe --nic em1"
    );
    let attempts: Vec<String> = escape::all().into_iter().map(|attempt| attempt.name).collect();
    let attempts: Vec<&str> =
        attempts.iter().map(String::as_str).filter(|name| !name.starts_with("root-")).collect();
    let line = |names: &[&str]| format!("{} escape {aim} {}\n", probe().display(), names.join(" "));
    // Each is a process that waits.
    let script: String = attempts.chunks(24).map(line).collect();
    std::fs::write(format!("/home/u{BOB}/escape.sh"), script).unwrap();
    let answers = parse(&site.slurm.run(n1, BOB, "srun -w n2 sh escape.sh").join("\n"));
    let silent: Vec<&&str> = attempts.iter().filter(|name| !answers.contains_key(**name)).collect();
    assert!(silent.is_empty(), "no word of {silent:?}");
    let escaped: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).collect();
    assert!(escaped.is_empty(), "{escaped:?}");
    let seen: Vec<String> = servers.iter().flat_map(Server::seen).collect();
    assert!(!seen.iter().any(|who| who.starts_with("job/")), "{seen:?}");
    drop(servers);
    n2.uvn(&["detach", &ALICE.to_string()]);
}

fn a_queued_job_starts(site: &Site) {
    let [n1, _] = site.cluster.pair();
    let all = site.slurm.command(n1, BOB, "exec srun -N2 --exclusive sleep 600").spawn().unwrap();
    let all = Job { srun: all };
    site.cluster.storage.wait("Bob's job", Duration::from_secs(60), || {
        site.cluster.storage.sh("squeue --noheader --states=R --format=%u").contains("u5678")
    });
    let mut srun = site.slurm.command(n1, ALICE, "exec timeout 240 srun -N2 hostname");
    let hers = srun.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    site.cluster.storage.wait("Alice's job in the queue", Duration::from_secs(60), || {
        site.cluster.storage.sh("squeue --noheader --states=PD --format=%u").contains("u1234")
    });
    drop(all);
    // slurmctld calls srun back now that there is room.
    let output = hers.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("queued"), "{}\n{said}", output.status);
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn jobs_are_inside_their_users_network() {
    let site = Site::new("cgroup", "engine");
    let [n1, _] = site.cluster.pair();
    // Who is not policed is left alone.
    site.slurm.run(n1, SERVICE, "srun -N2 hostname");
    assert!(networks(&n1.uvn(&["list", "--json"])).is_empty());

    // As a login would; n2 knows nothing of her yet.
    n1.uvn(&["attach", &ALICE.to_string()]);
    n1.uvn(&["attach", &BOB.to_string()]);
    let script = "echo text | srun -N2 -i0 sh -c 'hostname; test $SLURM_PROCID = 1 || cat'";
    let mut lines = site.slurm.run(n1, ALICE, script);
    lines.sort();
    assert_eq!(lines, ["n1", "n2", "text"]);
    let terminal = site.slurm.run(n1, ALICE, "script -qec 'srun --pty -w n2 tty' /dev/null");
    assert!(terminal.iter().any(|line| line.contains("/dev/pts/")), "{terminal:?}");
    jobs_are_apart(&site);
    jobs_do_not_escape(&site);
    a_queued_job_starts(&site);
    mpi_runs_inside(&site);
    n1.uvn(&["detach", &ALICE.to_string()]);
    n1.uvn(&["detach", &BOB.to_string()]);
    site.conclude();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn what_a_job_leaves_behind_stays_inside() {
    // This one tracks parents: a daemon outlives its job.
    let site = Site::new("linuxproc", "kernel");
    let [n1, n2] = site.cluster.pair();
    n1.uvn(&["attach", &ALICE.to_string()]);
    n1.uvn(&["attach", &BOB.to_string()]);
    jobs_do_not_escape(&site);
    let serve = format!("{} serve daemon tcp:0.0.0.0:{PORT}", probe().display());
    let listens = format!("until ss -Hltn | grep -q :{PORT}; do sleep 0.1; done");
    let daemon = format!("srun -w n2 sh -c 'setsid {serve} </dev/null >/dev/null 2>&1 & {listens}; echo $!'");
    let lines = site.slurm.run(n1, ALICE, &daemon);
    let pid: i32 = lines[0].parse().unwrap();
    // Longer than the linger time.
    std::thread::sleep(Duration::from_secs(3));
    let server = format!("tcp:{}:{PORT}", n2.nics()[0].v4);
    assert_eq!(n1.reach(ALICE, "alice", std::slice::from_ref(&server))[&server], Ok("daemon".into()));
    assert!(n1.try_reach(BOB, "bob", std::slice::from_ref(&server))[&server].is_err());
    assert_eq!(inside(n2, ALICE), 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    n1.uvn(&["detach", &ALICE.to_string()]);
    n1.uvn(&["detach", &BOB.to_string()]);
    site.conclude();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_job_whose_network_cannot_be_made_fails() {
    let mut site = Site::new("cgroup", "engine");
    for node in site.cluster.pair() {
        node.uvn(&["attach", &ALICE.to_string()]);
    }
    site.cluster.pair()[0].uvn(&["attach", &BOB.to_string()]);
    site.daemons.remove(1).crash();
    let [n1, n2] = site.cluster.pair();

    // Alice has a network on n2 still, so that srun reaches it.
    let output = site.slurm.try_run(n1, ALICE, "srun -w n2 echo started");
    let (lines, said) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success() && lines.is_empty(), "{}: {lines}", output.status);
    assert!(
        said.contains("n2: error: uvn: no network for this job on this node: uvnd does not answer"),
        "{said}"
    );

    // A batch job fails as well, tells why, and does not take the node out of service.
    let reach = format!("{} reach bob tcp:10.0.0.200:6817", probe().display());
    let script =
        format!("printf '#!/bin/sh\\necho started\\n{reach}\\n' > job.sh; sbatch -w n2 -o job.out job.sh");
    site.slurm.run(n1, BOB, &script);
    let output = || std::fs::read_to_string(format!("/home/u{BOB}/job.out")).unwrap_or_default();
    n1.wait("the reason", Duration::from_secs(60), || output().contains("uvn: no network for this job"));
    site.slurm.wait_idle(&site.cluster);
    assert!(!output().contains("started"), "{}", output());

    // If the site prefers so, it starts; without any network.
    site.slurm.plugin("optional");
    site.slurm.run(n1, BOB, &script);
    n1.wait("the job", Duration::from_secs(60), || output().contains(":6817 "));
    assert!(output().contains("started") && output().contains("Operation not permitted"), "{}", output());

    site.slurm.plugin("required");
    let restarted = n2.restart_uvnd();
    site.daemons.push(restarted);
    let [n1, n2] = site.cluster.pair();
    assert_eq!(site.slurm.run(n1, ALICE, "srun -w n2 echo started"), ["started"]);
    for node in [n1, n2] {
        node.uvn(&["detach", &ALICE.to_string()]);
    }
    n1.uvn(&["detach", &BOB.to_string()]);
    site.conclude();
}
