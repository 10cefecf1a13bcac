//! criterion benches of the data plane's hot path, each on one core and in memory: `cargo bench -p uvn-benches --bench
//! hot_path`, with `-- --save-baseline NAME` and `-- --baseline NAME` to compare.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::{Duration, Instant};
use uvn_benches::work::{self, Amount, Bench, Work};

struct Clock<'a>(&'a mut Criterion);

impl Bench for Clock<'_> {
    fn measure<W: Work>(&mut self, group: &str, name: &str, amount: Amount, mut work: W) {
        let mut group = self.0.benchmark_group(group);
        group.throughput(match amount {
            Amount::Frames(frames) => Throughput::Elements(frames.into()),
            Amount::Bytes(bytes) => Throughput::Bytes(bytes as u64),
        });
        work.prepare();
        assert!(work.run(), "{name} does not do what it is to");
        let id = BenchmarkId::from_parameter(name);
        if !W::PREPARES {
            group.bench_function(id, |b| b.iter(|| work.run()));
            return;
        }
        group.bench_function(id, |b| {
            b.iter_custom(|runs| {
                let mut spent = Duration::ZERO;
                for _ in 0..runs {
                    work.prepare();
                    let start = Instant::now();
                    work.run();
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
}

fn hot_path(c: &mut Criterion) {
    work::all(&mut Clock(c));
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
