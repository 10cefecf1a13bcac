//! Which users the user database has. A thread asks it, because LDAP is slow; answers are remembered.

use super::MAX_REMEMBERED;
use nix::unistd::{Uid, User};
use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How long an answer holds: the user exists, does not exist, or the database cannot tell.
const HOLDS: [Duration; 3] = [Duration::from_secs(600), Duration::from_secs(30), Duration::from_secs(5)];
/// Questions that wait for an answer, at most.
const MAX_ASKED: usize = 64;

/// Whether the user exists; None: the database cannot tell.
type Answer = Option<bool>;

/// The users that were looked up, and the thread that does so.
#[derive(Debug)]
pub struct Users {
    questions: Sender<u32>,
    answers: Receiver<(u32, Answer)>,
    asked: HashSet<u32>,
    /// By UID: whether the user exists, and until when the answer holds.
    known: HashMap<u32, (bool, Duration)>,
}

impl Users {
    /// Looks users up in the system's user database (nsswitch.conf(5)).
    #[must_use]
    pub fn new() -> Users {
        Users::by(|uid| User::from_uid(Uid::from_raw(uid)).ok().map(|user| user.is_some()))
    }

    /// Looks users up with `look_up`, in a thread.
    pub(super) fn by(look_up: impl Fn(u32) -> Answer + Send + 'static) -> Users {
        let (questions, to_answer) = channel::<u32>();
        let (given, answers) = channel();
        std::thread::spawn(move || {
            while let Ok(uid) = to_answer.recv() {
                if given.send((uid, look_up(uid))).is_err() {
                    return;
                }
            }
        });
        Users { questions, answers, asked: HashSet::new(), known: HashMap::new() }
    }

    /// Whether the user exists; None: not known yet.
    pub(super) fn knows(&mut self, uid: u32, now: Duration) -> Option<bool> {
        while let Ok((uid, answer)) = self.answers.try_recv() {
            self.asked.remove(&uid);
            let [yes, no, unclear] = HOLDS;
            let holds = answer.map_or(unclear, |known| if known { yes } else { no });
            self.remember(uid, answer.unwrap_or(false), now.saturating_add(holds), now);
        }
        self.known.get(&uid).filter(|(_, until)| now < *until).map(|(known, _)| *known)
    }

    /// Queues a look-up. False: [`MAX_ASKED`] are waiting.
    pub(super) fn ask(&mut self, uid: u32) -> bool {
        if self.asked.contains(&uid) {
            return true;
        }
        let room = self.asked.len() < MAX_ASKED && self.questions.send(uid).is_ok();
        if room {
            self.asked.insert(uid);
        }
        room
    }

    fn remember(&mut self, uid: u32, known: bool, until: Duration, now: Duration) {
        if self.known.len() >= MAX_REMEMBERED {
            self.known.retain(|_, (_, until)| now < *until);
        }
        if self.known.len() >= MAX_REMEMBERED {
            self.known.clear();
        }
        self.known.insert(uid, (known, until));
    }
}

impl Default for Users {
    fn default() -> Self {
        Users::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    impl Users {
        /// Everybody is known, and nobody is asked for.
        pub(in crate::demand) fn all_known() -> Users {
            let mut users = Users::by(|_| Some(true));
            users.known = (0..20_000).map(|uid| (uid, (true, Duration::MAX))).collect();
            users.known.extend((60_001..60_010).chain([16_777_221]).map(|uid| (uid, (true, Duration::MAX))));
            users
        }
    }

    fn answer(users: &mut Users, uid: u32, now: Duration) -> Option<bool> {
        assert!(users.ask(uid));
        while users.asked.contains(&uid) {
            std::thread::sleep(Duration::from_millis(2));
            users.knows(uid, now);
        }
        users.knows(uid, now)
    }

    #[test]
    fn the_system_knows_root_and_not_everybody() {
        let mut users = Users::new();
        assert_eq!(users.knows(0, Duration::ZERO), None);
        assert_eq!(answer(&mut users, 0, Duration::ZERO), Some(true));
        assert_eq!(answer(&mut users, 4_000_000_000, Duration::ZERO), Some(false));
    }

    #[test]
    fn answers_hold_for_a_while() {
        let mut users = Users::by(|uid| [Some(true), Some(false), None].get(uid as usize).copied().flatten());
        for (uid, holds) in (0..).zip(HOLDS) {
            assert_eq!(answer(&mut users, uid, Duration::ZERO), Some(uid == 0));
            assert!(users.knows(uid, holds - Duration::from_millis(1)).is_some());
            assert_eq!(users.knows(uid, holds), None);
        }
    }

    #[test]
    fn a_database_that_hangs_holds_up_nobody() {
        let (hold, held) = channel::<()>();
        let held = Mutex::new(held);
        let mut users = Users::by(move |_| {
            let _released = held.lock().map(|held| held.recv());
            Some(true)
        });
        let asked = (0..1000).filter(|uid| users.ask(*uid)).count();
        assert_eq!(asked, MAX_ASKED);
        assert!(users.ask(0), "it is asked already");
        assert_eq!(users.knows(0, Duration::ZERO), None);
        drop(hold);
    }

    #[test]
    fn not_all_are_remembered_for_ever() {
        let mut users = Users::by(|_| Some(true));
        for uid in 0..10_000 {
            users.remember(uid, true, Duration::MAX, Duration::ZERO);
        }
        assert!(users.known.len() <= MAX_REMEMBERED);
    }
}
