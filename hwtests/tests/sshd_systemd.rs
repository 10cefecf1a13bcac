//! Logins with logind: what the user's own systemd runs is in none of the session's cgroups, and inside the user's
//! network all the same. systemd runs in the first network namespace only, so the guest itself is the node.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod login;

use login::{Position, Session, log_in};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use uvn_hwtests::Namespace;
use uvn_hwtests::escape;
use uvn_hwtests::node::{probe, program};
use uvn_hwtests::reach::parse;
use uvn_rig::namespace::text;

const ALICE: u32 = 1234;
const BOB: u32 = 5678;
/// Where everybody serves.
const PORT: u16 = 5000;
/// This node.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
/// The same.
const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
/// The host from which people log in. It runs no uvn.
const DESK: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 200);
/// The same.
const DESK6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 200);

/// Runs a shell script as root and returns its output; panics when it fails.
fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let (lines, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "`{script}`: {}\n{lines}{said}", output.status);
    lines
}

/// Waits until `f` says so.
fn wait(what: &str, patience: Duration, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !f() {
        assert!(
            Instant::now() < end,
            "no {what} within {patience:?}\n{}",
            sh("journalctl -b --no-pager -n 60")
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Installs uvn as the README tells, starts it and sshd, and returns the host from which people log in.
fn install() -> Namespace {
    let desk = Namespace::new("desk");
    sh(&format!(
        "ip link add em1 type veth peer name lan0 netns {}\nethtool -K em1 tso off gso off tx off\n\
         ip addr add {NODE}/24 dev em1\nip addr add {NODE6}/64 dev em1 nodad\nip link set em1 up",
        desk.holder()
    ));
    desk.ip(&format!("addr add {DESK}/24 dev lan0\naddr add {DESK6}/64 dev lan0 nodad\nlink set lan0 up"));
    desk.sh("ethtool -K lan0 tso off gso off tx off");
    for (name, folder) in [("uvnd", "/usr/sbin"), ("uvn", "/usr/bin"), ("uvn-dataplane", "/usr/sbin")] {
        fs::copy(program(name), Path::new(folder).join(name)).unwrap();
    }
    let units = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/systemd"));
    for unit in ["uvnd.service", "uvn-lockdown.service", "uvn-dataplane@.service"] {
        fs::copy(units.join(unit), Path::new("/etc/systemd/system").join(unit)).unwrap();
    }
    fs::create_dir_all("/etc/uvn").unwrap();
    let config = format!(
        "linger_s = 1\nrelay = []\nhosts = [\"{DESK}\"]\n[[underlay]]\nsubnets = [\"10.0.9.0/24\", \"fd00:9::/64\"]\n\
         [peers]\nrange = [\"10.0.9.0/28\"]\n"
    );
    fs::write("/etc/uvn/uvn.toml", config).unwrap();
    sh("systemctl daemon-reload");
    let sshd = login::configure("node");
    sh(&format!(
        "systemctl start uvnd && systemd-run --quiet --unit=test-sshd /usr/sbin/sshd -Df {}",
        sshd.display()
    ));
    wait("sshd", Duration::from_secs(60), || sh("ss -Hltn").contains(":22 "));
    [ALICE, BOB].into_iter().for_each(login::add);
    desk
}

/// Who holds the user's network; None: there is none.
fn leases(uid: u32) -> Option<String> {
    let list: serde_json::Value = serde_json::from_str(&sh("uvn list --json")).unwrap();
    let networks = list.as_array().or_else(|| list["networks"].as_array()).cloned().unwrap_or_default();
    let network = networks.iter().find(|network| network["uid"] == uid)?;
    Some(network["leases"].to_string())
}

/// A command that systemd runs for the user, outside of the session.
fn service(command: &str) -> String {
    format!("XDG_RUNTIME_DIR=/run/user/$(id -u) systemd-run --user --quiet --collect {command}")
}

fn services_are_inside(desk: &Namespace) {
    let probe = probe().display().to_string();
    let mut alice = Session::open(desk, ALICE, NODE);
    let mut bob = Session::open(desk, BOB, NODE);
    assert!(alice.run("cat /proc/self/cgroup").concat().contains("/session-"));
    let cgroup = alice.run(&service("--wait --pipe cat /proc/self/cgroup")).concat();
    assert!(cgroup.contains(&format!("user@{ALICE}.service")) && !cgroup.contains("/session-"), "{cgroup}");
    // One serves in the session, the other one beside it.
    bob.start(&format!("{probe} serve u{BOB} tcp:0.0.0.0:{PORT}"));
    let address = format!("tcp:{NODE}:{PORT}");
    let local = format!("tcp:127.0.0.1:{PORT}");
    let reach = |patience: u64| {
        service(&format!("--wait --pipe {probe} reach --patience={patience} me {address} {local}"))
    };
    let answers = alice.run(&reach(4));
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.contains(" ! ")), "{answers:?}");
    alice.run(&service(&format!("--unit=serve {probe} serve u{ALICE} tcp:0.0.0.0:{PORT}")));
    wait("Alice's server", Duration::from_secs(60), || {
        sh("ss -Hltn").contains(&format!("uvn{ALICE}:{PORT}"))
    });
    for (session, uid) in [(&mut alice, ALICE), (&mut bob, BOB)] {
        let answers = session.run(&reach(30));
        assert!(
            answers.len() == 2 && answers.iter().all(|answer| answer.ends_with(&format!("= u{uid}"))),
            "{answers:?}"
        );
    }

    // It goes on after the logout, for longer than logind's 10 s if need be, and so does her network.
    sh(&format!("loginctl enable-linger u{ALICE}"));
    bob.stop();
    drop(alice);
    drop(bob);
    std::thread::sleep(Duration::from_secs(4));
    let mut alice = Session::open(desk, ALICE, NODE);
    let answers = alice.run(&format!("{probe} reach me {address}"));
    assert_eq!(answers, [format!("{address} = u{ALICE}")]);
    drop(alice);
    sh(&format!("loginctl disable-linger u{ALICE}; systemctl stop user@{ALICE} user@{BOB}"));
    wait("end of the networks", Duration::from_secs(60), || leases(ALICE).is_none() && leases(BOB).is_none());
}

/// What an ordinary user may try ([`escape`]) does not work beside the session either.
fn services_do_not_escape(desk: &Namespace) {
    let probe = probe().display().to_string();
    let mut alice = Session::open(desk, ALICE, NODE);
    let mut bob = Session::open(desk, BOB, NODE);
    let sockets = [("0.0.0.0", escape::PORT), ("[::]", escape::PORT6)]
        .map(|(address, port)| format!("tcp:{address}:{port} udp:{address}:{port}"));
    alice.start(&format!("{probe} serve alice {}", sockets.join(" ")));
    // Nobody serves on the desk: what is asked of it only shows that nothing else comes of it.
    let aim = format!(
        "--who service --uid {BOB} --victim {ALICE} --vni {ALICE} --here {NODE} --here6 {NODE6} --there {DESK} \
         --there6 {DESK6} --host {DESK} --host6 {DESK6} --nic em1"
    );
    let attempts: Vec<String> = escape::all().into_iter().map(|attempt| attempt.name).collect();
    let attempts: Vec<&str> =
        attempts.iter().map(String::as_str).filter(|name| !name.starts_with("root-")).collect();
    let line = |names: &[&str]| format!("{probe} escape {aim} {}\n", names.join(" "));
    fs::write(format!("/home/u{BOB}/escape.sh"), attempts.chunks(24).map(line).collect::<String>()).unwrap();
    let answers = parse(&bob.run(&service("--same-dir --wait --pipe sh escape.sh")).join("\n"));
    assert_eq!(answers.len(), attempts.len(), "{answers:?}");
    let escaped: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).collect();
    assert!(escaped.is_empty(), "{escaped:?}");
    let seen = alice.run("cat said");
    assert!(
        seen.iter().any(|line| line == "ready") && !seen.iter().any(|who| who.starts_with("service/")),
        "{seen:?}"
    );
    alice.stop();
}

