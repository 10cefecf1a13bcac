//! The state file on a disk without room. Needs root, for a file system of its own.

#![allow(clippy::unwrap_used, reason = "this is how a test fails")]

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::time::Duration;
use uvn_control::lease::state::{load, save};
use uvn_control::lease::{Kind, Lease, Leases};
use uvn_control::network::Network;
use uvn_wire::vxlan::Vni;

#[test]
fn a_full_disk_keeps_the_old_state() {
    let folder = std::env::temp_dir().join(format!("uvn-state-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some("size=16k")).unwrap();
    let file = folder.join("state.json");
    let mut leases = Leases::new(1000);
    let mut attach = |uid: u32| {
        let lease = Lease { kind: Kind::Manual, name: "x".repeat(100), holder: None };
        let network =
            |slot| Ok(Network { uid, vni: Vni::new(uid).expect("24 bits"), slot, off_subnet: true });
        leases.attach(uid, lease, Duration::ZERO, network).unwrap();
        let saved = save(&leases, &file);
        (leases.clone(), saved)
    };
    let mut before = attach(1).0;
    let error = loop {
        match attach(u32::try_from(before.len()).unwrap() + 1) {
            (now, Ok(())) => before = now,
            (_, Err(error)) => break error.to_string(),
        }
    };
    assert!(error.contains("state.json: No space left on device"), "{error}");
    assert!(error.contains("keeps its previous content"), "{error}");
    assert_eq!(load(&file, 1000).unwrap().leases, before);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left of the attempt");
    umount2(&folder, MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir(&folder).unwrap();
}
