//! Who may reach beyond the subnets, where groups decide. Threads ask the user database: LDAP may be slow or hang, and
//! `uvnd` does not wait for it. A user whose groups are not known reaches nothing there.

use crate::config::OffSubnet;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use uvn_api::uvnd::finding::few;

/// How long an answer is waited for, unless the database is silent already: sssd answers from its cache within a
/// millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause before the database is asked again for users that it could not tell of.
const AGAIN: Duration = Duration::from_secs(10);

/// A user, and whether the user may; None: the database cannot tell.
type Answer = (u32, Option<bool>);

/// The questions, and the threads that ask them: one about users who come, one about all others.
pub(super) struct Members {
    policy: OffSubnet,
    urgent: Sender<u32>,
    others: Sender<u32>,
    answers: Receiver<Answer>,
    /// Users for whom the database has been asked, without an answer yet.
    asked: BTreeSet<u32>,
    /// Users who reach nothing off-subnet until there is an answer.
    refused: BTreeSet<u32>,
    /// Users that it could not tell of, and when it is asked again.
    unclear: BTreeSet<u32>,
    again: Instant,
    /// Answers that were not waited for.
    late: Vec<(u32, bool)>,
    /// An answer did not come in time: nothing is waited for until one comes.
    silent: bool,
}

impl Members {
    /// Asks the system's user database (nsswitch.conf(5)).
    pub(super) fn new(policy: OffSubnet) -> Members {
        let asks = policy.clone();
        Members::by(policy, move |uid| asks.ask(uid))
    }

    fn by(policy: OffSubnet, ask: impl Fn(u32) -> Option<bool> + Send + Sync + 'static) -> Members {
        let (given, answers) = channel();
        let (by_groups, ask) = (policy.of_all().is_none(), Arc::new(ask));
        let [urgent, others] = [0, 1].map(|_| {
            let (questions, to_ask) = channel();
            let (given, ask) = (given.clone(), Arc::clone(&ask));
            if by_groups {
                std::thread::spawn(move || {
                    for uid in to_ask {
                        if given.send((uid, ask(uid))).is_err() {
                            return;
                        }
                    }
                });
            }
            questions
        });
        let [asked, refused, unclear] = [0; 3].map(|_| BTreeSet::new());
        let (again, late, silent) = (Instant::now(), Vec::new(), false);
        Members { policy, urgent, others, answers, asked, refused, unclear, again, late, silent }
    }

    /// The policy that is in force.
    pub(super) fn policy(&self) -> &OffSubnet {
        &self.policy
    }

