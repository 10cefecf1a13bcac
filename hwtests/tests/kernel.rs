//! What plan, netlink, sysctl and firewall promise, on a real kernel and without uvnd: a network works once its steps
//! are taken, a crash between any two of them is repaired, and afterwards nothing is left.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use uvn_control::config::Config;
use uvn_control::feed::Others;
use uvn_control::netlink::{Changes, Monitor, Netlink, NetlinkError};
use uvn_control::network::{FIRST_TABLE, Network, Node as Facts};
use uvn_control::peers::{self, Directory, Peers};
use uvn_control::plan::{self, Item, Step};
use uvn_control::{firewall, sysctl};
use uvn_dataplane::port::link;
use uvn_hwtests::cluster::OUTSIDE;
use uvn_hwtests::{Cluster, Layout, Namespace, Node};
use uvn_wire::cgroup::Mark;

const ALICE: u32 = 1234;
const BOB: u32 = 4_294_967_294;

/// All of uvn on a node that is not a process.
struct Control {
    config: Config,
    netlink: Netlink,
    facts: Facts,
    peers: Peers,
}

impl Control {
    fn open(config: &str) -> Control {
        let config: Config = toml::from_str(config).unwrap();
        let netlink = Netlink::open().unwrap();
        let facts = netlink.node(&config).unwrap();
        let mut directory = Directory::new(Path::new(peers::KNOWN));
        directory.follow(&config.peers).unwrap();
        let peers = directory.peers();
        Control { config, netlink, facts, peers }
    }

    fn network(&self, uid: u32, slot: u32) -> Network {
        self.config.network_of(uid, slot, true).unwrap()
    }

    /// Everything for these networks, also on kernel VXLAN.
    fn wanted(&self, networks: &[Network]) -> Vec<Item> {
        let mut wanted = plan::node(&self.facts);
        networks.iter().for_each(|network| wanted.extend(self.items(network)));
        wanted
    }

    fn items(&self, network: &Network) -> Vec<Item> {
        let mut items = plan::network(&self.facts, network);
        for nic in &self.facts.nics {
            items.extend(Others::new(&self.facts, nic, &self.peers).entries(nic, network));
        }
        items
    }

    fn take(&self, steps: &[Step]) {
        for step in steps {
            self.netlink.apply(step).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Until the kernel holds what it shall.
    fn reconcile(&self, wanted: &[Item]) {
        for _ in 0..3 {
            let steps = plan::diff(wanted, &self.netlink.observe().unwrap());
            if steps.is_empty() {
                return;
            }
            self.take(&steps);
        }
        assert_eq!(plan::diff(wanted, &self.netlink.observe().unwrap()), []);
    }

    fn start(&self, networks: &[Network]) {
        sysctl::apply(&self.facts, Path::new(sysctl::RECORD)).unwrap();
        let opened = sysctl::opened(&self.facts, Path::new(sysctl::RECORD));
        let ruleset = firewall::ruleset(&self.config, &self.facts, &self.peers, &opened, 1024);
        firewall::apply(&ruleset).unwrap();
        firewall::number(&self.facts, 64).unwrap();
        assert!(firewall::is_applied(&ruleset).unwrap());
        self.reconcile(&self.wanted(networks));
        assert_eq!(sysctl::check(&self.facts), Vec::<String>::new());
        for network in networks {
            let observed = self.netlink.observe_network(network).unwrap();
            assert_eq!(plan::diff(&self.items(network), &observed), [], "seen alone");
        }
    }

    fn purge(&self) {
        self.reconcile(&plan::pristine(true));
        firewall::remove().unwrap();
        sysctl::restore(Path::new(sysctl::RECORD)).unwrap();
    }
}

/// What `ip` and `sysctl` say of a node, without what comes and goes.
fn everything(node: &Namespace) -> String {
    node.sh("ip -o link | sed 's/ state [A-Z]*//; s/NO-CARRIER,//'; ip -o addr | sed 's/ *valid_lft.*//'; ip rule; ip -6 rule
        ip route show table all; ip -6 route show table all; nft list ruleset
        sysctl net.ipv4.tcp_l3mdev_accept net.ipv4.udp_l3mdev_accept net.ipv4.raw_l3mdev_accept net.mptcp.enabled
        cd /proc/sys/net; grep . ipv[46]/conf/*/forwarding ipv6/conf/*/accept_ra; ls /run/uvn")
}

/// A TCP server, on a device or on none, that says who it is to the first that comes.
fn serve(node: &Node, device: Option<&str>, at: SocketAddr, says: &'static str) -> Socket {
    node.within(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind_device(device.map(str::as_bytes)).unwrap();
        socket.bind(&SockAddr::from(at)).unwrap();
        socket.listen(8).unwrap();
        let accepting = socket.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let _gone = stream.write_all(says.as_bytes());
            }
        });
        socket
    })
}

