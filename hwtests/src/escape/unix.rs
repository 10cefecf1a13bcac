//! Abstract Unix sockets: to the victim's, and with names that the victim takes for somebody else's. All start as root, to
//! make the victim's side first.
#![allow(unsafe_code, reason = "processes of both users are forked")]

use super::process::{as_subuid, become_user, from_victim};
use super::uring::{Ring, SETUP_SQPOLL};
use super::{Aim, Attempt, socket};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, fork};
use socket2::{SockAddr, Socket, Type};
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::thread;

/// The kinds of Unix sockets.
const KINDS: [(&str, Type); 3] =
    [("stream", Type::STREAM), ("seqpacket", Type::SEQPACKET), ("datagram", Type::DGRAM)];

/// The attempts.
#[must_use]
pub fn attempts() -> Vec<Attempt> {
    let uring = |flags| {
        move |aim: &Aim, to: &SockAddr| {
            become_user(aim.uid, aim.uid)?;
            let socket = unix(Type::STREAM)?;
            Ring::new(flags)?.connect(&socket, to)?;
            socket.send(b"x")
        }
    };
    vec![
        reaching("stream", Type::STREAM, |aim, to| as_user(aim, Type::STREAM, to)),
        reaching("seqpacket", Type::SEQPACKET, |aim, to| as_user(aim, Type::SEQPACKET, to)),
        reaching("datagram-connected", Type::DGRAM, |aim, to| as_user(aim, Type::DGRAM, to)),
        reaching("datagram", Type::DGRAM, |aim, to| {
            become_user(aim.uid, aim.uid)?;
            unix(Type::DGRAM)?.send_to(b"x", to)
        }),
        reaching("named-datagram", Type::DGRAM, |aim, to| {
            become_user(aim.uid, aim.uid)?;
            let socket = unix(Type::DGRAM)?;
            // Two bytes, for the family alone: the kernel chooses a name.
            socket.bind(&SockAddr::unix("")?)?;
            socket.send_to(b"x", to)
        }),
        reaching("uring", Type::STREAM, uring(0)),
        reaching("uring-polled", Type::STREAM, uring(SETUP_SQPOLL)),
        reaching("made-by-root", Type::STREAM, |aim, to| {
            let socket = unix(Type::STREAM)?;
            become_user(aim.uid, aim.uid)?;
            say(&socket, to)
        }),
        reaching("made-by-victim", Type::STREAM, |aim, to| {
            let socket = from_victim(aim, |_| unix(Type::STREAM))?;
            say(&socket, to)
        }),
        reaching("setuid-program", Type::STREAM, |aim, to| {
            become_user(aim.uid, 0)?;
            say(&unix(Type::STREAM)?, to)
        }),
        reaching("setuid-datagram", Type::DGRAM, |aim, to| {
            become_user(aim.uid, 0)?;
            unix(Type::DGRAM)?.send_to(b"x", to)
        }),
        reaching("userns", Type::STREAM, |aim, to| {
            become_user(aim.uid, aim.uid)?;
            unshare(CloneFlags::CLONE_NEWUSER)?;
            say(&unix(Type::STREAM)?, to)
        }),
        reaching("own-netns", Type::STREAM, |aim, to| {
            become_user(aim.uid, aim.uid)?;
            let socket = unix(Type::STREAM)?;
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
            say(&socket, to)
        }),
        reaching("subuid", Type::STREAM, |aim, to| {
            become_user(aim.uid, aim.uid)?;
            // As a program that is started has it: /proc/self is its own.
            // SAFETY: numbers only.
            socket::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
            as_subuid()?;
            say(&unix(Type::STREAM)?, to)
        }),
        lying_in_wait("stream", Type::STREAM),
        lying_in_wait("seqpacket", Type::SEQPACKET),
        lying_in_wait("datagram", Type::DGRAM),
    ]
}

/// The victim has a socket with a name; whether the attempt has succeeded, the victim knows.
fn reaching(
    name: &str,
    kind: Type,
    attack: impl Fn(&Aim, &SockAddr) -> io::Result<usize> + 'static,
) -> Attempt {
    Attempt::new(format!("root-abstract-{name}"), move |aim, what| {
        let to = named(what)?;
        let victim = as_victim(aim, |root| {
            let socket = unix(kind)?;
            socket.bind(&to)?;
            listen(&socket, kind)?;
            root.send(b"ready")?;
            hear(&socket, kind)?;
            root.send(b"heard").map(drop)
        })?;
        victim.recv(&mut [0; 8])?;
        attack(aim, &to)?;
        victim.recv(&mut [0; 8])?;
        Ok("heard".to_owned())
    })
}

