//! What fails, fails closed, is named by `uvn check` until it is mended, and is tried again by itself.

use super::*;
use uvn_api::uvnd::policed::LAST;
use uvn_hwtests::node::program;

/// What `uvn check` says; it does not approve.
pub fn complaint(node: &Node) -> String {
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

/// Its pin has gone, while uvnd is not there to see it.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_socket_program_that_is_not_attached_is_named() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    drop(node.uvnd(&cluster.config("kernel", "")));
    let silent = complaint(node);
    assert!(silent.contains("UVN-UVND-SILENT") && !silent.contains("UVN-PROGRAMS-DETACHED"), "{silent}");
    node.sh("find /sys/fs/bpf/uvn -name uvn_bind4 -delete");
    assert!(complaint(node).contains("UVN-PROGRAMS-DETACHED"));
    let mut daemon = node.restart_uvnd();
    approve(node);
    daemon.assert_alive();
}

/// They are in no network, so other users may reach them.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn sockets_from_before_uvnd_are_named() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let server = node.serve(ALICE, "before", &["tcp:0.0.0.0:5000".into(), "udp:[::]:5001".into()]);
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    [ALICE, BOB].into_iter().for_each(|uid| attach(node, uid));
    let said = complaint(node);
    for part in ["UVN-SOCKETS-EARLIER", "1234 (tcp 0.0.0.0:5000, udp [::]:5001)"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("9876"), "{said}");
    drop(server);
    let _server = node.serve(ALICE, "after", &["tcp:0.0.0.0:5000".into(), "udp:[::]:5001".into()]);
    approve(node);
    daemon.assert_alive();
}

/// As after a power cut, when nodes are up before DNS is.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn peers_without_an_address_are_nobody_until_they_have_one() {
    let cluster = Cluster::two();
    let [here, there] = cluster.pair();
    let hosts = here.read("/etc/hosts").unwrap();
    here.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    let mut daemons = [here, there].map(|node| node.uvnd(&cluster.config("engine", "")));
    [here, there].into_iter().for_each(|node| attach(node, ALICE));
    let _server = here.serve(ALICE, "alice", &["tcp:0.0.0.0:5000".into()]);
    let target = [format!("tcp:{}:5000", here.addresses()[0])];
    let reaches = || there.try_reach(ALICE, "alice", &target)[&target[0]].is_ok();
    let said = complaint(here);
    assert!(said.contains("UVN-PEERS-UNRESOLVED") && said.contains("n2"), "{said}");
    assert!(here.uvn(&["status"]).contains("UVN-PEERS-UNRESOLVED"));
    assert!(!reaches());
    here.write("/etc/hosts", &hosts);
    there.wait("an answer", PATIENCE, reaches);
    approve(here);
    daemons.iter_mut().for_each(Daemon::assert_alive);
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
    node.wait("a line in the log", PATIENCE, || daemon.log().contains("sockets would be refused"));
    // A reboot leaves nobody out, either.
    lose_pins(node, "/sys/fs/bpf/uvn");
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

