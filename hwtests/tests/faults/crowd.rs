//! Many at once, and more than there is room for.

use super::*;
use std::path::Path;
use uvn_api::uvnd::client::{Client, ClientError};
use uvn_api::uvnd::message::{Claim, Outcome, Release, Request};
use uvn_api::uvnd::status::Reply;

/// Asks uvnd of a node, as `uvn` does.
fn ask(node: &Node, request: &Request) -> Result<Reply, ClientError> {
    // In an emulated machine a hundred attaches take their time.
    node.within(|| Client::within(uvn_api::uvnd::message::socket(), Duration::from_secs(600))?.ask(request))
}

fn attach_as_session(node: &Node, uid: u32, pid: i32) -> Result<Outcome, ClientError> {
    match ask(node, &Request::Attach { uid, claim: Claim::Session { pid }, dry_run: false })? {
        Reply::Attached { outcome, .. } => Ok(outcome),
        other => panic!("{other:?}"),
    }
}

/// Does it for every item at once, and returns what came of each.
fn at_once<I: Send, T: Send>(items: impl IntoIterator<Item = I>, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn two_attaches_at_once_for_one_user() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    for _ in 0..5 {
        let holders = [Sleeper::start(node, 0), Sleeper::start(node, 0)];
        let pids = holders.each_ref().map(|holder| holder.0.id().cast_signed());
        let mut outcomes = at_once(pids, |pid| attach_as_session(node, ALICE, pid).unwrap());
        outcomes.sort_by_key(|outcome| *outcome == Outcome::Made);
        assert_eq!(outcomes, [Outcome::Known, Outcome::Made]);
        assert_eq!(network(node, ALICE)["leases"].as_array().unwrap().len(), 2);
        drop(holders);
        node.wait("end of the network", PATIENCE, || network(node, ALICE).is_null());
        assert!(devices(node).is_empty());
    }
    approve(node);
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_hundred_users_at_once() {
    // With the data plane, each network is a request more: a few users show that the order holds.
    for (path, crowd) in [("kernel", 100), ("engine", 20)] {
        let cluster = alone();
        let node = &cluster.nodes[0];
        let mut daemon = node.uvnd(&cluster.config(path, ""));
        let users = 2000..2000 + crowd;
        let manual = |uid| Request::Attach { uid, claim: Claim::Manual, dry_run: false };
        for answer in at_once(users.clone(), |uid| ask(node, &manual(uid))) {
            assert!(matches!(answer, Ok(Reply::Attached { outcome: Outcome::Made, .. })), "{answer:?}");
        }
        assert_eq!(count(node), crowd as usize);
        approve(node);
        // Half of them go while the others ask again.
        let half = at_once(users.clone(), |uid| match uid % 2 {
            0 => ask(node, &Request::Detach { uid, what: Release::All, dry_run: false }),
            _ => ask(node, &manual(uid)),
        });
        assert!(half.iter().all(Result::is_ok), "{half:?}");
        assert_eq!((count(node), devices(node).len()), (crowd as usize / 2, crowd as usize));
        for uid in users.filter(|uid| uid % 2 == 1) {
            ask(node, &Request::Detach { uid, what: Release::Claim(Claim::Manual), dry_run: false }).unwrap();
        }
        // An emulated machine with a busy host takes a second for each.
        node.wait("end of all networks", 5 * PATIENCE, || count(node) == 0);
        assert!(devices(node).is_empty());
        approve(node);
        daemon.assert_alive();
    }
}

/// A user goes, and his account with him, while he is being attached again and again.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_user_is_removed_in_between() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    uvn_hwtests::node::add_user(ALICE);
    node.uvn(&["attach", &format!("u{ALICE}")]);
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let without: String =
        passwd.lines().filter(|line| !line.starts_with("u1234:")).map(|line| format!("{line}\n")).collect();
    std::fs::write("/etc/passwd", without).unwrap();
    approve(node);
    assert_eq!(network(node, ALICE)["uid"], ALICE);
    let turns = at_once(0..8, |client| {
        for _ in 0..5 {
            let request = match client % 2 {
                0 => Request::Attach { uid: ALICE, claim: Claim::Manual, dry_run: false },
                _ => Request::Detach { uid: ALICE, what: Release::All, dry_run: false },
            };
            match ask(node, &request) {
                Ok(_) => {}
                // He is gone already.
                Err(ClientError::Refused(failure)) if client % 2 == 1 => {
                    assert!(failure.message.contains("no such"), "{failure}")
                }
                Err(error) => panic!("{request:?}: {error}"),
            }
        }
    });
    assert_eq!(turns.len(), 8);
    approve(node);
    let _gone_already = ask(node, &Request::Detach { uid: ALICE, what: Release::All, dry_run: false });
    assert!(network(node, ALICE).is_null() && devices(node).is_empty());
    approve(node);
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn the_nat_pool_is_exhausted() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let config = cluster.config("kernel", "") + "[nat]\nipv4 = \"100.64.0.0/29\"\n";
    let mut daemon = node.uvnd(&config);
    (0..6).for_each(|user| attach(node, ALICE + user));
    let refused = node.try_uvn(&["attach", "5000"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("[nat]"), "{}", said(&refused));
    assert_eq!((count(node), devices(node).len()), (6, 12));
    approve(node);
    node.uvn(&["detach", "--all", &ALICE.to_string()]);
    attach(node, 5000);
    approve(node);
    daemon.assert_alive();
}

/// A user may ask for his own state, and nothing else; whoever breaks the protocol loses his connection, nobody else his.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn users_ask_uvnd() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    [ALICE, BOB].into_iter().for_each(|uid| attach(node, uid));
    let as_alice = |request: &Request| {
        as_user(node, ALICE, || Client::connect(Path::new(uvn_api::uvnd::message::SOCKET))?.ask(request))
    };
    let Ok(Reply::Networks { networks, .. }) = as_alice(&Request::List { from: 0 }) else {
        panic!("no list")
    };
    assert_eq!(networks.iter().map(|network| network.uid).collect::<Vec<_>>(), [ALICE]);
    for request in [
        Request::Status,
        Request::Stop,
        Request::Reload { dry_run: true, force: false },
        Request::Attach { uid: ALICE, claim: Claim::Manual, dry_run: false },
        Request::Detach { uid: BOB, what: Release::All, dry_run: false },
    ] {
        let refused = as_alice(&request).unwrap_err().to_string();
        assert!(refused.contains("only root"), "{request:?}: {refused}");
    }
    // More connections than he may have, with rubbish on each.
    let sockets = as_user(node, ALICE, || {
        let connect = |_| {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, send, socket};
            use std::os::fd::AsRawFd;
            let socket =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            connect(socket.as_raw_fd(), &UnixAddr::new(uvn_api::uvnd::message::SOCKET).unwrap()).unwrap();
            let _dropped = send(socket.as_raw_fd(), &[0xff; 4000], nix::sys::socket::MsgFlags::MSG_NOSIGNAL);
            socket
        };
        (0..300).map(connect).collect::<Vec<_>>()
    });
    assert!(matches!(ask(node, &Request::Ping), Ok(Reply::Pong)));
    drop(sockets);
    approve(node);
    daemon.assert_alive();
}

