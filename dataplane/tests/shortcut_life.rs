//! The shortcut's life: it is closed when it ends, however it ends, and when it is told so; it follows its NIC and
//! its endpoints; what it does not carry it says. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

mod common;
#[path = "../engine/tests/common/frames.rs"]
mod frames;
#[path = "common/numbered.rs"]
mod numbered;

use common::cluster::v4;
use common::packet::PacketSocket;
use numbered::{Numbered, OVERLAY, VNI};
use std::net::IpAddr;
use std::time::Duration;
use uvn_api::dataplane::config::Vtep;
use uvn_api::dataplane::message::{Gear, Request, State};
use uvn_rig::test::{NetNs, until};
use uvn_wire::ethernet::Mac;

#[test]
fn killed_under_traffic_it_is_closed() {
    let mut rig = Numbered::new("path = \"shortcut\"");
    rig.flow(|rig| {
        let engine = rig.engine.take().unwrap();
        assert!(
            engine.counted().verdict("tc_stripped") > 0 && engine.counted().verdict("tc_encapsulated") > 0
        );
        engine.kill();
        // The kernel lets go of programs in its own time.
        until("the end of the program", || !rig.node.ip("link show").contains("slow-"));
        std::thread::sleep(Duration::from_millis(50));
        rig.assert_closed("after its end");
    });
}

#[test]
fn a_network_is_revoked_under_traffic() {
    let mut rig = Numbered::new("path = \"shortcut\"");
    rig.flow(|rig| {
        rig.engine().client().remove_network(VNI).unwrap();
        rig.assert_closed("after the answer");
        assert!(rig.engine().counted().verdict("xdp_unknown_vni") > 0);
        // What was counted for it stays in the sum.
        let counted = rig.engine().counted();
        assert!(counted.rx_frames >= counted.verdict("tc_stripped"), "{counted:?}");
        assert!(counted.tx_frames >= counted.verdict("tc_encapsulated"), "{counted:?}");
    });
}

#[test]
fn a_vtep_is_removed_under_traffic() {
    let mut rig = Numbered::new("path = \"shortcut\"");
    rig.flow(|rig| {
        let change = |add: Vec<Vtep>, remove| {
            let request = Request::Vteps { add, remove, add_range: Vec::new(), remove_range: Vec::new() };
            rig.engine().client().change(&request, &[]).unwrap();
        };
        change(Vec::new(), vec![v4(2)]);
        rig.assert_closed("after the answer");
        let counted = rig.engine().counted();
        assert!(counted.verdict("xdp_unknown_vtep") > 0, "{counted:?}");
        assert!(counted.drops.contains_key("tx_no_destination"), "{counted:?}");
        // And back.
        change(vec![Vtep { address: v4(2), overlay: vec![OVERLAY[1]] }], Vec::new());
        rig.assert_open("allowed again");
        let before = rig.engine().counted();
        until("the gear at work", || {
            rig.engine().counted().verdict("tc_stripped") > before.verdict("tc_stripped") + 10
        });
        until("the gear at work", || {
            rig.engine().counted().verdict("tc_encapsulated") > before.verdict("tc_encapsulated") + 10
        });
    });
}

#[test]
fn the_nic_goes_comes_and_changes_under_traffic() {
    let mut rig = Numbered::new("path = \"auto\"");
    rig.flow(|rig| {
        let engine = rig.engine();
        let before = engine.network(VNI).counts;
        rig.node.ip("link set em1 down");
        until("down", || engine.summary().state == State::Down);
        rig.node.ip("link set em1 up");
        rig.node.ip(&format!("neigh replace {} lladdr 02:00:00:00:00:02 nud permanent dev em1", v4(2)));
        until("running", || engine.summary().state == State::Running);
        rig.assert_open("up again");
        until("the gear at work", || {
            engine.network(VNI).shortcut && engine.counted().verdict("tc_encapsulated") > 10
        });
        let after = engine.network(VNI).counts;
        assert!(
            after.rx_frames > before.rx_frames && after.tx_frames > before.tx_frames,
            "{before:?} {after:?}"
        );
        // A frame that does not fit any more is not the gear's.
        rig.node.ip("link set em1 mtu 600");
        until("the MTU", || {
            engine.summary().mtu == 600 && rig.node.ip("link show u1234").contains("mtu 550")
        });
        rig.assert_open("with another MTU");
    });
    // Removed, and another one of that name.
    let engine = rig.engine();
    let mut before = engine.network(VNI).counts;
    // Workers may still hold some of the flow's last frames.
    until("the last frame", || {
        std::thread::sleep(Duration::from_millis(100));
        let last = std::mem::replace(&mut before, engine.network(VNI).counts);
        last == before
    });
    rig.node.ip("link del em1");
    until("absent", || engine.summary().state == State::Absent);
    let after = engine.network(VNI);
    assert!(!after.shortcut);
    assert_eq!(
        (after.counts.rx_frames, after.counts.tx_frames),
        (before.rx_frames, before.tx_frames),
        "kept"
    );
    rig.wire();
    until("running", || engine.summary().state == State::Running);
    engine.wait_for_gear();
    assert!(engine.network(VNI).shortcut);
    rig.flow(|rig| rig.assert_open("on another NIC"));
}

