//! The cgroup programs in this machine's kernel: in a child cgroup and a network namespace of the test's own. TAP-like
//! veth devices stand in for VRFs, which this needs none of: whether packets flow is tested in guests.

#![allow(unsafe_code, reason = "fork, setuid and sockets with every option have no safe interface")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, fork, setuid};
use socket2::{Domain, Protocol, Socket, Type};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uvn_control::binding::{Binding, CalledBack, Devices, Policy, cgroup_root, identify, way};
use uvn_wire::cgroup::{self, DeviceFile, Verdict};

const ALICE: u32 = 1000;
const BOB: u32 = 1001;
/// For what a busy machine may delay.
const PATIENCE: Duration = Duration::from_secs(10);

/// A child cgroup, a BPF file system, and a network namespace for the calling thread; gone when dropped.
struct Place {
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Place {
    fn new() -> Place {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("uvn-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let place =
            Place { cgroup: cgroup_root().unwrap().join(&name), bpffs: std::env::temp_dir().join(&name) };
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root");
        fs::create_dir(&place.cgroup).unwrap();
        fs::create_dir(&place.bpffs).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        mount(Some("bpf"), &place.bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        ip("link set lo up");
        // Each user's "VRF" and endpoint, and a NIC.
        for (device, peer, subnet) in
            [("uvn1000", "uvn1000.0", 1), ("uvn1001", "uvn1001.0", 2), ("em1", "wire", 3)]
        {
            ip(&format!("link add {device} type veth peer name {peer}"));
            ip(&format!("address add 10.{subnet}.0.1/16 dev {device}"));
            ip(&format!("address add fd00:{subnet}::1/64 dev {device} nodad"));
            ip(&format!("link set {device} up"));
            ip(&format!("link set {peer} up"));
            ip(&format!("neighbour add 10.{subnet}.0.2 lladdr 02:00:00:00:00:01 dev {device}"));
        }
        place
    }

    fn attach(&self, policy: &Policy) -> Binding {
        Binding::attach(&self.cgroup, &self.pins(), policy).unwrap()
    }

    fn pins(&self) -> PathBuf {
        self.bpffs.join("uvn")
    }

    /// What a process of the user's in the cgroup gets to see: 0, or an errno.
    fn as_user(&self, uid: u32, attempt: impl FnOnce() -> io::Result<()>) -> i32 {
        let procs = self.cgroup.join("cgroup.procs");
        // SAFETY: the child has one thread and the test's lock state; it makes system calls and allocates little.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let result = fs::write(procs, "0").and_then(|()| {
                    setuid(Uid::from_raw(uid))?;
                    // As a program that is started has it: /proc/self is its own.
                    nix::sys::prctl::set_dumpable(true)?;
                    // A panic must not get beyond this process's end.
                    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
                    caught.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(253)))
                });
                let code = result.map_or_else(|error| error.raw_os_error().unwrap_or(255), |()| 0);
                // SAFETY: ends the child without the parent's destructors.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, code) => code,
                status => panic!("{status:?}"),
            },
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.bpffs);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

fn devices(uid: u32) -> Devices {
    Devices {
        number: uid - 999,
        vrf: index(&format!("uvn{uid}")),
        endpoints: vec![index(&format!("uvn{uid}.0"))],
        off_subnet: false,
    }
}

fn policy() -> Policy {
    Policy {
        observe: false,
        policed: vec![1000..=1000, 1001..=60000],
        service_ports: vec![6817..=6818],
        srun_ports: vec![60001..=60010],
        called_back: CalledBack { way: way().expect("a kernel with BTF"), executables: Vec::new() },
        slurm_user: 900,
        vxlan_ports: vec![4789],
        on_subnet: vec!["10.3.0.0/16".parse().unwrap(), "fd00:3::/64".parse().unwrap()],
        hosts: vec!["10.3.0.2/32".parse().unwrap()],
        denied: Vec::new(),
    }
}

