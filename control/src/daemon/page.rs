//! A page of `uvn status`: as much as one packet holds, however long the texts are.

use std::collections::BTreeMap;
use uvn_api::protocol::Room;
use uvn_api::uvnd::finding::Finding;
use uvn_api::uvnd::message::Place;
use uvn_api::uvnd::status::{NicState, Status};

/// A text as it is shown: its first KiB, so that a page always has room for a finding and for its place.
pub(super) fn shown(text: &str) -> String {
    text[..text.floor_char_boundary(1024)].to_owned()
}

/// A page to be filled: first with NICs, then with findings.
#[derive(Debug)]
pub(super) struct Page {
    status: Status,
    room: Room,
}

impl Page {
    /// A page with the parts that every page has.
    pub(super) fn new(head: Status) -> Page {
        let room = Room::beside(&head);
        Page { status: head, room }
    }

    /// Adds a NIC. False: this page is full, and the NIC belongs to the next one.
    pub(super) fn add_nic(&mut self, slot: u8, nic: NicState) -> bool {
        let fits = self.room.takes(&nic);
        if fits {
            self.status.nics.push(nic);
        } else {
            self.status.next = Some(Place::Nic { slot });
        }
        fits
    }

    /// Adds the findings that follow `after`, in the order of their lines and each once: as many as fit.
    pub(super) fn add_findings(&mut self, mut after: String, findings: Vec<Finding>) {
        let cut = |finding: Finding| {
            let (what, remedy) = (shown(&finding.what), shown(&finding.remedy));
            Finding { what, remedy, ..finding }
        };
        let lines = findings.into_iter().map(cut).map(|finding| (finding.to_string(), finding));
        let mut lines: BTreeMap<String, Finding> = lines.collect();
        for (line, finding) in lines.split_off(&after) {
            if line == after {
                continue;
            }
            let mut room = self.room.clone();
            // The next page may have to begin after this finding.
            if !room.takes(&finding) || !room.clone().takes(&line) {
                self.status.next = Some(Place::Finding { after });
                return;
            }
            (self.room, after) = (room, line);
            self.status.findings.push(finding);
        }
    }

    pub(super) fn finish(self) -> Status {
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::path::Path;
    use std::thread::{self, JoinHandle};
    use uvn_api::protocol::{answer_packet, parse_answer};
    use uvn_api::server::{Control, Limits};
    use uvn_api::uvnd::client::Client;
    use uvn_api::uvnd::finding::Id;
    use uvn_api::uvnd::message::Request;
    use uvn_api::uvnd::older;
    use uvn_api::uvnd::status::{Carrier, DataPlane, Reply};

    fn head() -> Status {
        Status { config: "/etc/uvn/uvn.toml".into(), networks: 1000, ..Status::default() }
    }

    /// A NIC as large as it can be.
    fn nic(slot: u8) -> NicState {
        let data_plane = DataPlane {
            fault: Some(shown(&"\u{1}".repeat(5000))),
            gear_reason: Some(shown(&"r".repeat(5000))),
            ..DataPlane::default()
        };
        NicState {
            name: format!("em{slot}"),
            up: true,
            mtu: 1500,
            addresses: vec!["fd00:1111:2222:3333:4444:5555:6666:7777/64".parse().unwrap(); 64],
            vteps: Vec::new(),
            port: 4789,
            carrier: Carrier::DataPlane,
            reason: shown(&"\u{e9}".repeat(5000)),
            data_plane: Some(data_plane),
        }
    }

    /// Long findings, one of them twice and one as long as it can be in JSON.
    fn findings() -> Vec<Finding> {
        let fault = |vni| Finding::of_data_plane("em1", vni, &format!("because {}", "x".repeat(400)));
        let mut findings: Vec<Finding> = (1..=1000).rev().map(fault).collect();
        findings.push(fault(7));
        findings.push(Finding::warning(Id::Peers, "\u{1}".repeat(70_000), "\u{1}".repeat(70_000)));
        findings
    }

    fn page(from: Place, nics: u8) -> Status {
        let mut page = Page::new(head());
        let after = match from {
            Place::Nic { slot } => {
                if !(slot..nics).all(|slot| page.add_nic(slot, nic(slot))) {
                    return page.finish();
                }
                String::new()
            }
            Place::Finding { after } => after,
        };
        page.add_findings(after, findings());
        page.finish()
    }

    /// Answers as `uvnd` does, until all of `status` has been asked for.
    fn serve(path: &Path) -> JoinHandle<usize> {
        let poll = Poll::new().unwrap();
        let limits = Limits { everyone: false, connections: 4, fds: 0 };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut control = Control::<Request>::listen(path, poll.registry(), Token(0), limits).unwrap();
        thread::spawn(move || {
            let mut poll = poll;
            let mut events = Events::with_capacity(8);
            for pages in 1.. {
                let incoming = loop {
                    if let Some(incoming) = control.take() {
                        break incoming;
                    }
                    poll.poll(&mut events, None).unwrap();
                    events.iter().for_each(|event| control.ready(event.token()));
                };
                let place = match incoming.request {
                    Request::Status => Place::Nic { slot: 0 },
                    Request::StatusFrom(place) => place,
                    other => panic!("{other:?}"),
                };
                let page = page(place, 10);
                let is_last = page.next.is_none();
                control.answer(incoming.connection, Ok(Reply::Status(Box::new(page))));
                if is_last {
                    return pages;
                }
            }
            0
        })
    }

    #[test]
    fn ten_nics_and_a_thousand_faults_arrive_each_once() {
        let folder = std::env::temp_dir().join(format!("uvn-pages-{}", std::process::id()));
        let socket = folder.join("uvnd.sock");
        let server = serve(&socket);
        let status = Client::connect(&socket).unwrap().status().unwrap();
        let pages = server.join().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let names: Vec<&str> = status.nics.iter().map(|nic| nic.name.as_str()).collect();
        let all: Vec<String> = (0..10).map(|slot| format!("em{slot}")).collect();
        assert_eq!(names, all);
        let mut vnis: Vec<u32> = status.findings.iter().filter_map(|finding| finding.vni).collect();
        vnis.sort_unstable();
        assert_eq!(vnis, (1..=1000).collect::<Vec<u32>>());
        assert_eq!((status.findings.len(), status.networks, status.next), (1001, 1000, None));
        assert!(pages > 5, "{pages} pages");
    }

    #[test]
    fn who_knows_no_pages_gets_one_that_fits() {
        for nics in [1, 10] {
            let reply = Reply::Status(Box::new(page(Place::Nic { slot: 0 }, nics)));
            let old = older::reply(reply).unwrap();
            let packet = answer_packet(Ok(&old), 0);
            assert!(parse_answer::<serde_json::Value>(&packet).is_ok(), "it does not fit");
            let warnings = old["status"]["warnings"].as_array().unwrap();
            assert!(warnings.last().unwrap().as_str().unwrap().contains("there is more"));
            assert_eq!(old["status"]["nics"][0]["path"], "engine");
        }
    }
}
