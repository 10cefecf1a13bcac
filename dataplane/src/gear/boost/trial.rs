//! Finds the boost that pays, by trials on the traffic itself: pairs of turns, one without and one with the boost, until
//! the difference is significant.
//!
//! Threads are tried only on cores where no programs run, and no longer once some do: threads would delay them.

use std::time::{Duration, Instant};
use uvn_api::dataplane::message::Boost;

/// The share of a core's time that programs may use while threads are tried there.
const PROGRAMS: f64 = 0.25;
/// Over how long that is counted, at least, since the kernel counts in ticks of 10 ms (USER_HZ); and after how long what
/// was counted says nothing of now.
const WINDOW: Duration = Duration::from_millis(240);
const STALE: Duration = Duration::from_secs(1);
/// How often the traffic is looked at: at multiples of [`LOOK`] by the wall clock, at least [`SOON`] from now. So nodes
/// whose clocks agree begin their trials together; threads on one side alone may gain nothing.
const LOOK: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(150);
/// The length of a turn. The rate of 28 ranks differs by 3 % from turn to turn. Turns begin at multiples of it by the
/// wall clock, a pair's first at even ones, and all nodes boost the same turn of a pair: otherwise nodes that try at the
/// same time would spoil each other's turns.
const TURN: Duration = Duration::from_millis(60);
/// A trial begins at a multiple of so many turns by the wall clock, and its outcome ends at a multiple of [`GRID`]: nodes
/// that have seen their traffic at different times try it together, if not at first then next.
const BEGIN: u64 = 32;
const GRID: Duration = Duration::from_millis(9_600);
/// A boost pays if it carries more in so many pairs before it carries less in [`LOSSES`], and enough more in all. With a
/// boost that has no effect, that happens in one trial of 600.
const WINS: u32 = 12;
const LOSSES: u32 = 2;
/// A trial ends without a gain after so many steps: on a machine that is too busy for them, every turn is late.
const STEPS: u32 = 60;
/// How long the outcome of a trial holds, since traffic changes; also while it pauses. Doubled after each trial with the
/// same outcome, up to the longest; halved when the traffic pauses during the next one, down to the least.
const LEAST: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(80);

/// Packets per second, in the direction with more, from which on a boost is tried. It ends below half of that.
const fn least(boost: Boost) -> f64 {
    match boost {
        Boost::Threads => 20_000.0,
        Boost::Awake => 1_000.0,
    }
}

/// How many times more it must carry.
const fn gain(boost: Boost) -> f64 {
    match boost {
        Boost::Threads => 1.05,
        // It costs power, so it must gain more.
        Boost::Awake => 1.2,
    }
}

/// Whether a boost is tried in this turn, by the number of the turn since 1970: in either turn of a pair, by the pair's
/// number. In a fixed order, traffic in bursts would be taken for a gain.
fn is_boosted(turn: u64) -> bool {
    // SplitMix64's finalizer: neighbours have nothing in common.
    let mut bits = (turn / 2).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (turn % 2 == 1) == ((bits ^ (bits >> 31)) & 1 == 0)
}

/// What uvn has carried.
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

/// Seconds of a core's time that programs have had.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Programs {
    /// In their own code.
    pub user: f64,
    /// In the kernel. Includes the threads' own time.
    pub system: f64,
}

/// Decides which boost is in force.
#[derive(Debug)]
pub struct Trial {
    /// Whether cores may be kept awake.
    may_be_awake: bool,
    before: Option<(Instant, Load)>,
    look: Option<Look>,
    state: State,
}

/// The traffic since the last step.
struct Seen {
    /// Packets per second, in the direction with more, and bytes per second in both.
    packets: f64,
    bytes: f64,
    /// The boost that is worth a try.
    best: Option<Boost>,
    /// Whether there can be threads now.
    is_free: bool,
    /// Whether that would matter and is not known.
    is_open: bool,
}

