//! sshd with PAM on a host, and sessions in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;
use uvn_hwtests::Namespace;
use uvn_hwtests::node::{add_user, program};
use uvn_rig::namespace::text;

/// One key for everybody and every host: what is tested comes after it.
const KEY: &str = "/run/login-key";
/// Where the README has it installed.
pub const MODULE: &str = "/usr/lib/uvn/pam_uvn.so";
/// What a shell writes when it has run what it was given.
const DONE: &str = "--done--";

/// Where the line of uvn's module stands in Debian's common-session.
#[derive(Debug, Clone, Copy)]
pub enum Position {
    /// Before pam_systemd.so, which moves the process to a cgroup of the session.
    #[allow(dead_code, reason = "it is all the same without logind")]
    First,
    /// After it.
    Last,
}

/// Adds the two lines that the README tells to add, as often as one likes.
pub fn set_up_pam(position: Position) {
    fs::create_dir_all("/usr/lib/uvn").unwrap();
    fs::copy(program("libpam_uvn.so"), MODULE).unwrap();
    let line = format!("session required {MODULE}");
    for file in ["common-session", "common-session-noninteractive"] {
        let file = Path::new("/etc/pam.d").join(file);
        let old = fs::read_to_string(&file).unwrap();
        let mut lines: Vec<&str> = old.lines().filter(|old| !old.contains("pam_uvn.so")).collect();
        let systemd = lines.iter().position(|line| line.contains("pam_systemd.so")).unwrap_or(lines.len());
        let place = match position {
            Position::First => systemd,
            Position::Last => lines.len(),
        };
        lines.insert(place, &line);
        fs::write(&file, lines.join("\n") + "\n").unwrap();
    }
}

/// Starts sshd on a host; it ends with the host's processes.
#[allow(dead_code, reason = "with systemd it is a service")]
pub fn start(host: &Namespace) {
    let file = configure(host.name());
    let log = File::create(format!("/tmp/sshd-{}.log", host.name())).unwrap();
    let mut command = host.command("/usr/sbin/sshd");
    command.arg("-Def").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    drop(command.spawn().unwrap());
    host.wait("sshd", Duration::from_secs(60), || host.sh("ss -Hltn").contains(":22 "));
}

/// Writes a host's sshd_config.
pub fn configure(host: &str) -> PathBuf {
    key();
    fs::create_dir_all("/run/sshd").unwrap();
    let config = format!(
        "UsePAM yes\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         HostKey {KEY}\nAuthorizedKeysFile {KEY}.pub\nStrictModes no\nPidFile none\nUseDNS no\nPrintMotd no\n"
    );
    let file = PathBuf::from(format!("/run/sshd-{host}.conf"));
    fs::write(&file, config).unwrap();
    file
}

fn key() {
    if Path::new(KEY).exists() {
        return;
    }
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", KEY]).status();
    assert!(made.unwrap().success());
    // Whatever root's own shell does at each login on this machine: for minutes, under emulation.
    assert!(Command::new("usermod").args(["--shell", "/bin/sh", "root"]).status().unwrap().success());
}

/// Makes a user who can log in from everywhere to everywhere.
pub fn add(uid: u32) {
    key();
    add_user(uid);
    let folder = PathBuf::from(format!("/home/u{uid}/.ssh"));
    fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder).unwrap();
    fs::copy(KEY, folder.join("id_ed25519")).unwrap();
    fs::set_permissions(folder.join("id_ed25519"), fs::Permissions::from_mode(0o600)).unwrap();
    let config = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n";
    fs::write(folder.join("config"), config).unwrap();
    for path in [folder.clone(), folder.join("id_ed25519"), folder.join("config")] {
        chown(path, Some(uid), Some(uid)).unwrap();
    }
}

/// ssh as somebody, from a host where nothing of uvn is.
pub fn ssh(from: &Namespace, user: &str, to: Ipv4Addr, script: &str) -> Command {
    let mut command = from.command("ssh");
    command.args(["-i", KEY, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    command.args(["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", "-T", &format!("{user}@{to}"), script]);
    command.stdin(Stdio::null());
    command
}

/// A login that stays until it is dropped.
pub struct Session {
    ssh: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    who: String,
}

impl Session {
    /// Logs in; panics when that is refused.
    pub fn open(from: &Namespace, uid: u32, to: Ipv4Addr) -> Session {
        let who = format!("u{uid}");
        let mut command = ssh(from, &who, to, "exec sh 2>&1");
        let mut ssh = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(ssh.stdout.take().unwrap());
        let mut session = Session { input: ssh.stdin.take(), ssh, output, who };
        assert_eq!(session.run("id -u"), [uid.to_string()]);
        session
    }

    /// Runs a script in the session's shell and returns what it and its children print.
    pub fn run(&mut self, script: &str) -> Vec<String> {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{script}\necho {DONE}").unwrap();
        input.flush().unwrap();
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).unwrap();
            assert!(length > 0, "{}'s session ended in `{script}` after {lines:?}", self.who);
            if line.trim_end() == DONE {
                return lines;
            }
            lines.push(line.trim_end().to_owned());
        }
    }
}

impl Session {
    /// Starts a server in the background that says `ready`. It does not keep the session open.
    pub fn start(&mut self, server: &str) {
        self.run(&format!(
            "rm -f said; {server} < /dev/null > said 2>&1 & echo $! >> servers\nuntil grep -q ready said; do sleep 0.2; done"
        ));
    }

    /// Ends what was started so.
    pub fn stop(&mut self) {
        self.run("kill $(cat servers); rm servers");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        let _status = self.ssh.wait();
    }
}

/// A login that only runs a script.
pub fn log_in(from: &Namespace, user: &str, to: Ipv4Addr, script: &str) -> (Output, String) {
    let output = ssh(from, user, to, script).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output, said)
}
