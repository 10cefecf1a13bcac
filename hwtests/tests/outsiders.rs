//! VXLAN made by hand by those who are no node's data plane: users of a node that uvn does not police, and users of a
//! machine on the underlay that runs no uvn. None of it reaches a network.
#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

use std::net::IpAddr;
use std::time::Duration;
use uvn_hwtests::escape::PORT;
use uvn_hwtests::node::program;
use uvn_hwtests::{Cluster, Daemon, Namespace, Node, Server, path};
use uvn_rig::namespace::text;

const ALICE: u32 = 1234;
/// UIDs of a system service, of one with a dynamic user, nobody, and an exempt one: none of them is policed.
const UNPOLICED: [u32; 4] = [33, 61_184, 65_534, EXEMPT];
const EXEMPT: u32 = 2000;
/// An ordinary user of another machine.
const VISITOR: u32 = 5555;
const PATIENCE: Duration = Duration::from_secs(60);
/// Datagrams that each of them sends.
const EACH: usize = 4;

struct Site {
    /// uvn.toml, up to its peers.
    config: String,
    cluster: Cluster,
    daemons: Vec<Daemon>,
    /// Alice's, on the second node.
    server: Server,
}

impl Site {
    fn new(path: &str) -> Site {
        let cluster = Cluster::two();
        let config = cluster.config(path, &format!("exempt = [{EXEMPT}]"));
        let (head, _) = config.split_once("[peers]").unwrap();
        let head = head.to_owned();
        let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
        cluster.attach(&[ALICE]);
        cluster.nodes.iter().for_each(path::wait_for_gear);
        let server = cluster.nodes[1].serve(ALICE, "alice", &[format!("udp:0.0.0.0:{PORT}")]);
        Site { config: head, cluster, daemons, server }
    }

    fn nodes(&self) -> [&Node; 2] {
        self.cluster.pair()
    }

    /// Says `name` in Alice's network on the second node, with the outer and inner source of `here`.
    fn forge(&self, from: &Namespace, uid: u32, here: (IpAddr, IpAddr), name: &str) {
        let there = self.nodes()[1].addresses();
        let pairs = [
            ("--who", name.to_owned()),
            ("--uid", uid.to_string()),
            ("--victim", ALICE.to_string()),
            ("--vni", ALICE.to_string()),
            ("--here", here.0.to_string()),
            ("--here6", here.1.to_string()),
            ("--there", there[0].to_string()),
            ("--there6", there[1].to_string()),
            ("--host", here.0.to_string()),
            ("--host6", here.1.to_string()),
            ("--nic", "em1".to_owned()),
        ];
        let mut command = from.command_as(uid, program("uvn-probe"));
        command.arg("escape").args(pairs.into_iter().flat_map(|(key, value)| [key.to_owned(), value]));
        let output = command.arg("vxlan-plain-there4").output().unwrap();
        assert!(text(&output.stdout).contains("vxlan-plain-there4"), "{}", text(&output.stderr));
    }

    fn seen(&self, name: &str) -> usize {
        self.server.seen().iter().filter(|line| line.starts_with(&format!("{name}/"))).count()
    }

    /// What is sent by hand can be seen: by root of a node it is.
    fn fence(&self, name: &str) {
        let [first, second] = self.nodes();
        let [v4, v6] = first.addresses();
        second.wait("root's datagram", PATIENCE, || {
            self.forge(first, 0, (v4, v6), name);
            self.seen(name) > 0
        });
    }

    /// Every node takes another list of peers.
    fn reload(&self, peers: &str, more: &str) {
        for node in &self.cluster.nodes {
            let config = format!("{more}\n{}[peers]\n{peers}\n", self.config);
            node.write("/etc/uvn/uvn.toml", &config);
            node.uvn(&["reload"]);
        }
    }
}

fn unpoliced_users_of_a_node(path: &str) {
    let mut site = Site::new(path);
    let [first, second] = site.nodes();
    let [v4, v6] = first.addresses();
    site.fence("before");
    for uid in UNPOLICED {
        (0..EACH).for_each(|_| site.forge(first, uid, (v4, v6), &format!("by{uid}")));
    }
    site.fence("after");
    for uid in UNPOLICED {
        assert_eq!(site.seen(&format!("by{uid}")), 0, "of {EACH} of UID {uid}");
    }
    // Services of such users are reached as before, and answer: over kernel VXLAN, in packets that are theirs.
    let _service = second.serve(UNPOLICED[0], "service", &["tcp:0.0.0.0:6000".to_owned()]);
    let target = [format!("tcp:{}:6000", second.nics()[0].v4)];
    assert_eq!(first.reach(ALICE, "alice", &target)[&target[0]].as_deref(), Ok("service"));
    site.daemons.iter_mut().for_each(Daemon::assert_alive);
    site.cluster.nodes.iter().for_each(|node| drop(node.uvn(&["check"])));
}

fn users_of_other_machines(path: &str) {
    let mut site = Site::new(path);
    let address = site.cluster.storage_address();
    let range = format!("range = [\"{}\"]", site.cluster.subnets()[0]);
    // In the range, and not said to be without uvn: README says that the port must be root's there.
    site.reload(&range, "");
    site.nodes()[1].wait("the visitor's datagram", PATIENCE, || {
        site.forge(&site.cluster.storage, VISITOR, address, "listed");
        site.seen("listed") > 0
    });
    site.reload(&range, &format!("hosts = [\"{}\", \"{}\"]", address.0, address.1));
    site.fence("with hosts");
    (0..EACH).for_each(|_| site.forge(&site.cluster.storage, VISITOR, address, "host"));
    site.fence("after host");
    site.reload("nodes = [\"n[1-2]\"]", "");
    site.fence("with nodes");
    (0..EACH).for_each(|_| site.forge(&site.cluster.storage, VISITOR, address, "unlisted"));
    site.fence("after unlisted");
    assert_eq!((site.seen("host"), site.seen("unlisted")), (0, 0), "of {EACH} each");
    site.daemons.iter_mut().for_each(Daemon::assert_alive);
}

uvn_hwtests::with_paths!([engine, shortcut, kernel] { unpoliced_users_of_a_node, users_of_other_machines });
