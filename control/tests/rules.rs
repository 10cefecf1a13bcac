//! Routing rules of uvn beside those of a site, in network namespaces of their own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is how a test fails")]

use nix::sched::{CloneFlags, unshare};
use std::process::Command;
use std::thread;
use uvn_control::netlink::Netlink;
use uvn_control::network::Node;
use uvn_control::plan::{self, Item};

/// Without a preference: a multi-homed node's source routing, and what `wg-quick up` adds for a default route.
const SITE: [&str; 3] =
    ["from 10.0.0.1 lookup 100", "not fwmark 51820 lookup 51820", "lookup main suppress_prefixlength 0"];

/// Does it in a network namespace of its own.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests run as root");
            work()
        };
        scope.spawn(inside).join().unwrap()
    })
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The rules of a family, as they are looked at.
fn rules(family: &str) -> Vec<String> {
    ip(&format!("{family} rule")).lines().map(|line| line.replace('\t', " ").trim_end().to_owned()).collect()
}

fn bring(netlink: &Netlink, wanted: &[Item]) {
    /// As uvnd does it.
    const ROUNDS: usize = 4;

    for _ in 0..ROUNDS {
        let steps = plan::diff(wanted, &netlink.observe_rules().unwrap());
        if steps.is_empty() {
            return;
        }
        for step in steps {
            // Another round mends what cannot be made yet.
            let _refused = netlink.apply(&step);
            for family in ["-4", "-6"] {
                assert!(rules(family).iter().any(|rule| rule.ends_with("lookup local")), "{step}");
            }
        }
    }
    panic!("it does not end: {:?}", rules("-4"));
}

/// What a site's rules are without uvn.
fn alone(family: &'static str) -> Vec<String> {
    apart(|| {
        SITE.iter().for_each(|rule| drop(ip(&format!("{family} rule add {}", of_family(family, rule)))));
        rules(family)
    })
}

fn of_family(family: &str, rule: &str) -> String {
    if family == "-6" { rule.replace("10.0.0.1", "fd00::1") } else { rule.to_owned() }
}

#[test]
fn a_rule_without_a_preference_comes_where_it_would_without_uvn() {
    for family in ["-4", "-6"] {
        let site = alone(family);
        apart(|| {
            let netlink = Netlink::open().unwrap();
            let wanted = plan::node(&Node { ipv6: true, ..Node::default() });
            bring(&netlink, &wanted);
            let ours = rules(family);
            assert!(ours[0].starts_with("0:") && ours[0].contains("l3mdev"), "{ours:?}");
            for rule in SITE {
                ip(&format!("{family} rule add {}", of_family(family, rule)));
                // At once, whether uvnd runs or not: the node's own addresses are found first.
                let now = rules(family);
                let local = now.iter().position(|rule| rule.ends_with("lookup local")).unwrap();
                assert_eq!(local, 1, "{now:?}");
            }
            assert_eq!(netlink.give_way().unwrap().len(), SITE.len());
            // The kernel's own, `main` first, are behind all.
            let count = ours.len() - (site.len() - SITE.len() - 1);
            assert_eq!(rules(family)[..count], ours[..count]);
            let theirs = rules(family).split_off(count);
            assert_eq!(theirs, site[1..], "behind ours as behind `local` alone");
            assert_eq!(netlink.give_way().unwrap(), [""; 0]);
            bring(&netlink, &wanted);
            bring(&netlink, &plan::pristine(true));
            assert_eq!(rules(family), site, "uvn is purged");
        });
    }
}

/// The rules of an older uvnd, and a `local` that something has put first again.
#[test]
fn local_is_put_behind_l3mdev() {
    apart(|| {
        let netlink = Netlink::open().unwrap();
        let wanted = plan::node(&Node { ipv6: true, ..Node::default() });
        let in_order = |rules: &[String]| {
            rules[0].contains("l3mdev")
                && rules[1] == "0: from all lookup local"
                && rules[2] == "1: from all lookup local"
        };
        for line in ["add l3mdev pref 0", "add lookup local pref 1", "del lookup local pref 0"] {
            ip(&format!("-4 rule {line}"));
        }
        bring(&netlink, &wanted);
        assert!(in_order(&rules("-4")), "{:?}", rules("-4"));
        ip("-4 rule del l3mdev pref 0");
        bring(&netlink, &wanted);
        assert!(in_order(&rules("-4")), "{:?}", rules("-4"));
        assert!(in_order(&rules("-6")), "{:?}", rules("-6"));
    });
}
