//! `uvn-dataplane`: one NIC's data plane, and a look into a running one.

use clap::{Parser, Subcommand};
use serde_json::json;
use std::error::Error;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use uvn_api::dataplane::client::{Client, ClientError};
use uvn_api::dataplane::config::Config;
use uvn_api::dataplane::message::{Counts, Gear, Reply, Request, Residency, Summary};
use uvn_api::protocol::SCHEMA;
use uvn_dataplane::capture::{self, CaptureError};
use uvn_dataplane::service::Service;

/// VXLAN between a NIC and one endpoint per user, on pinned cores.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the data plane of one NIC, until SIGTERM or SIGINT. Logs to stderr, by RUST_LOG (default: info).
    Run {
        /// The TOML file that describes it; of several, the first that is there.
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
    },
    /// Shows what a running data plane does.
    Show {
        /// Its control socket.
        #[arg(long)]
        socket: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Writes what a network sends and receives to stdout, in either gear, as a pcap file: for `| tcpdump -nr -`.
    Capture {
        /// The data plane's control socket.
        #[arg(long)]
        socket: PathBuf,
        /// The network.
        vni: u32,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { config } => {
            let there = config.iter().find(|file| file.exists()).or(config.first());
            there.map_or(ExitCode::from(2), |file| run(file))
        }
        Command::Capture { socket, vni } => match capture(&socket, vni) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &*error),
        },
        Command::Show { socket, json } => match show(&socket, json) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &*error),
        },
    }
}

fn fail(code: u8, error: &dyn Error) -> ExitCode {
    eprintln!("uvn-dataplane: {error}");
    ExitCode::from(code)
}

fn run(file: &Path) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return fail(2, &error),
    };
    match Service::start(config).and_then(Service::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

fn capture(socket: &Path, vni: u32) -> Result<(), Box<dyn Error>> {
    let out = std::io::stdout().lock();
    if out.is_terminal() {
        return Err("a capture is for a file or a program, as in `... | tcpdump -nr -`".into());
    }
    match capture::run(&Client::connect(socket)?, vni, &mut BufWriter::new(out)) {
        // The reader of the output has seen enough.
        Err(CaptureError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn show(socket: &Path, as_json: bool) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(socket)?;
    let (Reply::Show(summary), Reply::Counters { total, workers, xdp, lost }, Reply::Histogram(residency)) = (
        client.ask(&Request::Show, &[])?,
        client.ask(&Request::Counters, &[])?,
        client.ask(&Request::Histogram, &[])?,
    ) else {
        return Err(ClientError::Mismatch.into());
    };
    let (networks, hops) = (client.networks()?, client.hops()?);
    let mut out = std::io::stdout().lock();
    if as_json {
        let counters = json!({ "total": total, "workers": workers, "xdp": xdp, "lost": lost });
        let whole = json!({
            "schema": SCHEMA, "show": summary, "counters": counters, "histogram": residency, "networks": networks,
            "hops": hops,
        });
        serde_json::to_writer_pretty(&mut out, &whole)?;
        writeln!(out)?;
        return Ok(());
    }
    print_summary(&mut out, &summary)?;
    let Residency { batches, p50, p99, p999, max } = residency;
    writeln!(out, "residency  {batches} batches: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns, max {max} ns")?;
    writeln!(out, "total      {}", in_words(&total))?;
    let xdp: Vec<String> = xdp.iter().map(|(name, count)| format!("{name} {count}")).collect();
    writeln!(out, "xdp        {}; lost at the sockets {lost}", xdp.join(", "))?;
    let has_shortcut = summary.gear == Some(Gear::Shortcut);
    for network in networks {
        let device = network.device.as_deref().unwrap_or("handed over");
        let gear = if !has_shortcut || network.shortcut {
            ""
        } else if network.waiting {
            " (engine until the shortcut takes over)"
        } else {
            " (engine alone)"
        };
        let fault = network.fault.map(|fault| format!(" FAULT: {fault}")).unwrap_or_default();
        writeln!(out, "network {:<8} {device:<15} {}{gear}{fault}", network.vni, in_words(&network.counts))?;
        for note in &network.notes {
            writeln!(out, "  {note}")?;
        }
    }
    for hop in hops {
        let mac = hop.mac.as_deref().unwrap_or("unresolved");
        let mtu = hop.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        writeln!(out, "vtep {} via {mac}{mtu}", hop.address)?;
    }
    Ok(())
}

fn print_summary(out: &mut impl Write, summary: &Summary) -> std::io::Result<()> {
    let Summary { nic, state, mtu, mac, port, epoch, networks, hops, unresolved, .. } = summary;
    let vtep: Vec<String> = summary.vtep.iter().map(ToString::to_string).collect();
    let xdp = summary.xdp.map_or_else(|| "none".into(), |mode| mode.to_string());
    let fault = summary.fault.as_ref().map(|fault| format!(" ({fault})")).unwrap_or_default();
    let copies = match summary.zero_copy {
        Some(true) => "zero-copy",
        Some(false) => "copy",
        None => "closed",
    };
    writeln!(out, "{nic}: {state}{fault}, mtu {mtu}, mac {mac}, vtep {} port {port}", vtep.join(" "))?;
    writeln!(out, "xdp {xdp}, sockets {copies}, epoch {epoch}")?;
    if let (Some(gear), Some(why)) = (&summary.gear, &summary.gear_reason) {
        writeln!(out, "gear {gear}: {why}")?;
    }
    let gears = match summary.gear {
        Some(Gear::Shortcut) => {
            format!(" ({} in the shortcut, {} to follow)", summary.shortcut, summary.waiting)
        }
        _ => String::new(),
    };
    for note in &summary.notes {
        writeln!(out, "note: {}; {}", note.what(nic), note.remedy(nic))?;
    }
    writeln!(out, "{networks} networks{gears}, {hops} next hops, {unresolved} unresolved")?;
    for worker in &summary.workers {
        let core = worker.core.map_or_else(|| "any".into(), |core| core.to_string());
        writeln!(out, "worker of queue {} on core {core}, epoch {}", worker.queue, worker.epoch)?;
    }
    Ok(())
}

fn in_words(counts: &Counts) -> String {
    let Counts { rx_frames, rx_bytes, tx_frames, tx_bytes, drops } = counts;
    let drops: String = drops.iter().map(|(reason, count)| format!(", {reason} {count}")).collect();
    format!("rx {rx_frames} frames {rx_bytes} bytes, tx {tx_frames} frames {tx_bytes} bytes{drops}")
}
