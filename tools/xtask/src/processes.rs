//! Shows what processes of this machine wait for, from /proc: the evidence of a hang.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Describes a process and all that descend from it, with what each of their threads waits for.
#[must_use]
pub fn describe(root: u32) -> String {
    let mut text = String::new();
    for pid in family(root) {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let _infallible = writeln!(text, "--- {pid}: {words}");
        for thread in numbers(&Path::new("/proc").join(pid.to_string()).join("task")) {
            thread_of(&mut text, pid, thread);
        }
    }
    text
}

/// A process and all that descend from it, parents first.
fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> =
        numbers(Path::new("/proc")).into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let (mut family, mut next) = (vec![root], 0);
    while let Some(&pid) = family.get(next) {
        family.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// Ends a process and all that descend from it.
pub fn end(root: u32) {
    for pid in family(root) {
        let _already_gone = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

fn thread_of(text: &mut String, pid: u32, thread: u32) {
    let file =
        |name: &str| fs::read_to_string(format!("/proc/{pid}/task/{thread}/{name}")).unwrap_or_default();
    let (stat, name) = (file("stat"), file("comm"));
    // State, then the 11th and 12th after it: utime and stime in ticks (proc_pid_stat(5)).
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or("?");
    let _infallible = writeln!(
        text,
        "{thread} {}: {}, waits in {}, system call {}, ticks {} + {}",
        name.trim(),
        field(0),
        file("wchan"),
        file("syscall").trim(),
        field(11),
        field(12)
    );
    for line in file("stack").lines() {
        let _infallible =
            writeln!(text, "        {}", line.split_once("] ").map_or(line, |(_, place)| place));
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The names in a folder that are numbers, in ascending order.
fn numbers(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::describe;
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_and_what_it_waits_for_are_told() {
        // A shell that reads a pipe which nobody writes to.
        let mut child = Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let text = describe(std::process::id());
            if text.contains("sh -c read line") && text.contains("pipe_read") {
                break;
            }
            assert!(std::time::Instant::now() < end, "{text}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
