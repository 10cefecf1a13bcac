//! The trial on traffic that is made up.

use super::*;

/// Traffic: how many packets it has carried in its first so many seconds, if boosts change nothing.
type Traffic<'a> = &'a dyn Fn(f64) -> f64;

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
    /// The part of each core's time that programs have, a half of it in the kernel, and what they had so far.
    programs: [f64; 2],
    had: [Programs; 2],
}

impl Bench {
    fn new() -> Bench {
        let (trial, load, had) = (Trial::new(true), Load::default(), Default::default());
        let epoch = Instant::now();
        let now = epoch + Duration::from_millis(1_234);
        let (ways, boost, programs) = ([1, 1], None, [0.1, 0.1]);
        let mut bench = Bench { trial, now, epoch, load, ways, boost, programs, had };
        bench.pass(Duration::from_secs(1), [0, 0], 0);
        bench
    }

    fn time(&self) -> Duration {
        self.now.duration_since(self.epoch)
    }

    /// `rates`: packets a second received and sent, of so many bytes.
    fn pass(&mut self, time: Duration, rates: [u64; 2], bytes: u64) {
        let [rx, tx] = rates.map(|rate| rate * time.as_millis() as u64 / 1000);
        self.now += time;
        self.load.rx_packets += rx;
        self.load.tx_packets += tx;
        self.load.rx_bytes += rx * bytes;
        self.load.tx_bytes += tx * bytes;
        let own = if self.boost == Some(Boost::Threads) { 1.0 } else { 0.0 };
        for (had, programs) in self.had.iter_mut().zip(self.programs) {
            had.user += programs / 2.0 * time.as_secs_f64();
            had.system += (programs / 2.0 + own) * time.as_secs_f64();
        }
        let time = self.time();
        self.boost = self.trial.step(self.now, time, self.load, || Some(self.had.to_vec()));
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
            self.pass(self.trial.again(self.time()), self.ways.map(|way| way * rate), 100);
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
        assert_eq!(bench.run(9, rates), 1);
        assert_eq!(bench.boost, boost, "{rates:?}");
        bench.pass(Duration::from_secs(1), [400, 400], 100);
        assert_eq!(bench.boost, None, "it has become quiet");
        // The outcome holds over the pause.
        assert_eq!((bench.run(2, rates), bench.boost), (0, boost), "{rates:?}");
    }
}

