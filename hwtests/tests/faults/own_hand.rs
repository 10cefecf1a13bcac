//! No outage by uvn's own hand: beside rules of the site, by another data path, and after `uvn purge`.

use super::closed::complaint;
use super::*;

/// Source routing of a multi-homed node, and what `wg-quick up` adds for a default route.
const SITE: &str = "route add default via 10.0.0.254 table 100\n\
                    rule add from 10.0.0.1 lookup 100\n\
                    rule add not fwmark 51820 lookup 100\n\
                    rule add lookup main suppress_prefixlength 0\n";

/// Rules without a preference come behind `local`, as without uvn; if something puts them before it, that is named.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn rules_of_a_site_stay_behind_local() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    let _service = node.serve(0, "root", &["tcp:0.0.0.0:7000".into()]);
    let own = ["tcp:127.0.0.1:7000", "tcp:10.0.0.1:7000"].map(String::from);
    let here = SocketAddr::new(node.addresses()[0], 7000);
    let assert_reached = || {
        let answers = node.reach(0, "root", &own);
        assert!(answers.values().all(|answer| answer.as_deref() == Ok("root")), "{answers:?}");
        cluster.storage.within(|| TcpStream::connect_timeout(&here, PATIENCE).map(drop)).unwrap();
    };
    node.ip(SITE);
    assert_reached();
    approve(node);
    drop(daemon);
    node.ip("rule del lookup local pref 0\nrule del lookup local pref 1\nrule add lookup local pref 32765\n");
    let said = complaint(node);
    assert!(said.contains("UVN-KERNEL-STATE") && said.contains("rule"), "{said}");
    let mut daemon = node.restart_uvnd();
    approve(node);
    assert_reached();
    daemon.assert_alive();
}

/// Connections go on by the other data path. One that cannot be had is named, and tried again by itself.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn connections_live_through_another_data_path() {
    let cluster = Cluster::two();
    let [here, there] = cluster.pair();
    let config = |path| cluster.config(path, "");
    let mut daemons = [here, there].map(|node| node.uvnd(&config("engine")));
    [here, there].into_iter().for_each(|node| attach(node, ALICE));
    let flow = Flow::start(ALICE, here, there, 5000);
    let switch = |path| {
        here.write("/etc/uvn/uvn.toml", &config(path));
        here.uvn(&["reload"]);
    };
    for path in ["kernel", "engine"] {
        switch(path);
        flow.assert_flowing();
        approve(here);
    }
    // Kernel VXLAN's port is somebody else's.
    let taken = here.within(|| UdpSocket::bind("0.0.0.0:4789").unwrap());
    switch("kernel");
    let said = complaint(here);
    assert!(said.contains("UVN-NETWORK-FAULT") && said.contains("1234"), "{said}");
    assert!(here.uvn(&["status"]).contains("UVN-NETWORK-FAULT"));
    drop(taken);
    approve(here);
    flow.finish();
    daemons.iter_mut().for_each(Daemon::assert_alive);
}

/// The next boot is without uvn, and the administrator learns which lines still call it.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn purge_disables_the_units_and_names_lines_that_are_left() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    // As far as purge looks: systemd runs, and says yes to everything.
    node.sh(
        "mkdir -p /run/systemd/system /etc/slurm && echo 'required /usr/lib/uvn/spank_uvn.so' > /etc/slurm/plugstack.conf && \
         echo 'session required /usr/lib/uvn/pam_uvn.so' > /etc/pam.d/uvn-left && \
         printf '#!/bin/sh\\necho $* >> /run/node/asked\\n' > /run/node/systemctl && chmod 755 /run/node/systemctl && \
         mount --bind /run/node/systemctl $(command -v systemctl)",
    );
    let purged = node.try_uvn(&["purge"]);
    let asked = node.read("/run/node/asked").unwrap();
    node.sh("umount $(command -v systemctl); rm -r /run/systemd/system /etc/pam.d/uvn-left /etc/slurm/plugstack.conf");
    assert!(purged.status.success(), "{}", said(&purged));
    for unit in ["uvnd.service", "uvn-lockdown.service"] {
        assert!(asked.lines().any(|line| line == format!("disable --quiet {unit}")), "{asked}");
    }
    for line in ["/etc/pam.d/uvn-left:1", "/etc/slurm/plugstack.conf:1"] {
        assert!(said(&purged).contains(line), "{}", said(&purged));
    }
}

/// A site's .network file for all devices takes over users' devices too, unless the drop-in is there.
#[test]
#[ignore = "needs a kernel with VRF: cargo xtask guest"]
fn networkd_leaves_users_devices_alone() {
    const DROP_IN: &str = include_str!("../../../tools/networkd/10-uvn.network");
    const ALL: &str =
        "[Match]\nName=*\n[Network]\nKeepConfiguration=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n";
    // It waits for udev unless /sys is read-only, as in a container, and gives up root.
    const RUN: &str = "rm -rf /run/systemd/netif; mkdir -p /run/systemd/netif/links /run/systemd/netif/leases \
        /run/systemd/netif/lldp; chown -R systemd-network: /run/systemd/netif; mount -o remount,bind,ro /sys; \
        exec /usr/lib/systemd/systemd-networkd";

    let cluster = alone();
    let node = &cluster.nodes[0];
    let mut daemon = node.uvnd(&cluster.config("kernel", ""));
    attach(node, ALICE);
    node.sh("mkdir -p /etc/systemd/network");
    node.write("/etc/systemd/network/50-all.network", ALL);
    let routes = || node.sh("ip -4 route show table all; ip -6 route show table all proto 117");
    let before = routes();
    let state = |device: &str| {
        let index = node.within(|| nix::net::if_::if_nametoindex(device).unwrap());
        node.read(format!("/run/systemd/netif/links/{index}")).unwrap_or_default()
    };
    for (drop_in, expected) in [("", "ADMIN_STATE=configured"), (DROP_IN, "ADMIN_STATE=unmanaged")] {
        node.write("/etc/systemd/network/10-uvn.network", drop_in);
        let mut networkd = node.command("/usr/bin/unshare");
        networkd.args(["--mount", "sh", "-c", RUN]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut networkd = networkd.spawn().unwrap();
        for (device, expected) in
            [("em1", "ADMIN_STATE=configured"), ("uvn1234", expected), ("uvn1234.0", expected)]
        {
            node.wait(&format!("{expected} of {device}"), PATIENCE, || state(device).contains(expected));
        }
        approve(node);
        assert_eq!(routes(), before);
        networkd.kill().unwrap();
        networkd.wait().unwrap();
        node.sh("rm -r /run/systemd/netif");
    }
    daemon.assert_alive();
}
