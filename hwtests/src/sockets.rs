//! Whose sockets are where.

use uvn_rig::namespace::Namespace;

/// A TCP or UDP socket, as `ss` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// `LISTEN`, `ESTAB`, `UNCONN` and so on.
    pub state: String,
    /// Its address on this host.
    pub address: String,
    /// Its port on this host.
    pub port: u16,
    /// The port that it is connected to.
    pub peer_port: Option<u16>,
    /// The device that it is bound to.
    pub device: Option<String>,
}

/// A user's sockets on a host.
#[must_use]
pub fn sockets(host: &Namespace, uid: u32) -> Vec<Bound> {
    let owner = format!("uid:{uid}");
    let lines = host.sh("ss --no-header --tcp --udp --all --numeric --extended");
    lines.lines().filter(|line| line.split_whitespace().any(|word| word == owner)).filter_map(bound).collect()
}

/// `tcp LISTEN 0 128 0.0.0.0%uvn1234:5000 0.0.0.0:* uid:1234 ...`
fn bound(line: &str) -> Option<Bound> {
    let mut words = line.split_whitespace().skip(1);
    let state = words.next()?.to_owned();
    let (place, port) = words.nth(2)?.rsplit_once(':')?;
    let (_, peer_port) = words.next()?.rsplit_once(':')?;
    let (address, device) = match place.split_once('%') {
        Some((address, device)) => (address, Some(device.to_owned())),
        None => (place, None),
    };
    let address = address.trim_matches(['[', ']']).to_owned();
    Some(Bound { state, address, port: port.parse().ok()?, peer_port: peer_port.parse().ok(), device })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ss_are_understood() {
        let of = |address: &str, port, device: Option<&str>| {
            let device = device.map(String::from);
            Some(Bound { state: "LISTEN".into(), address: address.into(), port, peer_port: None, device })
        };
        let line =
            |place| format!("tcp   LISTEN 0      128    {place}   0.0.0.0:*    uid:1234 ino:5 sk:6 <->");
        assert_eq!(bound(&line("0.0.0.0%uvn1234:5000")), of("0.0.0.0", 5000, Some("uvn1234")));
        assert_eq!(bound(&line("[::]%uvn1234:22")), of("::", 22, Some("uvn1234")));
        assert_eq!(bound(&line("127.0.0.1:6010")), of("127.0.0.1", 6010, None));
        assert_eq!(bound(&line("*:6010")), of("*", 6010, None));
        let connected = bound("tcp ESTAB 0 0 10.0.0.2:36704 10.0.0.1:61033 uid:1234 ino:5 sk:6 <->");
        assert_eq!(connected.and_then(|socket| socket.peer_port), Some(61033));
    }
}
