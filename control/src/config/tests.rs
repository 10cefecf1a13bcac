use super::check::ephemeral_hints;
use super::*;
use crate::network::MAX_NETWORKS;
use proptest::prelude::*;
use uvn_api::toml_file::parse;
use uvn_wire::vxlan::Vni;

const GOOD: &str = r#"
policed = ["1000-60000", 70000, "16777216-4294967294"]
exempt = [1234, "2000-2999"]
attachment = "optional"
linger_s = 5
service_ports = ["6817-6819", 7000]
srun_ports = ["60001-60010"]
relay = ["127.0.0.53:53", "127.0.0.1:7000"]
hosts = ["10.0.0.250", "10.1.0.0/24"]

[[underlay]]
subnets = ["10.0.0.0/16", "fd00::/96"]
nic = "em1"
group = "239.1.1.1"

[[underlay]]
subnets = ["10.1.0.0/16"]
nic = "ib0"
path = "kernel"
port = 4790

[[vni]]
uids = "16777216-16777316"
first = 60001

[[vni]]
uids = "20000000-20000009"
first = 70000

[nat]
ipv4 = "100.64.0.0/16"

[peers]
range = ["10.0.0.0/16"]
nodes = ["node[01-16,20]"]
slurm = "/etc/slurm/slurm.conf"

[off_subnet]
default = "deny"
allow_groups = ["staff", 100]
"#;

