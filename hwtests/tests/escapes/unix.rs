//! Who reaches whose abstract Unix sockets, and what is left alone.

use super::*;
use serde_json::Value;
use uvn_hwtests::node::add_user;

/// A system service's user, and an exempt one.
const SERVICE: u32 = 33;
const EXEMPT: u32 = 7777;
/// For what uvnd does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node with networks of Alice's and Bob's, and what `more` has for its configuration.
fn node(more: &str) -> (Cluster, Daemon) {
    let cluster = Cluster::new(Layout { nodes: 1, ..Layout::default() });
    let daemon = cluster.nodes[0].uvnd(&cluster.config("kernel", more));
    cluster.attach(&[ALICE, BOB]);
    (cluster, daemon)
}

fn ask(host: &Namespace, uid: u32, name: &str) -> BTreeMap<String, Answer> {
    let output = host.command_as(uid, probe()).args(["unix-ask", name]).output().unwrap();
    let answers = parse(&text(&output.stdout));
    assert_eq!(answers.len(), 3, "{uid} {name}: {}", text(&output.stderr));
    answers
}

/// Whether each kind answers; and refused is as if nobody listened.
fn reaches(host: &Namespace, uid: u32, name: &str) -> bool {
    let answers = ask(host, uid, name);
    let all = answers.values().all(|answer| answer.as_deref() == Ok(name));
    assert!(all || answers.values().all(is_refused), "{uid} asks {name}: {answers:?}");
    all
}

fn is_refused(answer: &Answer) -> bool {
    answer.as_ref().is_err_and(|error| error.contains("Connection refused"))
}

/// Waits until Bob is refused what is called so, one kind after the other.
fn wait_for_programs(node: &Node, name: &str) {
    node.wait("the programs", PATIENCE, || ask(node, BOB, name).values().all(is_refused));
}

fn refusals(node: &Node) -> u64 {
    let status: Value = serde_json::from_str(&node.uvn(&["status", "--json"])).unwrap();
    let verdicts = status["verdicts"].as_array().unwrap();
    let of = |verdict: &&Value| verdict[0] == "abstract_socket";
    verdicts.iter().find(of).and_then(|verdict| verdict[1].as_u64()).unwrap()
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn other_users_sockets_are_refused_by_abstract_name_alone() {
    let (cluster, mut daemon) = node(&format!("exempt = [{EXEMPT}]"));
    let node = &cluster.nodes[0];
    let users = [0, SERVICE, EXEMPT, ALICE, BOB];
    let serve = |uid, name: &str| Server::probe(node, uid, &["unix-serve", name]);
    // As X servers have them, and with a path.
    let _servers = users.map(|uid| serve(uid, &format!("/tmp/.X11-unix/X{uid}")[1..]));
    let _path = serve(ALICE, "/tmp/of-alice");
    for owner in users {
        for uid in users {
            let shall = uid == owner || ![ALICE, BOB].contains(&uid) || ![ALICE, BOB].contains(&owner);
            let name = format!("tmp/.X11-unix/X{owner}");
            assert_eq!(reaches(node, uid, &name), shall, "{uid} asks {owner}");
        }
    }
    assert_eq!(refusals(node), 6, "Alice and Bob, each of three kinds");
    assert!(reaches(node, BOB, "/tmp/of-alice"), "its mode says that everybody may");
    // Other network namespaces are left alone, as those of containers.
    let _elsewhere = Server::probe(&cluster.storage, ALICE, &["unix-serve", "elsewhere"]);
    assert!(reaches(&cluster.storage, BOB, "elsewhere"));
    node.uvn(&["check"]);
    daemon.assert_alive();
}

/// A real service at an abstract address.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn dbus_at_an_abstract_address_is_its_users() {
    let (cluster, _daemon) = node("");
    let node = &cluster.nodes[0];
    // A bus looks its user up.
    add_user(ALICE);
    add_user(BOB);
    let address = "unix:abstract=/tmp/dbus-of-alice";
    let mut bus = node.command_as(ALICE, "dbus-daemon");
    let mut bus = bus.args(["--session", "--nofork", "--address", address]).spawn().unwrap();
    let call = |uid| {
        let mut call = node.command_as(uid, "dbus-send");
        call.args([&format!("--bus={address}"), "--print-reply", "--dest=org.freedesktop.DBus"]);
        call.args(["/", "org.freedesktop.DBus.ListNames"]).output().unwrap()
    };
    node.wait("a bus", PATIENCE, || call(ALICE).status.success());
    let refused = call(BOB);
    assert!(text(&refused.stderr).contains("Connection refused"), "{}", text(&refused.stderr));
    bus.kill().unwrap();
    bus.wait().unwrap();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn observing_refuses_nobody_and_counts() {
    let (cluster, _daemon) = node("mode = \"observe\"");
    let node = &cluster.nodes[0];
    let _alice = Server::probe(node, ALICE, &["unix-serve", "alice"]);
    assert!(reaches(node, BOB, "alice"));
    assert!(refusals(node) > 0);
}

/// The programs come back, and `uvn check` does not take uvnd's word for it.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn the_programs_on_unix_sockets_are_kept() {
    let (cluster, daemon) = node("");
    let node = &cluster.nodes[0];
    let _alice = Server::probe(node, ALICE, &["unix-serve", "alice"]);
    assert!(!reaches(node, BOB, "alice"));
    let take_away = || node.sh("find /sys/fs/bpf/uvn -name 'uvn_unix_*' -delete");
    take_away();
    wait_for_programs(node, "alice");
    assert_eq!(node.sh("find /sys/fs/bpf/uvn -name 'uvn_unix_*' | wc -l").trim(), "2");
    node.uvn(&["check"]);
    daemon.crash();
    take_away();
    let found = node.try_uvn(&["check"]);
    assert_eq!(found.status.code(), Some(1));
    let said = text(&found.stdout);
    assert!(said.contains("UVN-ABSTRACT-SOCKETS") && !said.contains("UVN-SOCKETS-TRIAL"), "{said}");
    let mut daemon = node.restart_uvnd();
    wait_for_programs(node, "alice");
    daemon.assert_alive();
}

/// Where the kernel asks no programs, uvnd goes on, and says so.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_kernel_that_asks_no_programs_is_named() {
    let (cluster, daemon) = node("");
    let node = &cluster.nodes[0];
    let _alice = Server::probe(node, ALICE, &["unix-serve", "alice"]);
    daemon.crash();
    node.sh("echo lockdown,capability,yama > /run/node/lsm && mount --bind /run/node/lsm /sys/kernel/security/lsm");
    let daemon = node.restart_uvnd();
    let found = node.uvn(&["check"]);
    assert!(found.contains("warning: UVN-ABSTRACT-SOCKETS") && found.contains("yama"), "{found}");
    assert!(reaches(node, BOB, "alice"), "cannot be shown");
    node.sh("umount /sys/kernel/security/lsm");
    daemon.crash();
    let mut daemon = node.restart_uvnd();
    wait_for_programs(node, "alice");
    daemon.assert_alive();
}