/// A user who connects and closes in a loop, with as many processes as he likes, until root has been served.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn a_flood_of_connections_does_not_hold_up_root() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;

    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    let (served, dials) = (AtomicBool::new(false), AtomicU64::new(0));
    let flood = || {
        let address = UnixAddr::new(uvn_api::uvnd::message::SOCKET).unwrap();
        while !served.load(Ordering::Relaxed) {
            let dial =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            if connect(dial.as_raw_fd(), &address).is_ok() {
                dials.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| as_user(node, ALICE, flood))));
        node.wait("the flood", PATIENCE, || dials.load(Ordering::Relaxed) > 1000);
        let before = dials.load(Ordering::Relaxed);
        let outcome = attach_as_session(node, BOB, std::process::id().cast_signed());
        let listed = ask(node, &Request::List { from: 0 });
        served.store(true, Ordering::Relaxed);
        assert!(matches!(outcome, Ok(Outcome::Made)), "{outcome:?}");
        assert!(matches!(listed, Ok(Reply::Networks { .. })), "{listed:?}");
        assert!(dials.load(Ordering::Relaxed) > before, "the flood went on meanwhile");
    });
    approve(node);
    daemon.assert_alive();
}

/// One user's flows off-subnet leave room in the connection tracker, which is the node's: for root, for who comes to the
/// node, and for other users.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn one_users_flows_leave_room_for_others() {
    const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let cluster = alone();
    let node = &cluster.nodes[0];
    node.sh("modprobe nf_conntrack");
    // The machine's, for all namespaces.
    let before = std::fs::read_to_string(LIMIT).unwrap();
    std::fs::write(LIMIT, "1024").unwrap();
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    [ALICE, BOB].into_iter().for_each(|uid| attach(node, uid));
    let warned = node.uvn(&["check"]);
    assert!(warned.contains("net.netfilter.nf_conntrack_max is 1024"), "{warned}");
    let service = |port| [format!("tcp:0.0.0.0:{port}")];
    let _servers = [
        Server::start(&cluster.outside, 0, "outside", &service(5001)),
        Server::start(&cluster.storage, 0, "storage", &service(5001)),
        node.serve(0, "root", &service(7000)),
    ];
    let _reflector = Server::probe(&cluster.outside, 0, &["listen", "reflect", "outside"]);
    // Answered and used again, so that the tracker makes no room at their expense.
    for _ in 0..3 {
        as_user(node, BOB, || {
            let open = || UdpSocket::bind("0.0.0.0:0").unwrap();
            let sockets: Vec<UdpSocket> = (0..500).map(|_| open()).collect();
            for _ in 0..3 {
                for socket in &sockets {
                    let _refused = socket.send_to(b"mine", (OUTSIDE.0, PORT));
                }
                thread::sleep(Duration::from_millis(1500));
            }
        });
    }
    let flows = node.sh("grep -c ASSURED /proc/net/nf_conntrack");
    assert!(flows.trim().parse::<u32>().unwrap() > 256, "they do not stay: {flows}");
    let reached =
        |uid, target: String| node.reach(uid, "me", std::slice::from_ref(&target)).remove(&target).unwrap();
    assert_eq!(reached(0, format!("tcp:{}:5001", cluster.storage_address().0)).as_deref(), Ok("storage"));
    assert_eq!(reached(ALICE, format!("tcp:{}:5001", OUTSIDE.0)).as_deref(), Ok("outside"));
    let here = SocketAddr::new(node.addresses()[0], 7000);
    cluster.storage.within(|| TcpStream::connect_timeout(&here, PATIENCE).map(drop)).unwrap();
    let dropped = node.sh("nft list chain inet uvn flows");
    assert!(!dropped.contains("packets 0 "), "none was too many: {dropped}");
    std::fs::write(LIMIT, before.trim()).unwrap();
    daemon.assert_alive();
}

