//! A data plane per node.

use super::{Ground, vni};
use std::fmt::Write;
use std::net::IpAddr;
use uvn_rig::cores::Cores;
use uvn_rig::dataplane::Dataplane;
use uvn_rig::error::RigError;
use uvn_rig::place::{Host, Place};
use uvn_rig::rig::{NIC, Rig, overlay, overlays, underlay};

/// The name of a network's device.
pub fn device(vni: u32) -> String {
    format!("u{vni}")
}

/// Starts one on each node, with its worker on the node's networking core, and waits for them.
pub fn start(
    rig: &Rig,
    cores: &[Cores],
    ground: &Ground,
    (path, boost): (&str, &str),
) -> Result<Vec<Dataplane>, RigError> {
    let start = |node: usize| {
        let core = cores[node].net;
        // Its workers pin themselves; this puts its other thread out of the applications' way.
        let address = IpAddr::V4(underlay(node).0);
        let place = Place {
            host: Host::Netns(rig.node(node)),
            cores: core.to_string(),
            address,
            round_robin: ground.round_robin,
        };
        let files = rig.directory().join(format!("node{}", node + 1));
        let configuration = configuration((rig.nodes(), node), core, ground.networks, (path, boost));
        Dataplane::start(ground.program, &place, &files, &configuration, ground.networks as u32)
    };
    let mut dataplanes: Vec<Dataplane> = (0..rig.nodes()).map(start).collect::<Result<_, _>>()?;
    dataplanes.iter_mut().try_for_each(Dataplane::wait)?;
    Ok(dataplanes)
}

/// The TOML file of one node.
fn configuration(
    (nodes, node): (usize, usize),
    core: usize,
    networks: usize,
    (path, boost): (&str, &str),
) -> String {
    let mut toml = format!("path = \"{path}\"\nnic = \"{NIC}\"\nvtep = [\"{}\"]\n", underlay(node).0);
    let peers: Vec<usize> = (0..nodes).filter(|peer| *peer != node).collect();
    let quoted = |addresses: Vec<IpAddr>| {
        addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
    };
    let vteps: Vec<String> = peers
        .iter()
        .map(|&peer| {
            let overlay = quoted(overlays(peer, networks));
            format!("{{ address = \"{}\", overlay = [{overlay}] }}", underlay(peer).0)
        })
        .collect();
    let peers = quoted(peers.iter().map(|&peer| underlay(peer).0.into()).collect());
    let _infallible = write!(
        toml,
        "[peers]\nvtep = [{}]\n[workers]\ncores = [{core}]\nboost = \"{boost}\"\n",
        vteps.join(", ")
    );
    for network in 0..networks {
        let ((v4, v6), vni) = (overlay(node, network), vni(network));
        let device = device(vni);
        let _infallible = write!(
            toml,
            "[[network]]\nvni = {vni}\naddresses = [\"{v4}/24\", \"{v6}/64\"]\npeers = [{peers}]\n\
             device = {{ name = \"{device}\" }}\n",
        );
    }
    toml
}

#[cfg(test)]
mod tests {
    use super::configuration;

    #[test]
    fn every_other_node_is_a_peer_with_all_its_overlay_addresses() {
        let toml = configuration((3, 1), 7, 2, ("auto", "none"));
        assert!(toml.contains("vtep = [\"10.0.0.2\"]"), "{toml}");
        assert!(toml.contains(
            "{ address = \"10.0.0.3\", overlay = [\"10.1.0.3\", \"fd00:11::3\", \"10.2.0.3\", \"fd00:12::3\"] }"
        ));
        assert!(toml.contains(
            "addresses = [\"10.2.0.2/24\", \"fd00:12::2/64\"]\npeers = [\"10.0.0.1\", \"10.0.0.3\"]"
        ));
        assert!(!toml.contains("address = \"10.0.0.2\""));
        assert!(toml.contains("cores = [7]"));
    }
}
