//! UIDs and device names at their limits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use uvn_hwtests::{Cluster, Layout, Server};

/// Beyond 16 bits; 2^22 (the largest that some address plans can hold); beyond 24 bits; the largest there is.
const UIDS: [u32; 4] = [65_536, 1 << 22, (1 << 24) + 5, u32::MAX - 1];
/// The kernel allows no longer name.
const NIC: &str = "enp129s0f0np0v1";

/// VNIs for those who need one.
const VNIS: &str =
    "vni = [{ uids = \"16777216-16777300\", first = 1000000 }, { uids = \"4294967294\", first = 2000000 }]";

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn large_uids_and_a_long_nic_name() {
    for path in ["engine", "kernel"] {
        let cluster = Cluster::new(Layout { nodes: 2, nics: &[NIC] });
        let config = cluster.config(path, VNIS);
        let mut daemons: Vec<_> = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        for node in [first, second] {
            for uid in UIDS {
                node.uvn(&["attach", &uid.to_string()]);
            }
        }
        let sockets: Vec<String> = ["tcp:0.0.0.0:5000", "udp:[::]:5001"].map(String::from).into();
        let serve = |node: &uvn_hwtests::Node, uid: u32| {
            node.serve(uid, &format!("u{uid}@{}", node.name()), &sockets)
        };
        let servers: Vec<(u32, Server)> =
            [first, second].iter().flat_map(|node| UIDS.map(|uid| (uid, serve(node, uid)))).collect();
        let [v4, v6] = second.addresses();
        let near = ["tcp:127.0.0.1:5000".to_owned(), "udp:[::1]:5001".to_owned()];
        let far = [format!("tcp:{v4}:5000"), format!("udp:[{v6}]:5001")];
        for uid in UIDS {
            let answers = first.reach(uid, &format!("u{uid}@n1"), &[&near[..], &far[..]].concat());
            for (targets, node) in [(&near, "n1"), (&far, "n2")] {
                for target in targets {
                    assert_eq!(answers[target], Ok(format!("u{uid}@{node}")), "{path}: {uid} to {target}");
                }
            }
        }
        for (uid, server) in &servers {
            assert!(
                server.seen().iter().all(|client| *client == format!("u{uid}@n1")),
                "{path}: {:?}",
                server.seen()
            );
        }
        for (daemon, node) in daemons.iter_mut().zip([first, second]) {
            daemon.assert_alive();
            node.uvn(&["check"]);
        }
    }
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_large_uid_without_a_vni_is_refused_and_told_so() {
    let cluster = Cluster::new(Layout { nodes: 1, ..Layout::default() });
    let [node] = &cluster.nodes[..] else { panic!("one node") };
    let _daemon = node.uvnd(&cluster.config("kernel", ""));
    let uid = ((1 << 24) + 5).to_string();
    let output = node.try_uvn(&["attach", &uid]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(&uid) && said.contains("[[vni]]"), "{said}");
}
