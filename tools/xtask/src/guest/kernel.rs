//! Fetches Debian's kernels and unpacks them below `target/guest`: nothing is installed on the host.

use super::GuestError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use uvn_rig::shell;

/// A kernel series that Debian 12 offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Series {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, which Debian 12 offers, too.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        }
    }

    /// The package that depends on the newest kernel of the series.
    fn meta_package(self) -> &'static str {
        match self {
            Series::V6_1 => "linux-image-amd64",
            Series::V6_12 => "linux-image-6.12-amd64",
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The ELF file.
    pub vmlinux: PathBuf,
    /// The folder that belongs at /lib/modules/RELEASE.
    pub modules: PathBuf,
    /// The folder with lib/modules.
    pub root: PathBuf,
}

impl Kernel {
    /// The kernel of a series, fetched and unpacked below `target` if it is not there yet.
    ///
    /// # Errors
    /// apt has none, or it cannot be unpacked.
    pub fn get(series: Series, target: &Path) -> Result<Kernel, GuestError> {
        let root = target.join(series.name());
        if !root.exists() {
            std::fs::create_dir_all(target)
                .map_err(GuestError::io(format!("create {}", target.display())))?;
            let lock = target.join("lock");
            let file = File::create(&lock).map_err(GuestError::io(format!("create {}", lock.display())))?;
            let _lock = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| GuestError::io(format!("lock {}", lock.display()))(errno.into()))?;
            // Another run may have been faster.
            if !root.exists() {
                fetch(series, &root)?;
            }
        }
        let modules = root.join("lib/modules");
        let release = names(&modules)?.pop().ok_or_else(|| {
            GuestError::Kernel(format!("no kernel in {}: delete that folder", root.display()))
        })?;
        Ok(Kernel { vmlinux: root.join("vmlinux"), modules: modules.join(&release), root, release })
    }
}

/// Downloads and unpacks a kernel; the folder gets its name only when it is complete.
fn fetch(series: Series, root: &Path) -> Result<(), GuestError> {
    let package = match package(series) {
        Ok(package) => package,
        // On a fresh machine, apt has no lists yet.
        Err(_) => {
            shell::run(Command::new("apt-get").args(["-q", "update"]))?;
            package(series)?
        }
    };
    println!("guest: fetching {package}");
    let unpacked = root.with_extension("unpacking");
    let _not_there = std::fs::remove_dir_all(&unpacked);
    std::fs::create_dir_all(&unpacked).map_err(GuestError::io(format!("create {}", unpacked.display())))?;
    let download =
        || shell::read(Command::new("apt-get").args(["-q", "download", &package]).current_dir(&unpacked));
    if download().is_err() {
        // An old list names a package that no longer exists.
        shell::run(Command::new("apt-get").args(["-q", "update"]))?;
        download()?;
    }
    for name in names(&unpacked)?.iter().filter(|name| name.ends_with(".deb")) {
        shell::read(Command::new("dpkg").arg("-x").arg(unpacked.join(name)).arg(&unpacked))?;
        let _only_space = std::fs::remove_file(unpacked.join(name));
    }
    let boot = unpacked.join("boot");
    let image = names(&boot)?
        .into_iter()
        .find(|name| name.starts_with("vmlinuz-"))
        .ok_or_else(|| GuestError::Kernel(format!("{package} has no boot/vmlinuz-*")))?;
    extract(&boot.join(&image), &unpacked.join("vmlinux"))?;
    let release = image.trim_start_matches("vmlinuz-");
    shell::read(Command::new("depmod").arg("-b").arg(&unpacked).arg(release))?;
    std::fs::rename(&unpacked, root).map_err(GuestError::io(format!("rename to {}", root.display())))
}

/// The package behind the meta-package.
fn package(series: Series) -> Result<String, GuestError> {
    let meta = series.meta_package();
    let depends = shell::read(Command::new("apt-cache").args(["depends", meta]))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| GuestError::Kernel(format!("apt does not know {meta}: Debian 12 has it")))
}

/// Extracts the compressed vmlinux from a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset,
/// payload_length).
fn extract(image: &Path, vmlinux: &Path) -> Result<(), GuestError> {
    let bytes = std::fs::read(image).map_err(GuestError::io(format!("read {}", image.display())))?;
    let payload =
        payload(&bytes).ok_or_else(|| GuestError::Kernel(format!("{} is no bzImage", image.display())))?;
    let unpack: &[&str] = match payload {
        [0xfd, b'7', b'z', ..] => &["xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dcq"],
        [0x1f, 0x8b, ..] => &["gzip", "-dcq"],
        _ => return Err(GuestError::Kernel(format!("{}: unknown compression", image.display()))),
    };
    let output = File::create(vmlinux).map_err(GuestError::io(format!("create {}", vmlinux.display())))?;
    let mut child = Command::new(unpack[0])
        .args(&unpack[1..])
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .map_err(GuestError::io(format!("run {}", unpack[0])))?;
    if let Some(mut input) = child.stdin.take() {
        // The size behind the compressed data makes the program fail; the result is checked instead.
        let _complains = input.write_all(payload);
    }
    let _complains = child.wait();
    let mut magic = [0; 4];
    let read = File::open(vmlinux).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.map_err(GuestError::io(format!("read {}", vmlinux.display())))?;
    if magic == *b"\x7fELF" {
        Ok(())
    } else {
        Err(GuestError::Kernel(format!("{} holds no ELF file", image.display())))
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let field = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + field(0x248)?;
    image.get(start..start.checked_add(field(0x24c)?)?)
}

/// The names in a folder.
fn names(folder: &Path) -> Result<Vec<String>, GuestError> {
    let entries = std::fs::read_dir(folder).map_err(GuestError::io(format!("read {}", folder.display())))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
