//! Commands that change nothing.

use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use uvn_api::dataplane::message::{Counts, ENDPOINT_FULL, Gear};
use uvn_api::protocol::SCHEMA;
use uvn_api::uvnd::client::Client;
use uvn_api::uvnd::message;
use uvn_api::uvnd::status::{Carrier, DataPlane, NicState, Refused, Status};
use uvn_control::check;

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
            None => network.leases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
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
    let status = Client::connect(message::socket())?.status()?;
    let mut out = std::io::stdout().lock();
    if as_json {
        let mut whole = json!(status);
        whole["schema"] = json!(SCHEMA);
        writeln!(out, "{whole}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let Status { version, pid, config, networks, leases, .. } = &status;
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
    for warning in &status.warnings {
        writeln!(out, "{warning}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_nic(out: &mut impl Write, nic: &NicState) -> std::io::Result<()> {
    let up = if nic.up { "up" } else { "DOWN" };
    let addresses: Vec<String> = nic.addresses.iter().map(ToString::to_string).collect();
    let NicState { name, mtu, port, reason, .. } = nic;
    writeln!(out, "{name}: {up}, mtu {mtu}, {}, port {port}", addresses.join(" "))?;
    let carrier = match nic.carrier {
        Carrier::DataPlane => "uvn-dataplane",
        Carrier::Kernel => "kernel VXLAN",
        Carrier::Unknown => "what this uvn does not know",
    };
    writeln!(out, "  carried by {carrier}: {reason}")?;
    let Some(data_plane) = &nic.data_plane else { return Ok(()) };
    if let (Some(gear), Some(why)) = (&data_plane.gear, &data_plane.gear_reason) {
        writeln!(out, "  gear {gear}: {why}")?;
    }
    let mode = data_plane.xdp.map_or_else(|| "none".into(), |mode| mode.to_string());
    let fault = data_plane.fault.as_ref().map(|fault| format!(" ({fault})")).unwrap_or_default();
    let copies = match data_plane.zero_copy {
        Some(true) => ", zero-copy",
        Some(false) => ", copy",
        None => "",
    };
    let DataPlane { state, workers, networks, restarts, total, lost, .. } = data_plane;
    writeln!(
        out,
        "  data plane {state}{fault}: xdp {mode}{copies}, {workers} workers, {networks} networks, {restarts} restarts"
    )?;
    for note in &data_plane.notes {
        writeln!(out, "  note: {}; {}", note.what(name), note.remedy(name))?;
    }
    if data_plane.gear == Some(Gear::Shortcut) {
        if data_plane.waiting > 0 {
            writeln!(
                out,
                "  the engine carries {} of them until the shortcut takes over",
                data_plane.waiting
            )?;
        }
        let alone = networks.saturating_sub(data_plane.shortcut + data_plane.waiting);
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
    for (reason, count) in drops.iter().chain(&data_plane.verdicts).filter(|(_, count)| **count > 0) {
        write!(out, ", {reason} {count}")?;
    }
    writeln!(out)?;
    for (vni, frames) in &data_plane.endpoint_full {
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
