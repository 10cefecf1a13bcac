//! TAP, veth and AF_XDP ports on real devices, in namespaces of their own. Needs root.
mod common;

use std::net::IpAddr;

use common::NetNs;
use uvn_dataplane::link::{self, LinkError};
use uvn_wire::ethernet::Mac;

#[test]
fn links_are_made_changed_and_deleted() {
    let (here, there) = (NetNs::new("lnka"), NetNs::new("lnkb"));
    let peer_netns = std::fs::File::open(format!("/run/netns/{}", there.name())).unwrap();
    here.run(|| {
        use std::os::fd::AsFd;
        link::create_veth("veth0", "veth1", Some(peer_netns.as_fd())).unwrap();
        assert!(matches!(link::create_veth("veth0", "veth9", None), Err(LinkError::Refused { .. })));
        let mac: Mac = "02:75:0a:00:00:01".parse().unwrap();
        link::set_mac("veth0", mac).unwrap();
        link::set_mtu("veth0", 1400).unwrap();
        link::set_up("veth0", true).unwrap();
        link::add_address("veth0", "10.9.0.1".parse::<IpAddr>().unwrap(), 24).unwrap();
        link::add_address("veth0", "fd09::1".parse::<IpAddr>().unwrap(), 64).unwrap();
        let veth = link::get("veth0").unwrap();
        assert_eq!((veth.mac, veth.mtu, veth.up, veth.arphrd), (Some(mac), 1400, true, 1));
        assert!(!veth.running, "its peer is down");
        assert_eq!(link::list().unwrap().len(), 2, "lo and veth0");
        assert_eq!(link::queues("veth0").unwrap(), 1);
        link::disable_tx_offloads("veth0").unwrap();
    });
    there.run(|| link::set_up("veth1", true)).unwrap();
    here.run(|| {
        assert!(link::get("veth0").unwrap().running);
        link::set_up("veth0", false).unwrap();
        assert!(!link::get("veth0").unwrap().up);
        link::delete("veth0").unwrap();
    });
    for result in [
        there.run(|| link::get("veth1").map(drop)),
        there.run(|| link::set_mtu("veth1", 1400)),
        there.run(|| link::delete("veth1")),
        there.run(|| link::disable_tx_offloads("veth1")),
        there.run(|| link::queues("veth1").map(drop)),
    ] {
        assert!(matches!(&result, Err(LinkError::NotFound(name)) if name == "veth1"), "{result:?}");
    }
}
