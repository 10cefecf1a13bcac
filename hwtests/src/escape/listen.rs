//! Sockets that listen where they should not: to get what is meant for somebody else.

use super::{FREE_PORT, PORT, SRUN_PORT, socket};
use crate::cluster::OUTSIDE;
use crate::reach::{serve_tcp, serve_udp};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// How to listen.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Trick {
    /// UDP on FREE_PORT, connected and disconnected again: the kernel forgets the socket's device
    Disconnected,
    /// TCP without bind: the kernel chooses a port
    Autobind,
    /// The same, by a program that calls itself srun
    AutobindAsSrun,
    /// TCP on SRUN_PORT, as srun does
    Srun,
    /// UDP on PORT of the off-subnet host, to send everything back
    Reflect,
    /// The kernel's own socket below one of AF_SMC, without bind
    Smc,
}

/// Opens the socket, on a device if one is named, writes `ready` and `port N`, answers everybody with `name`. Runs for ever.
///
/// # Errors
/// The socket cannot be opened.
pub fn run(how: Trick, name: &str, device: Option<&str>) -> io::Result<()> {
    let any = |port| SockAddr::from(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
    let stream = || Socket::new(Domain::IPV4, Type::STREAM, None);
    let socket = match how {
        Trick::Disconnected => {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.bind(&any(FREE_PORT))?;
            socket.connect(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9).into())?;
            // Refused where it keeps the port.
            let _still_bound = socket::disconnect(&socket);
            announce(FREE_PORT);
            serve_udp(&socket.into(), name);
            return Ok(());
        }
        Trick::Reflect => {
            // Bound, so that the answers have that source.
            let bind = |address: IpAddr| UdpSocket::bind((address, PORT));
            let (ipv4, ipv6) = (bind(OUTSIDE.0.into())?, bind(OUTSIDE.1.into())?);
            announce(PORT);
            std::thread::spawn(move || reflect(&ipv4));
            reflect(&ipv6);
            return Ok(());
        }
        Trick::Autobind => stream()?,
        Trick::AutobindAsSrun => {
            socket::pose_as_srun();
            stream()?
        }
        Trick::Srun => {
            socket::pose_as_srun();
            let socket = stream()?;
            socket.set_reuse_address(true)?;
            socket.bind(&any(SRUN_PORT))?;
            socket
        }
        Trick::Smc => socket::any(super::protocol::AF_SMC, libc::SOCK_STREAM, 0)?,
    };
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.listen(8)?;
    announce(socket.local_addr()?.as_socket().map_or(0, |address| address.port()));
    socket.set_read_timeout(None)?;
    let listener = TcpListener::from(socket);
    for stream in listener.incoming() {
        serve_tcp(stream?, name);
    }
    Ok(())
}

/// Sends every datagram back. Runs for ever.
fn reflect(udp: &UdpSocket) {
    let mut datagram = [0; 512];
    loop {
        // An error is an ICMP answer to what we sent to somebody who has left.
        let Ok((length, from)) = udp.recv_from(&mut datagram) else { continue };
        let _gone = udp.send_to(&datagram[..length], from);
    }
}

fn announce(port: u16) {
    println!("ready\nport {port}");
}
