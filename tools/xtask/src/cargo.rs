//! The cargo that runs this program, and what it builds.

use std::path::PathBuf;
use std::process::Command;
use uvn_rig::error::RigError;
use uvn_rig::shell;

/// A call of that cargo, in the workspace.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Builds these packages in release mode, each a program of that name, and returns the folder of the programs.
///
/// # Errors
/// cargo failed.
pub fn build_release(packages: &[&str]) -> Result<PathBuf, RigError> {
    let mut build = cargo();
    build.args(["build", "--release", "--quiet"]);
    packages.iter().for_each(|package| {
        build.args(["--package", package]);
    });
    shell::run(&mut build)?;
    Ok(target_directory()?.join("release"))
}

/// The folder in which cargo puts what it builds.
///
/// # Errors
/// cargo failed.
pub fn target_directory() -> Result<PathBuf, RigError> {
    let metadata = shell::read(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).map_err(|error| RigError::program("cargo metadata", error))?;
    Ok(metadata["target_directory"].as_str().unwrap_or("target").into())
}
