//! The messages of uvn 0.1.0 (commit fccbf29), as its `dataplane/src/{message,protocol}.rs`, `dataplane/src/traffic/trial.rs` and
//! `control/src/{message,feed}.rs` define them. Without the documentation. `Network`,
//! `Vtep` and `Cidr` are the same today.
#![allow(dead_code, reason = "a copy")]

pub mod protocol {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Failure {
        pub code: Code,
        pub message: String,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Code {
        Malformed,
        Version,
        Invalid,
        Exists,
        NotFound,
        Failed,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Asked<R> {
        pub version: u32,
        pub request: R,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Answered<A> {
        pub version: u32,
        #[serde(skip_serializing_if = "Option::is_none", default = "none")]
        pub reply: Option<A>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub error: Option<Failure>,
    }

    fn none<A>() -> Option<A> {
        None
    }
}

pub mod dataplane {
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use uvn_api::dataplane::config::{Cidr, Network, Vtep};

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Measure {
        Threads,
        Awake,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    pub enum Request {
        Ping,
        AddNetwork(Network),
        RemoveNetwork {
            vni: u32,
        },
        SetPeers {
            vni: u32,
            peers: Vec<IpAddr>,
        },
        Vteps {
            #[serde(default)]
            add: Vec<Vtep>,
            #[serde(default)]
            remove: Vec<IpAddr>,
            #[serde(default)]
            add_range: Vec<Cidr>,
            #[serde(default)]
            remove_range: Vec<Cidr>,
        },
        Show,
        Networks {
            #[serde(default)]
            from: u32,
        },
        Hops {
            #[serde(default)]
            from: Option<IpAddr>,
        },
        Unknown,
        Counters,
        Histogram,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Reply {
        Pong,
        Done { epoch: u64 },
        Show(Box<Summary>),
        Networks { networks: Vec<NetworkState>, next: Option<u32> },
        Hops { hops: Vec<HopState>, next: Option<IpAddr> },
        Unknown { seen: Vec<UnknownVni> },
        Counters { total: Counts, workers: Vec<Counts>, xdp: BTreeMap<String, u64>, lost: u64 },
        Histogram(Residency),
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Summary {
        pub nic: String,
        pub state: String,
        pub mtu: usize,
        pub mac: String,
        pub vtep: Vec<IpAddr>,
        pub port: u16,
        pub xdp: Option<String>,
        pub zero_copy: Option<bool>,
        #[serde(default)]
        pub gear: Option<String>,
        #[serde(default)]
        pub gear_reason: Option<String>,
        #[serde(default)]
        pub measure: Option<Measure>,
        pub workers: Vec<WorkerState>,
        pub epoch: u64,
        pub networks: usize,
        #[serde(default)]
        pub shortcut: usize,
        #[serde(default)]
        pub waiting: usize,
        pub hops: usize,
        pub unresolved: usize,
        pub vteps: usize,
        pub ranges: Vec<Cidr>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct WorkerState {
        pub queue: usize,
        pub core: Option<usize>,
        pub epoch: u64,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct NetworkState {
        pub vni: u32,
        pub addresses: Vec<Cidr>,
        pub mac: String,
        pub device: Option<String>,
        pub fault: Option<String>,
        pub flood: Vec<IpAddr>,
        pub flood_count: usize,
        pub learned: usize,
        #[serde(default)]
        pub shortcut: bool,
        #[serde(default)]
        pub waiting: bool,
        pub counts: Counts,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct HopState {
        pub address: IpAddr,
        pub mac: Option<String>,
        pub mtu: Option<usize>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct UnknownVni {
        pub vni: u32,
        pub vtep: IpAddr,
        pub frames: u64,
    }

    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Counts {
        pub rx_frames: u64,
        pub rx_bytes: u64,
        pub tx_frames: u64,
        pub tx_bytes: u64,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub drops: BTreeMap<String, u64>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Residency {
        pub batches: u64,
        pub p50: u64,
        pub p99: u64,
        pub p999: u64,
        pub max: u64,
    }
}

pub mod uvnd {
    use super::dataplane::Counts;
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use uvn_api::dataplane::config::Cidr;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    pub enum Request {
        Ping,
        Attach {
            uid: u32,
            claim: Claim,
            #[serde(default)]
            dry_run: bool,
        },
        Detach {
            uid: u32,
            what: Release,
            #[serde(default)]
            dry_run: bool,
        },
        List {
            #[serde(default)]
            from: u32,
        },
        Status,
        Reload {
            #[serde(default)]
            dry_run: bool,
        },
        Stop,
    }

    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    pub enum Claim {
        Session { pid: i32 },
        Job { job: String, pid: i32 },
        Manual,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    pub enum Release {
        Claim(Claim),
        All,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Reply {
        Pong,
        Attached { outcome: Outcome, steps: Vec<String> },
        Detached { leases: usize, steps: Vec<String> },
        Networks { networks: Vec<NetworkState>, next: Option<u32> },
        Status(Box<Status>),
        Steps { steps: Vec<String>, count: usize },
        Done,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Outcome {
        NotPoliced,
        Known,
        Made,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct NetworkState {
        pub uid: u32,
        pub vni: u32,
        pub vrf: String,
        pub table: u32,
        pub off_subnet: bool,
        pub leases: Vec<String>,
        pub goes_in: Option<u64>,
        pub fault: Option<String>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Status {
        pub version: String,
        pub pid: u32,
        pub config: String,
        pub nics: Vec<NicState>,
        pub networks: usize,
        pub leases: usize,
        pub verdicts: Vec<(String, u64)>,
        pub warnings: Vec<String>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct NicState {
        pub name: String,
        pub up: bool,
        pub mtu: u32,
        pub addresses: Vec<Cidr>,
        pub vteps: Vec<IpAddr>,
        pub port: u16,
        pub path: String,
        pub reason: String,
        pub engine: Option<DataPlane>,
    }

    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct DataPlane {
        pub state: String,
        pub xdp: Option<String>,
        pub zero_copy: Option<bool>,
        #[serde(default)]
        pub gear: Option<String>,
        #[serde(default)]
        pub gear_reason: Option<String>,
        #[serde(default)]
        pub shortcut: usize,
        #[serde(default)]
        pub waiting: usize,
        pub workers: usize,
        pub networks: usize,
        pub faults: BTreeMap<u32, String>,
        pub restarts: u32,
        pub process: Option<i32>,
        pub total: Counts,
        pub verdicts: BTreeMap<String, u64>,
        pub lost: u64,
    }
}
