//! The reachability matrix: every user on every node tries every user on every node, by TCP, UDP and ping.

use crate::probe::reach::Protocol;
use crate::rig::{ADDRESSES, Rig};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};
use uvn_rig::error::RigError;
use uvn_rig::process::Process;
use uvn_rig::rig::USERS;

/// How long an answer or a report that must come is waited for: a busy machine delays it.
const LATE: Duration = Duration::from_secs(20);
/// How long one that must not come is waited for.
const SOON: Duration = Duration::from_millis(800);

/// A user's endpoint on a node.
type Spot = (u32, usize);

/// One attempt: a pair of endpoints, a protocol, an IP version.
struct Attempt {
    from: Spot,
    to: Spot,
    protocol: Protocol,
    v6: bool,
    word: String,
}

impl Attempt {
    /// Whether it should succeed: only in the user's own network.
    fn expected(&self) -> bool {
        self.from.0 == self.to.0
    }

    fn target(&self) -> String {
        let (v4, v6) = ADDRESSES[self.to.1];
        let address = if self.v6 { format!("[{v6}]") } else { v4.to_owned() };
        format!("{}:{address}:{}:{}", self.protocol.name(), port(self.to.0), self.word)
    }
}

/// A port of the user's own, so that an answer cannot come from another user's server.
fn port(user: u32) -> u16 {
    10_000 + (user % 50_000) as u16
}

fn spots() -> Vec<Spot> {
    USERS.into_iter().flat_map(|user| (0..2).map(move |node| (user, node))).collect()
}

/// Tries everything, prints the table, and returns whether all is as expected.
///
/// # Errors
/// A probe could not be run.
pub fn run(rig: &Rig) -> Result<bool, RigError> {
    let servers: Vec<(Spot, Process)> = spots()
        .into_iter()
        .map(|(user, node)| {
            let serve = rig.place(node, user).probe(&["serve", &port(user).to_string()]);
            let server = Process::start("probe serve", serve)?;
            server.wait_for("ready", LATE)?;
            Ok(((user, node), server))
        })
        .collect::<Result<_, RigError>>()?;
    let attempts = attempts();
    let mut reached = BTreeSet::new();
    for from in spots() {
        reached.append(&mut reach(rig, from, &attempts)?);
    }
    let mut seen = BTreeSet::new();
    let end = Instant::now() + LATE;
    loop {
        // What was sent last may still be on its way to a server's report.
        thread::sleep(SOON);
        for (spot, server) in &servers {
            seen.extend(words(&server.new_lines(), "seen uvn-reach-").map(|word| (*spot, word)));
        }
        let is_missing = |attempt: &Attempt| !seen.contains(&(attempt.to, attempt.word.clone()));
        if !attempts.iter().any(|attempt| attempt.expected() && is_missing(attempt)) || Instant::now() >= end
        {
            break;
        }
    }
    let observed = |attempt: &Attempt| {
        let answered = reached.contains(&attempt.word);
        let arrived = seen.contains(&(attempt.to, attempt.word.clone()));
        if attempt.expected() {
            answered && arrived
        } else {
            // Each user's own endpoint answers a ping to an address that both have: only an arrival counts.
            arrived || (answered && attempt.protocol != Protocol::Ping)
        }
    };
    Ok(print(&attempts, observed))
}

fn attempts() -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for from in spots() {
        for to in spots() {
            for protocol in Protocol::ALL {
                for v6 in [false, true] {
                    let word = format!("w{}", attempts.len());
                    attempts.push(Attempt { from, to, protocol, v6, word });
                }
            }
        }
    }
    attempts
}

/// Runs all attempts from one endpoint at once, and returns the words that were answered.
fn reach(rig: &Rig, from: Spot, attempts: &[Attempt]) -> Result<BTreeSet<String>, RigError> {
    let begin = Instant::now();
    let start = |expected, patience: Duration| {
        let chosen = attempts.iter().filter(|a| a.from == from && a.expected() == expected);
        let mut arguments = vec!["reach".to_owned(), patience.as_millis().to_string()];
        arguments.extend(chosen.map(Attempt::target));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Process::start("probe reach", rig.place(from.1, from.0).probe(&arguments))
    };
    let mut reached = BTreeSet::new();
    for probe in [start(true, LATE)?, start(false, SOON)?] {
        // A probe tries to connect for so long, and then waits for an answer for as long.
        reached.extend(words(&probe.finish(3 * LATE)?, "reached "));
    }
    let ways = attempts.iter().filter(|a| a.from == from).count();
    println!("  user {} on node {} tried {ways} ways in {:.1?}", from.0, from.1 + 1, begin.elapsed());
    Ok(reached)
}

fn words<'a>(lines: &'a [String], before: &'a str) -> impl Iterator<Item = String> + 'a {
    lines.iter().filter_map(move |line| Some(line.strip_prefix(before)?.to_owned()))
}

fn label((user, node): Spot) -> String {
    format!("{user}@node{}", node + 1)
}

fn print(attempts: &[Attempt], observed: impl Fn(&Attempt) -> bool) -> bool {
    let header: String = spots().into_iter().map(|to| format!("{:<19}", label(to))).collect();
    println!("\n  from \\ to    {header}");
    for from in spots() {
        let cells: String = spots()
            .into_iter()
            .map(|to| {
                let pair: Vec<&Attempt> = attempts.iter().filter(|a| (a.from, a.to) == (from, to)).collect();
                format!("{:<19}", cell(&pair, &observed))
            })
            .collect();
        println!("  {:<11}  {cells}", label(from));
    }
    let wrong: Vec<&Attempt> = attempts.iter().filter(|a| observed(a) != a.expected()).collect();
    println!("  expected: own user by TCP, UDP and ping over IPv4 and IPv6 on both nodes; other users never");
    println!("  observed: {} of {} attempts as expected", attempts.len() - wrong.len(), attempts.len());
    for attempt in &wrong {
        let (version, protocol) = (if attempt.v6 { "IPv6" } else { "IPv4" }, attempt.protocol.name());
        let (expected, observed) = if attempt.expected() { ("reach", "do not") } else { ("not reach", "do") };
        let (from, to) = (label(attempt.from), label(attempt.to));
        println!("  WRONG: {from} should {expected} {to} by {protocol} over {version}, and {observed}");
    }
    wrong.is_empty()
}

/// The protocols that get through, with `4` or `6` if only over that IP version.
fn cell(pair: &[&Attempt], observed: &impl Fn(&Attempt) -> bool) -> String {
    let works = |protocol, v6| pair.iter().any(|a| (a.protocol, a.v6) == (protocol, v6) && observed(a));
    let names: Vec<String> = Protocol::ALL
        .into_iter()
        .filter_map(|protocol| match (works(protocol, false), works(protocol, true)) {
            (true, true) => Some(protocol.name().to_owned()),
            (true, false) => Some(format!("{}4", protocol.name())),
            (false, true) => Some(format!("{}6", protocol.name())),
            (false, false) => None,
        })
        .collect();
    let as_expected = pair.iter().all(|attempt| observed(attempt) == attempt.expected());
    let text = if names.is_empty() { "nothing".to_owned() } else { names.join(" ") };
    if as_expected { text } else { format!("{text} !") }
}
