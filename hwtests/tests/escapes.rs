//! What an ordinary user tries to get out of his network, or into somebody else's: none of it works. Each attempt is
//! first made on a node without the programs and rules that stop it, where it does work, so that it is known to be
//! one; those of which that cannot be shown are listed with the reason.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

#[path = "escapes/rdma.rs"]
mod rdma;
#[path = "escapes/unix.rs"]
mod unix;

use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use uvn_hwtests::cluster::OUTSIDE;
use uvn_hwtests::escape::process::{self, SUBUID};
use uvn_hwtests::escape::{self, PORT, PORT6, protocol};
use uvn_hwtests::node::{probe, program, srun};
use uvn_hwtests::reach::{Answer, parse};
use uvn_hwtests::{Cluster, Daemon, Layout, Namespace, Node, Server, path};
use uvn_rig::namespace::text;

const ALICE: u32 = 1234;
const BOB: u32 = 9876;
/// Who has no network.
const STRANGER: u32 = 5555;
/// At once: each attempt is a process that waits.
const BATCH: usize = 24;

/// Alice's NAT addresses: hers is the node's first network.
const NAT: [&str; 2] = ["100.64.0.1", "fd75:766e::1"];

/// Has a host take source routes and segment routing headers.
const SOURCE_ROUTES: &str = "cd /proc/sys/net && for setting in ipv4/conf/[!d]*/accept_source_route \
                             ipv6/conf/[!d]*/seg6_enabled; do echo 1 > $setting; done";

