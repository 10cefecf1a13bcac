//! The rig itself: without uvn everybody reaches everybody, so that what is not reached later is uvn's doing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use std::net::IpAddr;
use uvn_hwtests::Cluster;
use uvn_hwtests::cluster::OUTSIDE;
use uvn_hwtests::node::Server;

fn targets(v4: IpAddr, v6: IpAddr) -> [String; 4] {
    [
        format!("tcp:{v4}:5000"),
        format!("udp:{v4}:5000"),
        format!("tcp:[{v6}]:5001"),
        format!("udp:[{v6}]:5001"),
    ]
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn without_uvn_everybody_reaches_everybody() {
    let cluster = Cluster::two();
    let sockets: Vec<String> =
        ["tcp:0.0.0.0:5000", "udp:0.0.0.0:5000", "tcp:[::]:5001", "udp:[::]:5001"].map(String::from).into();
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let server = second.serve(1234, "u1234@n2", &sockets);
    // A router has several addresses: by UDP only the one that was asked may answer.
    let outside = targets(OUTSIDE.0.into(), OUTSIDE.1.into());
    let _outside = Server::start(&cluster.outside, 0, "outside", &outside);
    let _storage = Server::start(&cluster.storage, 0, "storage", &sockets);
    let [v4, v6] = second.addresses();
    let (storage4, storage6) = cluster.storage_address();
    let all = [(targets(v4, v6), "u1234@n2"), (outside, "outside"), (targets(storage4, storage6), "storage")];
    let asked: Vec<String> = all.iter().flat_map(|(targets, _)| targets.clone()).collect();
    let answers = first.reach(9876, "u9876@n1", &asked);
    for (targets, name) in &all {
        for target in targets {
            assert_eq!(answers[target], Ok((*name).to_owned()), "{target}");
        }
    }
    // UDP may have been asked twice.
    let seen = server.seen();
    assert!(seen.len() >= 4 && seen.iter().all(|who| who == "u9876@n1"), "{seen:?}");
    // A server that is not there is noticed.
    let nobody = first.try_reach(9876, "u9876@n1", &[format!("tcp:{v4}:5002")]);
    assert!(nobody.values().all(Result::is_err), "{nobody:?}");
    assert_eq!(first.sh("hostname").trim(), "n1");
}
