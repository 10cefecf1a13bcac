use super::*;
use crate::toml_file::parse;

const GOOD: &str = r#"
nic = "em1"
vtep = ["10.0.0.1", "fd00::1"]
socket = "/run/uvn/em1.sock"

[encapsulation]
port = 4789
dscp = "inherit"

[peers]
range = ["10.0.0.0/16"]
vtep = [{ address = "fd00::2", overlay = ["10.9.0.2"] }]

[workers]
cores = [3, 2]
frames = 512

[[network]]
vni = 1234
addresses = ["10.0.0.1/16"]
device = { name = "u1234", netns = "/run/netns/u1234" }
peers = ["10.0.0.2", "fd00::2"]

[[network]]
vni = 9876
addresses = ["10.0.0.1/16", "fd00::1/64"]
device = { name = "u9876", kind = "veth" }
learning = true
group = "239.1.1.1"
"#;

/// The error for the file with one place changed, and the line on which the change ends.
fn error(from: &str, to: &str) -> (String, usize) {
    let before = &GOOD[..GOOD.find(from).expect(from)];
    let line = 1 + before.matches('\n').count() + to.matches('\n').count();
    let (at, broken) = parse::<Config>(&GOOD.replacen(from, to, 1)).expect_err(to);
    (format!("{at}: {broken}"), line)
}