/// What is left of the rules on the open node.
const OPEN: &str = "table inet open {
    chain in { type filter hook prerouting priority raw; iifname \"uvn*\" notrack; }
    chain out { type filter hook output priority raw; oifname \"uvn*\" notrack; }
    chain leave {
        type nat hook postrouting priority srcnat
        ip saddr 100.64.0.0/10 masquerade
        ip6 saddr fd75:766e::/64 masquerade
    }
}";

struct Site {
    daemons: Vec<Daemon>,
    servers: Vec<Server>,
    cluster: Cluster,
}

impl Site {
    /// Alice has servers on both nodes; so has a host of the subnet.
    fn new(path: &str) -> Site {
        let cluster = Cluster::two();
        let srun = format!("srun = [\"{}\"]\n", srun().display());
        let ports = "srun_ports = [\"60001-60010\"]\nservice_ports = [\"6817-6818\"]";
        let config = cluster.config(path, &(srun + ports));
        let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
        let mut site = Site { daemons, servers: Vec::new(), cluster };
        // As some site's router and hosts may: then a packet chooses its way. Devices that come later do not.
        for host in [&site.cluster.outside, &site.cluster.storage, &*site.cluster.nodes[0]] {
            host.sh(SOURCE_ROUTES);
        }
        let sockets = [
            format!("tcp:0.0.0.0:{PORT}"),
            format!("udp:0.0.0.0:{PORT}"),
            format!("tcp:[::]:{PORT6}"),
            format!("udp:[::]:{PORT6}"),
        ];
        for node in &site.cluster.nodes {
            node.uvn(&["attach", &ALICE.to_string()]);
            node.uvn(&["attach", &BOB.to_string()]);
            path::wait_for_gear(node);
            // ping sockets for everybody, as systemd has it; Bob's subordinate UIDs.
            node.write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
            node.write("/proc/sys/net/ipv4/tcp_fastopen", "3");
            site.servers.push(node.serve(ALICE, &format!("alice@{}", node.name()), &sockets));
        }
        site.servers.push(Server::start(&site.cluster.storage, 0, "storage", &sockets));
        site.servers.push(Server::probe(&site.cluster.outside, 0, &["listen", "reflect", "outside"]));
        site
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    /// Takes away what keeps Bob in on his node: the programs and the rules. The networks stay, and have NAT by address.
    fn open(&mut self) {
        self.daemons.remove(0).crash();
        let node = self.node();
        node.sh("find /sys/fs/bpf/uvn -type f -delete && nft flush ruleset");
        node.sh(&format!("nft '{OPEN}'"));
        node.ip(&NAT.map(|address| format!("address add {address} dev uvn{ALICE}\n")).concat());
        node.write("/proc/sys/net/mptcp/enabled", "1");
    }

    fn close(&mut self) {
        // uvnd would find its pool in use.
        let prefixes =
            NAT.map(|address| format!("{address}/{}", if address.contains(':') { 128 } else { 32 }));
        self.node().ip(&prefixes.map(|prefix| format!("address del {prefix} dev uvn{ALICE}\n")).concat());
        let daemon = self.node().restart_uvnd();
        self.daemons.insert(0, daemon);
        self.node().uvn(&["check"]);
    }

    fn aim(&self, who: &str) -> Vec<String> {
        let [here, there] = [0, 1].map(|node: usize| self.cluster.nodes[node].addresses());
        let host = self.cluster.storage_address();
        let pairs = [
            ("--who", who.to_owned()),
            ("--uid", BOB.to_string()),
            ("--victim", ALICE.to_string()),
            ("--vni", ALICE.to_string()),
            ("--here", here[0].to_string()),
            ("--here6", here[1].to_string()),
            ("--there", there[0].to_string()),
            ("--there6", there[1].to_string()),
            ("--host", host.0.to_string()),
            ("--host6", host.1.to_string()),
            ("--outside", OUTSIDE.0.to_string()),
            ("--outside6", OUTSIDE.1.to_string()),
            ("--nat", NAT[0].to_owned()),
            ("--nat6", NAT[1].to_owned()),
            ("--nic", "em1".to_owned()),
        ];
        pairs.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect()
    }

    /// Makes attempts, from a cgroup, and returns what came of them.
    fn attempt(&self, who: &str, cgroup: &str, names: &[String]) -> BTreeMap<String, Answer> {
        let (root, user): (Vec<_>, Vec<_>) =
            names.iter().cloned().partition(|name| name.starts_with("root-"));
        let mut answers = BTreeMap::new();
        for (uid, names) in [(0, root), (BOB, user)] {
            for batch in names.chunks(BATCH) {
                let mut command = self.command(uid, cgroup);
                command.arg("escape").args(self.aim(who)).args(batch);
                let output = command.stdin(Stdio::null()).output().unwrap();
                let said = parse(&text(&output.stdout));
                let missing: Vec<_> = batch.iter().filter(|name| !said.contains_key(*name)).collect();
                assert!(missing.is_empty(), "no word of {missing:?}: {}", text(&output.stderr));
                answers.extend(said);
            }
        }
        thread::sleep(Duration::from_millis(500));
        for seen in self.servers.iter().flat_map(Server::seen) {
            if let Some((by, name)) = seen.split_once('/')
                && by == who
            {
                answers.insert(name.to_owned(), Ok("seen".to_owned()));
            }
        }
        answers
    }

    /// The probe as a user in a cgroup; as Bob with no other group and no capability.
    fn command(&self, uid: u32, cgroup: &str) -> Command {
        let mut command = self.node().command("sh");
        let become_user = match uid {
            0 => String::new(),
            uid => format!("setpriv --reuid {uid} --regid {uid} --clear-groups"),
        };
        let script = format!("echo $$ > /sys/fs/cgroup{cgroup}/cgroup.procs && exec {become_user} \"$@\"");
        command.args(["-c", &script, "sh"]).arg(program("uvn-probe"));
        command
    }

    fn conclude(mut self) {
        self.daemons.iter_mut().for_each(Daemon::assert_alive);
        for node in &self.cluster.nodes {
            node.uvn(&["check"]);
        }
    }
}

fn succeeded(answers: &BTreeMap<String, Answer>) -> BTreeSet<&str> {
    answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(name, _)| name.as_str()).collect()
}

/// Attempts that need not work on the open node either: with which data path, how their names begin and end, and why.
const CANNOT_BE_SHOWN: [(&str, &str, &str, &str); 22] = [
    ("", "device-down", "", "the kernel asks for CAP_NET_ADMIN"),
    ("", "own-device-down", "", "the kernel asks for CAP_NET_ADMIN"),
    ("", "socket-llc", "", "the kernel asks for CAP_NET_RAW"),
    ("", "socket-packet", "", "the kernel asks for CAP_NET_RAW"),
    ("", "socket-raw", "", "the kernel asks for CAP_NET_RAW"),
    ("", "socket-xdp", "", "the kernel asks for CAP_NET_RAW"),
    ("", "unpin", "", "the pins are root's"),
    (
        "",
        "root-forged-mark",
        "",
        "by marks go the rules alone: answers_to_a_forged_mark_are_dropped shows them",
    ),
    ("", "nat-", "", "routes and rules close it, which belong to the networks"),
    ("", "source-message6-nic", "", "IPv6 refuses a message another device than its socket is bound to"),
    ("", "scope-", "", "the victim's server is not reached by link-local addresses"),
    ("", "socket-dccp", "", "these kernels have none"),
    ("", "socket-smc-inet", "", "since Linux 6.11"),
    ("", "uring-bindtodevice", "", "since Linux 6.7"),
    ("", "route-", "4", "the kernel asks for CAP_NET_RAW"),
    ("", "tun-", "", "the TAP's owner closes it: dataplane/tests/ports.rs shows it"),
    ("", "vxlan-", "6", "the forged frame is of IPv4; the program does not look at the family"),
    ("", "vxlan-routing-header", "", "likewise"),
    ("", "vxlan-gso-there4", "", "the rig's NIC cannot finish checksums, and so takes no UDP_SEGMENT"),
    ("", "vxlan-lo-there4", "", "through lo there is no other node"),
    ("kernel", "vxlan-nic-localhost4", "", "no NIC carries 127.0.0.1"),
    (
        "engine",
        "vxlan-",
        "",
        "the engine takes from the NIC only, no fragments and no options: see SHOWN_WITH_ENGINE",
    ),
];
/// Those that the engine of another node takes.
const SHOWN_WITH_ENGINE: [&str; 5] = [
    "vxlan-plain-there4",
    "vxlan-connected-there4",
    "vxlan-corked-there4",
    "vxlan-nic-there4",
    "vxlan-mapped",
];

fn can_be_shown(path: &str, name: &str) -> bool {
    // What the one gear does not take, the other does not either.
    let path = if path == "shortcut" { "engine" } else { path };
    SHOWN_WITH_ENGINE.contains(&name)
        || !CANNOT_BE_SHOWN.iter().any(|(with, start, end, _)| {
            (with.is_empty() || *with == path) && name.starts_with(start) && name.ends_with(end)
        })
}

fn every_attempt(path: &str) {
    let site = Site::new(path);
    // newuidmap looks the user up.
    site.node().sh(&format!(
        "grep -q ^bob: /etc/passwd || echo bob:x:{BOB}:{BOB}::/:/bin/sh >> /etc/passwd; \
         echo bob:{SUBUID}:65536 > /etc/subuid; chmod 666 /dev/net/tun; mkdir -p /sys/fs/cgroup/cron.slice/job"
    ));
    let mut site = site;
    let all: Vec<String> = escape::all().into_iter().map(|attempt| attempt.name).collect();
    let before = site.attempt("closed", "", &all);
    site.open();
    let mut open = site.attempt("open", "", &all);
    let not_shown = |open: &BTreeMap<String, Answer>| -> Vec<String> {
        let failed = open.iter().filter(|(_, answer)| answer.is_err());
        failed.map(|(name, _)| name.clone()).filter(|name| can_be_shown(path, name)).collect()
    };
    // Each has 1.5 s, of which a busy machine may need more.
    let end = Instant::now() + Duration::from_secs(60);
    while !not_shown(&open).is_empty() && Instant::now() < end {
        open.extend(site.attempt("open", "", &not_shown(&open)));
    }
    site.close();
    let after = site.attempt("again", "/cron.slice/job", &all);
    assert_eq!(succeeded(&before), BTreeSet::new(), "with the programs and rules");
    assert_eq!(succeeded(&after), BTreeSet::new(), "with them again, from another cgroup");
    let not_shown: Vec<_> = not_shown(&open).into_iter().map(|name| (open[&name].clone(), name)).collect();
    assert!(not_shown.is_empty(), "no attempts, since they do not work without: {not_shown:#?}");
    site.cluster.nodes.iter().for_each(|node| path::assert_used(node, path));
    site.conclude();
}

uvn_hwtests::with_paths!([engine, shortcut, kernel] { every_attempt });

/// Bob's namespaces are his, whether he has a network or not.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn own_namespaces_are_left_alone() {
    let site = Site::new("kernel");
    for uid in [BOB, STRANGER] {
        let output = site.node().command_as(uid, program("uvn-probe")).arg("own").output().unwrap();
        assert!(output.status.success(), "{uid}: {}", text(&output.stderr));
    }
    site.conclude();
}

