//! Today's clients and servers with those of uvn 0.1.0, over real sockets.

use crate::old;
use crate::old::protocol::{Answered, Asked, Code, Failure};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use uvn_api::dataplane::client::{Client as DataPlaneClient, ClientError};
use uvn_api::dataplane::message as dataplane;
use uvn_api::protocol::MAX_BYTES;
use uvn_api::seqpacket;
use uvn_api::uvnd::client::Client;
use uvn_api::uvnd::message::{Claim, Outcome};

/// A server of uvn 0.1.0. It answers by `answer`, and ends after `count` connections; it returns what was asked.
struct Server<R> {
    folder: PathBuf,
    thread: JoinHandle<Vec<(R, usize)>>,
}

impl<R: DeserializeOwned + Send + 'static> Server<R> {
    fn start<A: Serialize + 'static>(name: &str, count: usize, answer: fn(&R) -> A) -> Server<R> {
        let folder = std::env::temp_dir().join(format!("uvn-old-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&folder.join("socket")).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let thread = thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..count {
                let taken = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
                #[allow(unsafe_code, reason = "nix's accept4 returns a number")]
                // SAFETY: it has just been opened, and nobody else knows of it.
                let peer = unsafe { OwnedFd::from_raw_fd(taken) };
                serve(&peer, answer, &mut asked);
            }
            asked
        });
        Server { folder, thread }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// What was asked, each with the number of descriptors beside it.
    fn end(self) -> Vec<(R, usize)> {
        let asked = self.thread.join().unwrap();
        fs::remove_dir_all(&self.folder).unwrap();
        asked
    }
}

/// As the server of uvn 0.1.0 does: what it cannot read is refused, and ends the connection.
fn serve<R: DeserializeOwned, A: Serialize>(
    peer: &OwnedFd,
    answer: fn(&R) -> A,
    asked: &mut Vec<(R, usize)>,
) {
    let mut buffer = vec![0; MAX_BYTES];
    loop {
        let packet = seqpacket::receive(peer.as_fd(), &mut buffer, true).unwrap();
        if packet.length == 0 {
            return;
        }
        let say = |answered: &Answered<A>| {
            seqpacket::send(peer.as_fd(), &serde_json::to_vec(answered).unwrap(), &[], true).unwrap();
        };
        match serde_json::from_slice::<Asked<R>>(&buffer[..packet.length]) {
            Ok(Asked { request, .. }) => {
                say(&Answered { version: 1, reply: Some(answer(&request)), error: None });
                asked.push((request, packet.fds.len()));
            }
            Err(error) => {
                let failure = Failure { code: Code::Malformed, message: error.to_string() };
                say(&Answered { version: 1, reply: None, error: Some(failure) });
                return;
            }
        }
    }
}

#[test]
fn an_old_uvnd_is_asked_again_without_a_schema() {
    let answer = |request: &old::uvnd::Request| match request {
        old::uvnd::Request::Attach { .. } => {
            old::uvnd::Reply::Attached { outcome: old::uvnd::Outcome::Made, steps: Vec::new() }
        }
        _ => old::uvnd::Reply::Networks { networks: Vec::new(), next: None },
    };
    let server = Server::start("uvnd", 2, answer);
    let client = Client::connect(&server.socket()).unwrap();
    assert!(matches!(client.attach(5, Claim::Manual), Ok(Outcome::Made)));
    assert!(client.networks().unwrap().is_empty());
    drop(client);
    let asked: Vec<_> = server.end().into_iter().map(|(request, _)| request).collect();
    let attach = old::uvnd::Request::Attach { uid: 5, claim: old::uvnd::Claim::Manual, dry_run: false };
    assert_eq!(asked, [attach, old::uvnd::Request::List { from: 0 }]);
}

#[test]
fn an_old_data_plane_gets_the_descriptors_of_a_network() {
    let server =
        Server::start("dataplane", 2, |_: &old::dataplane::Request| old::dataplane::Reply::Done { epoch: 3 });
    let client = DataPlaneClient::connect(&server.socket()).unwrap();
    let network = serde_json::from_str(r#"{"vni": 5, "addresses": ["10.0.0.1/24"]}"#).unwrap();
    let (reader, writer) = io::pipe().unwrap();
    assert_eq!(client.add_network(&network, &[reader.as_fd(), writer.as_fd()]).unwrap(), 3);
    assert_eq!(client.remove_network(5).unwrap(), 3);
    assert!(client.is_older());
    drop(client);
    let asked: Vec<usize> = server.end().into_iter().map(|(_, fds)| fds).collect();
    assert_eq!(asked, [2, 0]);
}

/// As `uvnd` finds a data plane that runs: it does not wait for an answer.
#[test]
fn an_old_data_plane_is_greeted() {
    let server = Server::start("greeted", 2, |_: &old::dataplane::Request| old::dataplane::Reply::Pong);
    let client = DataPlaneClient::connect_for(&server.socket(), Duration::from_secs(5)).unwrap();
    client.send(&dataplane::Request::Ping, &[]).unwrap();
    assert!(matches!(client.receive(), Err(ClientError::Older)));
    let older = client.older().unwrap();
    older.send(&dataplane::Request::Ping, &[]).unwrap();
    assert!(matches!(older.receive(), Ok(dataplane::Reply::Pong)));
    drop((client, older));
    assert_eq!(server.end().len(), 1);
}