/// Deleted by root, and another one made in its place, which is nobody's endpoint.
#[test]
fn an_endpoint_is_deleted_under_traffic() {
    let mut rig = Numbered::new("path = \"shortcut\"");
    rig.flow(|rig| {
        let engine = rig.engine();
        let before = engine.network(VNI).counts;
        assert!(before.rx_frames > 0 && before.tx_frames > 0);
        rig.node.ip("link del u1234");
        until("the fault", || engine.network(VNI).fault.is_some());
        let after = engine.network(VNI);
        assert!(!after.shortcut);
        assert!(
            after.counts.rx_frames >= before.rx_frames && after.counts.tx_frames >= before.tx_frames,
            "{after:?}"
        );
        let gear = || ["tc_stripped", "tc_encapsulated"].map(|name| engine.counted().verdict(name));
        let (stopped, seen) = (gear(), engine.counted().seen());
        until("traffic", || engine.counted().seen() > seen + 100);
        assert_eq!(gear(), stopped);
    });
    rig.node.ip("link add u1234 type veth peer name other");
    rig.node.ip("link set u1234 up");
    rig.node.ip("link set other up");
    // All is attached anew.
    rig.node.ip("link del em1");
    until("absent", || rig.engine().summary().state == State::Absent);
    rig.wire();
    until("running", || rig.engine().summary().state == State::Running);
    rig.engine().wait_for_gear();
    let stranger = PacketSocket::new(&rig.node, "u1234");
    let (before, count) = (rig.engine().counted(), 10);
    (0..count).for_each(|number| stranger.send(&rig.outgoing(number)));
    (0..count).for_each(|number| rig.send_in(number));
    until("traffic", || rig.engine().counted().seen() >= before.seen() + count);
    let counted = rig.engine().counted();
    assert!(!rig.engine().network(VNI).shortcut);
    assert_eq!((counted.verdict("tc_stripped"), counted.verdict("tc_encapsulated")), (0, 0), "{counted:?}");
}

#[test]
fn the_choice_of_the_gear_is_told() {
    let gear = |top: &str| {
        let rig = Numbered::new(top);
        let summary = rig.engine().summary();
        let carried = rig.engine().network(VNI).shortcut;
        (summary.gear.unwrap(), summary.gear_reason.unwrap(), carried)
    };
    assert_eq!(gear("path = \"engine\""), (Gear::Engine, "configured".into(), false));
    assert_eq!(gear("path = \"shortcut\""), (Gear::Shortcut, "configured".into(), true));
    let (name, reason, carried) = gear("");
    assert!(name == Gear::Shortcut && !reason.is_empty() && carried, "{name}: {reason}");
    let (name, reason, carried) = gear("[encapsulation]\nchecksum = true");
    assert!(name == Gear::Engine && reason.contains("checksums") && !carried, "{name}: {reason}");
}

