//! Makes the archive that the kernel starts from: busybox, the modules that the root file system needs, and `init.sh`.

use super::GuestError;
use super::kernel::Kernel;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use uvn_rig::shell;

/// Modules to reach the root file system and the host. `modprobe` finds the modules that these need.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
/// busybox: all programs in one static file.
const BUSYBOX: &str = "/bin/busybox";

/// Writes the initramfs of `kernel` to `path`.
///
/// # Errors
/// A module is missing, or the file cannot be written.
pub fn write(kernel: &Kernel, path: &Path) -> Result<(), GuestError> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "lower", "upper", "proc", "sys", "modules"] {
        archive.add(folder, 0o040_755, &[]);
    }
    let busybox = std::fs::read(BUSYBOX).map_err(GuestError::io(format!("read {BUSYBOX}")))?;
    archive.add("bin/busybox", 0o100_755, &busybox);
    archive.add("init", 0o100_755, include_bytes!("init.sh"));
    let mut order = String::new();
    for module in modules(kernel)? {
        let name = module.file_stem().unwrap_or_default().to_string_lossy().replace(".ko", "");
        archive.add(&format!("modules/{name}.ko"), 0o100_644, &unpacked(&module)?);
        order += &format!("{name}.ko\n");
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    std::fs::write(path, archive.bytes).map_err(GuestError::io(format!("write {}", path.display())))
}

/// The files of [`MODULES`] in the order in which they must be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>, GuestError> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(&kernel.root).args(["-S", &kernel.release, "--show-depends", module]);
        for line in shell::read(&mut modprobe)?.lines() {
            let Some(file) = line.strip_prefix("insmod ").and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            if seen.insert(file.to_owned()) {
                files.push(PathBuf::from(file));
            }
        }
    }
    Ok(files)
}

/// Decompresses a module, which busybox cannot do.
fn unpacked(module: &Path) -> Result<Vec<u8>, GuestError> {
    let failed = GuestError::io(format!("read {}", module.display()));
    if module.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").arg("-dc").arg(module).output().map_err(failed)?;
        return Ok(output.stdout);
    }
    std::fs::read(module).map_err(failed)
}

/// An archive in the kernel's format (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let (inode, size, name_size) = (self.files, content.len(), name.len() + 1);
        // ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
