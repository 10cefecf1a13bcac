use super::*;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 254));
const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const KNOWN: Neighbour = Neighbour::Known { mac: MAC, stale: false };

fn hop(mac: Mac, mtu: usize) -> NextHop {
    NextHop { mac, mtu }
}

#[test]
fn a_hop_needs_a_route_and_a_neighbour() {
    let direct = Some(Route { via: PEER, mtu: None });
    let mut neighbours = HashMap::new();
    assert_eq!(decide(None, &neighbours, 1500), Decision::Unreachable);
    assert_eq!(decide(direct, &neighbours, 1500), Decision::Ask(PEER));
    neighbours.insert(PEER, Neighbour::Unanswered);
    assert_eq!(decide(direct, &neighbours, 1500), Decision::Ask(PEER));
    neighbours.insert(PEER, KNOWN);
    assert_eq!(decide(direct, &neighbours, 1500), Decision::Hop(hop(MAC, 1500)));
    neighbours.insert(PEER, Neighbour::Known { mac: MAC, stale: true });
    assert_eq!(decide(direct, &neighbours, 1500), Decision::Recheck(hop(MAC, 1500), PEER));
}

#[test]
fn through_a_router_its_mac_and_the_smaller_mtu_hold() {
    let neighbours = HashMap::from([(ROUTER, Neighbour::Known { mac: OTHER, stale: false }), (PEER, KNOWN)]);
    let far = |mtu| Some(Route { via: ROUTER, mtu });
    assert_eq!(decide(far(None), &neighbours, 9000), Decision::Hop(hop(OTHER, 9000)));
    assert_eq!(decide(far(Some(1400)), &neighbours, 9000), Decision::Hop(hop(OTHER, 1400)));
    assert_eq!(decide(far(Some(9000)), &neighbours, 1500), Decision::Hop(hop(OTHER, 1500)));
}

#[test]
fn multicast_macs() {
    assert_eq!(group_mac("239.129.2.3".parse().unwrap()), Mac([1, 0, 0x5e, 1, 2, 3]));
    assert_eq!(group_mac("ff05::1:203:405".parse().unwrap()), Mac([0x33, 0x33, 2, 3, 4, 5]));
}

const NIC: Nic = Nic { index: 3, mtu: 1500 };

/// A kernel to which every VTEP is a neighbour, or is behind a router. It notes the questions that it is asked.
#[derive(Default)]
struct Noted {
    router: Option<IpAddr>,
    looked_up: Vec<IpAddr>,
    probed: Vec<IpAddr>,
    tables: BTreeSet<u32>,
    is_in_vrf: bool,
}

impl Kernel for Noted {
    fn look_up(&mut self, address: IpAddr, _: u32) -> io::Result<Option<Route>> {
        self.looked_up.push(address);
        Ok(Some(Route { via: self.router.unwrap_or(address), mtu: None }))
    }

    fn neighbours(&mut self, _: u32) -> io::Result<Vec<(IpAddr, Neighbour)>> {
        Ok(Vec::new())
    }

    fn probe(&mut self, address: IpAddr, _: u32) -> io::Result<()> {
        self.probed.push(address);
        Ok(())
    }

    fn tables(&mut self, _: u32) -> io::Result<Option<BTreeSet<u32>>> {
        Ok((!self.is_in_vrf).then(|| self.tables.clone()))
    }
}

