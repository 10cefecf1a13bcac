use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

const PATIENCE: Duration = Duration::from_secs(60);

fn list(nodes: &[&str]) -> PeerList {
    PeerList { nodes: nodes.iter().map(ToString::to_string).collect(), ..PeerList::default() }
}

fn nodes(directory: &Directory) -> Vec<String> {
    directory.peers().nodes.iter().map(|node| node[0].to_string()).collect()
}

/// A file of its own, and a DNS that is up or not: `m1.test` is 10.7.0.1, and so on; `none.test` is nobody.
struct Dns {
    folder: PathBuf,
    up: Arc<AtomicBool>,
}

impl Dns {
    fn new(name: &str, up: bool) -> Dns {
        let folder = std::env::temp_dir().join(format!("uvn-directory-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Dns { folder, up: Arc::new(AtomicBool::new(up)) }
    }

    fn directory(&self) -> Directory {
        let up = Arc::clone(&self.up);
        let mut directory = Directory::new(&self.folder.join("peers.json"));
        directory.resolver = Arc::new(move |name| {
            let number = name.strip_prefix('m').and_then(|name| name.strip_suffix(".test"));
            let number = number.and_then(|number| number.parse().ok()).filter(|_| up.load(Ordering::Relaxed));
            number.map(|number| [10, 7, 0, number].into()).into_iter().collect()
        });
        directory
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn what_has_no_answer_is_nobody_and_is_asked_again() {
    let dns = Dns::new("again", false);
    let mut directory = dns.directory();
    directory.follow(&list(&["m[1-2].test", "10.7.0.77"])).unwrap();
    directory.wait(PATIENCE);
    assert_eq!(nodes(&directory), ["10.7.0.77"]);
    assert_eq!(directory.peers().unresolved, ["m1.test", "m2.test"]);
    dns.up.store(true, Ordering::Relaxed);
    directory.turn(Instant::now());
    assert!(directory.asking.is_none(), "not before its time");
    directory.turn(Instant::now() + AGAIN);
    directory.wait(PATIENCE);
    assert_eq!(nodes(&directory), ["10.7.0.1", "10.7.0.2", "10.7.0.77"]);
    assert!(directory.peers().unresolved.is_empty());
    directory.turn(Instant::now() + 10 * AGAIN);
    assert!(directory.asking.is_none(), "all have answered");
}

#[test]
fn what_had_an_answer_keeps_it_while_it_is_listed() {
    let dns = Dns::new("keeps", true);
    let mut directory = dns.directory();
    directory.follow(&list(&["m[1-2].test"])).unwrap();
    directory.wait(PATIENCE);
    directory.save().unwrap();
    dns.up.store(false, Ordering::Relaxed);
    let mut next = dns.directory();
    for directory in [&mut directory, &mut next] {
        directory.follow(&list(&["m[1-3].test"])).unwrap();
        directory.wait(PATIENCE);
        assert_eq!(nodes(directory), ["10.7.0.1", "10.7.0.2"]);
        assert_eq!(directory.peers().unresolved, ["m1.test", "m2.test", "m3.test"]);
        directory.follow(&list(&["m2.test"])).unwrap();
        assert_eq!(nodes(directory), ["10.7.0.2"]);
    }
}

#[test]
fn a_resolver_that_hangs_holds_up_nobody() {
    let dns = Dns::new("hangs", true);
    let mut directory = dns.directory();
    let (hold, held) = channel::<()>();
    let (held, answers) = (Mutex::new(held), Arc::clone(&directory.resolver));
    directory.resolver = Arc::new(move |name| {
        if name == "none.test" {
            let _released = held.lock().unwrap().recv();
        }
        answers(name)
    });
    directory.follow(&list(&["none.test", "m[1-20].test"])).unwrap();
    let end = Instant::now() + PATIENCE;
    while nodes(&directory).len() < 20 {
        assert!(Instant::now() < end, "{directory:?}");
        std::thread::sleep(Duration::from_millis(5));
        directory.turn(Instant::now());
    }
    assert_eq!(directory.peers().unresolved, ["none.test"]);
    drop(hold);
    directory.wait(PATIENCE);
    assert!(directory.asking.is_none());
}

#[test]
fn those_that_were_not_asked_are_the_next() {
    let dns = Dns::new("next", false);
    let mut directory = dns.directory();
    directory.names = ["a", "b", "c"].map(String::from).into();
    directory.open = directory.names.clone().into();
    directory.learn(("a".into(), Vec::new()));
    assert_eq!(directory.open, ["b", "c", "a"]);
    directory.learn(("b".into(), vec![[127, 0, 1, 1].into()]));
    assert_eq!(directory.open, ["c", "a", "b"], "loopback is no answer");
    directory.learn(("c".into(), vec![[127, 0, 1, 1].into(), [10, 7, 0, 3].into(), [10, 7, 0, 3].into()]));
    assert_eq!(directory.known["c"], [IpAddr::from([10, 7, 0, 3])]);
}

#[test]
fn hosts_of_the_file_by_any_case() {
    let hosts = "127.0.1.1 node4\n10.0.0.1 Node1 node1.site # node9\nfd00::1 node1\nwrong node2\n";
    let hosts = parse_hosts(hosts);
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    assert_eq!(hosts["node1"], ips(&["10.0.0.1", "fd00::1"]));
    assert_eq!(hosts["node1.site"], ips(&["10.0.0.1"]));
    assert!(!hosts.contains_key("node2") && !hosts.contains_key("node9"));
}
