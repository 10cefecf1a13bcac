//! Both gears of the data plane and kernel VXLAN side by side: between nodes, and on two NICs of a node. What becomes of
//! networks when a NIC or its data plane changes or fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]
#![allow(unsafe_code, reason = "a thread becomes an ordinary user; a TAP poses as InfiniBand")]

#[path = "mixed/jumbo.rs"]
mod jumbo;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use uvn_hwtests::cluster::{Layout, OUTSIDE};
use uvn_hwtests::node::Server;
use uvn_hwtests::path::{self, status};
use uvn_hwtests::reach::Answer;
use uvn_hwtests::{Cluster, Daemon, Node};

/// Two ordinary users.
const ALICE: u32 = 1234;
const BOB: u32 = 9876;
/// For what a data plane or uvnd does by itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// Nodes with a uvnd each. Daemons first: they end before their nodes.
struct Site {
    daemons: Vec<Daemon>,
    cluster: Cluster,
}

impl Site {
    /// Two nodes with these NICs; `paths[node][nic]` is the `path` of each.
    fn new(nics: &'static [&'static str], paths: [&[&str]; 2]) -> Site {
        let cluster = Cluster::new(Layout { nics, ..Layout::default() });
        let daemons = cluster.nodes.iter().zip(paths).map(|(node, paths)| {
            let mut config = cluster.config("PATH", "");
            for path in paths {
                config = config.replacen("PATH", path, 1);
            }
            node.uvnd(&config)
        });
        let daemons = daemons.collect();
        Site { daemons, cluster }
    }

    /// Alice reaches herself over every NIC and both families, and Bob does not reach her.
    fn assert_connected(&self) {
        for (here, there) in [(0, 1), (1, 0)] {
            let [here, there] = [here, there].map(|node| self.cluster.pair()[node]);
            let _server = there.serve(ALICE, &name(ALICE, there), &everywhere(5000));
            let targets = of(there, 5000);
            let answers = here.reach(ALICE, &name(ALICE, here), &targets);
            for (target, answer) in &answers {
                assert_eq!(*answer, Ok(name(ALICE, there)), "{} -> {target}", here.name());
            }
            let answers = here.try_reach(BOB, &name(BOB, here), &targets);
            assert_nobody(&answers);
        }
    }

    /// uvnd is alive and finds nothing wrong.
    fn conclude(mut self) {
        self.daemons.iter_mut().for_each(Daemon::assert_alive);
        for node in self.cluster.pair() {
            node.uvn(&["check"]);
        }
    }
}

fn name(uid: u32, node: &Node) -> String {
    format!("u{uid}@{}", node.name())
}

/// Both protocols on all addresses: `port` for IPv4, the next one for IPv6.
fn everywhere(port: u16) -> Vec<String> {
    let v6 = port + 1;
    [
        format!("tcp:0.0.0.0:{port}"),
        format!("udp:0.0.0.0:{port}"),
        format!("tcp:[::]:{v6}"),
        format!("udp:[::]:{v6}"),
    ]
    .into()
}

/// Both protocols to all addresses of a node.
fn of(node: &Node, port: u16) -> Vec<String> {
    let nics = node.nics().iter();
    let both = |at: SocketAddr| [format!("tcp:{at}"), format!("udp:{at}")];
    nics.flat_map(|nic| {
        [both(SocketAddr::new(nic.v4.into(), port)), both(SocketAddr::new(nic.v6.into(), port + 1))].concat()
    })
    .collect()
}

fn assert_nobody(answers: &BTreeMap<String, Answer>) {
    let answered: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).collect();
    assert!(answered.is_empty(), "{answered:?}");
}

/// What carries a NIC's networks, and why.
fn carrier(node: &Node, nic: &str) -> (String, String) {
    let state = status(node, nic);
    let text = |key: &str| state[key].as_str().unwrap().to_owned();
    (text("carrier"), text("reason"))
}

/// The process of a NIC's data plane.
fn engine(node: &Node, nic: &str) -> Option<i32> {
    status(node, nic)["data_plane"]["process"].as_i64().map(|pid| i32::try_from(pid).unwrap())
}

