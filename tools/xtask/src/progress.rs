//! Follows the output of test programs: which tests run, since when, and whether one of them, or everything, has hung.

use crate::running::{Stream, Watch};
use std::io::Write;
use std::time::{Duration, Instant};

/// How long a test may take, and how long the programs may write nothing.
pub const LIMIT: Duration = Duration::from_secs(180);
/// What libtest writes about a test that has run for that long, if tests run side by side.
const SLOW: (&str, Duration) = (" has been running for over 60 seconds", Duration::from_secs(60));

/// Tests that may take longer than [`LIMIT`], by the end of their names: each makes some 200 attempts, after much else,
/// or some 200 networks, or a dozen jobs with an MPI program's among them.
const LONG: [(&str, Duration); 4] = [
    ("a_hundred_users_at_once", Duration::from_secs(600)),
    ("every_attempt", Duration::from_secs(600)),
    ("jobs_are_inside_their_users_network", Duration::from_secs(600)),
    ("services_of_the_users_systemd_are_inside", Duration::from_secs(600)),
];

/// What test programs have written so far. If tests run one at a time, libtest writes `test NAME ... ` before each
/// test; otherwise it writes the whole line after the test.
#[derive(Debug)]
pub struct Progress {
    lines: Lines,
    /// Tests that have begun and not ended.
    running: Vec<(String, Instant)>,
    last: Instant,
    limit: Duration,
}

impl Progress {
    /// Nothing has been written yet.
    #[must_use]
    pub fn new(limit: Duration, now: Instant) -> Progress {
        Progress { lines: Lines::default(), running: Vec::new(), last: now, limit }
    }

    /// Takes a piece of standard output, and returns the lines that it completes. The line that ends a test gets the
    /// test's time, if its beginning was seen.
    pub fn take(&mut self, bytes: &[u8], now: Instant) -> Vec<String> {
        self.last = now;
        let lines = self.lines.take(bytes).into_iter().map(|line| self.follow(line, now)).collect();
        if let Some(name) = self.lines.begun().and_then(|line| test(line)?.strip_suffix(" ... "))
            && self.running.iter().all(|(running, _)| running != name)
        {
            self.running.push((name.to_owned(), now));
        }
        lines
    }

    /// Notes that something was written elsewhere.
    pub fn heard(&mut self, now: Instant) {
        self.last = now;
    }

    fn follow(&mut self, line: String, now: Instant) -> String {
        let Some(rest) = test(&line) else { return line };
        if let Some(name) = rest.strip_suffix(SLOW.0) {
            self.running.push((name.to_owned(), now.checked_sub(SLOW.1).unwrap_or(now)));
        } else if let Some((name, _)) = rest.split_once(" ... ")
            && let Some(at) = self.running.iter().position(|(running, _)| running == name)
        {
            let (_, since) = self.running.remove(at);
            return format!("{line} ({} s)", now.duration_since(since).as_secs());
        }
        line
    }

    /// What has hung, as a text; None: nothing has.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Option<String> {
        let slow = self.running.iter().find_map(|(name, since)| {
            let long =
                LONG.iter().find(|(end, _)| name.ends_with(end)).map_or(self.limit, |(_, limit)| *limit);
            let over = now.duration_since(*since) > long;
            over.then(|| format!("{name} has not ended after {} s", now.duration_since(*since).as_secs()))
        });
        // While a long test runs, the programs may write nothing.
        let silent = || {
            let seconds = now.duration_since(self.last).as_secs();
            let silent = self.running.is_empty() && now.duration_since(self.last) > self.limit;
            silent.then(|| format!("nothing was written for {seconds} s"))
        };
        slow.or_else(silent)
    }
}

/// Shows what test programs write, by whole lines, since several programs may write at once.
pub struct Output {
    prefix: String,
    progress: Progress,
    errors: Lines,
    /// Shows all lines.
    pub text: String,
}

impl Output {
    /// Shows each line behind `prefix`.
    #[must_use]
    pub fn new(prefix: String) -> Output {
        let progress = Progress::new(LIMIT, Instant::now());
        Output { prefix, progress, errors: Lines::default(), text: String::new() }
    }
}

impl Watch for Output {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let now = Instant::now();
        let lines = match stream {
            Stream::Out => self.progress.take(bytes, now),
            Stream::Err => {
                self.progress.heard(now);
                self.errors.take(bytes)
            }
        };
        for line in lines {
            let _gone = writeln!(std::io::stdout(), "{}{line}", self.prefix);
            self.text += &line;
            self.text.push('\n');
        }
    }

    fn overdue(&self) -> Option<String> {
        self.progress.overdue(Instant::now())
    }
}

/// The text behind `test ` in a line of libtest's.
fn test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes a piece, and returns the lines that it completes, without line ends.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let rest = self.0.split_off(end + 1);
            let whole = std::mem::replace(&mut self.0, rest);
            lines.push(String::from_utf8_lossy(&whole[..end]).into_owned());
        }
        lines
    }

    /// The last line, which is not complete.
    fn begun(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, Progress};
    use std::time::{Duration, Instant};

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_test_that_is_alone_has_its_time() {
        let start = Instant::now();
        let mut progress = Progress::new(LIMIT, start);
        assert_eq!(progress.take(b"\nrunning 2 tests\ntest a::b ... ", start), ["", "running 2 tests"]);
        assert_eq!(progress.take(b"SKIP: why\n", after(start, 1)), ["test a::b ... SKIP: why (1 s)"]);
        assert_eq!(progress.take(b"ok\ntest c ... ", after(start, 2)), ["ok"]);
        assert_eq!(progress.overdue(after(start, 182)), None);
        assert_eq!(progress.overdue(after(start, 183)).unwrap(), "c has not ended after 181 s");
        assert_eq!(progress.take(b"FAILED\n", after(start, 184)), ["test c ... FAILED (182 s)"]);
        assert_eq!(progress.overdue(after(start, 185)), None);
    }

    #[test]
    fn a_test_among_others_is_watched_once_libtest_calls_it_slow() {
        let start = Instant::now();
        let mut progress = Progress::new(LIMIT, start);
        progress.take(b"test slow has been running for over 60 seconds\n", after(start, 60));
        for second in 61..=180 {
            progress.take(b"test other ... ok\n", after(start, second));
            assert_eq!(progress.overdue(after(start, second)), None);
        }
        assert_eq!(progress.overdue(after(start, 181)).unwrap(), "slow has not ended after 181 s");
    }

    #[test]
    fn silence_is_a_hang() {
        let start = Instant::now();
        let mut progress = Progress::new(LIMIT, start);
        progress.take(b"test a ... ok\n", start);
        assert_eq!(progress.overdue(after(start, 180)), None);
        assert_eq!(progress.overdue(after(start, 181)).unwrap(), "nothing was written for 181 s");
    }
}