/// The attacker has a socket with a name by which the victim looks for its own.
fn lying_in_wait(name: &str, kind: Type) -> Attempt {
    Attempt::new(format!("root-abstract-wait-{name}"), move |aim, what| {
        let at = named(what)?;
        let victim = as_victim(aim, |root| {
            root.recv(&mut [0; 8])?;
            say(&unix(kind)?, &at).map(drop)
        })?;
        become_user(aim.uid, aim.uid)?;
        let socket = unix(kind)?;
        socket.bind(&at)?;
        listen(&socket, kind)?;
        victim.send(b"ready")?;
        hear(&socket, kind)?;
        Ok("heard".to_owned())
    })
}

/// Has a process of the victim's do something; the socket is the way to it.
fn as_victim(aim: &Aim, act: impl FnOnce(&UnixDatagram) -> io::Result<()>) -> io::Result<UnixDatagram> {
    let (ours, theirs) = UnixDatagram::pair()?;
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(socket::PATIENCE))?;
    }
    // SAFETY: this process has one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        drop(ours);
        let acted = become_user(aim.victim, aim.victim).and_then(|()| act(&theirs));
        std::process::exit(i32::from(acted.is_err()));
    }
    Ok(ours)
}

fn as_user(aim: &Aim, kind: Type, to: &SockAddr) -> io::Result<usize> {
    become_user(aim.uid, aim.uid)?;
    say(&unix(kind)?, to)
}

fn say(socket: &Socket, to: &SockAddr) -> io::Result<usize> {
    socket.connect(to)?;
    socket.send(b"x")
}

fn unix(kind: Type) -> io::Result<Socket> {
    socket::any(libc::AF_UNIX, kind.into(), 0)
}

/// The abstract name.
fn named(name: &str) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{name}"))
}

fn listen(socket: &Socket, kind: Type) -> io::Result<()> {
    if kind == Type::DGRAM { Ok(()) } else { socket.listen(8) }
}

fn hear(socket: &Socket, kind: Type) -> io::Result<String> {
    if kind == Type::DGRAM { socket::answer(&mut &*socket) } else { socket::answer(&mut &socket.accept()?.0) }
}

/// Opens a socket of each kind with this name, writes `ready`, and answers with it whoever connects or sends. A name that
/// begins with a slash is a path, others are abstract. Runs for ever.
///
/// # Errors
/// A socket cannot be opened.
pub fn serve(name: &str) -> io::Result<()> {
    for (word, kind) in KINDS {
        let (socket, answer) = (unix(kind)?, name.to_owned());
        socket.bind(&address(name, word)?)?;
        if name.starts_with('/') {
            std::fs::set_permissions(format!("{name}.{word}"), Permissions::from_mode(0o777))?;
        }
        listen(&socket, kind)?;
        socket.set_read_timeout(None)?;
        thread::spawn(move || {
            loop {
                let _gone = answer_one(&socket, kind, answer.as_bytes());
            }
        });
    }
    println!("ready");
    loop {
        thread::park();
    }
}

fn answer_one(socket: &Socket, kind: Type, answer: &[u8]) -> io::Result<()> {
    if kind == Type::DGRAM {
        let (_, from) = socket.recv_from(&mut [std::mem::MaybeUninit::uninit(); 8])?;
        socket.send_to(answer, &from).map(drop)
    } else {
        let (stream, _) = socket.accept()?;
        // What is unread when it closes would be an error at the other end.
        socket::answer(&mut &stream)?;
        (&stream).write_all(answer)
    }
}

/// Asks the sockets of that name, and writes a line about each kind.
///
/// # Errors
/// No socket.
pub fn ask(name: &str) -> io::Result<()> {
    for (word, kind) in KINDS {
        let socket = unix(kind)?;
        // A name to be answered at: of a kind that nobody is refused.
        if kind == Type::DGRAM {
            let path = format!("/tmp/answer-{}", std::process::id());
            socket.bind(&SockAddr::unix(&path)?)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        }
        let asked = say(&socket, &address(name, word)?).and_then(|_| socket::answer(&mut &socket));
        match asked {
            Ok(answer) => println!("{word} = {answer}"),
            Err(error) => println!("{word} ! {error}"),
        }
    }
    Ok(())
}

fn address(name: &str, kind: &str) -> io::Result<SockAddr> {
    let mark = if name.starts_with('/') { "" } else { "\0" };
    SockAddr::unix(format!("{mark}{name}.{kind}"))
}
