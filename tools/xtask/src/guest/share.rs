//! The folder that host and guest share in a run: the command, its exit code, and what the command leaves.

use super::{GuestError, memory};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The files that this program puts into a run's folder.
const OURS: [&str; 10] = [
    "stage2.sh",
    "systemd.sh",
    "examine.sh",
    "command.sh",
    "memory",
    "initramfs",
    "console.log",
    "exit",
    "monitor",
    "examine",
];

/// The folder of a run. Dropping it removes it, unless the command has left something there.
pub struct Share {
    /// Its path on the host.
    pub path: PathBuf,
}

impl Share {
    /// Makes a folder below `target`, with the command in it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(target: &Path, command: &[String]) -> Result<Share, GuestError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let suffix = if number == 0 { String::new() } else { format!("-{number}") };
        let path = target.join(format!("run-{pid}{suffix}"));
        sweep(target);
        std::fs::create_dir_all(&path).map_err(GuestError::io(format!("create {}", path.display())))?;
        let share = Share { path };
        share.write("stage2.sh", include_str!("stage2.sh"))?;
        share.write("systemd.sh", include_str!("systemd.sh"))?;
        share.write("examine.sh", include_str!("examine.sh"))?;
        share.write("command.sh", &script(command)?)?;
        let files = memory::files(command.first().map_or("", String::as_str));
        share
            .write("memory", &files.iter().map(|file| format!("{}\n", file.display())).collect::<String>())?;
        Ok(share)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), GuestError> {
        let path = self.path.join(name);
        std::fs::write(&path, text).map_err(GuestError::io(format!("write {}", path.display())))
    }

    /// The path for the evidence of a hang.
    #[must_use]
    pub fn evidence(&self, target: &Path) -> PathBuf {
        let run = self.path.file_name().unwrap_or_default().to_string_lossy();
        target.join(format!("evidence-{run}.txt"))
    }

    /// The last lines that the kernel has written on its console.
    #[must_use]
    pub fn console(&self) -> String {
        let text = std::fs::read(self.path.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        clear(&self.path);
        if self.path.exists() {
            eprintln!("the guest's command left files in {}", self.path.display());
        }
    }
}

/// Removes this program's files from a run's folder, and the folder unless the command has left something there.
fn clear(folder: &Path) {
    for ours in OURS {
        let _not_there = std::fs::remove_file(folder.join(ours));
    }
    let _not_empty = std::fs::remove_dir(folder);
}

/// Clears the folders of killed runs.
fn sweep(target: &Path) {
    for entry in std::fs::read_dir(target).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            clear(&entry.path());
        }
    }
}

/// The command as a shell script.
fn script(command: &[String]) -> Result<String, GuestError> {
    let directory = std::env::current_dir().map_err(GuestError::io("current directory"))?;
    let mut script = format!("cd {} || exit 125\n", quoted(&directory.to_string_lossy()));
    let kept = |name: &str| name.starts_with("RUST_") || name.starts_with("UVN_");
    for (name, value) in std::env::vars().filter(|(name, _)| kept(name)) {
        script += &format!("export {name}={}\n", quoted(&value));
    }
    script += "exec";
    for word in command {
        script += " ";
        script += &quoted(word);
    }
    script += "\n";
    Ok(script)
}

/// Quotes a word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::{quoted, script};
    use std::process::Command;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "x\ny"].map(String::from);
        let output = Command::new("sh").args(["-c", &script(&words).unwrap()]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME||x\ny|");
        assert_eq!(quoted("'"), r"''\'''");
    }
}
