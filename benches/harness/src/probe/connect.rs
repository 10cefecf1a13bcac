//! Connections one after the other: connect, one byte each way, close.

use super::{patiently, ready};
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers one byte per connection, for ever, with so many threads.
///
/// # Errors
/// The port cannot be opened.
pub fn accept(port: u16, threads: usize) -> io::Result<()> {
    let listener = patiently(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    ready();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    // A client that gives up is not the next one's concern.
                    let _answered = stream.and_then(answer);
                }
            });
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    // Closed here first: so it is the server's port that stays busy, and clients do not run out of theirs.
    stream.write_all(&byte)
}

/// Connects with so many threads and writes how many connections they made in how many seconds, how many failed, and how
/// long one took.
///
/// # Errors
/// Not one was made.
pub fn connect(to: SocketAddr, threads: usize, seconds: f64) -> io::Result<()> {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(seconds);
    let results: Vec<io::Result<u32>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..threads).map(|_| scope.spawn(|| connect_until(to, end))).collect();
        clients.into_iter().filter_map(|client| client.join().ok()).flatten().collect()
    });
    let elapsed = begin.elapsed().as_secs_f64();
    let (made, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let mut times: Vec<u32> = made.into_iter().flatten().collect();
    if let (true, Some(Err(error))) = (times.is_empty(), failed.first()) {
        return Err(io::Error::new(error.kind(), error.to_string()));
    }
    times.sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).map_or(0.0, |&ns| f64::from(ns) / 1e3);
    let result = serde_json::json!({
        "connections": times.len(), "failed": failed.len(), "seconds": elapsed, "p99_us": p99,
    });
    println!("{result}");
    Ok(())
}

/// How long each took, in nanoseconds, or why it failed.
fn connect_until(to: SocketAddr, end: Instant) -> Vec<io::Result<u32>> {
    let mut times = Vec::with_capacity(1 << 14);
    while Instant::now() < end {
        times.push(connect_once(to));
    }
    times
}

fn connect_once(to: SocketAddr) -> io::Result<u32> {
    let begin = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[0x55])?;
    let mut byte = [0; 2];
    stream.read_exact(&mut byte[..1])?;
    // Until the end of the stream, so that the other side is the first to close.
    while stream.read(&mut byte)? > 0 {}
    Ok(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX))
}
