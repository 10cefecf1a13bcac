//! The programs that Slurm's daemons call back, by inode and device.

use super::btf;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uvn_wire::cgroup::{EXECUTABLE_ENTRIES, Executable, Way};

/// Folders that are searched if the configuration names no programs.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin"];
/// Slurm's commands that listen for its daemons.
const NAMES: [&str; 3] = ["srun", "salloc", "sattach"];

/// The called-back programs, as the socket programs recognise them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CalledBack {
    /// The way from a process to its executable. All zero: the kernel does not show it.
    pub way: Way,
    /// The programs, ascending.
    pub executables: Vec<Executable>,
}

/// The programs that were found.
#[derive(Debug, Default)]
pub struct Executables {
    /// For the socket programs.
    pub known: CalledBack,
    /// Why a program is left out: texts for the administrator.
    pub problems: Vec<String>,
    /// The programs' files. While they are open, their inodes keep their numbers (overlayfs gives new ones).
    _open: Vec<File>,
}

impl Executables {
    /// Finds the programs in `files`; None: those of [`NAMES`] that exist in [`FOLDERS`].
    #[must_use]
    pub fn find(files: Option<&[PathBuf]>) -> Executables {
        let Some(way) = btf::way() else {
            let problem = "srun: the kernel has no BTF (/sys/kernel/btf/vmlinux) or is locked down (confidentiality), \
                           so the socket programs cannot see which program makes a socket: srun gets no port of \
                           `srun_ports`; use a kernel with CONFIG_DEBUG_INFO_BTF and at most integrity lockdown";
            return Executables { problems: vec![problem.into()], ..Executables::default() };
        };
        let usual = || FOLDERS.iter().flat_map(|folder| NAMES.map(|name| Path::new(folder).join(name)));
        let (mut executables, mut problems, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for file in files.map_or_else(|| usual().collect(), <[PathBuf]>::to_vec) {
            match identify(&file).and_then(|known| roots_alone(&file).map(|()| known)) {
                Ok((kept, executable)) => {
                    open.push(kept);
                    executables.push(executable);
                }
                Err(error) if files.is_none() && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    problems.push(format!(
                        "srun: {}: {error}; this program gets no port of `srun_ports`",
                        file.display()
                    ));
                }
            }
        }
        executables.sort_unstable();
        executables.dedup();
        executables.truncate(EXECUTABLE_ENTRIES as usize);
        Executables { known: CalledBack { way, executables }, problems, _open: open }
    }
}

/// The file of a program, whoever owns it, and its inode and device, which hold while the file is open.
///
/// # Errors
/// The program does not exist, or the kernel does not show its numbers.
pub fn identify(path: &Path) -> io::Result<(File, Executable)> {
    // Neither read nor run.
    let open = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    // stat(2) may return numbers of the file system's choice; fdinfo has the inode's own since Linux 5.14
    // (proc_pid_fdinfo(5)).
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", open.as_raw_fd()))?;
    let field =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let known = field("ino:").zip(field("mnt_id:"));
    let text = "the kernel does not show its inode number; Linux 5.14 and later do";
    let (inode, mount) = known.ok_or_else(|| io::Error::other(text))?;
    // The thread's, since a test gives one thread a mount namespace of its own.
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let device = device_of(&mounts, mount)
        .ok_or_else(|| io::Error::other("its mount is not in /proc/thread-self/mountinfo"))?;
    Ok((open, Executable { inode, device, padding: 0 }))
}

/// The device of a mount, as the kernel packs it. In the words of proc_pid_mountinfo(5): the mount's number is the
/// first, the device the third.
fn device_of(mounts: &str, mount: u64) -> Option<u32> {
    let device = |line: &str| {
        let mut words = line.split(' ');
        let is_it = words.next()?.parse() == Ok(mount);
        let (major, minor) = words.nth(1)?.split_once(':').filter(|_| is_it)?;
        Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
    };
    mounts.lines().find_map(device)
}

/// Checks that root alone can change a program, or replace it.
fn roots_alone(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    for (index, part) in path.ancestors().enumerate() {
        let metadata = part.metadata()?;
        if index == 0 && !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        if is_open(&metadata) {
            let text = format!(
                "users other than root can change {}: `chown root` and `chmod go-w` it",
                part.display()
            );
            return Err(io::Error::other(text));
        }
    }
    Ok(())
}

fn is_open(metadata: &Metadata) -> bool {
    metadata.uid() != 0 || metadata.mode() & 0o022 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_packed_as_the_kernel_does() {
        let mounts = "21 1 0:19 / /proc rw - proc proc rw\n30 1 259:1048575 / / rw - ext4 /dev/root rw\nx\n";
        assert_eq!(device_of(mounts, 21), Some(19));
        assert_eq!(device_of(mounts, 30), Some(259 << 20 | 1_048_575));
        assert_eq!(device_of(mounts, 1), None);
    }

    #[test]
    fn programs_that_others_can_change_are_none() {
        // Everybody can make files in there.
        let file = std::env::temp_dir().join(format!("uvn-srun-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let found = Executables::find(Some(&[file.clone(), "/bin/sh".into(), "/nowhere/srun".into()]));
        assert_eq!(found.known.executables, [identify(Path::new("/bin/sh")).unwrap().1]);
        let [temporary, nowhere] = &found.problems[..] else { panic!("{:?}", found.problems) };
        assert!(temporary.contains("users other than root can change"), "{temporary}");
        assert!(nowhere.contains("/nowhere/srun: No such file"), "{nowhere}");
        std::fs::remove_file(file).unwrap();
    }
}