/// A boost without any effect, by seeds: it is on for 1 % of the time at most.
#[test]
fn traffic_that_gains_nothing_is_left_alone() {
    let bursts = |on: f64, period: f64, rate: f64| {
        move |time: f64| rate * ((time / period).floor() * on + (time % period).min(on))
    };
    let [mpi, storage, turns, pairs, seconds] = [
        bursts(0.02, 0.1, 30_000.0),
        bursts(0.1, 0.2, 5_000.0),
        bursts(0.06, 0.12, 50_000.0),
        bursts(0.12, 0.24, 50_000.0),
        bursts(0.4, 1.1, 50_000.0),
    ];
    let kinds: [(&str, Traffic<'_>); 6] = [
        ("steady", &|time| 30_000.0 * time),
        ("20 ms of 100", &mpi),
        ("100 ms of 200", &storage),
        ("turn by turn", &turns),
        ("pair by pair", &pairs),
        ("400 ms of 1100", &seconds),
    ];
    for (kind, carried) in kinds {
        let mut on = Duration::ZERO;
        for seed in 1..=12_u64 {
            on += boosted(seed, Duration::from_secs(600), carried);
        }
        let share = on.as_secs_f64() / (12.0 * 600.0);
        println!("{kind}: {share:.4} of the time");
        assert!(share <= 0.01, "{kind}: {share:.4} of the time");
    }
}

/// How long a boost that changes nothing is in force. Rates differ by 3 %, steps are late by up to 8 ms.
fn boosted(seed: u64, length: Duration, carried: Traffic<'_>) -> Duration {
    let mut state = seed;
    let mut random = || {
        // Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let (epoch, mut trial) = (Instant::now(), Trial::new(true));
    let begin = Duration::from_secs_f64(1.7e9 + 1_000.0 * random());
    let (mut time, mut packets, mut before, mut on) = (Duration::ZERO, 0.0, 0.0, Duration::ZERO);
    while time < length {
        let step = trial.again(begin + time) + Duration::from_secs_f64(0.008 * random());
        time += step;
        let now = carried(time.as_secs_f64());
        packets += (now - before) * (0.97 + 0.06 * random());
        before = now;
        let [rx_packets, tx_packets] = [packets as u64; 2];
        let [rx_bytes, tx_bytes] = [100 * packets as u64; 2];
        let load = Load { rx_packets, rx_bytes, tx_packets, tx_bytes };
        let was_on = trial.state.boost().is_some();
        on += if was_on { step } else { Duration::ZERO };
        trial.step(epoch + time, begin + time, load, || Some(vec![Programs::default()]));
    }
    on
}

#[test]
fn a_gain_is_found_in_noise() {
    for seed in 1..=12_u64 {
        let mut bench = Bench::new();
        bench.now += Duration::from_millis(77 * seed);
        // 3 % of noise, 12 % of gain.
        let end = bench.now + Duration::from_secs(9);
        let mut state = seed;
        while bench.now < end {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 33) % 6_000;
            let rate = if bench.boost == Some(Boost::Threads) { 112_000 } else { 100_000 } - 3_000 + noise;
            bench.pass(bench.trial.again(bench.time()), [rate, rate], 100);
        }
        assert_eq!(bench.boost, Some(Boost::Threads), "{seed}");
    }
}

#[test]
fn nodes_that_gain_only_together_find_out_soon() {
    let epoch = Instant::now();
    // Steps are late, or early by a clock.
    let mut late = [3, 0, 5, 1, 0, 2, 4].into_iter().cycle().map(Duration::from_millis);
    for apart in (0..1_000).step_by(25) {
        let mut nodes = [0, apart].map(|begin| (Trial::new(true), Duration::from_millis(begin), None));
        let traffic = Duration::from_millis(3_000 + 7 * apart % 1_000);
        let (mut time, mut messages, mut together) = (Duration::ZERO, 0.0, Duration::ZERO);
        while time < traffic + Duration::from_secs(45) {
            let next = nodes.iter().map(|(_, next, _)| *next).min().unwrap();
            let both = nodes.iter().all(|(.., boost)| *boost == Some(Boost::Threads));
            let rate = if both { 135_000.0 } else { 100_000.0 };
            together += if both { next - time } else { Duration::ZERO };
            messages += rate * next.saturating_sub(time.max(traffic)).as_secs_f64();
            time = next;
            for (trial, next, boost) in nodes.iter_mut().filter(|(_, next, _)| *next == time) {
                let packets = messages as u64;
                let [rx_packets, tx_packets] = [packets; 2];
                let [rx_bytes, tx_bytes] = [100 * packets; 2];
                let load = Load { rx_packets, rx_bytes, tx_packets, tx_bytes };
                *boost = trial.step(epoch + time, time, load, || Some(vec![Programs::default()]));
                *next += trial.again(time) + late.next().unwrap() - Duration::from_millis(2);
            }
        }
        // At once, or when both try again.
        assert!(together > Duration::from_secs(15), "{apart} ms apart: {together:?} of 45 s");
    }
}

#[test]
fn traffic_that_has_just_begun_is_not_taken_for_little() {
    let mut bench = Bench::new();
    bench.pass(Duration::from_secs(1), [5_000, 5_000], 100);
    bench.run(9, [100_000, 150_000, 100_000]);
    assert_eq!(bench.boost, Some(Boost::Threads));
}

#[test]
fn an_outcome_is_tried_again_less_and_less_often() {
    let mut bench = Bench::new();
    let (few, many) = ([10_000, 5_000, 80_000], [100_000, 150_000, 100_000]);
    // After 10, 20, 40, 80 s, and up to 10 s until others try, too.
    assert_eq!(bench.run(245, few), 5);
    assert_eq!(bench.boost, Some(Boost::Awake));
    // Others now: noticed by the next trial, 90 s after the last at most.
    bench.run(96, many);
    assert_eq!(bench.boost, Some(Boost::Threads));
    // And back again, within 20 s of that.
    bench.run(96, few);
    assert_eq!(bench.boost, Some(Boost::Awake));
}

#[test]
fn cores_with_programs_on_them_are_left_to_those() {
    let mut bench = Bench::new();
    let rates = [100_000, 150_000, 100_000];
    // One core that is busy among many idle ones.
    bench.programs = [0.4, 0.0];
    for _ in 0..200 {
        bench.pass(TURN, [100_000, 100_000], 100);
        assert_ne!(bench.boost, Some(Boost::Threads), "not even for a turn");
    }
    bench.programs = [0.1, 0.1];
    bench.run(100, rates);
    assert_eq!(bench.boost, Some(Boost::Threads));
    // A program comes in the middle of a trial.
    let mut bench = Bench::new();
    bench.run(1, rates);
    assert!(bench.trial.is_trying());
    bench.programs = [0.0, 1.0];
    bench.run(1, rates);
    for _ in 0..100 {
        bench.pass(TURN, [100_000, 100_000], 100);
        assert_ne!(bench.boost, Some(Boost::Threads));
    }
    // Many packets at once, where nothing is known of the cores yet.
    let mut bench = Bench::new();
    bench.programs = [1.0, 1.0];
    bench.pass(LOOK, [5_000, 5_000], 100);
    for _ in 0..100 {
        bench.pass(TURN, [100_000, 100_000], 100);
        assert_ne!(bench.boost, Some(Boost::Threads), "not even for a turn");
    }
    let mut bench = Bench::new();
    bench.run(100, rates);
    assert_eq!(bench.boost, Some(Boost::Threads));
    bench.programs = [0.1, 0.6];
    bench.pass(Duration::from_secs(1), [100_000, 100_000], 100);
    assert_eq!(bench.boost, None);
    for _ in 0..100 {
        bench.pass(bench.trial.again(bench.time()), [100_000, 100_000], 100);
        assert_ne!(bench.boost, Some(Boost::Threads), "nor later");
    }
}

#[test]
fn a_machine_too_busy_for_the_turns_ends_the_trial() {
    let mut bench = Bench::new();
    bench.run(1, [100_000, 150_000, 100_000]);
    let ends = (0..3 * STEPS).any(|_| {
        bench.pass(bench.trial.again(bench.time()) + 2 * TURN, [100_000, 100_000], 100);
        !bench.trial.is_trying()
    });
    assert!(ends && bench.boost.is_none());
}

#[test]
fn what_pays_goes_on_with_less_and_survives_a_pause_in_its_next_trial() {
    for (rates, less, boost) in [
        ([100_000, 150_000, 100_000], [12_000, 18_000, 12_000], Boost::Threads),
        ([10_000, 5_000, 50_000], [700, 500, 5_000], Boost::Awake),
    ] {
        let mut bench = Bench::new();
        bench.run(9, rates);
        assert_eq!(bench.boost, Some(boost));
        bench.run(60, less);
        assert_eq!(bench.boost, Some(boost), "{less:?}");
        while !bench.trial.is_trying() {
            bench.run(1, rates);
        }
        bench.pass(TURN, [0, 0], 0);
        assert_eq!(bench.boost, None);
        assert_eq!((bench.run(1, rates), bench.boost), (0, Some(boost)), "{rates:?}");
    }
}

#[test]
fn what_is_not_allowed_or_not_possible_is_not_tried() {
    let mut bench = Bench::new();
    let (now, epoch) = (bench.now, bench.epoch);
    for step in 1..300 {
        bench.load.rx_packets += 6_000;
        bench.load.tx_packets += 6_000;
        let now = now + step * TURN;
        let boost = bench.trial.step(now, now.duration_since(epoch), bench.load, || None);
        assert_ne!(boost, Some(Boost::Threads));
    }
    let mut bench = Bench { trial: Trial::new(false), ..Bench::new() };
    assert_eq!(bench.run(30, [10_000, 10_000, 90_000]), 0, "too few for threads");
    bench.run(9, [100_000, 150_000, 900_000]);
    assert_eq!(bench.boost, Some(Boost::Threads));
}

#[test]
fn a_transfer_or_a_flood_may_gain_too() {
    for ways in [[1, 0], [0, 1]] {
        let mut bench = Bench { ways, ..Bench::new() };
        assert_eq!(bench.run(9, [500_000, 900_000, 500_000]), 1);
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
    bench.run(9, [100_000, 150_000, 100_000]);
    assert_eq!(bench.boost, Some(Boost::Threads));
    bench.pass(Duration::from_secs(1), [3_000, 3_000], 100);
    assert_eq!(bench.boost, None);
}

#[test]
fn counters_that_begin_anew_are_no_load() {
    let mut bench = Bench::new();
    bench.run(9, [100_000, 150_000, 100_000]);
    bench.load = Load::default();
    bench.pass(Duration::from_secs(1), [0, 0], 0);
    assert_eq!(bench.boost, None);
}

#[test]
fn both_turns_of_a_pair_are_boosted_equally_often() {
    let second = (0..2_000_u64).filter(|pair| is_boosted(2 * pair + 1)).count();
    assert!((900..1_100).contains(&second), "{second}");
    assert!((0..2_000_u64).all(|pair| is_boosted(2 * pair) != is_boosted(2 * pair + 1)));
}
