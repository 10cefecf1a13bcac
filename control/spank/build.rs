//! Finds the Slurm version to build for: Slurm loads only plugins of its own major and minor version.

use std::env;
use std::process::Command;

/// The variable with the version to build for, such as 22.05.8. Unset: that of the Slurm installed here.
const VARIABLE: &str = "SLURM_VERSION";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=/usr/sbin/slurmd");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let asked = env::var(VARIABLE).ok();
    let number = match asked.clone().or_else(installed).as_deref().map(|text| (text, number(text))) {
        Some((_, Some(number))) => number,
        Some((text, None)) => {
            eprintln!("{VARIABLE} is {text:?}; a version such as 22.05.8 is wanted");
            std::process::exit(1);
        }
        // The plugin builds and can be tested, but no Slurm loads it.
        None => 0,
    };
    println!("cargo:rustc-env=SLURM_VERSION_NUMBER={number}");
}

/// The version of the installed Slurm. `slurmd -V` prints `slurm-wlm 22.05.8` on Debian, `slurm 23.11.4` elsewhere;
/// srun prints it only with a slurm.conf.
fn installed() -> Option<String> {
    ["slurmd", "/usr/sbin/slurmd", "srun"].into_iter().find_map(|program| {
        let output =
            Command::new(program).arg("-V").output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1).map(str::to_owned)
    })
}

/// The number of a version, as SLURM_VERSION_NUM of slurm_version.h: a byte each for major, minor, micro.
fn number(text: &str) -> Option<u32> {
    let mut bytes = text.split('.').map(|part| part.split('-').next().unwrap_or(part).parse::<u8>().ok());
    let (major, minor) = (bytes.next()??, bytes.next()??);
    let micro = bytes.next().flatten().unwrap_or(0);
    Some(u32::from_be_bytes([0, major, minor, micro]))
}