/// A data plane that somebody restarts is started once, and then carries what it did.
fn data_plane_is_restarted(desk: &Namespace) {
    let unit = "uvn-dataplane@em1";
    let starts = || {
        sh(&format!("journalctl --sync; journalctl -b --no-pager -o cat -u {unit}"))
            .matches("Started ")
            .count()
    };
    let carries = || {
        let status: serde_json::Value = serde_json::from_str(&sh("uvn status --json")).unwrap();
        let data_plane = &status["nics"][0]["data_plane"];
        data_plane["state"] == "running" && data_plane["networks"] == 1
    };
    let alice = Session::open(desk, ALICE, NODE);
    wait("data plane", Duration::from_secs(60), carries);
    let before = starts();
    assert!(before > 0, "the journal tells of no start");
    for restart in 1..=3 {
        sh(&format!("systemctl restart {unit}"));
        wait("data plane after its restart", Duration::from_secs(60), carries);
        assert_eq!(starts(), before + restart, "uvnd has restarted it, too");
    }
    drop(alice);
    wait("end of the network", Duration::from_secs(60), || leases(ALICE).is_none());
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn services_of_the_users_systemd_are_inside() {
    let desk = install();
    login::set_up_pam(Position::First);
    data_plane_is_restarted(&desk);
    for position in [Position::First, Position::Last] {
        login::set_up_pam(position);
        services_are_inside(&desk);
    }
    services_do_not_escape(&desk);
    sh("uvn check");

    sh("systemctl stop uvnd");
    let (output, said) = log_in(&desk, &format!("u{ALICE}"), NODE, "echo started");
    assert!(!output.status.success() && !said.contains("started"), "{said}");
    assert!(said.contains(&format!("no network for u{ALICE}")), "{said}");
    let (output, said) = log_in(&desk, "root", NODE, "echo started");
    assert!(output.status.success(), "{said}");
}