/// This program is one that Slurm's daemons call back, as long as its file is open.
fn policy_of_srun() -> (fs::File, Policy) {
    let (open, executable) = identify(&std::env::current_exe().unwrap()).unwrap();
    let called_back = CalledBack { executables: vec![executable], ..policy().called_back };
    (open, Policy { called_back, ..policy() })
}

fn tcp() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, None)
}

fn udp() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::DGRAM, None)
}

fn address(text: &str) -> socket2::SockAddr {
    text.parse::<SocketAddr>().unwrap().into()
}

fn expect(condition: bool) -> io::Result<()> {
    if condition { Ok(()) } else { Err(io::Error::from_raw_os_error(254)) }
}

fn is_bound_to(socket: &Socket, device: &str) -> bool {
    socket.device().unwrap().is_some_and(|name| name == device.as_bytes())
}

/// The kernel detaches a program some time after its pin is gone.
fn eventually(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn count(binding: &Binding, verdict: Verdict) -> u64 {
    binding.counters().unwrap()[verdict as usize]
}

#[test]
fn a_policed_user_without_a_network_gets_no_socket() {
    let place = Place::new();
    let binding = place.attach(&policy());
    for domain in [Domain::IPV4, Domain::IPV6] {
        for kind in [Type::STREAM, Type::DGRAM] {
            assert_eq!(place.as_user(ALICE, || Socket::new(domain, kind, None).map(drop)), libc::EPERM);
            assert_eq!(place.as_user(999, || Socket::new(domain, kind, None).map(drop)), 0);
            assert_eq!(place.as_user(0, || Socket::new(domain, kind, None).map(drop)), 0);
        }
    }
    assert_eq!(place.as_user(ALICE, || Socket::new(Domain::UNIX, Type::STREAM, None).map(drop)), 0);
    assert_eq!(count(&binding, Verdict::NoNetwork), 4);
}

#[test]
fn sockets_are_bound_to_the_network_and_stay_there() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    binding.bind(BOB, &devices(BOB)).unwrap();
    for domain in [Domain::IPV4, Domain::IPV6] {
        for kind in [Type::STREAM, Type::DGRAM] {
            let bound = || {
                let socket = Socket::new(domain, kind, None)?;
                expect(is_bound_to(&socket, "uvn1000"))?;
                expect(socket.set_mark(0).is_err() && socket.bind_device(Some(b"uvn1001")).is_err())
            };
            assert_eq!(place.as_user(ALICE, bound), 0);
        }
    }
    for protocol in [libc::IPPROTO_SCTP, libc::IPPROTO_MPTCP, libc::IPPROTO_DCCP] {
        let other = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(protocol))).map(drop);
        // Refused, or not in this kernel.
        assert!(
            [libc::EPERM, libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT]
                .contains(&place.as_user(ALICE, other))
        );
    }
    let disconnected = || {
        let socket = udp()?;
        socket.connect(&address("10.1.0.2:9"))?;
        disconnect(&socket)?;
        expect(socket.device()?.is_none())?;
        socket.connect(&address("10.1.0.2:9"))?;
        expect(is_bound_to(&socket, "uvn1000"))
    };
    assert_eq!(place.as_user(ALICE, disconnected), 0);
    let send_disconnected = || {
        let socket = udp()?;
        socket.connect(&address("10.1.0.2:9"))?;
        disconnect(&socket)?;
        let first = socket.send_to(b"x", &address("10.2.0.2:9"));
        expect(first.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)))?;
        expect(is_bound_to(&socket, "uvn1000"))?;
        socket.send_to(b"x", &address("10.1.0.2:9")).map(drop)
    };
    assert_eq!(place.as_user(ALICE, send_disconnected), 0);
}

