//! What a test does on one node: run uvnd, call `uvn`, serve and reach.

use crate::reach::{Answer, LONG, SHORT, parse};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use uvn_rig::namespace::{Namespace, text};

/// How long uvnd may take to listen.
const START: Duration = Duration::from_secs(60);

/// A NIC of a node.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its IPv4 address, in a /24.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, in a /64.
    pub v6: Ipv6Addr,
}

/// A node: a [`Namespace`] with NICs.
pub struct Node {
    host: Namespace,
    nics: Vec<Nic>,
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.host
    }
}

impl Node {
    /// A node of these.
    #[must_use]
    pub fn new(host: Namespace, nics: Vec<Nic>) -> Node {
        Node { host, nics }
    }

    /// Its NICs.
    #[must_use]
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// Both addresses of its first NIC.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.nics[0].v4.into(), self.nics[0].v6.into()]
    }

    /// Writes /etc/uvn/uvn.toml, starts uvnd and waits until it takes requests.
    #[must_use]
    pub fn uvnd(&self, config: &str) -> Daemon {
        self.write("/etc/uvn/uvn.toml", config);
        self.restart_uvnd()
    }

    /// Starts uvnd with the configuration that is there.
    #[must_use]
    pub fn restart_uvnd(&self) -> Daemon {
        let log = PathBuf::from(format!("/tmp/uvnd-{}.log", self.name()));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(program("uvnd"));
        // An old socket tells nothing about the new uvnd.
        self.within(|| drop(std::fs::remove_file("/run/uvn/uvnd.sock")));
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("uvnd: {error}"));
        let mut daemon = Daemon { child, log };
        self.wait("uvnd", START, || {
            daemon.assert_alive();
            // An uvnd that takes no connection is asked again.
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
            let address = UnixAddr::new("/run/uvn/uvnd.sock").unwrap();
            self.within(|| connect(socket.as_raw_fd(), &address).is_ok())
        });
        daemon
    }

    /// Runs `uvn` as root.
    pub fn try_uvn(&self, arguments: &[&str]) -> Output {
        self.command(program("uvn")).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs `uvn` as root and returns what it prints; panics when it fails.
    pub fn uvn(&self, arguments: &[&str]) -> String {
        let output = self.try_uvn(arguments);
        let (told, said) = (text(&output.stdout), text(&output.stderr));
        let (name, status) = (self.name(), output.status);
        assert!(status.success(), "{name}: uvn {arguments:?}: {status}\n{told}{said}");
        told
    }

    /// Starts a server that answers with `name` on each of `sockets` (`tcp:0.0.0.0:5000`), as a user or as root (0).
    #[must_use]
    pub fn serve(&self, uid: u32, name: &str, sockets: &[String]) -> Server {
        Server::start(&self.host, uid, name, sockets)
    }

    /// Reaches for `targets` that should answer, as a user, saying `name`.
    pub fn reach(&self, uid: u32, name: &str, targets: &[String]) -> BTreeMap<String, Answer> {
        reach(&self.host, uid, name, None, targets, LONG)
    }

    /// The same, bound to an address and port first.
    pub fn reach_from(
        &self,
        uid: u32,
        name: &str,
        from: SocketAddr,
        targets: &[String],
    ) -> BTreeMap<String, Answer> {
        reach(&self.host, uid, name, Some(from), targets, LONG)
    }

    /// What `uvn-probe` prints, as a user.
    pub fn probe(&self, uid: u32, arguments: &[&str]) -> String {
        let output = self.command_as(uid, probe()).args(arguments).stdin(Stdio::null()).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success(), "{}: uvn-probe {arguments:?} as {uid}: {said}", self.name());
        text(&output.stdout).trim().to_owned()
    }

    /// Reaches for `targets` that should not answer, or not yet.
    pub fn try_reach(&self, uid: u32, name: &str, targets: &[String]) -> BTreeMap<String, Answer> {
        reach(&self.host, uid, name, None, targets, SHORT)
    }
}

fn reach(
    host: &Namespace,
    uid: u32,
    name: &str,
    from: Option<SocketAddr>,
    targets: &[String],
    patience: Duration,
) -> BTreeMap<String, Answer> {
    let mut command = host.command_as(uid, probe());
    command.args(["reach", &format!("--patience={}", patience.as_secs())]);
    command.args(from.map(|from| format!("--from={from}"))).arg(name).args(targets);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let answers = parse(&text(&output.stdout));
    let said = text(&output.stderr);
    assert_eq!(
        answers.len(),
        targets.len(),
        "{}: uvn-probe as {uid}: {}: {said}",
        host.name(),
        output.status
    );
    answers
}

