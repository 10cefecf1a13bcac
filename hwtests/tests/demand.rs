//! Networks that peers' traffic makes, and keeps for as long as it comes.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

use std::time::{Duration, Instant};
use uvn_hwtests::node::add_user;
use uvn_hwtests::{Cluster, Node};

/// An ordinary user, and another who has nothing anywhere.
const ALICE: u32 = 1234;
const BOB: u32 = 9876;
/// Who is policed, and whom the user database does not know.
const NOBODY: u32 = 300_000;

/// The number of a user's VRF device on a node: a new one has another.
fn index(node: &Node, uid: u32) -> Option<String> {
    let output = node.try_sh(&format!("cat /sys/class/net/uvn{uid}/ifindex"));
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// She has a session on the first node, and uses a service of the second node's root.
fn made_and_kept_by_traffic(path: &str) {
    add_user(ALICE);
    let cluster = Cluster::two();
    let config = cluster.config(path, "");
    let mut daemons: Vec<_> = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
    let [first, second] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let target = [format!("tcp:{}:6000", second.nics()[0].v4)];
    let _server = second.serve(0, "root", &["tcp:0.0.0.0:6000".to_owned()]);
    first.uvn(&["attach", &ALICE.to_string()]);
    assert_eq!(index(second, ALICE), None);
    // The second node's uvnd may still be starting, and a grant takes as long as it takes.
    let is_reached = || first.try_reach(ALICE, "alice", &target)[&target[0]].as_deref() == Ok("root");
    second.wait("her network", Duration::from_secs(60), is_reached);

    // Three times as long as a network lives that nobody uses: linger_s is 1, and it is 10 s for peers at least.
    let end = Instant::now() + Duration::from_secs(30);
    let mut made = None;
    while Instant::now() < end {
        let answers = first.reach(ALICE, "alice", &target);
        assert_eq!(answers[&target[0]].as_deref(), Ok("root"));
        let now = index(second, ALICE);
        assert!(now.is_some() && (made.is_none() || made == now), "made again: {made:?}, {now:?}");
        made = now;
    }
    assert_eq!(index(second, BOB), None);
    // Somebody who does not exist gets none, before hers is made again and after.
    first.uvn(&["attach", &NOBODY.to_string()]);
    let refused = first.try_reach(NOBODY, "nobody", &target);
    assert!(refused[&target[0]].is_err(), "{refused:?}");
    second.wait("end of her network", Duration::from_secs(60), || index(second, ALICE).is_none());
    second.wait("her network again", Duration::from_secs(60), is_reached);
    assert!(index(second, ALICE).is_some());
    assert_eq!(index(second, NOBODY), None);
    for (daemon, node) in daemons.iter_mut().zip(&cluster.nodes) {
        daemon.assert_alive();
        node.uvn(&["check"]);
    }
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn engine() {
    made_and_kept_by_traffic("engine");
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn kernel() {
    made_and_kept_by_traffic("kernel");
}