/// Who answers, or why nobody: on a device as its user's sockets, whose networks are the first two.
fn ask(node: &Namespace, device: Option<&str>, to: SocketAddr) -> Result<String, ErrorKind> {
    ask_within(Duration::from_secs(30), node, device, to)
}

/// Whether nobody answers for a while that is long to those who do.
fn is_silent(node: &Namespace, device: Option<&str>, to: SocketAddr) -> bool {
    ask_within(Duration::from_millis(900), node, device, to).is_err()
}

fn ask_within(
    patience: Duration,
    node: &Namespace,
    device: Option<&str>,
    to: SocketAddr,
) -> Result<String, ErrorKind> {
    node.within(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
        if let Some(device) = device {
            let number = if device == format!("uvn{ALICE}") { 1 } else { 2 };
            socket.bind_device(Some(device.as_bytes())).unwrap();
            socket.set_mark(Mark::bound(1, number).0).unwrap();
        }
        socket.connect_timeout(&SockAddr::from(to), patience).map_err(|error| error.kind())?;
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut said = String::new();
        TcpStream::from(socket).read_to_string(&mut said).map_err(|error| error.kind())?;
        Ok(said)
    })
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Kernel VXLAN, with a host without uvn and a UID that needs a VNI of its own.
fn config(cluster: &Cluster) -> String {
    let (storage4, storage6) = cluster.storage_address();
    let more = format!("hosts = [\"{storage4}\", \"{storage6}\"]\nsrun_ports = [\"6000-6009\"]");
    cluster.config("kernel", &more) + "[[vni]]\nuids = \"4294967290-4294967294\"\nfirst = 16000000\n"
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn networks_work_and_nothing_is_left_of_them() {
    let cluster = Cluster::two();
    let config = config(&cluster);
    let [n1, n2] = &cluster.nodes[..] else { panic!("two nodes") };
    let before: Vec<String> = cluster.nodes.iter().map(|node| everything(node)).collect();
    for node in &cluster.nodes {
        // Strict, as some distributions have it.
        node.write("/proc/sys/net/ipv4/conf/all/rp_filter", "1");
        node.within(|| {
            let control = Control::open(&config);
            control.start(&[control.network(ALICE, 0), control.network(BOB, 1)]);
        });
    }
    let (alice, bob) = (format!("uvn{ALICE}"), format!("uvn{BOB}"));
    let [a4, a6] = n2.addresses();
    let mut servers = Vec::new();
    for any in ["0.0.0.0".parse::<IpAddr>().unwrap(), "::".parse().unwrap()] {
        let port = if any.is_ipv4() { 5000 } else { 5001 };
        servers.push(serve(n2, Some(&alice), at(any, port), "alice"));
        servers.push(serve(n2, Some(&bob), at(any, port), "bob"));
        servers.push(serve(n2, None, at(any, port + 100), "root"));
        servers.push(serve(n2, None, at(any, port + 1000), "srun"));
    }
    let lo: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    for (from, targets) in [(n1, [a4, a6]), (n2, [a4, a6]), (n2, lo)] {
        for target in targets {
            let port = if target.is_ipv4() { 5000 } else { 5001 };
            let ask = |vrf: &str, port| ask(from, Some(vrf), at(target, port));
            let name = from.name();
            assert_eq!(ask(&alice, port).as_deref(), Ok("alice"), "{name} to {target}");
            assert_eq!(ask(&bob, port).as_deref(), Ok("bob"), "{name} to {target}");
            assert_eq!(ask(&alice, port + 100).as_deref(), Ok("root"), "{name} to {target}");
            assert!(
                is_silent(from, Some(&alice), at(target, port + 1000)),
                "{name} to {target}: an srun port"
            );
        }
    }
    assert_eq!(ask(n1, None, at(a4, 6000)).as_deref(), Ok("srun"), "system processes reach it");
    leaves_and_answers(&cluster, &alice);
    keeps_nat_addresses_to_itself(&cluster, &alice, &bob);
    // n2's link-local address, made from its MAC.
    let ping = format!("ping -6 -n -c 2 -i 0.3 -W 3 -I {alice}.0 ff02::1 || true");
    n1.wait("answer of n2", Duration::from_secs(60), || n1.sh(&ping).contains("fe80::75:aff:fe00:2"));
    drop(servers);
    for (node, before) in cluster.nodes.iter().zip(before) {
        node.within(|| Control::open(&config).purge());
        let after = everything(node);
        // The kernel makes this rule with the first VRF of a network namespace, and never again.
        let after: Vec<&str> =
            after.lines().filter(|line| !line.contains("1000:\tfrom all lookup [l3mdev")).collect();
        assert_eq!(after.join("\n"), before.trim_end());
    }
}

/// Off-subnet and listed hosts.
fn leaves_and_answers(cluster: &Cluster, vrf: &str) {
    let [n1, _] = &cluster.nodes[..] else { panic!("two nodes") };
    let (storage4, storage6) = cluster.storage_address();
    let all: [(&Namespace, IpAddr); 4] = [
        (&cluster.outside, OUTSIDE.0.into()),
        (&cluster.outside, OUTSIDE.1.into()),
        (&cluster.storage, storage4),
        (&cluster.storage, storage6),
    ];
    for (host, address) in all {
        let to = at(address, 5000);
        let _server = host.within(|| {
            let listener = std::net::TcpListener::bind(to).unwrap();
            let accepting = listener.try_clone().unwrap();
            std::thread::spawn(move || {
                while let Ok((mut stream, peer)) = accepting.accept() {
                    let _gone = stream.write_all(peer.ip().to_string().as_bytes());
                }
            });
            listener
        });
        let own = n1.addresses()[usize::from(address.is_ipv6())].to_string();
        assert_eq!(ask(n1, Some(vrf), to), Ok(own.clone()), "{address} sees the node");
        // Without a number, or with one that nft does not know, what it sends is not translated: the answers are the node's.
        for mark in [0, Mark::bound(1, 100).0] {
            let bare = n1.within(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.bind_device(Some(vrf.as_bytes())).unwrap();
                socket.set_mark(mark).unwrap();
                socket.connect_timeout(&SockAddr::from(to), Duration::from_millis(500))
            });
            assert!(bare.is_err(), "{address} answers a socket with mark {mark:#x}");
        }
    }
}

