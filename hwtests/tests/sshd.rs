//! Logins through a real sshd with PAM are inside their users' networks, and what they forward, too. Without logind; with
//! it: `sshd_systemd.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod login;

use login::{Position, Session, log_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uvn_hwtests::node::probe;
use uvn_hwtests::sockets::sockets;
use uvn_hwtests::{Cluster, Daemon, Namespace, Node};

const ALICE: u32 = 1234;
const BOB: u32 = 5678;
/// Alice's servers.
const PORT: u16 = 5000;
/// What she forwards to them.
const FORWARDED: [u16; 2] = [8000, 8001];

struct Site {
    daemons: Vec<Daemon>,
    cluster: Cluster,
}

impl Site {
    fn new(more: &str) -> Site {
        let cluster = Cluster::two();
        login::set_up_pam(Position::Last);
        let config = cluster.config("engine", &format!("relay = []\n{more}"));
        let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
        for node in &cluster.nodes {
            login::start(node);
        }
        [ALICE, BOB].into_iter().for_each(login::add);
        Site { daemons, cluster }
    }

    fn log_in(&self, uid: u32, node: &Node) -> Session {
        Session::open(&self.cluster.outside, uid, node.nics()[0].v4)
    }

    fn conclude(mut self) {
        for node in self.cluster.pair() {
            node.wait("end of the networks", Duration::from_secs(60), || {
                [ALICE, BOB].iter().all(|&uid| leases(node, uid).is_none())
            });
            let left = node.sh("ip -brief link; ip -4 rule; ip -6 rule; ip -4 route show table all");
            assert!(!left.contains("uvn1234") && !left.contains("uvn5678"), "{}: {left}", node.name());
            node.uvn(&["check"]);
        }
        self.daemons.iter_mut().for_each(Daemon::assert_alive);
    }
}

/// Who holds the user's network on a node; None: there is none.
fn leases(node: &Node, uid: u32) -> Option<usize> {
    let list: serde_json::Value = serde_json::from_str(&node.uvn(&["list", "--json"])).unwrap();
    let networks = list.as_array().or_else(|| list["networks"].as_array()).cloned().unwrap_or_default();
    let network = networks.iter().find(|network| network["uid"] == uid)?;
    network["leases"].as_array().map(Vec::len)
}

fn assert_inside(node: &Node, uid: u32, at_least: usize) {
    let sockets = sockets(node, uid);
    assert!(sockets.len() >= at_least, "{}: {sockets:?}", node.name());
    for socket in sockets {
        assert_eq!(socket.device.as_deref(), Some(&*format!("uvn{uid}")), "{}: {socket:?}", node.name());
    }
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn sessions_are_inside_their_users_network() {
    let site = Site::new("");
    let [n1, n2] = site.cluster.pair();
    let [first, second] = [n1, n2].map(|node| node.nics()[0].v4);
    let probe = probe().display().to_string();

    let mut alice = site.log_in(ALICE, n1);
    assert_eq!(leases(n1, ALICE), Some(1));
    let other = site.log_in(ALICE, n1);
    assert_eq!(leases(n1, ALICE), Some(2));
    let mut bob = site.log_in(BOB, n1);
    for (session, uid) in [(&mut alice, ALICE), (&mut bob, BOB)] {
        session.start(&format!("{probe} serve u{uid}@n1 tcp:0.0.0.0:{PORT}"));
    }
    let reach = |port: u16| format!("{probe} reach me tcp:127.0.0.1:{port} tcp:{first}:{port}");
    for (session, uid) in [(&mut alice, ALICE), (&mut bob, BOB)] {
        let answers = session.run(&reach(PORT));
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().all(|answer| answer.ends_with(&format!("= u{uid}@n1"))), "{answers:?}");
    }

    // On to the next node, where nobody knows her yet; without leaving her network.
    assert_eq!(leases(n2, ALICE), None);
    let script = format!("hostname; {probe} reach me tcp:{first}:{PORT} tcp:127.0.0.1:{PORT}");
    let answers = alice.run(&format!("ssh -n n2 '{script}'"));
    assert_eq!(answers[0], "n2");
    assert!(
        answers[1..].iter().any(|answer| answer.ends_with(&format!("{first}:{PORT} = u{ALICE}@n1"))),
        "{answers:?}"
    );
    assert!(answers[1..].iter().any(|answer| answer.contains("127.0.0.1:5000 ! ")), "{answers:?}");

    forwarding(&mut alice, &mut bob, [n1, n2], second);
    assert_inside(n1, ALICE, 2);
    assert_inside(n1, BOB, 1);

    alice.stop();
    bob.stop();
    drop(alice);
    n1.wait("end of a session", Duration::from_secs(60), || leases(n1, ALICE) == Some(1));
    drop((other, bob));
    // What was started on n2 goes on without a session, and holds the network.
    assert!(leases(n2, ALICE).is_some());
    let hers =
        |pid: &i32| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == ALICE);
    for pid in n2.processes().into_iter().filter(hers) {
        let _already_ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    site.conclude();
}

/// What Alice forwards (-L: a listener of ssh; -R, and X11 likewise: a listener of sshd) is for Alice.
fn forwarding(alice: &mut Session, bob: &mut Session, [n1, n2]: [&Node; 2], second: std::net::Ipv4Addr) {
    let probe = probe().display().to_string();
    let [local, remote] = FORWARDED;
    let remote_server = format!("{probe} serve u{ALICE}@n2 tcp:127.0.0.1:{PORT}");
    alice.start(&format!(
        "ssh -n -o ExitOnForwardFailure=yes -L {local}:127.0.0.1:{PORT} -R {remote}:127.0.0.1:{PORT} n2 '{remote_server}'"
    ));
    let (at_n1, at_n2) = (format!("tcp:127.0.0.1:{local}"), format!("tcp:127.0.0.1:{remote}"));
    assert_eq!(alice.run(&format!("{probe} reach me {at_n1}")), [format!("{at_n1} = u{ALICE}@n2")]);
    let there = n2.reach(ALICE, "alice", std::slice::from_ref(&at_n2));
    assert_eq!(there[&at_n2], Ok(format!("u{ALICE}@n1")));
    let answers = bob.run(&format!("{probe} reach --patience=4 me {at_n1} tcp:{second}:{remote}"));
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.contains(" ! ")), "{answers:?}");
    n2.uvn(&["attach", &BOB.to_string()]);
    assert!(n2.try_reach(BOB, "bob", std::slice::from_ref(&at_n2))[&at_n2].is_err());
    n2.uvn(&["detach", &BOB.to_string()]);
    assert_inside(n2, ALICE, 2);
    assert!(leases(n1, ALICE) >= Some(2));
}

