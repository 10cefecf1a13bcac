//! Commands that only look.

use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use uvn_api::uvnd::client::{Client, ClientError};
use uvn_api::uvnd::message::{self, Request};
use uvn_api::uvnd::status::{DataPlane, NicState, Refused, Reply, Status};
use uvn_control::check;

use uvn_api::dataplane::message::{Counts, ENDPOINT_FULL};

type Done = Result<ExitCode, Box<dyn Error>>;

pub fn list(as_json: bool) -> Done {
    let networks = Client::connect(message::socket())?.networks()?;
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", json!(networks))?;
        return Ok(ExitCode::SUCCESS);
    }
    for network in networks {
        let held = match network.goes_in {
            Some(seconds) => format!("nobody, goes in {seconds} s"),
            None => network.leases.join(", "),
        };
        let fault = network.fault.map(|fault| format!(" FAULT: {fault}")).unwrap_or_default();
        writeln!(
            out,
            "{:<10} vni {:<8} {:<13} held by {held}{fault}",
            network.uid, network.vni, network.vrf
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn status(as_json: bool) -> Done {
    let reply = Client::connect(message::socket())?.ask(&Request::Status)?;
    let Reply::Status(status) = reply else { return Err(ClientError::Mismatch.into()) };
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", json!(status))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Status { version, pid, config, networks, leases, .. } = &*status;
    writeln!(out, "uvnd {version}, process {pid}, {config}: {networks} networks, {leases} leases")?;
    for nic in &status.nics {
        print_nic(&mut out, nic)?;
    }
    let verdicts: Vec<String> =
        status.verdicts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
    writeln!(out, "sockets and packets: {}", verdicts.join(", "))?;
    let refused = if status.observes { "sockets that would be refused" } else { "sockets refused" };
    for Refused { uid, count, program } in &status.refused {
        writeln!(out, "{refused}, user {uid} without a network: {count}, the last to {program}")?;
    }
    for finding in &status.findings {
        writeln!(out, "{finding}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_nic(out: &mut impl Write, nic: &NicState) -> std::io::Result<()> {
    let up = if nic.up { "up" } else { "DOWN" };
    let addresses: Vec<String> = nic.addresses.iter().map(ToString::to_string).collect();
    let NicState { name, mtu, port, path, reason, .. } = nic;
    writeln!(out, "{name}: {up}, mtu {mtu}, {}, port {port}", addresses.join(" "))?;
    let carrier = if path == "kernel" { "kernel VXLAN" } else { "uvn-dataplane" };
    writeln!(out, "  carried by {carrier}: {reason}")?;
    let Some(engine) = &nic.engine else { return Ok(()) };
    if let (Some(gear), Some(why)) = (&engine.gear, &engine.gear_reason) {
        writeln!(out, "  gear {gear}: {why}")?;
    }
    let mode = engine.xdp.as_deref().unwrap_or("none");
    let copies = match engine.zero_copy {
        Some(true) => ", zero-copy",
        Some(false) => ", copy",
        None => "",
    };
    let DataPlane { state, workers, networks, restarts, total, lost, .. } = engine;
    writeln!(
        out,
        "  data plane {state}: xdp {mode}{copies}, {workers} workers, {networks} networks, {restarts} restarts"
    )?;
    for note in &engine.notes {
        writeln!(out, "  note: {}; {}", note.what(name), note.remedy(name))?;
    }
    if engine.gear.as_deref() == Some("shortcut") {
        if engine.waiting > 0 {
            writeln!(out, "  the engine carries {} of them until the shortcut takes over", engine.waiting)?;
        }
        let alone = networks.saturating_sub(engine.shortcut + engine.waiting);
        if alone > 0 {
            writeln!(
                out,
                "  the engine alone carries {alone} of them: `uvn-dataplane show` says which, and why"
            )?;
        }
    }
    let Counts { rx_frames, rx_bytes, tx_frames, tx_bytes, drops } = total;
    write!(
        out,
        "  rx {rx_frames} frames {rx_bytes} bytes, tx {tx_frames} frames {tx_bytes} bytes, lost {lost}"
    )?;
    for (reason, count) in drops.iter().chain(&engine.verdicts).filter(|(_, count)| **count > 0) {
        write!(out, ", {reason} {count}")?;
    }
    writeln!(out)?;
    for (vni, frames) in &engine.endpoint_full {
        writeln!(out, "  network {vni}: {ENDPOINT_FULL} {frames}")?;
    }
    Ok(())
}

pub fn check(config: &Path, as_json: bool) -> Done {
    let findings = check::check(config)?;
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", json!(findings))?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        if findings.iter().all(|finding| finding.warning) {
            writeln!(out, "all is as it should be")?;
        }
    }
    Ok(ExitCode::from(u8::from(findings.iter().any(|finding| !finding.warning))))
}