/// Even where a forged mark gets out, what answers it gets to nobody.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn answers_to_a_forged_mark_are_dropped() {
    let site = Site::new("kernel");
    let names = process::attempts().into_iter().map(|attempt| attempt.name);
    let names: Vec<String> = names.filter(|name| name.starts_with("root-forged-mark")).collect();
    assert!(!names.is_empty());
    // uvnd would attach them again.
    site.daemons[0].signal(Signal::SIGSTOP);
    site.node().sh("find /sys/fs/bpf/uvn -name uvn_egress -delete");
    assert_eq!(succeeded(&site.attempt("blind", "", &names)), BTreeSet::new());
    // Without the program that sees what is received, they do get it.
    site.node().sh("find /sys/fs/bpf/uvn -name uvn_ingress -delete");
    let end = Instant::now() + Duration::from_secs(60);
    let mut got = BTreeSet::new();
    while got.len() < names.len() && Instant::now() < end {
        let answers = site.attempt("open", "", &names);
        got.extend(succeeded(&answers).into_iter().map(String::from));
    }
    assert_eq!(got, names.into_iter().collect(), "cannot be shown");
}

/// What listens where it should not gets nothing.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn listeners_get_nothing_of_others() {
    let site = Site::new("kernel");
    let [node, other] = [0, 1].map(|node: usize| &site.cluster.nodes[node]);
    let here = node.addresses()[0];
    let listen_on = |trick: &str, more: &[&str]| {
        let name = format!("bob/{trick}");
        let program = if trick.contains("srun") { srun() } else { probe() };
        let server = Server::run(node, BOB, &program, &[&["listen", trick, &name], more].concat());
        node.wait("port", Duration::from_secs(60), || {
            server.seen().iter().any(|line| line.starts_with("port "))
        });
        let port: u16 = server.seen()[0].strip_prefix("port ").unwrap().parse().unwrap();
        (server, port)
    };
    let listen = |trick: &str| listen_on(trick, &[]);
    for trick in ["disconnected", "autobind", "autobind-as-srun", "srun"] {
        let (server, port) = listen(trick);
        let protocol = if trick == "disconnected" { "udp" } else { "tcp" };
        let near = [format!("{protocol}:127.0.0.1:{port}"), format!("{protocol}:{here}:{port}")];
        let far = [near[1].clone()];
        for (node, targets) in [(node, &near[..]), (other, &far)] {
            for (target, answer) in node.try_reach(ALICE, "alice", targets) {
                assert!(answer.is_err(), "{trick}: alice reached {target} from {}: {answer:?}", node.name());
            }
        }
        assert_eq!(server.seen().iter().filter(|line| *line == "alice").count(), 0, "{trick}");
        // Nor does anybody but the cluster's nodes get to an srun: its user may not leave the subnets, perhaps.
        for stranger in [&site.cluster.outside, &site.cluster.storage] {
            let reach = format!("{} reach --patience=4 stranger {}", probe().display(), far[0]);
            let answers = parse(&stranger.sh(&reach));
            assert!(answers.len() == 1 && answers.values().all(Result::is_err), "{trick}: {answers:?}");
        }
        // Nor do those who are not policed, but for Slurm's daemons: from either node.
        for (node, targets) in [(node, &near[..]), (other, &far)] {
            let answers = node.try_reach(33, "service", targets);
            let refused = |answer: &Answer| answer.as_ref().is_err_and(|error| error.contains("os error 1)"));
            assert!(trick != "srun" || answers.values().all(refused), "{trick}: {answers:?}");
        }
        // It does listen: to its owner, or, as srun, to the system.
        let who = match trick {
            "autobind" => Some(BOB),
            "srun" => Some(0),
            _ => None,
        };
        if let Some(who) = who {
            for (node, targets) in [(node, &near[..]), (other, &far)] {
                for (target, answer) in node.reach(who, "friend", targets) {
                    assert_eq!(answer.as_deref(), Ok(&*format!("bob/{trick}")), "{trick}: {who} to {target}");
                }
            }
        }
    }
    // In her network, which who is called srun may say before he listens.
    let (server, port) = listen_on("autobind-as-srun", &["--device", &format!("uvn{ALICE}")]);
    let answers =
        node.try_reach(ALICE, "alice", &[format!("tcp:127.0.0.1:{port}"), format!("tcp:{here}:{port}")]);
    assert!(answers.values().all(Result::is_err), "{answers:?}");
    drop(server);
    // Without the programs that keep its device and see what is received, the first does get it.
    site.daemons[0].signal(Signal::SIGSTOP);
    node.sh("find /sys/fs/bpf/uvn -name uvn_ingress -delete -o -name uvn_disconnect -delete");
    let (server, port) = listen("disconnected");
    let _answer = node.try_reach(ALICE, "alice", &[format!("udp:127.0.0.1:{port}")]);
    assert!(server.seen().iter().any(|line| line == "alice"), "cannot be shown");
}

