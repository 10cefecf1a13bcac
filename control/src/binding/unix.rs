//! Whether the kernel can run the programs on Unix and datagram sockets.

use super::btf;
use std::fs;
use std::io;
use uvn_wire::cgroup::{Datagram, UnixSocket};

/// The list of the kernel's security modules.
const MODULES: &str = "/sys/kernel/security/lsm";

/// The offsets that the programs need.
///
/// # Errors
/// What the kernel lacks, as a text for the administrator.
pub fn layout() -> Result<(UnixSocket, Datagram), String> {
    asks_programs(fs::read_to_string(MODULES))?;
    let layouts = btf::layouts();
    layouts.unix_socket.zip(layouts.datagram).ok_or_else(|| {
        "the kernel has no BTF (/sys/kernel/btf/vmlinux) or is locked down (confidentiality)".into()
    })
}

/// Without `bpf` in the list the kernel attaches the programs, but never runs them.
fn asks_programs(modules: io::Result<String>) -> Result<(), String> {
    match modules {
        Ok(modules) if modules.trim().split(',').any(|module| module == "bpf") => Ok(()),
        Ok(modules) => Err(format!("`bpf` is not among the kernel's security modules ({})", modules.trim())),
        Err(error) => Err(format!("{MODULES}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_asked_where_bpf_is_a_security_module() {
        assert_eq!(asks_programs(Ok("lockdown,capability,bpf\n".into())), Ok(()));
        let without = asks_programs(Ok("lockdown,capability,bpfilter".into())).unwrap_err();
        assert!(without.contains("(lockdown,capability,bpfilter)"), "{without}");
        let unknown = asks_programs(Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert!(unknown.starts_with(MODULES), "{unknown}");
    }
}
