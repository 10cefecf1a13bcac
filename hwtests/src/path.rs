//! The data paths, as `path` of an `[[underlay]]`: tests for each of them, and which one a node has in the end.

use crate::node::Node;
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// How long the shortcut may take to have the networks of a test, in an emulated guest.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whether the kernel has tc programs as links, which the shortcut takes: Linux 6.6.
#[must_use]
pub fn has_tc_links() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 6)
}

/// Whether the kernel has what a data path takes. If not, says so where no test's output is hidden.
#[must_use]
#[expect(clippy::explicit_write, reason = "the test runner captures what println! writes")]
pub fn is_possible(path: &str) -> bool {
    let possible = path != "shortcut" || has_tc_links();
    if !possible {
        let why =
            "SKIP: this kernel has no tc links (Linux 6.6 and later do): without them there is no shortcut";
        writeln!(std::io::stdout(), "{why}").unwrap();
    }
    possible
}

/// Makes a module of tests for each data path: each calls the function of its name, beside it, with the path.
#[macro_export]
macro_rules! with_paths {
    ([$($path:ident),*] $tests:tt) => { $($crate::with_path!($path $tests);)* };
}

/// See [`with_paths`].
#[macro_export]
macro_rules! with_path {
    ($path:ident { $($test:ident),* $(,)? }) => {
        mod $path {
            $(
                #[test]
                #[ignore = "needs a kernel with VRF: cargo xtask guest"]
                fn $test() {
                    let path = stringify!($path);
                    if $crate::path::is_possible(path) {
                        super::$test(path);
                    }
                }
            )*
        }
    };
}

/// What `uvn status` says of a NIC.
#[must_use]
pub fn status(node: &Node, nic: &str) -> Value {
    let status: Value = serde_json::from_str(&node.uvn(&["status", "--json"])).unwrap();
    let nics = status["nics"].as_array().unwrap();
    nics.iter().find(|state| state["name"] == nic).unwrap_or_else(|| panic!("{status}")).clone()
}

/// Waits until the shortcut of each NIC of a node has taken over every network that it can have.
pub fn wait_for_gear(node: &Node) {
    for nic in node.nics() {
        let what = format!("end of networks that wait for the shortcut of {}", nic.name);
        node.wait(&what, PATIENCE, || {
            status(node, &nic.name)["data_plane"]["waiting"].as_u64().unwrap_or(0) == 0
        });
    }
}

/// Panics unless a node's first NIC has the data path that was asked for.
pub fn assert_chosen(node: &Node, path: &str) {
    let state = status(node, &node.nics()[0].name);
    let expected = match path {
        "auto" if has_tc_links() => "shortcut",
        "auto" => "engine",
        path => path,
    };
    let data_plane = &state["data_plane"];
    match expected {
        "kernel" => assert_eq!(state["carrier"], "kernel", "{state}"),
        gear => {
            assert_eq!(
                (&state["carrier"], &data_plane["gear"]),
                (&"data_plane".into(), &gear.into()),
                "{state}"
            );
            let shown = node.uvn(&["status"]);
            assert!(shown.contains(&format!("\n  gear {gear}: ")), "{shown}");
        }
    }
    if expected == "shortcut" {
        assert_eq!(data_plane["shortcut"], data_plane["networks"], "some network is the engine's: {state}");
    }
    if path == "auto" && expected == "engine" {
        assert!(data_plane["gear_reason"].as_str().unwrap().contains("Linux 6.6"), "{state}");
    }
}

/// The same, and frames have gone that way in both directions.
pub fn assert_used(node: &Node, path: &str) {
    assert_chosen(node, path);
    let state = status(node, &node.nics()[0].name);
    let data_plane = &state["data_plane"];
    let frames = |verdict: &str| data_plane["verdicts"][verdict].as_u64().unwrap();
    if data_plane["gear"] == "shortcut" {
        assert!(frames("tc_stripped") > 0 && frames("tc_encapsulated") > 0, "{}: {state}", node.name());
        assert_eq!(frames("tc_no_memory"), 0, "{}: {state}", node.name());
    } else if data_plane["gear"] == "engine" {
        assert!(frames("xdp_redirected") > 0, "{}: {state}", node.name());
        assert_eq!(frames("tc_stripped") + frames("tc_encapsulated"), 0, "{}: {state}", node.name());
    }
}
