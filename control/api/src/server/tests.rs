use super::*;
use crate::dataplane::client::Client;
use crate::dataplane::message::{MAX_FDS, Reply, Request};
use mio::{Events, Poll};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMITS: Limits = Limits { everyone: false, connections: 64, fds: MAX_FDS };

/// A control socket in a directory of its own. Its owner must be root; the tests run as root.
struct Server {
    directory: PathBuf,
    poll: Poll,
    control: Control<Request>,
}

impl Server {
    fn new(name: &str) -> Server {
        let directory = std::env::temp_dir().join(format!("uvn-control-{}-{name}", std::process::id()));
        let poll = Poll::new().unwrap();
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("control.sock");
        let control = Control::listen(&path, poll.registry(), Token(5), LIMITS).unwrap();
        Server { directory, poll, control }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// All requests that are there now.
    fn requests(&mut self) -> Vec<Incoming<Request>> {
        let mut events = Events::with_capacity(64);
        let mut requests = Vec::new();
        loop {
            self.poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            if events.is_empty() && !self.control.has_work() {
                return requests;
            }
            for event in &events {
                self.control.ready(event.token());
            }
            requests.extend(std::iter::from_fn(|| self.control.take()));
        }
    }

    /// Connects, and does not wait until the connection is accepted.
    fn dial(&self) -> OwnedFd {
        let peer = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(peer.as_raw_fd(), &UnixAddr::new(&self.path()).unwrap()).unwrap();
        peer
    }

    fn connect(&mut self) -> OwnedFd {
        let peer = self.dial();
        assert!(self.requests().is_empty());
        peer
    }

    fn open(&self) -> usize {
        self.control.connections.iter().flatten().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const PING: &[u8] = br#"{"version":1,"request":"ping"}"#;

fn say(peer: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    seqpacket::send(peer.as_fd(), bytes, fds, false).unwrap();
}

fn hear(peer: &OwnedFd) -> Option<String> {
    let mut buffer = vec![0; MAX_BYTES];
    let packet = seqpacket::receive(peer.as_fd(), &mut buffer, false).ok()?;
    Some(String::from_utf8(buffer[..packet.length].to_vec()).unwrap())
}

#[test]
fn requests_are_answered_on_their_connection() {
    let mut server = Server::new("answers");
    let (first, second) = (server.connect(), server.connect());
    say(&second, PING, &[]);
    say(&first, br#"{"version":1,"request":"show"}"#, &[]);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for Incoming { connection, request, .. } in requests {
        let answer = match request {
            Request::Ping => Ok(Reply::Pong),
            _ => Err(Failure::new(Code::Failed, "no")),
        };
        server.control.answer(connection, answer);
    }
    assert!(hear(&second).unwrap().contains("pong"));
    assert!(hear(&first).unwrap().contains("failed"));
    drop(first);
    assert!(server.requests().is_empty());
    assert_eq!(server.open(), 1);
}

#[test]
fn a_bad_peer_loses_its_connection_and_nobody_else_does() {
    let mut server = Server::new("bad");
    let good = server.connect();
    let (_reader, writer) = io::pipe().unwrap();
    let many = vec![writer.as_fd(); MAX_FDS + 1];
    let cases: [(&[u8], &[BorrowedFd<'_>]); 4] =
        [(b"\x00garbage", &[]), (&vec![b'x'; MAX_BYTES + 1], &[]), (PING, &many), (b"{\"version\":9}", &[])];
    for (bytes, fds) in cases {
        let bad = server.connect();
        say(&bad, bytes, fds);
        assert!(server.requests().is_empty());
        assert!(hear(&bad).unwrap().contains("error"));
        assert_eq!(hear(&bad).as_deref(), Some(""), "closed");
        assert_eq!(server.open(), 1);
    }
    say(&good, PING, &[]);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn who_says_a_schema_is_told_ours() {
    let mut server = Server::new("schema");
    let peer = server.connect();
    for (schema, answer) in [
        (r#""schema":1,"#, r#"{"version":1,"schema":1,"reply":"pong"}"#),
        (r#""schema":9,"since":0,"#, r#"{"version":1,"schema":1,"reply":"pong"}"#),
        ("", r#"{"version":1,"reply":"pong"}"#),
    ] {
        say(&peer, format!(r#"{{"version":1,{schema}"request":"ping"}}"#).as_bytes(), &[]);
        let requests = server.requests();
        assert_eq!(requests.len(), 1, "{schema}");
        server.control.answer(requests[0].connection, Ok(Reply::Pong));
        assert_eq!(hear(&peer).as_deref(), Some(answer));
    }
    for (schema, error) in
        [(r#""schema":1,"#, r#"{"version":1,"schema":1,"error""#), ("", r#"{"version":1,"error""#)]
    {
        let bad = server.connect();
        say(&bad, format!(r#"{{"version":1,{schema}"request":"pong"}}"#).as_bytes(), &[]);
        assert!(server.requests().is_empty());
        assert!(hear(&bad).unwrap().starts_with(error));
    }
}

#[test]
fn surplus_descriptors_are_closed() {
    let mut server = Server::new("surplus");
    let peer = server.connect();
    let (mut reader, writer) = io::pipe().unwrap();
    say(&peer, b"garbage", &[writer.as_fd(), writer.as_fd()]);
    drop(writer);
    assert!(server.requests().is_empty());
    assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0, "no writer is left");
}

#[test]
fn a_peer_that_never_reads_is_dropped() {
    let mut server = Server::new("mute");
    let mute = server.connect();
    for _ in 0..5000 {
        let _ = seqpacket::send(mute.as_fd(), PING, &[], false);
        for request in server.requests_now() {
            server
                .control
                .answer::<Reply>(request.connection, Err(Failure::new(Code::Failed, "x".repeat(50_000))));
        }
        if server.open() == 0 {
            return;
        }
    }
    unreachable!("still connected");
}

impl Server {
    fn requests_now(&mut self) -> Vec<Incoming<Request>> {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        for event in &events {
            self.control.ready(event.token());
        }
        std::iter::from_fn(|| self.control.take()).collect()
    }
}

#[test]
fn connections_are_bounded() {
    let mut server = Server::new("many");
    let peers: Vec<OwnedFd> = (0..LIMITS.connections).map(|_| server.connect()).collect();
    assert_eq!(server.open(), LIMITS.connections);
    let surplus = server.connect();
    assert_eq!(hear(&surplus).as_deref(), Some(""), "closed");
    drop(peers);
    assert!(server.requests().is_empty());
    assert_eq!(server.open(), 0);
    let next = server.connect();
    say(&next, PING, &[]);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let server = Server::new("stale");
    let poll = Poll::new().unwrap();
    let again = Control::<Request>::listen(&server.path(), poll.registry(), Token(0), LIMITS);
    assert!(matches!(again, Err(ControlError::InUse(path)) if path == server.path()));
    let file = server.directory.join("file");
    fs::write(&file, "").unwrap();
    let on_file = Control::<Request>::listen(&file, poll.registry(), Token(0), LIMITS);
    assert!(matches!(on_file, Err(ControlError::NotASocket(path)) if path == file));
    // A typing error in a path makes no folder.
    let astray = server.directory.join("astray/uvnd.sock");
    let refused = Control::<Request>::listen(&astray, poll.registry(), Token(0), LIMITS);
    assert!(matches!(refused, Err(ControlError::NoFolder(path)) if path == astray));
    assert!(!server.directory.join("astray").exists());
    let stale = server.directory.join("stale.sock");
    let left = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(left.as_raw_fd(), &UnixAddr::new(&stale).unwrap()).unwrap();
    drop(left);
    drop(Control::<Request>::listen(&stale, poll.registry(), Token(0), LIMITS).unwrap());
    assert!(!stale.exists(), "removed at the end");
}

#[test]
fn the_client_says_what_is_wrong() {
    let error = Client::connect(Path::new("/nonexistent/control.sock")).unwrap_err().to_string();
    assert!(error.starts_with("no data plane answers at /nonexistent/control.sock: "), "{error}");
}

/// A process of user 1234, in a user namespace within another one that the user made.
struct Nested(Child);

impl Nested {
    fn start() -> Nested {
        let script = "echo; exec sleep 60";
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1234", "--clear-groups", "unshare", "--user", "--map-root-user"]);
        command.args(["unshare", "--user", "sh", "-c", script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Nested(child)
    }

    /// The peer as the kernel reports it if it has a subordinate UID.
    fn peer(&self) -> Peer {
        Peer { uid: 100_000, pid: self.0.id().try_into().unwrap() }
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn who_has_made_the_outermost_namespace_is_responsible() {
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(owner::of(Peer { uid: 77, pid: own }).unwrap(), 77);
    assert_eq!(owner::of(Nested::start().peer()).unwrap(), 1234);
    assert!(owner::of(Peer { uid: 77, pid: i32::MAX }).is_err());
}

#[test]
fn another_user_takes_no_more_than_his_share() {
    let mut server = Server::new("share");
    let (nested, pid) = (Nested::start(), i32::try_from(std::process::id()).unwrap());
    let admit = |server: &Server, uid| server.control.admit(Peer { uid, pid });
    assert_eq!(admit(&server, 1234), Err("not root"));
    server.control.limits.everyone = true;
    for _ in 0..MAX_EACH {
        assert_eq!(admit(&server, 1234), Ok(1234));
        assert_eq!(server.control.admit(nested.peer()), Ok(1234));
        let (end, _) = nix::sys::socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let connection = Connection { socket: end, peer: nested.peer(), owner: 1234, schema: 0 };
        server.control.connections.push(Some(connection));
    }
    assert_eq!(admit(&server, 1234), Err("too many"));
    assert_eq!(server.control.admit(nested.peer()), Err("too many"), "a subordinate UID of his");
    assert_eq!(admit(&server, 1001), Ok(1001));
    assert_eq!(admit(&server, 0), Ok(0));
}

#[test]
fn a_flood_of_connections_is_taken_a_few_at_a_time() {
    let mut server = Server::new("flood");
    let full: Vec<OwnedFd> = (0..LIMITS.connections).map(|_| server.connect()).collect();
    let surplus: Vec<OwnedFd> = (0..3 * ACCEPTS).map(|_| server.dial()).collect();
    let refused = |surplus: &[OwnedFd]| {
        let gone = |peer: &&OwnedFd| {
            let mut buffer = [0; 8];
            seqpacket::receive(peer.as_fd(), &mut buffer, false).is_ok_and(|packet| packet.length == 0)
        };
        surplus.iter().filter(gone).count()
    };
    for turn in 1..=3 {
        assert!(server.requests_now().is_empty());
        assert_eq!(refused(&surplus), turn * ACCEPTS, "turn {turn}");
        assert!(server.control.has_work(), "turn {turn}: there may be more");
    }
    assert!(server.requests().is_empty());
    assert!(!server.control.has_work());
    assert_eq!(server.open(), full.len());
    let TurnedAway { total, told, .. } = server.control.turned_away;
    assert_eq!(total, surplus.len() as u64);
    assert!(told <= total, "{told}");
}

#[test]
fn the_log_has_a_line_a_second_for_all_that_are_refused() {
    let mut refused = TurnedAway::default();
    let tell = |refused: &mut TurnedAway| {
        refused.tell(Path::new("/run/x"));
        refused.told
    };
    assert_eq!(tell(&mut refused), 0);
    (0..5).for_each(|uid| refused.count(Some(uid), "too many"));
    assert_eq!(tell(&mut refused), 5);
    (0..7).for_each(|uid| refused.count(Some(uid), "too many"));
    assert_eq!(tell(&mut refused), 5, "not yet");
    refused.at = Instant::now().checked_sub(TurnedAway::PAUSE);
    assert_eq!(tell(&mut refused), 12);
}
