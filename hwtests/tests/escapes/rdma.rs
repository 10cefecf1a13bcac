//! Who opens RDMA devices: those of rdma_rxe (RoCE in software) on the node's NIC.

use super::*;
use uvn_hwtests::escape::rdma::{self, COPY};

/// Gives the node a device; false: the kernel has no module for it.
fn add_device(node: &Node) {
    node.sh("modprobe -a rdma_rxe rdma_ucm ib_uverbs");
    node.sh("rdma link add rxe0 type rxe netdev em1");
    node.wait("device files", Duration::from_secs(60), || {
        node.try_sh("test -c /dev/infiniband/uverbs0 -a -c /dev/infiniband/rdma_cm").status.success()
    });
    // What udev would do.
    node.sh("chmod 666 /dev/infiniband/*");
    node.sh(&format!("mknod -m 666 {COPY} c $(cat /sys/class/infiniband_verbs/uverbs0/dev | tr : ' ')"));
}

fn configure(site: &Site, key: &str) {
    let node = site.node();
    let kept = node.sh("grep -v ^rdma /etc/uvn/uvn.toml");
    node.write("/etc/uvn/uvn.toml", &format!("{key}\n{kept}"));
    node.uvn(&["reload"]);
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn rdma_devices_are_denied_where_the_administrator_says_so() {
    let site = Site::new("kernel");
    let node = site.node();
    configure(&site, "rdma = \"deny\"");
    // After the policy: the numbers of some drivers are known once they are loaded.
    add_device(node);
    let names: Vec<String> = rdma::attempts().into_iter().map(|attempt| attempt.name).collect();
    node.sh(&format!("grep -q ^bob: /etc/passwd || echo bob:x:{BOB}:{BOB}::/:/bin/sh >> /etc/passwd; echo bob:{SUBUID}:65536 > /etc/subuid"));
    let all: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    node.wait("the manager's number", Duration::from_secs(60), || {
        succeeded(&site.attempt("denied", "", &names)).is_empty()
    });
    assert!(node.uvn(&["status"]).contains("rdma"));
    // Root and services as before.
    for uid in [0, 33] {
        let mut open = node.command_as(uid, "sh");
        let opened = open.args(["-c", ": <> /dev/infiniband/uverbs0"]).output().unwrap();
        assert!(opened.status.success(), "{uid}: {}", text(&opened.stderr));
    }
    assert!(!node.uvn(&["check"]).contains("UVN-RDMA"));
    configure(&site, "rdma = \"allow\"");
    assert_eq!(succeeded(&site.attempt("allowed", "", &names)), all);
    assert!(!node.uvn(&["check"]).contains("UVN-RDMA"));
    // Not decided is allowed, and said.
    configure(&site, "");
    assert_eq!(succeeded(&site.attempt("undecided", "", &names)), all);
    let found = node.uvn(&["check"]);
    assert!(found.contains("warning: UVN-RDMA-UNDECIDED") && found.contains("rxe0"), "{found}");
    configure(&site, "rdma = \"deny\"\nmode = \"observe\"");
    assert_eq!(succeeded(&site.attempt("observed", "", &names)), all);
    node.sh("rdma link delete rxe0");
    site.conclude();
}
