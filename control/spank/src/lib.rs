//! The Slurm plugin of uvn: a job's processes are inside their user's network, or the job fails.
//!
//! In slurmstepd, as root and before the step's tasks start, it asks `uvnd` for a lease on the user's network. The
//! lease is called `JOB.STEP`, and lasts as long as that slurmstepd. With `PrologFlags=contain` every node of the job
//! has a step from the job's start to its end.
//!
//! A failure is reported when the tasks start, because only there does Slurm make it a failure of the job, with the
//! reason in the job's output: after a failure in an earlier hook, srun exits with 0, and a batch job drains its node
//! (seen with 22.05). `required` or `optional` in plugstack.conf decides whether the job then fails. Either way the
//! socket programs keep the tasks out of every other network.
//!
//! [`slurm`] declares the three functions of Slurm that are needed. The crate slurm-spank makes its declarations from
//! the headers of one Slurm version, which needs libclang; its hooks run in srun and sbatch too, and it names functions
//! that older versions lack.

#[cfg(panic = "abort")]
compile_error!("a panic would end slurmstepd: cargo build --profile plugin --package uvn-spank");

// A test program is not linked with Slurm's functions.
#[cfg(not(test))]
mod slurm;

use std::time::Duration;
use uvn_api::uvnd::message::Claim;
use uvn_api::uvnd::policed::Host;

/// How long `uvnd` may take, unless plugstack.conf has `timeout_s`.
const PATIENCE: Duration = Duration::from_secs(30);

/// The plugin's options: the words behind its name in plugstack.conf.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// How long `uvnd` may take.
    patience: Duration,
}

impl Options {
    fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Options, String> {
        let mut options = Options { patience: PATIENCE };
        for word in words {
            let seconds = word.strip_prefix("timeout_s=").and_then(|number| number.parse().ok());
            match seconds {
                Some(seconds @ 1..=600) => options.patience = Duration::from_secs(seconds),
                _ => return Err(format!("plugstack.conf: {word:?} is not timeout_s=1 to timeout_s=600")),
            }
        }
        Ok(options)
    }
}

/// A job's step on this node.
#[derive(Debug, Clone, Copy)]
struct Step {
    uid: u32,
    job: u32,
    step: u32,
}

impl Step {
    /// `JOB.STEP`, as Slurm's own commands write it. The numbers are from slurm.h: SLURM_BATCH_SCRIPT and the like.
    fn name(self) -> String {
        let step = match self.step {
            0xffff_fffa => "interactive".to_owned(),
            0xffff_fffb => "batch".to_owned(),
            0xffff_fffc => "extern".to_owned(),
            number => number.to_string(),
        };
        format!("{}.{step}", self.job)
    }

    /// Gets the step's user a network, held by the process `pid`, unless the user is not policed.
    fn attach(self, host: &Host, patience: Duration, pid: i32) -> Result<(), String> {
        let claim = Claim::Job { job: self.name(), pid };
        host.attach(self.uid, claim, patience).map(drop).map_err(|refused| refused.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::path::PathBuf;

    #[test]
    fn options_are_those_that_are_documented() {
        let patience = |seconds| Ok(Options { patience: Duration::from_secs(seconds) });
        assert_eq!(Options::parse([]), patience(30));
        assert_eq!(Options::parse(["timeout_s=5"]), patience(5));
        for wrong in ["timeout_s=0", "timeout_s=601", "timeout_s=", "timeout=5", "required"] {
            let error = Options::parse([wrong]).unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn steps_are_named_as_slurm_names_them() {
        let name = |step| Step { uid: 1000, job: 123, step }.name();
        assert_eq!([0, 7, 0xffff_fffb, 0xffff_fffc].map(name), ["123.0", "123.7", "123.batch", "123.extern"]);
    }

    /// A socket that takes connections and never answers, as an `uvnd` that hangs; it goes with the folder.
    struct Silent {
        folder: PathBuf,
        _socket: OwnedFd,
    }

    impl Silent {
        fn new(name: &str) -> Silent {
            let folder = std::env::temp_dir().join(format!("uvn-spank-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let socket =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            bind(socket.as_raw_fd(), &UnixAddr::new(&folder.join("uvnd.sock")).unwrap()).unwrap();
            listen(&socket, Backlog::new(1).unwrap()).unwrap();
            Silent { folder, _socket: socket }
        }

        fn host(&self) -> Host {
            let at = |name: &str| self.folder.join(name);
            Host { socket: at("uvnd.sock"), file: at("uvn.toml"), last: at("last.toml"), pins: at("pins") }
        }
    }

    impl Drop for Silent {
        fn drop(&mut self) {
            let _already_gone = std::fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn an_uvnd_that_hangs_costs_no_more_than_the_patience() {
        let silent = Silent::new("hangs");
        let step = Step { uid: 1000, job: 1, step: 0 };
        let reason = step.attach(&silent.host(), Duration::from_millis(200), 1).unwrap_err();
        assert!(reason.contains("no answer within 0.2 s"), "{reason}");
    }

    #[test]
    fn without_uvnd_only_those_who_are_policed_fail() {
        let silent = Silent::new("gone");
        let host = Host { socket: silent.folder.join("nobody"), ..silent.host() };
        let config = "policed = [\"1000-1999\"]\n[[underlay]]\nsubnets = [\"10.0.0.0/24\"]\n[peers]\nnodes = [\"n1\"]\n";
        std::fs::write(&host.file, config).unwrap();
        let attach = |uid| Step { uid, job: 1, step: 0 }.attach(&host, PATIENCE, 1);
        assert_eq!(attach(0), Ok(()));
        assert_eq!(attach(999), Ok(()));
        let reason = attach(1000).unwrap_err();
        assert!(reason.contains("nobody"), "{reason}");
        // The file does not tell who is policed: the defaults do.
        std::fs::write(&host.file, "policed = 5\n").unwrap();
        assert_eq!(attach(0), Ok(()));
        assert_eq!(attach(999), Ok(()));
        attach(1000).unwrap_err();
    }
}