#[track_caller]
fn refused(from: &str, to: &str, says: &[&str]) {
    let (text, line) = error(from, to);
    assert!(text.starts_with(&format!("{line}: ")), "line {line}: {text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_good_file() {
    let config = parse::<Config>(GOOD).unwrap();
    assert_eq!(config.nic, "em1");
    assert_eq!(config.encapsulation.dscp, Dscp::Inherit(Inherit::Inherit));
    assert_eq!(config.encapsulation.ttl, 64);
    assert_eq!((config.workers.frames, config.workers.spin_us), (512, 250));
    assert_eq!(config.peers.vtep[0].overlay, ["10.9.0.2".parse::<IpAddr>().unwrap()]);
    let [first, second] = &config.networks[..] else { unreachable!("two networks") };
    assert_eq!((first.vni.get(), first.ageing, first.flood_rate), (1234, 300, 1000));
    assert_eq!(second.device.as_ref().unwrap().kind, DeviceKind::Veth);
}

#[test]
fn the_least_file() {
    let config = parse::<Config>("nic = \"em1\"\nvtep = [\"10.0.0.1\"]").unwrap();
    assert_eq!(config.encapsulation, Encapsulation::default());
    assert_eq!(config.workers, Workers::default());
    assert!(config.socket.is_none() && config.networks.is_empty());
}

#[test]
fn syntax_and_unknown_keys() {
    refused("nic = \"em1\"", "nic = \"em1", &["invalid"]);
    refused("port = 4789", "prot = 4789", &["encapsulation.prot", "unknown field", "`port`"]);
    refused(
        "port = 4789",
        "df = false",
        &["encapsulation.df: unknown field", "DF is always set", "RFC 6864"],
    );
    refused("vni = 1234", "vni = 1234\nmtu = 9000", &["network[0].mtu: unknown field"]);
    assert!(
        parse::<Config>("vtep = [\"10.0.0.1\"]").unwrap_err().1.to_string().contains("missing field `nic`")
    );
}

#[test]
fn wrong_types_name_the_key_and_what_is_allowed() {
    refused("port = 4789", "port = 70000", &["encapsulation.port:", "70000", "1 to 65535"]);
    refused("port = 4789", "port = \"x\"", &["encapsulation.port:", "1 to 65535"]);
    refused("dscp = \"inherit\"", "dscp = \"copy\"", &["encapsulation.dscp:", "0 to 63"]);
    refused("frames = 512", "frames = -1", &["workers.frames:", "power of two"]);
    refused("vni = 9876", "vni = 16777216", &["network[1].vni:", "0 to 16777215"]);
    refused("[\"10.0.0.1/16\"]", "[\"10.0.0.1\"]", &["network[0].addresses: ", "10.0.0.1/24"]);
    refused("[\"10.0.0.1/16\"]", "[\"10.0.0.1/33\"]", &["network[0].addresses: ", "10.0.0.1/24"]);
    refused("kind = \"veth\"", "kind = \"tun\"", &["network[1].device.kind:", "\"tap\" or \"veth\""]);
}

#[test]
fn ranges() {
    refused("port = 4789", "port = 0", &["encapsulation.port: 0;", "1 to 65535"]);
    refused("port = 4789", "ttl = 0", &["encapsulation.ttl: 0;", "1 to 255"]);
    refused("dscp = \"inherit\"", "dscp = 64", &["encapsulation.dscp: 64;"]);
    for frames in ["0", "128", "1000", "131072"] {
        refused("frames = 512", &format!("frames = {frames}"), &["workers.frames: ", "256 to 65536"]);
    }
    refused("cores = [3, 2]", "cores = [3, 1024]", &["workers.cores[1]: 1024;"]);
    refused("cores = [3, 2]", "spin_us = 1000001", &["workers.spin_us"]);
    refused("learning = true", "ageing = 0", &["network[1].ageing: 0;"]);
    refused("learning = true", "max_addresses = 0", &["network[1].max_addresses: 0;"]);
    refused("learning = true", "flood_rate = 10000001", &["network[1].flood_rate"]);
}

#[test]
fn names_and_paths() {
    for name in ["", ".", "..", "a b", "a/b", "a:b", "sixteen-bytes-xx"] {
        refused("nic = \"em1\"", &format!("nic = \"{name}\""), &["nic: ", "1 to 15 bytes"]);
    }
    refused("name = \"u9876\"", "name = \"sixteen-bytes-xx\"", &["network[1].device.name"]);
    refused("name = \"u9876\"", "name = \"em1\"", &["network[1].device.name: `em1` is the NIC"]);
    refused("\"/run/uvn/em1.sock\"", "\"em1.sock\"", &["socket: `em1.sock`; allowed: an absolute path"]);
    refused("\"/run/netns/u1234\"", "\"u1234\"", &["network[0].device.netns"]);
}

#[test]
fn addresses_and_families() {
    for address in ["224.0.0.1", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::ffff:10.0.0.9"] {
        refused("[\"10.0.0.1\", ", &format!("[\"{address}\", "), &["vtep[0]: ", "not a unicast"]);
    }
    refused("[\"10.0.0.1\", \"fd00::1\"]", "[\"10.0.0.1\", \"10.0.0.3\"]", &["vtep: 2 IPv4 and 0 IPv6"]);
    refused("[\"10.0.0.1\", \"fd00::1\"]", "[]", &["vtep: empty"]);
    let ipv4_only = GOOD.replace("[\"10.0.0.1\", \"fd00::1\"]", "[\"10.0.0.1\"]");
    let (_, broken) = parse::<Config>(&ipv4_only).unwrap_err();
    assert!(
        broken.to_string().starts_with("peers.vtep[0].address: fd00::2: this node has no IPv6"),
        "{broken}"
    );
    refused("range = [\"10.0.0.0/16\"]", "range = [\"fd00::/64\"]", &["peers.range[0]", "/96 or longer"]);
    refused("overlay = [\"10.9.0.2\"]", "overlay = [\"ff02::1\"]", &["peers.vtep[0].overlay[0]"]);
    refused("[\"10.0.0.1/16\"]", "[]", &["network[0].addresses: 0 addresses"]);
    refused("[\"10.0.0.1/16\"]", "[\"10.0.0.1/0\"]", &["network[0].addresses[0]", "on-subnet"]);
    refused("group = \"239.1.1.1\"", "group = \"10.0.0.9\"", &["network[1].group", "multicast"]);
    refused(
        "group = \"239.1.1.1\"",
        "peers = [\"10.1.0.1\"]",
        &["network[1].peers[0]", "not an allowed VTEP"],
    );
}

#[test]
fn duplicates() {
    refused("vni = 9876", "vni = 1234", &["network[1].vni: 1234 is already"]);
    refused(
        "device = { name = \"u9876\", kind = \"veth\" }",
        "device = { name = \"u1234\", netns = \"/run/netns/u1234\" }",
        &["network[1].device.name: `u1234` is already"],
    );
    refused("[\"10.0.0.2\", \"fd00::2\"]", "[\"10.0.0.2\", \"10.0.0.2\"]", &["network[0].peers[1]", "twice"]);
    refused("\"fd00::1/64\"]", "\"10.0.0.1/8\"]", &["network[1].addresses[1]", "twice"]);
    refused("[\"10.0.0.0/16\"]", "[\"10.0.0.0/16\", \"10.0.0.0/16\"]", &["peers.range[1]", "twice"]);
    refused(
        "group = \"239.1.1.1\"",
        "group = \"239.1.1.1\"\npeers = [\"10.0.0.2\"]",
        &["network[1].peers: given beside a group"],
    );
}

#[test]
fn conflicting_vteps() {
    let two = "vtep = [{ address = \"fd00::2\" }, { address = \"fd01::2\" }]";
    refused(
        "vtep = [{ address = \"fd00::2\", overlay = [\"10.9.0.2\"] }]",
        two,
        &["fd00::2", "fd01::2", "MAC"],
    );
}

#[test]
fn a_static_network_needs_a_device() {
    let text = GOOD.replace("device = { name = \"u9876\", kind = \"veth\" }\n", "");
    let (line, broken) = parse::<Config>(&text).unwrap_err();
    assert_eq!(line, 1 + GOOD[..GOOD.rfind("[[network]]").unwrap()].matches('\n').count());
    assert!(broken.to_string().starts_with("network[1].device: missing"), "{broken}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(std::path::Path::new("/nonexistent/uvn.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/uvn.toml: "), "{error}");
}

#[test]
fn subnets() {
    let cidr: Cidr = "10.0.0.1/24".parse().unwrap();
    assert!(cidr.contains("10.0.0.255".parse().unwrap()) && !cidr.contains("10.0.1.0".parse().unwrap()));
    assert!(!cidr.contains("fd00::1".parse().unwrap()));
    let cidr: Cidr = "fd00::/127".parse().unwrap();
    assert!(cidr.contains("fd00::1".parse().unwrap()) && !cidr.contains("fd00::2".parse().unwrap()));
    for wrong in ["10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "fd00::/129", "10.0.0.1/-1", "/24"] {
        assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
    }
}

#[test]
fn the_example_holds_the_defaults_that_it_says() {
    let text = include_str!("../../../../../tools/uvn-dataplane.example.toml");
    let config = parse::<Config>(text).unwrap();
    assert_eq!(config.encapsulation, Encapsulation::default());
    assert_eq!(config.workers, Workers::default());
    let shown = &config.networks[0];
    let least: Network = serde_json::from_str(r#"{"vni": 1, "addresses": []}"#).unwrap();
    assert_eq!(
        (shown.learning, shown.max_addresses, shown.ageing, shown.flood_rate),
        (least.learning, least.max_addresses, least.ageing, least.flood_rate)
    );
    assert_eq!(shown.device.as_ref().unwrap().kind, DeviceKind::default());
    assert_eq!(config.networks.len(), 2);
}
