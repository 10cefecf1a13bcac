//! UDP packets per second: 64-byte datagrams as fast as `send` goes, counted where they arrive.

use super::ready;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// Payload bytes of a datagram.
const BYTES: usize = 64;
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

/// Sends and writes how many datagrams the kernel took.
///
/// # Errors
/// A socket cannot be made or connected.
pub fn flood(to: SocketAddr, threads: usize, seconds: f64) -> io::Result<()> {
    let sockets = (0..threads).map(|_| connected(to)).collect::<io::Result<Vec<_>>>()?;
    let begin = Instant::now();
    let time = Duration::from_secs_f64(seconds);
    let sent: u64 = thread::scope(|scope| {
        let senders: Vec<_> =
            sockets.iter().map(|socket| scope.spawn(move || send_for(socket, begin, time))).collect();
        senders.into_iter().map(|sender| sender.join().unwrap_or(0)).sum()
    });
    println!("{}", serde_json::json!({ "sent": sent, "seconds": begin.elapsed().as_secs_f64() }));
    Ok(())
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket)
}

fn send_for(socket: &UdpSocket, begin: Instant, time: Duration) -> u64 {
    let datagram = [0x55; BYTES];
    let mut sent = 0;
    while begin.elapsed() < time {
        for _ in 0..32 {
            // A full queue is the measurement, not an error.
            sent += u64::from(socket.send(&datagram).is_ok());
        }
    }
    sent
}