/// Neither other users, nor the node, nor other hosts reach a network by its NAT address.
fn keeps_nat_addresses_to_itself(cluster: &Cluster, alice: &str, bob: &str) {
    let [_, n2] = &cluster.nodes[..] else { panic!("two nodes") };
    let nat: [IpAddr; 2] = ["100.64.0.1".parse().unwrap(), "fd75:766e::1".parse().unwrap()];
    let [n2_4, n2_6] = n2.addresses();
    cluster.outside.ip(&format!("route add 100.64.0.0/10 via {n2_4}\nroute add fd75:766e::/64 via {n2_6}\n"));
    for address in nat {
        let to = at(address, if address.is_ipv4() { 5000 } else { 5001 });
        assert!(is_silent(n2, Some(alice), to), "{to} from the network itself");
        assert!(is_silent(n2, Some(bob), to), "{to} from another network");
        assert!(is_silent(n2, None, to), "{to} from the node");
        assert!(is_silent(&cluster.outside, None, to), "{to} from outside");
    }
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_crash_after_any_step_is_repaired() {
    let cluster = Cluster::new(Layout { nodes: 1, nics: &["em1", "em2"] });
    let text = config(&cluster);
    // One NIC on each data path.
    let text = text.replacen("path = \"kernel\"", "path = \"engine\"", 1);
    cluster.nodes[0].within(|| {
        let control = Control::open(&text);
        sysctl::apply(&control.facts, Path::new(sysctl::RECORD)).unwrap();
        let pristine = plan::pristine(true);
        let wanted = control.wanted(&[control.network(BOB, 7)]);
        let up = plan::diff(&wanted, &control.netlink.observe().unwrap());
        assert!(up.len() > 30, "{up:#?}");
        for crash in 0..=up.len() {
            control.take(&up[..crash]);
            // Every other time what is half there is taken down instead.
            if crash % 2 == 0 {
                control.reconcile(&wanted);
            }
            control.reconcile(&pristine);
        }
        control.reconcile(&wanted);
        let down = plan::diff(&pristine, &control.netlink.observe().unwrap());
        for crash in 0..=down.len() {
            control.take(&down[..crash]);
            control.reconcile(&wanted);
        }
        control.reconcile(&pristine);
        sysctl::restore(Path::new(sysctl::RECORD)).unwrap();
    });
}

/// Tables that the whole machine has once: they get room for each user's neighbours, also by a node in a namespace of its
/// own, and at the end what they had.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn tables_of_neighbours_have_room() {
    let cluster = Cluster::new(Layout { nodes: 1, nics: &["em1"] });
    let text = config(&cluster);
    let file = |v, number| format!("/proc/sys/net/ipv{v}/neigh/default/gc_thresh{number}");
    let set = |limits: [u32; 2]| {
        for (number, limit) in [2, 3].into_iter().zip(limits) {
            [4, 6].into_iter().for_each(|v| std::fs::write(file(v, number), limit.to_string()).unwrap());
        }
    };
    let limits = || {
        [4, 6].map(|v| {
            [2, 3].map(|number| std::fs::read_to_string(file(v, number)).unwrap().trim().parse().unwrap())
        })
    };
    let record = Path::new(sysctl::RECORD);
    let before: [[u32; 2]; 2] = limits();
    set([512, 1024]);
    let apply = || sysctl::apply(&Control::open(&text).facts, record).unwrap();
    cluster.nodes[0].within(apply);
    let raised = limits();
    assert!(raised.iter().flatten().all(|limit| *limit >= 8192), "{raised:?}");
    assert_eq!(cluster.nodes[0].within(|| sysctl::check(&Control::open(&text).facts)), Vec::<String>::new());
    set([512, 1024]);
    let complaints = cluster.nodes[0].within(|| sysctl::check(&Control::open(&text).facts)).join(", ");
    assert!(complaints.contains("net.ipv4.neigh.default.gc_thresh3 is 1024, not"), "{complaints}");
    cluster.nodes[0].within(apply);
    assert_eq!(limits(), raised);
    let restore = || cluster.nodes[0].within(|| sysctl::restore(record)).unwrap();
    restore();
    assert_eq!(limits(), [[512, 1024]; 2]);
    set([3_000_000, 4_000_000]);
    cluster.nodes[0].within(apply);
    assert_eq!(limits(), [[3_000_000, 4_000_000]; 2]);
    restore();
    set(before[0]);
}

