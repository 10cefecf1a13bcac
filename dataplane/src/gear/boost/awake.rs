//! Cores that do not go to sleep when they are idle: a request to the kernel (Documentation/power/pm_qos_interface.rst)
//! that holds while its file is open. To wake up takes a core 1 to 100 us, which each message of a ping-pong pays for.

use std::fs::File;
use std::io::Write;

/// Where it is made.
pub const REQUEST: &str = "/dev/cpu_dma_latency";

/// The request, if it is made.
#[derive(Debug, Default)]
pub struct Awake {
    file: Option<File>,
    refused: bool,
}

impl Awake {
    /// Whether it is made.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }

    /// Makes it, or takes it back. Where the kernel has no such thing, nothing happens.
    pub fn hold(&mut self, awake: bool) {
        if !awake || self.refused {
            self.file = None;
            return;
        }
        let made = File::options().write(true).open(REQUEST).and_then(|mut file| {
            // Microseconds that a core may take to wake up.
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
