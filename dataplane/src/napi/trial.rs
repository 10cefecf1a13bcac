//! When threads pay: tried out on the traffic itself, by turns without and with them.
//!
//! Only many messages that go both ways are worth a try. A transfer or a flood goes one way, and its neighbours would
//! pay for it: each of their messages then wakes a thread. And only on cores where no programs run: those would keep the
//! threads waiting, even for a turn.

use std::time::{Duration, Instant};

/// Packets a second, the lesser of both directions, from which a trial begins. It ends below half of that.
const MESSAGES: f64 = 20_000.0;
/// The greater direction has at most so many times the bytes of the lesser.
const BALANCE: u64 = 3;
/// The part of the cores' time that programs may have.
const PROGRAMS: f64 = 0.25;
/// How long a turn is. The rate of 28 ranks differs by 3 % from turn to turn.
pub const TURN: Duration = Duration::from_millis(60);
/// Without, with, without, with.
const TURNS: usize = 4;
/// Every turn with threads must carry so many times what any turn without them does.
const GAIN: f64 = 1.05;
/// After a trial, how long its outcome holds; twice as long after each with the same outcome, up to the longest.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(320);

/// What a NIC has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Received packets.
    pub rx_packets: u64,
    /// Received bytes.
    pub rx_bytes: u64,
    /// Sent packets.
    pub tx_packets: u64,
    /// Sent bytes.
    pub tx_bytes: u64,
}