/// The threads' cores at the last look.
#[derive(Debug)]
struct Look {
    at: Instant,
    programs: Vec<Programs>,
    /// Whether threads have run there since.
    threads: bool,
    /// Whether programs had hardly used any core until then; None: that is not known.
    free: Option<bool>,
}

#[derive(Debug, PartialEq)]
enum State {
    /// There is too little traffic to boost. The outcome of the last trial.
    Quiet(Option<Outcome>),
    /// A trial, after one with this outcome.
    Trying(Pairs, Option<Outcome>),
    /// The outcome of the last trial holds.
    Settled(Outcome),
}

/// The trial of one boost.
#[derive(Debug, PartialEq)]
struct Pairs {
    /// None: not chosen yet.
    boost: Option<Boost>,
    /// The turn with which it begins.
    begin: u64,
    /// The turn that has begun; None: none has.
    turn: Option<u64>,
    /// Bytes per second in the first turn of the pair.
    first: f64,
    /// Pairs in which the boost carried more, and in which it did not.
    wins: u32,
    losses: u32,
    steps: u32,
    /// The sums of bytes per second without and with the boost.
    without: f64,
    with: f64,
}

impl Pairs {
    /// From the next multiple of [`BEGIN`] on.
    fn of(boost: Option<Boost>, time: Duration) -> Pairs {
        let begin = (turn(time) / BEGIN + 1) * BEGIN;
        Pairs { boost, begin, turn: None, first: 0.0, wins: 0, losses: 0, steps: 0, without: 0.0, with: 0.0 }
    }

    /// Takes the rate of the turn that has ended, and begins this one. Returns whether the boost pays, once that is
    /// known.
    fn step(&mut self, turn: u64, rate: f64) -> Option<bool> {
        match self.turn.replace(turn) {
            Some(before) if before + 1 == turn => {
                if before % 2 == 0 {
                    self.first = rate;
                } else {
                    self.judge(if is_boosted(before) { [self.first, rate] } else { [rate, self.first] });
                }
            }
            // The first one, or a late step: both turns of a pair must be whole.
            _ => self.turn = turn.is_multiple_of(2).then_some(turn),
        }
        let boost = self.boost?;
        self.steps += 1;
        let is_over = self.losses == LOSSES || self.wins == WINS || self.steps == STEPS;
        is_over.then(|| self.wins == WINS && self.with > gain(boost) * self.without)
    }

    fn judge(&mut self, [without, with]: [f64; 2]) {
        self.without += without;
        self.with += with;
        *(if with > without { &mut self.wins } else { &mut self.losses }) += 1;
    }

