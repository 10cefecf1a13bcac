//! Services on a node's loopback, inside the networks: the resolver, and what else the configuration lists.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

use std::collections::BTreeMap;
use std::time::Duration;
use uvn_hwtests::reach::Answer;
use uvn_hwtests::{Cluster, Node};

/// Two ordinary users.
const ALICE: u32 = 1234;
const BOB: u32 = 9876;
/// Some time for what uvnd does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

fn both(address: &str) -> Vec<String> {
    vec![format!("tcp:{address}"), format!("udp:{address}")]
}

/// As systemd-resolved does: else the service would have the address in every VRF.
fn on_lo(sockets: &[String]) -> Vec<String> {
    sockets.iter().map(|socket| format!("{socket}@lo")).collect()
}

fn all_say(answers: &BTreeMap<String, Answer>, expected: &str) -> bool {
    answers.values().all(|answer| answer.as_deref() == Ok(expected))
}

/// Users ask; each gets the service's answer, whether it was there before or after their networks.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn the_nodes_own_services_answer_inside_the_networks() {
    let cluster = Cluster::two();
    let node = &cluster.nodes[0];
    let config =
        "relay = [\"127.0.0.53:53\", \"127.0.0.1:8053\", \"[::1]:8053\"]\nservice_ports = [8053]".to_owned();
    let mut uvnd = node.uvnd(&cluster.config("engine", &config));
    let sockets = [both("127.0.0.53:53"), both("127.0.0.1:8053"), both("[::1]:8053")].concat();
    node.uvn(&["attach", &ALICE.to_string()]);
    let nobody = node.try_reach(ALICE, "alice", &sockets);
    assert!(nobody.values().all(Result::is_err), "{nobody:?}");

    let server = node.serve(0, "service", &on_lo(&sockets));
    node.uvn(&["attach", &BOB.to_string()]);
    for (uid, who) in [(ALICE, "alice"), (BOB, "bob"), (0, "root")] {
        let answers = node.reach(uid, who, &sockets);
        assert!(all_say(&answers, "service"), "{who}: {answers:#?}");
    }
    let asked = server.seen();
    for who in ["alice", "bob", "root"] {
        assert!(asked.iter().filter(|client| *client == who).count() >= sockets.len(), "{who}: {asked:?}");
    }

    // Started again, as an update does: nothing of ours holds its address.
    drop(server);
    let _server = node.serve(0, "updated", &on_lo(&sockets));
    let answers = node.reach(ALICE, "alice", &sockets);
    assert!(all_say(&answers, "updated"), "{answers:#?}");
    uvnd.assert_alive();
    node.uvn(&["check"]);
}

/// A network that goes and comes again is served again, also by an uvnd that has been restarted.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn networks_that_come_again_are_served_again() {
    let cluster = Cluster::two();
    let node = &cluster.nodes[0];
    let resolver = both("127.0.0.53:53");
    let _server = node.serve(0, "dns", &on_lo(&resolver));
    let uvnd = node.uvnd(&cluster.config("engine", ""));
    let answered = |node: &Node, uid: u32| all_say(&node.reach(uid, "user", &resolver), "dns");
    for _ in 0..3 {
        node.uvn(&["attach", &ALICE.to_string()]);
        assert!(answered(node, ALICE));
        node.uvn(&["detach", &ALICE.to_string()]);
        node.wait("end of the network", PATIENCE, || {
            !node.try_sh(&format!("ip link show uvn{ALICE}")).status.success()
        });
    }
    node.uvn(&["attach", &ALICE.to_string()]);
    uvnd.crash();
    let mut uvnd = node.restart_uvnd();
    node.wait("answer after the restart", PATIENCE, || answered(node, ALICE));
    uvnd.assert_alive();
    node.uvn(&["check"]);
}
