//! Concurrent TCP ping-pongs: blocking sockets, a thread per connection on either side, as MPI ranks would be.

use super::{busy_poll, patiently, ready};
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use uvn_rig::cpu::SystemTime;

/// Longest message, so that a stray connection cannot make us allocate much.
const MAX_BYTES: usize = 1 << 20;

/// Answers for ever, with busy polling or without. A connection's first four bytes are its message length.
///
/// # Errors
/// The port cannot be opened.
pub fn pong(port: u16, busy_poll: bool) -> io::Result<()> {
    let listener = patiently(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    ready();
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || echo(stream, busy_poll));
    }
    Ok(())
}

fn echo(mut stream: TcpStream, busy_poll: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if busy_poll {
        busy_poll::enable(&stream)?;
    }
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; (u32::from_be_bytes(length) as usize).min(MAX_BYTES)];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}

/// Plays and writes how many messages went to and fro, in how many seconds, the latency of one round trip,
/// and what the whole system spent on it.
///
/// # Errors
/// A connection failed.
pub fn ping(
    to: SocketAddr,
    connections: usize,
    bytes: usize,
    seconds: f64,
    busy_poll: bool,
) -> io::Result<()> {
    let bytes = bytes.clamp(1, MAX_BYTES);
    let start = Barrier::new(connections);
    let before = SystemTime::now();
    let results: Vec<io::Result<(Vec<u32>, f64)>> = thread::scope(|scope| {
        let play = || play(to, bytes, Duration::from_secs_f64(seconds), &start, busy_poll);
        let players: Vec<_> = (0..connections).map(|_| scope.spawn(play)).collect();
        let failed = || Err(io::Error::other("a ping-pong thread died"));
        players.into_iter().map(|player| player.join().unwrap_or_else(|_| failed())).collect()
    });
    let cpu = SystemTime::now().since(before).busy;
    let mut round_trips = Vec::new();
    let mut elapsed: f64 = 0.0;
    for result in results {
        let (mut own, seconds) = result?;
        round_trips.append(&mut own);
        elapsed = elapsed.max(seconds);
    }
    round_trips.sort_unstable();
    let percentile =
        |p: usize| round_trips.get(round_trips.len() * p / 100).map_or(0.0, |&ns| f64::from(ns) / 1e3);
    let result = serde_json::json!({
        "messages": 2 * round_trips.len(),
        "seconds": elapsed,
        "p50_us": percentile(50),
        "p99_us": percentile(99),
        "cpu_seconds": cpu,
    });
    println!("{result}");
    Ok(())
}

/// One connection: its round trips in nanoseconds, and how long it played.
fn play(
    to: SocketAddr,
    bytes: usize,
    time: Duration,
    start: &Barrier,
    busy_poll: bool,
) -> io::Result<(Vec<u32>, f64)> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3));
    // Everyone waits here, also who failed to connect: or else the others would wait for ever.
    start.wait();
    let mut stream = stream?;
    stream.set_nodelay(true)?;
    if busy_poll {
        busy_poll::enable(&stream)?;
    }
    stream.set_read_timeout(Some(time + Duration::from_secs(5)))?;
    stream.write_all(&u32::try_from(bytes).unwrap_or(1).to_be_bytes())?;
    let mut message = vec![0x55; bytes];
    let mut round_trips = Vec::with_capacity(1 << 17);
    let begin = Instant::now();
    let mut now = begin;
    while now - begin < time {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let then = std::mem::replace(&mut now, Instant::now());
        round_trips.push(u32::try_from((now - then).as_nanos()).unwrap_or(u32::MAX));
    }
    Ok((round_trips, (now - begin).as_secs_f64()))
}
