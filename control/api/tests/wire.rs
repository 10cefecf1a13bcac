//! The messages of both protocols as they are on the wire: byte for byte as in `golden/`, and as uvn 0.1.0 has them.
//!
//! A release that changes them raises `SCHEMA`; `UVN_BLESS=1 cargo test -p uvn-api --all-features --test wire` writes the
//! files anew. Those of `golden/old` are uvn 0.1.0's for good.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod old;
mod samples;
mod talk;

use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor, value};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;
use uvn_api::dataplane::message as dataplane;
use uvn_api::dataplane::message::{Gear, State, XdpMode};
use uvn_api::protocol::{Code, Failure, SCHEMA, answer_packet, parse_answer, parse_request, request_packet};
use uvn_api::uvnd::message::{self as uvnd, Kind, Lease};
use uvn_api::uvnd::status::{Carrier, Reply as UvndReply};
use uvn_api::uvnd::{finding, older};

/// Of a message, as its variant is called on the wire.
fn name<T: Serialize>(message: &T) -> String {
    let value = serde_json::to_value(message).unwrap();
    value.as_str().map_or_else(|| value.as_object().unwrap().keys().next().unwrap().clone(), String::from)
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("json")
}

/// Panics unless a packet is what the file holds.
#[track_caller]
fn assert_is(packet: &[u8], name: &str) {
    let mut packet = packet.to_vec();
    packet.push(b'\n');
    if std::env::var_os("UVN_BLESS").is_some() {
        fs::write(file(name), &packet).unwrap();
    }
    let golden = fs::read(file(name)).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&packet), String::from_utf8_lossy(&golden), "{name}");
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(file(name)).unwrap()
}

/// The variants of a message on the wire: what serde asks a format for.
fn variants<T: DeserializeOwned>() -> BTreeSet<String> {
    struct Asked;

    impl<'de> Deserializer<'de> for Asked {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom(""))
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _: &'static str,
            variants: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, value::Error> {
            Err(value::Error::custom(variants.join(" ")))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
            seq tuple tuple_struct map struct identifier ignored_any
        }
    }

    let said = T::deserialize(Asked).err().map(|error| error.to_string()).unwrap_or_default();
    said.split(' ').map(String::from).collect()
}

/// Panics unless requests and answers are on the wire what their files hold, and are read from them.
#[track_caller]
fn assert_golden<R, A>(protocol: &str, requests: Vec<R>, answers: Vec<A>)
where
    R: Serialize + DeserializeOwned + PartialEq + Debug,
    A: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut names = BTreeSet::new();
    assert_eq!(requests.iter().map(name).collect::<BTreeSet<_>>(), variants::<R>());
    assert_eq!(answers.iter().map(name).collect::<BTreeSet<_>>(), variants::<A>());
    for request in requests {
        let name = format!("{protocol}-request-{}", name(&request));
        assert_is(&request_packet(&request, SCHEMA).unwrap(), &name);
        assert_eq!(parse_request::<R>(&golden(&name)), Ok(request), "{name}");
        names.insert(name);
    }
    for answer in answers {
        let name = format!("{protocol}-answer-{}", name(&answer));
        assert_is(&answer_packet(Ok(&answer), SCHEMA), &name);
        assert_eq!(parse_answer::<A>(&golden(&name)), Ok(answer), "{name}");
        names.insert(name);
    }
    let files = fs::read_dir(file("").parent().unwrap().join("golden")).unwrap();
    let files = files.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let files: BTreeSet<String> = files.filter(|name| name.starts_with(&format!("{protocol}-"))).collect();
    assert_eq!(names, files);
}

#[test]
fn messages_of_the_data_plane_are_as_in_their_files() {
    assert_golden("dataplane", samples::dataplane_requests(), samples::dataplane_answers());
}

#[test]
fn messages_of_uvnd_are_as_in_their_files() {
    assert_golden("uvnd", samples::uvnd_requests(), samples::uvnd_answers());
}

#[test]
fn a_failure_is_as_in_its_file() {
    let failure = Failure::new(Code::NotFound, "no network 5");
    assert_is(&answer_packet::<()>(Err(failure.clone()), SCHEMA), "failure");
    assert_eq!(parse_answer::<()>(&golden("failure")), Err(failure));
}

/// Panics unless uvn 0.1.0's definitions write a request as its file holds it, and today's read and write the same; but
/// for what is new.
#[track_caller]
fn assert_old_request<O, R>(protocol: &str, old: &O, new: R)
where
    O: Serialize,
    R: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let name = format!("old/{protocol}-request-{}", name(&old));
    let asked = old::protocol::Asked { version: 1, request: old };
    assert_is(&serde_json::to_vec(&asked).unwrap(), &name);
    assert_is(&request_packet(&new, 0).unwrap(), &name);
    assert_eq!(parse_request::<R>(&golden(&name)), Ok(new), "{name}");
}

#[test]
fn requests_of_0_1_0_are_read_and_written() {
    let pairs = samples::old_dataplane_requests().into_iter().zip(samples::dataplane_requests());
    pairs.for_each(|(old, new)| assert_old_request("dataplane", &old, new));
    let new = samples::uvnd_requests().into_iter().filter(|new| !matches!(new, uvnd::Request::StatusFrom(_)));
    let pairs = samples::old_uvnd_requests().into_iter().zip(new);
    pairs.for_each(|(old, mut new)| {
        if let uvnd::Request::Reload { force, .. } = &mut new {
            *force = false;
        }
        assert_old_request("uvnd", &old, new);
    });
}