/// Has a node's NIC in a subnet of 65,536 addresses, of which it has the same as before.
fn widen(node: &Node) {
    let address = node.nics()[0].v4;
    node.ip(&format!(
        "addr del {address}/24 dev em1\naddr add {address}/16 dev em1\nroute add default via 10.0.0.254"
    ));
}

/// One user tries all addresses of the subnet, again and again, with as many sockets as he likes. Others find their nodes,
/// known and new ones, root finds his hosts and is answered, and the kernel has room for all.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn one_users_scan_of_the_subnet_cuts_off_nobody() {
    let cluster = Cluster::new(Layout { nodes: 3, ..Layout::default() });
    cluster.nodes.iter().for_each(widen);
    let listed = cluster.config("auto", "");
    let (underlays, _) = listed.split_once("[peers]").unwrap();
    let config = underlays.replace("10.0.0.0/24", "10.0.0.0/16") + "[peers]\nrange = [\"10.0.0.0/16\"]\n";
    let mut daemons: Vec<Daemon> = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
    cluster.attach(&[ALICE, BOB]);
    let [here, known, new] = &cluster.nodes[..] else { panic!("three nodes") };
    let service = ["tcp:0.0.0.0:5000".to_owned()];
    let _servers = [known, new].map(|node| node.serve(ALICE, node.name(), &service));
    let _storage = Server::start(&cluster.storage, 0, "storage", &service);
    let at = |address: IpAddr| format!("tcp:{address}:5000");
    let answer = |uid, target: String| {
        here.reach(uid, "me", std::slice::from_ref(&target)).remove(&target).unwrap().unwrap()
    };
    let engine = || {
        let status: Value = serde_json::from_str(&here.uvn(&["status", "--json"])).unwrap();
        status["nics"][0]["data_plane"]["process"].as_i64().unwrap()
    };
    let overflows = || here.sh("dmesg | grep -c 'neighbor table overflow' || true");
    assert_eq!(answer(ALICE, at(known.addresses()[0])), "n2");
    let before = (engine(), overflows());
    let (done, tried) = (AtomicBool::new(false), AtomicU64::new(0));
    let scan = || {
        for first in (0x0a00_1000_u32..0x0a00_f000).step_by(64).cycle() {
            // What waits for a neighbour counts against its socket.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            for address in first..first + 64 {
                let _unreachable = socket.send_to(b"x", (std::net::Ipv4Addr::from(address), 9));
                tried.fetch_add(1, Ordering::Relaxed);
            }
            if done.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| as_user(here, BOB, scan));
        let _end = End(&done);
        here.wait("a scan", PATIENCE, || tried.load(Ordering::Relaxed) > 0xe000);
        assert_eq!(answer(ALICE, at(known.addresses()[0])), "n2");
        assert_eq!(answer(ALICE, at(new.addresses()[0])), "n3", "first contact");
        here.sh("ip neigh flush dev em1 to 10.0.0.200");
        assert_eq!(answer(0, at(cluster.storage_address().0)), "storage");
        attach(here, 4321);
        assert_eq!((engine(), overflows()), before);
    });
    here.uvn(&["detach", "--all", "4321"]);
    approve(here);
    daemons.iter_mut().for_each(Daemon::assert_alive);
}

/// Ends a flood, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