impl Load {
    fn since(self, before: Load) -> Load {
        Load {
            rx_packets: self.rx_packets.saturating_sub(before.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(before.rx_bytes),
            tx_packets: self.tx_packets.saturating_sub(before.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(before.tx_bytes),
        }
    }

    fn messages(self) -> u64 {
        self.rx_packets.min(self.tx_packets)
    }

    fn is_balanced(self) -> bool {
        self.rx_bytes.max(self.tx_bytes) <= BALANCE * self.rx_bytes.min(self.tx_bytes)
    }
}

/// Seconds that programs have had on the threads' cores, as part of the cores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Programs {
    /// In their own code.
    pub user: f64,
    /// In the kernel's, for them; the threads' own time is in this, too.
    pub system: f64,
}

/// Decides whether threads are used.
#[derive(Debug, Default)]
pub struct Trial {
    before: Option<(Instant, Load)>,
    /// When the cores were last looked at.
    programs: Option<Programs>,
    threads: bool,
    state: State,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    /// Nothing to gain.
    #[default]
    Quiet,
    /// Bytes a second of each turn so far.
    Trying { rates: Vec<f64>, last: Option<Outcome> },
    /// An outcome holds.
    Settled(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Outcome {
    threads: bool,
    until: Instant,
    holds: Duration,
}

impl Trial {
    /// Takes what the NIC has carried up to now; says whether threads are to be used from now on. `programs` is asked only
    /// if it matters.
    pub fn step(&mut self, now: Instant, load: Load, programs: impl FnOnce() -> Programs) -> bool {
        self.threads = self.decide(now, load, programs);
        self.threads
    }

    fn decide(&mut self, now: Instant, load: Load, programs: impl FnOnce() -> Programs) -> bool {
        let Some((then, before)) = self.before.replace((now, load)) else { return false };
        let seconds = now.saturating_duration_since(then).as_secs_f64().max(1e-6);
        let least = if self.state == State::Quiet { MESSAGES } else { MESSAGES / 2.0 };
        let carried = load.since(before);
        if !carried.is_balanced() || (carried.messages() as f64) < least * seconds {
            (self.state, self.programs) = (State::Quiet, None);
            return false;
        }
        let programs = programs();
        let had = self.programs.replace(programs).map_or(0.0, |before| {
            let system = if self.threads { 0.0 } else { programs.system - before.system };
            programs.user - before.user + system
        });
        if had > PROGRAMS * seconds {
            self.state = State::Quiet;
            return false;
        }
        match &mut self.state {
            State::Quiet => self.state = State::Trying { rates: Vec::new(), last: None },
            State::Settled(last) if now >= last.until => {
                self.state = State::Trying { rates: Vec::new(), last: Some(*last) };
            }
            State::Settled(outcome) => return outcome.threads,
            State::Trying { rates, last } => {
                rates.push((carried.rx_bytes + carried.tx_bytes) as f64 / seconds);
                if rates.len() < TURNS {
                    return rates.len() % 2 == 1;
                }
                let threads = rates[1].min(rates[3]) > GAIN * rates[0].max(rates[2]);
                let holds = match last {
                    Some(last) if last.threads == threads => (2 * last.holds).min(LONGEST),
                    _ => SHORTEST,
                };
                self.state = State::Settled(Outcome { threads, until: now + holds, holds });
                return threads;
            }
        }
        false
    }

    /// Whether the next step is due after a [`TURN`], and not whenever there is time.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        matches!(self.state, State::Trying { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A NIC that carries `without` and `with` threads so many kilobyte messages a second each way.
    struct Bench {
        trial: Trial,
        now: Instant,
        load: Load,
        threads: bool,
        /// The part of the cores' time that programs have, a half of it in the kernel, and what they had so far.
        programs: f64,
        had: Programs,
    }

    impl Bench {
        fn new() -> Bench {
            let (trial, load) = (Trial::default(), Load::default());
            let now = Instant::now();
            let mut bench =
                Bench { trial, now, load, threads: false, programs: 0.1, had: Programs::default() };
            bench.pass(Duration::from_secs(1), [0, 0], 0);
            bench
        }

        /// `rates`: packets a second received and sent, of so many bytes.
        fn pass(&mut self, time: Duration, rates: [u64; 2], bytes: u64) {
            let [rx, tx] = rates.map(|rate| rate * time.as_millis() as u64 / 1000);
            self.now += time;
            self.load.rx_packets += rx;
            self.load.tx_packets += tx;
            self.load.rx_bytes += rx * bytes;
            self.load.tx_bytes += tx * bytes;
            self.had.user += self.programs / 2.0 * time.as_secs_f64();
            let own = if self.threads { 1.0 } else { 0.0 };
            self.had.system += (self.programs / 2.0 + own) * time.as_secs_f64();
            self.threads = self.trial.step(self.now, self.load, || self.had);
        }

        /// So long, in turns, with a rate for either setting.
        fn run(&mut self, time: Duration, without: u64, with: u64) -> usize {
            let mut trials = 0;
            let end = self.now + time;
            while self.now < end {
                let rate = if self.threads { with } else { without };
                let before = self.trial.is_trying();
                let turn = if before { TURN } else { Duration::from_secs(1) };
                self.pass(turn, [rate, rate], 100);
                trials += usize::from(!before && self.trial.is_trying());
            }
            trials
        }
    }

    #[test]
    fn threads_stay_where_more_is_carried_with_them() {
        let mut bench = Bench::new();
        assert_eq!(bench.run(Duration::from_secs(5), 100_000, 150_000), 1);
        assert!(bench.threads);
        bench.pass(Duration::from_secs(1), [3_000, 3_000], 100);
        assert!(!bench.threads, "it has become quiet");
    }

    #[test]
    fn they_do_not_where_as_much_or_less_is() {
        for with in [90_000, 100_000, 104_000] {
            let mut bench = Bench::new();
            assert_eq!(bench.run(Duration::from_secs(5), 100_000, with), 1);
            assert!(!bench.threads, "{with}");
        }
    }

    #[test]
    fn an_outcome_is_tried_again_less_and_less_often() {
        let mut bench = Bench::new();
        // After 10, 20, 40, 80 and 160 s.
        assert_eq!(bench.run(Duration::from_secs(300), 100_000, 90_000), 5);
        // The other way round now: noticed by the next trial, 320 s after the last.
        bench.run(Duration::from_secs(340), 100_000, 150_000);
        assert!(bench.threads);
        // And back again, within 10 s of that.
        bench.run(Duration::from_secs(320), 100_000, 90_000);
        assert!(!bench.threads);
    }

    #[test]
    fn cores_with_programs_on_them_are_left_to_those() {
        let mut bench = Bench::new();
        bench.programs = 0.4;
        for _ in 0..100 {
            bench.run(TURN, 100_000, 150_000);
            assert!(!bench.threads, "not even for a turn");
        }
        bench.programs = 0.1;
        bench.run(Duration::from_secs(3), 100_000, 150_000);
        assert!(bench.threads);
        bench.programs = 0.6;
        bench.run(Duration::from_secs(1), 100_000, 150_000);
        assert!(!bench.threads);
    }

    #[test]
    fn one_way_or_few_packets_begin_no_trial() {
        for (rates, what) in [
            ([19_000, 19_000], "few"),
            ([700_000, 0], "a flood"),
            ([0, 700_000], "a flood's sender"),
            ([900_000, 250_000], "a transfer and its acknowledgements"),
        ] {
            let mut bench = Bench::new();
            for _ in 0..10 {
                bench.pass(Duration::from_secs(1), rates, 100);
                assert!(!bench.trial.is_trying() && !bench.threads, "{what}");
            }
        }
    }

    #[test]
    fn counters_that_begin_anew_are_no_load() {
        let mut bench = Bench::new();
        bench.run(Duration::from_secs(5), 100_000, 150_000);
        bench.load = Load::default();
        bench.pass(Duration::from_secs(1), [0, 0], 0);
        assert!(!bench.threads);
    }
}