    /// Whether a user who comes may; None: not known yet, and the user is refused until [`Members::turn`] tells.
    pub(super) fn allows(&mut self, uid: u32) -> Option<bool> {
        if let Some(all) = self.policy.of_all() {
            return Some(all);
        }
        self.begin(uid);
        // The thread lives for as long as this sender.
        let _sent = self.urgent.send(uid);
        let end = Instant::now() + PATIENCE;
        while !self.silent && self.asked.contains(&uid) {
            match self.answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(answer) => self.take(answer),
                Err(_) => {
                    self.silent = true;
                    tracing::warn!(
                        uid,
                        "the user database does not answer; who is not known reaches nothing off-subnet"
                    );
                }
            }
        }
        let Some(at) = self.late.iter().position(|(user, _)| *user == uid) else {
            self.refused.insert(uid);
            return None;
        };
        Some(self.late.swap_remove(at).1)
    }

    /// Asks about a user without waiting; [`Members::turn`] will tell, unless it is the same for all users. Whether the
    /// user is refused until then is the caller's to say.
    pub(super) fn ask(&mut self, uid: u32, refused: bool) -> Option<bool> {
        let all = self.policy.of_all();
        if all.is_none() {
            self.begin(uid);
            if refused {
                self.refused.insert(uid);
            }
            let _sent = self.others.send(uid);
        }
        all
    }

    /// From now on, an older answer does not count.
    fn begin(&mut self, uid: u32) {
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer);
        }
        self.late.retain(|(user, _)| *user != uid);
        self.asked.insert(uid);
    }

    fn take(&mut self, (uid, answer): Answer) {
        self.asked.remove(&uid);
        self.silent = false;
        match answer {
            Some(allows) => {
                self.unclear.remove(&uid);
                self.refused.remove(&uid);
                self.late.push((uid, allows));
            }
            None => {
                self.unclear.insert(uid);
            }
        }
    }

    /// What has become known since; asks again where that is due. Does not wait.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<(u32, bool)> {
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer);
        }
        if now >= self.again {
            self.again = now + AGAIN;
            for uid in self.unclear.clone() {
                self.ask(uid, false);
            }
        }
        std::mem::take(&mut self.late)
    }

    /// What is wrong with the user database; None: nothing.
    pub(super) fn complaint(&self) -> Option<String> {
        let unknown = if self.silent { &self.asked } else { &self.unclear };
        let users: Vec<String> = self.refused.intersection(unknown).map(u32::to_string).collect();
        let why = if self.silent { "does not answer" } else { "cannot tell the groups" };
        (!users.is_empty()).then(|| {
            format!("the user database {why}: nothing off-subnet for users {}, until it does", few(&users))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Group;
    use std::sync::Mutex;

    fn by_groups() -> OffSubnet {
        OffSubnet { allow_groups: vec![Group::Number(7)], ..OffSubnet::default() }
    }

    fn wait(members: &mut Members, now: Instant) -> Vec<(u32, bool)> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let answers = members.turn(now);
            if !answers.is_empty() {
                return answers;
            }
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn without_groups_nobody_is_asked() {
        let mut members = Members::by(OffSubnet::default(), |_| panic!("asked"));
        assert_eq!((members.allows(7), members.complaint()), (Some(true), None));
        assert_eq!(members.turn(Instant::now()), []);
    }

    #[test]
    fn an_answer_in_time_is_taken_at_once() {
        let mut members = Members::by(by_groups(), |uid| Some(uid == 1));
        // On a busy machine an answer may be late.
        for (uid, allows) in [(1, true), (2, false), (1, true)] {
            match members.allows(uid) {
                Some(answer) => assert_eq!(answer, allows),
                None => assert_eq!(wait(&mut members, Instant::now()), [(uid, allows)]),
            }
        }
        assert_eq!(members.complaint(), None);
    }

    #[test]
    fn a_database_that_hangs_holds_up_one_user_once() {
        let (hold, held) = channel::<()>();
        let held = Mutex::new(held);
        let mut members = Members::by(by_groups(), move |uid| {
            let _released = held.lock().map(|held| held.recv());
            Some(uid == 1)
        });
        assert_eq!(members.allows(1), None);
        let begin = Instant::now();
        assert!((2..=1_000).all(|uid| members.allows(uid).is_none()));
        assert!(begin.elapsed() < 10 * PATIENCE, "none of them was waited for");
        assert!(members.complaint().unwrap().contains("users 1, 2, 3, 4, 5 and 995 more"));
        // It answers again.
        drop(hold);
        let mut told = Vec::new();
        while told.len() < 1_000 {
            told.extend(wait(&mut members, Instant::now()));
        }
        assert_eq!((told[0], told[999]), ((1, true), (1_000, false)));
        assert_eq!(members.complaint(), None);
    }

    #[test]
    fn what_it_cannot_tell_is_asked_again() {
        let (answers, next) = channel();
        let next = Mutex::new(next);
        let mut members = Members::by(by_groups(), move |_| next.lock().unwrap().recv().unwrap());
        let now = Instant::now();
        members.turn(now);
        answers.send(None).unwrap();
        assert_eq!(members.allows(1), None);
        while members.unclear.is_empty() {
            assert_eq!(members.turn(now), []);
        }
        assert!(
            members.complaint().unwrap().contains("cannot tell the groups: nothing off-subnet for users 1,")
        );
        answers.send(Some(true)).unwrap();
        assert_eq!(members.turn(now + AGAIN / 2), [], "not yet");
        members.turn(now + AGAIN);
        assert_eq!(wait(&mut members, now + AGAIN), [(1, true)]);
        assert_eq!(members.complaint(), None);
    }
}