/// The answer of uvn 0.1.0 to what its file is called after, as today's types read it.
fn of_old<O: Serialize, A: DeserializeOwned>(protocol: &str, old: &O) -> A {
    let name = format!("old/{protocol}-answer-{}", name(old));
    let answered = old::protocol::Answered { version: 1, reply: Some(old), error: None };
    assert_is(&serde_json::to_vec(&answered).unwrap(), &name);
    parse_answer(&golden(&name)).unwrap_or_else(|failure| panic!("{name}: {failure}"))
}

#[test]
fn answers_of_0_1_0_are_read() {
    for old in samples::old_dataplane_answers() {
        let new: dataplane::Reply = of_old("dataplane", &old);
        assert_eq!(name(&new), name(&old));
        if let dataplane::Reply::Show(summary) = new {
            assert_eq!(summary.state, State::Other("AF_XDP socket: device busy".into()));
            assert_eq!((summary.xdp, summary.gear), (Some(XdpMode::Driver), Some(Gear::Engine)));
            assert_eq!(summary.boost, Some(dataplane::Boost::Threads));
        }
    }
    for old in samples::old_uvnd_answers() {
        let new: UvndReply = of_old("uvnd", &old);
        assert_eq!(name(&new), name(&old));
        match new {
            UvndReply::Networks { networks, .. } => {
                assert_eq!(networks[0].leases, [Lease::Words("session sshd (process 77)".into())]);
            }
            UvndReply::Status(status) => {
                assert_eq!((status.next, status.warnings.len()), (None, 1));
                let nic = &status.nics[0];
                assert_eq!(nic.carrier, Carrier::DataPlane);
                assert_eq!(nic.data_plane.as_ref().unwrap().state, State::Running);
            }
            _ => {}
        }
    }
}

/// An answer, as uvn 0.1.0 reads it.
#[track_caller]
fn to_old<A: Serialize, O: DeserializeOwned>(answer: &A) -> O {
    let packet = answer_packet(Ok(answer), 0);
    let answered: Result<old::protocol::Answered<O>, _> = serde_json::from_slice(&packet);
    let answered = answered.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&packet)));
    answered.reply.unwrap()
}

#[test]
fn answers_to_0_1_0_are_what_it_reads() {
    for answer in samples::dataplane_answers() {
        let old: old::dataplane::Reply = to_old(&answer.clone().in_schema(0));
        assert_eq!(name(&old), name(&answer));
        if let old::dataplane::Reply::Show(summary) = old {
            assert_eq!(summary.state, "AF_XDP socket: device busy");
            assert_eq!((summary.xdp.as_deref(), summary.gear.as_deref()), (Some("driver"), Some("engine")));
        }
    }
    for answer in samples::uvnd_answers() {
        let old: old::uvnd::Reply = to_old(&older::reply(answer.clone()).unwrap());
        assert_eq!(name(&old), name(&answer));
        match old {
            old::uvnd::Reply::Networks { networks, .. } => {
                assert_eq!(networks[0].leases, ["job 1.0 (process 77)", "manual"]);
            }
            old::uvnd::Reply::Status(status) => {
                let nic = &status.nics[0];
                assert_eq!(
                    (nic.path.as_str(), nic.engine.as_ref().unwrap().state.as_str()),
                    ("engine", "it is busy")
                );
                assert!(status.warnings[0].contains("network 5 on em1"), "{:?}", status.warnings);
            }
            _ => {}
        }
    }
}

/// Everything that a later version may add, in one answer each.
#[test]
fn answers_of_a_later_version_are_read() {
    let show = br#"{"version":1,"schema":9,"since":1,"reply":{"show":{"nic":"em1","state":"paused","mtu":1500,"mac":"",
        "vtep":[],"port":4789,"xdp":"hardware","zero_copy":null,"gear":"direct","boost":{"new":1},"workers":[],"epoch":1,
        "networks":0,"hops":0,"unresolved":0,"vteps":0,"ranges":[],"notes":["gro_off","new",{"newer":{"than":2}}]}}}"#;
    let dataplane::Reply::Show(summary) = parse_answer(show).unwrap() else { panic!("another answer") };
    assert_eq!(summary.state, State::Other("paused".into()));
    assert_eq!(
        (summary.xdp, summary.gear, summary.boost),
        (Some(XdpMode::Unknown), Some(Gear::Unknown), None)
    );
    assert_eq!(summary.notes, [dataplane::Note::GroOff]);
    let attached =
        br#"{"version":1,"schema":9,"reply":{"attached":{"outcome":"borrowed","steps":[],"cost":1}}}"#;
    let outcome = uvnd::Outcome::Unknown;
    assert_eq!(parse_answer(attached), Ok(UvndReply::Attached { outcome, steps: Vec::new() }));
    let failed = br#"{"version":1,"schema":9,"error":{"code":"busy","message":"later","after_s":3}}"#;
    assert_eq!(parse_answer::<UvndReply>(failed), Err(Failure::new(Code::Unknown, "later")));
    let lease: Lease = serde_json::from_str(r#"{"kind":"visit","name":"x","until":5}"#).unwrap();
    assert_eq!(lease, Lease::Held { kind: Kind::Unknown, name: "x".into(), pid: None });
    let finding = r#"{"id":"UVN-NEW","what":"a","remedy":"b","warning":true,"since":1}"#;
    assert_eq!(serde_json::from_str::<finding::Finding>(finding).unwrap().id, finding::Id::Unknown);
    assert_eq!(serde_json::from_str::<Carrier>(r#""pigeon""#).unwrap(), Carrier::Unknown);
}