#[test]
fn what_it_does_not_carry() {
    let rig = Numbered::new("path = \"shortcut\"");
    let user = NetNs::new("user");
    for (vni, more) in [
        (2001, "learning = true\ndevice = { name = \"u2001\" }".to_owned()),
        (2002, format!("device = {{ name = \"u2002\", netns = {:?} }}", user.path())),
        (2003, "device = { name = \"u2003\", kind = \"veth\" }".to_owned()),
    ] {
        let text = format!("vni = {vni}\naddresses = [\"10.7.0.1/24\"]\n{more}");
        rig.engine().client().add_network(&toml::from_str(&text).unwrap(), &[]).unwrap();
        rig.engine().wait_for_gear();
        assert!(!rig.engine().network(vni).shortcut, "{vni}");
    }
    assert!(rig.engine().network(VNI).shortcut);
}

/// The gear takes over one after the other, while the engine carries all of them; the last is under traffic then.
#[test]
fn two_hundred_networks_wait_for_nothing() {
    let rig = Numbered::new("path = \"shortcut\"");
    let client = rig.engine().client();
    client.remove_network(VNI).unwrap();
    let mut networks: Vec<(u32, IpAddr)> =
        (1..=200).map(|number| (u32::from(number), [10, 8, number, 1].into())).collect();
    networks.push((VNI, OVERLAY[0]));
    for (vni, address) in &networks {
        let text = format!("vni = {vni}\naddresses = [\"{address}/24\"]\ndevice = {{ name = \"u{vni}\" }}\n");
        client.add_network(&toml::from_str(&text).unwrap(), &[]).unwrap();
    }
    // The last in turn.
    let last = rig.engine().network(VNI);
    assert!(last.waiting && !last.shortcut, "it has waited for the gear");
    assert!(rig.engine().summary().waiting > 0);
    // The host answers, and would ask for the neighbour from another network's address.
    rig.node.ip(&format!("neigh replace {} lladdr {} nud permanent dev u1234", OVERLAY[1], Mac::of(v4(2))));
    rig.send_each(&networks);
    until("a frame for each", || {
        client.networks().unwrap().iter().all(|network| network.counts.rx_frames > 0)
    });
    let mut carried = 0;
    rig.assert_complete(|| {
        let engine = rig.engine();
        if carried == 0 && engine.network(VNI).shortcut {
            carried = engine.counted().verdict("tc_encapsulated") + 100;
        }
        carried > 0 && engine.counted().verdict("tc_encapsulated") >= carried
    });
    rig.engine().wait_for_gear();
    assert!(client.networks().unwrap().iter().all(|network| network.shortcut && !network.waiting));
}

/// Those that go while they wait, and those whose endpoint does.
#[test]
fn who_waits_may_go() {
    let rig = Numbered::new("path = \"shortcut\"");
    let client = rig.engine().client();
    for vni in 1..=40 {
        let text =
            format!("vni = {vni}\naddresses = [\"10.8.{vni}.1/24\"]\ndevice = {{ name = \"u{vni}\" }}\n");
        client.add_network(&toml::from_str(&text).unwrap(), &[]).unwrap();
    }
    assert!(rig.engine().network(40).waiting);
    rig.node.ip("link del u39");
    client.remove_network(40).unwrap();
    rig.engine().wait_for_gear();
    let states = client.networks().unwrap();
    let alone: Vec<u32> =
        states.iter().filter(|network| !network.shortcut).map(|network| network.vni).collect();
    assert_eq!((states.len(), alone), (40, vec![39]));
    until("the fault", || rig.engine().network(39).fault.is_some());
}

/// Not more of them: the kernel takes 10 to 60 ms for each program, as busy as it is (synchronize_rcu in tcx_entry_sync).
#[test]
fn sixty_networks_after_a_kill() {
    const MORE: u32 = 60;
    let networks: String = (1..=MORE)
        .map(|number| {
            let vni = 5000 + number;
            format!("[[network]]\nvni = {vni}\naddresses = [\"10.8.{number}.1/24\"]\ndevice = {{ name = \"u{vni}\" }}\n")
        })
        .collect();
    let mut rig = Numbered::with("path = \"shortcut\"", &networks);
    for life in 0..2 {
        let states = rig.engine().client().networks().unwrap();
        assert_eq!(states.len(), MORE as usize + 1, "life {life}");
        assert!(states.iter().all(|network| network.shortcut && network.fault.is_none()), "life {life}");
        rig.flow(|rig| rig.assert_open("one of many"));
        rig.engine.take().unwrap().kill();
        if life == 0 {
            rig.start();
        }
    }
}