/// connect(2) to AF_UNSPEC.
fn disconnect(socket: &Socket) -> io::Result<()> {
    // SAFETY: all zero is a sockaddr, of family AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is as long as said.
    let result = unsafe {
        libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as libc::socklen_t)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn ports_are_refused_or_released() {
    let place = Place::new();
    let (_open, policy) = policy_of_srun();
    let mut binding = place.attach(&policy);
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    assert_eq!(place.as_user(ALICE, || tcp()?.bind(&address("0.0.0.0:6817"))), libc::EPERM);
    assert_eq!(place.as_user(ALICE, || udp()?.bind(&address("0.0.0.0:6818"))), libc::EPERM);
    assert_eq!(place.as_user(ALICE, || tcp()?.bind(&address("0.0.0.0:6819"))), 0);
    let as_srun = || {
        let socket = tcp()?;
        expect(socket.device()?.is_none())?;
        socket.bind(&address("0.0.0.0:60001"))?;
        socket.listen(1)?;
        expect(socket.device()?.is_none())?;
        let socket = tcp()?;
        socket.bind(&address("0.0.0.0:60002"))?;
        expect(socket.connect(&address("10.3.0.2:9")).is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)))?;
        let socket = tcp()?;
        socket.bind(&address("0.0.0.0:7000"))?;
        expect(is_bound_to(&socket, "uvn1000"))?;
        // Its own choice, in somebody else's network.
        let socket = tcp()?;
        socket.bind_device(Some(b"uvn1001"))?;
        expect(socket.bind(&address("0.0.0.0:60003")).is_err())?;
        expect(socket.connect(&address("10.2.0.2:9")).is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)))
    };
    assert_eq!(place.as_user(ALICE, as_srun), 0);
    assert_eq!(count(&binding, Verdict::Released), 1);
}

/// Anybody may take the name of a program.
#[test]
fn srun_ports_are_for_srun_whatever_others_call_themselves() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    let takes = || {
        let pose = || {
            // SAFETY: the name is a string.
            unsafe { libc::prctl(libc::PR_SET_NAME, c"srun".as_ptr()) };
            let socket = tcp()?;
            expect(is_bound_to(&socket, "uvn1000"))?;
            socket.bind(&address("0.0.0.0:60001"))
        };
        place.as_user(ALICE, pose)
    };
    assert_eq!(takes(), libc::EPERM);
    assert_eq!(place.as_user(ALICE, || tcp()?.bind(&address("0.0.0.0:60001"))), libc::EPERM);
    assert_eq!(count(&binding, Verdict::SrunPort), 2);
    // Slurm's daemons call back by TCP.
    assert_eq!(place.as_user(ALICE, || udp()?.bind(&address("0.0.0.0:60001"))), 0);
    // A kernel that does not tell what a process runs.
    let (_open, policy) = policy_of_srun();
    let called_back = CalledBack { way: Default::default(), ..policy.called_back.clone() };
    binding.set_policy(&Policy { called_back, ..policy }).unwrap();
    eventually(|| takes() == libc::EPERM);
}

/// Who waits for an srun that has ended is told so by the kernel: slurmstepd would wait for its MessageTimeout.
#[test]
fn an_srun_that_ends_resets_its_connections() {
    let place = Place::new();
    let (_open, policy) = policy_of_srun();
    let mut binding = place.attach(&policy);
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    for accepts in [false, true] {
        let client = std::thread::spawn(move || -> io::Result<usize> {
            let end = Instant::now() + PATIENCE;
            let mut stream = loop {
                match TcpStream::connect("127.0.0.1:60001") {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < end => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    result => break result?,
                }
            };
            // It waits for that if it accepts, and else for nothing.
            if accepts {
                stream.write_all(b"x")?;
            }
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read(&mut [0])
        });
        let as_srun = || {
            let listener = tcp()?;
            listener.set_reuse_address(true)?;
            listener.bind(&address("127.0.0.1:60001"))?;
            listener.listen(1)?;
            if accepts {
                let (stream, _) = listener.accept()?;
                stream.peek(&mut [std::mem::MaybeUninit::uninit()]).map(drop)
            } else {
                let mut queue = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one descriptor, as said.
                expect(unsafe { libc::poll(&raw mut queue, 1, 10_000) } == 1)
            }
        };
        assert_eq!(place.as_user(ALICE, as_srun), 0);
        let error = client.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "accepts: {accepts}");
    }
    assert_eq!(count(&binding, Verdict::Outside), 0);
}