    /// The boost in the turn that has begun.
    fn boost(&self) -> Option<Boost> {
        self.turn.filter(|turn| is_boosted(*turn)).and(self.boost)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Outcome {
    /// The boost that pays; None: none does.
    boost: Option<Boost>,
    until: Instant,
    holds: Duration,
}

impl Outcome {
    fn after(last: Option<Outcome>, boost: Option<Boost>, now: Instant, time: Duration) -> Outcome {
        let holds = match last {
            Some(last) if last.boost == boost => (2 * last.holds).min(LONGEST),
            _ => SHORTEST,
        };
        Outcome { boost, until: now + holds + to_next(GRID, time + holds), holds }
    }
}

/// The time from a time to the next multiple of a period.
fn to_next(period: Duration, time: Duration) -> Duration {
    period - Duration::from_nanos((time.as_nanos() % period.as_nanos()) as u64)
}

/// The number of the turn that begins at about this time.
fn turn(time: Duration) -> u64 {
    ((time + TURN / 2).as_nanos() / TURN.as_nanos()) as u64
}

impl State {
    /// The boost that is in force or tried, perhaps in the next turn.
    fn stake(&self) -> Option<Boost> {
        match self {
            State::Trying(pairs, _) => pairs.boost.or(self.boost()),
            State::Quiet(_) | State::Settled(_) => self.boost(),
        }
    }

    /// The boost that is in force.
    fn boost(&self) -> Option<Boost> {
        match self {
            State::Quiet(_) => None,
            // Until the trial begins, what it tries again goes on.
            State::Trying(Pairs { steps: 0, .. }, Some(last)) => last.boost,
            State::Trying(pairs, _) => pairs.boost(),
            State::Settled(outcome) => outcome.boost,
        }
    }

    /// Packets per second below which it is quiet.
    fn enough(&self) -> f64 {
        match self {
            // The turns with one boost may carry less than another one needs.
            State::Trying(..) | State::Quiet(_) => least(Boost::Awake) / 2.0,
            State::Settled(outcome) => least(outcome.boost.unwrap_or(Boost::Awake)) / 2.0,
        }
    }

    /// It is quiet from now on. A trial that was cut short has shown no gain, nor that there is none any more.
    fn end(&mut self, now: Instant, time: Duration) {
        let last = match self {
            State::Quiet(last) => *last,
            State::Trying(_, Some(last)) if last.boost.is_some() && last.holds > LEAST => {
                let holds = last.holds / 2;
                Some(Outcome { until: now + holds, holds, ..*last })
            }
            State::Trying(_, last) => Some(Outcome::after(*last, None, now, time)),
            State::Settled(outcome) => Some(*outcome),
        };
        *self = State::Quiet(last);
    }
}

impl Trial {
    /// Nothing is boosted yet. Cores may be kept awake, or only the NIC receive in threads.
    #[must_use]
    pub fn new(may_be_awake: bool) -> Trial {
        Trial { may_be_awake, before: None, look: None, state: State::Quiet(None) }
    }

    /// Cores cannot be kept awake after all.
    pub fn may_not_be_awake(&mut self) {
        (self.may_be_awake, self.state) = (false, State::Quiet(None));
    }

    /// Takes what has been carried, and returns the boost to use from now on; `time` is the wall clock, since 1970.
    /// `programs` is called only if it matters; it returns None if there can be no threads.
    pub fn step(
        &mut self,
        now: Instant,
        time: Duration,
        load: Load,
        programs: impl FnOnce() -> Option<Vec<Programs>>,
    ) -> Option<Boost> {
        self.decide(now, time, load, programs);
        let boost = self.state.boost();
        if let Some(look) = &mut self.look {
            look.threads |= boost == Some(Boost::Threads);
        }
        boost
    }

    /// What the traffic is like; None: at first.
    fn see(
        &mut self,
        now: Instant,
        load: Load,
        programs: impl FnOnce() -> Option<Vec<Programs>>,
    ) -> Option<Seen> {
        let (then, before) = self.before.replace((now, load))?;
        let seconds = now.saturating_duration_since(then).as_secs_f64().max(1e-6);
        let carried = load.since(before);
        let packets = carried.packets() as f64 / seconds;
        let bytes = (carried.rx_bytes + carried.tx_bytes) as f64 / seconds;
        let many = packets >= least(Boost::Threads);
        let free = match many || self.state.stake() == Some(Boost::Threads) {
            true => self.are_cores_free(now, programs),
            false => Some(false),
        };
        let is_free = free == Some(true);
        let best = match (many && is_free, self.may_be_awake && packets >= least(Boost::Awake)) {
            (true, _) => Some(Boost::Threads),
            (false, true) => Some(Boost::Awake),
            (false, false) => None,
        };
        Some(Seen { packets, bytes, best, is_free, is_open: many && free.is_none() })
    }

    fn decide(
        &mut self,
        now: Instant,
        time: Duration,
        load: Load,
        programs: impl FnOnce() -> Option<Vec<Programs>>,
    ) {
        let Some(Seen { packets, bytes, best, is_free, is_open }) = self.see(now, load, programs) else {
            return;
        };
        let is_barred = self.state.stake() == Some(Boost::Threads) && !is_free;
        let ends = packets < self.state.enough() || is_barred;
        match &mut self.state {
            // It is soon known.
            State::Quiet(_) | State::Trying(Pairs { boost: None, .. }, _) if is_open => {}
            State::Quiet(last) if best.is_some() => {
                let holds = |last: &Outcome| {
                    // What was found for threads is no answer where there can be none now.
                    now < last.until && (last.boost != Some(Boost::Threads) || best == last.boost)
                };
                self.state = match *last {
                    Some(last) if holds(&last) => State::Settled(last),
                    // What cannot be now does not go on until the trial begins.
                    last => State::Trying(
                        Pairs::of(None, time),
                        last.filter(|last| last.boost.is_none() || last.boost == best),
                    ),
                };
            }
            State::Quiet(_) => {}
            State::Trying(..) | State::Settled(_) if ends => self.state.end(now, time),
            State::Settled(last) if now >= last.until => {
                // What pays goes on with less.
                let again = last.boost.filter(|_| best != Some(Boost::Threads));
                self.state = State::Trying(Pairs::of(again, time), Some(*last));
            }
            State::Settled(_) => {}
            State::Trying(pairs, _) if turn(time) < pairs.begin => {}
            State::Trying(pairs, last) => {
                // The traffic may have begun just before it was first seen: by now it is known how much it is.
                pairs.boost = pairs.boost.or(best);
                if pairs.boost.is_none() {
                    return self.state.end(now, time);
                }
                match pairs.step(turn(time), bytes) {
                    None => {}
                    Some(false) if pairs.boost == Some(Boost::Threads) && self.may_be_awake => {
                        *pairs = Pairs::of(Some(Boost::Awake), time);
                    }
                    Some(pays) => {
                        let boost = pairs.boost.filter(|_| pays);
                        self.state = State::Settled(Outcome::after(*last, boost, now, time));
                    }
                }
            }
        }
    }

    /// Whether there can be threads, and programs have hardly used any of their cores lately; None: not known yet.
    fn are_cores_free(
        &mut self,
        now: Instant,
        programs: impl FnOnce() -> Option<Vec<Programs>>,
    ) -> Option<bool> {
        let before = self.look.as_ref().map(|look| now.saturating_duration_since(look.at));
        if let (Some(look), Some(time)) = (&self.look, before)
            && time < WINDOW
        {
            return look.free;
        }
        let Some(programs) = programs() else { return Some(false) };
        let known = self.look.as_ref().zip(before).filter(|(_, time)| *time <= STALE);
        let free = known.map(|(look, time)| {
            let is_free = |(programs, before): (&Programs, &Programs)| {
                let system = if look.threads { 0.0 } else { programs.system - before.system };
                programs.user - before.user + system <= PROGRAMS * time.as_secs_f64()
            };
            programs.iter().zip(&look.programs).all(is_free)
        });
        self.look = Some(Look { at: now, programs, threads: false, free });
        free
    }

    /// Whether a trial is going on.
    #[must_use]
    pub fn is_trying(&self) -> bool {
        matches!(self.state, State::Trying(..))
    }

    /// How soon the next step is due; `time` is the wall clock, since 1970.
    #[must_use]
    pub fn again(&self, time: Duration) -> Duration {
        // The time until the next multiple of the period, at least `least`.
        let next = |period: Duration, least: Duration| {
            let left = to_next(period, time);
            if left < least { left + period } else { left }
        };
        // A turn that began a little early or late ends with those of the other nodes.
        let soon = TURN / 4;
        match &self.state {
            State::Trying(Pairs { turn: Some(_), .. }, _) => next(TURN, soon),
            State::Trying(pairs, _) if turn(time) < pairs.begin => {
                next(BEGIN as u32 * TURN, soon).min(next(LOOK, SOON))
            }
            State::Trying(..) => next(2 * TURN, soon),
            State::Settled(_) | State::Quiet(_) => next(LOOK, SOON),
        }
    }
}

#[cfg(test)]
mod tests;