/// What programs tell syslog, while nobody else is that.
struct Syslog(Arc<Mutex<String>>);

impl Syslog {
    fn new() -> Syslog {
        let _none_before = fs::remove_file("/dev/log");
        let socket = UnixDatagram::bind("/dev/log").unwrap();
        let told = Arc::new(Mutex::new(String::new()));
        let all = told.clone();
        std::thread::spawn(move || {
            let mut line = [0; 8192];
            while let Ok(length) = socket.recv(&mut line) {
                all.lock().unwrap().push_str(&format!("{}\n", String::from_utf8_lossy(&line[..length])));
            }
        });
        Syslog(told)
    }

    /// What was told since the last time.
    fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Bob is told why he cannot log in, and so is syslog. Neither root nor a service is kept out.
fn kept_out(outside: &Namespace, address: std::net::Ipv4Addr, why: &str, syslog: &Syslog) {
    syslog.take();
    let (output, said) = log_in(outside, &format!("u{BOB}"), address, "echo started");
    assert!(!output.status.success() && !said.contains("started"), "{said}");
    let logged = syslog.take();
    let logged = logged.lines().find(|line| line.contains("pam_uvn(sshd:session)")).unwrap_or_default();
    for told in [&*said, logged] {
        assert!(told.contains(&format!("no network for u{BOB}")) && told.contains(why), "{told}");
    }
    let (output, said) = log_in(outside, "root", address, "echo started");
    assert!(output.status.success(), "{said}");
}

/// What the user sets in a session is there when it closes; root runs nothing by it. glibc's loader writes down
/// (LD_DEBUG, ld.so(8)) for whom it loaded, as that user: a library of LD_PRELOAD is loaded there, too.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn the_users_environment_runs_nothing() {
    let site = Site::new("");
    let n1 = &site.cluster.nodes[0];
    let home = format!("/home/u{BOB}");
    let environment = format!("LD_DEBUG DEFAULT=files\nLD_DEBUG_OUTPUT DEFAULT={home}/loaded\n");
    n1.write(format!("{home}/.pam_environment"), &environment);
    let kept = fs::read_to_string("/etc/pam.d/su").unwrap();
    let stack = format!(
        "auth sufficient pam_rootok.so\naccount required pam_permit.so\nsession required {}\n\
         session required pam_env.so user_readenv=1\n",
        login::MODULE
    );
    n1.write("/etc/pam.d/su", &stack);
    n1.sh(&format!("su u{BOB} -c /bin/true"));
    n1.write("/etc/pam.d/su", &kept);
    let owners: Vec<u32> = fs::read_dir(&home)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("loaded."))
        .map(|entry| entry.metadata().unwrap().uid())
        .collect();
    assert!(!owners.is_empty(), "the user's environment was not read");
    assert!(owners.iter().all(|owner| *owner == BOB), "{owners:?}");
    site.conclude();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn without_a_network_there_is_no_login() {
    let mut site = Site::new("");
    let (n1, outside) = (&site.cluster.nodes[0], &site.cluster.outside);
    let address = n1.nics()[0].v4;
    let probe = probe().display().to_string();
    let reach = format!("{probe} reach me tcp:127.0.0.1:22");

    // Through cron, say, with no session and no PAM.
    let local = "tcp:127.0.0.1:22".to_owned();
    let refused = |answer: &str| answer.contains("Operation not permitted");
    // uvnd takes connections before it has attached its programs, and answers after that.
    n1.uvn(&["list"]);
    let answer = n1.try_reach(ALICE, "cron", std::slice::from_ref(&local)).remove(&local).unwrap();
    assert!(answer.as_ref().is_err_and(|error| refused(error)), "{answer:?}");
    // su opens a session of its own.
    let answer = n1.sh(&format!("su u{ALICE} -c '{reach}'"));
    assert!(!refused(&answer), "{answer}");

    // One that hangs, and then one that is gone.
    let syslog = Syslog::new();
    site.daemons[0].signal(Signal::SIGSTOP);
    kept_out(outside, address, "uvnd gave no answer within 10 s", &syslog);
    site.daemons.remove(0).crash();
    kept_out(outside, address, "systemctl start uvnd", &syslog);
    let n1 = &site.cluster.nodes[0];

    let config = n1.read("/etc/uvn/uvn.toml").unwrap();
    n1.write("/etc/uvn/uvn.toml", &format!("attachment = \"optional\"\n{config}"));
    let (output, said) = log_in(outside, &format!("u{BOB}"), address, &reach);
    assert!(output.status.success() && refused(&said), "{said}");
    n1.write("/etc/uvn/uvn.toml", &config);

    let restarted = n1.restart_uvnd();
    site.daemons.push(restarted);
    let (output, said) = log_in(outside, &format!("u{BOB}"), address, "echo started");
    assert!(output.status.success() && said.contains("started"), "{said}");
    site.conclude();
}