fn wait_until_running(node: &Node, nic: &str) {
    node.wait("data plane", PATIENCE, || {
        let data_plane = &status(node, nic)["data_plane"];
        data_plane["state"] == "running" && data_plane["networks"] == 2
    });
    path::wait_for_gear(node);
}

/// Runs `work` as a user on a node.
fn as_user<T: Send>(node: &Node, uid: u32, work: impl FnOnce() -> T + Send) -> T {
    node.within(|| {
        // By system call: libc's own would change every thread.
        // SAFETY: integer arguments; this thread ends with `work`.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(result, 0);
        work()
    })
}

/// Who hears a datagram that `sender` sends to `to`, of Alice and Bob at `receiver`.
fn heard(sender: &Node, receiver: &Node, to: SocketAddr, join: impl Fn(u32, &UdpSocket) + Sync) -> [bool; 2] {
    let open = |uid| {
        as_user(receiver, uid, || {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().unwrap() };
            let socket = UdpSocket::bind((any, to.port())).unwrap();
            join(uid, &socket);
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            socket
        })
    };
    let sockets = [ALICE, BOB].map(open);
    let end = Instant::now() + PATIENCE;
    let mut heard = [false; 2];
    let mine = as_user(sender, ALICE, || {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().unwrap() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket
    });
    while !heard[0] && Instant::now() < end {
        as_user(sender, ALICE, || mine.send_to(b"uvn", to)).unwrap();
        for (socket, heard) in sockets.iter().zip(&mut heard) {
            *heard |= socket.recv(&mut [0; 8]).is_ok();
        }
    }
    heard
}

/// Broadcast and multicast of a user reach his network on the other node, and nobody else.
fn assert_flooded(site: &Site) {
    let nodes = site.cluster.pair();
    for (sender, receiver) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        let broadcast = heard(sender, receiver, "10.0.0.255:7000".parse().unwrap(), |_, _| ());
        assert_eq!(broadcast, [true, false], "broadcast from {}", sender.name());
        // In a VRF, whoever sends multicast names the device: here by the address's scope.
        let group = "ff02::4242".parse().unwrap();
        let endpoint = |uid| nix::net::if_::if_nametoindex(format!("uvn{uid}.0").as_str()).unwrap();
        let join = |uid, socket: &UdpSocket| socket.join_multicast_v6(&group, endpoint(uid)).unwrap();
        let scope = sender.within(|| endpoint(ALICE));
        let multicast = heard(sender, receiver, SocketAddrV6::new(group, 7001, 0, scope).into(), join);
        assert_eq!(multicast, [true, false], "multicast from {}", sender.name());
    }
}

/// The nodes need not have the same data path.
fn unlike_nodes_talk(path: &str) {
    let others: &[&str] = if path == "shortcut" { &["engine", "kernel"] } else { &["kernel"] };
    for other in others {
        let site = Site::new(&["em1"], [&[path], &[other]]);
        site.cluster.attach(&[ALICE, BOB]);
        site.assert_connected();
        assert_flooded(&site);
        let [here, there] = site.cluster.pair();
        path::assert_used(here, path);
        path::assert_used(there, other);
        site.conclude();
    }
}

fn broadcast_stays_in_the_network(path: &str) {
    let site = Site::new(&["em1"], [&[path], &[path]]);
    site.cluster.attach(&[ALICE, BOB]);
    assert_flooded(&site);
    site.conclude();
}

