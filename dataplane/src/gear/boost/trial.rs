//! Finds the boost that pays, by trials on the traffic itself: turns without and with the boost.
//!
//! Threads are tried only on cores where no programs run: threads would delay programs there, even in a single turn.

use std::time::{Duration, Instant};
use uvn_api::dataplane::message::Boost;

/// The share of the cores' time that programs may use while threads are tried.
const PROGRAMS: f64 = 0.25;
/// How often the traffic is looked at: at multiples of [`LOOK`] by the wall clock, at least [`SOON`] from now. So nodes
/// whose clocks agree begin their trials together; threads on one side alone may gain nothing.
const LOOK: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(150);
/// The length of a turn. The rate of 28 ranks differs by 3 % from turn to turn. Turns begin at multiples of it by the
/// wall clock, those without a boost at even ones: otherwise nodes that try at the same time would spoil each other's
/// turns.
const TURN: Duration = Duration::from_millis(60);
/// The turns of a trial: without, with, without, with the boost.
const TURNS: usize = 4;
/// How long the outcome of a trial holds, since traffic changes. Doubled after each trial with the same outcome, up to
/// the longest.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(80);

/// Packets per second, in the direction with more, from which on a boost is tried. It ends below half of that.
const fn least(boost: Boost) -> f64 {
    match boost {
        Boost::Threads => 20_000.0,
        Boost::Awake => 1_000.0,
    }
}

/// Whether a boost pays, by the bytes per second of each turn.
fn pays(boost: Boost, rates: [f64; TURNS]) -> bool {
    let [without, with, without_again, with_again] = rates;
    match boost {
        Boost::Threads => with.min(with_again) > 1.05 * without.max(without_again),
        // It costs power, so it must gain more.
        Boost::Awake => with + with_again > 1.2 * (without + without_again),
    }
}

/// A NIC's counters.
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

    fn packets(self) -> u64 {
        self.rx_packets.max(self.tx_packets)
    }
}

/// Seconds of core time that programs have had on the threads' cores, averaged over these cores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Programs {
    /// In their own code.
    pub user: f64,
    /// In the kernel. Includes the threads' own time.
    pub system: f64,
}

/// Decides which boost is in force.
#[derive(Debug, Default)]
pub struct Trial {
    before: Option<(Instant, Load)>,
    look: Option<Look>,
    state: State,
}

