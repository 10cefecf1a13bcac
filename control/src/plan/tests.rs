use super::*;
use crate::network::Nat;
use proptest::prelude::*;
use proptest::sample::subsequence;
use uvn_api::dataplane::config::Encapsulation;
use uvn_wire::vxlan::Vni;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn nic(slot: u8, path: DataPath, addresses: &[&str]) -> Nic {
    Nic {
        slot,
        name: format!("em{}", slot + 1),
        index: u32::from(slot) + 2,
        mtu: 1500,
        arphrd: 1,
        up: true,
        queues: 2,
        subnets: vec![cidr("10.0.0.0/16"), cidr("fd00::/64")],
        addresses: addresses.iter().map(|text| cidr(text)).collect(),
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
            nic(0, DataPath::Engine, &["10.0.0.1/16", "fd00::1/64"]),
            nic(1, DataPath::Kernel, &["10.0.7.1/24"]),
        ],
        others: vec!["192.168.1.1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        exits: vec![Exit {
            device: "em1".into(),
            gateway: Some("10.0.0.254".parse().unwrap()),
            address: "10.0.0.1".parse().unwrap(),
        }],
        ipv6: true,
        nat: Nat::default(),
        hosts: vec![cidr("10.0.0.200/32")],
    }
}

fn user(uid: u32, slot: u32) -> Network {
    Network { uid, vni: Vni::new(uid & 0xff_ffff).unwrap(), slot, off_subnet: true }
}

fn all(networks: &[Network], this: &Node) -> Vec<Item> {
    let mut items = node(this);
    for each in networks {
        items.extend(network(this, each));
    }
    items
}

/// What the kernel does with a step.
fn apply(state: &mut Vec<Item>, step: &Step) {
    match step {
        Step::Create(item) => {
            for device in item.devices().filter(|device| device.starts_with("uvn")) {
                let is_there =
                    |other: &Item| other.made_device() == Some(device) || item.made_device() == Some(device);
                assert!(state.iter().chain([item]).any(is_there), "{step}: no device {device}");
            }
            assert!(!state.contains(item), "{step}: it is there");
            state.retain(|other| !replaces(item, other));
            state.push(item.clone());
        }
        Step::Delete(item) => {
            assert!(state.contains(item), "{step}: it is not there");
            let device = item.made_device().map(String::from);
            state.retain(|other| other != item && !other.devices().any(|on| Some(on) == device.as_deref()));
        }
    }
}

/// Whether a device has only one of these.
fn replaces(new: &Item, old: &Item) -> bool {
    match (new, old) {
        (Item::Mac { device: a, .. }, Item::Mac { device: b, .. })
        | (Item::Mtu { device: a, .. }, Item::Mtu { device: b, .. })
        | (Item::Master { device: a, .. }, Item::Master { device: b, .. }) => a == b,
        _ => false,
    }
}

fn sorted(items: &[Item]) -> Vec<Item> {
    let mut items = items.to_vec();
    items.sort();
    items
}

/// Applies the difference; checks the order of steps and that the result is what was wanted.
fn reconcile(wanted: &[Item], observed: &[Item]) {
    let mut state = observed.to_vec();
    for step in diff(wanted, observed) {
        if let Step::Delete(Item::Vrf { name, .. }) = &step {
            let slave = state.iter().find(|item| matches!(item, Item::Master { vrf, .. } if vrf == name));
            assert_eq!(slave, None, "{step} releases an endpoint into the default VRF");
        }
        apply(&mut state, &step);
        let local = |item: &Item| matches!(item, Item::Rule { ipv4: true, kind: RuleKind::Local, .. });
        assert!(
            !observed.iter().any(local) || state.iter().any(local),
            "{step} leaves no rule for table local"
        );
    }
    assert_eq!(sorted(&state), sorted(wanted));
    assert_eq!(diff(wanted, &state), []);
}