/// An underlay multicast group instead of lists: nodes find each other through it.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn nodes_find_each_other_by_a_group() {
    let cluster = Cluster::two();
    let config = |path: &str| {
        let config = cluster.config(path, "").replace("port = 4789", "port = 4789\ngroup = \"239.1.1.1\"");
        let (head, _) = config.split_once("[peers]").unwrap();
        format!("{head}[peers]\nrange = [\"10.0.0.0/24\"]\n")
    };
    let daemons = cluster.nodes.iter().zip(["engine", "kernel"]).map(|(node, path)| node.uvnd(&config(path)));
    let daemons = daemons.collect();
    let site = Site { daemons, cluster };
    site.cluster.attach(&[ALICE, BOB]);
    site.assert_connected();
    assert_flooded(&site);
    site.conclude();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn two_nics_with_a_data_path_each() {
    let mut site = Site::new(&["em1", "em2"], [&["auto", "kernel"], &["engine", "engine"]]);
    let node = site.cluster.pair()[0];
    // A veth has no zero-copy: without the shortcut, kernel VXLAN is better.
    let (path, reason) = carrier(node, "em1");
    let gear = if path::has_tc_links() {
        assert_eq!((path.as_str(), reason.as_str()), ("data_plane", "Ethernet"));
        "shortcut"
    } else {
        assert_eq!(path, "kernel", "{reason}");
        assert!(reason.contains("zero-copy") && reason.contains("Linux 6.6"), "{reason}");
        "kernel"
    };
    assert_eq!(carrier(node, "em2"), ("kernel".into(), "configured: path = \"kernel\"".into()));
    site.cluster.attach(&[ALICE, BOB]);
    let device = |nic: u8| node.sh(&format!("ip -d link show uvn{ALICE}.{nic}"));
    let kind = if gear == "kernel" { " vxlan id 1234" } else { " tun type tap" };
    assert!(device(0).contains(kind), "{}", device(0));
    assert!(device(1).contains(" vxlan id 1234") && device(1).contains(" noudpcsum "), "{}", device(1));
    site.assert_connected();
    path::assert_used(node, gear);
    // Neither a reload nor a restart makes an endpoint anew to try what is known.
    let index = |node: &Node| node.sh(&format!("cat /sys/class/net/uvn{ALICE}.0/ifindex"));
    let before = index(node);
    node.uvn(&["reload"]);
    assert_eq!(index(node), before);
    drop(site.daemons.remove(0));
    let daemon = site.cluster.pair()[0].restart_uvnd();
    site.daemons.insert(0, daemon);
    assert_eq!(index(site.cluster.pair()[0]), before);
    site.conclude();
}

/// A TAP whose link type is InfiniBand's.
fn infiniband(node: &Node, name: &str) -> File {
    let tap = node.within(|| {
        let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: an ifreq of zeros is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = libc::IFF_TAP as libc::c_short | libc::IFF_NO_PI as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &mut request) }, 0);
        let infiniband: libc::c_ulong = 32;
        // SAFETY: TUNSETLINK takes a number.
        assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETLINK, infiniband) }, 0);
        tap
    });
    node.ip(&format!("link set {name} mtu 2044 up\naddr add 10.9.0.1/24 dev {name}\n"));
    tap
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn ipoib_gets_kernel_vxlan() {
    let cluster = Cluster::two();
    let node = &cluster.nodes[0];
    let _ib0 = infiniband(node, "ib0");
    let underlay = "[[underlay]]\nnic = \"ib0\"\nsubnets = [\"10.9.0.0/24\"]\nport = 4790\n[peers]";
    let mut daemon = node.uvnd(&cluster.config("auto", "").replace("[peers]", underlay));
    assert_eq!(carrier(node, "ib0"), ("kernel".into(), "InfiniBand: no AF_XDP on IPoIB".into()));
    node.uvn(&["attach", &ALICE.to_string()]);
    let device = node.sh(&format!("ip -d link show uvn{ALICE}.1"));
    assert!(
        device.contains("vxlan id 1234 local 10.9.0.1 dev ib0") && device.contains("mtu 1994"),
        "{device}"
    );
    daemon.assert_alive();
    node.uvn(&["check"]);
}