/// The threads' cores at the last look.
#[derive(Debug)]
struct Look {
    at: Instant,
    programs: Programs,
    /// Whether threads have run there since.
    threads: bool,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    /// There is too little traffic to boost.
    #[default]
    Quiet,
    /// A trial. `rates`: bytes per second of each finished turn; None: the first turn has not begun. `without_threads`:
    /// threads have been tried before, and did not pay.
    Trying { boost: Boost, rates: Option<Vec<f64>>, last: Option<Outcome>, without_threads: bool },
    /// The outcome of the last trial holds.
    Settled(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Outcome {
    /// The boost that pays; None: none does.
    boost: Option<Boost>,
    until: Instant,
    holds: Duration,
}

impl Outcome {
    fn after(last: Option<Outcome>, boost: Option<Boost>, now: Instant) -> Outcome {
        let holds = match last {
            Some(last) if last.boost == boost => (2 * last.holds).min(LONGEST),
            _ => SHORTEST,
        };
        Outcome { boost, until: now + holds, holds }
    }
}

impl State {
    fn trying(boost: Boost, last: Option<Outcome>) -> State {
        State::Trying { boost, rates: None, last, without_threads: false }
    }

    /// The boost that is tried or in force.
    fn boost(&self) -> Option<Boost> {
        match self {
            State::Quiet => None,
            State::Trying { boost, .. } => Some(*boost),
            State::Settled(outcome) => outcome.boost,
        }
    }

    /// Packets per second, in the direction with more, below which there is nothing to gain.
    fn least(&self) -> f64 {
        match self {
            State::Quiet => least(Boost::Awake),
            State::Trying { .. } => least(Boost::Awake) / 2.0,
            State::Settled(outcome) => least(outcome.boost.unwrap_or(Boost::Awake)) / 2.0,
        }
    }
}

impl Trial {
    /// Takes the NIC's counters, and returns the boost to use from now on. `programs` is called only if it matters; it
    /// returns None if there can be no threads.
    pub fn step(
        &mut self,
        now: Instant,
        load: Load,
        programs: impl FnOnce() -> Option<Programs>,
    ) -> Option<Boost> {
        let boost = self.decide(now, load, programs);
        if let Some(look) = &mut self.look {
            look.threads |= boost == Some(Boost::Threads);
        }
        boost
    }

    fn decide(
        &mut self,
        now: Instant,
        load: Load,
        programs: impl FnOnce() -> Option<Programs>,
    ) -> Option<Boost> {
        let (then, before) = self.before.replace((now, load))?;
        let seconds = now.saturating_duration_since(then).as_secs_f64().max(1e-6);
        let carried = load.since(before);
        let packets = carried.packets() as f64 / seconds;
        if packets < self.state.least() {
            self.state = State::Quiet;
            return None;
        }
        let in_threads = self.state.boost() == Some(Boost::Threads);
        let many = packets >= least(Boost::Threads);
        let free = (many || in_threads) && self.are_cores_free(now, programs);
        if in_threads && !free {
            self.state = State::Quiet;
            return None;
        }
        let first = if many && free { Boost::Threads } else { Boost::Awake };
        match &mut self.state {
            State::Quiet => self.state = State::trying(first, None),
            State::Settled(last) if now >= last.until => {
                self.state = State::trying(first, Some(*last));
            }
            State::Settled(outcome) => return outcome.boost,
            State::Trying { rates: rates @ None, .. } => *rates = Some(Vec::new()),
            State::Trying { boost, rates: Some(rates), last, without_threads } => {
                // The traffic may have begun just before it was first seen: the first turn shows how much it is.
                if rates.is_empty() && !*without_threads {
                    *boost = first;
                }
                rates.push((carried.rx_bytes + carried.tx_bytes) as f64 / seconds);
                let Ok(rates) = <[f64; TURNS]>::try_from(rates.as_slice()) else {
                    return (rates.len() % 2 == 1).then_some(*boost);
                };
                let (boost, last) = (*boost, *last);
                let pays = pays(boost, rates);
                if !pays && boost == Boost::Threads {
                    let (boost, rates) = (Boost::Awake, Some(Vec::new()));
                    self.state = State::Trying { boost, rates, last, without_threads: true };
                    return None;
                }
                let outcome = Outcome::after(last, pays.then_some(boost), now);
                self.state = State::Settled(outcome);
                return outcome.boost;
            }
        }
        None
    }

    /// Whether there can be threads, and programs have hardly used their cores since the last call.
    fn are_cores_free(&mut self, now: Instant, programs: impl FnOnce() -> Option<Programs>) -> bool {
        let Some(programs) = programs() else { return false };
        let look = self.look.replace(Look { at: now, programs, threads: false });
        look.is_none_or(|look| {
            let system = if look.threads { 0.0 } else { programs.system - look.programs.system };
            let time = now.saturating_duration_since(look.at).as_secs_f64();
            programs.user - look.programs.user + system <= PROGRAMS * time
        })
    }

    /// Whether a trial is going on.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        matches!(self.state, State::Trying { .. })
    }

    /// How soon the next step is due; `time` is the wall clock, since 1970.
    #[must_use]
    pub fn again(&self, time: Duration) -> Duration {
        // The time until `offset` after a multiple of the period, at least `least`.
        let next = |period: Duration, offset: Duration, least: Duration| {
            let past = (time.as_nanos() % period.as_nanos()) as u64;
            let left = (period + offset - Duration::from_nanos(past)).as_nanos() % period.as_nanos();
            let left = Duration::from_nanos(left as u64);
            if left < least { left + period } else { left }
        };
        // A turn that began a little early or late ends with those of the other nodes.
        let least = TURN / 4;
        match &self.state {
            State::Trying { rates: Some(rates), .. } if rates.len() % 2 == 0 => next(2 * TURN, TURN, least),
            State::Trying { .. } => next(2 * TURN, Duration::ZERO, least),
            State::Settled(_) | State::Quiet => next(LOOK, Duration::ZERO, SOON),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A NIC that carries so many packets a second with nothing, with threads and with cores awake.
    struct Bench {
        trial: Trial,
        now: Instant,
        /// When the wall clock was zero.
        epoch: Instant,
        load: Load,
        /// Whether it receives them, and whether it sends them: 1 or 0.
        ways: [u64; 2],
        boost: Option<Boost>,
        /// The part of the cores' time that programs have, a half of it in the kernel, and what they had so far.
        programs: f64,
        had: Programs,
    }

    impl Bench {
        fn new() -> Bench {
            let (trial, load, had) = (Trial::default(), Load::default(), Programs::default());
            let epoch = Instant::now();
            let now = epoch + Duration::from_millis(1_234);
            let (ways, boost, programs) = ([1, 1], None, 0.1);
            let mut bench = Bench { trial, now, epoch, load, ways, boost, programs, had };
            bench.pass(Duration::from_secs(1), [0, 0], 0);
            bench
        }

        fn again(&self) -> Duration {
            self.trial.again(self.now.duration_since(self.epoch))
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
            let own = if self.boost == Some(Boost::Threads) { 1.0 } else { 0.0 };
            self.had.system += (self.programs / 2.0 + own) * time.as_secs_f64();
            self.boost = self.trial.step(self.now, self.load, || Some(self.had));
        }

        /// So many seconds. Returns the trials.
        fn run(&mut self, seconds: u64, [nothing, threads, awake]: [u64; 3]) -> usize {
            let mut trials = 0;
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end {
                let rate = match self.boost {
                    None => nothing,
                    Some(Boost::Threads) => threads,
                    Some(Boost::Awake) => awake,
                };
                let before = self.trial.is_trying();
                self.pass(self.again(), self.ways.map(|way| way * rate), 100);
                trials += usize::from(!before && self.trial.is_trying());
            }
            trials
        }
    }

    #[test]
    fn what_carries_more_stays() {
        for (rates, boost) in [
            ([100_000, 150_000, 100_000], Some(Boost::Threads)),
            ([100_000, 150_000, 300_000], Some(Boost::Threads)),
            ([10_000, 5_000, 50_000], Some(Boost::Awake)),
            ([50_000, 20_000, 100_000], Some(Boost::Awake)),
            ([100_000, 104_000, 104_000], None),
            ([100_000, 90_000, 100_000], None),
            ([1_500, 1_500, 1_500], None),
        ] {
            let mut bench = Bench::new();
            assert_eq!(bench.run(5, rates), 1);
            assert_eq!(bench.boost, boost, "{rates:?}");
            bench.pass(Duration::from_secs(1), [400, 400], 100);
            assert_eq!(bench.boost, None, "it has become quiet");
        }
    }

    #[test]
    fn nodes_that_gain_only_together_find_out_soon() {
        let epoch = Instant::now();
        // Steps are late, or early by a clock.
        let mut late = [3, 0, 5, 1, 0, 2, 4].into_iter().cycle().map(Duration::from_millis);
        for apart in (0..1_000).step_by(25) {
            let mut nodes = [0, apart].map(|begin| (Trial::default(), Duration::from_millis(begin), None));
            let traffic = Duration::from_millis(3_000 + 7 * apart % 1_000);
            let (mut time, mut messages) = (Duration::ZERO, 0.0);
            while time < traffic + Duration::from_secs(1) {
                let next = nodes.iter().map(|(_, next, _)| *next).min().unwrap();
                let both = nodes.iter().all(|(.., boost)| *boost == Some(Boost::Threads));
                let rate = if both { 135_000.0 } else { 100_000.0 };
                messages += rate * next.saturating_sub(time.max(traffic)).as_secs_f64();
                time = next;
                for (trial, next, boost) in nodes.iter_mut().filter(|(_, next, _)| *next == time) {
                    let packets = messages as u64;
                    let [rx_packets, tx_packets] = [packets; 2];
                    let [rx_bytes, tx_bytes] = [100 * packets; 2];
                    let load = Load { rx_packets, rx_bytes, tx_packets, tx_bytes };
                    *boost = trial.step(epoch + time, load, || Some(Programs::default()));
                    *next += trial.again(time) + late.next().unwrap() - Duration::from_millis(2);
                }
            }
            let boosts = nodes.map(|(.., boost)| boost);
            assert_eq!(boosts, [Some(Boost::Threads); 2], "{apart} ms apart");
        }
    }

    #[test]
    fn traffic_that_has_just_begun_is_not_taken_for_little() {
        let mut bench = Bench::new();
        bench.pass(Duration::from_secs(1), [5_000, 5_000], 100);
        bench.run(2, [100_000, 150_000, 100_000]);
        assert_eq!(bench.boost, Some(Boost::Threads));
    }

    #[test]
    fn an_outcome_is_tried_again_less_and_less_often() {
        let mut bench = Bench::new();
        let (few, many) = ([10_000, 5_000, 80_000], [100_000, 150_000, 100_000]);
        // After 10, 20, 40, 80 and 80 s.
        assert_eq!(bench.run(240, few), 6);
        assert_eq!(bench.boost, Some(Boost::Awake));
        // Others now: noticed by the next trial, 80 s after the last.
        bench.run(84, many);
        assert_eq!(bench.boost, Some(Boost::Threads));
        // And back again, within 10 s of that.
        bench.run(84, few);
        assert_eq!(bench.boost, Some(Boost::Awake));
    }

    #[test]
    fn cores_with_programs_on_them_are_left_to_those() {
        let mut bench = Bench::new();
        let rates = [100_000, 150_000, 100_000];
        bench.programs = 0.4;
        for _ in 0..200 {
            bench.pass(TURN, [100_000, 100_000], 100);
            assert_ne!(bench.boost, Some(Boost::Threads), "not even for a turn");
        }
        bench.programs = 0.1;
        bench.run(40, rates);
        assert_eq!(bench.boost, Some(Boost::Threads));
        bench.programs = 0.6;
        bench.pass(Duration::from_secs(1), [100_000, 100_000], 100);
        assert_eq!(bench.boost, None);
    }

    #[test]
    fn where_there_can_be_no_threads_none_are_tried() {
        let mut bench = Bench::new();
        for second in 1..20 {
            bench.load.rx_packets += 100_000;
            bench.load.tx_packets += 100_000;
            let boost = bench.trial.step(bench.now + Duration::from_secs(second), bench.load, || None);
            assert_ne!(boost, Some(Boost::Threads));
        }
    }

    #[test]
    fn a_transfer_or_a_flood_may_gain_too() {
        for ways in [[1, 0], [0, 1]] {
            let mut bench = Bench { ways, ..Bench::new() };
            assert_eq!(bench.run(5, [500_000, 900_000, 500_000]), 1);
            assert_eq!(bench.boost, Some(Boost::Threads), "{ways:?}");
        }
    }

    #[test]
    fn few_packets_begin_no_trial() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            bench.pass(LOOK, [900, 900], 100);
            assert!(!bench.trial.is_trying() && bench.boost.is_none());
        }
    }

    #[test]
    fn less_than_many_packets_begin_no_trial_of_threads_and_end_their_use() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.pass(TURN, [19_000, 19_000], 100);
            assert_ne!(bench.boost, Some(Boost::Threads));
        }
        let mut bench = Bench::new();
        bench.run(5, [100_000, 150_000, 100_000]);
        assert_eq!(bench.boost, Some(Boost::Threads));
        bench.pass(Duration::from_secs(1), [3_000, 3_000], 100);
        assert_eq!(bench.boost, None);
    }

    #[test]
    fn counters_that_begin_anew_are_no_load() {
        let mut bench = Bench::new();
        bench.run(5, [100_000, 150_000, 100_000]);
        bench.load = Load::default();
        bench.pass(Duration::from_secs(1), [0, 0], 0);
        assert_eq!(bench.boost, None);
    }
}
