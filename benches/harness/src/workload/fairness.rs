//! One user's flood beside another user's ping-pong.

use super::ping_pong::{Game, SMALL};
use super::{START, Workload, json, number};
use crate::contender::Setup;
use crate::metric::{Label, Metric, Values};
use std::process::Command;
use std::thread;
use std::time::Duration;
use uvn_rig::error::RigError;
use uvn_rig::place::Place;
use uvn_rig::process::{self, Process};

const PORT: u16 = 5304;
/// How long a flood takes to fill the queues.
const RAMP: Duration = Duration::from_millis(150);
/// The flood lasts longer than the ping-pong under it; then it is ended.
const SPARE: f64 = 10.0;

/// What the other user sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// 64-byte datagrams as fast as one sender can.
    Udp,
    /// Eight TCP streams.
    Tcp,
}

/// A ping-pong while the other user's programs compute, then while they flood in the same direction. They give way to the
/// measured user's (nice 19), and keep the same cores from sleeping in both: it is the data path's fairness that is
/// compared, not the scheduler's.
#[derive(Debug, Clone, Copy)]
pub struct Fairness(pub Flood);

impl Workload for Fairness {
    fn name(&self) -> String {
        match self.0 {
            Flood::Udp => "ping-pong beside a UDP flood".into(),
            Flood::Tcp => "ping-pong beside bulk TCP".into(),
        }
    }

    fn group(&self) -> &'static str {
        "fairness"
    }

    fn takes(&self, seconds: f64) -> f64 {
        2.0 * seconds + 0.5
    }

    fn run(&self, setup: &Setup, seconds: f64) -> Result<Vec<(Label, Values)>, RigError> {
        let play = || Game::of(SMALL).play(&setup.place(0), &setup.place(1), seconds);
        let (client, server) = (setup.other_place(0), setup.other_place(1));
        let computing = [compute(&client)?, compute(&server)?];
        let alone = play()?;
        drop(computing);
        let [flood, sink] = match self.0 {
            Flood::Udp => udp(&client, &server, seconds)?,
            Flood::Tcp => tcp(&client, &server, seconds)?,
        };
        thread::sleep(RAMP);
        let beside = play()?;
        let told = sink.new_lines();
        drop((flood, sink));
        let mut values = vec![
            (Metric::P99_ALONE, alone.p99),
            (Metric::P99_FLOOD, beside.p99),
            (Metric::P99_RATIO, beside.p99 / alone.p99.max(0.1)),
            (Metric::P50_FLOOD, beside.p50),
        ];
        if self.0 == Flood::Udp {
            values.push((Metric::FLOOD, rate(&told)? / 1e3));
        }
        Ok(vec![(self.label(), values)])
    }
}

/// Datagrams per second between the first thing that the sink told and the last; none arrived when it told nothing.
fn rate(told: &[String]) -> Result<f64, RigError> {
    let count = |line: &String| -> Result<(f64, f64), RigError> {
        let line = json("probe sink", std::slice::from_ref(line))?;
        Ok((number("probe sink", &line, "received")?, number("probe sink", &line, "seconds")?))
    };
    let (Some(first), Some(last)) = (told.first(), told.last()) else { return Ok(0.0) };
    let (first, last) = (count(first)?, count(last)?);
    Ok((last.0 - first.0) / (last.1 - first.1).max(1e-3))
}

fn compute(place: &Place) -> Result<Process, RigError> {
    let mut compute = meek(place);
    compute.args(["sh", "-c", "while :; do :; done"]);
    Process::start_quietly("sh", compute)
}

fn udp(client: &Place, server: &Place, seconds: f64) -> Result<[Process; 2], RigError> {
    let own = process::own_program();
    let mut sink = meek(server);
    sink.args([&own, "probe", "sink", "--tell", &PORT.to_string()]);
    let sink = Process::start_quietly("probe sink", sink)?;
    sink.wait_for("ready", START)?;
    let to = format!("{}:{PORT}", server.address);
    let mut flood = meek(client);
    flood.args([&own, "probe", "flood", &to, &(seconds + SPARE).to_string()]);
    Ok([Process::start_quietly("probe flood", flood)?, sink])
}

fn tcp(client: &Place, server: &Place, seconds: f64) -> Result<[Process; 2], RigError> {
    let port = PORT.to_string();
    let mut serve = meek(server);
    serve.args(["iperf3", "--server", "--one-off", "--forceflush", "--port", &port]);
    let serving = Process::start_quietly("iperf3 --server", serve)?;
    serving.wait_for("Server listening", START)?;
    let time = (seconds + SPARE).ceil().to_string();
    let mut send = meek(client);
    send.args(["iperf3", "--client", &server.address.to_string(), "--port", &port]);
    // A kernel without preemption lets a system call of iperf3's usual 128 KiB end: 0.2 ms that any program would cost.
    send.args(["--parallel", "8", "--time", &time, "--length", "16K"]);
    Ok([Process::start_quietly("iperf3 --client", send)?, serving])
}

/// A command that gives way to others there; program and arguments are to be added.
fn meek(place: &Place) -> Command {
    let mut command = place.command("nice");
    command.args(["-n", "19"]);
    command
}
