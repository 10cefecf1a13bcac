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

/// An underlay with one VTEP whose route is known, on a device that the kernel does not have.
fn with_route(via: IpAddr) -> Underlay {
    let nic = Some(Nic { index: u32::MAX >> 1, mtu: 1500 });
    let mut underlay = Underlay { nic, ..Underlay::default() };
    let route = Some(Route { via, mtu: None });
    underlay.wanted.insert(PEER, Wanted { route, ..Wanted::default() });
    underlay.listed.insert(PEER);
    underlay
}

fn change(address: IpAddr, neighbour: Option<Neighbour>) -> [Change; 1] {
    [Change::Neighbour { index: u32::MAX >> 1, address, neighbour }]
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
    let mut underlay = Underlay::default();
    let start = Instant::now();
    assert!(!underlay.resolve(ROUTER, start));
    assert_eq!(underlay.wanted().collect::<Vec<_>>(), [(ROUTER, None)]);
    underlay.nic = Some(Nic { index: u32::MAX >> 1, mtu: 1500 });
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
    let dead = |underlay: &Underlay| underlay.dead().map(|(vtep, _)| vtep).collect::<Vec<_>>();
    assert!(dead(&underlay).is_empty());
    assert!(underlay.follow(&failed));
    assert_eq!(dead(&underlay), [PEER]);
    assert!(!underlay.follow(&change(ROUTER, Some(Neighbour::Unanswered))), "asked again");
    assert!(!underlay.follow(&change(ROUTER, None)), "forgotten by the kernel");
    assert_eq!(dead(&underlay), [PEER]);
    assert!(underlay.follow(&failed), "who waits shall know");
    assert!(underlay.follow(&change(ROUTER, Some(KNOWN))));
    assert!(dead(&underlay).is_empty());
}
