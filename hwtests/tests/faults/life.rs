//! Leases that end, files that cannot be written, and the end of it all.

use super::closed::complaint;
use super::*;
use uvn_dataplane::port::link;
use uvn_hwtests::node::program;

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn networks_go_with_their_last_holder() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let daemon = node.uvnd(&cluster.config("kernel", ""));
    let alice = ALICE.to_string();
    let [first, second, third] = [(); 3].map(|()| Sleeper::start(node, 0));
    node.uvn(&["attach", &alice, "--session", &first.pid()]);
    node.uvn(&["attach", &alice, "--job", "77.0", "--pid", &second.pid()]);
    assert_eq!(network(node, ALICE)["leases"].as_array().unwrap().len(), 2);
    drop(first);
    node.wait("end of the session", PATIENCE, || {
        network(node, ALICE)["leases"].as_array().unwrap().len() == 1
    });
    // The job ends while nobody watches.
    daemon.crash();
    drop(second);
    let mut daemon = node.restart_uvnd();
    node.wait("end of the network", PATIENCE, || network(node, ALICE).is_null());
    assert!(devices(node).is_empty());
    // A process that is not there holds nothing.
    let refused = node.try_uvn(&["attach", &alice, "--session", "4000000"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(network(node, ALICE).is_null());
    // He has left a process behind.
    node.uvn(&["attach", &alice, "--session", &third.pid()]);
    let left = Sleeper::start(node, ALICE);
    drop(third);
    node.wait("end of the session", PATIENCE, || {
        network(node, ALICE)["leases"].as_array().unwrap().is_empty()
    });
    thread::sleep(Duration::from_secs(4));
    assert_eq!(devices(node).len(), 2);
    drop(left);
    node.wait("end of the network", PATIENCE, || network(node, ALICE).is_null());
    approve(node);
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn no_room_for_the_state_file() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    let holder = Sleeper::start(node, 0);
    node.uvn(&["attach", &BOB.to_string(), "--session", &holder.pid()]);
    node.try_sh("head -c 100M /dev/zero > /run/uvn/full");
    let refused = node.try_uvn(&["attach", "5000"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("/run/uvn/state.json"), "{}", said(&refused));
    assert_eq!(devices(node).len(), 4);
    // Who was there works on, and goes in the end.
    attach(node, ALICE);
    drop(holder);
    node.wait("end of the network", PATIENCE, || network(node, BOB).is_null());
    node.sh("rm /run/uvn/full");
    attach(node, 5000);
    approve(node);
    daemon.assert_alive();
}

/// What something else changes in a network is mended, also when there was too much to be told of.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn networks_are_mended() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    for change in [
        "addr del 10.0.0.1/24 dev uvn1234.0",
        "link set uvn1234.0 down",
        "link set uvn1234.0 nomaster",
        "link del uvn1234.0",
        "link del uvn1234",
        "rule del pref 0",
    ] {
        node.ip(change);
        approve(node);
    }
    daemon.signal(Signal::SIGSTOP);
    let flood: String =
        (0..3000).map(|_| "addr add 127.9.9.9/32 dev lo\naddr del 127.9.9.9/32 dev lo\n").collect();
    node.ip(&flood);
    node.ip("link del uvn1234.0");
    daemon.signal(Signal::SIGCONT);
    approve(node);
    assert_eq!(devices(node).len(), 2);
    daemon.assert_alive();
}

