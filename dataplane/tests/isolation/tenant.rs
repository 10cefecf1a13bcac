//! A tenant who sends whatever he likes from his endpoint.

use super::*;
use common::traffic::uninterrupted;
use uvn_dataplane::port::link;

impl Rig {
    /// Sends frames from the first user's endpoint, and returns what was counted of them.
    fn emit(&self, frames: &[Vec<u8>]) -> Counted {
        let before = self.engine.counted();
        let sent = |counted: &Counted| counted.tx_frames + counted.drops.values().sum::<u64>();
        let count = frames.len() as u64;
        frames.iter().for_each(|frame| self.endpoints[0].send(frame));
        let enough = |counted: &Counted| sent(counted) >= sent(&before) + count;
        let counted = self.engine.counted_when("the tenant's frames", enough).since(&before);
        assert_eq!(sent(&counted), count, "frames that the test did not send");
        counted
    }

    /// Frames that leave, once that many did.
    fn left(&self, count: u64) -> Vec<Vec<u8>> {
        let left = (0..count).map(|_| self.answer(PATIENCE).unwrap()).collect();
        assert_eq!(self.answer(Duration::ZERO), None, "more left");
        left
    }
}

fn to_b(source: Mac, from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    udp((source, Mac::of(B)), (from, 5000), (to, port), 0, &[7; 40])
}

fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let own = Mac::of(A);
    let good = to_b(own, A, B, 9);
    let (IpAddr::V4(a), IpAddr::V4(b), IpAddr::V4(c)) = (A, B, C) else { unreachable!() };
    let (IpAddr::V6(c6), IpAddr::V6(b6)) = (v6(3), B6) else { unreachable!() };
    let nested = wrapped(C, USERS[1], &genuine());
    let to_port =
        |from: IpAddr, to: IpAddr| udp((own, Mac::of(B)), (from, 50_000), (to, PORT), 0, &nested[42..]);
    let hidden = ip(A6, B6, 0, 0, &[&[17, 0, 1, 4, 0, 0, 0, 0], &to_port(A6, B6)[54..]].concat()).1;
    let other = |ethertype: u16| ethernet(own, Mac::of(B), ethertype, &[0; 60]);
    let another = arp_request(own, a, b);
    vec![
        ("random MAC", to_b(Mac([0x52, 0x54, 0, 1, 2, 3]), A, B, 9), "tx_source_mac"),
        ("MAC of another VTEP", to_b(Mac::of(C), C, B, 9), "tx_source_mac"),
        ("IP of another VTEP", to_b(own, C, B, 9), "tx_source_ip"),
        ("IP of the destination", to_b(own, B, B, 9), "tx_source_ip"),
        ("off-subnet IP", to_b(own, IpAddr::from([192, 168, 1, 1]), B, 9), "tx_source_ip"),
        ("loopback IP", to_b(own, IpAddr::from([127, 0, 0, 1]), B, 9), "tx_source_ip"),
        ("no IP", to_b(own, IpAddr::from([0, 0, 0, 0]), B, 9), "tx_source_ip"),
        ("IPv6 of another VTEP", to_b(own, D6, B6, 9), "tx_source_ip"),
        ("no IPv6", to_b(own, IpAddr::from([0; 16]), B6, 9), "tx_source_ip"),
        ("ARP for another's address", arp_request(own, c, b), "tx_source_ip"),
        ("ARP with another's MAC", edited(&another, &[(27, 3)]), "tx_source_mac"),
        ("ARP for nobody", arp_request(own, a, Ipv4Addr::new(10, 0, 0, 77)), "tx_no_destination"),
        ("solicitation as another", frames::solicitation(own, c6, b6), "tx_source_ip"),
        ("LLDP", other(0x88cc), "tx_protocol"),
        ("VLAN", other(ethertype::VLAN), "tx_protocol"),
        ("802.3", other(60), "tx_protocol"),
        ("nested VXLAN", to_port(A, B), "tx_nested_vxlan"),
        ("nested VXLAN over IPv6", to_port(A6, B6), "tx_nested_vxlan"),
        (
            "nested VXLAN behind options",
            ethernet(own, Mac::of(B), ethertype::IPV6, &hidden),
            "tx_nested_vxlan",
        ),
        ("nested VXLAN in a first fragment", edited(&to_port(A, B), &[(20, 0x20)]), "tx_nested_vxlan"),
        ("to a stranger", edited(&good, &[(5, 9)]), "tx_no_destination"),
        ("to a random MAC", edited(&good, &[(1, 0x54)]), "tx_no_destination"),
        ("to himself", edited(&good, &[(5, 1)]), "tx_no_destination"),
        ("IP length beyond the frame", edited(&good, &[(16, 1)]), "tx_bad_length"),
        ("other version", edited(&good, &[(14, 0x65)]), "tx_bad_length"),
    ]
}

#[test]
fn a_tenant_cannot_forge() {
    GEARS.into_iter().for_each(forge);
}