#[test]
fn a_network_is_complete_before_its_vrf_goes_up() {
    let items = network(&this_node(), &user(1234, 7));
    let up = items.iter().position(|item| *item == Item::Up { device: "uvn1234".into() }).unwrap();
    let table = FIRST_TABLE + 7;
    let last = items.iter().rposition(|item| matches!(item, Item::Route { table: t, .. } if *t == table));
    assert!(last.unwrap() < up);
    // Straight after the VRF itself, before anything could be looked up.
    for (item, anywhere) in items[1..].iter().zip([ANYWHERE_V4, ANYWHERE_V6]) {
        let way = Way::Unreachable;
        assert_eq!(*item, Item::Route { table, destination: anywhere, way, metric: LAST_METRIC });
    }
}

#[test]
fn a_network_in_full() {
    let items = network(&this_node(), &user(1234, 0));
    let text: Vec<String> = items.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "VRF uvn1234 (table 1966080000)",
            "route to 0.0.0.0/0 in table 1966080000: unreachable",
            "route to ::/0 in table 1966080000: unreachable",
            "route to 100.64.0.0/10 in table 1966080000: unreachable",
            "route to fd75:766e::/64 in table 1966080000: unreachable",
            "address 127.0.0.1/8 of uvn1234",
            "route to 127.0.0.0/8 in table 1966080000: local on uvn1234",
            "address ::1/128 of uvn1234",
            "address 192.168.1.1/32 of uvn1234",
            "route to 0.0.0.0/0 in table 1966080000: via 10.0.0.254 dev em1 src 10.0.0.1",
            "route to 10.0.0.200/32 in table 1966080000: dev em1 src 10.0.0.1",
            "TAP uvn1234.0",
            "MAC 02:75:0a:00:00:01 of uvn1234.0",
            "MTU 1450 of uvn1234.0",
            "VRF uvn1234 of uvn1234.0",
            "altname em1u1234 of uvn1234.0",
            "address 10.0.0.1/16 of uvn1234.0",
            "address fd00::1/64 of uvn1234.0",
            "uvn1234.0 up",
            "VXLAN uvn1234.1 (VNI 1234, port 4790, over em2)",
            "MAC 02:75:0a:00:07:01 of uvn1234.1",
            "MTU 1450 of uvn1234.1",
            "VRF uvn1234 of uvn1234.1",
            "altname em2u1234 of uvn1234.1",
            "address 10.0.7.1/24 of uvn1234.1",
            "uvn1234.1 up",
            // The underlay is wider than this NIC's link; nothing of IPv6, for want of an address.
            "route to 10.0.0.0/16 in table 1966080000: dev uvn1234.1 src 10.0.7.1",
            "uvn1234 up",
            "route to 100.64.0.1/32 in table 1966079999: dev uvn1234",
            "route to fd75:766e::1/128 in table 1966079999: dev uvn1234",
        ]
    );
}

#[test]
fn endpoints_have_the_longest_packets_that_their_nic_carries() {
    let mtu = |path, gear, mtu| {
        let mut this = this_node();
        this.nics = vec![Nic { mtu, gear, ..nic(0, path, &["10.0.0.1/16"]) }];
        let items = network(&this, &user(1234, 0));
        items
            .iter()
            .find_map(|item| if let Item::Mtu { mtu, .. } = item { Some(*mtu) } else { None })
            .unwrap()
    };
    assert_eq!(mtu(DataPath::Engine, Gear::Auto, 9000), 8950);
    assert_eq!(mtu(DataPath::Engine, Gear::Shortcut, 20_000), 9216 - 50);
    assert_eq!(mtu(DataPath::Engine, Gear::Engine, 9000), 3826 - 50);
    assert_eq!(mtu(DataPath::Kernel, Gear::Engine, 20_000), 19_950);
}

#[test]
fn only_over_ipv6_kernel_vxlan_sends_outer_checksums() {
    let sent = |address| {
        let mut this = this_node();
        this.nics = vec![nic(0, DataPath::Kernel, &[address])];
        let items = network(&this, &user(1234, 0));
        items
            .iter()
            .find_map(|item| if let Item::Vxlan { checksum, .. } = item { Some(*checksum) } else { None })
    };
    assert_eq!((sent("10.0.0.1/16"), sent("fd00::1/64")), (Some(false), Some(true)));
}

