//! UDP packets per second: 64-byte datagrams, counted where they arrive.

use super::{patiently, ready};
use nix::sys::prctl;
use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBuf, RcvBufForce},
};
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
/// How often a sink tells, if asked to.
const TELL: Duration = Duration::from_millis(100);
/// The sink is done when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(200);

/// Counts until silence and writes the number, and the seconds from the first datagram to the last; with `tell` also in
/// between.
///
/// # Errors
/// The port cannot be opened, or nothing comes for ten seconds.
pub fn sink(port: u16, tell: bool) -> io::Result<()> {
    let socket = patiently(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    // Scheduling on few cores must not decide what is lost.
    if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        // Not root: as much as the system allows everyone.
        setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
    }
    ready();
    let mut datagram = [0; 2048];
    socket.recv(&mut datagram)?;
    let first = Instant::now();
    socket.set_read_timeout(Some(SILENCE))?;
    let write = |received: u64, last: Instant| {
        println!("{}", serde_json::json!({ "received": received, "seconds": (last - first).as_secs_f64() }));
    };
    let (mut received, mut last, mut told) = (1_u64, first, first);
    while socket.recv(&mut datagram).is_ok() {
        received += 1;
        // A clock read for each would be felt.
        if received.is_multiple_of(32) {
            last = Instant::now();
            if tell && last - told >= TELL {
                write(received, last);
                told = last;
            }
        }
    }
    write(received, last);
    Ok(())
}

/// Sends and writes how many datagrams in how many seconds. `rate` is in datagrams per second.
///
/// # Errors
/// A socket cannot be made or connected.
pub fn flood(to: SocketAddr, seconds: f64, rate: Option<f64>) -> io::Result<()> {
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let (begin, time) = (Instant::now(), Duration::from_secs_f64(seconds));
    let sent = match rate {
        None => send_for(&socket, time),
        Some(rate) => {
            // Without it a sleep lasts 50 us longer, and a burst is as much bigger.
            prctl::set_timerslack(1)?;
            send_at(&socket, time, rate)
        }
    };
    println!("{}", serde_json::json!({ "sent": sent, "seconds": begin.elapsed().as_secs_f64() }));
    Ok(())
}

/// As fast as it goes. Returns how many.
fn send_for(socket: &UdpSocket, time: Duration) -> u64 {
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < time {
        send_burst(socket);
        sent += BURST;
    }
    sent
}

/// In bursts at a steady rate; a burst that is late is made up for, not left out. Returns how many.
fn send_at(socket: &UdpSocket, time: Duration, rate: f64) -> u64 {
    let begin = Instant::now();
    let mut sent = 0;
    loop {
        let due = Duration::from_secs_f64(sent as f64 / rate.max(1.0));
        // A sender that cannot keep up ends after twice the time.
        if due >= time || begin.elapsed() >= 2 * time {
            return sent;
        }
        thread::sleep(due.saturating_sub(begin.elapsed()));
        send_burst(socket);
        sent += BURST;
    }
}

fn send_burst(socket: &UdpSocket) {
    for _ in 0..BURST {
        // One that the kernel refuses because a queue is full is as lost as one that the network drops.
        let _refused = socket.send(&[0x55; BYTES]);
    }
}