/// Without its data plane a network carries nothing, by whatever way; when it is back, all is as before.
fn a_killed_data_plane_cuts_off_and_comes_back(path: &str) {
    let site = Site::new(&["em1"], [&[path], &[path]]);
    site.cluster.attach(&[ALICE, BOB]);
    let [here, there] = site.cluster.pair();
    site.assert_connected();
    let server = there.serve(ALICE, &name(ALICE, there), &everywhere(5000));
    // Hosts without uvn would hear what leaves the network.
    let (storage4, _) = site.cluster.storage_address();
    let storage = Server::start(&site.cluster.storage, 0, "storage", &everywhere(5000));
    // Nobody starts another one meanwhile.
    site.daemons[0].signal(Signal::SIGSTOP);
    let killed = dataplane(here);
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    here.wait("end of the data plane", PATIENCE, || has_ended(killed));
    let targets =
        [of(there, 5000), vec![format!("tcp:{storage4}:5000"), format!("udp:{storage4}:5000")]].concat();
    assert_nobody(&here.try_reach(ALICE, &name(ALICE, here), &targets));
    assert!(storage.seen().is_empty(), "{:?}", storage.seen());
    site.daemons[0].signal(Signal::SIGCONT);
    wait_until_running(here, "em1");
    let own = name(ALICE, here);
    for (target, answer) in here.reach(ALICE, &own, &of(there, 5000)) {
        assert_eq!(answer, Ok(name(ALICE, there)), "{target}");
    }
    // Under traffic, and with uvnd there: it is back within seconds.
    for _ in 0..3 {
        let before = engine(here, "em1").unwrap();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        here.wait("another data plane", PATIENCE, || {
            engine(here, "em1").is_some_and(|process| process != before)
        });
        wait_until_running(here, "em1");
    }
    drop((storage, server));
    site.assert_connected();
    path::assert_used(here, path);
    site.conclude();
}

/// The only data plane of a node, while uvnd cannot be asked.
fn dataplane(node: &Node) -> i32 {
    let is_it = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "uvn-dataplane")
    };
    node.processes().into_iter().find(is_it).expect("a data plane")
}

/// Whether all its threads have ended, whoever knows of that by now: what they had open goes with the last.
fn has_ended(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().count();
    threads <= 1 && (stat.is_empty() || stat.contains(") Z "))
}

fn a_nic_goes_down_and_comes_back(path: &str) {
    let site = Site::new(&["em1"], [&[path], &[path]]);
    site.cluster.attach(&[ALICE, BOB]);
    let [here, there] = site.cluster.pair();
    site.assert_connected();
    here.ip("link set em1 down");
    let server = there.serve(ALICE, &name(ALICE, there), &everywhere(5000));
    assert_nobody(&here.try_reach(ALICE, &name(ALICE, here), &of(there, 5000)));
    drop(server);
    // The kernel forgets IPv6 addresses and routes; the site's network configuration brings them back.
    let nic = &here.nics()[0];
    here.ip(&format!(
        "link set em1 up\naddr add {}/64 dev em1 nodad\nroute replace default via 10.0.0.254\n\
         route replace default via fd00:10::fe\n",
        nic.v6
    ));
    if path != "kernel" {
        wait_until_running(here, "em1");
    }
    here.wait("networks as they should be", PATIENCE, || here.try_uvn(&["check"]).status.success());
    site.assert_connected();
    path::assert_used(here, path);
    site.conclude();
}

fn mtu_and_address_are_followed(path: &str) {
    let site = Site::new(&["em1"], [&[path], &[path]]);
    site.cluster.attach(&[ALICE, BOB]);
    let [here, there] = site.cluster.pair();
    let endpoint = format!("uvn{ALICE}.0");
    for node in [here, there] {
        node.ip("link set em1 mtu 1500");
        node.wait("smaller endpoint", PATIENCE, || {
            node.sh(&format!("ip link show {endpoint}")).contains("mtu 1450")
        });
    }
    site.assert_connected();

    here.ip(
        "addr add 10.0.0.77/24 dev em1\naddr del 10.0.0.1/24 dev em1\naddr replace 10.0.0.77/24 dev em1\n",
    );
    here.ip("route replace default via 10.0.0.254");
    for node in [here, there] {
        let hosts = node.read("/etc/hosts").unwrap();
        node.write("/etc/hosts", &hosts.replace("10.0.0.1 ", "10.0.0.77 "));
        node.uvn(&["reload"]);
    }
    here.wait("endpoint with the new address", PATIENCE, || {
        let shown = here.sh(&format!("ip -4 addr show dev {endpoint}"));
        shown.contains("10.0.0.77/24") && !shown.contains("10.0.0.1/")
    });
    if path != "kernel" {
        wait_until_running(here, "em1");
    }
    let server = here.serve(ALICE, &name(ALICE, here), &everywhere(5000));
    let targets = ["tcp:10.0.0.77:5000", "udp:10.0.0.77:5000", "tcp:[fd00:10::1]:5001"].map(String::from);
    // The users' kernels believe a neighbour for up to 45 s (neigh_rand_reach_time), and then ask for some more.
    there.wait("answer from the new address", Duration::from_secs(90), || {
        let answers = there.try_reach(ALICE, &name(ALICE, there), &targets);
        answers.values().all(|answer| *answer == Ok(name(ALICE, here)))
    });
    drop(server);
    site.conclude();
}

