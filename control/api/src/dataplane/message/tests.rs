use super::*;
use crate::protocol::{self, Code, Failure, MAX_BYTES, SCHEMA, fitting, request_packet};

fn parse(bytes: &[u8]) -> Result<Request, Failure> {
    protocol::parse_request(bytes)
}

fn parse_answer(bytes: &[u8]) -> Result<Reply, Failure> {
    protocol::parse_answer(bytes)
}

fn answer_packet(answer: Result<Reply, Failure>) -> Vec<u8> {
    protocol::answer_packet(answer, 0)
}

#[test]
fn requests_survive_the_trip() {
    let network = r#"{"vni": 1234, "addresses": ["10.0.0.1/24"], "device": {"name": "u1234"}}"#;
    let requests = [
        Request::Ping,
        Request::AddNetwork(serde_json::from_str(network).unwrap()),
        Request::RemoveNetwork { vni: 1234 },
        Request::SetPeers { vni: 1234, peers: vec!["10.0.0.2".parse().unwrap()] },
        Request::Vteps {
            add: vec![Vtep { address: "10.0.0.2".parse().unwrap(), overlay: vec![] }],
            remove: vec!["fd00::1".parse().unwrap()],
            add_range: vec!["10.1.0.0/16".parse().unwrap()],
            remove_range: vec![],
        },
        Request::Show,
        Request::Networks { from: 7 },
        Request::Hops { from: Some("10.0.0.2".parse().unwrap()) },
        Request::Unknown,
        Request::Counters,
        Request::Histogram,
    ];
    for request in requests {
        assert_eq!(parse(&request_packet(&request, SCHEMA).unwrap()), Ok(request));
    }
}

#[test]
fn the_form_on_the_wire_is_fixed() {
    assert_eq!(parse(br#"{"version":1,"request":"ping"}"#), Ok(Request::Ping));
    let request = br#"{"version":1,"request":{"remove_network":{"vni":5}}}"#;
    assert_eq!(parse(request), Ok(Request::RemoveNetwork { vni: 5 }));
    let answer = answer_packet(Ok(Reply::Done { epoch: 3 }));
    assert_eq!(answer, br#"{"version":1,"reply":{"done":{"epoch":3}}}"#);
    let answer = answer_packet(Err(Failure::new(Code::NotFound, "no VNI 5")));
    assert_eq!(answer, br#"{"version":1,"error":{"code":"not_found","message":"no VNI 5"}}"#);
}

#[test]
fn answers_survive_the_trip() {
    assert_eq!(parse_answer(&answer_packet(Ok(Reply::Pong))), Ok(Reply::Pong));
    let failure = Failure::new(Code::Exists, "VNI 5 is there already");
    assert_eq!(parse_answer(&answer_packet(Err(failure.clone()))), Err(failure));
    for wrong in
        [r#"{"version":1}"#, r#"{"version":1,"reply":"pong","error":{"code":"failed","message":""}}"#]
    {
        assert_eq!(parse_answer(wrong.as_bytes()).unwrap_err().code, Code::Malformed);
    }
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    let failure = parse(br#"{"version":2,"request":{"new":1},"more":true}"#).unwrap_err();
    assert_eq!(failure.code, Code::Version);
    assert!(failure.message.contains("version 2") && failure.message.contains("version 1"), "{failure}");
}

#[test]
fn what_is_no_request_is_refused() {
    let long = vec![b' '; MAX_BYTES + 1];
    let deep = "[".repeat(60_000);
    for wrong in [
        &b""[..],
        b"\xff\xfe",
        b"null",
        b"{}",
        br#"{"version":1}"#,
        br#"{"version":-1,"request":"ping"}"#,
        br#"{"version":1,"request":"pong"}"#,
        br#"{"version":1,"request":"ping","extra":0}"#,
        br#"{"version":1,"request":"ping"}{}"#,
        br#"{"version":1,"request":{"remove_network":{"vni":5,"force":true}}}"#,
        br#"{"version":1,"request":{"add_network":{"vni":16777216,"addresses":[]}}}"#,
        &long,
        deep.as_bytes(),
    ] {
        let failure = parse(wrong).unwrap_err();
        assert_eq!(failure.code, Code::Malformed, "{}", String::from_utf8_lossy(wrong));
    }
}

#[test]
fn too_much_for_a_packet_is_said() {
    let peers = vec![IpAddr::from([10, 0, 0, 1]); 10_000];
    assert_eq!(request_packet(&Request::SetPeers { vni: 1, peers }, SCHEMA).unwrap_err().code, Code::Invalid);
    let hop = HopState { address: IpAddr::from([10, 0, 0, 1]), mac: None, mtu: None };
    let answer = answer_packet(Ok(Reply::Hops { hops: vec![hop; 10_000], next: None }));
    assert_eq!(parse_answer(&answer).unwrap_err().code, Code::Invalid);
}

#[test]
fn a_page_holds_what_fits() {
    let hop = HopState {
        address: "fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(),
        mac: Some("02:75:0a:00:00:01".into()),
        mtu: Some(1500),
    };
    let hops = vec![hop; 10_000];
    let count = fitting(&hops);
    assert!((300..2000).contains(&count), "{count}");
    let next = Some(hops[0].address);
    let packet = answer_packet(Ok(Reply::Hops { hops: hops[..count].to_vec(), next }));
    assert!((MAX_BYTES - 400..=MAX_BYTES).contains(&packet.len()), "{}", packet.len());
    assert!(parse_answer(&packet).is_ok());
    assert_eq!(fitting(&hops[..3]), 3);
}