/// The file with one place changed is refused at that line, with these words.
#[track_caller]
fn refused(from: &str, to: &str, says: &[&str]) {
    let before = &GOOD[..GOOD.find(from).expect(from)];
    let line = 1 + before.matches('\n').count() + to.matches('\n').count();
    let (at, broken) = parse::<Config>(&GOOD.replacen(from, to, 1)).expect_err(to);
    let text = format!("{at}: {broken}");
    assert!(text.starts_with(&format!("{line}: ")), "line {line}: {text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_good_file() {
    let config: Config = parse(GOOD).unwrap();
    assert_eq!(
        config.policed_ranges(),
        [1000..=1233, 1235..=1999, 3000..=60000, 70000..=70000, 1 << 24..=MAX_UID]
    );
    assert!(
        config.is_policed(1000)
            && !config.is_policed(1234)
            && !config.is_policed(60001)
            && !config.is_policed(0)
    );
    assert_eq!(config.service_ports, [6817..=6819, 7000..=7000]);
    assert_eq!(config.hosts, ["10.0.0.250/32", "10.1.0.0/24"].map(|text| text.parse().unwrap()));
    assert_eq!((config.underlays[0].path, config.underlays[0].port), (PathChoice::Auto, 4789));
    assert_eq!((config.underlays[1].path, config.underlays[1].port), (PathChoice::Kernel, 4790));
    assert_eq!(config.off_subnet.allow_groups, [Group::Name("staff".into()), Group::Number(100)]);
    assert_eq!((config.nat.slots(), Nat::default().slots()), (MAX_NETWORKS, MAX_NETWORKS));
    assert_eq!(config.nat.addresses(65533)[0].to_string(), "100.64.255.254");
    assert_eq!(
        config.nat.addresses(0),
        ["100.64.0.1", "fd75:766e::1"].map(|text| text.parse::<IpAddr>().unwrap())
    );
}

#[test]
fn vnis() {
    let config: Config = parse(GOOD).unwrap();
    let vni = |uid| config.vni_of(uid).map(Vni::get);
    assert_eq!((vni(1000), vni(16_777_221), vni(20_000_009)), (Ok(1000), Ok(60006), Ok(70009)));
    assert_eq!(vni(1234), Err(NoVni::NotPoliced(1234)));
    assert_eq!(vni(30_000_000), Err(NoVni::Unmapped(30_000_000)));
    assert_eq!(vni(70000), Err(NoVni::Taken { uid: 70000, other: 20_000_000 }));
    let both = vni(70000).unwrap_err().to_string();
    assert!(both.contains("UID 70000 and UID 20000000 would share VNI 70000"), "{both}");
    let uid = |vni| config.uid_of(Vni::new(vni).unwrap());
    assert_eq!((uid(1000), uid(60006), uid(70000)), (Some(1000), Some(16_777_221), Some(20_000_000)));
    assert_eq!((uid(1234), uid(0), uid(60200)), (None, None, None));
}

proptest! {
    #[test]
    fn a_vni_leads_back_to_its_uid(uid in prop_oneof![any::<u32>(), 900..3100u32, 69_999..70_020u32, 16_777_200..16_777_400u32]) {
        let config: Config = parse(GOOD).unwrap();
        if let Ok(vni) = config.vni_of(uid) {
            prop_assert_eq!(config.uid_of(vni), Some(uid));
        }
        let within = config.policed_ranges().iter().any(|range| range.contains(&uid));
        prop_assert_eq!(config.is_policed(uid), within);
    }
}

#[test]
fn hints_name_what_deserves_a_look() {
    let mut config: Config = parse(GOOD).unwrap();
    let hints = config.hints();
    assert!(hints.iter().any(|hint| hint.contains("UID 20000000 has the VNI of UID 70000")), "{hints:?}");
    config.peers = PeerList { range: config.peers.range, ..PeerList::default() };
    let hints = config.hints();
    assert!(hints.iter().any(|hint| hint.contains("underlay[0]: over IPv6")), "{hints:?}");
    // The first underlay has a group.
    let lonely: Vec<&String> = hints.iter().filter(|hint| hint.contains("reaches no other node")).collect();
    assert!(lonely.len() == 1 && lonely[0].starts_with("underlay[1]"), "{hints:?}");
    assert_eq!(ephemeral_hints(&config, &(60010..=60999)).len(), 1);
    assert!(ephemeral_hints(&config, &(32768..=60000)).is_empty());
}

#[test]
fn syntax_types_and_unknown_keys() {
    refused("linger_s = 5", "linger = 5", &["linger: unknown field"]);
    refused("linger_s = 5", "linger_s = \"5\"", &["linger_s: ", "0 to 1000000 seconds"]);
    refused(
        "attachment = \"optional\"",
        "attachment = \"maybe\"",
        &["attachment: ", "\"required\" or \"optional\""],
    );
    refused(
        "path = \"kernel\"",
        "path = \"fast\"",
        &["underlay[1].path: ", "\"auto\", \"engine\", \"shortcut\" or \"kernel\""],
    );
    refused("default = \"deny\"", "default = \"no\"", &["off_subnet.default: ", "\"allow\" or \"deny\""]);
    refused("slurm = ", "slrum = ", &["peers.slrum: unknown field"]);
    refused("nic = \"ib0\"", "nics = \"ib0\"", &["underlay[1].nics: unknown field"]);
    refused("\"10.0.0.250\"", "\"storage\"", &["hosts", "\"storage\" is not", "10.0.0.250"]);
}

#[test]
fn uids() {
    for wrong in
        ["0", "\"0-10\"", "\"60000-1000\"", "\"1-\"", "\"a-b\"", "4294967295", "-5", "\"1000-4294967295\""]
    {
        refused("policed = [\"1000-60000\"", &format!("policed = [{wrong}"), &["policed", "1 to 4294967294"]);
    }
    refused("exempt = [1234,", "exempt = [2005,", &["exempt[1]: 2000-2999 overlaps 2005"]);
    refused(
        "uids = \"20000000-",
        "uids = \"16777300-",
        &["vni[1].uids: ", "overlaps 16777216-16777316 of vni[0]"],
    );
    refused(
        "uids = \"20000000-20000009\"",
        "uids = \"5000-5009\"",
        &["vni[1].uids: 5000-5009", "from 16777216"],
    );
    refused("uids = \"20000000-20000009\"", "uids = 4294967295", &["vni[1].uids: 4294967295"]);
    for wrong in ["0", "16777207", "4294967295"] {
        refused("first = 70000", &format!("first = {wrong}"), &["vni[1].first: ", "at 16777215 or below"]);
    }
    refused(
        "first = 70000",
        "first = 60095",
        &["vni[1].first: UID 16777310 and UID 20000000 would share VNI 60095"],
    );
}

#[test]
fn ports() {
    for wrong in ["0", "65536", "\"9-8\"", "\"0-8\""] {
        refused("[\"6817-6819\", 7000]", &format!("[{wrong}]"), &["service_ports", "1 to 65535"]);
    }
    refused(
        "\"60001-60010\"",
        "\"7000-7010\"",
        &["srun_ports[0]: 7000-7010 overlaps 7000 of `service_ports`"],
    );
    refused("7000]", "6818]", &["service_ports[1]: 6818 overlaps 6817-6819"]);
    refused("port = 4790", "port = 0", &["underlay[1].port: 0"]);
    refused("127.0.0.1:7000", "127.0.0.1:7001", &["relay[1]: ", "users may take", "service_ports"]);
    refused("127.0.0.1:7000", "10.0.0.1:53", &["relay[1]: ", "not a loopback address"]);
    refused("127.0.0.1:7000", "127.0.0.53:53", &["relay[1]: ", "twice"]);
}

#[test]
fn subnets_and_nics() {
    refused("[\"10.1.0.0/16\"]", "[]", &["underlay[1].subnets: 0 subnets"]);
    refused(
        "[\"10.1.0.0/16\"]",
        "[\"10.1.0.1/16\"]",
        &["underlay[1].subnets[0]: 10.1.0.1/16 is an address in 10.1.0.0/16"],
    );
    refused(
        "[\"10.1.0.0/16\"]",
        "[\"10.0.3.0/24\"]",
        &["underlay[1].subnets[0]: 10.0.3.0/24 overlaps 10.0.0.0/16 of underlay[0]"],
    );
    refused(
        "\"fd00::/96\"]",
        "\"10.0.0.0/8\"]",
        &["underlay[0].subnets[1]: 10.0.0.0/8 overlaps 10.0.0.0/16"],
    );
    refused("[\"10.1.0.0/16\"]", "[\"0.0.0.0/0\"]", &["underlay[1].subnets[0]: 0.0.0.0/0 is every"]);
    refused("nic = \"ib0\"", "nic = \"em1\"", &["underlay[1].nic: `em1` is also the NIC of underlay[0]"]);
    refused("nic = \"ib0\"", "nic = \"uvn1000\"", &["underlay[1].nic: `uvn1000` is a name of uvn's own"]);
    refused("nic = \"ib0\"", "nic = \"a/b\"", &["underlay[1].nic: `a/b`"]);
    refused("group = \"239.1.1.1\"", "group = \"10.0.0.1\"", &["underlay[0].group: ", "not a multicast"]);
    refused(
        "path = \"kernel\"",
        "flood_rate = 10000001",
        &["underlay[1].flood_rate: 10000001; allowed: 0 to"],
    );
    let tables = |lines: &str| format!("path = \"engine\"\n{lines}");
    refused(
        "path = \"kernel\"",
        &tables("workers.frames = 1000"),
        &["underlay[1].workers.frames: 1000; allowed: a power"],
    );
    refused(
        "path = \"kernel\"",
        &tables("encapsulation.ttl = 0"),
        &["underlay[1].encapsulation.ttl: 0; allowed: 1 to 255"],
    );
    refused("path = \"kernel\"", &tables("encapsulation.port = 1"), &["encapsulation.port: ", "key `port`"]);
    refused("path = \"kernel\"", &tables("workers.share = { index = 1, of = 2 }"), &["workers.share: uvnd"]);
    refused("path = \"kernel\"", "group = \"ff02::1\"", &["underlay[1].group: ff02::1: no subnet"]);
    refused("\"10.0.0.250\"", "\"10.2.0.250\"", &["hosts[0]: 10.2.0.250/32 is not inside"]);
    refused("\"10.1.0.0/24\"", "\"10.1.0.0/16\"", &["hosts[1]: 10.1.0.0/16 is not inside"]);
    let two_kernels = GOOD.replace("group = \"239.1.1.1\"", "path = \"kernel\"\nport = 4790");
    let (_, broken) = parse::<Config>(&two_kernels).unwrap_err();
    assert!(broken.to_string().starts_with("underlay[1].port: 4790 is the port of underlay[0]"), "{broken}");
    let (_, broken) = parse::<Config>("linger_s = 1").unwrap_err();
    assert!(broken.to_string().starts_with("underlay: 0 tables; allowed: 1 to 10"), "{broken}");
    let many: String = (0..11).map(|i| format!("[[underlay]]\nsubnets = [\"10.{i}.0.0/16\"]\n")).collect();
    assert!(parse::<Config>(&many).unwrap_err().1.to_string().starts_with("underlay: 11 tables"));
}

#[test]
fn nat_peers_and_groups() {
    refused("\"100.64.0.0/16\"", "\"10.0.8.0/24\"", &["nat.ipv4: 10.0.8.0/24 overlaps 10.0.0.0/16"]);
    refused("\"100.64.0.0/16\"", "\"100.64.0.0/31\"", &["nat.ipv4: 100.64.0.0/31"]);
    refused("\"100.64.0.0/16\"", "\"fd00:9::/64\"", &["nat.ipv4: fd00:9::/64"]);
    refused("ipv4 = \"100.64.0.0/16\"", "ipv6 = \"fd00::/64\"", &["nat.ipv6: fd00::/64 overlaps fd00::/96"]);
    refused(
        "range = [\"10.0.0.0/16\"]",
        "range = [\"fd00::/64\"]",
        &["peers.range[0]: fd00::/64 is too wide"],
    );
    for nobody in ["", "[peers]\n", "[peers]\nnodes = []\nrange = []\n"] {
        let (_, broken) =
            parse::<Config>(&format!("[[underlay]]\nsubnets = [\"10.0.0.0/16\"]\n{nobody}")).unwrap_err();
        let text = broken.to_string();
        assert!(
            text.starts_with("peers: it lists no nodes; allowed: ") && text.contains("`range`, `nodes`"),
            "{text}"
        );
    }
    let scattered: Vec<String> = (0..120).map(|host| format!("\"10.0.{}.77\"", 2 * host)).collect();
    let hosts = format!("[{}]", scattered.join(", "));
    let (_, broken) =
        parse::<Config>(&GOOD.replace("[\"10.0.0.250\", \"10.1.0.0/24\"]", &hosts)).unwrap_err();
    let text = broken.to_string();
    assert!(text.starts_with("peers.range: with `hosts` cut out, it is ") && text.contains("900"), "{text}");
    refused("node[01-16,20]", "node[01-16", &["peers.nodes[0]: ", "is not a node list"]);
    refused("\"/etc/slurm/slurm.conf\"", "\"slurm.conf\"", &["peers.slurm: `slurm.conf`"]);
    refused(
        "[\"staff\", 100]",
        "[\"staff\", \"staff\"]",
        &["off_subnet.allow_groups[1]: staff is there twice"],
    );
    refused("default = \"deny\"", "deny_groups = [100]", &["off_subnet.deny_groups[0]: ", "allow_groups"]);
}

/// The example without what is marked "example": its lines, or whole tables.
fn without_examples(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.lines() {
        let example = line.ends_with("# example");
        if line.starts_with('[') {
            inside = example;
        }
        if !inside && !example {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

#[test]
fn the_example_holds_the_defaults_that_it_says() {
    let text = include_str!("../../../tools/uvn.example.toml");
    let full: Config = parse(text).unwrap();
    let least: Config =
        parse("[[underlay]]\nsubnets = [\"10.0.0.0/16\"]\n[peers]\nrange = [\"10.0.0.0/16\"]").unwrap();
    assert_eq!(parse::<Config>(&without_examples(text)).unwrap(), least);
    assert_eq!((full.underlays.len(), full.vnis.len(), full.hosts.len()), (2, 1, 2));
    // Every key is there, so that none has a default which the example does not show.
    let keys = [
        "policed",
        "exempt",
        "attachment",
        "linger_s",
        "service_ports",
        "srun_ports",
        "srun",
        "rdma",
        "relay",
        "hosts",
        "subnets",
        "nic",
        "path",
        "port",
        "group",
        "flood_rate",
        "ttl",
        "dscp",
        "checksum",
        "ipv6_checksum",
        "strict_flags",
        "cores",
        "spin_us",
        "busy_poll_us",
        "frames",
        "uids",
        "first",
        "ipv4",
        "ipv6",
        "range",
        "nodes",
        "slurm",
        "default",
        "allow_groups",
        "deny_groups",
    ];
    for key in keys {
        assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
    }
}
