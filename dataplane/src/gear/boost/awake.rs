//! Keeps idle cores awake, by a request to the kernel (Documentation/power/pm_qos_interface.rst) that holds while its
//! file is open. A core takes 1 to 100 us to wake up, which delays each message of a ping-pong.

use std::fs::File;
use std::io::Write;

/// The file in which the request is made.
pub const REQUEST: &str = "/dev/cpu_dma_latency";

/// The request: made while `file` is open.
#[derive(Debug, Default)]
pub struct Awake {
    file: Option<File>,
    refused: bool,
}

impl Awake {
    /// Whether cores are kept awake.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }

    /// Keeps cores awake from now on, or no longer. Has no effect if the kernel has refused once.
    pub fn hold(&mut self, awake: bool) {
        if !awake || self.refused {
            self.file = None;
            return;
        }
        let made = File::options().write(true).open(REQUEST).and_then(|mut file| {
            // The microseconds that a core may take to wake up.
            file.write_all(&0_i32.to_ne_bytes())?;
            Ok(file)
        });
        match made {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                self.refused = true;
                tracing::info!(%error, "cannot use {REQUEST}; CPU idle states stay enabled");
            }
        }
    }
}
