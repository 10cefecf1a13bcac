use super::*;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use uvn_api::protocol::{Code, Failure, SCHEMA, answer_packet, parse_request};
use uvn_api::seqpacket;
use uvn_api::uvnd::message::{Outcome, Reply, Request};

/// A node of its own, with an `uvnd` that takes connections; it goes with the folder.
struct Node {
    host: Host,
    folder: PathBuf,
    listener: OwnedFd,
}

/// Long enough that nothing here comes to its end, but what must.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const ALICE: Session<'_> = Session { user: "alice", uid: 1000, pid: 7 };

impl Node {
    fn new(name: &str) -> Node {
        let folder = std::env::temp_dir().join(format!("uvn-pam-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let at = |name: &str| folder.join(name);
        let host = Host { socket: at("sock"), file: at("uvn.toml"), last: at("last.toml"), pins: at("pins") };
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&host.socket).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        Node { host, folder, listener }
    }

    /// One in whose configuration this stands.
    fn with(name: &str, config: &str) -> Node {
        let node = Node::new(name);
        fs::write(&node.host.file, config).unwrap();
        node
    }

    /// Answers one request so, and returns it.
    fn answers(&self, packet: Vec<u8>) -> thread::JoinHandle<Request> {
        let listener = self.listener.try_clone().unwrap();
        thread::spawn(move || {
            let taken = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
            #[allow(unsafe_code, reason = "nix's accept4 returns a number")]
            // SAFETY: it has just been opened, and nobody else knows of it.
            let peer = unsafe { OwnedFd::from_raw_fd(taken) };
            let mut buffer = vec![0; 4096];
            let length = seqpacket::receive(peer.as_fd(), &mut buffer, true).unwrap().length;
            seqpacket::send(peer.as_fd(), &packet, &[], true).unwrap();
            parse_request(&buffer[..length]).unwrap()
        })
    }

    fn open(&self, uid: u32, patience: Duration) -> Opened {
        Session { uid, ..ALICE }.open(&self.host, patience)
    }

    /// Nobody listens any more; the socket's file is left, as that of an `uvnd` that was killed.
    fn crash(&self) {
        nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _already_gone = fs::remove_dir_all(&self.folder);
    }
}

fn refused(opened: Opened, why: &str) {
    let Opened::Refused(words) = opened else { unreachable!("{opened:?}") };
    assert!(words.contains("no network for alice on this node") && words.contains(why), "{words}");
    assert!(words.contains("tell the administrators"), "{words}");
}

#[test]
fn a_policed_user_is_attached_by_the_process_of_the_session() {
    let node = Node::new("attached");
    let reply = Reply::<()>::Attached { outcome: Outcome::Made, steps: vec![] };
    let uvnd = node.answers(answer_packet(Ok(reply), SCHEMA));
    assert_eq!(node.open(1000, LONG), Opened::Inside);
    let claim = Claim::Session { pid: 7 };
    assert_eq!(uvnd.join().unwrap(), Request::Attach { uid: 1000, claim, dry_run: false });
}

#[test]
fn an_uvnd_that_hangs_costs_no_more_than_the_time_out() {
    let node = Node::new("hangs");
    refused(node.open(1000, SHORT), "no answer within 0.2 s");
}

#[test]
fn the_reason_of_uvnd_is_told() {
    let node = Node::new("reason");
    let failure = Failure::new(Code::Failed, "all 1022 networks are in use");
    let uvnd = node.answers(answer_packet::<Reply<()>>(Err(failure), SCHEMA));
    refused(node.open(1000, LONG), "all 1022 networks are in use");
    uvnd.join().unwrap();
}

#[test]
fn an_answer_that_is_none_refuses() {
    let pong = answer_packet(Ok(Reply::<()>::Pong), SCHEMA);
    for (name, answer) in [("garbage", vec![0xff; 40]), ("empty", b"{}".to_vec()), ("pong", pong)] {
        let node = Node::new(name);
        let uvnd = node.answers(answer);
        refused(node.open(1000, LONG), "");
        uvnd.join().unwrap();
    }
}

#[test]
fn who_is_not_policed_gets_in_whatever_is_broken() {
    // uvnd hangs, and would hold them up for a minute.
    let node = Node::with("unpoliced", "policed = [\"1000-1999\"]\nexempt = [1001]\nnonsense = 3\n");
    for uid in [0, 999, 1001, 2000] {
        assert_eq!(node.open(uid, LONG), Opened::Inside, "{uid}");
    }
    refused(node.open(1002, SHORT), "no answer");
    node.crash();
    assert_eq!(node.open(999, LONG), Opened::Inside);
    refused(node.open(1000, LONG), "systemctl start uvnd");
}

#[test]
fn a_broken_file_leaves_the_last_one_in_force() {
    let node = Node::with("last", "policed = [\n");
    fs::write(&node.host.last, "policed = [\"2000-2999\"]\nattachment = \"optional\"\n").unwrap();
    node.crash();
    assert_eq!(node.open(1000, LONG), Opened::Inside);
    assert!(
        matches!(node.open(2000, LONG), Opened::Without(words) if words.contains("no network for alice"))
    );
    // Nothing tells: the defaults do.
    fs::remove_file(&node.host.last).unwrap();
    assert_eq!(node.open(0, LONG), Opened::Inside);
    assert_eq!(node.open(999, LONG), Opened::Inside);
    refused(node.open(1000, LONG), "");
}

#[test]
fn administrators_get_in_without_a_network() {
    // The user database has both users, each in the group of the same name.
    let node = Node::with("admins", "policed = [\"1-2\"]\nadmins = [\"no-such-group\", \"daemon\"]\n");
    node.crash();
    assert!(matches!(node.open(1, LONG), Opened::Without(words) if words.contains("no network")));
    refused(node.open(2, LONG), "systemctl start uvnd");
}

#[test]
fn an_uvn_that_observes_keeps_nobody_out() {
    let node = Node::with("observes", "mode = \"observe\"\n");
    assert_eq!(node.open(1000, SHORT), Opened::Inside);
    node.crash();
    assert_eq!(node.open(1000, LONG), Opened::Inside);
}

#[test]
fn only_where_nothing_of_uvn_is_it_is_not_set_up() {
    let node = Node::new("purged");
    let Host { socket, file, last, pins } = &node.host;
    fs::remove_file(socket).unwrap();
    assert_eq!(node.open(1000, LONG), Opened::Inside);
    for sign in [file, last, pins] {
        fs::write(sign, "").unwrap();
        refused(node.open(1000, LONG), "systemctl start uvnd");
        fs::remove_file(sign).unwrap();
    }
    // What it points to may be on a file system that is not mounted yet.
    std::os::unix::fs::symlink("/nowhere/uvn.toml", file).unwrap();
    refused(node.open(1000, LONG), "systemctl start uvnd");
}

#[test]
fn a_session_that_closes_ends_its_claim_and_never_fails() {
    let node = Node::new("closes");
    let uvnd = node.answers(answer_packet(Ok(Reply::<()>::Detached { leases: 0, steps: vec![] }), SCHEMA));
    ALICE.close(&node.host, LONG);
    let Request::Detach { uid: 1000, what: uvn_api::uvnd::message::Release::Claim(claim), .. } =
        uvnd.join().unwrap()
    else {
        unreachable!("not a detach of hers")
    };
    assert_eq!(claim, Claim::Session { pid: 7 });
    ALICE.close(&node.host, SHORT);
    node.crash();
    ALICE.close(&node.host, LONG);
}

#[test]
fn options_are_those_that_are_documented() {
    let parse = |words: &[&str]| Options::parse(words.iter().map(|word| (*word).to_owned()));
    assert_eq!(parse(&[]), Options { patience: Duration::from_secs(10), unknown: vec![] });
    assert_eq!(parse(&["timeout_s=5"]).patience, Duration::from_secs(5));
    for wrong in ["timeout_s=0", "timeout_s=61", "timeout_s=", "stdout", "required"] {
        let options = parse(&[wrong]);
        assert_eq!(options.patience, PATIENCE);
        assert!(options.unknown.concat().contains(&format!("{wrong:?}")), "{options:?}");
    }
}
