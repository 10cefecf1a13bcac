//! `uvn-dataplane`: one NIC's engine.
fn main() {}
