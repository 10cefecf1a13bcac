use super::*;
use crate::network::Exit;
use crate::network::Nat;
use std::collections::BTreeMap;

fn config(lines: &str) -> Config {
    toml::from_str(lines).unwrap()
}

fn nic(slot: u8, name: &str, path: DataPath, address: &str) -> Nic {
    Nic {
        slot,
        name: name.into(),
        index: 2,
        mtu: 1500,
        arphrd: 1,
        up: true,
        queues: 1,
        subnets: vec![format!("10.{slot}.0.0/16").parse().unwrap(), "fd00::/64".parse().unwrap()],
        addresses: vec![address.parse().unwrap()],
        path,
        reason: String::new(),
        gear: Default::default(),
        encapsulation: Encapsulation { port: 4789 + u16::from(slot), ..Default::default() },
        workers: Default::default(),
        group: None,
        flood_rate: None,
    }
}

fn this_node() -> Node {
    Node {
        nics: vec![
            nic(0, "em1", DataPath::Engine, "10.0.0.1/16"),
            nic(1, "ib0", DataPath::Kernel, "10.1.0.1/16"),
        ],
        others: Vec::new(),
        exits: vec![
            Exit { device: "eth0".into(), gateway: None, address: "192.0.2.1".parse().unwrap() },
            Exit { device: "em1".into(), gateway: None, address: "2001:db8::1".parse().unwrap() },
        ],
        ipv6: true,
        nat: Nat::default(),
        hosts: vec!["10.0.0.250/32".parse().unwrap()],
    }
}

/// The rules of each chain.
fn chains(ruleset: &str) -> BTreeMap<String, Vec<String>> {
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in ruleset.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            name = rest.trim_end_matches(" {").into();
        } else if !name.is_empty() && !line.starts_with("type ") && line != "}" {
            chains.entry(name.clone()).or_default().push(line.into());
        }
    }
    chains
}

