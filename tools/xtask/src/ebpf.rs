//! Rebuilds the objects of `ebpf/`, or checks that the committed ones are what their source builds to.
//!
//! rustup has no core library for the BPF target, and compiling one needs a nightly toolchain. Debian's Rust has it;
//! only bpf-linker is built here, against the LLVM of that same Rust.

use crate::setup::{self, SetupError};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};
use uvn_rig::shell::{self, ShellError};

/// Debian's cargo: the first one on the PATH is rustup's.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";

/// The version of bpf-linker, on which the object's bytes depend.
const BPF_LINKER: &str = "0.13.0";
/// The LLVM that Debian's rustc links with.
const LLVM_PACKAGE: &str = "libllvm22";
const LLVM_FEATURE: &str = "llvm-22";

/// Why the objects cannot be built, or differ.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// A package cannot be installed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A tool failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// libLLVM is not where its package should have put it.
    #[error("package {LLVM_PACKAGE} holds no libLLVM.so: Debian's Rust has moved to another LLVM; adapt {}", file!())]
    NoLlvm,
    /// The committed object is not what its source builds to.
    #[error(
        "{committed} is not what its source builds to: run `cargo xtask ebpf` and commit the result.\n\
         Built here: {built}\n\
         Another compiler gives other bytes from the same source; this one is\n{toolchain}"
    )]
    Differs {
        /// The object in the repository.
        committed: PathBuf,
        /// The one just built.
        built: PathBuf,
        /// The compiler's versions.
        toolchain: String,
    },
}

/// The objects, one per binary of `ebpf/`: the XDP and tc programs, and the cgroup programs.
const OBJECTS: [&str; 2] = ["uvn-ebpf", "uvn-cgroup"];

/// Builds the objects and replaces the committed ones; with `check`, compares them instead.
///
/// # Errors
/// The set-up or the build failed, or the objects differ.
pub fn run(check: bool) -> Result<(), EbpfError> {
    setup::install(&[setup::EBPF])?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().map_err(file(&root))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let linker = bpf_linker(&target)?;
    let folder = build(&root, &target, &linker)?;
    for name in OBJECTS {
        let built = folder.join(name);
        let committed = root.join("ebpf").join(name).with_extension("o");
        if !check {
            fs::copy(&built, &committed).map_err(file(&committed))?;
            println!("built {}", committed.display());
        } else if read(&built)? != read(&committed)? {
            let toolchain = shell::read(Command::new(RUSTC).arg("-vV"))? + "bpf-linker: " + BPF_LINKER;
            return Err(EbpfError::Differs { committed, built, toolchain });
        } else {
            println!("{} is what its source builds to", committed.display());
        }
    }
    Ok(())
}

/// The path of bpf-linker, which is installed below `target` the first time.
fn bpf_linker(target: &Path) -> Result<PathBuf, EbpfError> {
    let root = target.join(format!("bpf-linker-{BPF_LINKER}"));
    let linker = root.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    println!("set-up: building bpf-linker {BPF_LINKER}: links the eBPF programs");
    // Its build script wants LLVM_PREFIX/lib/libLLVM.so, which only Debian's large -dev package has.
    let files = shell::read(Command::new("dpkg").args(["-L", LLVM_PACKAGE]))?;
    let llvm = files.lines().find(|path| path.contains("/libLLVM.so.")).ok_or(EbpfError::NoLlvm)?;
    let prefix = root.join("llvm");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib")).map_err(file(&prefix))?;
    match std::os::unix::fs::symlink(llvm, &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(file(&link)(error)),
        _ => {}
    }
    let version = format!("={BPF_LINKER}");
    shell::run(
        Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
            .args(["install", "--quiet", "bpf-linker", "--version", &version, "--locked"])
            .args(["--no-default-features", "--features", LLVM_FEATURE, "--root"])
            .arg(&root)
            .env("CARGO_TARGET_DIR", root.join("build"))
            .env("LLVM_PREFIX", &prefix),
    )?;
    Ok(linker)
}

/// Where the objects are, built.
fn build(root: &Path, target: &Path, linker: &Path) -> Result<PathBuf, EbpfError> {
    let target = target.join("ebpf");
    let flags = [
        format!("-Clinker={}", linker.display()),
        // Linux 5.1 and later.
        "-Ctarget-cpu=v3".to_owned(),
        // Every machine that uvn runs on can load unaligned words, so the verifier allows that in packets.
        "-Clink-arg=--cpu-features=+alu32,+allows-misaligned-mem-access".to_owned(),
    ];
    shell::run(
        Command::new(CARGO)
            .args(["build", "--quiet", "--release", "--locked", "--target", "bpfel-unknown-none"])
            .arg("--manifest-path")
            .arg(root.join("ebpf/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTC", RUSTC)
            // aya-ebpf needs inline assembly for BPF, which is unstable.
            .env("RUSTC_BOOTSTRAP", "aya_ebpf")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC_WRAPPER"),
    )?;
    Ok(target.join("bpfel-unknown-none/release"))
}

fn read(path: &Path) -> Result<Vec<u8>, EbpfError> {
    fs::read(path).map_err(file(path))
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> EbpfError {
    move |source| EbpfError::File { path: path.to_owned(), source }
}
