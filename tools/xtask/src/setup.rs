//! The apt packages that building, testing and measuring need, each with its reason.

use std::process::{Command, Stdio};
use uvn_rig::shell::{self, ShellError};

/// A Debian package and what it is for.
pub type Package = (&'static str, &'static str);

/// Packages to build the data plane and `uvnd`.
pub const BUILD: &[Package] = &[
    ("libc6-dev", "the C library that Rust programs link with"),
    ("gcc", "links Rust programs; compiles libxdp, which xsk-rs carries"),
    ("make", "builds libxdp"),
    ("m4", "libxdp's configure"),
    ("pkg-config", "libxdp's configure looks for libelf with it"),
    ("clang", "compiles libxdp's own BPF programs; its libclang makes xsk-rs's bindings"),
    ("libelf-dev", "libbpf, inside libxdp, reads ELF objects with it"),
    ("zlib1g-dev", "libelf needs it"),
];

/// Packages to build the eBPF objects. Debian's Rust has the BPF target's core library; rustup's would have to compile
/// it.
pub const EBPF: &[Package] = &[
    ("rustc-web", "compiles the eBPF programs; brings the LLVM that bpf-linker links with"),
    ("cargo-web", "drives that rustc"),
    ("libstd-rust-web-dev-bpf", "Rust's core library for the BPF target"),
];

/// Packages to run the tests that make network namespaces.
pub const TEST: &[Package] = &[
    ("iproute2", "network namespaces and links"),
    ("ethtool", "switches the wire's offloads"),
    ("nftables", "uvnd's packet filter"),
    ("iputils-ping", "asks who is there"),
    ("tshark", "decodes what the data plane has sent, and checks every checksum"),
];

/// Packages to run the demo and benchmarks.
pub const BENCH: &[Package] = &[
    ("iproute2", "network namespaces and links"),
    ("ethtool", "switches the wire's offloads"),
    ("iperf3", "bulk TCP"),
    ("openvswitch-switch", "the userspace VXLAN that a site would take today; each run starts its own"),
    ("valgrind", "counts the hot path's instructions"),
    ("openmpi-bin", "MPI jobs"),
    ("libopenmpi-dev", "mpicc, for our program of MPI patterns"),
    ("hpcc", "HPL, as an application's proxy"),
];

/// Packages to run commands in a guest. `guest/kernel.rs` fetches and unpacks the kernels, which are not installed.
pub const GUEST: &[Package] = &[
    ("qemu-system-x86", "runs the guest"),
    ("busybox-static", "makes the guest's root file system"),
    ("kmod", "finds the modules for that, and loads others in the guest"),
    ("xz-utils", "decompresses kernels and modules"),
    ("zstd", "the same"),
    ("util-linux", "setpriv: a guest ends with whoever started it"),
    ("iproute2", "network namespaces and links"),
    ("systemd", "process 1 in a guest with logind"),
    ("dbus", "logind speaks it"),
    ("libpam-systemd", "sessions of logind"),
];

/// Packages of programs that the suites in the guest start.
pub const SUITES: &[Package] = &[
    ("ethtool", "switches the wire's offloads"),
    ("nftables", "uvnd's packet filter"),
    ("iputils-ping", "asks who is there"),
    ("uidmap", "subordinate UIDs"),
    ("strace", "kills uvnd at every step of its work"),
    ("openssh-server", "logins with PAM"),
    ("openssh-client", "the same"),
    ("slurmctld", "jobs"),
    ("slurmd", "the same; and the plugin is built for its version"),
    ("slurm-client", "the same"),
    ("munge", "tells Slurm's daemons who calls"),
    ("openmpi-bin", "an MPI job"),
    ("libopenmpi-dev", "mpicc, for its program"),
];

/// All packages.
pub const ALL: &[&[Package]] = &[BUILD, EBPF, TEST, BENCH, GUEST, SUITES];

/// Why the packages cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no dpkg: this is not Debian or a descendant.
    #[error("set-up knows Debian packages only ({0}); install what matches these yourself: {1}")]
    NotDebian(ShellError, String),
    /// The process is not root.
    #[error("run this as root, or install these packages first: {0}")]
    NotRoot(String),
    /// apt failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

/// Installs the packages of `groups` that are missing, and prints why each is needed. Starts no service.
///
/// # Errors
/// This is not Debian, the process is not root while a package is missing, or apt failed.
pub fn install(groups: &[&[Package]]) -> Result<(), SetupError> {
    let mut missing: Vec<Package> = Vec::new();
    for &(package, reason) in groups.iter().copied().flatten() {
        if !missing.iter().any(|&(other, _)| other == package) && !is_installed(package)? {
            missing.push((package, reason));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    for (package, reason) in &missing {
        println!("set-up: installing {package}: {reason}");
    }
    let names: Vec<&str> = missing.iter().map(|&(package, _)| package).collect();
    if shell::read(Command::new("id").arg("-u"))?.trim() != "0" {
        return Err(SetupError::NotRoot(names.join(" ")));
    }
    Ok(shell::run(Command::new("sh").args(["-c", INSTALL, "install"]).args(&names).stdin(Stdio::null()))?)
}

fn is_installed(package: &str) -> Result<bool, SetupError> {
    match shell::read(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package])) {
        Ok(status) => Ok(status == "installed"),
        // dpkg does not know the package.
        Err(ShellError::Failed { .. }) => Ok(false),
        Err(error) => Err(SetupError::NotDebian(error, package.to_owned())),
    }
}

/// A script that installs its arguments and removes nothing, since other packages may be needed. While it runs, a
/// policy-rc.d (Debian policy 9.3.3) forbids starting services, which would interfere with the host's. It is a shell
/// script because its trap also cleans up on Ctrl-C.
///
/// Debian 12's qemu is 7.2: it has no igb, and cannot be installed beside a newer package of qemu's. The backports have
/// 10, from the mirror that apt uses for Debian 12; the machine's lists and sources are not changed.
const INSTALL: &str = r#"
set -e
policy=/usr/sbin/policy-rc.d
mark='# uvn set-up: start no service'
if [ -e "$policy" ] && ! grep -qxF "$mark" "$policy"; then mv "$policy" "$policy.uvn"; fi
backports=$(mktemp -d)
trap 'rm -rf "$policy" "$backports"; if [ -e "$policy.uvn" ]; then mv "$policy.uvn" "$policy"; fi' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
printf '%s\n' '#!/bin/sh' "$mark" 'exit 101' > "$policy"
chmod 755 "$policy"
export DEBIAN_FRONTEND=noninteractive
get() { apt-get -q -o DPkg::Lock::Timeout=600 "$@"; }
get update
case " $* " in
    *" qemu-system-x86 "*)
        version=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
        from=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | grep -m 1 ' bookworm$' || true)
        if [ -n "$from" ] && dpkg --compare-versions "$version" lt 1:8; then
            keys=/usr/share/keyrings/debian-archive-keyring.gpg
            echo "deb [signed-by=$keys] ${from% *} bookworm-backports main" > "$backports/list"
            mkdir "$backports/lists"
            chmod 755 "$backports"
            get_backports() {
                get -o Dir::Etc::SourceList="$backports/list" -o Dir::State::Lists="$backports/lists" \
                    -o APT::Sandbox::User=root "$@"
            }
            get_backports update
            get_backports install --yes --no-install-recommends --no-remove -t bookworm-backports qemu-system-x86
        fi
        ;;
esac
get install --yes --no-install-recommends --no-remove "$@"
"#;