#[test]
fn a_ruleset_in_full() {
    let peers = Peers {
        ranges: vec!["10.1.2.0/24".parse().unwrap()],
        nodes: vec![vec!["10.1.9.9".parse().unwrap()]],
        unresolved: Vec::new(),
    };
    let opened = Opened { ipv4: vec!["em1".into(), "eth0".into()], ipv6: true };
    let text = ruleset(&config("srun_ports = [\"60001-60010\", 61000]"), &this_node(), &peers, &opened, 1024);
    assert!(text.starts_with(
        "table inet uvn
delete table inet uvn
table inet uvn {
\tset flows { typeof meta mark; size 65536; flags dynamic; }
\tmap zone { typeof meta mark : ct original zone; }
\tmap nat_ip { typeof ct mark : ip daddr; }
\tmap nat_ip6 { typeof ct mark : ip6 daddr; }
\tset reported { typeof @th,96,24; "
    ));
    let chains = chains(&text);
    let chain = |name: &str| chains[name].join("\n");
    assert_eq!(
        chain("prerouting"),
        "iifname \"uvn*\" notrack
iifname != \"uvn*\" ip saddr 100.64.0.0/10 drop
iifname != \"uvn*\" ip daddr 100.64.0.0/10 drop
iifname != \"uvn*\" ip6 saddr fd75:766e::/64 drop
iifname != \"uvn*\" ip6 daddr fd75:766e::/64 drop
iifname \"ib0\" udp dport 4790 notrack"
    );
    assert_eq!(
        chain("steer"),
        "iifname != \"uvn*\" ct direction reply ct mark & 0xf0000000 == 0x70000000 ip daddr set ct mark & 0xffff map @nat_ip
iifname != \"uvn*\" ct direction reply ct mark & 0xf0000000 == 0x70000000 ip6 daddr set ct mark & 0xffff map @nat_ip6"
    );
    assert_eq!(
        chain("input"),
        "iifname \"uvn*\" tcp dport { 60001-60010, 61000 } tcp flags & (fin | syn | rst | ack) == syn counter drop
iifname != \"lo\" ip saddr != { 10.0.0.250/32, 10.1.2.0/24, 10.1.9.9/32 } tcp dport { 60001-60010, 61000 } tcp flags & \
(fin | syn | rst | ack) == syn counter drop
iifname != \"lo\" meta nfproto ipv6 tcp dport { 60001-60010, 61000 } tcp flags & (fin | syn | rst | ack) == syn counter drop
iifname != \"ib0\" udp dport 4790 counter drop
udp dport 4790 meta nfproto ipv6 counter drop
udp dport 4790 ip saddr != { 10.1.2.0/24, 10.1.9.9 } counter drop
udp dport 4790 @th,128,8 & 1 == 0 @th,96,24 != @reported limit rate 1000/second burst 1000 packets add @reported \
{ @th,96,24 } log group 30070
udp dport 4790 @th,224,16 0x0806 @th,432,32 0x0a010001 @th,96,24 != @reported limit rate 1000/second burst 1000 \
packets add @reported { @th,96,24 } log group 30070"
    );
    assert_eq!(
        chain("output"),
        "oifname \"uvn*\" udp dport 4790 counter drop
oifname \"ib0\" udp dport 4790 meta skuid != 0 meta mark & 0xf0000000 != { 0x50000000, 0x70000000 } counter drop
oifname \"ib0\" udp dport 4790 notrack accept
udp dport { 4789, 4790 } meta skuid != 0 counter drop
oifname \"uvn*\" meta mark & 0xf0000000 != 0x70000000 meta mark set meta mark & 0xfffffff | 0x50000000
ct direction reply meta mark & 0xf0000000 == 0x40000000 counter drop
oifname \"uvn*\" notrack accept
ip daddr 100.64.0.0/10 drop
ip6 daddr fd75:766e::/64 drop
meta mark & 0xf0000000 == 0x70000000 fib saddr type != local counter drop
meta mark & 0xf0000000 == 0x70000000 ct original zone set meta mark & 0xffff map @zone accept
meta mark & 0xf0000000 == 0x70000000 counter drop"
    );
    assert_eq!(
        chain("flows"),
        "oifname != \"uvn*\" meta mark & 0xf0000000 == 0x70000000 ct state new add @flows \
{ meta mark ct count over 1024 } counter drop"
    );
    assert_eq!(
        chain("forward"),
        "iifname \"uvn*\" drop
oifname \"uvn*\" ip daddr 100.64.0.0/10 ct state established,related meta mark set ct mark & 0xfffffff | 0x40000000 \
ip daddr set ct original ip saddr accept
oifname \"uvn*\" ip6 daddr fd75:766e::/64 ct state established,related meta mark set ct mark & 0xfffffff | 0x40000000 \
ip6 daddr set ct original ip6 saddr accept
oifname \"uvn*\" drop
ip daddr 100.64.0.0/10 drop
ip6 daddr fd75:766e::/64 drop
iifname { \"em1\", \"eth0\" } meta nfproto ipv4 drop
meta nfproto ipv6 drop"
    );
    assert_eq!(
        chain("translate"),
        "oifname \"em1\" meta mark & 0xf0000000 == 0x70000000 ip daddr { 10.0.0.0/16 } ct mark set meta mark \
snat ip to 10.0.0.1
oifname \"ib0\" meta mark & 0xf0000000 == 0x70000000 ip daddr { 10.1.0.0/16 } ct mark set meta mark snat ip to 10.1.0.1
oifname \"eth0\" meta mark & 0xf0000000 == 0x70000000 meta nfproto ipv4 ct mark set meta mark snat ip to 192.0.2.1
oifname \"em1\" meta mark & 0xf0000000 == 0x70000000 meta nfproto ipv6 ct mark set meta mark snat ip6 to 2001:db8::1"
    );
    assert_eq!(
        chain("postrouting"),
        "oifname != \"uvn*\" ip saddr 100.64.0.0/10 drop
oifname != \"uvn*\" ip6 saddr fd75:766e::/64 drop"
    );
}

#[test]
fn a_kernel_nic_with_no_peers_takes_nothing() {
    let peers =
        Peers { ranges: vec!["172.16.0.0/16".parse().unwrap()], nodes: Vec::new(), unresolved: Vec::new() };
    let text = ruleset(&config(""), &this_node(), &peers, &Opened::default(), 1024);
    let input = &chains(&text)["input"];
    assert_eq!(*input, ["iifname != \"ib0\" udp dport 4790 counter drop", "udp dport 4790 counter drop"]);
}