fn network(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

/// The VTEP of a large subnet with this number.
fn vtep(number: u32) -> IpAddr {
    IpAddr::V4((0x0a09_0000 + number).into())
}

/// An underlay on the NIC, with a first second's probes.
fn empty() -> Underlay<Noted> {
    Underlay { nic: Some(NIC), probes: PROBES, ..Underlay::default() }
}

/// An underlay with one VTEP whose route is known.
fn with_route(via: IpAddr) -> Underlay<Noted> {
    let mut underlay = empty();
    underlay.kernel.router = Some(via).filter(|via| *via != PEER);
    underlay.set_listed([PEER]);
    underlay.serve(Instant::now());
    underlay
}

fn change(address: IpAddr, neighbour: Option<Neighbour>) -> [Change; 1] {
    [Change::Neighbour { index: NIC.index, address, neighbour }]
}

#[test]
fn hops_follow_the_neighbour() {
    let mut underlay = with_route(ROUTER);
    assert!(!underlay.follow(&change(PEER, Some(KNOWN))), "not the way");
    assert_eq!(underlay.hops().count(), 0);
    assert!(underlay.follow(&change(ROUTER, Some(KNOWN))));
    assert_eq!(underlay.hops().collect::<Vec<_>>(), [(PEER, hop(MAC, 1500))]);
    assert!(!underlay.follow(&change(ROUTER, Some(KNOWN))), "nothing new");
    let moved = Neighbour::Known { mac: OTHER, stale: false };
    assert!(underlay.follow(&change(ROUTER, Some(moved))));
    assert_eq!(underlay.hops().collect::<Vec<_>>(), [(PEER, hop(OTHER, 1500))]);
    assert!(underlay.follow(&change(ROUTER, Some(Neighbour::Unanswered))));
    assert_eq!(underlay.hops().count(), 0);
    let elsewhere = Change::Neighbour { index: 1, address: ROUTER, neighbour: Some(KNOWN) };
    assert!(!underlay.follow(&[elsewhere]), "on another device");
}

#[test]
fn a_neighbour_that_the_kernel_cleared_away_is_used_until_it_fails_to_answer() {
    let mut underlay = with_route(PEER);
    underlay.follow(&change(PEER, Some(KNOWN)));
    assert!(!underlay.follow(&change(PEER, None)));
    assert_eq!(underlay.hops().count(), 1);
    assert!(underlay.follow(&change(PEER, Some(Neighbour::Unanswered))));
    assert_eq!(underlay.hops().count(), 0);
}

#[test]
fn who_is_not_listed_and_does_not_answer_is_forgotten() {
    let mut underlay = empty();
    let start = Instant::now();
    underlay.ask(network(1), ROUTER, start);
    assert!(!underlay.serve(start));
    assert_eq!(underlay.wanted().collect::<Vec<_>>(), [(ROUTER, None)]);
    underlay.tick(start + FORGET / 2);
    assert_eq!(underlay.wanted().count(), 1);
    underlay.tick(start + FORGET);
    assert_eq!(underlay.wanted().count(), 0);
    let mut underlay = with_route(PEER);
    underlay.tick(start + 2 * FORGET);
    assert_eq!(underlay.wanted().count(), 1, "listed");
}

#[test]
fn the_dead_are_known_until_they_answer() {
    let mut underlay = with_route(ROUTER);
    let failed = change(ROUTER, Some(Neighbour::Failed));
    let dead = |underlay: &Underlay<Noted>| underlay.dead().map(|(vtep, _)| vtep).collect::<Vec<_>>();
    assert!(dead(&underlay).is_empty());
    let start = Instant::now();
    underlay.follow(&failed);
    assert!(underlay.serve(start));
    assert_eq!(dead(&underlay), [PEER]);
    assert!(!underlay.follow(&change(ROUTER, Some(Neighbour::Unanswered))), "asked again");
    assert!(!underlay.follow(&change(ROUTER, None)), "forgotten by the kernel");
    assert_eq!(dead(&underlay), [PEER]);
    underlay.follow(&failed);
    assert!(!underlay.serve(start), "just told of others");
    assert_eq!(underlay.due(), Some(start + DEATHS));
    assert!(underlay.serve(start + DEATHS), "waiting frames are told");
    assert!(underlay.follow(&change(ROUTER, Some(KNOWN))));
    assert!(dead(&underlay).is_empty());
}

/// One network asks for all of a /16, again and again, as fast as it can.
#[test]
fn a_scan_of_a_subnet_keeps_no_other_network_waiting() {
    let mut underlay = empty();
    let start = Instant::now();
    let mut now = start;
    while now < start + Duration::from_secs(10) {
        (1..0xfff0).for_each(|number| underlay.ask(network(1), vtep(number), now));
        underlay.serve(now);
        now += Duration::from_millis(500);
    }
    let scanned = underlay.kernel.probed.len();
    assert!((64..=64 * 11).contains(&scanned), "{scanned} in ten seconds");
    assert!(underlay.wanted().count() <= scanned);
    // Each of many other networks finds its node in the next turn, the last of them, too.
    for other in 2..34 {
        underlay.ask(network(other), vtep(0x1_0000 + other), now);
    }
    underlay.serve(now);
    for other in 2..34 {
        assert!(underlay.kernel.probed.contains(&vtep(0x1_0000 + other)), "{other}");
    }
    let found = vtep(0x1_0002);
    assert!(underlay.follow(&change(found, Some(KNOWN))));
    assert_eq!(underlay.hops().collect::<Vec<_>>(), [(found, hop(MAC, 1500))]);
}

/// Nodes that exist make room for the next at once: a job that starts on thousands does not wait for its own requests.
#[test]
fn who_answers_makes_room() {
    let mut underlay = empty();
    let now = Instant::now();
    (0..2000).for_each(|number| underlay.ask(network(1), vtep(number), now));
    let mut turns = 0;
    while underlay.hops().count() < 2000 {
        turns += 1;
        assert!(turns <= 2000 / LOOK_UPS + 1);
        assert!(underlay.due().is_some());
        underlay.serve(now);
        for address in std::mem::take(&mut underlay.kernel.probed) {
            underlay.follow(&change(address, Some(KNOWN)));
        }
    }
    assert_eq!(underlay.due(), None);
}

#[test]
fn questions_that_nobody_waits_for_any_more_are_forgotten() {
    let mut underlay = empty();
    let start = Instant::now();
    (0..200).for_each(|number| underlay.ask(network(1), vtep(number), start));
    underlay.serve(start);
    assert_eq!(underlay.due(), Some(start + Duration::from_secs(1)), "when there is room again");
    underlay.serve(start + Duration::from_secs(4));
    assert_eq!(underlay.kernel.probed.len(), 64);
    assert_eq!(underlay.due(), None);
}

/// An underlay with ten thousand nodes, of which the last is in use.
fn crowded(start: Instant) -> Underlay<Noted> {
    let mut underlay = empty();
    underlay.set_listed((0..10_000).map(vtep));
    while underlay.due().is_some() {
        underlay.serve(start);
        underlay.probes = PROBES;
    }
    underlay.ask(network(1), vtep(9_999), start);
    underlay.serve(start);
    underlay.follow(&(0..10_000).flat_map(|number| change(vtep(number), Some(KNOWN))).collect::<Vec<_>>());
    assert_eq!(underlay.hops().count(), 10_000);
    (underlay.kernel.looked_up, underlay.kernel.probed) = (Vec::new(), Vec::new());
    underlay
}

#[test]
fn when_notifications_are_lost_a_turn_looks_up_few_and_those_in_use_first() {
    let mut now = Instant::now();
    let mut underlay = crowded(now);
    underlay.follow(&[Change::Lost]);
    now += Duration::from_secs(1);
    assert!(underlay.tick(now), "the neighbours are read at once");
    assert!(underlay.kernel.looked_up.is_empty());
    underlay.serve(now);
    assert_eq!(underlay.kernel.looked_up.len(), LOOK_UPS);
    assert_eq!(underlay.kernel.looked_up[0], vtep(9_999));
    // A new request is in time nevertheless.
    underlay.ask(network(1), vtep(20_000), now);
    underlay.serve(now);
    assert!(underlay.kernel.looked_up.contains(&vtep(20_000)));
    let mut seconds = 1;
    while underlay.kernel.probed.len() < 10_000 {
        while underlay.due().is_some_and(|due| due <= Instant::now()) {
            underlay.serve(now);
        }
        assert!(underlay.kernel.probed.len() <= seconds * PROBES + 1, "neighbours asked in a second");
        now += Duration::from_secs(1);
        seconds += 1;
        underlay.tick(now);
    }
    assert_eq!(underlay.kernel.looked_up.len(), 10_001, "each once");
}

#[test]
fn routes_that_lead_elsewhere_are_not_looked_at() {
    let start = Instant::now();
    let mut underlay = crowded(start);
    let route = |table, device| [Change::Route { table, device }];
    underlay.kernel.tables = BTreeSet::from([253, 254, 255, 100]);
    for others in [route(254, Some(NIC.index + 1)), route(1_966_080_000, Some(NIC.index)), route(70, None)] {
        underlay.follow(&others);
        underlay.tick(start);
        assert_eq!(underlay.due(), None, "{others:?}");
    }
    for ours in
        [&route(254, Some(NIC.index)), &route(100, Some(NIC.index)), &route(255, None), &[Change::Rules]]
    {
        underlay.follow(ours);
        underlay.tick(start);
        assert!(underlay.due().is_some(), "{ours:?}");
        while underlay.due().is_some() {
            underlay.serve(start);
        }
    }
    assert_eq!(underlay.hops().count(), 10_000, "nobody is cut off meanwhile");
}

#[test]
fn thousands_that_nobody_has_checked_are_checked_by_and_by() {
    let start = Instant::now();
    let mut underlay = crowded(start);
    let stale = Neighbour::Known { mac: MAC, stale: true };
    underlay.follow(&(0..10_000).flat_map(|number| change(vtep(number), Some(stale))).collect::<Vec<_>>());
    for second in 0..40 {
        underlay.tick(start + RECHECK + Duration::from_secs(second));
        assert!(underlay.kernel.probed.len() <= (second as usize + 1) * PROBES);
    }
    let all: BTreeSet<&IpAddr> = underlay.kernel.probed.iter().collect();
    assert_eq!(all.len(), 10_000);
}

#[test]
fn a_silent_router_is_asked_once_for_all_behind_it() {
    let start = Instant::now();
    let mut underlay = empty();
    underlay.kernel.router = Some(ROUTER);
    underlay.set_listed((0..10_000).map(vtep));
    (0..1_000).for_each(|number| underlay.ask(network(1), vtep(number), start));
    while underlay.due().is_some_and(|due| due <= Instant::now()) {
        underlay.serve(start);
    }
    let probes = underlay.kernel.probed.len();
    assert!(probes <= 10_000_usize.div_ceil(LOOK_UPS) + 1, "{probes}");
    assert_eq!(underlay.hops().count(), 0);
    underlay.follow(&change(ROUTER, Some(KNOWN)));
    assert_eq!(underlay.hops().count(), 10_000);
}

#[test]
fn a_network_that_asks_for_all_addresses_leaves_room_for_others() {
    let start = Instant::now();
    let mut underlay = empty();
    underlay.kernel.router = Some(ROUTER);
    underlay.set_listed([PEER]);
    underlay.follow(&change(ROUTER, Some(KNOWN)));
    underlay.ask(network(2), vtep(200_000), start);
    for number in 0..2 * MAX_WANTED as u32 {
        underlay.ask(network(1), vtep(number), start);
        if number % 64 == 0 {
            underlay.serve(start);
        }
        assert!(underlay.vteps.len() <= MAX_WANTED);
    }
    underlay.ask(network(2), vtep(200_001), start);
    while underlay.due().is_some_and(|due| due <= Instant::now()) {
        underlay.serve(start);
    }
    let reached: BTreeSet<IpAddr> = underlay.hops().map(|(vtep, _)| vtep).collect();
    for there in [PEER, vtep(200_000), vtep(200_001)] {
        assert!(reached.contains(&there), "{there}");
    }
}

#[test]
fn on_a_nic_in_a_vrf_every_table_counts() {
    let start = Instant::now();
    let mut underlay = crowded(start);
    underlay.kernel.is_in_vrf = true;
    underlay.follow(&[Change::Route { table: 1_966_080_000, device: Some(NIC.index) }]);
    underlay.tick(start);
    assert!(underlay.due().is_some());
}