fn forge(gear: &'static str) {
    let rig = Rig::new(gear);
    let other = rig.engine.network(USERS[1]).counts;
    for (name, frame, reason) in cases() {
        let counted = rig.emit(&vec![frame; TIMES as usize]);
        let drops = BTreeMap::from([(reason.to_owned(), TIMES)]);
        assert_eq!(counted, Counted { drops, ..Counted::default() }, "{name}");
        assert_eq!(rig.left(0).len(), 0, "{name}");
    }
    let good = to_b(Mac::of(A), A, B, 9);
    for length in 14..good.len() {
        let counted = rig.emit(&[good[..length].to_vec()]);
        assert_eq!(counted.drops, BTreeMap::from([("tx_bad_length".into(), 1)]), "cut to {length} bytes");
        assert_eq!(rig.left(0).len(), 0, "cut to {length} bytes");
    }
    assert_eq!(rig.emit(std::slice::from_ref(&good)).tx_frames, 1);
    assert!(rig.left(1)[0].ends_with(&good));
    // Neither the other user nor the host hears of any of it.
    assert!(rig.endpoints[1].receive(Duration::ZERO).is_none());
    assert_eq!(rig.engine.network(USERS[1]).counts, other);
    assert!(rig.port.recv(&mut [0]).is_err());
}

/// Whatever he sends: what leaves is his, under his VNI, to an allowed VTEP.
#[test]
fn three_thousand_changed_frames_of_a_tenant() {
    GEARS.into_iter().for_each(changed_frames_of_a_tenant);
}

fn changed_frames_of_a_tenant(gear: &'static str) {
    let rig = Rig::new(gear);
    let good = to_b(Mac::of(A), A, B, 9);
    let mut random = content(3000 * 9, 0x6f_7574).into_iter();
    let mut random = || usize::from(random.next().unwrap());
    let (mut left, mut stayed) = (0, 0);
    for _ in 0..30 {
        let batch: Vec<Vec<u8>> = (0..100)
            .map(|_| {
                let mut frame = good.clone();
                for _ in 0..=random() % 4 {
                    let at = random() % frame.len();
                    frame[at] = random() as u8;
                }
                frame
            })
            .collect();
        let counted = rig.emit(&batch);
        stayed += counted.drops.values().sum::<u64>();
        left += counted.tx_frames;
        for frame in rig.left(counted.tx_frames) {
            let (outer, inner) = frame.split_at(50);
            assert_eq!(outer[12..14], [8, 0]);
            assert_eq!(outer[26..30], [10, 0, 0, 1], "outer source");
            assert!(outer[30..33] == [10, 0, 0] && [2, 3].contains(&outer[33]), "outer destination");
            assert_eq!(u32::from_be_bytes([0, outer[46], outer[47], outer[48]]), USERS[0]);
            assert_eq!(inner[6..12], Mac::of(A).0);
            assert_eq!((&inner[12..14], &inner[26..30]), (&[8, 0][..], &[10, 0, 0, 1][..]));
            assert!(batch.iter().any(|sent| sent == inner));
        }
    }
    assert!(left > 300 && stayed > 300, "{left} left, {stayed} stayed");
    assert_eq!(rig.engine.counted().verdict("tc_encapsulated") > 300, gear == "shortcut");
}

/// Nobody reads his endpoint any more: what he sends must not find another way.
#[test]
fn a_killed_data_plane_leaves_a_tenant_no_way_out() {
    for (gear, kind) in [("engine", "tap"), ("engine", "veth"), ("shortcut", "tap")] {
        let (node, outside, user) = (NetNs::new("node"), NetNs::new("outside"), NetNs::new("user"));
        node.veth("em1", &outside, "wire");
        node.ip(&format!("addr add {A}/24 dev em1"));
        // The worst case.
        for setting in ["ip_forward", "conf/all/accept_local", "conf/default/accept_local"] {
            node.run(|| std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), "1").unwrap());
        }
        let config = format!(
            r#"
            nic = "em1"
            path = "{gear}"
            vtep = ["{A}"]
            peers.vtep = [{{ address = "{B}" }}]
            [[network]]
            vni = 1234
            addresses = ["{A}/24"]
            device = {{ name = "uvn", kind = "{kind}", netns = {:?} }}
            "#,
            user.path()
        );
        let engine = Engine::start(&node, &config);
        let host = node.run(|| UdpSocket::bind(("0.0.0.0", 9)).unwrap());
        host.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        engine.kill();
        let (endpoint, wire) = (PacketSocket::new(&user, "uvn"), PacketSocket::new(&outside, "wire"));
        let macs: Vec<Mac> = node.run(link::list).unwrap().into_iter().filter_map(|link| link.mac).collect();
        for mac in macs.into_iter().chain([Mac::BROADCAST]) {
            for (from, to) in [(B, A), (A, A), (v4(50), v4(60))] {
                endpoint.try_send(&udp((Mac::of(A), mac), (from, 5000), (to, 9), 0, b"out"));
            }
        }
        let got = uninterrupted(|| host.recv(&mut [0; 3]));
        assert!(got.is_err(), "{kind}: at the host");
        let is_his = |frame: &Vec<u8>| frame.ends_with(b"out");
        assert_eq!(received(&wire).find(is_his), None, "{kind}: on the wire");
    }
}