/// A srun port is for the programs that are named, by their files: neither a name nor a copy is one.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn nobody_but_srun_takes_its_ports() {
    let site = Site::new("kernel");
    let node = site.node();
    let copy = "/run/srun-of-bob";
    node.sh(&format!("install -o {BOB} -m 755 {} {copy}", srun().display()));
    for program in [probe().display().to_string(), copy.to_owned()] {
        let mut command = node.command_as(BOB, "timeout");
        let output = command.args(["60", &program, "listen", "srun", "bob"]).output().unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("Operation not permitted"), "{program}: {said}");
    }
    let server = Server::run(node, BOB, &srun(), &["listen", "srun", "bob"]);
    // An upgrade: another file in its place. It takes uvnd until it looks again.
    drop(server);
    node.sh(&format!("cp {0} {0}.new && mv {0}.new {0}", srun().display()));
    node.uvn(&["reload"]);
    drop(Server::run(node, BOB, &srun(), &["listen", "srun", "bob"]));
    node.sh(&format!("chmod o+w {}", srun().display()));
    node.uvn(&["reload"]);
    let found = node.try_uvn(&["check"]);
    assert!(text(&found.stdout).contains("users other than root can change"), "{}", text(&found.stdout));
    node.sh(&format!("chmod o-w {}", srun().display()));
    node.uvn(&["reload"]);
    node.uvn(&["check"]);
}