#[test]
fn packets_leave_through_the_own_network_only() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    binding.bind(BOB, &devices(BOB)).unwrap();
    let send = |through: &'static str, to: &'static str| move || send_through(through, to);
    assert_eq!(place.as_user(ALICE, send("uvn1000", "10.1.0.2:9")), 0);
    assert_eq!(place.as_user(ALICE, send("uvn1001", "10.2.0.2:9")), libc::EPERM);
    assert_eq!(count(&binding, Verdict::OtherNetwork), 1);
    assert_eq!(place.as_user(ALICE, send("uvn1000", "10.1.0.2:4789")), libc::EPERM);
    assert_eq!(count(&binding, Verdict::Vxlan), 1);
    assert_eq!(place.as_user(ALICE, send("lo", "127.0.0.1:9")), libc::EPERM);
    assert_eq!(place.as_user(ALICE, send("em1", "10.3.0.3:9")), libc::EPERM);
    assert_eq!(place.as_user(ALICE, send("em1", "255.255.255.255:9")), libc::EPERM);
    assert_eq!(place.as_user(ALICE, send("em1", "239.1.1.1:9")), libc::EPERM);
    assert_eq!(count(&binding, Verdict::Near), 4);
    assert_eq!(place.as_user(ALICE, send("em1", "10.3.0.2:9")), 0);
    ip("route add 10.9.0.0/16 via 10.3.0.2 dev em1");
    assert_eq!(place.as_user(ALICE, send("em1", "10.9.0.1:9")), libc::EPERM);
    assert_eq!(count(&binding, Verdict::OffSubnet), 1);
    binding.bind(ALICE, &Devices { off_subnet: true, ..devices(ALICE) }).unwrap();
    assert_eq!(place.as_user(ALICE, send("em1", "10.9.0.1:9")), 0);
    assert_eq!(place.as_user(ALICE, send("em1", "10.3.0.3:9")), libc::EPERM);
}

/// One datagram with IP_PKTINFO naming the device.
fn send_through(device: &str, to: &str) -> io::Result<()> {
    send_from(&udp()?, device, "0.0.0.0", to)
}

/// The same with the source.
fn send_from(socket: &Socket, device: &str, from: &str, to: &str) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
    socket.set_broadcast(true)?;
    let SocketAddr::V4(to) = to.parse().unwrap() else { unreachable!() };
    let from: Ipv4Addr = from.parse().unwrap();
    let info = libc::in_pktinfo {
        ipi_ifindex: if device.is_empty() { 0 } else { index(device) as i32 },
        ipi_spec_dst: libc::in_addr { s_addr: from.to_bits().to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let message = [ControlMessage::Ipv4PacketInfo(&info)];
    let data = [io::IoSlice::new(b"x")];
    sendmsg(socket.as_raw_fd(), &data, &message, MsgFlags::empty(), Some(&SockaddrIn::from(to)))?;
    Ok(())
}

/// A program with privileges, as ping is, may change its socket's mark: no way out of its user's network.
#[test]
fn a_changed_mark_lets_nothing_through() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    binding.bind(BOB, &devices(BOB)).unwrap();
    let as_setuid_program = |through: &'static str, to: &'static str, mark: Option<u32>| {
        let attempt = move || {
            nix::unistd::setresuid(Uid::from_raw(ALICE), Uid::from_raw(0), Uid::from_raw(0))?;
            let socket = udp()?;
            if let Some(mark) = mark {
                socket.set_mark(mark)?;
            }
            send_from(&socket, through, "0.0.0.0", to)
        };
        place.as_user(0, attempt)
    };
    assert_eq!(as_setuid_program("uvn1000", "10.1.0.2:9", None), 0);
    for mark in [0, 1, 0x7000_0001] {
        for (through, to) in [("uvn1001", "10.2.0.2:9"), ("em1", "10.3.0.3:9"), ("uvn1000", "10.1.0.2:9")] {
            assert_eq!(as_setuid_program(through, to, Some(mark)), libc::EPERM, "{mark:#x} {through}");
        }
    }
    assert_eq!(count(&binding, Verdict::Mark), 9);
}