/// All that uvn may leave on a node. The kernel itself makes rule 1000 with the first VRF, and never again: it stays, for
/// the VRFs of others.
fn traces(node: &Node) -> String {
    node.sh("ip -o link | sed 's/<.*//'; ip -o addr; ip rule | grep -v ^1000:; ip -6 rule | grep -v ^1000:; ip route show table all; \
             ip -6 route show table all; nft list ruleset; ls /sys/fs/bpf /run/uvn /var/lib/uvn; \
             cd /proc/sys/net && grep -rs . ipv4/*l3mdev_accept ipv4/ip_forward ipv4/conf/*/forwarding \
             ipv4/conf/*/rp_filter ipv6/conf/*/forwarding ipv6/conf/*/accept_ra mptcp/enabled")
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn purge_leaves_nothing() {
    for path in ["kernel", "engine"] {
        let cluster = alone();
        let node = &cluster.nodes[0];
        let before = traces(node);
        let processes = node.processes().len();
        let mut daemon = node.uvnd(&cluster.config(path, ""));
        [ALICE, BOB].into_iter().for_each(|uid| attach(node, uid));
        approve(node);
        let planned = node.uvn(&["purge", "--dry-run"]);
        assert!(planned.contains("uvn1234.0") && planned.contains("stop uvnd"), "{planned}");
        let output = node.command_as(ALICE, program("uvn")).arg("purge").output().unwrap();
        assert_eq!(text(&output.stderr), "uvn: only root can purge\n");
        daemon.assert_alive();
        node.uvn(&["purge"]);
        node.wait("end of all processes", PATIENCE, || node.processes().len() <= processes);
        assert_eq!(traces(node), before, "with {path}");
        // Nobody is policed any more, as soon as the kernel lets go of what was pinned, and it can begin anew.
        node.wait("socket for Alice", PATIENCE, || {
            as_user(node, ALICE, || TcpListener::bind("127.0.0.1:0").is_ok())
        });
        node.uvn(&["purge"]);
        drop(daemon);
        let _daemon = node.restart_uvnd();
        attach(node, ALICE);
        approve(node);
    }
}

/// What a killed data plane left goes; what only looks like it, or belongs to one that runs, stays.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn purge_removes_what_a_killed_data_plane_left() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    node.within(|| {
        for (device, port) in [("gro-77", 4790), ("gro-78", 4791), ("gro-x", 4792)] {
            link::create_deaf_vxlan(device, port).unwrap();
        }
    });
    node.ip("tuntap add slow-78 mode tap\nlink add gro-79 type dummy\nlink add gro-80 type vxlan id 5 dstport 4793\n");
    let ours = |text: &str| text.lines().filter(|line| line.contains("gro-")).map(String::from).collect();
    let planned: Vec<String> = ours(&node.uvn(&["purge", "--dry-run"]));
    assert!(planned.len() == 1 && planned[0].contains("delete gro-77"), "{planned:?}");
    node.uvn(&["purge"]);
    let left: Vec<String> = ours(&node.sh("ls /sys/class/net"));
    assert_eq!(left, ["gro-78", "gro-79", "gro-80", "gro-x"]);
}

/// A node starts anew, and its uvnd cannot: who is policed stays out of the open network, until uvn is purged.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_uvnd_that_cannot_start_leaves_nobody_in_the_open_network() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let is_free = |uid| as_user(node, uid, || TcpListener::bind("127.0.0.1:0").is_ok());
    let reboot = || {
        node.sh("find /sys/fs/bpf/uvn -type f -delete; rm -rf /run/uvn/*");
        // The kernel lets go of what was pinned a moment later.
        node.wait("socket for Bob", PATIENCE, || is_free(BOB));
    };
    let cannot_start = || {
        let failed = node.command(uvn_hwtests::node::program("uvnd")).output().unwrap();
        assert_eq!(failed.status.code(), Some(2), "{}", said(&failed));
    };
    let start = || {
        let daemon = node.uvnd(&cluster.config("kernel", &format!("exempt = [{ALICE}]")));
        // It listens before it is up.
        node.uvn(&["list"]);
        daemon
    };
    start().crash();
    assert_eq!((is_free(ALICE), is_free(BOB)), (true, false));
    reboot();
    node.write("/etc/uvn/uvn.toml", "policed = nonsense");
    cannot_start();
    assert_eq!((is_free(ALICE), is_free(BOB)), (true, false), "by the last configuration");
    // Nor by one of another version.
    reboot();
    node.write(uvn_control::lockdown::LAST, "policed = nonsense");
    cannot_start();
    assert_eq!((is_free(ALICE), is_free(BOB)), (false, false), "by default");
    let mut daemon = start();
    assert_eq!((is_free(ALICE), is_free(BOB)), (true, false));
    attach(node, BOB);
    assert!(is_free(BOB));
    approve(node);
    daemon.assert_alive();
    node.uvn(&["purge"]);
    reboot();
    node.write("/etc/uvn/uvn.toml", "policed = nonsense");
    cannot_start();
    assert_eq!((is_free(ALICE), is_free(BOB)), (true, true), "purged");
}

/// As with LDAP: whoever asks for groups waits for ever. Nobody's login does.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_user_database_that_hangs_holds_up_nobody() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let config = cluster.config("kernel", "") + "[off_subnet]\ndeny_groups = [\"games\"]\n";
    let mut daemon = node.uvnd(&config);
    let may = |uid: u32| network(node, uid)["off_subnet"].as_bool().unwrap();
    attach(node, ALICE);
    node.wait("an answer", PATIENCE, || may(ALICE));
    node.sh("mv /etc/group /etc/group.real; mkfifo /etc/group");
    attach(node, BOB);
    attach(node, BOB + 1);
    node.uvn(&["reload"]);
    assert!(may(ALICE) && !may(BOB) && !may(BOB + 1), "{}", node.uvn(&["list"]));
    let status = node.uvn(&["status"]);
    assert!(status.contains("UVN-USER-DATABASE") && status.contains(&BOB.to_string()), "{status}");
    assert!(complaint(node).contains("UVN-USER-DATABASE"));
    // Whoever has waited reads it now.
    node.sh("mv /etc/group /etc/fifo; mv /etc/group.real /etc/group; cat /etc/group > /etc/fifo || true");
    node.wait("an answer", PATIENCE, || may(BOB) && may(BOB + 1));
    approve(node);
    daemon.assert_alive();
}