/// Sockets outlive their user's network in somebody else's process, and are of no use there.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn sockets_do_not_outlive_their_network() {
    let site = Site::new("engine");
    let node = site.node();
    let mut command = site.command(0, "");
    command.arg("hold").args(site.aim("heir")).args(["--heir", &STRANGER.to_string()]);
    let mut heir = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(heir.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    node.uvn(&["detach", &BOB.to_string()]);
    node.wait("end of the network", Duration::from_secs(60), || {
        !node.try_sh(&format!("ip link show uvn{BOB}")).status.success()
    });
    heir.stdin.take().unwrap().write_all(b"gone\n").unwrap();
    let answers = parse(&lines.collect::<Vec<_>>().join("\n"));
    assert!(heir.wait().unwrap().success());
    assert_eq!(answers.len(), 7, "{answers:?}");
    assert_eq!(succeeded(&answers), BTreeSet::new());
    let seen: Vec<String> = site.servers.iter().flat_map(Server::seen).collect();
    assert!(!seen.iter().any(|line| line.starts_with("heir")), "{seen:?}");
    site.conclude();
}

/// With tools/modprobe.d/uvn.conf no user has the kernel load a family that uvn cannot keep in a network.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn families_are_not_loaded() {
    let site = Site::new("kernel");
    let names: Vec<String> = protocol::families().into_iter().map(|attempt| attempt.name).collect();
    let attempt = || {
        let mut command = site.command(BOB, "");
        let output = command.arg("escape").args(site.aim("family")).args(&names).output().unwrap();
        parse(&text(&output.stdout))
    };
    // In no order, since one may use another.
    let unload = "for i in 1 2 3; do modprobe -qr smc_diag smc smc_ib rxrpc pppoe pptp l2tp_ppp pppox vsock_loopback \
                  vsock_diag vsock kcm; done; true";
    std::fs::create_dir_all("/etc/modprobe.d").unwrap();
    let conf = "/etc/modprobe.d/uvn.conf";
    site.node().sh(unload);
    std::fs::write(conf, include_str!("../../tools/modprobe.d/uvn.conf")).unwrap();
    assert_eq!(succeeded(&attempt()), BTreeSet::new());
    std::fs::remove_file(conf).unwrap();
    let loaded = attempt();
    let loaded = succeeded(&loaded);
    assert!(loaded.contains("socket-smc") && loaded.contains("socket-pppoe"), "cannot be shown: {loaded:?}");
    let warned = site.node().uvn(&["check"]);
    assert!(warned.contains("loaded SMC") && warned.contains("loaded PPPOE"), "{warned}");
    site.node().sh(unload);
    site.conclude();
}