#[test]
fn kernel_vxlan_has_the_configured_outer_headers() {
    let mut this = this_node();
    let mut kernel = nic(0, DataPath::Kernel, &["10.0.0.1/16"]);
    kernel.encapsulation = toml::from_str("ttl = 7\ndscp = \"inherit\"\nchecksum = true").unwrap();
    this.nics = vec![kernel];
    let items = network(&this, &user(1234, 0));
    let is_so =
        |item: &Item| matches!(item, Item::Vxlan { ttl: 7, dscp: None, checksum: true, port: 4789, .. });
    assert!(items.iter().any(is_so), "{items:?}");
}

#[test]
fn off_subnet_is_not_for_everyone() {
    let mut this = this_node();
    let inside = Network { off_subnet: false, ..user(1234, 0) };
    let leaks = |this: &Node| {
        let items = network(this, &inside);
        let leaks = |item: &&Item| matches!(item, Item::Route { way: Way::Device { device, .. }, .. } if device == "em1");
        (
            items.iter().filter(leaks).count(),
            items.iter().any(|item| matches!(item, Item::Route { table: NAT_TABLE, .. })),
        )
    };
    assert_eq!(leaks(&this), (1, true), "the listed host, and replies from it");
    this.hosts.clear();
    assert_eq!(leaks(&this), (0, false));
}

/// Where it is not that of the way out, which his other nodes do not have for him.
#[test]
fn a_program_finds_an_address_where_the_user_is_reached() {
    let mut this = this_node();
    let source_by = |this: &Node| {
        let default = |item: Item| match item {
            Item::Route { destination, way: Way::Device { source, .. }, .. }
                if destination == ANYWHERE_V4 =>
            {
                source
            }
            _ => None,
        };
        network(this, &user(1234, 0)).into_iter().find_map(default).map(|source| source.to_string())
    };
    this.exits[0].device = "em2".into();
    assert_eq!(source_by(&this).as_deref(), Some("10.0.7.1"));
    this.exits[0] = Exit { device: "eth0".into(), gateway: None, address: "192.168.1.1".parse().unwrap() };
    assert_eq!(source_by(&this).as_deref(), Some("10.0.0.1"));
}

#[test]
fn without_ipv6_there_is_nothing_of_it() {
    let mut this = this_node();
    this.ipv6 = false;
    this.others.push("fd00:1::1".parse().unwrap());
    let v6 = |item: &Item| match item {
        Item::Address { address: Cidr { address, .. }, .. }
        | Item::Route { destination: Cidr { address, .. }, .. } => address.is_ipv6(),
        Item::Rule { ipv4, .. } => !ipv4,
        _ => false,
    };
    assert_eq!(all(&[user(1234, 0)], &this).into_iter().find(v6), None);
    // A NIC too small for it.
    this.ipv6 = true;
    this.nics[0].mtu = 1300;
    let items = network(&this, &user(1234, 0));
    let on = |item: &&Item| matches!(item, Item::Address { device, .. } if device == "uvn1234.0");
    assert_eq!(items.iter().filter(on).count(), 1);
}

#[test]
fn an_mtu_change_is_set_and_an_address_change_moves_the_address() {
    let users = [user(1234, 0)];
    let before = network(&this_node(), &users[0]);
    let mut this = this_node();
    this.nics[0].mtu = 3000;
    let steps = diff(&network(&this, &users[0]), &before);
    assert_eq!(steps, [Step::Create(Item::Mtu { device: "uvn1234.0".into(), mtu: 2950 })]);
    assert_eq!(steps[0].to_string(), "set MTU 2950 of uvn1234.0");

    let mut this = this_node();
    this.nics[0].addresses[0] = cidr("10.0.0.2/16");
    let steps = diff(&network(&this, &users[0]), &before);
    let text: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "delete route to 0.0.0.0/0 in table 1966080000: via 10.0.0.254 dev em1 src 10.0.0.1",
            "delete route to 10.0.0.200/32 in table 1966080000: dev em1 src 10.0.0.1",
            "delete address 10.0.0.1/16 of uvn1234.0",
            "create address 10.0.0.1/32 of uvn1234",
            "create route to 0.0.0.0/0 in table 1966080000: via 10.0.0.254 dev em1 src 10.0.0.2",
            "create route to 10.0.0.200/32 in table 1966080000: dev em1 src 10.0.0.2",
            "set MAC 02:75:0a:00:00:02 of uvn1234.0",
            "create address 10.0.0.2/16 of uvn1234.0",
        ]
    );
}

