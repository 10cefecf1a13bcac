//! Answers in the form of uvn 0.1.0, which gives no schema.

use crate::protocol::Room;
use crate::uvnd::message::Lease;
use crate::uvnd::status::{Reply, Status};
use serde_json::{Error, Value, json, to_value};

/// Converts an answer to that form.
///
/// # Errors
/// None in practice: JSON can express every answer of `uvnd`.
pub fn reply(mut reply: Reply) -> Result<Value, Error> {
    match &mut reply {
        Reply::Networks { networks, .. } => {
            for lease in networks.iter_mut().flat_map(|network| &mut network.leases) {
                *lease = Lease::Words(lease.to_string());
            }
        }
        Reply::Status(status) => {
            let warnings = in_words(status);
            let mut reply = to_value(&reply)?;
            reply["status"]["warnings"] = json!(warnings);
            let nics = reply["status"]["nics"].as_array_mut();
            nics.into_iter().flatten().for_each(rename);
            return Ok(reply);
        }
        _ => {}
    }
    to_value(reply)
}

/// Takes the findings out of a status, as lines: as many as the packet holds.
fn in_words(status: &mut Status) -> Vec<String> {
    const MORE: &str = "there is more: see `uvn status` of the uvn that is installed";

    let findings = std::mem::take(&mut status.findings);
    let is_cut = status.next.take().is_some();
    let mut room = Room::beside(status);
    let has_room = room.takes(&MORE);
    let lines = findings.iter().map(ToString::to_string);
    let mut lines: Vec<String> = lines.take_while(|line| room.takes(line)).collect();
    if has_room && (is_cut || lines.len() < findings.len()) {
        lines.push(MORE.into());
    }
    lines
}

/// Converts a NIC: in 0.1.0, fields had other names, the state was the error, and the networks' faults were there
/// twice.
fn rename(nic: &mut Value) {
    let Some(nic) = nic.as_object_mut() else { return };
    let carrier = nic.remove("carrier").unwrap_or_default();
    let path = if carrier == "data_plane" { json!("engine") } else { carrier };
    nic.insert("path".into(), path);
    let mut engine = nic.remove("data_plane").unwrap_or_default();
    if let Some(engine) = engine.as_object_mut() {
        engine.insert("faults".into(), json!({}));
        if let Some(fault) = engine.remove("fault") {
            engine.insert("state".into(), fault);
        }
    }
    nic.insert("engine".into(), engine);
}
