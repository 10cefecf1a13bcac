//! The NIC and what stands beside it under others' hands: moved, renamed, set down, made anew; its addresses, programs and
//! settings taken away. In both gears. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/links.rs"]
mod links;
#[path = "common/pair.rs"]
mod pair;

use common::cluster::{Cluster, Settings, V4, VNI};
use common::engine::Engine;
use common::traffic::Place;
use links::Links;
use pair::{GEARS, Rig};
use std::net::UdpSocket;
use uvn_api::dataplane::message::{Note, State, XdpMode};
use uvn_dataplane::port::link;
use uvn_rig::test::{NetNs, until};

/// In the gear in which it was.
fn works_again(rig: &Rig, sections: &str) {
    let engine = &rig.engines[0];
    until("the NIC in use", || engine.summary().state == State::Running);
    until("the same gear", || engine.network(VNI).shortcut == (sections == GEARS[1]));
    until("the next hop", || engine.client().hops().unwrap().iter().all(|hop| hop.mac.is_some()));
    rig.speak();
}

fn is_up(node: &NetNs, device: &str) -> bool {
    node.run(|| link::get(device)).is_ok_and(|link| link.up)
}

/// What somebody does to a device of ours.
const DEEDS: [&str; 4] = ["link del D", "link set D down", "link set D name other0", "link set D netns N"];

#[test]
fn the_way_to_the_engine_is_made_anew() {
    let rig = Rig::new(GEARS[1], 1500);
    let elsewhere = NetNs::new("elsewhere");
    let device = format!("slow-{}", rig.nic());
    for deed in DEEDS {
        rig.speak();
        let before = rig.here().run(|| link::get(&device)).unwrap().index;
        rig.here().ip(&deed.replace('D', &device).replace('N', elsewhere.name()));
        until(deed, || {
            rig.here().run(|| link::get(&device)).is_ok_and(|link| link.up && link.index != before)
        });
        works_again(&rig, GEARS[1]);
        for node in [rig.here(), &elsewhere] {
            let links = node.ip("-br link show");
            assert!(!links.contains("other0") && links.matches("slow-").count() < 2, "{deed}: {links}");
        }
    }
    assert!(!elsewhere.ip("-br link show").contains("slow-"));
}

#[test]
fn the_device_for_gro_is_made_anew() {
    let rig = Rig::new(GEARS[1], 1500);
    let elsewhere = NetNs::new("elsewhere");
    let device = format!("gro-{}", rig.nic());
    for deed in DEEDS {
        rig.here().ip(&deed.replace('D', &device).replace('N', elsewhere.name()));
        until(deed, || is_up(rig.here(), &device));
        assert!(!rig.nic_notes().contains(&Note::NotJoined));
        rig.speak();
        assert!(!rig.here().ip("-br link show").contains("other0"), "{deed}");
    }
}

#[test]
fn the_nic_is_renamed_and_moved() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let elsewhere = NetNs::new("elsewhere");
        let absent = || rig.engines[0].summary().state == State::Absent;
        rig.here().ip("link set em1 name em9");
        until("its absence", absent);
        rig.here().ip("link set em9 name em1");
        works_again(&rig, sections);
        rig.here().ip(&format!("link set em1 netns {}", elsewhere.name()));
        until("its absence", absent);
        let notes = || rig.nic_notes().contains(&Note::VtepAbsent { vtep: V4[0] });
        until("a word of its address", notes);
        elsewhere.ip(&format!("link set em1 netns {}", rig.here().name()));
        rig.here().ip("link set em1 up");
        rig.here().ip("addr add 10.0.0.1/24 dev em1");
        works_again(&rig, sections);
        until("no word of its address", || !notes());
    }
}

#[test]
fn the_nic_is_set_down() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        rig.speak();
        rig.here().ip("link set em1 down");
        let engine = &rig.engines[0];
        until("its state", || engine.summary().state == State::Down);
        until("no way", || {
            let (hops, summary) = (engine.client().hops().unwrap(), engine.summary());
            let is_told = summary.workers.iter().all(|worker| worker.epoch == summary.epoch);
            is_told && hops.iter().all(|hop| hop.mac.is_none())
        });
        let before = engine.counted().tx_frames;
        let ((here, own), (_, theirs)) = (rig.cluster.user(0), rig.cluster.user(1));
        let socket = here.run(|| UdpSocket::bind((own[0], 0)).unwrap());
        until("its drops", || {
            let _refused = socket.send_to(b"uvn", (theirs[0], 9));
            engine.network(VNI).counts.drops.contains_key("tx_no_next_hop")
        });
        assert_eq!(engine.counted().tx_frames, before, "what is lost is not counted as sent");
        rig.here().ip("link set em1 up");
        works_again(&rig, sections);
    }
}

