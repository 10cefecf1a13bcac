//! UDP packets per second: 64-byte datagrams, counted where they arrive.

use super::ready;
use nix::sys::prctl;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// Payload bytes of a datagram.
const BYTES: usize = 64;
/// Datagrams sent without looking at the clock.
const BURST: u64 = 16;
/// Bytes of the sink's socket buffer.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The sink is done when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(300);

/// Counts until silence and writes the number, and the seconds from the first datagram to the last.
///
/// # Errors
/// The port cannot be opened, or nothing comes for ten seconds.
pub fn sink(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    // Scheduling on few cores must not decide what is lost.
    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
    ready();
    let mut datagram = [0; 2048];
    socket.recv(&mut datagram)?;
    let first = Instant::now();
    socket.set_read_timeout(Some(SILENCE))?;
    let (mut received, mut last) = (1_u64, first);
    while socket.recv(&mut datagram).is_ok() {
        received += 1;
        // A clock read for each would be felt.
        if received.is_multiple_of(32) {
            last = Instant::now();
        }
    }
    println!("{}", serde_json::json!({ "received": received, "seconds": (last - first).as_secs_f64() }));
    Ok(())
}

/// Sends and writes how many datagrams the kernel took. `rate` is in datagrams per second.
///
/// # Errors
/// A socket cannot be made or connected.
pub fn flood(to: SocketAddr, seconds: f64, rate: Option<f64>) -> io::Result<()> {
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let time = Duration::from_secs_f64(seconds);
    let (tried, sent) = match rate {
        None => send_for(&socket, time),
        Some(rate) => {
            // Without it a sleep lasts 50 us longer, and a burst is as much bigger.
            prctl::set_timerslack(1)?;
            send_at(&socket, time, rate)
        }
    };
    println!("{}", serde_json::json!({ "tried": tried, "sent": sent, "seconds": seconds }));
    Ok(())
}

/// As fast as it goes: how many were tried, and how many the kernel took.
fn send_for(socket: &UdpSocket, time: Duration) -> (u64, u64) {
    let datagram = [0x55; BYTES];
    let begin = Instant::now();
    let (mut tried, mut sent) = (0, 0);
    while begin.elapsed() < time {
        for _ in 0..BURST {
            // A full queue is the measurement, not an error.
            sent += u64::from(socket.send(&datagram).is_ok());
        }
        tried += BURST;
    }
    (tried, sent)
}

/// In bursts at a steady rate; a burst that is late is made up for, not left out.
fn send_at(socket: &UdpSocket, time: Duration, rate: f64) -> (u64, u64) {
    let datagram = [0x55; BYTES];
    let begin = Instant::now();
    let (mut tried, mut sent) = (0, 0);
    loop {
        let due = Duration::from_secs_f64(tried as f64 / rate.max(1.0));
        if due >= time || begin.elapsed() >= time + time {
            return (tried, sent);
        }
        thread::sleep(due.saturating_sub(begin.elapsed()));
        for _ in 0..BURST {
            sent += u64::from(socket.send(&datagram).is_ok());
        }
        tried += BURST;
    }
}
