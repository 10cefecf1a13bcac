//! Frames written down as a file, and what tshark makes of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::packet::PacketSocket;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use uvn_rig::test::{self, NetNs};

/// Runs `work` while a device is watched, and returns what it had to show.
pub fn watch(netns: &NetNs, device: &str, work: impl FnOnce()) -> Vec<Vec<u8>> {
    let socket = PacketSocket::new(netns, device);
    socket.set_buffer(256 << 20);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut frames = Vec::new();
            loop {
                // What was there when the work was done is still read.
                let last = done.load(Relaxed);
                match socket.receive(Duration::from_millis(20)) {
                    Some(frame) => frames.push(frame),
                    None if last => return frames,
                    None => {}
                }
            }
        });
        // A failed test ends the watcher, too.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let guard = Done(&done);
        work();
        drop(guard);
        watcher.join().unwrap()
    })
}

/// What tshark says of one frame. A field that occurs in the outer and in the inner headers has both, in this order.
#[derive(Debug)]
pub struct Decoded {
    /// The dissectors' names, outermost first, by colons.
    pub protocols: String,
    /// tshark calls it malformed.
    pub malformed: bool,
    /// States of IPv4 checksums.
    pub ip: Vec<Checksum>,
    /// States of UDP checksums.
    pub udp: Vec<Checksum>,
    /// States of TCP checksums.
    pub tcp: Vec<Checksum>,
    /// States of ICMP and ICMPv6 checksums: there is one at most.
    pub icmp: Vec<Checksum>,
    /// Bytes of TCP payload.
    pub tcp_payload: usize,
    /// VNIs.
    pub vnis: Vec<u32>,
}

/// `proto_checksum_enum_e` (epan/proto.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Wrong.
    Bad,
    /// Right.
    Good,
    /// In a fragment, it covers what is not there.
    Unverified,
    /// Zero, which says that there is none.
    NotPresent,
    /// Not a checksum's field in this frame.
    Illegal,
}

impl Decoded {
    /// All states.
    pub fn checksums(&self) -> impl Iterator<Item = Checksum> {
        [&self.ip, &self.udp, &self.tcp, &self.icmp].into_iter().flatten().copied()
    }

    /// The transport checksum's state of the innermost packet.
    pub fn innermost(&self) -> Option<Checksum> {
        self.icmp.last().or(self.tcp.last()).or(self.udp.last()).copied()
    }
}

const FIELDS: [&str; 9] = [
    "frame.protocols",
    "_ws.malformed",
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
    "tcp.len",
    "vxlan.vni",
];

/// The ports that a user's kernel may choose, and that no outer header has (those are from 49152 on): to tshark, what
/// is behind them is data, and not of a protocol that happens to be known for one.
const FIRST_PORT: u16 = 32_768;
const LAST_PORT: u16 = 49_151;

/// Has a user's kernel choose among the ports that [`decode`] takes for data.
pub fn choose_ports(netns: &NetNs) {
    let range = format!("{FIRST_PORT} {LAST_PORT}");
    netns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)).unwrap();
}

/// What tshark makes of these frames.
pub fn decode(frames: &[Vec<u8>]) -> Vec<Decoded> {
    let file = File::new(frames);
    let mut tshark = Command::new("tshark");
    tshark.arg("-nr").arg(&file.0).args(["-T", "fields", "-E", "occurrence=a", "-d", "udp.port==4789,vxlan"]);
    for layer in ["udp", "tcp"] {
        tshark.args(["-d", &format!("{layer}.port=={FIRST_PORT}-{LAST_PORT},data")]);
    }
    for protocol in ["ip", "tcp", "udp"] {
        tshark.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    // Each frame by itself: what spans several would hide what is wrong with one.
    for whole in ["tcp.desegment_tcp_streams", "ip.defragment", "ipv6.defragment"] {
        tshark.args(["-o", &format!("{whole}:FALSE")]);
    }
    FIELDS.iter().for_each(|field| {
        tshark.args(["-e", field]);
    });
    let output = tshark.stdin(Stdio::null()).output().expect("tshark is installed: cargo xtask setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let decoded: Vec<Decoded> = String::from_utf8(output.stdout).unwrap().lines().map(parse).collect();
    assert_eq!(decoded.len(), frames.len(), "{}", String::from_utf8_lossy(&output.stderr));
    decoded
}

fn parse(line: &str) -> Decoded {
    let mut fields = line.split('\t');
    let mut next = || fields.next().unwrap();
    let numbers = |text: &str| {
        text.split(',')
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().unwrap())
            .collect::<Vec<usize>>()
    };
    let status = |number: usize| match number {
        0 => Checksum::Bad,
        1 => Checksum::Good,
        2 => Checksum::Unverified,
        3 => Checksum::NotPresent,
        _ => Checksum::Illegal,
    };
    let statuses = |text: &str| numbers(text).into_iter().map(status).collect::<Vec<_>>();
    Decoded {
        protocols: next().to_owned(),
        malformed: !next().is_empty(),
        ip: statuses(next()),
        udp: statuses(next()),
        tcp: statuses(next()),
        icmp: [next(), next()].into_iter().flat_map(statuses).collect(),
        tcp_payload: numbers(next()).into_iter().sum(),
        vnis: numbers(next()).into_iter().map(|vni| vni as u32).collect(),
    }
}

/// A pcap file (draft-ietf-opsawg-pcap), deleted on drop.
struct File(PathBuf);

impl File {
    fn new(frames: &[Vec<u8>]) -> File {
        /// LINKTYPE_ETHERNET.
        const ETHERNET: u32 = 1;
        let path = std::env::temp_dir().join(test::name("pcap"));
        let mut bytes = Vec::new();
        let mut put = |words: &[u32]| words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        // Magic number, version 2.4, two unused words, the longest frame.
        put(&[0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 1 << 18, ETHERNET]);
        for frame in frames {
            let length = frame.len() as u32;
            // Two words of time.
            bytes.extend([0, 0, length, length].iter().flat_map(|word: &u32| word.to_le_bytes()));
            bytes.extend(frame);
        }
        let file = File(path);
        std::fs::write(&file.0, bytes).unwrap();
        file
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _left = std::fs::remove_file(&self.0);
    }
}