/// Removes pins, as a reboot does; a uvnd that runs may be making them again meanwhile.
fn lose_pins(node: &Node, pins: &str) {
    node.sh(&format!("until rm -rf {pins}; do sleep 0.1; done"));
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
    lock_down(node);
    assert!(may_make_a_socket(node, BOB), "uvn has never been in force here");
    let daemon = node.uvnd(&cluster.config("kernel", "exempt = [1234]"));
    // Users with processes get networks before uvn is in force.
    node.wait_for(LAST, PATIENCE);
    drop(daemon);
    lose_pins(node, "/sys/fs/bpf/uvn");
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

/// Tailscale's addresses, for example: what uses them would be cut off.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_nat_pool_that_something_uses_is_refused() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let config = cluster.config("kernel", "");
    let mut daemon = node.uvnd(&config);
    attach(node, ALICE);
    // Its own addresses, routes and rules are none of those.
    approve(node);
    node.ip("link add tail0 type dummy\naddr add 100.100.1.1/24 dev tail0\nlink set tail0 up\n");
    assert!(
        complaint(node)
            .contains("UVN-NAT-POOL: nat.ipv4: 100.64.0.0/10 overlaps the address 100.100.1.1/24 of tail0")
    );
    // Nobody who works here loses anything by a reload.
    node.uvn(&["reload"]);
    daemon.assert_alive();
    drop(daemon);
    let refused = node.command(program("uvnd")).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("100.64.0.0/16 is free here"), "{}", said(&refused));
    node.write("/etc/uvn/uvn.toml", &format!("{config}[nat]\nipv4 = \"100.64.0.0/16\"\n"));
    let mut daemon = node.restart_uvnd();
    approve(node);
    node.ip("rule add to 100.66.0.0/16 lookup 77\nroute add 10.77.0.0/16 dev tail0\n");
    for (pool, other) in [
        ("100.66.0.0/15", "a rule for packets to 100.66.0.0/16"),
        ("10.77.64.0/20", "the route to 10.77.0.0/16"),
    ] {
        node.write("/etc/uvn/uvn.toml", &format!("{config}[nat]\nipv4 = \"{pool}\"\n"));
        let refused = node.try_uvn(&["reload"]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(other), "{}", said(&refused));
    }
    approve_after_reload(node, &format!("{config}[nat]\nipv4 = \"10.78.0.0/20\"\n"));
    daemon.assert_alive();
}

fn approve_after_reload(node: &Node, config: &str) {
    node.write("/etc/uvn/uvn.toml", config);
    node.uvn(&["reload"]);
    approve(node);
}

/// On a node where users are at work, nobody is refused before they have networks.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn users_who_run_get_networks_before_others_are_refused() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let running = [ALICE, BOB, 4321].map(|uid| Sleeper::start(node, uid));
    let has_network = |uid| network(node, uid)["leases"].to_string().contains("session");
    // By a first start, and by a reload after observing.
    for observed in [false, true] {
        let mode = if observed { "mode = \"observe\"" } else { "" };
        let mut daemon = node.uvnd(&cluster.config("kernel", mode));
        if observed {
            assert_eq!(network(node, ALICE), Value::Null);
            node.write("/etc/uvn/uvn.toml", &cluster.config("kernel", ""));
            node.uvn(&["reload"]);
        }
        node.wait("enforcement", PATIENCE, || !may_make_a_socket(node, 5555));
        for uid in [ALICE, BOB, 4321] {
            assert!(has_network(uid) && may_make_a_socket(node, uid), "{uid}");
        }
        approve(node);
        daemon.assert_alive();
        node.uvn(&["purge"]);
        node.wait("the open network", PATIENCE, || may_make_a_socket(node, 5555));
    }
    drop(running);
}

/// A firewall of the site's that knows nothing of uvn's devices, as firewalld's default zone.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_firewall_that_rejects_users_is_found() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    approve(node);
    let rules = "table inet site { chain in { type filter hook input priority 10; policy drop; iifname lo accept; }; }";
    node.sh(&format!("nft '{rules}'"));
    let said = complaint(node);
    assert!(said.contains("UVN-REACH: user 1234 does not reach an own socket at 127.0.0.1"), "{said}");
    node.sh("nft 'insert rule inet site in iifname \"uvn*\" accept'");
    approve(node);
    daemon.assert_alive();
}

/// Whatever somebody does to uvn's own table.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_packet_filter_that_is_changed_is_named_and_mended() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    approve(node);
    for change in [
        "flush ruleset",
        "delete table inet uvn",
        "flush chain inet uvn input",
        "add rule inet uvn input accept",
    ] {
        // Nobody mends it meanwhile.
        drop(daemon);
        node.sh(&format!("nft {change}"));
        assert!(complaint(node).contains("UVN-FIREWALL"), "{change}");
        daemon = node.restart_uvnd();
        approve(node);
        // Somebody does.
        node.sh(&format!("nft {change}"));
        approve(node);
    }
    daemon.assert_alive();
}
