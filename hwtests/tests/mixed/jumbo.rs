//! Jumbo frames are more than the engine takes: under `auto` they are for the shortcut, and for kernel VXLAN where it cannot
//! be had, be that known at once or found later.

use super::*;

#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn jumbo_frames_need_the_shortcut_or_the_kernel() {
    let cluster = Cluster::two();
    cluster.switch.ip("link set n1.0 mtu 9000\nlink set n2.0 mtu 9000\nlink set br0 mtu 9000\n");
    cluster.nodes.iter().for_each(|node| node.ip("link set em1 mtu 9000"));
    let config = cluster.config("auto", "");
    let daemons = cluster.nodes.iter().map(|node| node.uvnd(&config)).collect();
    let site = Site { daemons, cluster };
    site.cluster.attach(&[ALICE, BOB]);
    let [here, there] = site.cluster.pair();
    let (path, reason) = carrier(here, "em1");
    if !path::has_tc_links() {
        assert_eq!((path.as_str(), reason.contains("Linux 6.6")), ("kernel", true), "{reason}");
        assert_whole_frames(&site);
        return site.conclude();
    }
    assert_eq!((path.as_str(), reason.contains("MTU 9000")), ("data_plane", true), "{reason}");
    site.assert_connected();
    [here, there].into_iter().for_each(|node| path::assert_used(node, "shortcut"));
    assert_whole_frames(&site);

    // The next data plane finds the shortcut's device taken.
    site.daemons[0].signal(Signal::SIGSTOP);
    let killed = dataplane(here);
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    let slow = here.within(|| format!("slow-{}", nix::net::if_::if_nametoindex("em1").unwrap()));
    let taken = format!("/sys/class/net/{slow}");
    here.wait("end of the data plane", PATIENCE, || here.read(format!("{taken}/ifindex")).is_none());
    here.ip(&format!("link add {slow} type dummy"));
    let left = || here.sh("ls /sys/class/net").contains("gro-");
    assert!(left(), "which would keep the port from kernel VXLAN");
    site.daemons[0].signal(Signal::SIGCONT);
    // It is looked at every half a minute.
    here.wait("kernel VXLAN", 3 * PATIENCE, || carrier(here, "em1").0 == "kernel");
    let (_, reason) = carrier(here, "em1");
    assert!(reason.contains("MTU 9000 is more than the engine takes") && reason.contains(&slow), "{reason}");
    assert!(!left());
    site.assert_connected();
    assert_whole_frames(&site);
    // It is told of until uvnd has looked at everything again.
    here.wait("approval", 3 * PATIENCE, || here.try_uvn(&["check"]).status.success());
    site.conclude();
}

/// Frames as long as the NIC's go through a user's network in one piece.
fn assert_whole_frames(site: &Site) {
    let [here, there] = site.cluster.pair();
    for node in [here, there] {
        let endpoint = node.sh(&format!("ip link show uvn{ALICE}.0"));
        assert!(endpoint.contains("mtu 8950"), "{endpoint}");
    }
    let to = there.nics()[0].v4;
    here.sh(&format!("ping -n -c 5 -i 0.3 -W 5 -M do -s 8900 -I uvn{ALICE} {to} | grep -q ' from {to}'"));
}