/// An element of a hash map may become another key's while a program reads it.
#[test]
fn sockets_are_in_the_own_network_while_networks_change() {
    const WHILE: Duration = Duration::from_secs(3);
    let place = Place::new();
    let mut binding = place.attach(&policy());
    let networks = [ALICE, BOB].map(|uid| (uid, devices(uid)));
    for (uid, devices) in &networks {
        binding.bind(*uid, devices).unwrap();
    }
    let done = AtomicBool::new(false);
    let changes = std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut changes = 0_u64;
            while !done.load(Relaxed) {
                changes += 1;
                for (uid, devices) in &networks {
                    let devices = Devices { off_subnet: changes.is_multiple_of(2), ..devices.clone() };
                    binding.bind(*uid, &devices).unwrap();
                }
            }
            changes
        });
        let make_sockets = || {
            let end = Instant::now() + WHILE;
            let one = move || {
                let mut made = 0_u64;
                while made == 0 || Instant::now() < end {
                    // A look-up that is overtaken again and again is refused.
                    let Ok(socket) = tcp() else { continue };
                    expect(is_bound_to(&socket, "uvn1000"))?;
                    made += 1;
                }
                Ok(())
            };
            let threads = [(); 3].map(|()| std::thread::spawn(one));
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
        };
        let result = place.as_user(ALICE, make_sockets);
        done.store(true, Relaxed);
        assert_eq!(result, 0);
        changing.join().unwrap()
    });
    assert!(changes > 0);
}

/// Who owns the folder of the pins takes them away, and the programs with them.
#[test]
fn pins_are_roots_alone() {
    let place = Place::new();
    let (pins, others) = (place.pins(), place.bpffs.join("others"));
    fs::create_dir(&others).unwrap();
    fs::create_dir(others.join("kept")).unwrap();
    // As the file system is mounted here, everybody may make something in it.
    let squat = || {
        for folder in [&pins, &pins.join("links-0"), &pins.join("links-4294967295")] {
            fs::create_dir(folder)?;
            fs::set_permissions(folder, Permissions::from_mode(0o777))?;
        }
        Ok(())
    };
    let link = || std::os::unix::fs::symlink(&others, &pins);
    for squat in [&squat as &dyn Fn() -> io::Result<()>, &link] {
        assert_eq!(place.as_user(BOB, squat), 0);
        let binding = place.attach(&policy());
        assert!(binding.is_attached());
        for folder in [pins.clone(), pins.join("links-1"), pins.join(format!("state-{}", cgroup::LAYOUT))] {
            let metadata = fs::symlink_metadata(&folder).unwrap();
            assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o700), "{folder:?}");
        }
        let take_away = || fs::remove_file(pins.join("links-1/uvn_create"));
        assert_eq!(place.as_user(BOB, take_away), libc::EACCES);
        assert_eq!(place.as_user(ALICE, || udp().map(drop)), libc::EPERM);
        assert!(Binding::pinned(&pins).unwrap().0);
        fs::set_permissions(&pins, Permissions::from_mode(0o777)).unwrap();
        let error = Binding::pinned(&pins).unwrap_err().to_string();
        assert!(error.contains("/uvn: users other than root can change it"), "{error}");
        Binding::remove(&pins).unwrap();
        assert!(others.join("kept").exists());
    }
}