/// News without those of devices: the kernel may tell late that a link has come up, whatever else happens meanwhile.
fn apart_from_devices(changes: Changes) -> Changes {
    Changes { node: false, uids: BTreeSet::new(), ..changes }
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn changes_are_noticed_and_followed() {
    let cluster = Cluster::new(Layout { nodes: 1, nics: &["em1"] });
    let text = config(&cluster).replace("path = \"kernel\"", "path = \"engine\"");
    let host = &cluster.nodes[0];
    host.within(|| {
        let mut control = Control::open(&text);
        let alice = control.network(ALICE, 3);
        let networks = [alice.clone()];
        control.start(&networks);
        let mut monitor = Monitor::open().unwrap();
        assert!(apart_from_devices(monitor.drain().unwrap()).is_empty());

        link::set_mtu("em1", 1400).unwrap();
        assert!(monitor.drain().unwrap().node);
        control.facts = control.netlink.node(&control.config).unwrap();
        let steps = plan::diff(&control.wanted(&networks), &control.netlink.observe().unwrap());
        assert_eq!(steps, [Step::Create(Item::Mtu { device: "uvn1234.0".into(), mtu: 1350 })]);
        control.reconcile(&control.wanted(&networks));
        assert_eq!(monitor.drain().unwrap().uids, BTreeSet::from([ALICE]));
        // What happens to an endpoint is not the node's news. Several times: em1 may have late ones of its own.
        let apart = (1340..1350).any(|mtu| {
            link::set_mtu("uvn1234.0", mtu).unwrap();
            let changes = monitor.drain().unwrap();
            assert_eq!(changes.uids, BTreeSet::from([ALICE]));
            !changes.node
        });
        assert!(apart, "an endpoint's news are taken for the node's");
        control.reconcile(&control.wanted(&networks));
        monitor.drain().unwrap();

        link::add_address("em1", "10.0.0.77".parse().unwrap(), 24).unwrap();
        assert!(monitor.drain().unwrap().node);
        control.facts = control.netlink.node(&control.config).unwrap();
        let steps = plan::diff(&control.wanted(&networks), &control.netlink.observe().unwrap());
        let text: Vec<String> = steps.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["create address 10.0.0.77/24 of uvn1234.0"]);
        control.reconcile(&control.wanted(&networks));
        monitor.drain().unwrap();

        // A router that is known by its link-local address, as from an advertisement.
        host.ip("route replace ::/0 via fe80::1 dev em1 metric 1024\n");
        assert!(monitor.drain().unwrap().node);
        control.facts = control.netlink.node(&control.config).unwrap();
        let steps = plan::diff(&control.wanted(&networks), &control.netlink.observe().unwrap());
        let text: Vec<String> = steps.iter().map(ToString::to_string).collect();
        let table = alice.table();
        assert_eq!(
            text,
            [
                format!("delete route to ::/0 in table {table}: via fd00:10::fe dev em1"),
                format!("create route to ::/0 in table {table}: via fe80::1 dev em1"),
            ]
        );
        control.reconcile(&control.wanted(&networks));
        monitor.drain().unwrap();

        // Somebody breaks it.
        let broken = Item::Route {
            table: alice.table(),
            destination: "0.0.0.0/0".parse().unwrap(),
            way: plan::Way::Unreachable,
            metric: 4_278_198_272,
        };
        control.netlink.apply(&Step::Delete(broken.clone())).unwrap();
        let changes = monitor.drain().unwrap();
        assert_eq!(changes.slots, BTreeSet::from([3]));
        let observed = control.netlink.observe_network(&alice).unwrap();
        assert_eq!(plan::diff(&control.items(&alice), &observed), [Step::Create(broken)]);

        // Or a rule: without this one the node would not know its own addresses.
        host.ip("rule del pref 1\n");
        let changes = apart_from_devices(monitor.drain().unwrap());
        assert_eq!(changes, Changes { rules: true, ..Changes::default() });
        let text: Vec<String> =
            plan::diff(&plan::node(&control.facts), &control.netlink.observe_rules().unwrap())
                .iter()
                .map(ToString::to_string)
                .collect();
        assert_eq!(text, ["create IPv4 rule 1: table local"]);
        control.reconcile(&control.wanted(&networks));
        monitor.drain().unwrap();

        // Or the packet filter.
        host.sh("nft add rule inet uvn forward accept");
        let changes = apart_from_devices(monitor.drain().unwrap());
        assert_eq!(changes, Changes { firewall: true, ..Changes::default() });
        host.sh("nft add table inet other; nft flush table inet other; nft delete table inet other");
        assert!(apart_from_devices(monitor.drain().unwrap()).is_empty(), "somebody else's");
        host.sh("nft flush ruleset");
        let changes = apart_from_devices(monitor.drain().unwrap());
        assert_eq!(changes, Changes { firewall: true, ..Changes::default() });

        // And deletes the VRF under the endpoint.
        link::delete("uvn1234").unwrap();
        assert!(monitor.drain().unwrap().uids.contains(&ALICE));
        control.reconcile(&control.wanted(&networks));
        control.purge();
    });
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn lost_notifications_are_told() {
    let host = Namespace::new("n1");
    let mut monitor = host.within(|| Monitor::open().unwrap());
    // Well beyond its buffer.
    let toggle = |number: u32| format!("link set lo mtu {}\n", 65535 + number % 2);
    host.ip(&(0..10_000).map(toggle).collect::<String>());
    assert!(host.within(|| monitor.drain().unwrap()).overflow);
    host.ip("link set lo mtu 1500\n");
    let changes = host.within(|| monitor.drain().unwrap());
    assert_eq!(changes, Changes { node: true, ..Changes::default() });
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn what_is_not_ours_is_left_alone_and_named() {
    let cluster = Cluster::new(Layout { nodes: 1, nics: &["em1"] });
    let node = &cluster.nodes[0];
    let text = config(&cluster);
    node.ip("link add uvn1234 type dummy\nlink add uvn1235 type dummy\nlink add uvn1235.0 type dummy\n");
    node.ip(&format!("route add 198.51.100.0/24 dev lo table {}\n", FIRST_TABLE + 9));
    node.within(|| {
        let control = Control::open(&text);
        let before = control.netlink.observe().unwrap();
        assert_eq!(before, plan::pristine(true), "dummies are no VRFs");
        let create = |network: &Network| control.items(network).remove(0);
        let error = control.netlink.apply(&Step::Create(create(&control.network(ALICE, 0)))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "create VRF uvn1234 (table 1966080000): File exists (os error 17): a device of this name exists and is \
             not uvn's; remove or rename it"
        );
        let error = control.netlink.apply(&Step::Create(create(&control.network(2000, 9)))).unwrap_err();
        assert!(matches!(error, NetlinkError::TableInUse { table, .. } if table == FIRST_TABLE + 9), "{error}");
        control.reconcile(&plan::pristine(true));
    });
    assert!(node.sh("ip -o link").contains("uvn1235.0"));
}