#[test]
fn the_nic_is_made_anew() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let node = rig.here();
        node.ip("link del em1");
        until("its absence", || rig.engines.iter().all(|engine| engine.summary().state == State::Absent));
        let links = node.ip("-br link show");
        assert!(!links.contains("slow-") && !links.contains("gro-"), "{links}");
        // Once a data plane has its end, a veth's other end has no offloads to switch off.
        node.veth("fresh", &rig.cluster.nodes[1], "fresh");
        for node in &rig.cluster.nodes {
            node.run(|| link::disable_tx_offloads("fresh")).unwrap();
        }
        for (number, node) in rig.cluster.nodes.iter().enumerate() {
            node.ip("link set fresh name em1");
            node.ip(&format!("addr add 10.0.0.{}/24 dev em1", number + 1));
        }
        for engine in &rig.engines {
            until("the NIC in use", || engine.summary().state == State::Running);
        }
        works_again(&rig, sections);
    }
}

#[test]
fn the_nics_address_is_taken_away() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let noted = || rig.nic_notes().contains(&Note::VtepAbsent { vtep: V4[0] });
        assert!(!noted());
        rig.here().ip("addr del 10.0.0.1/24 dev em1");
        until("a word of it", noted);
        rig.here().ip("addr add 10.0.0.1/24 dev em1");
        until("no word of it", || !noted());
        works_again(&rig, sections);
    }
}

#[test]
fn programs_of_the_nic_are_not_taken_off() {
    let deeds: [&[&str]; 4] = [
        &["ip", "link", "set", "em1", "xdp", "off"],
        &["tc", "qdisc", "add", "dev", "em1", "clsact"],
        &["tc", "filter", "del", "dev", "em1", "ingress"],
        &["tc", "qdisc", "del", "dev", "em1", "clsact"],
    ];
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let links = || Links::of(rig.engines[0].pid(), rig.nic());
        let before = links();
        for deed in deeds {
            let done = rig.here().command(deed[0]).args(&deed[1..]).status().unwrap().success();
            // That there is nothing else to be taken off is no refusal of ours.
            assert!(done || deed[1] != "qdisc", "{deed:?}");
            assert_eq!(links(), before, "{deed:?}");
            rig.speak();
        }
    }
}

#[test]
fn programs_that_are_detached_are_put_back() {
    for sections in GEARS {
        let rig = Rig::new(sections, 1500);
        let links = || Links::of(rig.engines[0].pid(), rig.nic());
        let before = links();
        assert_eq!(before.0.len(), 1);
        before.detach();
        until("another program", || links() != before && links().0.len() == 1);
        works_again(&rig, sections);
    }
}

#[test]
fn a_bridge_is_a_nic() {
    for sections in GEARS {
        let settings = Settings { sections, generic: true, ..Settings::default() };
        let rig = Rig::on(Cluster::bridged(&V4[..2]).together(), &settings);
        let summary = rig.engines[0].summary();
        let xdp = (sections == GEARS[0]).then_some(XdpMode::Generic);
        assert_eq!(summary.xdp, xdp);
        rig.speak();
        rig.cluster.talk(0, 1);
        rig.engines.iter().for_each(Engine::assert_no_drops);
    }
}

#[test]
fn what_takes_from_the_gear_is_noted() {
    let rig = Rig::new(GEARS[1], 1500);
    let node = rig.here();
    let gro = |state: &str| {
        let set = node.command("ethtool").args(["-K", "em1", "gro", state]).status().unwrap();
        assert!(set.success());
        rig.nic_notes()
    };
    assert!(gro("off").contains(&Note::GroOff));
    assert_eq!(gro("on"), []);
    // Another NIC on the subnet, which answers for all addresses of the node.
    let outside = NetNs::new("outside");
    node.veth("em2", &outside, "far");
    node.ip("addr add 10.0.0.77/24 dev em2");
    let rival = Note::Rival { device: "em2".into() };
    until("a word of it", || rig.nic_notes() == [rival.clone()]);
    node.run(|| std::fs::write("/proc/sys/net/ipv4/conf/em2/arp_ignore", "1")).unwrap();
    assert_eq!(rig.nic_notes(), []);
    node.ip("link del em2");
    // A way that is narrower than the NIC.
    node.ip("route add 10.0.0.2/32 dev em1 mtu 1300");
    let narrow = Note::NarrowWay { vtep: V4[1], mtu: 1300, least: 1330 };
    until("a word of it", || rig.nic_notes() == [narrow.clone()]);
    node.ip("route change 10.0.0.2/32 dev em1 mtu 1330");
    until("no word of it", || rig.nic_notes().is_empty());
}

#[test]
fn frames_that_generic_xdp_does_not_see_are_noted() {
    let cluster = Cluster::wired(&V4[..2], 1).together();
    Rig::set_mtu(&cluster, 9000);
    let engine =
        |node, sections| cluster.engine(node, &Settings { sections, generic: true, ..Settings::default() });
    let engines = [engine(0, GEARS[0]), engine(1, GEARS[1])];
    assert_eq!(engines[0].summary().xdp, Some(XdpMode::Generic));
    let ((_, own), (there, theirs)) = (cluster.user(0), cluster.user(1));
    let Place(there, theirs) = Place(there, theirs[0]);
    let socket = there.run(|| UdpSocket::bind((theirs, 0)).unwrap());
    until("a word of it", || {
        let _lost = socket.send_to(b"uvn", (own[0], 9));
        engines[0].summary().notes.iter().any(|note| matches!(note, Note::Unseen { frames } if *frames > 0))
    });
}