/// Sockets that a file system in the kernel makes while a user reads have no mark. Inherited ones are like that, too.
#[test]
fn sockets_that_no_user_made_reach_listed_hosts_only() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    let eperm = |result: io::Result<()>| expect(result.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)));
    let attempt = || {
        let (first, second) = (udp()?, udp()?);
        setuid(Uid::from_raw(ALICE))?;
        eperm(first.connect(&address("10.3.0.3:9")))?;
        eperm(first.connect(&address("10.1.0.2:9")))?;
        eperm(first.send_to(b"x", &address("10.3.0.3:9")).map(drop))?;
        eperm(second.bind(&address("0.0.0.0:7000")))?;
        first.connect(&address("10.3.0.2:9"))
    };
    assert_eq!(place.as_user(0, attempt), 0);
}

#[test]
fn a_restarted_daemon_takes_over_what_holds() {
    let place = Place::new();
    let mut first = place.attach(&policy());
    first.bind(ALICE, &devices(ALICE)).unwrap();
    first.bind(BOB, &devices(BOB)).unwrap();
    first.unbind(BOB).unwrap();
    let bound = first.bound();
    assert_eq!(bound.keys().collect::<Vec<_>>(), [&ALICE]);
    drop(first);
    // Killed: the programs hold, and what a crash left behind goes with the next start.
    assert_eq!(place.as_user(ALICE, || udp().map(drop)), 0);
    assert_eq!(place.as_user(BOB, || udp().map(drop)), libc::EPERM);
    fs::create_dir(place.pins().join("links-7")).unwrap();
    let mut second = place.attach(&policy());
    assert!(second.is_attached());
    assert_eq!(second.bound(), bound);
    assert_eq!(fs::read_dir(place.pins()).unwrap().count(), 2);
    // A policy that does not fit changes nothing.
    let too_large = Policy { policed: (0..65).map(|n| n * 2..=n * 2).collect(), ..policy() };
    let error = second.set_policy(&too_large).unwrap_err().to_string();
    assert_eq!(error, "the cgroup programs' map POLICED holds 64 entries at most: 65 are needed");
    assert_eq!(place.as_user(BOB, || udp().map(drop)), libc::EPERM);
    second.set_policy(&Policy { policed: vec![1000..=1000], ..policy() }).unwrap();
    eventually(|| place.as_user(BOB, || udp().map(drop)) == 0);
    assert_eq!(place.as_user(ALICE, || expect(is_bound_to(&udp()?, "uvn1000"))), 0);
    Binding::remove(&place.pins()).unwrap();
    assert!(!second.is_attached());
    assert!(!place.pins().exists());
    eventually(|| place.as_user(ALICE, || expect(udp()?.device()?.is_none())) == 0);
    Binding::remove(&place.pins()).unwrap();
}

#[test]
fn the_users_own_namespaces_are_left_alone() {
    let place = Place::new();
    let _binding = place.attach(&policy());
    let own = || {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        // As root there: a program that is started has privileges only so.
        fs::write("/proc/self/uid_map", format!("0 {ALICE} 1"))?;
        ip("link set lo up");
        let one = UdpSocket::bind("127.0.0.1:0")?;
        let other = UdpSocket::bind("127.0.0.1:6817")?;
        one.send_to(b"x", other.local_addr()?)?;
        other.recv(&mut [0]).map(drop)
    };
    assert_eq!(place.as_user(ALICE, own), 0);
}