/// To kernel VXLAN and back, by a reload each: nobody is without a network beyond that.
fn a_nic_changes_its_data_path(path: &str) {
    let site = Site::new(&["em1"], [&[path], &[path]]);
    site.cluster.attach(&[ALICE, BOB]);
    let [here, there] = site.cluster.pair();
    site.assert_connected();
    for (to, carrier) in [("kernel", "kernel"), (path, "data_plane")] {
        here.write("/etc/uvn/uvn.toml", &site.cluster.config(to, ""));
        here.uvn(&["reload"]);
        assert_eq!(status(here, "em1")["carrier"], carrier);
        let said = here.uvn(&["status"]);
        assert!(!said.contains("UVN-NETWORK-FAULT"), "{to}: {said}");
        if to != "kernel" {
            wait_until_running(here, "em1");
        }
        // What the other node's kernel has learned of this one's endpoints is learned anew.
        there.wait("answers", PATIENCE, || {
            let _server = here.serve(ALICE, &name(ALICE, here), &everywhere(5000));
            let answers = there.try_reach(ALICE, &name(ALICE, there), &of(here, 5000));
            answers.values().all(|answer| *answer == Ok(name(ALICE, here)))
        });
        site.assert_connected();
    }
    path::assert_used(here, path);
    let log = site.daemons[0].log();
    assert!(!log.contains("Address already in use"), "{log}");
    site.conclude();
}

/// The default route is of a NIC that carries no networks.
fn the_way_out_is_another_nic(path: &str) {
    let cluster = Cluster::new(Layout { nics: &["em1", "em2"], ..Layout::default() });
    let config = cluster.config(path, "");
    let (first, rest) = config.split_once("[[underlay]]\nnic = \"em2\"").expect("two NICs");
    let (_, peers) = rest.split_once("[peers]").expect("peers");
    let config = format!("{first}[peers]{}", peers.replace(", \"n[1-2]-1\"", ""));
    let daemons: Vec<Daemon> = cluster
        .nodes
        .iter()
        .map(|node| {
            node.ip("route replace default via 10.0.1.254\nroute replace default via fd00:10:0:1::fe\n");
            node.uvnd(&config)
        })
        .collect();
    let site = Site { daemons, cluster };
    for (node, uid) in site.cluster.pair().into_iter().flat_map(|node| [(node, ALICE), (node, BOB)]) {
        node.uvn(&["attach", &uid.to_string()]);
    }
    let outside = [OUTSIDE.0.into(), OUTSIDE.1.into()].map(|host: IpAddr| SocketAddr::new(host, 5000));
    let targets: Vec<String> =
        outside.iter().flat_map(|at| [format!("tcp:{at}"), format!("udp:{at}")]).collect();
    let _server = Server::start(&site.cluster.outside, 0, "outside", &targets);
    for node in site.cluster.pair() {
        for uid in [ALICE, BOB, 0] {
            for (target, answer) in node.reach(uid, &name(uid, node), &targets) {
                assert_eq!(answer, Ok("outside".into()), "{uid} -> {target}");
            }
        }
        for at in outside {
            let found: IpAddr = node.probe(ALICE, &["own-address", &at.to_string()]).parse().unwrap();
            // Where the user is reached.
            let own = &node.nics()[0];
            assert!([IpAddr::from(own.v4), own.v6.into()].contains(&found), "{found} on the way to {at}");
        }
    }
    site.conclude();
}

uvn_hwtests::with_paths!([engine, shortcut] {
    unlike_nodes_talk, a_nic_changes_its_data_path, a_killed_data_plane_cuts_off_and_comes_back, broadcast_stays_in_the_network,
    a_nic_goes_down_and_comes_back, mtu_and_address_are_followed,
});
uvn_hwtests::with_paths!([kernel] {
    the_way_out_is_another_nic,
    broadcast_stays_in_the_network, a_nic_goes_down_and_comes_back, mtu_and_address_are_followed,
});