/// A running uvnd. Dropping it ends it with SIGTERM, then SIGKILL; its log is shown if the test fails.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Kills it as a crash would.
    pub fn crash(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// All that it has logged, also before a restart.
    #[must_use]
    pub fn log(&self) -> String {
        text(&std::fs::read(&self.log).unwrap_or_default())
    }

    /// Panics with its log if it has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("uvnd ended: {status}\n{}", self.log());
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {}\n{}", self.log.display(), lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        let _already_gone = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        let _already_gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A running `uvn-probe serve`. Dropping it ends it.
pub struct Server {
    child: Child,
    /// What it writes, and what it has written.
    said: Mutex<(BufReader<ChildStdout>, Vec<u8>)>,
}

impl Server {
    /// Starts it on a host and waits until its sockets are open.
    #[must_use]
    pub fn start(host: &Namespace, uid: u32, name: &str, sockets: &[String]) -> Server {
        let mut arguments = vec!["serve", name];
        arguments.extend(sockets.iter().map(String::as_str));
        Server::probe(host, uid, &arguments)
    }

    /// Starts a probe that serves, and waits until it is ready.
    #[must_use]
    pub fn probe(host: &Namespace, uid: u32, arguments: &[&str]) -> Server {
        Server::run(host, uid, &probe(), arguments)
    }

    /// The same by a copy of the probe.
    #[must_use]
    pub fn run(host: &Namespace, uid: u32, program: &Path, arguments: &[&str]) -> Server {
        let mut command = host.command_as(uid, program);
        command.args(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        output.read_line(&mut first).unwrap();
        fcntl(output.get_ref(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let server = Server { child, said: Mutex::new((output, Vec::new())) };
        assert_eq!(first, "ready\n", "{}: no server of {uid}: {arguments:?}", host.name());
        server
    }

    /// The names of all who reached it so far, answered or not: it writes first and answers then.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        let (output, said) = &mut *self.said.lock().unwrap();
        match output.read_to_end(said) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
            _ => {}
        }
        let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        text(&said[..whole]).lines().map(String::from).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A program of the workspace, copied into memory: every user may run it there, and it starts ten times as fast as from
/// the host's disk.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(copy_programs).join(name)
}

/// What users run.
#[must_use]
pub fn probe() -> PathBuf {
    program("uvn-probe")
}

/// All of them in one folder: uvnd looks for the data plane beside itself.
fn copy_programs() -> PathBuf {
    let folder = PathBuf::from(format!("/run/uvn-programs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap();
    for name in ["uvnd", "uvn", "uvn-dataplane", "uvn-probe", "libspank_uvn.so", "libpam_uvn.so"] {
        let program = built.join(name);
        assert!(program.exists(), "{} is missing: cargo build --workspace --bins --lib", program.display());
        std::fs::copy(program, folder.join(name)).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::copy(folder.join("uvn-probe"), folder.join("srun")).unwrap();
    folder
}

/// A copy of the probe that tests have Slurm's daemons call back: one that root alone can change.
#[must_use]
pub fn srun() -> PathBuf {
    program("srun")
}

/// Gives a UID a name (`uUID`), a home and a shell, for what looks users up (sshd, Slurm). In the guest only: the
/// password file is the machine's.
pub fn add_user(uid: u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    if passwd.lines().any(|line| line.split(':').nth(2) == Some(&uid.to_string())) {
        return;
    }
    let home = format!("/home/u{uid}");
    std::fs::write("/etc/passwd", format!("{passwd}u{uid}:x:{uid}:{uid}::{home}:/bin/sh\n")).unwrap();
    let group = std::fs::read_to_string("/etc/group").unwrap();
    std::fs::write("/etc/group", format!("{group}u{uid}:x:{uid}:\n")).unwrap();
    let shadow = std::fs::read_to_string("/etc/shadow").unwrap();
    std::fs::write("/etc/shadow", format!("{shadow}u{uid}:*:19000:0:99999:7:::\n")).unwrap();
    std::fs::create_dir_all(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
}