#[test]
fn device_files_are_denied_to_the_policed() {
    let place = Place::new();
    // Documentation/admin-guide/devices.txt: /dev/zero, and all that are like it.
    let zero = Policy { denied: vec![DeviceFile { major: 1, minor: 5 }], ..policy() };
    let memory = Policy { denied: vec![DeviceFile { major: 1, minor: DeviceFile::ANY }], ..policy() };
    let open = |uid, path: &'static str| place.as_user(uid, || fs::File::open(path).map(drop));
    let mut binding = place.attach(&policy());
    assert_eq!(open(ALICE, "/dev/zero"), 0);
    binding.set_policy(&zero).unwrap();
    assert_eq!((open(ALICE, "/dev/zero"), open(ALICE, "/dev/null")), (libc::EPERM, 0));
    assert_eq!((open(0, "/dev/zero"), open(999, "/dev/zero")), (0, 0));
    binding.set_policy(&memory).unwrap();
    assert_eq!((open(ALICE, "/dev/zero"), open(ALICE, "/dev/null")), (libc::EPERM, libc::EPERM));
    assert_eq!(open(ALICE, "/dev/tty"), libc::ENXIO, "another driver's");
    let before = binding.counters().unwrap()[Verdict::Rdma as usize];
    assert_eq!(before, 3);
    binding.set_policy(&Policy { observe: true, ..memory }).unwrap();
    assert_eq!(open(ALICE, "/dev/zero"), 0);
    assert_eq!(binding.counters().unwrap()[Verdict::Rdma as usize], before + 1);
    Binding::remove(&place.pins()).unwrap();
    assert_eq!(open(ALICE, "/dev/zero"), 0);
}

/// Somebody removes pins one by one, while the daemon looks.
#[test]
fn what_is_gone_of_the_pins_comes_back() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    let folders = || fs::read_dir(place.pins()).unwrap().map(|folder| folder.unwrap().path());
    let state = folders().find(|folder| folder.to_string_lossy().contains("/state-")).unwrap();
    let names: Vec<_> = fs::read_dir(&state).unwrap().map(|pin| pin.unwrap().file_name()).collect();
    assert!(names.len() > 4);
    for name in names {
        assert!(binding.is_attached());
        fs::remove_file(state.join(&name)).unwrap();
        assert!(!binding.is_attached(), "without {name:?}");
        binding.set_policy(&policy()).unwrap();
        assert_eq!(place.as_user(ALICE, || tcp().map(drop)), 0, "without {name:?}");
    }
    fs::remove_dir_all(&state).unwrap();
    binding.set_policy(&policy()).unwrap();
    assert_eq!(place.as_user(ALICE, || tcp().map(drop)), 0);
}

#[test]
fn pins_that_go_while_they_are_made_come_back() {
    let place = Place::new();
    let mut binding = place.attach(&policy());
    binding.bind(ALICE, &devices(ALICE)).unwrap();
    // At one moment after the other.
    for round in 0..100 {
        fs::remove_dir_all(place.pins()).unwrap();
        let pins = place.pins();
        let remover = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(200 * round));
            let _gone = fs::remove_dir_all(&pins);
        });
        let _refused = binding.set_policy(&policy());
        remover.join().unwrap();
        binding.set_policy(&policy()).unwrap();
        assert!(binding.is_attached());
    }
    assert_eq!(place.as_user(ALICE, || tcp().map(drop)), 0);
}

/// On the sender's side: what listens on a srun port is in no network, and so reached by those who are in none.
#[test]
fn srun_ports_are_called_by_slurm_alone() {
    let place = Place::new();
    let call = |uid, to: &'static str| {
        place.as_user(uid, || {
            let socket = tcp()?;
            socket.set_nonblocking(true)?;
            match socket.connect(&address(to)) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                result => result,
            }
        })
    };
    let binding = place.attach(&policy());
    for to in ["127.0.0.1:60001", "10.3.0.2:60010", "10.3.0.9:60001"] {
        assert_eq!(call(999, to), libc::EPERM, "{to}");
        assert!([0, 900].iter().all(|uid| call(*uid, to) != libc::EPERM), "{to}: Slurm's daemons");
    }
    assert_eq!(binding.counters().unwrap()[Verdict::SrunPort as usize], 3);
    for to in ["127.0.0.1:60011", "192.0.2.1:60001"] {
        assert_ne!(call(999, to), libc::EPERM, "{to}");
    }
}
