//! The tests' own network namespaces.

mod common;

use common::NetNs;

#[test]
fn a_namespace_has_its_own_links_and_vanishes() {
    let left = NetNs::new("left");
    let right = NetNs::new("right");
    left.veth("wire0", &right, "wire1");
    assert!(left.ip("-br link").contains("wire0"));
    assert!(right.run(|| nix::net::if_::if_nametoindex("wire1")).is_ok());
    assert!(right.run(|| nix::net::if_::if_nametoindex("wire0")).is_err());
    let path = left.path();
    assert!(std::fs::exists(&path).unwrap());
    drop(left);
    assert!(!std::fs::exists(&path).unwrap());
}