#[test]
fn purge_takes_all_away_but_the_rule_that_was_there() {
    let observed = all(&[user(1000, 0), user(2000, 1)], &this_node());
    reconcile(&pristine(true), &observed);
    let steps = diff(&pristine(true), &observed);
    let is = |step: &Step, text: &str| step.to_string().starts_with(text);
    let position = |text: &str| steps.iter().position(|step| is(step, text)).unwrap();
    assert!(position("delete TAP uvn1000.0") < position("delete VRF uvn1000"));
    assert!(
        position("delete VRF uvn2000")
            < position("delete route to 0.0.0.0/0 in table 1966080001: unreachable")
    );
    assert!(!steps.iter().any(|step| is(step, "delete IPv4 rule 0: table local")), "it stays");
    assert!(position("delete IPv4 rule 1: table local") < position("delete IPv4 rule 0: a VRF's own table"));
}

#[test]
fn every_prefix_of_the_steps_is_repaired() {
    let users = [user(1000, 0), user(4_294_967_294, 5)];
    let this = this_node();
    let wanted = all(&users, &this);
    for (from, to) in [(pristine(true), wanted.clone()), (wanted.clone(), pristine(true))] {
        let steps = diff(&to, &from);
        for crash in 0..=steps.len() {
            let mut state = from.clone();
            steps[..crash].iter().for_each(|step| apply(&mut state, step));
            reconcile(&wanted, &state);
            reconcile(&pristine(true), &state);
        }
    }
}

/// Leaves out what hangs on devices that are not there.
fn possible(items: Vec<Item>) -> Vec<Item> {
    let made: HashSet<String> = items.iter().filter_map(Item::made_device).map(String::from).collect();
    let here = |device: &str| !device.starts_with("uvn") || made.contains(device);
    items.iter().filter(|item| item.devices().all(here)).cloned().collect()
}

fn nodes() -> impl Strategy<Value = Node> {
    let nic = |slot| {
        (any::<bool>(), 1200u32..9000, 1u32..3, 1u8..9).prop_map(move |(kernel, mtu, queues, last)| {
            let path = if kernel { DataPath::Kernel } else { DataPath::Engine };
            let ipv4 = format!("10.0.{slot}.{last}/24");
            Nic { mtu, queues, ..nic(slot, path, &[&ipv4, "fd00::7/64"]) }
        })
    };
    (nic(0), nic(1), any::<bool>(), any::<bool>()).prop_map(|(a, b, two, hosts)| {
        let mut this = this_node();
        this.nics = if two { vec![a, b] } else { vec![a] };
        if !hosts {
            this.hosts.clear();
        }
        this
    })
}

fn users() -> impl Strategy<Value = Vec<Network>> {
    proptest::collection::btree_map(1000u32..1004, (0u32..4, any::<bool>()), 0..4).prop_map(|users| {
        let mut slots = HashSet::new();
        let network = |(uid, (slot, off_subnet))| Network { off_subnet, ..user(uid, slot) };
        users.into_iter().map(network).filter(|each| slots.insert(each.slot)).collect()
    })
}

proptest! {
    /// From any part of any state to any state: other users, other slots, other NICs.
    #[test]
    fn a_difference_leads_from_any_state_to_the_wanted_one(
        (observed, wanted) in ((nodes(), users()), (nodes(), users())).prop_flat_map(|(before, after)| {
            let before = all(&before.1, &before.0);
            let count = before.len();
            let wanted = all(&after.1, &after.0);
            (subsequence(before, 0..=count).prop_map(possible), Just(wanted))
        })
    ) {
        // A table has its routes from one network only: the daemon leases slots.
        reconcile(&wanted, &observed);
    }

    #[test]
    fn a_state_does_not_differ_from_itself(this in nodes(), users in users()) {
        let wanted = all(&users, &this);
        prop_assert_eq!(diff(&wanted, &wanted), []);
    }
}
