//! The ring, exhaustively: every short script around the cursors' wrap, and every interleaving of two threads (loom).

use std::collections::VecDeque;

/// The ring's source over loom's types.
#[path = "../src/ring.rs"]
#[allow(dead_code, reason = "the models need only a part of it")]
mod model;

/// What the ring's source finds as `super::sync`.
mod sync {
    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

/// Runs one script (a number in base 3: push, submit, pop) on a ring and on a queue.
fn run_script(mut script: u32, length: u32, capacity: u32, start: u32) {
    let (mut producer, mut consumer) = uvn_engine::ring::ring(capacity, start);
    let (mut written, mut submitted) = (VecDeque::new(), VecDeque::new());
    for step in 0..length {
        let place = (script, step, capacity, start);
        match script % 3 {
            0 => {
                let fits = written.len() + submitted.len() < capacity as usize;
                assert_eq!(producer.push(step.into()), fits, "{place:?}");
                written.extend(fits.then_some(u64::from(step)));
            }
            1 => {
                producer.submit();
                submitted.append(&mut written);
            }
            _ => assert_eq!(consumer.pop(), submitted.pop_front(), "{place:?}"),
        }
        assert_eq!(producer.under_way() as usize, written.len() + submitted.len(), "{place:?}");
        script /= 3;
    }
}

#[test]
fn every_short_script_agrees_with_a_queue() {
    const LENGTH: u32 = 9;
    for capacity in [1, 2, 4] {
        for start in (u32::MAX - 4..=u32::MAX).chain([0, (1 << 31) - 2]) {
            (0..3u32.pow(LENGTH)).for_each(|script| run_script(script, LENGTH, capacity, start));
        }
    }
}

#[test]
fn a_capacity_is_rounded_up_to_a_power_of_two() {
    for (asked, got) in [(0, 1), (1, 1), (3, 4), (64, 64), (65, 128)] {
        let (mut producer, _consumer) = uvn_engine::ring::ring(asked, u32::MAX);
        assert_eq!((0..).take_while(|&value| producer.push(value)).count(), got);
    }
}

/// Two threads pass a frame to and fro, as fill and rx rings do: its bytes are always seen as the other end left them.
#[test]
fn frames_pass_between_threads_with_their_bytes() {
    use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use loom::thread;

    loom::model(|| {
        let (mut there, mut there_end) = model::ring(1, u32::MAX);
        let (mut back, mut back_end) = model::ring(1, u32::MAX);
        let bytes = loom::sync::Arc::new(AtomicU64::new(0));
        let kernel_bytes = bytes.clone();
        let kernel = thread::spawn(move || {
            for round in 0..2 {
                let frame = loop {
                    match there_end.pop() {
                        Some(frame) => break frame,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(frame, 40 + round);
                assert_eq!(kernel_bytes.load(Relaxed), 2 * round + 1);
                kernel_bytes.store(2 * round + 2, Relaxed);
                assert!(back.push(frame));
                back.submit();
            }
        });
        for round in 0..2 {
            bytes.store(2 * round + 1, Relaxed);
            assert!(there.push(40 + round));
            there.submit();
            while back_end.pop().is_none() {
                thread::yield_now();
            }
            assert_eq!(bytes.load(Relaxed), 2 * round + 2);
        }
        kernel.join().unwrap();
    });
}

/// A producer that is ahead of its consumer by a full ring, over the wrap: nothing is lost, repeated or reordered.
#[test]
fn a_full_ring_waits_for_its_consumer() {
    use loom::thread;

    loom::model(|| {
        let (mut producer, mut consumer) = model::ring(2, u32::MAX);
        let writer = thread::spawn(move || {
            for value in 1..=4 {
                while !producer.push(value) {
                    thread::yield_now();
                }
                if value != 1 {
                    producer.submit();
                }
            }
        });
        let mut expected = 1;
        while expected <= 4 {
            match consumer.pop() {
                Some(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        writer.join().unwrap();
    });
}
