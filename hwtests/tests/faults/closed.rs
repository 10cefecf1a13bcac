//! What fails, fails closed, is named by `uvn check` until it is mended, and is tried again by itself.

use super::*;
use uvn_hwtests::node::program;

/// What `uvn check` says; it does not approve.
fn complaint(node: &Node) -> String {
    let output = node.try_uvn(&["check"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    text(&output.stdout)
}

fn may_make_a_socket(node: &Node, uid: u32) -> bool {
    as_user(node, uid, || TcpListener::bind("127.0.0.1:0").is_ok())
}

/// A node with uvnd, and without nft until [`give_nft`].
fn without_nft(cluster: &Cluster) -> Daemon {
    let node = &cluster.nodes[0];
    node.sh("mount --bind /bin/false $(command -v nft)");
    node.uvnd(&cluster.config("kernel", ""))
}

fn give_nft(node: &Node) {
    node.sh("umount $(command -v nft)");
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn nobody_gets_a_network_without_the_packet_filter() {
    let cluster = alone();
    let (node, mut daemon) = (&cluster.nodes[0], without_nft(&cluster));
    let refused = node.try_uvn(&["attach", &ALICE.to_string()]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("packet filter"), "{}", said(&refused));
    assert!(devices(node).is_empty() && !may_make_a_socket(node, ALICE));
    assert!(complaint(node).contains("UVN-FIREWALL"));
    assert!(node.uvn(&["status"]).contains("UVN-FIREWALL"));
    give_nft(node);
    attach(node, ALICE);
    approve(node);
    assert!(may_make_a_socket(node, ALICE));
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn the_packet_filter_is_tried_again_by_itself() {
    let cluster = alone();
    let (node, mut daemon) = (&cluster.nodes[0], without_nft(&cluster));
    assert!(complaint(node).contains("UVN-FIREWALL"));
    give_nft(node);
    approve(node);
    daemon.assert_alive();
}

/// One digit wrong, on all nodes at once.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_typo_takes_nobody_his_endpoint() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let config = cluster.config("kernel", "");
    let mut daemon = node.uvnd(&config);
    let typo = config.replace("\"em1\"", "\"em7\"");
    assert_ne!(typo, config);
    attach(node, ALICE);
    node.write("/etc/uvn/uvn.toml", &typo);
    let refused = node.try_uvn(&["reload"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("em1") && said(&refused).contains("1234"), "{}", said(&refused));
    assert_eq!(devices(node).len(), 2);
    node.uvn(&["reload", "--force"]);
    assert_eq!(devices(node), ["uvn1234"]);
    assert!(complaint(node).contains("UVN-NIC-MISSING: there is no NIC em7"));
    node.write("/etc/uvn/uvn.toml", &config);
    node.uvn(&["reload"]);
    approve(node);
    assert_eq!(devices(node).len(), 2);
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_configuration_of_a_user_is_refused() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    for change in ["chown 1234 /etc/uvn/uvn.toml", "chown 0 /etc/uvn/uvn.toml; chmod 666 /etc/uvn/uvn.toml"] {
        node.sh(change);
        let refused = node.try_uvn(&["reload"]);
        assert_eq!(refused.status.code(), Some(2), "{change}: {}", said(&refused));
        assert!(said(&refused).contains("chmod go-w"), "{change}: {}", said(&refused));
    }
    node.sh("chmod 644 /etc/uvn/uvn.toml");
    node.uvn(&["reload"]);
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn socket_programs_that_are_taken_away_come_back() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    // The programs alone, and with their maps.
    for pins in ["/sys/fs/bpf/uvn/links-*", "/sys/fs/bpf/uvn"] {
        daemon.signal(Signal::SIGSTOP);
        node.sh(&format!("rm -r {pins}"));
        node.wait("sockets in the open network", PATIENCE, || may_make_a_socket(node, BOB));
        daemon.signal(Signal::SIGCONT);
        node.wait("refusal", PATIENCE, || !may_make_a_socket(node, BOB));
        approve(node);
        assert!(may_make_a_socket(node, ALICE), "{pins}");
    }
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn names_that_do_not_exist_are_found() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let groups = "[off_subnet]\ndeny_groups = [\"no-such-group\"]\n";
    let mut daemon = node.uvnd(&format!("{}{groups}", cluster.config("kernel", "")));
    let said = complaint(node);
    assert!(said.contains("UVN-GROUP-UNKNOWN: no such group: no-such-group"), "{said}");
    node.write("/etc/uvn/uvn.toml", &cluster.config("kernel", "policed = [\"1000-9000\"]"));
    node.uvn(&["reload"]);
    let runs = Sleeper::start(node, BOB);
    assert!(node.uvn(&["check"]).contains("warning: UVN-ACCOUNT-UNPOLICED"));
    drop(runs);
    node.write("/etc/uvn/uvn.toml", &range_only(&cluster.config("kernel", "")));
    node.uvn(&["reload"]);
    assert!(complaint(node).contains("UVN-VXLAN-ALONE"));
    daemon.assert_alive();
}

/// No node is listed.
fn range_only(config: &str) -> String {
    let (before, _) = config.split_once("[peers]").expect("peers");
    format!("{before}[peers]\nrange = [\"10.0.0.0/24\"]\n")
}

/// For the first week on a cluster: nobody is refused, and the log and `uvn status` tell who would be.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn who_only_observes_refuses_nobody() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let observing = cluster.config("kernel", "mode = \"observe\"");
    let mut daemon = node.uvnd(&observing);
    attach(node, ALICE);
    assert!(may_make_a_socket(node, ALICE) && may_make_a_socket(node, BOB));
    let status = node.uvn(&["status"]);
    assert!(
        status.contains("would be refused, user 9876") && !status.contains("user 1234 without"),
        "{status}"
    );
    assert!(node.uvn(&["check"]).contains("warning: UVN-OBSERVES"));
    node.wait("a line in the log", PATIENCE, || daemon.log().contains("they would be refused"));
    // A reboot leaves nobody out, either.
    node.sh("rm -r /sys/fs/bpf/uvn");
    lock_down(node);
    assert!(may_make_a_socket(node, BOB));
    node.write("/etc/uvn/uvn.toml", &cluster.config("kernel", ""));
    node.uvn(&["reload"]);
    assert!(may_make_a_socket(node, ALICE) && !may_make_a_socket(node, BOB));
    approve(node);
    let status = node.uvn(&["status"]);
    assert!(status.contains("sockets refused, user 9876"), "{status}");
    node.write("/etc/uvn/uvn.toml", &observing);
    node.uvn(&["reload"]);
    assert!(may_make_a_socket(node, BOB));
    daemon.assert_alive();
}

/// What uvn-lockdown.service does at boot.
fn lock_down(node: &Node) {
    let output = node.command(program("uvnd")).arg("--lock-down").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_boot_keeps_users_out_before_uvnd_is_up() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let reboot = || node.sh("rm -r /sys/fs/bpf/uvn");
    lock_down(node);
    assert!(may_make_a_socket(node, BOB), "uvn has never been in force here");
    drop(node.uvnd(&cluster.config("kernel", "exempt = [1234]")));
    reboot();
    node.wait("the open network", PATIENCE, || may_make_a_socket(node, BOB));
    lock_down(node);
    assert!(!may_make_a_socket(node, BOB));
    assert!(may_make_a_socket(node, ALICE), "exempt by the last configuration");
    let mut daemon = node.restart_uvnd();
    attach(node, BOB);
    approve(node);
    assert!(may_make_a_socket(node, BOB));
    daemon.assert_alive();
}
